//! What the store does when there is no room, and when its thread does not move.

use std::io::ErrorKind;
use std::sync::Mutex;

use super::super::engine::Moment;
use super::super::pressure::{Health, Patience, Pressure, Watermark, Watermarks};
use super::*;
use crate::protocol::job::Audio;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn full_error() -> StoreError {
    StoreError::Full { file: PathBuf::from("disk") }
}

fn no_marks() -> Watermarks {
    let none = Watermark { percent: 0, bytes: 0 };
    Watermarks { warn: none, no_jobs: none, no_sessions: none }
}

fn small() -> StoreOptions {
    StoreOptions { ballast_bytes: 512 * KIB, watermarks: no_marks(), ..StoreOptions::default() }
}

/// Waits until something is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn accept_large(id: u128) -> Write {
    let audio = Audio::Raw(Bytes::from(vec![id as u8; 60_000]));
    Write::AcceptJob { row: Box::new(full_job(id)), audio, idempotency: None }
}

#[test]
fn a_commit_that_failed_and_happened_gives_the_answers_it_had() {
    let dir = TempDir::new().unwrap();
    // With no outcome kept, memory alone knows that a job ended before its acceptance.
    let options = StoreOptions { terminal_rows_max: 0, ..StoreOptions::default() };
    let (mut engine, _) = Engine::open(dir.path(), &options, NOW_MS).unwrap();
    let failing = Arc::new(AtomicU64::new(0));
    let left = Arc::clone(&failing);
    let fails = move || left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
    engine.around_commit = Arc::new(move |moment| match moment {
        Moment::After if fails() => Err(full_error()),
        _ => Ok(()),
    });
    engine.commit(vec![settle(1, 1, Some(b"one"))], NOW_MS).unwrap();
    failing.store(1, SeqCst);
    let batch = vec![settle(2, 1, Some(b"two")), settle(3, 1, Some(b"three")), settle(3, 1, None)];
    let outcome = engine.commit(batch, NOW_MS);
    assert!(matches!(outcome, Err(StoreError::Full { .. })) && engine.is_full());
    let answers = engine.retry().unwrap();
    let seqs: Vec<_> = answers.iter().map(|answer| answer.outbox_seq).collect();
    assert_eq!(seqs, [Some(2), Some(3), None]);
    let before: Vec<_> = answers.iter().map(|answer| answer.ended_before).collect();
    assert_eq!(before, [false, false, true]);
    // Its memory counts, too: the acceptance of a job it ended stores nothing.
    engine.commit(vec![accept(2, b"audio")], NOW_MS).unwrap();
    let reader = engine.reader();
    assert_eq!(reader.outbox(SessionId(1), 0, 10).unwrap().len(), 3);
    drop((engine, reader));
    assert_eq!(rows(&dir, tables::JOBS), 0);
}

#[test]
fn a_commit_that_failed_and_did_not_happen_is_done_again_with_the_same_answers() {
    let dir = TempDir::new().unwrap();
    let (mut engine, _) = Engine::open(dir.path(), &StoreOptions::default(), NOW_MS).unwrap();
    let failing = Arc::new(AtomicU64::new(3));
    let left = Arc::clone(&failing);
    engine.around_commit = Arc::new(move |moment| {
        let fails = moment == Moment::Before
            && left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if fails { Err(full_error()) } else { Ok(()) }
    });
    let batch = vec![settle(2, 1, Some(b"two")), accept(2, b"audio"), settle(3, 1, Some(b"x"))];
    assert!(engine.commit(batch, NOW_MS).is_err());
    assert!(engine.retry().is_err() && engine.retry().is_err());
    let answers = engine.retry().unwrap();
    let seqs: Vec<_> = answers.iter().map(|answer| answer.outbox_seq).collect();
    assert_eq!(seqs, [Some(1), None, Some(2)]);
    assert_eq!(engine.retry().unwrap(), []);
    assert_eq!(
        engine.reader().terminal(JobId(2)).unwrap(),
        Some(TerminalRow { session: SessionId(1), ..full_terminal(2) })
    );
}

#[test]
fn a_full_disk_is_waited_out_and_nothing_taken_is_lost() {
    let disk = SimDisk::new(7);
    disk.set_capacity(Some(64 * MIB));
    let (store, _) = Store::open_on(disk.medium(), small()).unwrap();
    until("the ballast is made", || disk.used() > 512 * KIB);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |id: u128| -> Option<Done> {
        let told = Arc::clone(&told);
        Some(Box::new(move |_| told.lock().unwrap().push(id)))
    };
    put(&store, settle(1_000, 77, Some(b"kept")));
    disk.set_capacity(Some(disk.used() + 300 * KIB));
    let mut taken = 0;
    // The ballast lets a few more through.
    while store.pressure() != Pressure::Full {
        match store.submit(accept_large(taken), tell(taken)) {
            Ok(()) => taken += 1,
            Err(refused) => assert_eq!(refused.why, Why::Full),
        }
        until("the store keeps up", || {
            store.stats().queued_accepts == 0 || store.pressure() == Pressure::Full
        });
    }
    until("it stays full", || told.lock().unwrap().len() < taken as usize);
    assert!(!store.has_room_for_accepts() && !store.takes_sessions());
    let refused = store.submit(accept_large(9_999), None).unwrap_err();
    assert_eq!(refused.why, Why::Full);
    // What is durable can be read, what must be told is taken, and neither waits for the other.
    store.submit(settle(2_000, 77, Some(b"late")), tell(2_000)).unwrap();
    until("the store reads", || {
        store.outbox(SessionId(77), 0, 9).is_ok_and(|owed| owed.len() == 1)
    });
    assert!(!told.lock().unwrap().contains(&2_000));
    let began = Instant::now();
    disk.set_capacity(Some(64 * MIB));
    until("service goes on by itself", || told.lock().unwrap().contains(&2_000));
    assert!(began.elapsed() < Duration::from_secs(10));
    until("the pressure is gone", || store.pressure() == Pressure::None);
    assert!(store.has_room_for_accepts());
    drop(store);
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    told.sort_unstable();
    assert_eq!(told, (0..taken).chain([2_000]).collect::<Vec<_>>());
    let (store, again) = Store::open_on(disk.medium(), small()).unwrap();
    assert_eq!(again.jobs.len(), taken as usize);
    assert!(again.jobs.iter().all(|job| job.audio.is_ok()));
    assert_eq!(store.outbox(SessionId(77), 0, 9).unwrap().len(), 2);
}

#[test]
fn the_ballast_lets_jobs_end_on_a_full_disk() {
    let disk = SimDisk::new(12);
    disk.set_capacity(Some(64 * MIB));
    let (store, _) = Store::open_on(disk.medium(), small()).unwrap();
    for id in 1..=8 {
        put(&store, accept_large(id));
    }
    disk.set_capacity(Some(disk.used()));
    let large: &'static [u8] = vec![7; 40_000].leak();
    for id in 1..=8 {
        put(&store, settle(id, 77, Some(large)));
    }
    assert!(!disk.medium().has_ballast(), "it was not needed");
    assert_eq!(store.outbox(SessionId(77), 0, 99).unwrap().len(), 8);
    disk.set_capacity(Some(64 * MIB));
    until("the ballast is made again", || {
        store.look_at_disk();
        disk.medium().has_ballast()
    });
}

#[test]
fn a_store_stopped_on_a_full_disk_ends_and_tells_nobody_what_is_not_so() {
    let disk = SimDisk::new(8);
    let (store, _) = Store::open_on(disk.medium(), small()).unwrap();
    put(&store, accept(1, b"audio"));
    disk.set_capacity(Some(0));
    let (done, committed) = callback();
    store.submit(accept_large(2), Some(done)).unwrap();
    until("the disk is full", || store.pressure() == Pressure::Full);
    let began = Instant::now();
    store.shutdown();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(committed.try_recv().is_err());
    disk.set_capacity(None);
    let (_store, again) = Store::open_on(disk.medium(), small()).unwrap();
    assert_eq!(again.jobs.iter().map(|job| job.row.id.0).collect::<Vec<_>>(), [1]);
}

#[test]
fn the_ballast_lets_a_start_on_a_full_disk_succeed() {
    let disk = SimDisk::new(9);
    disk.set_capacity(Some(64 * MIB));
    let (store, _) = Store::open_on(disk.medium(), small()).unwrap();
    put(&store, accept(1, b"audio"));
    drop(store);
    disk.set_capacity(Some(disk.used()));
    // The start writes little, into room the file may have; it must not depend on that.
    disk.fail_changes(3, 1, ErrorKind::StorageFull);
    assert!(disk.medium().has_ballast());
    let (_store, again) = Store::open_on(disk.medium(), small()).unwrap();
    assert_eq!((again.jobs.len(), again.boot_epoch), (1, 1));
    assert!(!disk.medium().has_ballast());
}

#[test]
fn little_room_refuses_jobs_then_sessions_and_takes_them_again() {
    let disk = SimDisk::new(10);
    let mark = |bytes| Watermark { percent: 100, bytes };
    let watermarks =
        Watermarks { warn: mark(9 * MIB), no_jobs: mark(6 * MIB), no_sessions: mark(3 * MIB) };
    let options = StoreOptions { ballast_bytes: 0, watermarks, ..StoreOptions::default() };
    disk.set_capacity(Some(64 * MIB));
    let (store, _) = Store::open_on(disk.medium(), options).unwrap();
    assert_eq!(store.pressure(), Pressure::None);
    let used = disk.used();
    let allows = [
        (8 * MIB, Pressure::Warn, true, true),
        (5 * MIB, Pressure::NoJobs, false, true),
        (2 * MIB, Pressure::NoSessions, false, false),
        (20 * MIB, Pressure::None, true, true),
    ];
    for (free, pressure, jobs, sessions) in allows {
        disk.set_capacity(Some(used + free));
        // An idle store looks when it is asked to.
        until(pressure.as_str(), || {
            store.look_at_disk();
            store.pressure() == pressure
        });
        assert_eq!((store.has_room_for_accepts(), store.takes_sessions()), (jobs, sessions));
        // What was accepted goes on.
        put(&store, settle(u128::from(free), 1, None));
    }
}

#[test]
fn the_ballast_is_real_room_and_comes_back_when_there_is_room() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { ballast_bytes: MIB, ..StoreOptions::default() };
    let (store, _) = Store::open_with(dir.path(), options, hooks()).unwrap();
    let ballast = dir.path().join(medium::BALLAST);
    let file = std::fs::metadata(&ballast).unwrap();
    assert!(file.len() == MIB && file.blocks() * 512 >= MIB, "{file:?}");
    std::fs::remove_file(&ballast).unwrap();
    until("the ballast is made again", || {
        store.look_at_disk();
        ballast.exists()
    });
    drop(store);
    // Configured away, it goes.
    let none = StoreOptions { ballast_bytes: 0, ..StoreOptions::default() };
    drop(Store::open_with(dir.path(), none, hooks()).unwrap());
    assert!(!ballast.exists());
}

#[test]
fn only_a_full_disk_is_waited_out() {
    for (kind, waits) in [(ErrorKind::StorageFull, true), (ErrorKind::Other, false)] {
        let disk = SimDisk::new(11);
        let (mut engine, _) = Engine::open_on(disk.medium(), &small(), NOW_MS).unwrap();
        disk.fail_changes(0, 1, kind);
        let outcome = engine.commit(vec![accept(1, b"audio")], NOW_MS);
        assert_eq!(matches!(outcome, Err(StoreError::Full { .. })), waits, "{outcome:?}");
        assert_eq!(engine.is_full(), waits);
    }
}

#[test]
fn a_thread_that_does_not_move_sheds_work_and_then_ends_the_process() {
    let dir = TempDir::new().unwrap();
    let (sender, ended) = channel();
    let ms = Duration::from_millis;
    let patience = Patience { late: ms(100), stuck: ms(400), lost: ms(900) };
    let sender = Mutex::new(sender);
    let fatal = move |why: &str| sender.lock().unwrap().send(why.to_owned()).unwrap();
    let hooks = Hooks { fatal: Arc::new(fatal), patience, ..hooks() };
    let (store, _) = Store::open_with(dir.path(), StoreOptions::default(), hooks).unwrap();
    // Nothing to do is not late.
    std::thread::sleep(ms(150));
    assert_eq!(store.health(), Health::Well);
    let held = hold(&store);
    until("late", || store.health() == Health::Late);
    assert!(!store.takes_sessions() && store.has_room_for_accepts());
    until("stuck", || store.health() == Health::Stuck);
    assert!(!store.has_room_for_accepts());
    assert!(ended.recv_timeout(LONG).unwrap().contains("does not move"));
    drop(held);
    until("well again", || store.health() == Health::Well);
}
