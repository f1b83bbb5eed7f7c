//! Links between the server and its peers: messages keep their order in each direction, take time,
//! and are lost only with their connection.
//!
//! ```text
//!  server ─push─▶ outbox ─Flush─▶ wire ─Arrive─▶ peer        down
//!  server ◀──── Arrive ──────── wire ◀──── send ─ peer       up
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::env::{Env, Event};
use crate::job::Job;
use crate::protocol::{JobId, SessionId};

/// A connection.
pub(super) type ConnId = u64;

/// Messages on their way to a peer beyond which its socket takes no more.
const WIRE_MAX: usize = 24;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Client(usize),
    Node(usize),
}

/// A direction, or the end that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the server.
    Up,
    /// To the peer.
    Down,
}

/// What goes over a link.
#[derive(Debug, Clone)]
pub(super) enum Msg {
    /// A frame of the server with its meaning, or a frame of a peer.
    Text(Bytes, Option<Arc<Value>>),
    Ping(Bytes),
    Pong(Bytes),
    Close,
}

/// A frame's claim on attention once the socket took it.
#[derive(Debug, Clone)]
pub(super) enum Tag {
    Plain,
    /// The last word on a job, with its number if it has one.
    Word(JobId, Option<u64>),
    /// What the client is to prove to have heard.
    Prove(u64),
    /// The end of a session that may still owe proof.
    Farewell(SessionId, u64),
    /// An attempt.
    Assign(Arc<Job>, u32),
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Full,
    Closed,
}

#[derive(Debug, Default)]
struct Lane {
    wire: VecDeque<Msg>,
    last_at: u64,
    held: bool,
    /// Arrivals that came due while it was held.
    stalled: u32,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) peer: Peer,
    outbox: VecDeque<(Msg, Tag)>,
    outbox_max: usize,
    flushing: bool,
    closing: bool,
    /// The close went out.
    ended: bool,
    down: Lane,
    up: Lane,
    /// The server's end is open.
    server_open: bool,
    /// The peer's end is open.
    peer_open: bool,
    /// Nothing gets through any more, though an end may not have noticed.
    broken: bool,
    /// The longest time a message takes.
    delay_us: u64,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Net {
    conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
}

impl Net {
    pub(super) fn peer(&self, conn: ConnId) -> Option<Peer> {
        self.conns.get(&conn).map(|c| c.peer)
    }

    /// Frames the server has queued for the peer.
    pub(super) fn queued(&self, conn: ConnId) -> usize {
        self.conns.get(&conn).map_or(0, |c| c.outbox.len())
    }

    /// Connections that are whole.
    pub(super) fn whole(&self) -> Vec<ConnId> {
        let whole = self.conns.iter().filter(|(_, c)| c.server_open && c.peer_open);
        whole.map(|(id, _)| *id).collect()
    }

    fn forget_if_over(&mut self, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|c| !c.server_open && !c.peer_open) {
            self.conns.remove(&conn);
        }
    }
}

impl Env {
    /// A new connection, both ends open.
    pub(super) fn connect(&mut self, peer: Peer, outbox_max: usize) -> ConnId {
        self.net.next += 1;
        let conn = self.net.next;
        let delay_us = self.rates.delay_us;
        let delay_us = if self.faulty { self.skewed(200, delay_us.max(300)) } else { 2_000 };
        self.net.conns.insert(
            conn,
            Conn {
                peer,
                outbox: VecDeque::new(),
                outbox_max,
                flushing: false,
                closing: false,
                ended: false,
                down: Lane::default(),
                up: Lane::default(),
                server_open: true,
                peer_open: true,
                broken: false,
                delay_us,
            },
        );
        conn
    }

    /// The server queues a message.
    pub(super) fn push(&mut self, conn: ConnId, msg: Msg, tag: Tag) -> Result<(), Refusal> {
        let Some(c) = self.net.conns.get_mut(&conn) else { return Err(Refusal::Closed) };
        if !c.server_open || c.closing {
            return Err(Refusal::Closed);
        }
        if c.outbox.len() >= c.outbox_max {
            return Err(Refusal::Full);
        }
        c.outbox.push_back((msg, tag));
        self.wake_flush(conn);
        Ok(())
    }

    fn wake_flush(&mut self, conn: ConnId) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        let idle = c.outbox.is_empty() && !c.closing;
        if c.flushing || idle || c.ended || !c.server_open || c.down.wire.len() >= WIRE_MAX {
            return;
        }
        c.flushing = true;
        let us = self.skewed(5, 800);
        self.after(us, Event::Flush(conn));
    }

    /// The server's socket takes the next frame; what was claimed by it, or that it is closed.
    pub(super) fn flush(&mut self, conn: ConnId) -> Option<Result<Tag, ()>> {
        let c = self.net.conns.get_mut(&conn)?;
        c.flushing = false;
        if !c.server_open {
            return None;
        }
        let taken = match (c.outbox.pop_front(), c.closing) {
            (Some((msg, tag)), _) => {
                let peer = c.peer;
                self.said(conn, peer, &msg);
                self.put(conn, Way::Down, msg);
                Ok(tag)
            }
            (None, true) => {
                c.ended = true;
                self.put(conn, Way::Down, Msg::Close);
                Err(())
            }
            (None, false) => return None,
        };
        self.wake_flush(conn);
        Some(taken)
    }

    /// A message leaves the server: from here on it is said.
    fn said(&mut self, conn: ConnId, peer: Peer, msg: &Msg) {
        if let Msg::Text(bytes, Some(value)) = msg {
            self.note("down", conn, bytes);
            let value = Arc::clone(value);
            let now = self.now;
            self.judge.server_said(conn, peer, &value, now, &mut self.counts);
        }
    }

    /// The peer sends a message.
    pub(super) fn send_up(&mut self, conn: ConnId, msg: Msg) {
        let open = self.net.conns.get(&conn).is_some_and(|c| c.peer_open);
        if open {
            self.put(conn, Way::Up, msg);
        }
    }

    fn put(&mut self, conn: ConnId, way: Way, msg: Msg) {
        let msg = match self.rates.plant == super::Plant::SpoiledAudio && self.chance(30) {
            true => spoiled(msg),
            false => msg,
        };
        let max = self.net.conns.get(&conn).map_or(0, |c| c.delay_us);
        let delay = self.skewed(50, max);
        let now = self.now;
        let swap = self.rates.plant == super::Plant::SwappingLinks && self.chance(20);
        let Some(c) = self.net.conns.get_mut(&conn).filter(|c| !c.broken) else { return };
        let lane = if way == Way::Up { &mut c.up } else { &mut c.down };
        lane.last_at = lane.last_at.max(now + delay);
        let at = lane.last_at;
        lane.wire.push_back(msg);
        let n = lane.wire.len();
        if swap && n > 1 {
            lane.wire.swap(n - 1, n - 2);
        }
        self.at(at, Event::Arrive(conn, way));
    }

    /// The next message of that direction, if it arrives now.
    pub(super) fn arrive(&mut self, conn: ConnId, way: Way) -> Option<Msg> {
        let c = self.net.conns.get_mut(&conn)?;
        let open = if way == Way::Up { c.server_open } else { c.peer_open };
        let lane = if way == Way::Up { &mut c.up } else { &mut c.down };
        if lane.held {
            lane.stalled += 1;
            return None;
        }
        let msg = lane.wire.pop_front();
        self.wake_flush(conn);
        msg.filter(|_| open)
    }

    /// A direction stands still, as if the network had forgotten it.
    pub(super) fn hold(&mut self, conn: ConnId, way: Way) {
        if let Some(c) = self.net.conns.get_mut(&conn) {
            let lane = if way == Way::Up { &mut c.up } else { &mut c.down };
            lane.held = true;
            self.note("held", conn, b"");
        }
    }

    /// A held direction goes on.
    pub(super) fn release(&mut self, conn: ConnId, way: Way) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        let lane = if way == Way::Up { &mut c.up } else { &mut c.down };
        lane.held = false;
        let stalled = std::mem::take(&mut lane.stalled);
        for _ in 0..stalled {
            self.after(0, Event::Arrive(conn, way));
        }
    }

    /// The connection is gone, with everything on its way; each end notices some time later.
    pub(super) fn break_conn(&mut self, conn: ConnId) {
        let Some(c) = self.net.conns.get_mut(&conn).filter(|c| !c.broken) else { return };
        c.broken = true;
        // What waits in the outbox still goes to the socket, and no further.
        c.down.wire.clear();
        c.up.wire.clear();
        let (server, peer) = (c.server_open, c.peer_open);
        self.note("broken", conn, b"");
        for (open, way) in [(server, Way::Up), (peer, Way::Down)] {
            if open {
                let us = self.skewed(100, 300_000);
                self.after(us, Event::Notice(conn, way));
            }
        }
    }

    /// The server wants the connection closed when everything queued has been sent.
    pub(super) fn request_close(&mut self, conn: ConnId) {
        let Some(c) = self.net.conns.get_mut(&conn) else { return };
        if !c.closing && c.server_open {
            c.closing = true;
            self.wake_flush(conn);
            // A peer that does not read is not waited for.
            self.after(2_000_000, Event::Break(conn));
        }
    }

    /// The server's end is closed, at once.
    pub(super) fn server_end(&mut self, conn: ConnId) {
        if let Some(c) = self.net.conns.get_mut(&conn) {
            c.server_open = false;
            c.outbox.clear();
        }
        self.net.forget_if_over(conn);
    }

    /// The peer's end is closed, at once.
    pub(super) fn peer_end(&mut self, conn: ConnId) {
        if let Some(c) = self.net.conns.get_mut(&conn) {
            c.peer_open = false;
        }
        self.net.forget_if_over(conn);
    }

    /// The peer closes in good order.
    pub(super) fn peer_closes(&mut self, conn: ConnId) {
        self.send_up(conn, Msg::Close);
        self.peer_end(conn);
    }

    /// The server died: nothing more comes from it.
    pub(super) fn server_died(&mut self) {
        let all: Vec<ConnId> = self.net.conns.keys().copied().collect();
        for conn in all {
            self.server_end(conn);
            if let Some(c) = self.net.conns.get_mut(&conn) {
                // What left the machine arrives; the rest does not.
                c.up.wire.clear();
                let last_at = c.down.last_at;
                self.release(conn, Way::Down);
                let us = self.skewed(100, 200_000);
                self.at(last_at.max(self.now) + us, Event::Notice(conn, Way::Down));
            }
        }
    }
}

/// The message with other audio in it, if it has any.
fn spoiled(msg: Msg) -> Msg {
    match msg {
        Msg::Text(text, Some(value)) if value["audio"].is_string() => {
            let mut other = Value::clone(&value);
            other["audio"] = "QUJDREVGR0g=".into();
            Msg::Text(text, Some(Arc::new(other)))
        }
        msg => msg,
    }
}
