//! The real engine over a disk that loses power, runs full and fails, again and again.
//!
//! Random writes of every kind go to the engine and to a [`World`], which says what ought to be
//! there. After every crash (at a random operation, also while recovering from the one before)
//! the engine is opened again, and what it has must be the world of all acknowledged batches, or
//! that of one batch more: nothing acknowledged is lost, nothing is half there, no number is
//! skipped or given twice.
//!
//! `UTTERD_TORN_CRASHES` sets how many crashes there are, `UTTERD_TORN_SEED` where to begin.

#![allow(clippy::print_stderr, reason = "the figures of a long run")]

mod rot;
mod workload;
mod world;

use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use utterd::store::{Engine, Recovered, SimDisk, StoreError, StoreOptions, Write};
use workload::Workload;
use world::{World, options};

/// Sessions of a run.
pub const SESSIONS: u64 = 6;
/// Crashes of one run; the next run begins with an empty disk.
const CRASHES: u64 = 25;

/// What happened in runs; every kind must have.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    runs: u64,
    crashes: u64,
    /// Crashes before the engine was open.
    crashes_opening: u64,
    /// Crashes while the first database was being made.
    crashes_making: u64,
    batches: u64,
    writes: u64,
    /// Batches that were under way when the power went, and were there afterwards.
    survived: u64,
    /// And were not.
    rolled_back: u64,
    /// Times a commit met a full disk.
    full: u64,
    /// Batches that met a full disk, and were finished after it.
    finished: u64,
    /// Other errors of the disk.
    failed: u64,
    clean: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.crashes_opening += other.crashes_opening;
        self.crashes_making += other.crashes_making;
        self.batches += other.batches;
        self.writes += other.writes;
        self.survived += other.survived;
        self.rolled_back += other.rolled_back;
        self.full += other.full;
        self.finished += other.finished;
        self.failed += other.failed;
        self.clean += other.clean;
    }

    fn each(&self) -> [u64; 9] {
        [
            self.crashes,
            self.crashes_opening,
            self.crashes_making,
            self.survived,
            self.rolled_back,
            self.full,
            self.finished,
            self.failed,
            self.clean,
        ]
    }
}

/// How the life of an engine ended.
enum End {
    /// The power went.
    Cut,
    /// The disk failed, or the engine was closed: what it wrote is still with the system.
    Closed,
}

/// One disk, and all that is done to it.
struct Run {
    disk: SimDisk,
    random: fastrand::Rng,
    workload: Workload,
    /// What may be there: all that was acknowledged, and perhaps one batch more.
    worlds: Vec<World>,
    now: u64,
    /// Boot epochs that the next start may have.
    epochs: std::ops::RangeInclusive<u32>,
    started: bool,
    /// With no cache for pages, writes reach the disk before the commit does.
    cache_bytes: usize,
    tally: Tally,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed ^ 0x5eed),
            random: fastrand::Rng::with_seed(seed),
            workload: Workload::default(),
            worlds: vec![World::default()],
            now: 1_000_000,
            epochs: 0..=0,
            started: false,
            cache_bytes: if seed.is_multiple_of(2) { 0 } else { 1 << 20 },
            tally: Tally { runs: 1, ..Tally::default() },
        }
    }

    /// Lives and crashes. The error says what is wrong.
    fn live(&mut self) -> Result<(), String> {
        while self.tally.crashes < CRASHES {
            self.plan();
            match self.one_life()? {
                End::Cut => {
                    self.disk.crash();
                    self.tally.crashes += 1;
                }
                End::Closed => self.disk.heal(),
            }
        }
        self.disk.cut_power_after(None);
        let engine = self.open()?.ok_or("a sound disk cannot be opened")?;
        drop(engine);
        Ok(())
    }

    /// What is to go wrong next.
    fn plan(&mut self) {
        let soon = self.random.u8(..4) == 0;
        let changes = if soon { self.random.u64(..40) } else { self.random.u64(..260) };
        self.disk.cut_power_after(Some(changes));
        let from = self.random.u64(..120);
        match self.random.u8(..8) {
            0 => self.disk.fail_changes(from, self.random.u64(1..20), ErrorKind::StorageFull),
            1 => self.disk.fail_changes(from, 1, ErrorKind::Other),
            _ => self.disk.heal(),
        }
    }

    fn one_life(&mut self) -> Result<End, String> {
        let Some(mut engine) = self.open()? else {
            return Ok(if self.disk.is_off() { End::Cut } else { End::Closed });
        };
        loop {
            self.now += self.random.u64(..200);
            if self.random.u8(..64) == 0 {
                drop(engine);
                self.tally.clean += 1;
                return Ok(if self.disk.is_off() { End::Cut } else { End::Closed });
            }
            let writes = self.workload.batch(&mut self.random, &self.worlds[0], self.now);
            if let Some(end) = self.commit(&mut engine, writes)? {
                return Ok(end);
            }
        }
    }

    /// Opens the engine, and holds what it finds against what may be there.
    fn open(&mut self) -> Result<Option<Engine>, String> {
        let options = StoreOptions { cache_bytes: self.cache_bytes, ..options() };
        match Engine::open_on(self.disk.medium(), &options, self.now) {
            Ok((mut engine, found)) => {
                let checked = self.check(&engine, &found);
                // The power may go right behind the opening, and then nothing more can be read.
                if self.disk.is_off() {
                    return Ok(None);
                }
                checked?;
                if self.random.bool() {
                    engine.make_ballast();
                }
                Ok(Some(engine))
            }
            Err(_) if self.disk.is_off() => {
                self.tally.crashes_opening += 1;
                self.tally.crashes_making += u64::from(!self.started);
                // The start may have been counted, or not.
                self.epochs = *self.epochs.start()..=self.epochs.end() + 2;
                Ok(None)
            }
            Err(StoreError::Full { .. }) => {
                self.tally.full += 1;
                self.epochs = *self.epochs.start()..=self.epochs.end() + 2;
                Ok(None)
            }
            Err(_) if self.disk.ops().failures > 0 => {
                self.tally.failed += 1;
                self.epochs = *self.epochs.start()..=self.epochs.end() + 2;
                Ok(None)
            }
            Err(error) => Err(format!("a sound disk cannot be opened: {error}")),
        }
    }

    fn check(&mut self, engine: &Engine, found: &Recovered) -> Result<(), String> {
        // A start that met a full disk begins again by itself, and may be counted twice.
        let met_full = self.disk.ops().failures > 0;
        let last = self.epochs.end() + u32::from(met_full);
        if !(*self.epochs.start()..=last).contains(&found.boot_epoch) {
            return Err(format!("epoch {}, not in {:?}", found.boot_epoch, self.epochs));
        }
        (self.epochs, self.started) = (found.boot_epoch + 1..=found.boot_epoch + 1, true);
        let reader = engine.reader();
        let mut faults = Vec::new();
        for (at, world) in self.worlds.iter().enumerate() {
            let jobs = self.workload.recent_jobs();
            let differs = world.differs(found, &reader, self.now);
            let Some(fault) = differs.or_else(|| world.ends_differ(&reader, jobs)) else {
                if self.worlds.len() > 1 {
                    let count = [&mut self.tally.rolled_back, &mut self.tally.survived];
                    *count.into_iter().nth(at).ok_or("two worlds at most")? += 1;
                }
                let mut world = world.clone();
                world.early.clear();
                self.workload.found(&world, at == 1)?;
                self.worlds = vec![world];
                return Ok(());
            };
            faults.push(fault);
        }
        Err(format!("what is there is nothing that may be there: {faults:#?}"))
    }

    /// One batch. None means that the engine goes on.
    fn commit(&mut self, engine: &mut Engine, writes: Vec<Write>) -> Result<Option<End>, String> {
        let mut next = self.worlds[0].clone();
        let wanted = next.apply(&writes, self.now);
        self.workload.submitted(&writes, &wanted);
        self.tally.batches += 1;
        self.tally.writes += writes.len() as u64;
        let mut outcome = engine.commit(writes, self.now);
        let met_full = matches!(outcome, Err(StoreError::Full { .. }));
        for _ in 0..100 {
            if !matches!(outcome, Err(StoreError::Full { .. })) {
                break;
            }
            self.tally.full += 1;
            // What is on the disk can be read meanwhile, or the engine says why not.
            drop(engine.reader().terminal(utterd::protocol::JobId(1)));
            engine.drop_ballast();
            outcome = engine.retry();
        }
        match outcome {
            Ok(answers) if answers == wanted => {
                self.tally.finished += u64::from(met_full);
                self.workload.acknowledged(&next)?;
                self.worlds = vec![next];
                Ok(None)
            }
            Ok(answers) => Err(format!("answers {answers:?}, not {wanted:?}")),
            Err(error) => {
                self.worlds.push(next);
                if self.disk.is_off() {
                    return Ok(Some(End::Cut));
                }
                self.tally.failed += 1;
                match self.disk.ops().failures {
                    0 => Err(format!("an error of a sound disk: {error}")),
                    _ => Ok(Some(End::Closed)),
                }
            }
        }
    }
}

/// One run from a seed. The error says what is wrong, and with which seed.
fn run(seed: u64, prepare: impl Fn(&SimDisk)) -> Result<Tally, String> {
    let mut run = Run::new(seed);
    prepare(&run.disk);
    run.live().map_err(|fault| format!("seed {seed}, crash {}: {fault}", run.tally.crashes))?;
    Ok(run.tally)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    let crashes = setting("UTTERD_TORN_CRASHES", 20_000);
    let seeds = AtomicU64::new(setting("UTTERD_TORN_SEED", 1));
    let (total, faults) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let work = || {
        while total.lock().unwrap().crashes < crashes && faults.lock().unwrap().is_empty() {
            match run(seeds.fetch_add(1, SeqCst), |_| {}) {
                Ok(tally) => {
                    let mut total = total.lock().unwrap();
                    let before = total.crashes;
                    total.add(tally);
                    if before / 50_000 < total.crashes / 50_000 {
                        eprintln!("{} crashes in {:.0?}", total.crashes, began.elapsed());
                    }
                }
                Err(fault) => faults.lock().unwrap().push(fault),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let total = *total.lock().unwrap();
    eprintln!("{total:#?} in {:.1?}", began.elapsed());
    assert_eq!(faults.into_inner().unwrap(), [""; 0]);
    // A kind of trouble that never came would have proved nothing.
    assert!(crashes < 5_000 || total.each().iter().all(|count| *count > 0));
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in 1..=12 {
        let disks = std::cell::RefCell::new(Vec::new());
        let mut lives = (0..2).map(|_| {
            let tally = run(seed, |disk| disks.borrow_mut().push(disk.clone()));
            tally.map(|tally| (tally.each(), tally.batches))
        });
        assert_eq!(lives.next(), lives.next(), "seed {seed}");
        let ops: Vec<_> = disks.borrow().iter().map(SimDisk::ops).collect();
        assert_eq!(ops[0], ops[1], "seed {seed}");
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    // An engine that meets nonsense may panic; that is found out too.
    let lied = |seed| {
        let lying = || run(seed, |disk| disk.lie_about_syncs(Some(3)));
        !std::panic::catch_unwind(lying).is_ok_and(|outcome| outcome.is_ok())
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found_out = (1..=500).find(|seed| lied(*seed));
    std::panic::set_hook(hook);
    eprintln!("found out with seed {found_out:?}");
    assert!(found_out.is_some(), "the oracle does not see a disk that loses what it synced");
}
