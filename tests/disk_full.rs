//! A real file system, filled to the brim and freed again under load.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use utterd::protocol::job::{Audio, Cut, JobSpec, Outcome, Pipeline};
use utterd::protocol::{JobId, Lang, SessionId, TurnId};
use utterd::store::*;

const MIB: u64 = 1 << 20;
const SESSION: SessionId = SessionId(7);
const LONG: Duration = Duration::from_secs(30);

/// A small file system, gone when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// None where this process may not mount.
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path());
        let output = mount.output().ok()?;
        output.status.success().then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{:?} stays", self.path());
    }
}

fn options() -> StoreOptions {
    let none = Watermark { percent: 0, bytes: 0 };
    StoreOptions {
        cache_bytes: 4 << 20,
        ballast_bytes: 2 * MIB,
        // The lines are not under test here, only the wall behind them.
        watermarks: Watermarks { warn: none, no_jobs: none, no_sessions: none },
        ..StoreOptions::default()
    }
}

fn accept(id: u128) -> Write {
    let lang = |tag: &str| tag.parse::<Lang>().unwrap();
    let spec = JobSpec {
        session: SESSION,
        utterance_index: id as u64,
        turn: TurnId(id),
        tenant: None,
        src: lang("zh"),
        tgt: lang("en"),
        dialect: None,
        mode: None,
        lang_a: None,
        lang_b: None,
        auto_langs: None,
        features: None,
        pipeline: Pipeline::default(),
        audio_format: "opus".into(),
        sample_rate: 16_000,
        audio_ms: 1_000,
        trace_id: "".into(),
        padding_ms: None,
        cut: Cut::Pause,
        streaming_asr: false,
        partial_interval_ms: 0,
        client_sent_ms: None,
        traced: Default::default(),
        paired: None,
        audience: None,
    };
    let (id, audio) = (JobId(id), Audio::Raw(Bytes::from(vec![id as u8; 20_000])));
    let row = JobRow {
        id,
        spec,
        accepted_unix_ms: 1,
        attempts: 0,
        chunks: None,
        audio_crc: 0,
        audio_bytes: 0,
    };
    Write::AcceptJob { row: Box::new(row), audio, idempotency: None }
}

fn settle(id: u128) -> Write {
    let terminal = TerminalRow {
        id: JobId(id),
        session: SESSION,
        utterance_index: id as u64,
        outcome: Outcome::Succeeded,
        code: String::new(),
        message: String::new(),
        attempts: 1,
        node: None,
        settled_unix_ms: 1_000_000_000_000_000,
        explanation: Vec::new(),
    };
    let outbox = Some(Bytes::from(vec![id as u8; 1_000]));
    Write::SettleJob {
        terminal: Box::new(terminal),
        outbox,
        heard: Vec::new(),
        dead: false,
        refused: None,
    }
}

/// What was said to be durable.
#[derive(Default)]
struct Told {
    accepted: Vec<u128>,
    seqs: Vec<u64>,
    delivered: u64,
}

/// Brings jobs, ends them, and takes results, until told to stop. Returns how many it
/// brought.
fn load(store: &Store, told: &Arc<Mutex<Told>>, stop: &AtomicBool) -> u128 {
    let submit = |write: Write, done: Option<Done>| {
        let mut offer = (write, done);
        while let Err(refused) = store.submit(offer.0, offer.1) {
            assert!(refused.why == Why::Full);
            if stop.load(SeqCst) {
                return false;
            }
            offer = (refused.write, refused.done);
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    };
    let mut id = 0;
    while !stop.load(SeqCst) {
        if !store.has_room_for_accepts() {
            store.look_at_disk();
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        id += 1;
        let mine = Arc::clone(told);
        let done: Done = Box::new(move |_| mine.lock().unwrap().accepted.push(id));
        if !submit(accept(id), Some(done)) {
            return id - 1;
        }
        // Every third job is under way for a while.
        let ending = if id % 3 > 0 { Some(id) } else { id.checked_sub(60) };
        if let Some(ending) = ending.filter(|ending| *ending > 0) {
            let mine = Arc::clone(told);
            let done: Done = Box::new(move |committed| {
                mine.lock().unwrap().seqs.extend(committed.outbox_seq);
            });
            submit(settle(ending), Some(done));
        }
        if id % 50 == 0 {
            let last = told.lock().unwrap().seqs.last().copied().unwrap_or(0);
            let through_seq = last.saturating_sub(20);
            if submit(Write::Delivered { session: SESSION, through_seq }, None) {
                told.lock().unwrap().delivered = through_seq;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    id
}

/// Writes a file until there is no room for one byte more.
fn fill(path: &PathBuf) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        let block = vec![0x55; size];
        while file.write_all(&block).is_ok() {}
    }
}

fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check(dir: &Path, told: &Told) {
    let (store, found) = Store::open(dir, options()).unwrap();
    assert_eq!(found.bad_rows, 0);
    let live: Vec<u128> = found.jobs.iter().map(|job| job.row.id.0).collect();
    for id in &told.accepted {
        let ended = || store.terminal(JobId(*id)).unwrap().is_some();
        assert!(live.contains(id) || ended(), "job {id} was accepted and is gone");
    }
    assert!(found.jobs.iter().all(|job| job.audio.is_ok()));
    assert!(told.seqs.iter().copied().eq(1..=told.seqs.len() as u64), "numbers have gaps");
    let owed = store.outbox(SESSION, 0, usize::MAX).unwrap();
    let owed: Vec<u64> = owed.iter().map(|row| row.seq).collect();
    assert!(owed.windows(2).all(|pair| pair[1] == pair[0] + 1), "{owed:?}");
    let wanted: Vec<u64> = told.seqs.iter().copied().filter(|seq| *seq > told.delivered).collect();
    assert!(wanted.iter().all(|seq| owed.contains(seq)), "what was owed is gone");
}

#[test]
fn a_file_system_filled_to_the_brim_is_outlasted() {
    let Some(mount) = Mount::new(24 * MIB) else {
        let mut out = std::io::stdout();
        writeln!(out, "skipped: cannot mount").unwrap();
        return;
    };
    let data = mount.path().join("data");
    let (store, _) = Store::open(&data, options()).unwrap();
    store.submit(Write::Node(node()), None).unwrap();
    until("the ballast is made", || data.join("utterd.ballast").exists());
    let (told, stop) = (Arc::new(Mutex::new(Told::default())), Arc::new(AtomicBool::new(false)));
    let loader = {
        let (store, told, stop) = (store.clone(), Arc::clone(&told), Arc::clone(&stop));
        std::thread::spawn(move || load(&store, &told, &stop))
    };
    until("there is work", || told.lock().unwrap().accepted.len() > 20);
    let filler = mount.path().join("filler");
    for _ in 0..3 {
        until("the disk is full", || {
            fill(&filler);
            store.pressure() >= Pressure::NoJobs
        });
        assert!(!store.has_room_for_accepts());
        let before = told.lock().unwrap().accepted.len();
        // What is durable can be read.
        until("the store reads", || store.outbox(SESSION, 0, 10).is_ok());
        std::fs::remove_file(&filler).unwrap();
        let freed = Instant::now();
        until("service goes on", || told.lock().unwrap().accepted.len() > before);
        assert!(freed.elapsed() < Duration::from_secs(10), "it took {:?}", freed.elapsed());
        until("the pressure is gone", || {
            store.look_at_disk();
            store.pressure() == Pressure::None
        });
    }
    stop.store(true, SeqCst);
    let brought = loader.join().unwrap();
    store.shutdown();
    let told = told.lock().unwrap();
    assert_eq!(told.accepted.len() as u128, brought, "all that was taken was told in the end");
    check(&data, &told);
}

fn node() -> NodeRow {
    NodeRow {
        id: "node".into(),
        platform: "linux".into(),
        version: "1".into(),
        first_seen_unix_ms: 1,
        last_seen_unix_ms: 1,
    }
}
