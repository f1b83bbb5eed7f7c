//! What the store does when the world under it is not as it was left.
//!
//! A crash is told as a reopening after the thread refused to commit; bit rot as bytes put into
//! the closed database behind the store's back.

use super::*;
use crate::protocol::job::Outcome;

/// Changes a stored value in a closed database.
fn damage<K: Key + 'static>(
    dir: &TempDir,
    table: TableDefinition<'static, K, &'static [u8]>,
    key: K::SelfType<'static>,
    change: impl FnOnce(&mut Vec<u8>),
) {
    use redb::ReadableTable;
    let db = Database::open(dir.path().join(medium::FILE)).unwrap();
    let txn = db.begin_write().unwrap();
    let mut rows = txn.open_table(table).unwrap();
    let mut value = rows.get(&key).unwrap().unwrap().value().to_vec();
    change(&mut value);
    rows.insert(&key, value.as_slice()).unwrap();
    drop(rows);
    txn.commit().unwrap();
}

fn flip_last_payload_bit(value: &mut [u8]) {
    let at = value.len() - 5;
    value[at] ^= 1;
}

#[test]
fn a_corrupt_job_ends_as_a_failure_and_its_bytes_are_kept_aside() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    put(&store, accept(2, b"audio"));
    drop(store);
    damage(&dir, tables::JOBS, 1, |value| flip_last_payload_bit(value));
    let (store, again) = open(&dir);
    assert_eq!((again.jobs.len(), again.bad_rows), (1, 1));
    assert_eq!((again.jobs[0].row.id, store.stats().bad_rows), (JobId(2), 1));
    let ended = store.terminal(JobId(1)).unwrap().unwrap();
    assert_eq!((ended.outcome, ended.code.as_str()), (Outcome::Failed, "STORAGE_CORRUPT"));
    drop(store);
    assert_eq!((rows(&dir, tables::QUARANTINE), rows(&dir, tables::AUDIO)), (1, 1));
    assert_eq!(open(&dir).1.bad_rows, 0);
}

#[test]
fn corrupt_audio_is_never_handed_out() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    put(&store, accept(2, b"other"));
    drop(store);
    damage(&dir, tables::AUDIO, 1, |value| flip_last_payload_bit(value));
    // Sound in itself, but of another job.
    let foreign = codec::encode_audio(&Audio::Raw(Bytes::from_static(b"audio"))).unwrap();
    damage(&dir, tables::AUDIO, 2, |value| *value = foreign.value);
    let again = open(&dir).1;
    assert_eq!(again.bad_rows, 2);
    assert!(again.jobs.iter().all(|job| job.audio == Err(AudioLost::Corrupt)));
}

#[test]
fn a_session_whose_counter_is_corrupt_is_forgotten_rather_than_guessed() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    for session in [1, 2] {
        put(&store, Write::OpenSession(full_session(session)));
        put(&store, settle(u128::from(session), session, Some(b"frame")));
    }
    drop(store);
    damage(&dir, tables::PROGRESS, 1, |value| flip_last_payload_bit(value));
    let (store, again) = open(&dir);
    assert_eq!((again.sessions.len(), again.sessions[0].next_seq), (1, 2));
    assert_eq!(again.sessions[0].row, full_session(2));
    assert_eq!((again.bad_rows, again.outbox_rows), (1, 2));
    drop(store);
    assert_eq!(open(&dir).1.sessions.len(), 1);
}

#[test]
fn a_corrupt_outbox_row_leaves_a_gap_that_can_be_seen() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    for id in 0..3 {
        put(&store, settle(id, 1, Some(b"frame")));
    }
    drop(store);
    damage(&dir, tables::OUTBOX, (1, 2), |value| flip_last_payload_bit(value));
    let (store, again) = open(&dir);
    assert_eq!((again.bad_rows, again.outbox_rows), (1, 2));
    let owed = store.outbox(SessionId(1), 0, 10).unwrap();
    assert_eq!(owed.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn rows_of_another_release_refuse_the_start_instead_of_being_thrown_out() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    put(&store, accept(1, b"audio"));
    drop(store);
    damage(&dir, tables::JOBS, 1, |value| {
        value[0] = 200;
        let body = value.len() - 4;
        let crc = crc32c::crc32c(&value[..body]);
        value[body..].copy_from_slice(&crc.to_le_bytes());
    });
    let refused = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(refused, StoreError::OtherRelease { .. }), "{refused}");
    assert_eq!((rows(&dir, tables::JOBS), rows(&dir, tables::QUARANTINE)), (1, 0));
}

#[test]
fn a_database_of_an_older_layout_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    let old = MetaRow { format: 1, boot_epoch: Some(3), created_unix_ms: 1 };
    damage(&dir, tables::META, tables::ONLY, |value| *value = codec::encode(&old));
    let refused = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(refused, StoreError::OtherRelease { .. }), "{refused}");
    assert!(refused.to_string().contains("table layout 1 where 4 is known"), "{refused}");
}

#[test]
fn a_sound_row_under_a_key_that_is_not_its_own_is_not_believed() {
    let dir = TempDir::new().unwrap();
    let (store, _) = open(&dir);
    for id in [1, 2] {
        put(&store, Write::OpenSession(full_session(id)));
        put(&store, accept(u128::from(id), b"audio"));
        put(&store, settle(u128::from(id) + 10, id, Some(b"frame")));
    }
    drop(store);
    damage(&dir, tables::JOBS, 1, |value| *value = codec::encode(&full_job(9)));
    damage(&dir, tables::SESSIONS, 1, |value| *value = codec::encode(&full_session(9)));
    damage(&dir, tables::TERMINALS, 11, |value| *value = codec::encode(&full_terminal(9)));
    let (store, again) = open(&dir);
    assert_eq!(again.jobs.iter().map(|job| job.row.id.0).collect::<Vec<_>>(), [2]);
    assert_eq!(again.sessions.iter().map(|s| s.row.id.0).collect::<Vec<_>>(), [2]);
    assert_eq!(again.bad_rows, 2);
    let end = store.terminal(JobId(11));
    assert!(matches!(end, Err(StoreError::BadRow { error: CodecError::Misplaced, .. })));
}

#[test]
fn a_vanished_database_is_not_replaced_by_an_empty_one() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    std::fs::remove_file(dir.path().join(medium::FILE)).unwrap();
    let refused = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(refused, StoreError::Missing { .. }));
    let said = refused.to_string();
    assert!(said.contains("restore a backup") && said.contains("aside"), "{said}");
    assert!(!dir.path().join(medium::FILE).exists());
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    for content in [Vec::new(), b"not a database".to_vec(), vec![0x5a; 1 << 20]] {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join(medium::FILE);
        std::fs::write(&file, &content).unwrap();
        let refused = Store::open(dir.path(), StoreOptions::default()).err().unwrap();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");
        assert!(refused.to_string().contains("restore a backup"));
        assert_eq!(std::fs::read(&file).unwrap(), content);
    }
}

#[test]
fn a_file_with_rotten_pages_never_gives_a_store_that_panics() {
    let made = TempDir::new().unwrap();
    let (store, _) = open(&made);
    for id in 0..50 {
        put(&store, accept(id, b"audio"));
    }
    drop(store);
    let sound = std::fs::read(made.path().join(medium::FILE)).unwrap();
    for seed in 0..40 {
        let dir = TempDir::new().unwrap();
        let mut rotten = sound.clone();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..64 {
            let at = random.usize(..rotten.len());
            rotten[at] ^= random.u8(1..);
        }
        std::fs::write(dir.path().join(medium::FILE), &rotten).unwrap();
        std::fs::write(dir.path().join(medium::MARKER), b"").unwrap();
        // Either answer is right; what it may not do is take the process down.
        let (hooks, _ended) = mortal();
        let opened = Store::open_with(dir.path(), StoreOptions::default(), hooks);
        if let Ok((_, recovered)) = opened {
            assert!(recovered.jobs.len() <= 50);
        }
    }
}

#[test]
fn a_creation_cut_short_is_begun_again() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("utterd.redb.new"), b"half a database").unwrap();
    assert_eq!(open(&dir).1.boot_epoch, 0);
    assert!(!dir.path().join("utterd.redb.new").exists());
    // Cut short between the rename and the marker.
    std::fs::remove_file(dir.path().join(medium::MARKER)).unwrap();
    assert_eq!(open(&dir).1.boot_epoch, 1);
    assert!(dir.path().join(medium::MARKER).exists());
}

#[test]
fn a_closed_database_can_be_looked_at_without_changing_it() {
    let dir = TempDir::new().unwrap();
    let absent = open_read_only(dir.path()).err().unwrap();
    assert!(matches!(absent, StoreError::Absent { .. }));
    let (store, _) = open(&dir);
    put(&store, Write::OpenSession(full_session(77)));
    for id in 1..4 {
        put(&store, accept(id, b"audio"));
    }
    put(&store, settle(3, 77, Some(b"frame")));
    drop(store);
    damage(&dir, tables::JOBS, 1, |value| flip_last_payload_bit(value));
    let looking = open_read_only(dir.path()).unwrap();
    assert_eq!(looking.meta().unwrap().boot_epoch, Some(0));
    assert_eq!(looking.jobs(10).unwrap().len(), 1);
    assert!(matches!(looking.job(JobId(1)), Err(StoreError::BadRow { table: "jobs", .. })));
    assert!(matches!(looking.job(JobId(2)).unwrap(), Some(JobView::Live(_))));
    assert!(matches!(looking.job(JobId(3)).unwrap(), Some(JobView::Ended(_))));
    assert_eq!(looking.job(JobId(4)).unwrap(), None);
    assert_eq!(looking.sessions().unwrap(), [full_session(77)]);
    assert_eq!(looking.outbox(SessionId(77), 0, 9).unwrap().len(), 1);
    assert_eq!((looking.nodes().unwrap().len(), looking.pools().unwrap()), (0, None));
    drop(looking);
    assert_eq!(open(&dir).1.boot_epoch, 1);
}

/// Hooks that report the end of the process instead of ending it.
fn mortal() -> (Hooks, Receiver<String>) {
    let (sender, ended) = channel();
    let fatal = move |why: &str| sender.send(why.to_owned()).unwrap();
    (Hooks { fatal: Arc::new(fatal), ..hooks() }, ended)
}

#[test]
fn a_disk_error_at_commit_ends_the_process_before_anyone_is_told() {
    let dir = TempDir::new().unwrap();
    let (mut hooks, ended) = mortal();
    let healthy = Arc::new(AtomicU64::new(1));
    let left = Arc::clone(&healthy);
    hooks.around_commit = Arc::new(move |moment| {
        if moment == engine::Moment::After {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(5);
        let path = PathBuf::from("disk");
        match left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Io { doing: "sync", path, source }),
        }
    });
    let (store, _) = Store::open_with(dir.path(), StoreOptions::default(), hooks).unwrap();
    put(&store, accept(1, b"audio"));
    let (done, committed) = callback();
    store.submit(accept(2, b"audio"), Some(done)).unwrap();
    assert!(ended.recv_timeout(LONG).unwrap().contains("cannot sync disk"));
    assert!(committed.recv_timeout(LONG).is_err());
    drop(store);
    let again = open(&dir).1;
    assert_eq!(again.jobs.iter().map(|job| job.row.id.0).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_panic_in_the_thread_ends_the_process() {
    let dir = TempDir::new().unwrap();
    let (hooks, ended) = mortal();
    let (store, _) = Store::open_with(dir.path(), StoreOptions::default(), hooks).unwrap();
    let done: Done = Box::new(|_| panic!("a bug in a callback"));
    store.submit(accept(1, b"audio"), Some(done)).unwrap();
    assert!(ended.recv_timeout(LONG).unwrap().contains("panic"));
    store.shutdown();
    assert_eq!(store.submit(accept(2, b""), None).unwrap_err().why, Why::Stopped);
}
