//! A node: takes assignments and answers them; or dies, stalls, lies, answers twice or too late.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};

use super::audio::from_base64;
use crate::sim::env::{Env, Event, NodeWake};
use crate::sim::net::{ConnId, Msg};

/// How often a node tells its load, in microseconds.
const BEAT_US: u64 = 700_000;

/// An assignment that is worked on.
#[derive(Debug, Clone)]
struct Work {
    job: String,
    attempt: u64,
    session: String,
    index: u64,
    crc: u32,
    turn: String,
    closes_turn: bool,
    trace: String,
}

/// One node.
#[derive(Debug)]
pub(in crate::sim) struct NodeActor {
    id: usize,
    name: String,
    /// Counts the starts of its program; what was to happen in an earlier one does not.
    run: u64,
    conn: Option<ConnId>,
    /// It can say what it has.
    hello: bool,
    slots: u32,
    work: BTreeMap<u64, Work>,
    next: u64,
    seen: BTreeSet<String>,
    /// Slices of turns that it keeps to itself, by turn.
    kept: BTreeMap<String, Vec<u64>>,
    /// Results it was never told were taken.
    unacked: BTreeMap<(String, u64), Bytes>,
}

impl NodeActor {
    pub(in crate::sim) fn new(id: usize, env: &mut Env) -> Self {
        let hello = env.rng.u32(..100) < env.rates.new_nodes_pct;
        env.counts.reached(if hello { "node_new" } else { "node_old" });
        Self {
            id,
            name: format!("node-{id}"),
            run: 1,
            conn: None,
            hello,
            slots: env.rates.slots,
            work: BTreeMap::new(),
            next: 0,
            seen: BTreeSet::new(),
            kept: BTreeMap::new(),
            unacked: BTreeMap::new(),
        }
    }

    pub(in crate::sim) fn wake(&self, us: u64, wake: NodeWake, env: &mut Env) {
        env.after(us, Event::Node(self.id, self.run, wake));
    }

    /// Whether the node wants a connection now.
    pub(in crate::sim) fn wants_connection(&self, run: u64) -> bool {
        run == self.run && self.conn.is_none()
    }

    /// The server is not there.
    pub(in crate::sim) fn refused(&self, env: &mut Env) {
        let us = env.between(100_000, 700_000);
        self.wake(us, NodeWake::Connect, env);
    }

    pub(in crate::sim) fn connected(&mut self, conn: ConnId, env: &mut Env) {
        self.conn = Some(conn);
        let mut message = self.report("node_register");
        if self.hello {
            let attempt = |job: &str, attempt: u64| json!({"job_id": job, "attempt_id": attempt});
            message["extensions"] = json!(["result_ack"]);
            message["boot_id"] = json!(format!("{}-{}", self.name, self.run));
            let work = self.work.values().map(|w| attempt(&w.job, w.attempt));
            message["inflight"] = Value::Array(work.collect());
            let unacked = self.unacked.keys().map(|(job, a)| attempt(job, *a));
            message["unacked"] = Value::Array(unacked.collect());
        }
        env.judge.node_registers(conn, &self.name, self.run, self.hello);
        self.send(&message, env);
        self.wake(BEAT_US, NodeWake::Beat, env);
    }

    fn report(&self, kind: &str) -> Value {
        let ready = |t: &str| json!({"type": t, "ready": true, "devices": ["gpu"]});
        json!({"type": kind, "node_id": self.name, "version": "1", "platform": "sim",
            "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
            "accept_public_jobs": true, "max_concurrent_jobs": self.slots,
            "language_capabilities": {"asr_languages": ["zh", "en"],
                "tts_languages": ["zh", "en"], "semantic_languages": ["zh", "en"]},
            "resource_usage": {"cpu_percent": 5.0, "mem_percent": 10.0}})
    }

    fn send(&mut self, message: &Value, env: &mut Env) {
        self.send_frame(Bytes::from(message.to_string()), env);
    }

    fn send_frame(&mut self, frame: Bytes, env: &mut Env) {
        if let Some(conn) = self.conn {
            env.note("up", conn, &frame);
            env.send_up(conn, Msg::Text(frame, None));
        }
    }

    pub(in crate::sim) fn closed(&mut self, conn: ConnId, env: &mut Env) {
        env.peer_end(conn);
        if self.conn == Some(conn) {
            self.conn = None;
            // The real agent comes back 5 s later; another program may be quicker.
            let us = env.skewed(5_000, 5_000_000);
            self.wake(us, NodeWake::Connect, env);
        }
    }

    /// Its program dies, and is started again some time later, knowing nothing.
    fn die(&mut self, env: &mut Env) {
        env.counts.reached("node_died");
        env.note("node dies", self.id as u64, b"");
        if let Some(conn) = self.conn.take() {
            env.break_conn(conn);
            env.peer_end(conn);
        }
        self.run += 1;
        self.work.clear();
        self.kept.clear();
        self.unacked.clear();
        self.seen.clear();
        let us = env.skewed(20_000, 6_000_000);
        self.wake(us, NodeWake::Connect, env);
    }

    pub(in crate::sim) fn act(&mut self, run: u64, wake: NodeWake, env: &mut Env) {
        if run != self.run {
            return;
        }
        match wake {
            NodeWake::Connect => {}
            NodeWake::Beat if self.conn.is_some() => {
                let message = self.report("node_heartbeat");
                if let Some(conn) = self.conn {
                    env.send_up(conn, Msg::Text(Bytes::from(message.to_string()), None));
                }
                self.wake(BEAT_US, NodeWake::Beat, env);
            }
            NodeWake::Beat => {}
            NodeWake::Done(ticket) => self.done(ticket, env),
            NodeWake::Die => self.die(env),
        }
    }

    pub(in crate::sim) fn got(&mut self, conn: ConnId, msg: &Msg, env: &mut Env) {
        if let Msg::Close = msg {
            return self.closed(conn, env);
        }
        let Msg::Text(_, Some(value)) = msg else { return };
        if self.conn != Some(conn) {
            return;
        }
        match value["type"].as_str().unwrap_or_default() {
            "job_assign" => self.assigned(value, env),
            "job_cancel" => {
                let job = value["job_id"].as_str().unwrap_or_default();
                self.work.retain(|_, w| w.job != job);
            }
            "result_ack" => {
                let job = value["job_id"].as_str().unwrap_or_default().to_owned();
                let attempt = value["attempt_id"].as_u64().unwrap_or(0);
                self.unacked.remove(&(job, attempt));
            }
            "node_register_ack" => self.instructed(value, env),
            _ => {}
        }
    }

    /// What the server says of what the node has.
    fn instructed(&mut self, value: &Value, env: &mut Env) {
        let mut held = BTreeSet::new();
        for jobs in value["jobs"].as_array().into_iter().flatten() {
            let job = jobs["job_id"].as_str().unwrap_or_default().to_owned();
            let attempt = jobs["attempt_id"].as_u64().unwrap_or(0);
            match jobs["action"].as_str().unwrap_or_default() {
                "cancel" => {
                    env.counts.reached("hello_cancel");
                    self.work.retain(|_, w| w.job != job || w.attempt != attempt);
                    self.unacked.remove(&(job, attempt));
                }
                "keep" => {
                    env.counts.reached("hello_keep");
                    held.insert((job, attempt));
                }
                _ => env.counts.reached("hello_send"),
            }
        }
        let again = self.unacked.iter().filter(|(key, _)| !held.contains(*key));
        for frame in again.map(|(_, frame)| frame.clone()).collect::<Vec<_>>() {
            env.counts.reached("result_sent_again");
            self.send_frame(frame, env);
        }
    }

    fn assigned(&mut self, value: &Value, env: &mut Env) {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let audio = from_base64(value["audio"].as_str().unwrap_or_default());
        let work = Work {
            job: text("job_id"),
            attempt: value["attempt_id"].as_u64().unwrap_or(0),
            session: text("session_id"),
            index: value["utterance_index"].as_u64().unwrap_or(0),
            crc: crc32c::crc32c(&audio),
            turn: text("turn_id"),
            closes_turn: value["is_max_duration_triggered"] != true,
            trace: text("trace_id"),
        };
        if !self.seen.insert(work.job.clone()) {
            env.counts.reached("node_refused_duplicate");
            return self.fail(&work, "INTERNAL_ERROR", "DUPLICATE_JOB_ID", env);
        }
        if env.fault(env.rates.node_death_pm) {
            let us = env.skewed(1_000, 2_000_000);
            self.wake(us, NodeWake::Die, env);
        }
        if env.fault(env.rates.node_lie_pm) {
            self.lie(&work, env);
        }
        if env.chance(300) {
            let kind = if env.chance(500) { "job_ack" } else { "job_started" };
            let mark = json!({"type": kind, "job_id": work.job, "attempt_id": work.attempt});
            self.send(&mark, env);
        }
        if env.fault(env.rates.node_stall_pm) {
            env.counts.reached("node_stalled");
            return;
        }
        let late = env.fault(env.rates.node_late_pm);
        let us = match late {
            true => env.between(3_000_000, 9_000_000),
            false => env.skewed(1_000, env.rates.work_us),
        };
        self.next += 1;
        self.work.insert(self.next, work);
        self.wake(us, NodeWake::Done(self.next), env);
    }

    fn done(&mut self, ticket: u64, env: &mut Env) {
        let Some(work) = self.work.get(&ticket).cloned() else { return };
        if env.chance(100) {
            let partial = json!({"type": "asr_partial", "job_id": work.job, "text": "so far",
                "is_final": false});
            self.send(&partial, env);
        }
        if !work.closes_turn && env.chance(500) {
            // It keeps the slice to itself until the turn ends.
            env.counts.reached("slice_kept_silently");
            self.work.remove(&ticket);
            return self.kept.entry(work.turn).or_default().push(work.index);
        }
        self.work.remove(&ticket);
        if env.fault(env.rates.node_refusal_pm) {
            let codes = ["NODE_OVERLOADED", "MODEL_NOT_AVAILABLE", "PROCESSING_ERROR", "ODD"];
            let code = codes[env.rng.usize(..codes.len())];
            return self.fail(&work, code, "as it happens", env);
        }
        let merged = self.kept.remove(&work.turn).unwrap_or_default();
        let empty = env.chance(40);
        let frame = self.result(&work, &merged, empty);
        env.judge.node_answers_merged(&work.job, work.attempt, &merged);
        if self.hello {
            self.unacked.insert((work.job.clone(), work.attempt), frame.clone());
        }
        self.send_frame(frame.clone(), env);
        if env.fault(env.rates.node_twice_pm) {
            env.counts.reached("result_twice");
            self.send_frame(frame, env);
        }
    }

    /// What a node answers names the session, the utterance, and the audio it had.
    fn result(&self, work: &Work, merged: &[u64], empty: bool) -> Bytes {
        let text = format!("{}#{}#{:08x}", work.session, work.index, work.crc);
        let text = if empty { String::new() } else { text };
        let sound = if empty { "" } else { "QUJD" };
        let message = json!({"type": "job_result", "job_id": work.job,
            "attempt_id": work.attempt, "node_id": self.name, "session_id": work.session,
            "utterance_index": work.index, "success": true, "text_asr": text,
            "text_translated": text, "tts_audio": sound, "tts_format": "pcm16",
            "extra": {}, "merged": merged, "processing_time_ms": 5, "trace_id": work.trace});
        Bytes::from(message.to_string())
    }

    fn fail(&mut self, work: &Work, code: &str, message: &str, env: &mut Env) {
        let declined = !matches!(code, "PROCESSING_ERROR" | "ODD");
        env.judge.node_answers(&work.job, work.attempt, declined);
        let message = json!({"type": "job_result", "job_id": work.job,
            "attempt_id": work.attempt, "node_id": self.name, "session_id": work.session,
            "utterance_index": work.index, "success": false, "processing_time_ms": 5,
            "error": {"code": code, "message": message, "details": {}}, "trace_id": work.trace});
        self.send(&message, env);
    }

    /// Says what is not so. None of it may reach a client.
    fn lie(&mut self, work: &Work, env: &mut Env) {
        let mut lie = work.clone();
        match env.rng.u32(..3) {
            0 => {
                env.counts.reached("lie_attempt");
                lie.attempt = match env.chance(500) {
                    true => work.attempt.wrapping_sub(1),
                    false => work.attempt + 1,
                };
            }
            1 => {
                env.counts.reached("lie_unknown");
                lie.job = format!("job-00000000-0000-4000-8000-{:012x}", env.rng.u32(..));
            }
            _ => {
                let Some((job, attempt)) = env.judge.job_of_another_node(&self.name) else {
                    return;
                };
                env.counts.reached("lie_foreign");
                (lie.job, lie.attempt) = (job, attempt);
            }
        }
        let mut message: Value =
            serde_json::from_slice(&self.result(&lie, &[], false)).unwrap_or_default();
        message["text_asr"] = json!("LIE");
        message["text_translated"] = json!("LIE");
        self.send(&message, env);
    }

    /// Faults are over: it is there and able.
    pub(in crate::sim) fn recover(&mut self, env: &mut Env) {
        if self.conn.is_none() {
            let us = env.between(1_000, 400_000);
            self.wake(us, NodeWake::Connect, env);
        }
    }
}
