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
const WINDOW_BYTES: usize = 1 << 20;
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
        if !self.attached || self.sent + 1 != seq || self.reading.is_some() {
            return false;
        }
        if !told && !self.has_room() {
            return false;
        }
        self.sent = seq;
        !told
    }

    fn has_room(&self) -> bool {
        let under_way = (self.flushed + 1).max(self.first)..=self.sent;
        self.sent - self.flushed < WINDOW_FRAMES
            && under_way.map(|seq| self.len_of(seq)).sum::<usize>() < WINDOW_BYTES
    }

    /// The socket took the frame, and those before it.
    pub fn flushed(&mut self, seq: u64) {
        self.flushed = self.flushed.max(seq.min(self.sent));
    }

    fn len_of(&self, seq: u64) -> usize {
        let at = seq.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.owed.get(at)).map_or(0, |len| *len as usize)
    }

    /// Where to read on, if frames wait on disk and the client has room. The answer goes to
    /// `replay`; until then nothing else is asked for.
    pub fn wants(&mut self) -> Option<u64> {
        let behind = self.attached && self.sent + 1 < self.next();
        if !behind || self.reading.is_some() || !self.has_room() {
            return None;
        }
        self.reading = Some(self.sent);
        self.reading
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
        let before = self.first;
        while self.proof == Proof::Pong
            && !self.owed.is_empty()
            && (self.owed.len() > frames_max || self.owed_bytes > bytes_max)
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
