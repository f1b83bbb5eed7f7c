//! What a session is owed and how far it has come: numbers and lengths only, the frames are on
//! disk.
//!
//! ```text
//!        first            acked ≤ … ≤ flushed ≤ sent                next
//!          │  deleted when proven │ on the socket │ still on disk     │ not recorded yet
//! ```
//! A frame is sent from memory when it is recorded while the client keeps up, else it is read back
//! when the client has room again, or has come back. Both ways keep `sent` contiguous, so that on
//! one connection numbers only go up and none is left out.
//!
//! It refuses to know frames, sockets and the disk.

use std::collections::VecDeque;

use crate::telemetry::Now;

/// Frames on their way to one socket beyond which the next stay on disk.
const WINDOW_FRAMES: u64 = 32;
/// Bytes on their way to one socket beyond which the next frame stays on disk.
const WINDOW_BYTES: usize = 128 << 10;
/// Shortest time between two barriers, in microseconds.
const BARRIER_APART_US: u64 = 500_000;

/// What shows that a client has a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It says so, when it has processed it.
    Ack,
    /// Its WebSocket stack answered a ping that was sent after the frame.
    Pong,
}

/// What an acknowledgement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// Frames up to this number need not be kept.
    Through(u64),
    /// It said nothing new.
    Again,
    /// It names frames that were never sent.
    Impossible,
}

/// Where a client that came back goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// Number of the first frame it gets.
    pub from: u64,
    /// Whether that is the one after the last it has. If not, those between are gone.
    pub recovered: bool,
}

/// One session's cursors. Numbers begin at 1.
#[derive(Debug)]
pub struct Delivery {
    proof: Proof,
    /// The lowest number that is still kept.
    first: u64,
    /// Lengths of the kept frames, `first` onwards, in bytes.
    owed: VecDeque<u32>,
    owed_bytes: usize,
    /// A client is connected.
    attached: bool,
    /// The last number given to the present connection.
    sent: u64,
    /// The last number its socket has taken.
    flushed: u64,
    /// What was read back is awaited: frames behind this number.
    reading: Option<u64>,
    /// The number whose barrier is out.
    barrier: Option<u64>,
    barrier_us: Option<u64>,
}

impl Delivery {
    /// Of a session with a client; nothing is owed yet.
    pub fn new(proof: Proof) -> Self {
        Self { attached: true, ..Self::restored(proof, 1, []) }
    }

    /// Of a session without a client, which is owed frames of these lengths from `first` on.
    pub fn restored(proof: Proof, first: u64, lens: impl IntoIterator<Item = u32>) -> Self {
        let owed: VecDeque<u32> = lens.into_iter().collect();
        Self {
            proof,
            first,
            owed_bytes: owed.iter().map(|len| *len as usize).sum(),
            owed,
            attached: false,
            sent: first - 1,
            flushed: first - 1,
            reading: None,
            barrier: None,
            barrier_us: None,
        }
    }

    /// The number that will be recorded next.
    pub fn next(&self) -> u64 {
        self.first + self.owed.len() as u64
    }

    /// The last number given to the present connection.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames kept, and their bytes.
    pub fn owed(&self) -> (usize, usize) {
        (self.owed.len(), self.owed_bytes)
    }

    /// Whether a client is connected.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// A frame is on disk under this number. Whether it is to be sent now; if it was sent before
    /// (`told`), it is not sent again to this connection.
    pub fn recorded(&mut self, seq: u64, len: usize, told: bool) -> bool {
        assert_eq!(seq, self.next(), "numbers are given in order");
        self.owed.push_back(u32::try_from(len).unwrap_or(u32::MAX));
        self.owed_bytes += len;
        if !self.attached || self.sent + 1 != seq {
            return false;
        }
        if !told && !self.has_room() {
            return false;
        }
        self.sent = seq;
        !told
    }

    fn has_room(&self) -> bool {
        let (frames, bytes) = self.under_way();
        frames < WINDOW_FRAMES && bytes < WINDOW_BYTES
    }

    /// Frames that the socket has not taken, and their bytes.
    fn under_way(&self) -> (u64, usize) {
        let seqs = (self.flushed + 1).max(self.first)..=self.sent;
        (self.sent - self.flushed, seqs.map(|seq| self.len_of(seq)).sum())
    }

    /// The socket took the frame, and those before it.
    pub fn flushed(&mut self, seq: u64) {
        self.flushed = self.flushed.max(seq.min(self.sent));
    }

    fn len_of(&self, seq: u64) -> usize {
        let at = seq.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.owed.get(at)).map_or(0, |len| *len as usize)
    }

    /// Behind which number to read on, and how many frames, if some wait on disk and the client
    /// has room for half a window: it is not read for frame by frame. The answer goes to `replay`;
    /// until then nothing else is asked for.
    pub fn wants(&mut self) -> Option<(u64, usize)> {
        let behind = self.attached && self.sent + 1 < self.next();
        if !behind || self.reading.is_some() {
            return None;
        }
        let (mut frames, mut bytes) = self.under_way();
        if frames > WINDOW_FRAMES / 2 || bytes > WINDOW_BYTES / 2 {
            return None;
        }
        // No more than there is room for, for what is read and not sent is read again.
        let mut wanted = 0;
        let mut waiting = (self.sent + 1..self.next()).map(|seq| self.len_of(seq));
        while frames < WINDOW_FRAMES
            && bytes < WINDOW_BYTES
            && let Some(len) = waiting.next()
        {
            (frames, bytes, wanted) = (frames + 1, bytes + len, wanted + 1);
        }
        self.reading = Some(self.sent);
        Some((self.sent, wanted))
    }

    /// Frames behind `after` were read back: which of them are to be sent now, and the numbers
    /// that are missing for ever. Numbers are in order.
    pub fn replay(&mut self, after: u64, frames: &[u64]) -> Replay {
        let mut replay = Replay::default();
        if self.reading != Some(after) {
            // Asked for on behalf of a connection that is gone.
            return replay;
        }
        self.reading = None;
        if !self.attached || self.sent != after {
            return replay;
        }
        for seq in frames {
            if *seq >= self.next() || *seq <= self.sent || !self.has_room() {
                continue;
            }
            replay.lost.extend(self.sent + 1..*seq);
            self.sent = *seq;
            replay.send.push(*seq);
        }
        if frames.is_empty() {
            replay.lost.extend(self.sent + 1..self.next());
            self.sent = self.next() - 1;
        }
        replay
    }

    /// The client says that it has processed everything up to this number.
    pub fn acked(&mut self, seq: u64) -> Acked {
        match () {
            () if seq >= self.next() => Acked::Impossible,
            () if seq < self.first => Acked::Again,
            () => {
                self.forget(seq);
                Acked::Through(seq)
            }
        }
    }

    fn forget(&mut self, through: u64) {
        while self.first <= through {
            let Some(len) = self.owed.pop_front() else { break };
            self.owed_bytes -= len as usize;
            self.first += 1;
        }
        self.sent = self.sent.max(through);
        self.flushed = self.flushed.max(through);
    }

    /// The client is gone; what it has not confirmed waits for it.
    pub fn detach(&mut self) {
        self.attached = false;
        self.barrier = None;
        self.barrier_us = None;
    }

    /// A client is there that has everything up to `last_seq`; none if that is more than there is.
    pub fn attach(&mut self, last_seq: u64) -> Option<Resumed> {
        if last_seq >= self.next() {
            return None;
        }
        let recovered = last_seq + 1 >= self.first;
        if recovered {
            self.forget(last_seq);
        }
        self.detach();
        self.attached = true;
        self.reading = None;
        self.sent = self.first - 1;
        self.flushed = self.sent;
        Some(Resumed { from: self.first, recovered })
    }

    /// The number to send a barrier for, if one is due.
    pub fn barrier(&mut self, now: Now) -> Option<u64> {
        self.barrier_due().filter(|due| *due <= now.us)?;
        (self.barrier, self.barrier_us) = (Some(self.flushed), Some(now.us));
        self.barrier
    }

    /// Whether frames wait on disk for the client to have room.
    pub fn is_behind(&self) -> bool {
        self.sent + 1 < self.next()
    }

    /// The last number that was sent and not confirmed, if there is one.
    pub fn unproven(&self) -> Option<u64> {
        (self.sent >= self.first).then_some(self.sent)
    }

    /// When a barrier is due, monotonic microseconds.
    pub fn barrier_due(&self) -> Option<u64> {
        let wanted = self.proof == Proof::Pong && self.attached && self.flushed >= self.first;
        let due = self.barrier_us.map_or(0, |last| last + BARRIER_APART_US);
        (wanted && self.barrier.is_none()).then_some(due)
    }

    /// The barrier of this number came back: everything up to it has arrived.
    pub fn ponged(&mut self, seq: u64) -> Acked {
        if self.barrier != Some(seq) {
            return Acked::Again;
        }
        self.barrier = None;
        self.acked(seq)
    }

    /// Whether a client that confirms what it has owes too many confirmations to be given more.
    pub fn is_full(&self, frames_max: usize, bytes_max: usize) -> bool {
        self.proof == Proof::Ack && self.exceeds(frames_max, bytes_max)
    }

    /// Up to where frames are given up, because a client that never confirms has too many.
    pub fn overflow(&mut self, frames_max: usize, bytes_max: usize) -> Option<u64> {
        match self.proof {
            Proof::Pong => self.give_up_beyond(frames_max, bytes_max),
            Proof::Ack => None,
        }
    }

    /// Up to where frames are given up so that no more are kept than this.
    pub fn give_up_beyond(&mut self, frames_max: usize, bytes_max: usize) -> Option<u64> {
        let before = self.first;
        while !self.owed.is_empty() && (self.owed.len() > frames_max || self.owed_bytes > bytes_max)
        {
            self.forget(self.first);
        }
        (self.first > before).then(|| self.first - 1)
    }

    fn exceeds(&self, frames_max: usize, bytes_max: usize) -> bool {
        self.owed.len() >= frames_max || self.owed_bytes >= bytes_max
    }
}

/// What to do with frames that were read back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// To be sent, in this order.
    pub send: Vec<u64>,
    /// Not there any more, and never will be.
    pub lost: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The naive twin: the disk as a map, the wire as a list, the client as what it has seen.
    #[derive(Default)]
    struct World {
        disk: BTreeMap<u64, usize>,
        recorded: u64,
        /// On the way to the client's socket.
        wire: VecDeque<u64>,
        /// On this connection, in the order it was sent.
        connection: Vec<u64>,
        /// The highest number the client has processed.
        client: u64,
        /// Reads of the disk that are not answered yet.
        reads: Vec<(u64, usize)>,
        forfeited: u64,
    }

    impl World {
        fn send(&mut self, seq: u64) {
            assert!(self.disk.contains_key(&seq), "{seq} was sent and is not on disk");
            // Behind what was given up, if that had not been sent yet.
            let next = |last: &u64| (last + 1).max(self.forfeited + 1);
            let follows = self.connection.last().is_none_or(|last| next(last) == seq);
            assert!(follows, "{seq} after {:?}", self.connection);
            self.connection.push(seq);
            self.wire.push_back(seq);
        }

        fn pull(&mut self, delivery: &mut Delivery) {
            self.reads.extend(delivery.wants());
        }

        fn answer_read(&mut self, delivery: &mut Delivery) {
            let Some((after, limit)) = self.reads.pop() else { return };
            let waiting = self.disk.range(after + 1..).take(limit);
            let frames: Vec<u64> = waiting.clone().map(|(seq, _)| *seq).collect();
            let but_the_last = frames.len().saturating_sub(1);
            let read: usize = waiting.take(but_the_last).map(|(_, len)| *len).sum();
            // If what was asked for is given up meanwhile, others come in its place.
            let are_those = frames.first() == Some(&(after + 1));
            assert!(!are_those || read < WINDOW_BYTES, "{read} bytes, and one frame more");
            let replay = delivery.replay(after, &frames);
            assert!(replay.lost.is_empty(), "nothing was damaged");
            replay.send.iter().for_each(|seq| self.send(*seq));
        }

        fn receive(&mut self, delivery: &mut Delivery) {
            let Some(seq) = self.wire.pop_front() else { return };
            assert!(seq <= self.client + 1 || seq <= self.forfeited + 1, "the client saw a gap");
            self.client = self.client.max(seq);
            delivery.flushed(seq);
        }

        fn forget(&mut self, acked: Acked) {
            match acked {
                Acked::Through(seq) => self.disk.retain(|s, _| *s > seq),
                Acked::Again => {}
                Acked::Impossible => panic!("the client never names what it does not have"),
            }
        }

        fn attach(&mut self, delivery: &mut Delivery) {
            (self.wire, self.connection) = Default::default();
            let lowest = self.disk.keys().next().copied().unwrap_or(self.recorded + 1);
            let resumed =
                delivery.attach(self.client).expect("the client has no more than there is");
            assert_eq!(resumed.recovered, self.client + 1 >= lowest);
            let from = if resumed.recovered { self.client + 1 } else { lowest };
            assert_eq!(resumed.from, from);
            self.disk.retain(|s, _| *s >= resumed.from);
            self.client = resumed.from - 1;
            self.connection.push(resumed.from - 1);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Record(usize),
        Receive,
        Ack(u64),
        Barrier,
        Drop,
        Attach,
        Read,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_usize..400_000).prop_map(Step::Record),
            6 => Just(Step::Receive),
            2 => (0_u64..3).prop_map(Step::Ack),
            2 => Just(Step::Barrier),
            1 => Just(Step::Drop),
            2 => Just(Step::Attach),
            4 => Just(Step::Read),
            1 => Just(Step::Restart),
        ]
    }

    fn run(proof: Proof, steps: Vec<Step>) {
        let (mut world, mut delivery) = (World::default(), Delivery::new(proof));
        let mut now = Now::default();
        for step in steps {
            now.us += 300_000;
            match step {
                Step::Record(len) => {
                    world.recorded += 1;
                    world.disk.insert(world.recorded, len);
                    if delivery.recorded(world.recorded, len, false) {
                        world.send(world.recorded);
                    }
                    if let Some(through) = delivery.overflow(40, usize::MAX) {
                        world.disk.retain(|s, _| *s > through);
                        world.forfeited = through;
                        assert_eq!(world.disk.len(), 40);
                    }
                }
                Step::Receive => world.receive(&mut delivery),
                Step::Ack(behind) => {
                    let acked = delivery.acked(world.client.saturating_sub(behind));
                    world.forget(acked);
                }
                Step::Barrier => {
                    if let Some(seq) = delivery.barrier(now) {
                        assert!(seq <= world.client, "a barrier overtook its frame");
                        let acked = delivery.ponged(seq);
                        world.forget(acked);
                    }
                }
                Step::Drop => {
                    delivery.detach();
                    world.wire.clear();
                }
                Step::Attach => world.attach(&mut delivery),
                Step::Read => world.answer_read(&mut delivery),
                Step::Restart => {
                    let lens = world.disk.values().map(|len| *len as u32).collect::<Vec<_>>();
                    let first = world.recorded + 1 - lens.len() as u64;
                    delivery = Delivery::restored(proof, first, lens);
                    (world.wire, world.reads) = Default::default();
                }
            }
            world.pull(&mut delivery);
            let bytes = world.disk.values().sum();
            assert_eq!(delivery.owed(), (world.disk.len(), bytes));
            assert_eq!(delivery.next(), world.recorded + 1);
        }
        world.attach(&mut delivery);
        for _ in 0..10_000 {
            world.pull(&mut delivery);
            world.answer_read(&mut delivery);
            world.receive(&mut delivery);
        }
        assert_eq!(world.client, world.recorded, "everything arrives in the end");
    }

    proptest! {
        #[test]
        fn whatever_happens_everything_arrives_once_and_in_order(
            steps in proptest::collection::vec(step(), 1..200),
            pong in any::<bool>(),
        ) {
            run(if pong { Proof::Pong } else { Proof::Ack }, steps);
        }
    }

    #[test]
    fn a_client_that_claims_what_it_cannot_have_is_not_taken() {
        let mut delivery = Delivery::new(Proof::Ack);
        assert!(delivery.recorded(1, 10, false));
        assert_eq!(delivery.acked(2), Acked::Impossible);
        assert_eq!(delivery.attach(2), None);
        assert_eq!(delivery.attach(1), Some(Resumed { from: 2, recovered: true }));
        assert_eq!(delivery.acked(1), Acked::Again);
    }

    #[test]
    fn what_was_damaged_on_disk_is_named_and_the_rest_flows() {
        let mut delivery = Delivery::restored(Proof::Ack, 1, [5, 5, 5]);
        delivery.attach(0);
        assert_eq!(delivery.wants(), Some((0, 3)));
        assert_eq!(delivery.wants(), None);
        let replay = delivery.replay(0, &[1, 3]);
        assert_eq!(replay, Replay { send: vec![1, 3], lost: vec![2] });
        let mut nothing_left = Delivery::restored(Proof::Ack, 1, [5]);
        nothing_left.attach(0);
        nothing_left.wants();
        assert_eq!(nothing_left.replay(0, &[]).lost, [1]);
        assert_eq!(nothing_left.wants(), None);
    }

    #[test]
    fn no_more_is_read_back_than_there_is_room_for() {
        let mut delivery = Delivery::restored(Proof::Ack, 1, [60_000; 9]);
        delivery.attach(0);
        assert_eq!(delivery.wants(), Some((0, 3)));
        assert_eq!(delivery.replay(0, &[1, 2, 3]).send, [1, 2, 3]);
        delivery.flushed(1);
        assert_eq!(delivery.wants(), None, "most of the window is under way");
        delivery.flushed(2);
        assert_eq!(delivery.wants(), Some((3, 2)));
        let mut small = Delivery::restored(Proof::Ack, 1, [100; 90]);
        small.attach(0);
        assert_eq!(small.wants(), Some((0, 32)));
    }

    #[test]
    fn a_barrier_waits_its_time_and_another_answer_proves_nothing() {
        let mut delivery = Delivery::new(Proof::Pong);
        let at = |ms: u64| Now { us: ms * 1_000, unix_ms: ms };
        assert!(delivery.recorded(1, 10, false));
        assert_eq!(delivery.barrier(at(1)), None, "nothing was flushed");
        delivery.flushed(1);
        assert_eq!(delivery.barrier(at(1)), Some(1));
        assert!(delivery.recorded(2, 10, false));
        delivery.flushed(2);
        assert_eq!(delivery.ponged(2), Acked::Again);
        assert_eq!(delivery.ponged(1), Acked::Through(1));
        assert_eq!(delivery.barrier(at(400)), None);
        assert_eq!(delivery.barrier_due(), Some(501_000));
        assert_eq!(delivery.barrier(at(501)), Some(2));
    }
}
