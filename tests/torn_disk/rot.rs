//! Bits that rot while nobody looks: what is read afterwards was once written, as it is, under
//! its key; or it is missing and counted, or the database is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use utterd::protocol::{JobId, SessionId};
use utterd::store::{Engine, KeyRow, Recovered, RoomRow, SimDisk, StoreOptions};

use super::workload::Workload;
use super::world::{World, options};
use super::{SESSIONS, setting};

/// A closed database, and everything it has ever held.
struct Kept {
    disk: SimDisk,
    history: Vec<World>,
    jobs: std::ops::Range<u128>,
    now: u64,
}

fn keep(seed: u64) -> Kept {
    let disk = SimDisk::new(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut workload, mut history) = (Workload::default(), vec![World::default()]);
    let mut now = 1_000_000;
    let (mut engine, _) = Engine::open_on(disk.medium(), &limits(), now).unwrap();
    for _ in 0..20 {
        now += random.u64(..200);
        let world = history.last().unwrap();
        let writes = workload.batch(&mut random, world, now);
        let mut next = world.clone();
        assert_eq!(next.apply(&writes, now), engine.commit(writes, now).unwrap());
        history.push(next);
    }
    Kept { disk, history, jobs: workload.recent_jobs(), now }
}

fn limits() -> StoreOptions {
    StoreOptions { cache_bytes: 1 << 20, ..options() }
}

impl Kept {
    fn ever(&self, so: impl Fn(&World) -> bool) -> bool {
        self.history.iter().any(so)
    }

    /// The first thing read that was never written.
    fn wrong(&self, engine: &Engine, found: &Recovered) -> Option<String> {
        for job in &found.jobs {
            let same = |world: &World| {
                world.jobs.get(&job.row.id.0).is_some_and(|(row, audio)| {
                    *row == job.row && job.audio.as_ref().map_or(true, |found| found == audio)
                })
            };
            if !self.ever(same) {
                return Some(format!("job {:?}", job.row));
            }
        }
        for session in &found.sessions {
            let same = |world: &World| {
                world.sessions.get(&session.row.id.0) == Some(&session.row)
                    && world.progress[&session.row.id.0].next_seq == session.next_seq
            };
            if !self.ever(same) {
                return Some(format!("session {session:?}"));
            }
        }
        let key = |key| self.ever(|world| world.idempotency.values().any(|k| k == key));
        let node = |node| self.ever(|world| world.nodes.values().any(|n| n == node));
        if !found.idempotency.iter().all(key) || !found.nodes.iter().all(node) {
            return Some("a key or a node".to_owned());
        } else if found.pools.is_some() && !self.ever(|world| world.pools == found.pools) {
            return Some("the pools".to_owned());
        }
        let key = |key: &KeyRow| self.ever(|world| world.keys.get(&key.id) == Some(key));
        if !found.keys.iter().all(key) {
            return Some("a key of a door".to_owned());
        }
        let room = |room: &RoomRow| self.ever(|world| world.rooms.get(&room.code.0) == Some(room));
        if !found.rooms.iter().all(room) {
            return Some(format!("a room of {:?}", found.rooms));
        }
        self.wrong_within(engine)
    }

    fn wrong_within(&self, engine: &Engine) -> Option<String> {
        let reader = engine.reader();
        for session in 0..SESSIONS {
            for row in reader.outbox(SessionId(session), 0, 1_000).unwrap_or_default() {
                let at = (session, row.seq);
                if !self.ever(|world| world.outbox.get(&at) == Some(&row)) {
                    return Some(format!("a frame of session {session}: {row:?}"));
                }
            }
        }
        for id in self.jobs.clone() {
            if let Ok(Some(row)) = reader.terminal(JobId(id))
                && !self.ever(|world| world.terminals.get(&id) == Some(&row))
                && row.code != "STORAGE_CORRUPT"
            {
                return Some(format!("the end of {id}: {row:?}"));
            }
        }
        for id in 0..self.history.last().map_or(0, |world| world.last_letter) + 2 {
            if let Ok(Some((letter, audio))) = reader.dead_letter(id) {
                let same = |world: &World| {
                    world.letters.get(&id).is_some_and(|(row, sound)| {
                        *row == letter && (audio.is_none() || audio == *sound)
                    })
                };
                if !self.ever(same) {
                    return Some(format!("letter {letter:?}"));
                }
            }
        }
        None
    }
}

/// What became of one seed, as a child says it.
fn look(seed: u64) -> String {
    let kept = keep(seed);
    for _ in 0..30 {
        kept.disk.flip_a_bit();
    }
    let look = || match Engine::open_on(kept.disk.medium(), &limits(), kept.now) {
        Ok((engine, found)) => Some((kept.wrong(&engine, &found), found.bad_rows)),
        Err(_) => None,
    };
    match catch_unwind(AssertUnwindSafe(look)) {
        Err(_) => "panicked".to_owned(),
        Ok(None) => "refused".to_owned(),
        Ok(Some((Some(what), _))) => format!("wrong {what}"),
        Ok(Some((None, 0))) => "unseen".to_owned(),
        Ok(Some((None, _))) => "counted".to_owned(),
    }
}

/// Does nothing by itself: the test below runs it in processes of their own, for the engine may
/// end the process over a page that makes no sense, and that is no wrong answer.
#[test]
fn rotten_disks_of_a_child() {
    let (from, to) = (setting("UTTERD_ROT_FROM", 0), setting("UTTERD_ROT_TO", 0));
    if from < to {
        std::panic::set_hook(Box::new(|_| {}));
    }
    for seed in from..to {
        eprintln!("rot {seed} {}", look(seed));
    }
}

#[test]
fn flipped_bits_are_never_read_as_something_else() {
    let seeds = setting("UTTERD_ROT_SEEDS", 500);
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    let (mut from, mut wrong) = (0, Vec::new());
    while from < seeds {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "rot::rotten_disks_of_a_child", "--nocapture"]);
        child.env("UTTERD_ROT_FROM", from.to_string()).env("UTTERD_ROT_TO", seeds.to_string());
        let said = child.output().unwrap().stderr;
        for line in String::from_utf8_lossy(&said).lines() {
            let Some(line) = line.strip_prefix("rot ") else { continue };
            let (seed, what) = line.split_once(' ').unwrap();
            from = seed.parse::<u64>().unwrap() + 1;
            let word = what.split(' ').next().unwrap_or_default();
            *counts.entry(word.to_owned()).or_default() += 1;
            if word == "wrong" {
                wrong.push(line.to_owned());
            }
        }
        if from < seeds {
            // It ended in the middle of this one.
            *counts.entry("aborted".to_owned()).or_default() += 1;
            from += 1;
        }
    }
    eprintln!("{counts:?}");
    assert_eq!(wrong, [""; 0]);
    assert!(counts.contains_key("counted"), "no flip ever met a row");
}
