//! Where a database lies: the files of a directory, or a disk that exists only in memory.
//!
//! A medium finds the database, makes a new one without ever leaving half of it, and knows how
//! much room is left. It knows nothing of what is in the files. [`Watched`] stands between the
//! engine and whatever a medium opens: it counts and times the operations, and remembers the
//! first that failed, for the engine's own errors do not tell a full disk from a broken one.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::time::Instant;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::FallocateFlags;

use super::StoreError;

/// The database.
pub(super) const FILE: &str = "utterd.redb";
/// The database while it is being made.
const FILE_NEW: &str = "utterd.redb.new";
/// Says that there has been a database here.
pub(super) const MARKER: &str = "utterd.initialised";
/// Held for the length of an opening, so that two first starts do not make two databases.
const LOCK: &str = "utterd.lock";
/// Room that can be given up.
pub(super) const BALLAST: &str = "utterd.ballast";

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes this process may still use.
    pub free: u64,
    /// Bytes there are.
    pub total: u64,
}

/// Where a database lies.
pub trait Medium: Send {
    /// The database's name, for messages.
    fn file(&self) -> PathBuf;

    /// The database's bytes; none where there has never been a database.
    fn find(&mut self) -> Result<Option<Box<dyn StorageBackend>>, StoreError>;

    /// Empty bytes for a new database; what is left of an earlier making is gone.
    fn make(&mut self) -> Result<Box<dyn StorageBackend>, StoreError>;

    /// What was made becomes the database, for good and as a whole.
    fn publish(&mut self) -> Result<(), StoreError>;

    /// The database was opened: from now on its absence is a loss.
    fn opened(&mut self) -> Result<(), StoreError>;

    /// The room there is, if that can be told.
    fn space(&self) -> Option<Space>;

    /// Sets room aside that can be given up later. Returns whether it is there now.
    fn make_ballast(&mut self, bytes: u64) -> bool;

    /// Whether room is set aside.
    fn has_ballast(&self) -> bool;

    /// Gives up the room set aside. Returns whether there was any.
    fn drop_ballast(&mut self) -> bool;
}

/// The files of a directory.
pub(super) struct Directory {
    dir: PathBuf,
    /// Held between the first `find` and `opened`.
    lock: Option<File>,
}

impl Directory {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), lock: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Medium for Directory {
    fn file(&self) -> PathBuf {
        self.path(FILE)
    }

    fn find(&mut self) -> Result<Option<Box<dyn StorageBackend>>, StoreError> {
        std::fs::create_dir_all(&self.dir).map_err(io_error("create", &self.dir))?;
        if self.lock.is_none() {
            self.lock = Some(lock(&self.path(LOCK))?);
        }
        let (path, marker) = (self.path(FILE), self.path(MARKER));
        if exists(&path)? {
            let file = OpenOptions::new().read(true).write(true).open(&path);
            return backend(file.map_err(io_error("open", &path))?, &path).map(Some);
        }
        match exists(&marker)? {
            true => Err(StoreError::Missing { file: path, marker }),
            false => Ok(None),
        }
    }

    fn make(&mut self) -> Result<Box<dyn StorageBackend>, StoreError> {
        let new = self.path(FILE_NEW);
        remove(&new)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&new);
        backend(file.map_err(io_error("create", &new))?, &new)
    }

    fn publish(&mut self) -> Result<(), StoreError> {
        let (new, path) = (self.path(FILE_NEW), self.path(FILE));
        File::open(&new).and_then(|file| file.sync_all()).map_err(io_error("sync", &new))?;
        std::fs::rename(&new, path).map_err(io_error("rename", &new))?;
        sync_directory(&self.dir)
    }

    /// The marker is made after the opening: it then also stands beside a database that came from
    /// a backup, or whose making was cut short before this.
    fn opened(&mut self) -> Result<(), StoreError> {
        let marker = self.path(MARKER);
        if !exists(&marker)? {
            let made = File::create(&marker).and_then(|file| file.sync_all());
            made.map_err(io_error("write", &marker))?;
            sync_directory(&self.dir)?;
        }
        self.lock = None;
        Ok(())
    }

    fn space(&self) -> Option<Space> {
        let found = rustix::fs::statvfs(&self.dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
    }

    fn make_ballast(&mut self, bytes: u64) -> bool {
        let path = self.path(BALLAST);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let made = file.and_then(|file| {
            file.set_len(bytes)?;
            Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?)
        });
        if let Err(error) = &made {
            tracing::warn!(file = %path.display(), %error, "no room could be set aside");
            // Half of it would be counted as all of it.
            return remove(&path).is_err();
        }
        true
    }

    fn has_ballast(&self) -> bool {
        self.path(BALLAST).exists()
    }

    fn drop_ballast(&mut self) -> bool {
        let path = self.path(BALLAST);
        path.exists() && remove(&path).is_ok()
    }
}

fn backend(file: File, path: &Path) -> Result<Box<dyn StorageBackend>, StoreError> {
    let backend = FileBackend::new(file).map_err(super::recovery::open_error(path))?;
    Ok(Box::new(backend))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = File::create(path).map_err(io_error("create", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { file: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
    }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(io_error("look for", path))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

/// What the disk has been asked, since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Reads that the page cache could not answer.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Syncs.
    pub syncs: u64,
    /// Time spent in syncs, in microseconds.
    pub sync_us: u64,
    /// The longest sync, in microseconds.
    pub sync_us_max: u64,
}

/// The first operation that failed on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fault {
    /// None did.
    None,
    /// A write found no room.
    Full,
    /// Anything else, and any failed sync: nobody knows what is on the disk.
    Broken,
}

/// Figures of all backends of an engine, and the fault of the one that is open.
#[derive(Debug, Default)]
pub(super) struct Tally {
    fault: AtomicU8,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
    sync_us: AtomicU64,
    sync_us_max: AtomicU64,
}

impl Tally {
    pub(super) fn stats(&self) -> IoStats {
        IoStats {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            sync_us: self.sync_us.load(Relaxed),
            sync_us_max: self.sync_us_max.load(Relaxed),
        }
    }

    pub(super) fn fault(&self) -> Fault {
        match self.fault.load(Relaxed) {
            0 => Fault::None,
            1 => Fault::Full,
            _ => Fault::Broken,
        }
    }

    /// Another backend is about to be opened.
    pub(super) fn forget_fault(&self) {
        self.fault.store(Fault::None as u8, Relaxed);
    }

    fn failed(&self, fault: Fault) {
        // The worse of two stays.
        self.fault.fetch_max(fault as u8, Relaxed);
    }
}

/// A backend under observation.
pub(super) struct Watched {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) tally: Arc<Tally>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Watched {
    /// Notes how an operation that changes the file went.
    fn changed(&self, outcome: io::Result<()>) -> io::Result<()> {
        outcome.inspect_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => self.tally.failed(Fault::Full),
            _ => self.tally.failed(Fault::Broken),
        })
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len().inspect_err(|_| self.tally.failed(Fault::Broken))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.tally.reads.fetch_add(1, Relaxed);
        self.inner.read(offset, out).inspect_err(|_| self.tally.failed(Fault::Broken))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let began = Instant::now();
        let outcome = self.inner.sync_data();
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tally.syncs.fetch_add(1, Relaxed);
        self.tally.sync_us.fetch_add(took, Relaxed);
        self.tally.sync_us_max.fetch_max(took, Relaxed);
        outcome.inspect_err(|_| self.tally.failed(Fault::Broken))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tally.writes.fetch_add(1, Relaxed);
        self.tally.bytes_written.fetch_add(data.len() as u64, Relaxed);
        self.changed(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    // Without these the file would not be locked against a second process.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails at one thing, as told.
    #[derive(Debug)]
    struct Failing {
        at: &'static str,
        kind: io::ErrorKind,
    }

    impl Failing {
        fn meets(&self, what: &str) -> io::Result<()> {
            if self.at == what { Err(self.kind.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Failing {
        fn len(&self) -> io::Result<u64> {
            self.meets("len").map(|()| 0)
        }

        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            self.meets("read")
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            self.meets("set_len")
        }

        fn sync_data(&self) -> io::Result<()> {
            self.meets("sync")
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            self.meets("write")
        }
    }

    #[test]
    fn only_a_write_without_room_is_a_full_disk() {
        use io::ErrorKind::{Other, StorageFull};
        let cases = [
            ("write", StorageFull, Fault::Full),
            ("set_len", StorageFull, Fault::Full),
            ("write", Other, Fault::Broken),
            ("read", StorageFull, Fault::Broken),
            // After a sync that failed nobody knows what is on the disk, whatever it says.
            ("sync", StorageFull, Fault::Broken),
            ("nothing", Other, Fault::None),
        ];
        for (at, kind, fault) in cases {
            let tally = Arc::new(Tally::default());
            let inner = Box::new(Failing { at, kind });
            let watched = Watched { inner, tally: Arc::clone(&tally) };
            let failed = [
                watched.len().is_err(),
                watched.read(0, &mut []).is_err(),
                watched.set_len(1).is_err(),
                watched.write(0, b"bytes").is_err(),
                watched.sync_data().is_err(),
            ];
            assert_eq!(tally.fault(), fault, "{kind:?} at {at}");
            assert_eq!(failed.contains(&true), fault != Fault::None);
            let stats = tally.stats();
            assert_eq!((stats.reads, stats.writes, stats.bytes_written, stats.syncs), (1, 1, 5, 1));
        }
    }
}
