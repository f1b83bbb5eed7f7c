//! How far a session has come, and how long what it is owed is kept.

use super::*;
use crate::protocol::job::Audio;

/// A store with a clock of its own, in milliseconds.
macro_rules! clocked {
    ($clock:ident, $dir:expr) => {{
        let hooks = Hooks { now_ms: || $clock.load(SeqCst), ..hooks() };
        Store::open_with($dir.path(), StoreOptions::default(), hooks).unwrap()
    }};
}

fn accept_at(id: u128, session: u64, index: u64, chunks: Option<(u64, u32)>) -> Write {
    let mut row = Box::new(full_job(id));
    (row.spec.session, row.spec.utterance_index) = (SessionId(session), index);
    row.chunks = chunks.map(|(through, skip)| ChunkMark { through, skip });
    let audio = Audio::Raw(Bytes::from_static(b"audio"));
    Write::AcceptJob { row, audio, idempotency: None }
}

fn owed(store: &Store, session: u64) -> Vec<u64> {
    let owed = store.outbox(SessionId(session), 0, 100).unwrap();
    owed.iter().map(|row| row.seq).collect()
}

#[test]
fn an_open_session_comes_back_with_how_far_it_has_come() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, accept_at(1, 1, 4, Some((9, 20))));
    put(&store, accept_at(2, 1, 5, None));
    put(&store, accept_at(3, 1, 3, Some((9, 10))));
    for id in [1, 2, 3] {
        put(&store, settle(id, 1, Some(b"frame")));
    }
    put(&store, Write::Delivered { session: SessionId(1), through_seq: 1 });
    drop(store);
    let wanted = RecoveredSession {
        row: full_session(1),
        next_seq: 4,
        next_index: 6,
        chunks: Some(ChunkMark { through: 9, skip: 20 }),
        owed: Some((2, 3)),
        owed_bytes: 10,
    };
    assert_eq!(open(&dir).1.sessions, [wanted]);
}

#[test]
fn a_job_that_ended_before_its_acceptance_still_moves_its_session_on() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, settle(1, 1, None));
    put(&store, accept_at(1, 1, 7, Some((3, 1))));
    drop(store);
    let (_store, again) = open(&dir);
    assert_eq!(again.jobs.len(), 0);
    let session = &again.sessions[0];
    assert_eq!((session.next_index, session.chunks), (8, Some(ChunkMark { through: 3, skip: 1 })));
}

#[test]
fn frames_of_an_open_session_never_expire() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let (store, _) = clocked!(CLOCK, dir);
    // The first result comes before the session's opening does.
    put(&store, settle(1, 1, Some(b"frame")));
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, settle(2, 1, Some(b"frame")));
    CLOCK.fetch_add(365 * 24 * 3_600_000, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(owed(&store, 1), [1, 2]);
    drop(store);
    let (store, again) = clocked!(CLOCK, dir);
    assert_eq!(again.sessions[0].owed, Some((1, 2)));
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!((owed(&store, 1), store.stats().outbox_expired), (vec![1, 2], 0));
}

#[test]
fn frames_nobody_comes_for_become_dead_letters_when_their_time_after_the_close_is_over() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let (store, _) = clocked!(CLOCK, dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, settle(1, 1, Some(b"one")));
    CLOCK.fetch_add(1_000_000, SeqCst);
    put(&store, Write::CloseSession(SessionId(1)));
    CLOCK.fetch_add(119_999, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    drop(store);
    // A restart does not give more time, and takes none away.
    let (store, again) = clocked!(CLOCK, dir);
    assert_eq!((again.sessions.len(), again.outbox_rows, again.dead_letters), (0, 1, 0));
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(owed(&store, 1), [1]);
    CLOCK.fetch_add(1, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(owed(&store, 1), [0; 0]);
    let (letter, audio) = store.dead_letter(1).unwrap().unwrap();
    assert_eq!((letter.why.as_str(), letter.seq), ("unclaimed", Some(1)));
    assert_eq!((letter.frame.as_deref(), audio), (Some(b"one".as_slice()), None));
    assert_eq!((letter.code.as_str(), letter.job), ("NODE_ERROR", JobId(1)));
    let stats = store.stats();
    assert_eq!((stats.outbox_expired, stats.dead_letters), (1, 1));
}

#[test]
fn a_result_for_a_session_that_is_over_has_its_own_time() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let (store, _) = clocked!(CLOCK, dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, Write::CloseSession(SessionId(1)));
    CLOCK.fetch_add(100_000, SeqCst);
    assert_eq!(put(&store, settle(1, 1, Some(b"late"))).outbox_seq, Some(1));
    CLOCK.fetch_add(100_000, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(owed(&store, 1), [1]);
    CLOCK.fetch_add(20_000, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!((owed(&store, 1), store.stats().dead_letters), (vec![], 1));
}

#[test]
fn a_session_opened_again_keeps_its_numbers_and_its_frames() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let (store, _) = clocked!(CLOCK, dir);
    put(&store, Write::OpenSession(full_session(1)));
    put(&store, settle(1, 1, Some(b"frame")));
    put(&store, Write::CloseSession(SessionId(1)));
    put(&store, Write::OpenSession(full_session(1)));
    CLOCK.fetch_add(1_000_000, SeqCst);
    put(&store, Write::CloseSession(SessionId(0)));
    assert_eq!(owed(&store, 1), [1]);
    assert_eq!(put(&store, settle(2, 1, Some(b"frame"))).outbox_seq, Some(2));
}

#[test]
fn nothing_is_left_of_a_session_that_is_over_and_has_everything() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let (store, _) = clocked!(CLOCK, dir);
    for session in 1..=200 {
        put(&store, Write::OpenSession(full_session(session)));
        put(&store, settle(u128::from(session), session, Some(b"frame")));
        put(&store, Write::Delivered { session: SessionId(session), through_seq: 1 });
        put(&store, Write::CloseSession(SessionId(session)));
    }
    CLOCK.fetch_add(120_000, SeqCst);
    for _ in 0..4 {
        put(&store, Write::CloseSession(SessionId(0)));
    }
    drop(store);
    assert_eq!((rows(&dir, tables::PROGRESS), rows(&dir, tables::SESSIONS)), (0, 0));
    let (store, again) = open(&dir);
    assert_eq!((again.outbox_rows, again.dead_letters), (0, 0));
    let txn = store.db().unwrap().begin_read().unwrap();
    assert_eq!(txn.open_table(tables::IDLE_TIMES).unwrap().len().unwrap(), 0);
}
