//! What a client is told and when it has it: the order of results (`Sequencer`) and the cursors of
//! delivery (`Delivery`), each beside a plain list of what should be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use utterd::session::{Acked, Delivery, Proof, Release, Sequencer};
use utterd::telemetry::Now;

use super::script::Script;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    match script.pick(2) {
        0 => sequence(&mut script),
        _ => deliver(&mut script),
    }
}

const GAP_WAIT_MS: u64 = 100;

/// The twin of the order: what is known of each utterance, asked in full every time.
#[derive(Default)]
struct Order {
    /// Utterances that are being done or wait: none until they are settled, then what and since.
    waiting: BTreeMap<u64, Option<(u64, u64)>>,
    /// Utterances passed over whose result may come.
    late: BTreeSet<u64>,
}

impl Order {
    fn settle(&mut self, index: u64, item: u64, now_us: u64) -> Vec<Release<u64>> {
        if self.late.remove(&index) {
            return vec![Release::Late(index, item)];
        }
        self.waiting.insert(index, Some((item, now_us)));
        self.release(now_us)
    }

    fn release(&mut self, now_us: u64) -> Vec<Release<u64>> {
        let mut told = Vec::new();
        while let Some((&index, &state)) = self.waiting.iter().next() {
            let overdue = |(_, since): (u64, u64)| since + GAP_WAIT_MS * 1_000 <= now_us;
            match state {
                Some((item, _)) => told.push(Release::InOrder(index, item)),
                None if self.waiting.values().flatten().any(|ready| overdue(*ready)) => {
                    told.push(Release::Gap(index));
                    self.late.insert(index);
                }
                None => break,
            }
            self.waiting.remove(&index);
        }
        told
    }
}

fn sequence(script: &mut Script<'_>) {
    let (mut real, mut twin) = (Sequencer::new(GAP_WAIT_MS), Order::default());
    let (mut now_us, mut item) = (0, 0);
    while !script.is_over() {
        let index = script.pick(12) as u64;
        let (mut told, mut wanted) = (Vec::new(), Vec::new());
        match script.pick(6) {
            // An utterance that was passed over is not opened again, but expected late.
            0 | 1 if !twin.late.contains(&index) => {
                real.open(index);
                twin.waiting.insert(index, None);
            }
            2 => {
                real.expect_late(index);
                if !twin.waiting.contains_key(&index) {
                    twin.late.insert(index);
                }
            }
            3 | 4 => {
                item += 1;
                real.settle(index, item, now_us, &mut told);
                wanted = twin.settle(index, item, now_us);
            }
            _ => {
                now_us += u64::from(script.any::<u8>()) * 1_000;
                real.release(now_us, &mut told);
                wanted = twin.release(now_us);
            }
        }
        assert_eq!(told, wanted, "what is told");
        let ready: Vec<u64> = twin.waiting.values().flatten().map(|(_, since)| *since).collect();
        assert_eq!(real.ready(), ready.len());
        assert_eq!(real.gap_over_at(), ready.iter().min().map(|at| at + GAP_WAIT_MS * 1_000));
        assert_eq!(real.is_empty(), twin.waiting.is_empty() && twin.late.is_empty());
    }
    let settled = twin.waiting.into_iter().filter_map(|(index, of)| Some((index, of?.0)));
    assert_eq!(real.drain(), settled.collect::<Vec<_>>());
}

/// The twin of delivery: the frames themselves, those given to the connection, those it took.
struct Owed {
    proof: Proof,
    kept: BTreeMap<u64, usize>,
    next: u64,
    attached: bool,
    /// Numbers given to the present connection, or that it did not need.
    given: u64,
    /// What this connection was given, in order.
    heard: Vec<u64>,
    reads: VecDeque<(u64, usize)>,
}

impl Owed {
    fn first(&self) -> u64 {
        self.kept.keys().next().copied().unwrap_or(self.next)
    }

    fn check(&self, real: &Delivery) {
        assert_eq!(real.next(), self.next);
        assert_eq!(real.owed(), (self.kept.len(), self.kept.values().sum()), "what is kept");
        assert_eq!(real.is_attached(), self.attached);
        if self.attached {
            assert_eq!(real.sent(), self.given, "what the connection was given");
            assert_eq!(real.is_behind(), self.given + 1 < self.next);
        }
        let rising = self.heard.windows(2).all(|two| two[0] < two[1]);
        assert!(rising, "numbers only go up: {:?}", self.heard);
    }

    fn forget(&mut self, through: u64) {
        self.kept.retain(|seq, _| *seq > through);
        self.given = self.given.max(through);
    }

    fn acked(&mut self, seq: u64, outcome: Acked) {
        match outcome {
            Acked::Impossible => assert!(seq >= self.next),
            Acked::Again => assert!(seq < self.first()),
            Acked::Through(through) => {
                assert!(through == seq && seq < self.next && seq >= self.first());
                self.forget(through);
            }
        }
    }
}

fn deliver(script: &mut Script<'_>) {
    let proof = script.of(&[Proof::Ack, Proof::Pong]);
    let mut real = Delivery::new(proof);
    let (kept, heard, reads) = (BTreeMap::new(), Vec::new(), VecDeque::new());
    let mut twin = Owed { proof, kept, next: 1, attached: true, given: 0, heard, reads };
    let mut now = Now { us: 0, unix_ms: 0 };
    let mut barriers = Vec::new();
    while !script.is_over() {
        deliver_one(script, &mut real, &mut twin, &mut barriers);
        now.us += u64::from(script.any::<u8>()) * 10_000;
        if let Some((after, frames)) = real.wants() {
            assert!(twin.attached && after + 1 < twin.next, "nothing waits behind {after}");
            let waiting = twin.kept.range(after + 1..).count();
            assert!((1..=waiting.max(1)).contains(&frames), "{frames} of {waiting} are wanted");
            twin.reads.push_back((after, frames));
        }
        if let Some(seq) = real.barrier(now) {
            assert!(twin.proof == Proof::Pong && twin.attached && seq >= twin.first());
            assert!(seq <= twin.given, "a proof of what was not given");
            barriers.push(seq);
        }
        assert!(real.barrier_due().is_none_or(|due| due > now.us), "a barrier is due for ever");
        twin.check(&real);
    }
}

fn deliver_one(
    script: &mut Script<'_>,
    real: &mut Delivery,
    twin: &mut Owed,
    barriers: &mut Vec<u64>,
) {
    let some = |script: &mut Script<'_>, most: u64| u64::from(script.any::<u8>()) % (most + 2);
    match script.pick(9) {
        0 | 1 => {
            let len = usize::from(script.any::<u16>()) * script.of(&[1, 64]);
            let told = script.seldom(8);
            let seq = twin.next;
            let now_sent = real.recorded(seq, len, told);
            twin.kept.insert(seq, len);
            twin.next += 1;
            if now_sent {
                assert!(twin.attached && !told && twin.given + 1 == seq, "out of its turn");
                twin.heard.push(seq);
            }
            if now_sent || (told && twin.attached && twin.given + 1 == seq) {
                twin.given = seq;
            }
        }
        2 => real.flushed(some(script, twin.next)),
        3 => replay(script, real, twin),
        4 => {
            let seq = some(script, twin.next);
            let outcome = real.acked(seq);
            twin.acked(seq, outcome);
        }
        5 => {
            real.detach();
            twin.attached = false;
            barriers.clear();
        }
        6 => {
            let last = some(script, twin.next);
            let resumed = real.attach(last);
            assert_eq!(resumed.is_none(), last >= twin.next, "more than there is");
            if let Some(resumed) = resumed {
                assert_eq!(resumed.recovered, last + 1 >= twin.first());
                if resumed.recovered {
                    twin.forget(last);
                }
                assert_eq!(resumed.from, twin.first());
                twin.attached = true;
                twin.given = twin.first() - 1;
                twin.heard.clear();
                barriers.clear();
            }
        }
        7 if !barriers.is_empty() => {
            let seq = barriers.swap_remove(script.pick(barriers.len()));
            let outcome = real.ponged(seq);
            twin.acked(seq, outcome);
        }
        _ => {
            let (frames, bytes) = (script.pick(40), usize::from(script.any::<u16>()) * 16);
            let (len, sum) = real.owed();
            let full = twin.proof == Proof::Ack && (len >= frames || sum >= bytes);
            assert_eq!(real.is_full(frames, bytes), full);
            if let Some(through) = real.overflow(frames, bytes) {
                assert!(twin.proof == Proof::Pong && (len > frames || sum > bytes));
                twin.forget(through);
            }
        }
    }
}

/// The disk answers what was asked, with all, some or none of what is there.
fn replay(script: &mut Script<'_>, real: &mut Delivery, twin: &mut Owed) {
    let Some((after, limit)) = twin.reads.pop_front() else { return };
    let there: Vec<u64> = twin.kept.keys().copied().filter(|seq| *seq > after).collect();
    let gone = script.pick(4);
    let undamaged = |seq: &u64| gone == 0 || *seq as usize % 4 != gone;
    let found: Vec<u64> = there.iter().copied().filter(undamaged).take(limit).collect();
    let replay = real.replay(after, &found);
    assert!(replay.send.iter().all(|seq| found.contains(seq)), "sent, and not read back");
    assert!(replay.lost.iter().all(|seq| !found.contains(seq)), "lost, and read back");
    let mut passed: Vec<u64> = replay.send.iter().chain(&replay.lost).copied().collect();
    passed.sort_unstable();
    let wanted: Vec<u64> = (twin.given + 1..).take(passed.len()).collect();
    assert_eq!(passed, wanted, "what was passed has no gap");
    twin.heard.extend(&replay.send);
    twin.given += passed.len() as u64;
}
