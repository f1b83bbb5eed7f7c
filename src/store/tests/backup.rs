//! Copies of a store that goes on working.

use std::fs::{File, OpenOptions};
use std::sync::atomic::AtomicU32;

use redb::ReadableDatabase;

use super::super::backup::copy;
use super::*;

fn fresh(dir: &TempDir, name: &str) -> File {
    let path = dir.path().join(name);
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Something in most tables, and audio of more than one batch.
fn filled(dir: &TempDir) -> Store {
    let (store, _) = open(dir);
    put(&store, Write::OpenSession(full_session(77)));
    put(&store, accept(1, &[7; 3 << 20]));
    put(&store, accept(2, b"audio"));
    put(&store, settle(2, 77, Some(b"frame")));
    put(&store, Write::Pools(PoolConfigRow { version: 4, text: "[]".to_owned() }));
    store
}

#[test]
fn a_copy_recovers_as_the_store_does_that_was_copied() {
    let (dir, copy) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = filled(&dir);
    let copied = store.backup(fresh(&copy, "utterd.redb")).unwrap();
    assert!(copied.bytes > 3 << 20 && copied.rows >= 6, "{copied:?}");
    // What comes later is not in it.
    put(&store, settle(1, 77, None));
    let (_store, of_copy) = open(&copy);
    assert_eq!((of_copy.jobs.len(), of_copy.outbox_rows, of_copy.bad_rows), (1, 1, 0));
    assert_eq!(of_copy.jobs[0].audio.as_ref().unwrap().len(), 3 << 20);
    assert_eq!(of_copy.pools.map(|row| row.version), Some(4));
    drop(store);
    assert_eq!(open(&dir).1.jobs.len(), 0);
}

#[test]
fn a_closed_copy_is_read_without_a_repair_and_can_be_copied_again() {
    let (dir, copies) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = filled(&dir);
    store.backup(fresh(&copies, "first")).unwrap();
    let first = open_read_only(&copies.path().join("first")).unwrap();
    first.backup(fresh(&copies, "second")).unwrap();
    let second = open_read_only(&copies.path().join("second")).unwrap();
    assert_eq!(second.jobs(10).unwrap(), first.jobs(10).unwrap());
    assert_eq!(second.sessions().unwrap(), [full_session(77)]);
}

#[test]
fn a_copy_is_given_up_within_a_batch_when_the_database_is_let_go() {
    let (dir, copies) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = filled(&dir);
    let db = store.db().unwrap();
    let asked = AtomicU32::new(0);
    let may_go_on = || match asked.fetch_add(1, SeqCst) {
        5 => Err(StoreError::Stopped),
        _ => Ok(()),
    };
    let txn = db.begin_read().unwrap();
    let given_up = copy(&txn, fresh(&copies, "part"), dir.path(), &may_go_on);
    assert!(matches!(given_up, Err(StoreError::Stopped)), "{given_up:?}");
    assert_eq!(asked.into_inner(), 6, "it went on after it was told not to");
    drop((txn, db));
    store.shutdown();
    let too_late = store.backup(fresh(&copies, "late"));
    assert!(matches!(too_late, Err(StoreError::Stopped)), "{too_late:?}");
}
