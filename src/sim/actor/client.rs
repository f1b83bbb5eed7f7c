//! A client: speaks, listens, confirms, loses its connection and comes back.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::{Value, json};

use super::audio;
use crate::sim::env::{Env, Event};
use crate::sim::net::{ConnId, Msg};

/// Without a word from the server for so long, a client takes the connection for dead.
const PATIENCE_US: u64 = 5_000_000;
/// A client that knows nothing else to do sends a sign of life this often.
const BEAT_US: u64 = 1_500_000;
/// Packets in a chunk.
const PACKETS: u64 = 4;

/// What a client is like.
#[derive(Debug, Clone, Copy)]
struct Kind {
    resume: bool,
    accepted: bool,
    audio_ack: bool,
    typed_errors: bool,
    pongs: bool,
    streams: bool,
    keys: bool,
    /// Results it takes before it confirms them.
    ack_lag: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection.
    Away,
    /// It said who it is and awaits the answer.
    Asked,
    Talking,
    /// It ends its session.
    Closing,
    /// It has nothing left to do.
    Done,
}

#[derive(Debug)]
struct Utterance {
    frame: Bytes,
    accepted: bool,
    done: bool,
}

/// What a client needs to come back.
#[derive(Debug, Clone)]
struct Ticket {
    session: String,
    epoch: u64,
    secret: Option<String>,
}

/// One client.
#[derive(Debug)]
pub(in crate::sim) struct Client {
    id: usize,
    kind: Kind,
    phase: Phase,
    conn: Option<ConnId>,
    ticket: Option<Ticket>,
    /// Number of the last result it has processed, and of the last it has confirmed.
    last_seq: u64,
    acked: u64,
    utterances: BTreeMap<u64, Utterance>,
    next_index: u64,
    serial: u64,
    /// Things it still has to say.
    left: u64,
    chunks: VecDeque<(u64, Bytes)>,
    next_chunk: u64,
    counter: u64,
    heard_us: u64,
    beat_us: u64,
    /// Wakes before this one mean nothing.
    wake: u64,
    farewell: bool,
}

impl Client {
    pub(in crate::sim) fn new(id: usize, env: &mut Env) -> Self {
        let pct = |env: &mut Env, n: u32| env.rng.u32(..100) < n;
        let resume = env.rng.u32(..100) < env.rates.resume_pct;
        let streams = pct(env, 35);
        let kind = Kind {
            resume,
            accepted: resume && pct(env, 70),
            audio_ack: resume && streams && pct(env, 75),
            typed_errors: pct(env, 50),
            pongs: pct(env, 70),
            streams,
            keys: resume && pct(env, 60),
            ack_lag: [1, 2, 5][env.rng.usize(..3)],
        };
        env.counts.reached(match (kind.resume, kind.pongs) {
            (true, _) => "client_resume",
            (false, true) => "client_legacy",
            (false, false) => "client_mute",
        });
        let left = if streams { env.between(20, 90) } else { env.between(3, 12) };
        Self {
            id,
            kind,
            phase: Phase::Away,
            conn: None,
            ticket: None,
            last_seq: 0,
            acked: 0,
            utterances: BTreeMap::new(),
            next_index: 0,
            serial: 0,
            left,
            chunks: VecDeque::new(),
            next_chunk: 1,
            counter: 0,
            heard_us: 0,
            beat_us: 0,
            wake: 0,
            farewell: false,
        }
    }

    fn later(&mut self, us: u64, env: &mut Env) {
        self.wake += 1;
        env.after(us, Event::Client(self.id, self.wake));
    }

    /// For the judge.
    pub(in crate::sim) fn name(&self) -> String {
        let session = self.ticket.as_ref().map_or("no session", |t| t.session.as_str());
        format!("client {} with {session}, which is {:?},", self.id, self.phase)
    }

    pub(in crate::sim) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether the client wants a connection: then it is given one, if the server is there.
    pub(in crate::sim) fn wants_connection(&self, wake: u64) -> bool {
        wake == self.wake && self.phase == Phase::Away
    }

    /// The server is not there.
    pub(in crate::sim) fn refused(&mut self, env: &mut Env) {
        let us = env.between(50_000, 500_000);
        self.later(us, env);
    }

    /// It has a connection: it says who it is.
    pub(in crate::sim) fn connected(&mut self, conn: ConnId, env: &mut Env) {
        self.conn = Some(conn);
        self.heard_us = env.now;
        self.phase = Phase::Asked;
        match self.ticket.clone() {
            Some(ticket) if ticket.secret.is_some() => {
                if env.chance(60) {
                    env.counts.reached("wrong_secret");
                    let wrong = Ticket { secret: Some("0".repeat(64)), ..ticket.clone() };
                    self.ask_back(&wrong, env);
                }
                self.ask_back(&ticket, env);
            }
            _ => self.begin(env),
        }
        self.later(BEAT_US, env);
    }

    fn ask_back(&mut self, ticket: &Ticket, env: &mut Env) {
        let message = json!({"type": "session_resume", "session_id": ticket.session,
            "epoch": ticket.epoch, "resume_secret": ticket.secret, "last_seq": self.last_seq});
        if let Some(conn) = self.conn {
            let right = ticket.secret.as_deref() != Some("0".repeat(64).as_str());
            env.judge.client_resumes(conn, &ticket.session, self.last_seq, right);
        }
        self.acked = self.acked.max(self.last_seq);
        self.send(&message, env);
    }

    /// A new session. What was not accepted in the last one is said again in this one.
    fn begin(&mut self, env: &mut Env) {
        self.ticket = None;
        (self.last_seq, self.acked, self.next_index, self.next_chunk) = (0, 0, 0, 1);
        let before = std::mem::take(&mut self.utterances);
        self.left += before.values().filter(|u| !u.accepted && !u.done).count() as u64;
        self.chunks.clear();
        let offers = [
            ("resume", self.kind.resume),
            ("accepted", self.kind.accepted),
            ("audio_ack", self.kind.audio_ack),
            ("typed_errors", self.kind.typed_errors),
        ];
        let extensions: Vec<&str> = offers.iter().filter(|o| o.1).map(|o| o.0).collect();
        let (src, tgt) = if self.id % 3 == 2 { ("en", "zh") } else { ("zh", "en") };
        let mut message = json!({"type": "session_init", "client_version": "1", "platform": "sim",
            "src_lang": src, "tgt_lang": tgt, "tenant_id": format!("tenant-{}", self.id),
            "audio_format": "opus", "sample_rate": 16000});
        if !extensions.is_empty() {
            message["extensions"] = json!(extensions);
        }
        self.send(&message, env);
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

    /// The connection is over, as this end sees it.
    pub(in crate::sim) fn closed(&mut self, conn: ConnId, env: &mut Env) {
        env.peer_end(conn);
        if self.conn != Some(conn) {
            return;
        }
        self.conn = None;
        if self.phase == Phase::Done {
            return;
        }
        self.phase = Phase::Away;
        let us = env.skewed(1_000, 1_500_000);
        self.later(us, env);
    }

    fn hang_up(&mut self, politely: bool, env: &mut Env) {
        let Some(conn) = self.conn else { return };
        if politely {
            env.peer_closes(conn);
        } else {
            env.break_conn(conn);
        }
        self.closed(conn, env);
    }

    /// A moment to do something.
    pub(in crate::sim) fn act(&mut self, wake: u64, env: &mut Env) {
        if wake != self.wake || self.conn.is_none() {
            return;
        }
        if env.now - self.heard_us > PATIENCE_US {
            env.counts.reached("client_impatient");
            return self.hang_up(false, env);
        }
        if env.now >= self.beat_us {
            self.beat_us = env.now + BEAT_US;
            self.beat(env);
        }
        match self.phase {
            Phase::Talking => self.talk(env),
            Phase::Asked | Phase::Closing => self.later(BEAT_US, env),
            Phase::Away | Phase::Done => {}
        }
    }

    fn beat(&mut self, env: &mut Env) {
        if let Some(ticket) = self.ticket.clone().filter(|_| self.phase != Phase::Asked) {
            self.send(&json!({"type": "client_heartbeat", "session_id": ticket.session}), env);
        }
        self.confirm(true, env);
    }

    fn talk(&mut self, env: &mut Env) {
        if env.fault(env.rates.client_drop_pm) {
            let politely = env.chance(500);
            return self.hang_up(politely, env);
        }
        if env.fault(4) && self.kind.resume {
            // It comes again while the old connection is still open.
            self.conn = None;
            self.phase = Phase::Away;
            return self.later(1_000, env);
        }
        self.confirm(false, env);
        let undone = self.utterances.values().any(|u| !u.done) || !self.chunks.is_empty();
        let faults_over = !env.faulty;
        if self.left > 0 && !self.farewell && !(faults_over && env.rates.level > 0) {
            self.left -= 1;
            if self.kind.streams { self.stream(env) } else { self.speak(env) }
        } else if self.farewell && (!undone || env.chance(300)) {
            return self.close(env);
        }
        let pace = if self.kind.streams { 80_000 } else { env.rates.pace_us };
        let us = env.skewed(pace / 4, pace * 2);
        self.later(us, env);
    }

    fn close(&mut self, env: &mut Env) {
        let Some(ticket) = self.ticket.clone() else { return };
        self.confirm(true, env);
        self.phase = Phase::Closing;
        env.judge.client_closes(&ticket.session);
        self.send(&json!({"type": "session_close", "session_id": ticket.session}), env);
        self.later(BEAT_US, env);
    }

    fn speak(&mut self, env: &mut Env) {
        let Some(ticket) = self.ticket.clone() else { return };
        let index = self.next_index;
        self.next_index += 1;
        self.serial += 1;
        let audio = audio::recording(self.id, self.serial, 0);
        let key = self.kind.keys.then(|| format!("key-{index}"));
        let (src, tgt) = if self.id % 3 == 2 { ("en", "zh") } else { ("zh", "en") };
        let mut message = json!({"type": "utterance", "session_id": ticket.session,
            "utterance_index": index, "manual_cut": env.chance(500), "src_lang": src,
            "tgt_lang": tgt, "audio": audio::base64(&audio), "audio_format": "pcm16",
            "sample_rate": 16000});
        if let Some(key) = &key {
            message["idempotency_key"] = json!(key);
        }
        let frame = Bytes::from(message.to_string());
        env.judge.client_spoke(&ticket.session, index, crc32c::crc32c(&audio));
        self.send_frame(frame.clone(), env);
        self.utterances.insert(index, Utterance { frame, accepted: false, done: false });
        if env.chance(30) {
            self.say_again(index, env);
        }
        if key.is_some() && env.chance(40) {
            // The same name for something else.
            self.serial += 1;
            let other = audio::recording(self.id, self.serial, 1);
            message["audio"] = json!(audio::base64(&other));
            message["utterance_index"] = json!(index + 1);
            self.next_index += 1;
            env.judge.client_spoke(&ticket.session, index + 1, crc32c::crc32c(&other));
            self.send(&message, env);
        }
    }

    fn say_again(&mut self, index: u64, env: &mut Env) {
        let Some(session) = self.ticket.as_ref().map(|t| t.session.clone()) else { return };
        let Some(frame) = self.utterances.get(&index).map(|u| u.frame.clone()) else { return };
        env.counts.reached("said_again");
        env.judge.client_repeats(&session, index);
        self.send_frame(frame, env);
    }

    fn stream(&mut self, env: &mut Env) {
        let Some(ticket) = self.ticket.clone() else { return };
        let silent = env.chance(60);
        let is_final = env.chance(90);
        let mut payload = Vec::new();
        for _ in 0..PACKETS {
            payload.extend(audio::packet(self.id, self.counter, silent));
            self.counter += 1;
        }
        let seq = self.next_chunk;
        self.next_chunk += 1;
        env.judge.client_streamed(&ticket.session, seq, self.counter, silent);
        let message = json!({"type": "audio_chunk", "session_id": ticket.session, "seq": seq,
            "is_final": is_final, "payload": audio::base64(&payload)});
        let frame = Bytes::from(message.to_string());
        if self.kind.audio_ack {
            self.chunks.push_back((seq, frame.clone()));
        }
        self.send_frame(frame, env);
    }

    /// Confirms what it has processed, if enough has come together.
    fn confirm(&mut self, all: bool, env: &mut Env) {
        let lag = if all { 1 } else { self.kind.ack_lag };
        let Some(ticket) = self.ticket.clone().filter(|_| self.kind.resume) else { return };
        if self.last_seq >= self.acked + lag && self.phase != Phase::Asked {
            self.acked = self.last_seq;
            env.judge.client_acks(&ticket.session, self.acked);
            let ack = json!({"type": "ack", "session_id": ticket.session, "seq": self.acked});
            self.send(&ack, env);
        }
    }

    /// A message of the server.
    pub(in crate::sim) fn got(&mut self, conn: ConnId, msg: &Msg, env: &mut Env) {
        match msg {
            Msg::Close => return self.closed(conn, env),
            Msg::Ping(payload) if self.kind.pongs => {
                env.send_up(conn, Msg::Pong(payload.clone()));
            }
            _ => {}
        }
        if self.conn != Some(conn) {
            return;
        }
        self.heard_us = env.now;
        if let Msg::Text(_, Some(value)) = msg {
            self.heard(value, env);
        }
    }

    fn heard(&mut self, value: &Value, env: &mut Env) {
        match value["type"].as_str().unwrap_or_default() {
            "session_init_ack" => {
                self.ticket = Some(Ticket {
                    session: value["session_id"].as_str().unwrap_or_default().to_owned(),
                    epoch: value["epoch"].as_u64().unwrap_or(0),
                    secret: value["resume_secret"].as_str().map(str::to_owned),
                });
                self.talk_from_now(env);
            }
            "session_resume_ack" => self.came_back(value, env),
            "utterance_accepted" => {
                if let Some(u) = self.utterances.get_mut(&index_of(value)) {
                    u.accepted = true;
                }
            }
            "audio_ack" => {
                let through = value["through"].as_u64().unwrap_or(0);
                self.chunks.retain(|(seq, _)| *seq > through);
            }
            "translation_result" | "missing_result" => self.told(value),
            "session_close_ack" => self.phase = Phase::Done,
            "error" if value["code"] == "IDEMPOTENCY_CONFLICT" => env.counts.reached("conflict"),
            "error" if self.phase == Phase::Asked && value["code"] == "OVERLOADED" => {
                self.hang_up(true, env);
            }
            _ => {}
        }
    }

    fn talk_from_now(&mut self, env: &mut Env) {
        self.phase = Phase::Talking;
        self.beat_us = env.now + BEAT_US;
        self.later(1_000, env);
    }

    fn came_back(&mut self, value: &Value, env: &mut Env) {
        let Some(from) = value["from_seq"].as_u64() else {
            // Of two questions the first may have had the wrong secret.
            if env.judge.client_was_right(self.conn) {
                env.counts.reached("resume_false");
                self.begin(env);
            }
            return;
        };
        env.counts.reached(match value["recovered"] == true {
            true => "resume_true",
            false => "resume_gap",
        });
        self.last_seq = self.last_seq.max(from - 1);
        // What the server holds need not be sent, but is kept until it is safe.
        let held = value["chunks_through"].as_u64().unwrap_or(0);
        let missing = self.chunks.iter().filter(|(seq, _)| *seq > held);
        for frame in missing.map(|(_, frame)| frame.clone()).collect::<Vec<_>>() {
            self.send_frame(frame, env);
        }
        let again: Vec<u64> = self
            .utterances
            .iter()
            .filter(|(_, u)| !u.done && !u.accepted)
            .map(|(index, _)| *index)
            .collect();
        for index in again {
            self.say_again(index, env);
        }
        self.talk_from_now(env);
    }

    fn told(&mut self, value: &Value) {
        if let Some(seq) = value["seq"].as_u64() {
            if seq <= self.last_seq {
                return;
            }
            self.last_seq = seq;
        }
        if value["reason"] != "gap_timeout"
            && let Some(u) = self.utterances.get_mut(&index_of(value))
        {
            u.done = true;
        }
    }

    /// From here on it ends its session when it has heard everything.
    pub(in crate::sim) fn say_farewell(&mut self, env: &mut Env) {
        self.farewell = true;
        if self.conn.is_some() && self.phase == Phase::Talking {
            let us = env.between(1_000, 300_000);
            self.later(us, env);
        }
    }
}

fn index_of(value: &Value) -> u64 {
    value["utterance_index"].as_u64().unwrap_or(u64::MAX)
}
