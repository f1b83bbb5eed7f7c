//! What nodes were told.

use serde_json::Value;

use super::{Judge, text};
use crate::sim::actor::{from_base64, packets};
use crate::sim::net::ConnId;

/// How long the jobs of a turn may seem to be at two nodes while they move, in microseconds.
const TORN_US: u64 = 4_000_000;

/// The node of a connection.
#[derive(Debug, Clone)]
pub(super) struct NodeLink {
    pub(super) name: String,
    run: u64,
    hello: bool,
}

/// An attempt that left the server.
#[derive(Debug, Clone)]
pub(super) struct Assigned {
    pub(super) attempt: u64,
    node: String,
    run: u64,
    life: u64,
    pub(super) session: String,
    pub(super) index: u64,
    turn: String,
    pub(super) crc: u32,
    pub(super) packets: Vec<(usize, u64)>,
    /// It was answered, cancelled, or its node was lost.
    over: bool,
    /// Its node said that it cannot do it: that need not be kept.
    declined: bool,
}

impl Judge {
    /// A node says who it is.
    pub(in crate::sim) fn node_registers(
        &mut self,
        conn: ConnId,
        name: &str,
        run: u64,
        hello: bool,
    ) {
        self.links.insert(conn, NodeLink { name: name.to_owned(), run, hello });
        // What it had before is moved, or asked for again.
        for attempts in self.jobs.values_mut() {
            if let Some(last) = attempts.last_mut().filter(|a| a.node == name) {
                last.over = true;
            }
        }
    }

    /// A job that another node has, for a lie.
    pub(in crate::sim) fn job_of_another_node(&self, name: &str) -> Option<(String, u64)> {
        let of_another = |(job, attempts): (&String, &Vec<Assigned>)| {
            let last = attempts.last().filter(|a| a.node != name && !a.over)?;
            Some((job.clone(), last.attempt))
        };
        self.jobs.iter().find_map(of_another)
    }

    pub(super) fn said_to_node(&mut self, conn: ConnId, value: &Value, now: u64) {
        match text(value, "type") {
            "job_assign" => self.said_assign(conn, value, now),
            "job_cancel" => {
                let attempts = self.jobs.get_mut(text(value, "job_id"));
                if let Some(last) = attempts.and_then(|a| a.last_mut()) {
                    last.over = true;
                }
            }
            "result_ack" if matches!(text(value, "status"), "committed" | "duplicate") => {
                let (job, attempt) = (text(value, "job_id"), value["attempt_id"].as_u64());
                let attempts = self.jobs.get(job).map(Vec::as_slice).unwrap_or_default();
                if !attempts.iter().any(|a| Some(a.attempt) == attempt && a.declined) {
                    self.acked.insert(job.to_owned());
                }
            }
            _ => {}
        }
    }

    fn said_assign(&mut self, conn: ConnId, value: &Value, now: u64) {
        let Some(link) = self.links.get(&conn).cloned() else {
            return self.convict("I13: a node that never said who it is was given a job".into());
        };
        let job = text(value, "job_id").to_owned();
        let audio = from_base64(text(value, "audio"));
        let new = Assigned {
            attempt: value["attempt_id"].as_u64().unwrap_or(0),
            node: link.name.clone(),
            run: link.run,
            life: self.life,
            session: text(value, "session_id").to_owned(),
            index: value["utterance_index"].as_u64().unwrap_or(0),
            turn: text(value, "turn_id").to_owned(),
            crc: crc32c::crc32c(&audio),
            packets: packets(&audio).unwrap_or_default(),
            over: false,
            declined: false,
        };
        if let Some(sentence) = self.against(&job, &new, &audio) {
            return self.convict(sentence);
        }
        if let Some(ledger) = self.sessions.get_mut(&new.session) {
            ledger.first_life.entry(new.index).or_insert(self.life);
        }
        self.suspect_torn(&job, &new, now);
        let attempts = self.jobs.entry(job).or_default();
        let at = attempts.partition_point(|a| a.attempt < new.attempt);
        attempts.insert(at, new);
    }

    /// What is wrong with an assignment.
    fn against(&self, job: &str, new: &Assigned, audio: &[u8]) -> Option<String> {
        let (session, index) = (&new.session, new.index);
        let before = self.jobs.get(job).map(Vec::as_slice).unwrap_or_default();
        // An older attempt may leave later, at another node's link that is slower.
        let known = |a: &&Assigned| {
            a.attempt == new.attempt || a.attempt > new.attempt && a.node == new.node
        };
        if let Some(a) = before.iter().find(known) {
            let (a, b) = (a.attempt, new.attempt);
            return Some(format!("I10: attempt {b} of {job} came after attempt {a}"));
        }
        if before.last().is_some_and(|a| a.crc != new.crc || a.index != new.index) {
            return Some(format!("I21: {job} changed between two attempts"));
        }
        let again = |a: &&Assigned| a.node == new.node && a.run == new.run && a.life == new.life;
        if before.iter().any(|a| again(&a))
            && !self.links.values().any(|l| l.name == new.node && l.hello)
        {
            return Some(format!("I11: {job} went twice to {}", new.node));
        }
        let ledger = self.sessions.get(session)?;
        if let Some(crcs) = ledger.spoken.get(&index) {
            if !crcs.contains(&new.crc) {
                return Some(format!("I21: {job} has not the audio of #{index} of {session}"));
            }
        } else {
            let Some(found) = packets(audio) else {
                return Some(format!("I21: {job} has audio that nobody sent"));
            };
            if found.iter().any(|(client, _)| *client != ledger.client) {
                return Some(format!("I14: {job} has audio of another client"));
            }
            if found.windows(2).any(|w| w[0].1 >= w[1].1) {
                return Some(format!("I21: the audio of {job} is out of order"));
            }
        }
        let accepted = ledger.accepted.get(&index);
        accepted.filter(|accepted| *accepted != job).map(|accepted| {
            format!("I8: #{index} of {session} is {accepted}, and {job} was made of it")
        })
    }

    /// Other jobs of the turn that seem to be at another node must soon be elsewhere.
    fn suspect_torn(&mut self, job: &str, new: &Assigned, now: u64) {
        let apart = self.jobs.iter().filter(|(other, attempts)| {
            let last = attempts.last();
            *other != job
                && last.is_some_and(|a| {
                    a.turn == new.turn && a.node != new.node && !a.over && a.life == new.life
                })
        });
        let apart: Vec<String> = apart.map(|(other, _)| other.clone()).collect();
        for other in apart {
            self.torn.push((now + TORN_US, other, job.to_owned()));
        }
    }

    pub(super) fn look_at_torn(&mut self, now: u64) {
        while self.torn.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, one, other) = self.torn.remove(0);
            if let (Some(a), Some(b)) = (self.still_at(&one), self.still_at(&other))
                && a != b
            {
                let sentence = format!("I11: {one} is at {a}, and {other} of its turn at {b}");
                return self.convict(sentence);
            }
        }
    }

    /// The node that has the job, if it was not heard of since.
    fn still_at(&self, job: &str) -> Option<&str> {
        let last = self.jobs.get(job)?.last()?;
        let ledger = self.sessions.get(&last.session);
        let told = ledger
            .is_some_and(|l| l.last.contains_key(&last.index) || l.lost || l.closed || l.closing);
        (!last.over && last.life == self.life && !told).then_some(&last.node)
    }

    /// A node answers an attempt, or declines it.
    pub(in crate::sim) fn node_answers(&mut self, job: &str, attempt: u64, declined: bool) {
        let attempts = self.jobs.get_mut(job).into_iter().flatten();
        for a in attempts.filter(|a| a.attempt == attempt) {
            (a.over, a.declined) = (true, declined);
        }
    }

    /// A node answers an attempt, and with it what it kept of these utterances before.
    pub(in crate::sim) fn node_answers_merged(&mut self, job: &str, attempt: u64, merged: &[u64]) {
        self.node_answers(job, attempt, false);
        let attempts = self.jobs.get(job).into_iter().flatten();
        let Some(of) = attempts.rev().find(|a| a.attempt == attempt).cloned() else { return };
        let kept = |a: &&mut Assigned| {
            a.session == of.session && a.node == of.node && merged.contains(&a.index)
        };
        self.jobs.values_mut().flatten().filter(kept).for_each(|a| a.over = true);
    }
}
