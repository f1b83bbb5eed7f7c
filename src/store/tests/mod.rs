//! The store through its own door: what is promised must be there after a reopening.

mod backup;
mod damage;
mod dead_letters;
mod full;
mod sessions;

use crate::protocol::job::Outcome;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use redb::{Database, Key, ReadableDatabase, ReadableTableMetadata, TableDefinition};
use tempfile::TempDir;

use super::record::samples::{full_job, full_session, full_terminal};
use super::*;

const LONG: Duration = Duration::from_secs(20);
const NOW_MS: u64 = 1_000_000;

fn hooks() -> Hooks {
    Hooks { now_ms: || NOW_MS, ..Hooks::default() }
}

fn open(dir: &TempDir) -> (Store, Recovered) {
    Store::open_with(dir.path(), StoreOptions::default(), hooks()).unwrap()
}

/// Submits and waits for the commit.
fn put(store: &Store, write: Write) -> Committed {
    let (done, committed) = callback();
    store.submit(write, Some(done)).unwrap();
    committed.recv_timeout(LONG).unwrap()
}

fn callback() -> (Done, Receiver<Committed>) {
    let (sender, receiver) = channel();
    // Not every test waits for every callback.
    let done: Done = Box::new(move |committed| sender.send(committed).unwrap_or(()));
    (done, receiver)
}

fn accept(id: u128, audio: &'static [u8]) -> Write {
    let audio = Audio::Raw(Bytes::from_static(audio));
    Write::AcceptJob { row: Box::new(full_job(id)), audio, idempotency: None }
}

fn settle(id: u128, session: u64, frame: Option<&'static [u8]>) -> Write {
    let terminal = TerminalRow { session: SessionId(session), ..full_terminal(id) };
    let outbox = frame.map(Bytes::from_static);
    Write::SettleJob {
        terminal: Box::new(terminal),
        outbox,
        heard: Vec::new(),
        dead: false,
        refused: None,
    }
}

/// Holds the writer inside a callback until the sender is dropped.
fn hold(store: &Store) -> Sender<()> {
    let (release, held) = channel::<()>();
    let (inside, entered) = channel();
    let done = move |_| {
        inside.send(()).unwrap();
        held.recv().unwrap_err();
    };
    store.submit(Write::CloseSession(SessionId(0)), Some(Box::new(done))).unwrap();
    entered.recv_timeout(LONG).unwrap();
    release
}

/// Rows in a table of a closed database.
fn rows<K: Key + 'static>(dir: &TempDir, table: TableDefinition<'static, K, &'static [u8]>) -> u64 {
    let db = Database::open(dir.path().join(medium::FILE)).unwrap();
    db.begin_read().unwrap().open_table(table).unwrap().len().unwrap()
}

#[test]
fn an_accepted_job_is_there_after_reopening_with_its_audio() {
    let dir = TempDir::new().unwrap();
    let (store, first) = open(&dir);
    assert_eq!((first.boot_epoch, first.jobs.len(), first.bad_rows), (0, 0, 0));
    put(&store, accept(1, b"audio"));
    drop(store);
    let (_store, again) = open(&dir);
    let row = JobRow { audio_crc: crc32c::crc32c(b"audio"), audio_bytes: 5, ..full_job(1) };
    assert_eq!(again.jobs, [RecoveredJob { row, audio: Ok(Bytes::from_static(b"audio")) }]);
    assert_eq!(again.boot_epoch, 1);
}

#[test]
fn base64_audio_is_stored_decoded() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let audio = Audio::Base64(Bytes::from_static(b"YXVkaW8="));
    put(&store, Write::AcceptJob { row: Box::new(full_job(1)), audio, idempotency: None });
    drop(store);
    assert_eq!(open(&dir).1.jobs[0].audio, Ok(Bytes::from_static(b"audio")));
}

#[test]
fn without_kept_audio_a_job_comes_back_and_says_so() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { keep_audio: false, ..StoreOptions::default() };
    let (store, _) = Store::open_with(dir.path(), options, hooks()).unwrap();
    put(&store, accept(1, b"audio"));
    drop(store);
    assert_eq!(rows(&dir, tables::AUDIO), 0);
    assert_eq!(open(&dir).1.jobs[0].audio, Err(AudioLost::Missing));
}

#[test]
fn jobs_come_back_in_the_order_of_their_acceptance() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    for (id, accepted_unix_ms, utterance_index) in [(1, 20, 0), (2, 10, 8), (3, 10, 7)] {
        let mut row = Box::new(full_job(id));
        row.accepted_unix_ms = accepted_unix_ms;
        row.spec.utterance_index = utterance_index;
        let audio = Audio::Raw(Bytes::new());
        put(&store, Write::AcceptJob { row, audio, idempotency: None });
    }
    drop(store);
    let ids: Vec<u128> = open(&dir).1.jobs.iter().map(|job| job.row.id.0).collect();
    assert_eq!(ids, [3, 2, 1]);
}

#[test]
fn a_settled_job_does_not_come_back_and_its_end_can_be_looked_up() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    assert_eq!(put(&store, settle(1, 77, Some(b"frame"))).outbox_seq, Some(1));
    drop(store);
    assert_eq!((rows(&dir, tables::JOBS), rows(&dir, tables::AUDIO)), (0, 0));
    let (store, again) = open(&dir);
    assert_eq!((again.jobs.len(), again.outbox_rows), (0, 1));
    assert_eq!(store.terminal(JobId(1)).unwrap(), Some(full_terminal(1)));
    assert_eq!(store.terminal(JobId(2)).unwrap(), None);
}

#[test]
fn a_job_settled_before_its_acceptance_leaves_neither_row_nor_audio() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    // In separate commits, and then in one: the lanes turn the order of the second pair around.
    put(&store, settle(1, 77, None));
    put(&store, accept(1, b"audio"));
    let held = hold(&store);
    let (done, committed) = callback();
    store.submit(accept(2, b"audio"), Some(done)).unwrap();
    store.submit(settle(2, 77, None), None).unwrap();
    drop(held);
    committed.recv_timeout(LONG).unwrap();
    drop(store);
    assert_eq!((rows(&dir, tables::JOBS), rows(&dir, tables::AUDIO)), (0, 0));
    assert_eq!(rows(&dir, tables::TERMINALS), 2);
}

#[test]
fn a_job_settled_and_forgotten_before_its_acceptance_stays_ended() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { terminal_rows_max: 0, ..StoreOptions::default() };
    let (store, _) = Store::open_with(dir.path(), options, hooks()).unwrap();
    put(&store, settle(1, 77, None));
    assert_eq!(store.terminal(JobId(1)).unwrap(), None);
    put(&store, accept(1, b"audio"));
    drop(store);
    assert_eq!(rows(&dir, tables::JOBS), 0);
}

#[test]
fn the_first_end_of_a_job_wins() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    assert_eq!(put(&store, settle(1, 77, Some(b"first"))).outbox_seq, Some(1));
    let late = TerminalRow { outcome: Outcome::Succeeded, ..full_terminal(1) };
    let outbox = Some(Bytes::from_static(b"second"));
    let late = Write::SettleJob {
        terminal: Box::new(late),
        outbox,
        heard: Vec::new(),
        dead: false,
        refused: None,
    };
    assert_eq!(put(&store, late), Committed { ended_before: true, ..Committed::default() });
    assert_eq!(store.terminal(JobId(1)).unwrap().unwrap().outcome, Outcome::Failed);
    let owed = store.outbox(SessionId(77), 0, 10).unwrap();
    assert_eq!(owed.iter().map(|row| row.frame.as_slice()).collect::<Vec<_>>(), [b"first"]);
}

#[test]
fn frames_of_a_session_are_numbered_without_gaps_through_batches_and_restarts() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(1)));
    let held = hold(&store);
    let (sender, given) = channel();
    for id in 0..6 {
        let sender = sender.clone();
        let session = 1 + (id % 2) as u64;
        let done = move |c: Committed| sender.send((session, c.outbox_seq.unwrap())).unwrap();
        // One in two batches owes nothing, and must not use a number up.
        store.submit(settle(100 + id, session, None), None).unwrap();
        store.submit(settle(id, session, Some(b"frame")), Some(Box::new(done))).unwrap();
    }
    drop(held);
    let given: Vec<_> = (0..6).map(|_| given.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(given, [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]);
    // Everything delivered: the number must come from the counter and not from what is owed.
    put(&store, Write::Delivered { session: SessionId(1), through_seq: 3 });
    drop(store);
    let (store, again) = open(&dir);
    assert_eq!(again.outbox_rows, 3);
    assert_eq!((again.sessions.len(), again.sessions[0].next_seq), (1, 4));
    assert_eq!(put(&store, settle(50, 1, Some(b"frame"))).outbox_seq, Some(4));
    // Session 2 was never opened; what it is owed keeps its numbers from being given again.
    assert_eq!(put(&store, settle(51, 2, Some(b"frame"))).outbox_seq, Some(4));
}

#[test]
fn a_session_opened_after_its_first_result_goes_on_with_the_next_number() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    assert_eq!(put(&store, settle(1, 9, Some(b"frame"))).outbox_seq, Some(1));
    put(&store, Write::OpenSession(full_session(9)));
    assert_eq!(put(&store, settle(2, 9, Some(b"frame"))).outbox_seq, Some(2));
}

#[test]
fn delivery_takes_away_what_was_received_and_no_more() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    for id in 0..4 {
        put(&store, settle(id, 1, Some(b"frame")));
        put(&store, settle(10 + id, 2, Some(b"frame")));
    }
    put(&store, Write::Delivered { session: SessionId(1), through_seq: 2 });
    let seqs = |session, after, limit| -> Vec<u64> {
        let owed = store.outbox(SessionId(session), after, limit).unwrap();
        owed.iter().map(|row| row.seq).collect()
    };
    assert_eq!(seqs(1, 0, 10), [3, 4]);
    assert_eq!(seqs(1, 3, 10), [4]);
    assert_eq!(seqs(1, u64::MAX, 10), [0; 0]);
    assert_eq!(seqs(2, 0, 3), [1, 2, 3]);
}

#[test]
fn a_closed_session_is_forgotten_and_what_it_is_owed_is_not() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, settle(1, 1, Some(b"frame")));
    put(&store, Write::CloseSession(SessionId(1)));
    // A result that was under way when it closed must not take the number of the one before.
    assert_eq!(put(&store, settle(2, 1, Some(b"late"))).outbox_seq, Some(2));
    drop(store);
    let (_store, again) = open(&dir);
    assert_eq!((again.sessions.len(), again.outbox_rows), (0, 2));
}

#[test]
fn nodes_pools_and_unexpired_keys_come_back() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let node = NodeRow {
        id: "n1".into(),
        platform: "linux".into(),
        version: "2".into(),
        first_seen_unix_ms: 1,
        last_seen_unix_ms: 2,
    };
    let pools = PoolConfigRow { version: 3, text: "[pools]".into() };
    put(&store, Write::Node(NodeRow { last_seen_unix_ms: 1, ..node.clone() }));
    put(&store, Write::Node(NodeRow { first_seen_unix_ms: 2, ..node.clone() }));
    put(&store, Write::Pools(pools.clone()));
    let key = |key, expires_unix_ms| IdemRow { key, job: JobId(key), digest: 9, expires_unix_ms };
    for idem in [key(1, NOW_MS + 1), key(2, NOW_MS)] {
        let (row, audio) = (Box::new(full_job(idem.job.0)), Audio::Raw(Bytes::new()));
        put(&store, Write::AcceptJob { row, audio, idempotency: Some(idem) });
    }
    drop(store);
    let (_store, again) = open(&dir);
    assert_eq!(again.nodes, [node]);
    assert_eq!(again.pools, Some(pools));
    assert_eq!(again.idempotency, [key(1, NOW_MS + 1)]);
}

#[test]
fn a_clock_that_was_moved_makes_nothing_too_old_at_once() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { expiry_pause_ms: 60_000, ..StoreOptions::default() };
    let hooks = || Hooks { now_ms: || CLOCK.load(SeqCst), ..hooks() };
    let (store, _) = Store::open_with(dir.path(), options.clone(), hooks()).unwrap();
    let idem = IdemRow { key: 1, job: JobId(1), digest: 9, expires_unix_ms: NOW_MS + 300_000 };
    let (row, audio) = (Box::new(full_job(1)), Audio::Raw(Bytes::new()));
    put(&store, Write::AcceptJob { row, audio, idempotency: Some(idem.clone()) });
    put(&store, settle(1, 77, None));
    drop(store);
    CLOCK.fetch_add(3 * 24 * 3_600_000, SeqCst);
    let (store, again) = Store::open_with(dir.path(), options, hooks()).unwrap();
    assert_eq!(again.idempotency, [idem]);
    put(&store, settle(2, 77, None));
    assert!(store.terminal(JobId(1)).unwrap().is_some(), "nothing goes in the first minute");
    CLOCK.fetch_add(60_000, SeqCst);
    put(&store, settle(3, 77, None));
    assert!(store.terminal(JobId(1)).unwrap().is_none(), "and then it does");
}

#[test]
fn a_renewed_key_outlives_its_first_expiry() {
    static CLOCK: AtomicU64 = AtomicU64::new(0);
    let dir = TempDir::new().unwrap();
    let hooks = Hooks { now_ms: || CLOCK.load(SeqCst), ..hooks() };
    let (store, _) = Store::open_with(dir.path(), StoreOptions::default(), hooks).unwrap();
    for expires_unix_ms in [100, 300] {
        let idem = IdemRow { key: 7, job: JobId(1), digest: 0, expires_unix_ms };
        let audio = Audio::Raw(Bytes::new());
        let row = Box::new(full_job(1));
        put(&store, Write::AcceptJob { row, audio, idempotency: Some(idem) });
    }
    let live = |store: &Store| {
        put(store, Write::CloseSession(SessionId(0)));
        let txn = store.db().unwrap().begin_read().unwrap();
        txn.open_table(tables::IDEMPOTENCY).unwrap().len().unwrap()
    };
    CLOCK.store(200, SeqCst);
    assert_eq!(live(&store), 1);
    CLOCK.store(300, SeqCst);
    assert_eq!(live(&store), 0);
}

#[test]
fn what_is_left_becomes_durable_when_the_store_is_woken() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let at_rest = || {
        let again = Instant::now();
        while !store.handle.shared.signal.is_sleeping() {
            assert!(again.elapsed() < LONG, "the thread does not rest");
            std::thread::yield_now();
        }
    };
    at_rest();
    let (done, committed) = callback();
    store.leave(settle(1, 1, Some(b"frame")), Some(done)).unwrap();
    assert!(committed.try_recv().is_err() && store.stats().queued_results == 1);
    store.wake();
    assert_eq!(committed.recv_timeout(LONG).unwrap().outbox_seq, Some(1));
    at_rest();
    let (done, committed) = callback();
    store.leave(settle(2, 1, Some(b"frame")), Some(done)).unwrap();
    // What is submitted after it takes it along.
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(committed.recv_timeout(LONG).unwrap().outbox_seq, Some(2));
}

#[test]
fn room_for_jobs_ends_before_the_lane_does() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { lane_accepts: 16, ..StoreOptions::default() };
    let (store, _) = Store::open_with(dir.path(), options, hooks()).unwrap();
    let held = hold(&store);
    for id in 0..14 {
        assert!(store.has_room_for_accepts(), "{id}");
        store.submit(accept(id, b""), None).unwrap();
    }
    assert!(!store.has_room_for_accepts());
    // Those who looked at the same time are taken nevertheless.
    for id in 14..16 {
        store.submit(accept(id, b""), None).unwrap();
    }
    drop(held);
}

#[test]
fn a_full_lane_hands_the_write_back_with_its_callback() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { lane_results: 2, ..StoreOptions::default() };
    let (store, _) = Store::open_with(dir.path(), options, hooks()).unwrap();
    let held = hold(&store);
    for id in 0..2 {
        store.submit(settle(id, 1, None), None).unwrap();
    }
    let (done, committed) = callback();
    let refused = store.submit(settle(2, 1, Some(b"frame")), Some(done)).unwrap_err();
    assert_eq!(refused.why, Why::Full);
    assert_eq!(store.stats().queued_results, 2);
    // The other lanes have room of their own.
    store.submit(accept(9, b""), None).unwrap();
    drop(held);
    let again = Instant::now();
    let mut offer = refused;
    while let Err(refused) = store.submit(offer.write, offer.done) {
        assert!(again.elapsed() < LONG);
        offer = refused;
    }
    assert_eq!(committed.recv_timeout(LONG).unwrap().outbox_seq, Some(1));
}

#[test]
fn results_are_committed_before_accepts_that_waited_longer() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let held = hold(&store);
    let (sender, order) = channel();
    let say = |name| {
        let sender = sender.clone();
        Some(Box::new(move |_| sender.send(name).unwrap()) as Done)
    };
    let pools = PoolConfigRow { version: 1, text: String::new() };
    store.submit(Write::Pools(pools), say("housekeeping")).unwrap();
    store.submit(accept(1, b""), say("accept")).unwrap();
    store.submit(settle(2, 1, None), say("result")).unwrap();
    drop(held);
    let order: Vec<_> = (0..3).map(|_| order.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(order, ["result", "accept", "housekeeping"]);
    assert_eq!(store.stats().last_batch_rows, 3);
}

#[test]
fn shutdown_commits_everything_taken_and_refuses_the_rest() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let held = hold(&store);
    for id in 0..5_000 {
        store.submit(accept(id, b"audio"), None).unwrap();
    }
    let stopping = store.clone();
    let stopper = std::thread::spawn(move || stopping.shutdown());
    drop(held);
    stopper.join().unwrap();
    store.shutdown();
    let refused = store.submit(accept(9_999, b""), None).unwrap_err();
    assert_eq!(refused.why, Why::Stopped);
    assert!(matches!(store.terminal(JobId(0)), Err(StoreError::Stopped)));
    // The file is free although a clone is left.
    assert_eq!(open(&dir).1.jobs.len(), 5_000);
}

#[test]
fn no_wake_up_and_no_write_is_lost_between_many_submitters_and_a_stop() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let submitters: Vec<_> = (0..4u128)
        .map(|thread| {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut taken = 0;
                for n in 0u128.. {
                    let (done, committed) = callback();
                    if store.submit(accept((thread << 64) | n, b""), Some(done)).is_err() {
                        break;
                    }
                    // Now and then wait for it, so that the writer falls asleep in between.
                    if n % 3 == 0 {
                        committed.recv_timeout(LONG).unwrap();
                    }
                    taken += 1;
                }
                taken
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    store.shutdown();
    let taken: usize = submitters.into_iter().map(|thread| thread.join().unwrap()).sum();
    drop(store);
    assert_eq!(rows(&dir, tables::JOBS), taken as u64);
}

#[test]
fn the_last_clone_may_be_dropped_by_a_callback() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    let (sender, dropped) = channel();
    let clone = store.clone();
    let held = hold(&store);
    let done: Done = Box::new(move |_| {
        drop(clone);
        sender.send(()).unwrap();
    });
    store.submit(accept(1, b""), Some(done)).unwrap();
    drop(store);
    drop(held);
    dropped.recv_timeout(LONG).unwrap();
}

#[test]
fn retention_forgets_by_count_and_by_age_a_little_at_a_time() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let options = StoreOptions {
        terminal_rows_max: 200,
        terminal_retention_ms: 1_000,
        outbox_retention_ms: 1_000,
        ..StoreOptions::default()
    };
    let hooks = Hooks { now_ms: || CLOCK.load(SeqCst), ..hooks() };
    let (store, _) = Store::open_with(dir.path(), options, hooks).unwrap();
    let count = |store: &Store| {
        let txn = store.db().unwrap().begin_read().unwrap();
        let terminals = txn.open_table(tables::TERMINALS).unwrap().len().unwrap();
        (terminals, txn.open_table(tables::OUTBOX).unwrap().len().unwrap())
    };
    let held = hold(&store);
    for id in 0..300 {
        let settled_unix_ms = NOW_MS + id as u64;
        let terminal = Box::new(TerminalRow { settled_unix_ms, ..full_terminal(id) });
        let outbox = Some(Bytes::from_static(b"frame"));
        store
            .submit(
                Write::SettleJob {
                    terminal,
                    outbox,
                    heard: Vec::new(),
                    dead: false,
                    refused: None,
                },
                None,
            )
            .unwrap();
    }
    drop(held);
    let idle = || Write::CloseSession(SessionId(0));
    put(&store, idle());
    assert_eq!(count(&store), (200, 300));
    // The oldest went, not the newest.
    assert_eq!(store.terminal(JobId(99)).unwrap(), None);
    assert!(store.terminal(JobId(100)).unwrap().is_some());
    CLOCK.store(NOW_MS + 999, SeqCst);
    put(&store, idle());
    assert_eq!(count(&store), (200, 300));
    CLOCK.store(NOW_MS + 2_000, SeqCst);
    put(&store, idle());
    assert_eq!(count(&store), (200 - 64, 300 - 64));
    for _ in 0..5 {
        put(&store, idle());
    }
    assert_eq!(count(&store), (0, 0));
    assert_eq!(store.stats().outbox_expired, 300);
}

#[test]
fn a_second_opening_is_told_that_the_database_is_in_use() {
    let dir = TempDir::new().unwrap();
    let (_store, _) = open(&dir);
    let second = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(second, StoreError::Locked { .. }), "{second:?}");
    let looking = open_read_only(dir.path()).err().unwrap();
    assert!(matches!(looking, StoreError::Locked { .. }), "{looking:?}");
}

#[test]
fn figures_follow_the_work() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    let stats = store.stats();
    assert_eq!((stats.commits, stats.rows_written, stats.last_batch_rows), (1, 3, 1));
    assert!(stats.bytes_written > 15 && stats.file_bytes > 0 && stats.last_commit_us > 0);
    let held = hold(&store);
    std::thread::sleep(Duration::from_millis(20));
    assert!(store.stats().beat_age_us >= 20_000);
    drop(held);
    let since = Instant::now();
    while store.stats().beat_age_us > 0 {
        assert!(since.elapsed() < LONG, "an idle thread is not late");
        std::thread::sleep(Duration::from_millis(1));
    }
}
