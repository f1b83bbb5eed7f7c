//! What is given up is kept for people, and counted when it goes.

use super::*;

fn dead(id: u128, frame: Option<&'static [u8]>) -> Write {
    match settle(id, 77, frame) {
        Write::SettleJob { terminal, outbox, .. } => {
            Write::SettleJob { terminal, outbox, heard: Vec::new(), dead: true, refused: None }
        }
        other => other,
    }
}

fn letters(store: &Store) -> Vec<(u64, String)> {
    let letters = store.dead_letters(0, 1_000).unwrap();
    letters.into_iter().map(|letter| (letter.id, letter.why)).collect()
}

fn as_stored() -> JobRow {
    JobRow { audio_crc: crc32c::crc32c(b"audio"), audio_bytes: 5, ..full_job(1) }
}

#[test]
fn a_job_that_is_given_up_can_be_read_back_whole() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    assert_eq!(put(&store, dead(1, Some(b"sorry"))).outbox_seq, Some(1));
    // A second end makes no second letter.
    assert!(put(&store, dead(1, None)).ended_before);
    drop(store);
    let (store, again) = open(&dir);
    assert_eq!((again.jobs.len(), again.dead_letters, again.outbox_rows), (0, 1, 1));
    let (letter, audio) = store.dead_letter(1).unwrap().unwrap();
    assert_eq!(audio, Some(Bytes::from_static(b"audio")));
    assert_eq!(letter.job_row, Some(as_stored()));
    assert_eq!((letter.seq, letter.frame.as_ref(), letter.audio_bytes), (Some(1), None, 5));
    assert_eq!((letter.code.as_str(), letter.why.as_str()), ("NODE_ERROR", "failed"));
    assert_eq!(store.dead_letter(2).unwrap(), None);
}

#[test]
fn a_job_given_up_before_its_acceptance_gets_its_audio_with_it() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, dead(1, None));
    assert_eq!(store.dead_letter(1).unwrap().unwrap().0.job_row, None);
    put(&store, accept(1, b"audio"));
    // In one transaction, the lanes turn the order around.
    let held = hold(&store);
    let (done, committed) = callback();
    store.submit(accept(2, b"other"), Some(done)).unwrap();
    store.submit(dead(2, None), None).unwrap();
    drop(held);
    committed.recv_timeout(LONG).unwrap();
    let (letter, audio) = store.dead_letter(1).unwrap().unwrap();
    assert_eq!((letter.job_row, audio), (Some(as_stored()), Some(Bytes::from_static(b"audio"))));
    let (letter, audio) = store.dead_letter(2).unwrap().unwrap();
    assert_eq!((letter.audio_bytes, audio), (5, Some(Bytes::from_static(b"other"))));
    drop(store);
    assert_eq!((rows(&dir, tables::JOBS), rows(&dir, tables::AUDIO)), (0, 0));
}

#[test]
fn forfeited_frames_become_dead_letters_and_leave_what_comes_after_them() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(1)));
    for id in 1..=3 {
        put(&store, settle(id, 1, Some(b"frame")));
    }
    let session = SessionId(1);
    put(&store, Write::Forfeit { session, through_seq: 2, why: "overflow" });
    let owed = store.outbox(session, 0, 10).unwrap();
    assert_eq!(owed.iter().map(|row| row.seq).collect::<Vec<_>>(), [3]);
    assert_eq!(letters(&store), [(1, "overflow".into()), (2, "overflow".into())]);
    let second = store.dead_letters(1, 1).unwrap().remove(0);
    assert_eq!((second.job, second.seq, second.utterance_index), (JobId(2), Some(2), 3));
}

#[test]
fn dead_letters_go_when_they_are_dropped_too_old_or_too_many() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW_MS);
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { dead_letters_max: 3, ..StoreOptions::default() };
    let hooks = Hooks { now_ms: || CLOCK.load(SeqCst), ..hooks() };
    let (store, _) = Store::open_with(dir.path(), options, hooks).unwrap();
    for id in 1..=5 {
        put(&store, accept(id, b"audio"));
        put(&store, dead(id, None));
    }
    let ids = |store: &Store| -> Vec<u64> {
        store.dead_letters(0, 100).unwrap().iter().map(|letter| letter.id).collect()
    };
    assert_eq!(ids(&store), [3, 4, 5]);
    put(&store, Write::DropDeadLetter(5));
    assert_eq!(ids(&store), [3, 4]);
    CLOCK.fetch_add(24 * 3_600_000, SeqCst);
    put(&store, dead(9, None));
    // The number of one that was dropped is not given again.
    assert_eq!(ids(&store), [6]);
    let stats = store.stats();
    assert_eq!((stats.dead_letters, stats.dead_letters_expired), (1, 4));
    drop(store);
    assert_eq!(rows(&dir, tables::DEAD_AUDIO), 0);
}

#[test]
fn dead_letters_can_be_read_without_a_server() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    put(&store, dead(1, None));
    drop(store);
    let looking = open_read_only(dir.path()).unwrap();
    assert_eq!(looking.dead_letters(0, 10).unwrap().len(), 1);
    let (_, audio) = looking.dead_letter(1).unwrap().unwrap();
    assert_eq!(audio, Some(Bytes::from_static(b"audio")));
}
