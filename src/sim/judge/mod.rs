//! Who watches: judges know only what crossed the links, and in the end what the disk holds. Every
//! sentence of a judge begins with the name of the invariant that is broken.
//!
//! | | invariant |
//! |---|---|
//! | I1 | an accepted utterance is found again after every crash |
//! | I2 | it has at most one last word |
//! | I4 | nothing is acknowledged to a node that is not on disk |
//! | I5 | results are numbered from 1 without a gap, and only go up on one connection |
//! | I6 | who comes back gets exactly what it has not processed, or is told that it does not |
//! | I7 | nothing said and not confirmed leaves the outbox but as a dead letter |
//! | I8 | one job for one utterance |
//! | I9 | a number stands for one result for ever |
//! | I10 | the attempts of a job only go up |
//! | I11 | within one life a job does not go twice to a run of a node; a turn is at one node |
//! | I12 | in the end every slot is free |
//! | I13 | only the node that has the job can end it |
//! | I14 | nobody gets what belongs to another |
//! | I15 | in the end nothing is left over in memory |
//! | I17 | what was accepted is not refused afterwards |
//! | I21 | a node gets the audio that was sent, chunk by chunk in order |
//! | I23 | last words come in the order of the utterances |
//! | L1 | what was accepted ends in time |
//! | L2 | who is back gets what it is owed within two seconds |
//! | L3 | no session stays that its client has ended |

mod ending;
mod node;
mod session;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::counts::Counts;
use super::net::{ConnId, Peer};
use node::{Assigned, NodeLink};
use session::Ledger;

/// What crossed the links, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Judge {
    verdict: Option<String>,
    /// Sessions by id.
    sessions: BTreeMap<String, Ledger>,
    /// The session of a client's connection, and what it may see next.
    lines: BTreeMap<ConnId, Line>,
    /// The node of a connection.
    links: BTreeMap<ConnId, NodeLink>,
    /// Assignments by job, in the order they were said.
    jobs: BTreeMap<String, Vec<Assigned>>,
    /// Jobs of which a node was told that their result is on disk.
    acked: BTreeSet<String>,
    /// Pairs of jobs of one turn that seem to be at two nodes, and until when they may.
    torn: Vec<(u64, String, String)>,
    /// Which life of the server speaks.
    life: u64,
}

#[derive(Debug, Default)]
struct Line {
    session: Option<String>,
    /// Number of the next result.
    next_seq: Option<u64>,
    /// What the client asked when it came back: the number it named.
    asked: Vec<(String, u64, bool)>,
    /// Answers to what it asked.
    answered: usize,
    /// Answers that reached it.
    heard_answers: usize,
}

impl Judge {
    /// The first thing that was wrong.
    pub(super) fn verdict(&self) -> Option<&str> {
        self.verdict.as_deref()
    }

    pub(super) fn convict(&mut self, sentence: String) {
        self.verdict.get_or_insert(sentence);
    }

    /// Another life of the server begins.
    pub(super) fn server_started(&mut self, life: u64) {
        self.life = life;
    }

    /// A frame left the server.
    pub(super) fn server_said(
        &mut self,
        conn: ConnId,
        peer: Peer,
        value: &Value,
        now: u64,
        counts: &mut Counts,
    ) {
        self.look_at_torn(now);
        match peer {
            Peer::Client(client) => self.said_to_client(conn, client, value, now, counts),
            Peer::Node(_) => self.said_to_node(conn, value, now),
        }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
