//! A disk that exists only in memory and can be treated as no real one should be.
//!
//! It keeps apart what is on the platter and what was written since the last sync. When the power
//! is cut, any part of the latter may be there afterwards and any part may not, in pieces as small
//! as a byte. It can run full, fail, and lie about having synced. Everything it does by chance
//! comes from its seed. Simulations and tests drive the real engine over it; no server does.
//!
//! [`SimDisk`] is a handle; clones are the same disk. It holds the two files that making a database
//! needs, so that a crash can also come between them.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::StoreError;
use super::medium::{Medium, Space};

/// Room is taken in blocks of this many bytes.
const BLOCK: u64 = 4_096;
const NAME: &str = "simulated disk";

/// The pieces in which a write can be torn by a power cut, in bytes.
const TEAR_SIZES: [usize; 4] = [1, 64, 512, 4_096];
/// How likely a piece that was not synced is to survive a power cut, in percent.
const SURVIVAL: [u32; 7] = [0, 10, 50, 50, 90, 97, 100];

/// A disk in memory.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Disk>>);

/// What a disk has been asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskOps {
    /// Operations that change something: writes, changes of length, syncs, renames. A power cut
    /// or a failure is set by the number of these.
    pub changes: u64,
    /// Writes among them.
    pub writes: u64,
    /// Syncs among them.
    pub syncs: u64,
    /// Syncs that did nothing and said they had.
    pub lies: u64,
    /// Operations that failed for want of room, or as they were told to.
    pub failures: u64,
    /// Power cuts.
    pub cuts: u64,
}

#[derive(Debug)]
struct Disk {
    random: fastrand::Rng,
    tear: usize,
    database: Option<Blob>,
    /// The database while it is being made.
    making: Option<Blob>,
    ops: DiskOps,
    /// The change at which the power goes.
    cut_at: Option<u64>,
    off: bool,
    failing: Option<Failing>,
    /// Bytes there are; none for no end.
    capacity: Option<u64>,
    ballast: u64,
    /// A sync in so many is a lie.
    lie_one_in: Option<u32>,
}

/// Changes that fail: from one on, and how many.
#[derive(Debug, Clone, Copy)]
struct Failing {
    from: u64,
    count: u64,
    kind: io::ErrorKind,
}

/// A file.
#[derive(Debug, Default, Clone)]
struct Blob {
    /// As its writer sees it.
    live: Vec<u8>,
    /// As it is on the platter.
    durable: Vec<u8>,
    /// What makes the one into the other, oldest first.
    pending: Vec<Change>,
    /// Which blocks of `live` take room.
    taken: Vec<bool>,
}

#[derive(Debug, Clone)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Database,
    Making,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let tear = TEAR_SIZES[random.usize(..TEAR_SIZES.len())];
        Self(Arc::new(Mutex::new(Disk {
            random,
            tear,
            database: None,
            making: None,
            ops: DiskOps::default(),
            cut_at: None,
            off: false,
            failing: None,
            capacity: None,
            ballast: 0,
            lie_one_in: None,
        })))
    }

    /// Where an engine finds this disk.
    pub fn medium(&self) -> Box<dyn Medium> {
        Box::new(self.clone())
    }

    /// What it has been asked.
    pub fn ops(&self) -> DiskOps {
        self.disk().ops
    }

    /// Cuts the power at the change that comes after `changes` more; none takes it back. From then
    /// on everything fails until [`SimDisk::crash`].
    pub fn cut_power_after(&self, changes: Option<u64>) {
        let mut disk = self.disk();
        disk.cut_at = changes.map(|changes| disk.ops.changes + changes);
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.disk().off
    }

    /// Cuts the power, if it is not off yet, and brings it back: what was not synced is there, or
    /// partly there, or not. Whoever has the disk open must let it go first.
    pub fn crash(&self) {
        self.disk().crash();
    }

    /// Makes changes fail, from the one that comes after `after` more, and so many of them.
    pub fn fail_changes(&self, after: u64, count: u64, kind: io::ErrorKind) {
        let mut disk = self.disk();
        let from = disk.ops.changes + after;
        disk.failing = Some(Failing { from, count, kind });
    }

    /// Ends what [`SimDisk::fail_changes`] began.
    pub fn heal(&self) {
        self.disk().failing = None;
    }

    /// Sets how many bytes there are; none for no end.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// Makes one sync in so many do nothing and say that it had; none for honesty.
    pub fn lie_about_syncs(&self, one_in: Option<u32>) {
        self.disk().lie_one_in = one_in;
    }

    /// Flips a random bit of the database on the platter. Nobody may have the disk open.
    pub fn flip_a_bit(&self) {
        let mut disk = self.disk();
        let disk = &mut *disk;
        if let Some(blob) = disk.database.as_mut().filter(|blob| !blob.durable.is_empty()) {
            let at = disk.random.usize(..blob.durable.len());
            blob.durable[at] ^= 1 << disk.random.u8(..8);
            blob.live.clone_from(&blob.durable);
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Counts a change, and fails where it is to fail.
    fn change(&mut self) -> io::Result<()> {
        self.powered()?;
        let number = self.ops.changes;
        self.ops.changes += 1;
        if self.cut_at.is_some_and(|at| number >= at) {
            self.off = true;
            return Err(no_power());
        }
        match self.failing {
            Some(Failing { from, count, kind }) if number >= from && number - from < count => {
                self.ops.failures += 1;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }

    fn powered(&self) -> io::Result<()> {
        match self.off {
            true => Err(no_power()),
            false => Ok(()),
        }
    }

    fn blob(&mut self, which: Which) -> io::Result<&mut Blob> {
        let blob = match which {
            Which::Database => &mut self.database,
            Which::Making => &mut self.making,
        };
        blob.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, which: Which, offset: usize, data: &[u8]) -> io::Result<()> {
        let outcome = self.change();
        if outcome.is_err() {
            // The power may go in the middle of a write.
            if self.off
                && let Ok(blob) = self.blob(which)
            {
                blob.pending.push(Change::Bytes(offset, data.to_vec()));
            }
            return outcome;
        }
        self.ops.writes += 1;
        self.take_room(which, offset, data.len())?;
        let blob = self.blob(which)?;
        put(&mut blob.live, offset, data);
        blob.pending.push(Change::Bytes(offset, data.to_vec()));
        Ok(())
    }

    /// Takes room for the blocks that have none.
    fn take_room(&mut self, which: Which, offset: usize, len: usize) -> io::Result<()> {
        let (first, end) = (offset as u64 / BLOCK, (offset + len) as u64 / BLOCK);
        let blocks = first as usize..=end as usize;
        let wanted = {
            let taken = &self.blob(which)?.taken;
            blocks.clone().filter(|block| !taken.get(*block).is_some_and(|t| *t)).count()
        };
        let used = self.used();
        if self.capacity.is_some_and(|bytes| used + wanted as u64 * BLOCK > bytes) && wanted > 0 {
            self.ops.failures += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = &mut self.blob(which)?.taken;
        if taken.len() <= *blocks.end() {
            taken.resize(blocks.end() + 1, false);
        }
        taken[blocks].fill(true);
        Ok(())
    }

    fn used(&self) -> u64 {
        let blobs = self.database.iter().chain(&self.making);
        let blocks: usize =
            blobs.map(|blob| blob.taken.iter().filter(|taken| **taken).count()).sum();
        blocks as u64 * BLOCK + self.ballast
    }

    fn set_len(&mut self, which: Which, len: usize) -> io::Result<()> {
        self.change()?;
        let blob = self.blob(which)?;
        blob.live.resize(len, 0);
        blob.taken.truncate(len.div_ceil(BLOCK as usize));
        blob.pending.push(Change::Length(len));
        Ok(())
    }

    fn sync(&mut self, which: Which) -> io::Result<()> {
        self.change()?;
        self.ops.syncs += 1;
        if let Some(one_in) = self.lie_one_in
            && self.random.u32(..one_in.max(1)) == 0
        {
            self.ops.lies += 1;
            return Ok(());
        }
        self.blob(which)?.sync();
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        self.sync(Which::Making)?;
        self.change()?;
        let Some(made) = self.making.take() else { return Err(io::ErrorKind::NotFound.into()) };
        // The name may reach the platter before the directory is synced.
        if self.change().is_err() && self.random.bool() {
            self.making = Some(made);
            return Err(no_power());
        }
        self.database = Some(made);
        self.powered()
    }

    fn crash(&mut self) {
        self.ops.cuts += 1;
        let (tear, random) = (self.tear, &mut self.random);
        for blob in self.database.iter_mut().chain(&mut self.making) {
            blob.tear(tear, random);
        }
        (self.off, self.cut_at, self.failing) = (false, None, None);
    }
}

impl Blob {
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Change::Length(len) => self.durable.resize(len, 0),
                Change::Bytes(offset, data) => put(&mut self.durable, offset, &data),
            }
        }
    }

    /// What a power cut leaves of changes that were not synced. They are gone through in order,
    /// and each piece is kept or not: a later write of a piece may be there without an earlier
    /// one, never the earlier over the later.
    fn tear(&mut self, tear: usize, random: &mut fastrand::Rng) {
        let survival = SURVIVAL[random.usize(..SURVIVAL.len())];
        let lengths = [0, 50, 100][random.usize(..3)];
        let keeps = |percent: u32, random: &mut fastrand::Rng| random.u32(..100) < percent;
        for change in self.pending.drain(..) {
            match change {
                Change::Length(len) if keeps(lengths, random) => self.durable.resize(len, 0),
                Change::Length(_) => {}
                Change::Bytes(offset, data) => {
                    let whole = keeps(30, random).then(|| keeps(survival, random));
                    let mut from = 0;
                    while from < data.len() {
                        let at = offset + from;
                        let to = data.len().min(from + tear - at % tear);
                        let grows = offset + to > self.durable.len();
                        if whole.unwrap_or_else(|| keeps(survival, random))
                            && !(grows && lengths == 0)
                        {
                            put(&mut self.durable, at, &data[from..to]);
                        }
                        from = to;
                    }
                }
            }
        }
        self.live.clone_from(&self.durable);
        self.taken.truncate(self.live.len().div_ceil(BLOCK as usize));
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

impl Medium for SimDisk {
    fn file(&self) -> PathBuf {
        PathBuf::from(NAME)
    }

    fn find(&mut self) -> Result<Option<Box<dyn StorageBackend>>, StoreError> {
        let disk = self.disk();
        disk.powered().map_err(io_error("look for"))?;
        Ok(match disk.database {
            Some(_) => Some(Box::new(SimFile { disk: self.clone(), which: Which::Database })),
            None => None,
        })
    }

    fn make(&mut self) -> Result<Box<dyn StorageBackend>, StoreError> {
        let mut disk = self.disk();
        disk.change().map_err(io_error("create"))?;
        disk.making = Some(Blob::default());
        Ok(Box::new(SimFile { disk: self.clone(), which: Which::Making }))
    }

    fn publish(&mut self) -> Result<(), StoreError> {
        self.disk().publish().map_err(io_error("rename"))
    }

    fn opened(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn space(&self) -> Option<Space> {
        let disk = self.disk();
        disk.capacity.map(|total| Space { free: total.saturating_sub(disk.used()), total })
    }

    fn make_ballast(&mut self, bytes: u64) -> bool {
        let mut disk = self.disk();
        let used = disk.used() - disk.ballast;
        if disk.capacity.is_some_and(|capacity| used + bytes > capacity) {
            return false;
        }
        disk.ballast = bytes;
        true
    }

    fn has_ballast(&self) -> bool {
        self.disk().ballast > 0
    }

    fn drop_ballast(&mut self) -> bool {
        std::mem::take(&mut self.disk().ballast) > 0
    }
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { doing, path: PathBuf::from(NAME), source }
}

/// One of the files, open.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    which: Which,
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut disk = self.disk.disk();
        disk.powered()?;
        Ok(disk.blob(self.which)?.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk.disk();
        disk.powered()?;
        let live = &disk.blob(self.which)?.live;
        let from = offset as usize;
        match live.get(from..from.saturating_add(out.len())) {
            Some(found) => out.copy_from_slice(found),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.disk().set_len(self.which, len as usize)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.disk().sync(self.which)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.disk().write(self.which, offset as usize, data)
    }
}
