//! Conversations with a session: any messages of its client and any news of its jobs, in any order
//! that a shell could bring them, with time in between.
//!
//! The shell here keeps what the disk and the scheduler would. Every utterance that became a job is
//! recorded once and in order, numbers go up by one on each connection, nothing that is due stays
//! due, and whoever closes is let go in the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde_json::Value;
use utterd::config;
use utterd::protocol::session::{NetworkTimings, Request, decode};
use utterd::protocol::{ErrorCode, JobId, SessionId};
use utterd::session::{Answer, Effect, Effects, GoAway, Input, News, Profile, Refusal, Session};
use utterd::telemetry::Now;

use super::script::Script;

const ID: SessionId = SessionId(7);
const EXTENSIONS: [&str; 4] = [
    r#""resume","accepted","audio_ack","typed_errors","go_away""#,
    r#""resume""#,
    r#""audio_ack""#,
    "",
];

struct World {
    real: Session,
    now: Now,
    resumes: bool,
    /// The server runs on a store.
    stores: bool,
    jobs: u128,
    /// Every utterance that became a job.
    known: BTreeMap<u64, JobId>,
    /// Those whose job has not ended.
    running: BTreeMap<u64, JobId>,
    /// Last words on their way to the disk.
    writes: VecDeque<(JobId, Option<Bytes>)>,
    recorded: BTreeSet<JobId>,
    /// What is on disk for the client, and how many there were.
    disk: BTreeMap<u64, (JobId, Bytes)>,
    next_seq: u64,
    reads: VecDeque<(u64, usize)>,
    pings: Vec<u64>,
    /// The last number given to this connection.
    given: u64,
    chunk: u64,
    ended: bool,
}

pub fn run(input: &[u8]) {
    fastrand::seed(7);
    let mut script = Script::new(input);
    let mut world = World::new(&mut script);
    while !script.is_over() && !world.ended {
        world.step(&mut script);
    }
    world.finish();
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let (extensions, format) = (script.pick(EXTENSIONS.len()), script.of(&["opus", "pcm16"]));
        let init = format!(
            r#"{{"type":"session_init","client_version":"1","platform":"t","src_lang":"zh",
            "tgt_lang":"en","audio_format":"{format}","extensions":[{}]}}"#,
            EXTENSIONS[extensions]
        );
        let Ok(Request::Init(init)) = decode(&Bytes::from(init)) else { panic!("a good init") };
        let profile = Profile::new(*init, "trace".into()).expect("a good profile");
        let stores = !script.seldom(4);
        let profile = if stores { profile } else { profile.without_store() };
        let resumes = profile.resume;
        let session = config::Session {
            jobs_max: 4,
            owed_frames_max: 6,
            resume_window_ms: 30_000,
            close_wait_ms: 5_000,
            ..config::Session::default()
        };
        let segmenter = config::Segmenter { max_bytes: 2_000, ..config::Segmenter::default() };
        Self {
            real: Session::new(ID, profile, 1, !stores, (session, segmenter)),
            now: Now { us: 1_000, unix_ms: 1 },
            resumes,
            stores,
            jobs: 0,
            known: BTreeMap::new(),
            running: BTreeMap::new(),
            writes: VecDeque::new(),
            recorded: BTreeSet::new(),
            disk: BTreeMap::new(),
            next_seq: 1,
            reads: VecDeque::new(),
            pings: Vec::new(),
            given: 0,
            chunk: 0,
            ended: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.pick(12) {
            0..=2 => self.speak(script),
            3 => self.say(script),
            4 | 5 => self.news(script),
            6 => self.write(),
            7 => self.read(script),
            8 => self.pong(script),
            9 => self.come_and_go(script),
            10 => self.tick(script),
            _ => self.pass(u64::from(script.any::<u16>()) / 4),
        }
    }

    fn input(&mut self, input: Input, refuse: bool) {
        let mut effects = Effects::new();
        self.real.apply(input, self.now, &mut effects);
        self.perform(effects, refuse);
    }

    fn request(&mut self, text: String, refuse: bool) {
        if let Ok(request) = decode(&Bytes::from(text)) {
            self.input(Input::Request(request), refuse);
        }
    }

    fn speak(&mut self, script: &mut Script<'_>) {
        if !self.real.is_attached() {
            return;
        }
        self.chunk = match script.pick(6) {
            0 => script.any::<u8>().into(),
            _ => self.chunk + 1,
        };
        let audio = match script.pick(5) {
            0 => "",
            1 => "FAABAgMEBQYHCAkKCwwNDg8QERITAA==",
            2 => "AwABAgMDAAECAw==",
            3 => "AQJ6",
            _ => "FAABAgMEBQYHCAkKCwwNDg8QERITFAABAgMEBQYHCAkKCwwNDg8QERITAAAA",
        };
        let (seq, is_final) = (self.chunk, script.seldom(3));
        let text = format!(
            r#"{{"type":"audio_chunk","session_id":"{ID}","seq":{seq},"is_final":{is_final},
            "payload":"{audio}"}}"#
        );
        self.request(text, script.seldom(6));
    }

    fn say(&mut self, script: &mut Script<'_>) {
        if !self.real.is_attached() {
            return;
        }
        let number = script.any::<u8>();
        let id = if script.seldom(16) { SessionId(8) } else { ID };
        let text = match script.pick(7) {
            0 | 1 => format!(
                r#"{{"type":"utterance","session_id":"{id}","utterance_index":{},
                "manual_cut":true,"src_lang":"zh","tgt_lang":"en","audio_format":"pcm16",
                "sample_rate":16000,"audio":"AAAA"}}"#,
                number % 8
            ),
            2 => format!(r#"{{"type":"ack","session_id":"{id}","seq":{}}}"#, number % 16),
            3 => format!(r#"{{"type":"tts_started","session_id":"{id}"}}"#),
            4 => format!(r#"{{"type":"tts_play_ended","session_id":"{id}"}}"#),
            5 if number > 200 => format!(r#"{{"type":"session_close","session_id":"{id}"}}"#),
            _ => format!(r#"{{"type":"client_heartbeat","session_id":"{id}"}}"#),
        };
        self.request(text, script.seldom(6));
    }

    fn news(&mut self, script: &mut Script<'_>) {
        let running: Vec<(u64, JobId)> = self.running.iter().map(|(i, j)| (*i, *j)).collect();
        if running.is_empty() {
            return;
        }
        let (index, job) = running[script.pick(running.len())];
        let news = match script.pick(7) {
            0 => News::Dispatched(index, job),
            1 => News::Accepted(index, job),
            2 => News::Partial { index, job, text: "a".into(), is_final: false },
            3 if self.stores => News::Kept(index, job),
            _ => return self.settle(index, job, script.pick(3)),
        };
        self.input(Input::News(news), false);
    }

    fn settle(&mut self, index: u64, job: JobId, how: usize) {
        self.running.remove(&index);
        let answer = match how {
            0 => Answer::Nothing("no_speech"),
            1 => Answer::Failed {
                code: "JOB_TIMEOUT".into(),
                known: Some(ErrorCode::JobTimeout),
                message: "late".into(),
                reason: "failed",
            },
            _ => Answer::Result(result(job)),
        };
        let network = NetworkTimings::default();
        let others = None;
        let elapsed_ms = 5;
        let news = News::Settled { index, job, answer, elapsed_ms, network, others };
        self.input(Input::News(news), false);
    }

    /// The disk has the next last word.
    fn write(&mut self) {
        let Some((job, frame)) = self.writes.pop_front() else { return };
        let seq = frame.filter(|_| self.stores).map(|frame| {
            self.disk.insert(self.next_seq, (job, frame));
            self.next_seq += 1;
            self.next_seq - 1
        });
        self.input(Input::News(News::Durable { job, seq }), false);
    }

    fn read(&mut self, script: &mut Script<'_>) {
        let Some((after, limit)) = self.reads.pop_front() else { return };
        let rows = self.disk.range(after + 1..).take(limit.min(1 + script.pick(4)));
        let frames = rows.map(|(seq, (job, frame))| (*seq, *job, frame.clone())).collect();
        self.input(Input::Replayed { after, frames }, false);
    }

    fn pong(&mut self, script: &mut Script<'_>) {
        let number = match script.pick(4) {
            0 => script.any::<u8>().into(),
            _ if self.pings.is_empty() => return,
            _ => self.pings.swap_remove(script.pick(self.pings.len())),
        };
        self.input(Input::Ponged(number), false);
    }

    fn come_and_go(&mut self, script: &mut Script<'_>) {
        match script.pick(8) {
            0 if self.real.is_attached() => {
                self.pings.clear();
                self.input(Input::Lost, false);
            }
            1 if script.seldom(8) => self.input(Input::Over, false),
            2 if script.seldom(8) => {
                let notice = GoAway { reconnect_after_ms: 500, deadline_ms: 5_000 };
                self.input(Input::Drain(Some(notice)), false);
            }
            _ if self.resumes => {
                self.pings.clear();
                let last = u64::from(script.any::<u8>()) % (self.next_seq + 1);
                let mut effects = Effects::new();
                let taken = self.real.attach(last, self.now, &mut effects);
                assert_eq!(taken, last < self.next_seq, "a client that has {last}");
                if taken {
                    // Those that are gone cannot be told.
                    let first = self.disk.keys().next().copied().unwrap_or(self.next_seq);
                    self.given = last.max(first - 1);
                }
                self.perform(effects, false);
            }
            _ => {}
        }
    }

    /// To the very moment at which something is due: nothing may be due after that.
    fn tick(&mut self, script: &mut Script<'_>) {
        let Some(at) = self.real.next_tick() else { return };
        if at == u64::MAX || at > self.now.us + 3_600_000_000 {
            return;
        }
        self.now.us = self.now.us.max(at);
        self.input(Input::Tick, script.seldom(6));
        let due = self.real.next_tick();
        let late = due.is_some_and(|due| due <= self.now.us);
        assert!(!late || self.ended, "{due:?} is due for ever at {}", self.now.us);
    }

    fn pass(&mut self, ms: u64) {
        self.now.us += ms * 1_000;
        self.now.unix_ms += ms;
        self.input(Input::Tick, false);
    }

    fn perform(&mut self, mut effects: Effects, refuse: bool) {
        let mut cancelled = Vec::new();
        loop {
            for effect in std::mem::take(&mut effects) {
                self.perform_one(effect, refuse, &mut cancelled, &mut effects);
            }
            // Also after an input that had no effect.
            if effects.is_empty() && !self.ended {
                self.real.end_if_done(&mut effects);
            }
            if effects.is_empty() {
                break;
            }
        }
        for (index, job) in cancelled {
            if self.running.contains_key(&index) && !self.ended {
                self.settle(index, job, 1);
            }
        }
    }

    fn perform_one(
        &mut self,
        effect: Effect,
        refuse: bool,
        cancelled: &mut Vec<(u64, JobId)>,
        more: &mut Effects,
    ) {
        match effect {
            Effect::Submit(cutting) => {
                assert!(!self.ended, "said after the end");
                let index = cutting.spec.utterance_index;
                assert!(cutting.audio.held_len() > 0, "an utterance of nothing");
                if let Some(job) = self.known.get(&index) {
                    assert!(cutting.chunks.is_none(), "a place in the stream was given twice");
                    return self.real.repeated(index, *job, more);
                }
                if refuse {
                    return self.refuse(index, more);
                }
                self.jobs += 1;
                let job = JobId(self.jobs);
                self.known.insert(index, job);
                self.running.insert(index, job);
                self.real.submitted(index, job);
            }
            Effect::Record { index, job, frame, .. } => {
                assert_eq!(self.known.get(&index), Some(&job), "recorded, and never a job");
                assert!(self.recorded.insert(job), "{job} is recorded twice");
                frame.iter().for_each(|frame| drop(json(frame)));
                self.writes.push_back((job, frame));
            }
            Effect::Refuse(refused) => {
                drop(json(&refused.frame));
                self.writes.push_back((refused.job, Some(refused.frame)));
            }
            Effect::Deliver { frame, seq, .. } => {
                drop(json(&frame));
                assert_eq!(seq, self.given + 1, "numbers go up by one");
                self.given = seq;
            }
            Effect::Send(frame, _) | Effect::Remark(frame) | Effect::Progress(_, frame) => {
                drop(json(&frame));
            }
            Effect::Farewell(frame, _) => drop(json(&frame)),
            Effect::Prove(frame, number) => {
                drop(json(&frame));
                self.pings.push(number);
            }
            Effect::Barrier(number) => self.pings.push(number),
            Effect::Replay { after, frames } => self.reads.push_back((after, frames)),
            Effect::Acknowledged(through) | Effect::Forfeit(through) => {
                self.disk.retain(|seq, _| *seq > through);
                self.given = self.given.max(through);
            }
            Effect::Cancel(jobs) => {
                let of = self.running.iter().filter(|(_, job)| jobs.contains(job));
                cancelled.extend(of.map(|(index, job)| (*index, *job)));
            }
            Effect::Ended => {
                assert!(!self.ended, "it ends twice");
                self.ended = true;
            }
            _ => {}
        }
    }

    fn refuse(&mut self, index: u64, more: &mut Effects) {
        let why = "full".to_owned();
        let code = ErrorCode::Overloaded;
        let refusal = Refusal { code, why, retry_after_ms: 1_000, stored: self.stores };
        self.real.refused(index, refusal, self.now, more);
    }

    /// Everything ends: the jobs, the writes, the session.
    fn finish(&mut self) {
        for (index, job) in self.running.clone() {
            if !self.ended {
                self.settle(index, job, 2);
            }
        }
        if !self.ended {
            self.request(format!(r#"{{"type":"session_close","session_id":"{ID}"}}"#), false);
        }
        for _ in 0..200 {
            if self.ended {
                return;
            }
            for (index, job) in self.running.clone() {
                self.settle(index, job, 2);
            }
            while !self.writes.is_empty() && !self.ended {
                self.write();
            }
            while let Some((after, limit)) = self.reads.pop_front() {
                let rows = self.disk.range(after + 1..).take(limit);
                let frames = rows.map(|(seq, (job, frame))| (*seq, *job, frame.clone())).collect();
                self.input(Input::Replayed { after, frames }, false);
            }
            if !self.ended {
                self.pass(1_000);
            }
        }
        let left = (self.real.open_jobs(), self.real.undurable(), self.real.owed());
        panic!("a session that was closed does not end: {left:?}");
    }
}

fn json(frame: &Bytes) -> Value {
    let value: Value = serde_json::from_slice(frame).expect("what is said is JSON");
    assert!(value["type"].is_string(), "a message without a type");
    value
}

fn result(job: JobId) -> Box<utterd::protocol::node::JobResult> {
    let text = format!(
        r#"{{"type":"job_result","job_id":"{job}","success":true,"text_asr":"a",
        "text_translated":"b","tts_audio":"AAAA"}}"#
    );
    match utterd::protocol::node::decode(&Bytes::from(text)) {
        Ok(utterd::protocol::node::Message::JobResult(result)) => result,
        other => panic!("{other:?}"),
    }
}
