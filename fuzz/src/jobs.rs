//! Jobs: the state machine beside its table, and conversations of the scheduler with sessions and
//! nodes in any order, its accounts checked after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use utterd::config;
use utterd::job::{
    Deadline, Effect, Effects, Event, Job, Phase, Scheduler, Speaker, State, Submission, Submitted,
    WaitQueue, Wheel, transition,
};
use utterd::node::pool::Publisher;
use utterd::node::{Attached, NodeIndex, Registry};
use utterd::protocol::hello::{Attempt, Hello};
use utterd::protocol::job::{Audio, Cut, JobSpec, Outcome};
use utterd::protocol::node::{JobMark, JobResult, Message, Report, decode};
use utterd::protocol::{JobId, NodeId, SessionId, TurnId};
use utterd::telemetry::{Metrics, Now};
use utterd::tenant::{Accounts, Admission};

use super::script::Script;

pub fn run(input: &[u8]) {
    fastrand::seed(7);
    let mut script = Script::new(input);
    match script.pick(4) {
        0 => machine(&mut script),
        _ => converse(&mut script),
    }
}

/// docs/ARCHITECTURE.md, "State": rows are states, columns events; a letter is the state after.
const TABLE: [&str; 5] = ["arxxxxxeee", "xxdrqeeexe", "xxxrqeeexe", "xxxxqeeexe", "xxxxxxxxxx"];

fn row(phase: Phase) -> usize {
    match phase {
        Phase::Queued => 0,
        Phase::Assigned => 1,
        Phase::Dispatched => 2,
        Phase::Running => 3,
        Phase::Ended(_) => 4,
    }
}

/// One job, whatever happens to it. The twin is the table, and the numbers of attempts by hand.
fn machine(script: &mut Script<'_>) {
    let epoch = u32::from(script.any::<u8>());
    let floor = epoch << 8;
    let (mut state, mut made) = (State::queued(epoch), floor);
    while !script.is_over() {
        let node = NodeIndex(1 + script.pick(3) as u32);
        let attempt = match script.pick(4) {
            0 => floor.wrapping_add(u32::from(script.any::<u8>())).wrapping_sub(8),
            _ => state.attempt,
        };
        let outcome = script.of(&Outcome::ALL);
        let column = script.pick(10);
        let event = match column {
            0 => Event::Place { node, floor },
            1 => Event::Adopt { node, attempt, floor },
            2 => Event::Written(attempt),
            3 => Event::Started(attempt),
            4 => Event::Requeue(attempt),
            5 => Event::Answer(attempt, outcome),
            6 => Event::Merge,
            7 => Event::GiveUp(outcome),
            8 => Event::Expire,
            _ => Event::Cancel,
        };
        let letter = TABLE[row(state.phase)].as_bytes()[column];
        let stale = (2..=5).contains(&column) && attempt != state.attempt;
        let spent = column == 0 && state.attempt.max(floor) & 0xFF == 0xFF;
        let before = attempt < floor && state.attempt <= floor;
        let foreign = column == 1 && !before && (state.node, state.attempt) != (node, attempt);
        let next = transition(state, event);
        let none = letter == b'x' || stale || spent || foreign;
        assert_eq!(next.is_none(), none, "{event:?} of {state:?}");
        let Some(next) = next else { continue };
        let reached = ["a", "d", "r", "q", "e"].iter().position(|l| l.as_bytes()[0] == letter);
        let wanted = [1, 2, 3, 0, 4][reached.expect("a letter of the table")];
        assert_eq!(row(next.phase), wanted, "{event:?} of {state:?}");
        if column == 0 {
            assert!(next.attempt > made && next.node == node, "attempts only grow");
            made = next.attempt;
        }
        assert!(column <= 1 || next.attempt == state.attempt, "an attempt out of nowhere");
        state = next;
    }
}

struct World {
    scheduler: Scheduler,
    registry: Arc<Registry>,
    publisher: Publisher,
    wheel: Wheel<Deadline>,
    queue: WaitQueue,
    now: Now,
    speakers: Vec<Arc<Speaker>>,
    nodes: BTreeMap<&'static str, Attached>,
    /// Assignments on their way to a socket, and those that a node has.
    assigned: Vec<(Arc<Job>, NodeIndex, u32)>,
    held: Vec<(Arc<Job>, NodeIndex, u32)>,
    jobs: Vec<Arc<Job>>,
    settled: BTreeMap<JobId, Outcome>,
    attempts: BTreeMap<JobId, u32>,
    keys: BTreeSet<(SessionId, u64)>,
    /// Turns so far, and the one in which each session speaks.
    turn: u128,
    speech: [u128; 2],
}

fn converse(script: &mut Script<'_>) {
    let mut world = World::new(script);
    while !script.is_over() {
        world.step(script);
        world.audit();
    }
    world.finish();
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let job = config::Job {
            live_max: 12,
            queue_max: 8,
            history_max: 8,
            pending_ms: 10_000,
            ..config::Job::default()
        };
        let node = config::Node {
            nodes_max: 4,
            slots_default: 2,
            resume_grace_ms: script.of(&[0, 15_000]),
            ..config::Node::default()
        };
        let registry = Arc::new(Registry::new(node));
        let (publisher, pools) = Publisher::new(Vec::new(), 1);
        let metrics = Arc::new(Metrics::new());
        let accounts = Accounts::new(config::TenantDefaults::default(), &[], &metrics);
        let admission = Admission::new(job.clone(), 8, accounts);
        let scheduler = Scheduler::new(job, admission, 3, Arc::clone(&registry), pools, metrics);
        let account = |name| scheduler.accounts().of(name);
        let speakers = vec![
            scheduler.speaker(SessionId(1), account(None)),
            scheduler.speaker(SessionId(2), account(Some("acme"))),
        ];
        Self {
            scheduler,
            registry,
            publisher,
            wheel: Wheel::new(0),
            queue: WaitQueue::default(),
            now: Now { us: 1, unix_ms: 0 },
            speakers,
            nodes: BTreeMap::new(),
            assigned: Vec::new(),
            held: Vec::new(),
            jobs: Vec::new(),
            settled: BTreeMap::new(),
            attempts: BTreeMap::new(),
            keys: BTreeSet::new(),
            turn: 2,
            speech: [1, 2],
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.pick(13) {
            0..=2 => self.submit(script),
            3 | 4 => self.written(script),
            5 | 6 => self.answer(script),
            7 => self.started(script),
            8 => self.join(script),
            9 => self.leave(script),
            10 => self.not_sent(script),
            11 => self.cancel(script),
            _ => self.pass(u64::from(script.any::<u16>())),
        }
    }

    fn perform(&mut self, mut effects: Effects) {
        while !effects.is_empty() {
            let mut wake = false;
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Assign { job, node, attempt } => {
                        let before = self.attempts.insert(job.id, attempt);
                        assert!(before < Some(attempt), "attempts of {} go back", job.id);
                        let known = self.registry.by_index(node).expect("a node that is known");
                        job.carry(attempt, known.generation());
                        self.assigned.push((job, node, attempt));
                    }
                    Effect::Arm(at, deadline) => self.wheel.arm(at, deadline),
                    Effect::Settled { job, .. } => {
                        let outcome = job.ended().expect("settled jobs have ended").outcome;
                        let before = self.settled.insert(job.id, outcome);
                        assert_eq!(before, None, "{} was settled twice", job.id);
                        self.scheduler.kept(&job, &mut effects);
                    }
                    Effect::WakeQueue => wake = true,
                    Effect::NodeChanged(index) => {
                        let node = self.registry.by_index(index).expect("a node that is known");
                        self.publisher.node_changed(&node);
                    }
                    Effect::CancelOn { .. }
                    | Effect::AckResult { .. }
                    | Effect::Accept(..)
                    | Effect::Progress(..) => {}
                }
            }
            if wake {
                self.queue.drain(&self.scheduler, self.now, &mut effects);
            }
        }
    }

    fn submit(&mut self, script: &mut Script<'_>) {
        let speaker = Arc::clone(&self.speakers[script.pick(2)]);
        let index = u64::from(script.any::<u8>()) % 64;
        let cut = script.of(&[Cut::Manual, Cut::MaxDuration, Cut::Pause, Cut::Whole]);
        // As a session has it: a recording is a turn, and speech is one until it is cut. The end of
        // a turn may be lost, and is never told then.
        self.turn += 1;
        let speech = &mut self.speech[speaker.session.0 as usize - 1];
        let turn = if cut == Cut::Whole { self.turn } else { *speech };
        if cut != Cut::Whole && (cut.closes_turn() || script.seldom(8)) {
            *speech = self.turn;
        }
        let spec = spec(&speaker, index, turn, cut);
        let known = !self.keys.insert((speaker.session, index));
        let audio = Audio::Raw(Bytes::from_static(b"audio"));
        let (received_us, cut_us) = (1, self.now.us);
        let submission = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
        let mut effects = Effects::new();
        match self.scheduler.submit(&speaker, submission, self.now, &mut effects) {
            Ok(Submitted::New(job)) => self.jobs.push(job),
            Ok(Submitted::Repeated(id)) => {
                if cut.closes_turn() {
                    speaker.end_turn(TurnId(turn));
                }
                assert!(known, "never submitted before");
                assert!(self.jobs.iter().any(|job| job.id == id), "a job nobody made");
            }
            Err(_) => {
                assert!(effects.is_empty(), "refused, and something is to be done");
                if !known {
                    self.keys.remove(&(speaker.session, index));
                }
                if cut.closes_turn() {
                    speaker.end_turn(TurnId(turn));
                }
            }
        }
        self.perform(effects);
    }

    fn written(&mut self, script: &mut Script<'_>) {
        if self.assigned.is_empty() {
            return;
        }
        let at = script.pick(self.assigned.len());
        let (job, node, attempt) = self.assigned.remove(at);
        let mut effects = Effects::new();
        self.scheduler.written(&job, attempt, self.now, &mut effects);
        self.held.push((job, node, attempt));
        self.perform(effects);
    }

    fn not_sent(&mut self, script: &mut Script<'_>) {
        if self.assigned.is_empty() {
            return;
        }
        let (job, _, attempt) = self.assigned.remove(script.pick(self.assigned.len()));
        let mut effects = Effects::new();
        self.scheduler.not_sent(&job, attempt, script.seldom(2), self.now, &mut effects);
        self.perform(effects);
    }

    fn started(&mut self, script: &mut Script<'_>) {
        if self.held.is_empty() {
            return;
        }
        let (job, node, attempt) = self.held[script.pick(self.held.len())].clone();
        let attempt_id = script.of(&[Some(attempt), None, Some(attempt + 1)]);
        let mark = JobMark { job_id: job.id, attempt_id };
        let mut effects = Effects::new();
        self.scheduler.started(node, &mark, self.now, &mut effects);
        self.perform(effects);
    }

    fn answer(&mut self, script: &mut Script<'_>) {
        if self.held.is_empty() {
            return;
        }
        let at = script.pick(self.held.len());
        let (job, node, attempt) = match script.seldom(3) {
            true => self.held[at].clone(),
            false => self.held.remove(at),
        };
        let attempt = script.of(&[attempt, attempt, attempt, attempt.wrapping_sub(1)]);
        let node = script.of(&[node, node, node, NodeIndex(9)]);
        let result = result(job.id, attempt, script.pick(7));
        let was = job.state();
        let mut effects = Effects::new();
        self.scheduler.answer(node, result, self.now, &mut effects);
        let is_theirs = was.in_flight() && was.node == node;
        assert!(is_theirs || job.state() == was, "a stranger's answer counted");
        self.perform(effects);
    }

    fn join(&mut self, script: &mut Script<'_>) {
        let id = script.of(&["a", "b", "c"]);
        let Ok(attached) = self.registry.attach(NodeId::from(id), self.now) else { return };
        self.registry.report(&attached, &report(), self.now);
        let index = attached.node.index;
        let mut effects = Effects::new();
        if script.seldom(2) {
            // What went over the older connection and is not named was lost on the way.
            let mine = self.held.iter().filter(|(_, node, _)| *node == index);
            let named = mine.filter(|_| !script.seldom(3));
            let attempt = |(job, _, attempt): &(Arc<Job>, NodeIndex, u32)| Attempt {
                job_id: job.id,
                attempt_id: *attempt,
            };
            let inflight: Vec<Attempt> = named.map(attempt).collect();
            self.assigned.retain(|(_, node, _)| *node != index);
            self.held.retain(|(job, node, of)| {
                let named = inflight.iter().any(|a| (a.job_id, a.attempt_id) == (job.id, *of));
                *node != index || named
            });
            let boot_id = script.of(&["x", "y"]).to_owned();
            let hello = Hello { boot_id, inflight, unacked: Vec::new(), ignored: 0 };
            let welcome = self.scheduler.hello(&attached, &hello, self.now, &mut effects);
            assert_eq!(welcome.jobs.len(), hello.inflight.len(), "each is answered");
            self.publisher.node_changed(&attached.node);
            self.scheduler.welcomed(&attached, welcome, self.now, &mut effects);
        } else {
            self.assigned.retain(|(_, node, _)| *node != index);
            self.held.retain(|(_, node, _)| *node != index);
            self.scheduler.node_lost(index, self.now, &mut effects);
            self.publisher.node_changed(&attached.node);
        }
        effects.push(Effect::WakeQueue);
        self.nodes.insert(id, attached);
        self.perform(effects);
    }

    fn leave(&mut self, script: &mut Script<'_>) {
        let id = script.of(&["a", "b", "c"]);
        let Some(attached) = self.nodes.remove(id) else { return };
        if !self.registry.detach(&attached) {
            return;
        }
        self.publisher.node_changed(&attached.node);
        let index = attached.node.index;
        self.assigned.retain(|(_, node, _)| *node != index);
        let mut effects = Effects::new();
        match script.seldom(2) {
            true => self.scheduler.node_away(&attached, self.now, &mut effects),
            false => {
                self.held.retain(|(_, node, _)| *node != index);
                self.scheduler.node_lost(index, self.now, &mut effects);
            }
        }
        self.perform(effects);
    }

    fn cancel(&mut self, script: &mut Script<'_>) {
        if self.jobs.is_empty() {
            return;
        }
        let job = Arc::clone(&self.jobs[script.pick(self.jobs.len())]);
        let had_ended = job.state().outcome().is_some();
        let mut effects = Effects::new();
        let cancelled = self.scheduler.cancel(&job, "cancelled", self.now, &mut effects);
        assert_eq!(cancelled, !had_ended, "what has ended is not cancelled");
        self.perform(effects);
    }

    fn pass(&mut self, ms: u64) {
        self.now.us += ms * 1_000;
        self.now.unix_ms += ms;
        let mut due = Vec::new();
        self.wheel.expire(self.now.us, |deadline| due.push(deadline));
        let mut effects = Effects::new();
        for deadline in due {
            if let Deadline::Forget(_) = deadline {
                self.keys.clear();
                self.keys
                    .extend(self.jobs.iter().map(|j| (j.spec.session, j.spec.utterance_index)));
            }
            self.scheduler.due(deadline, self.now, &mut effects);
        }
        effects.push(Effect::WakeQueue);
        self.perform(effects);
    }

    /// The accounts agree with the jobs.
    fn audit(&self) {
        let live = self.jobs.iter().filter(|job| job.state().outcome().is_none()).count();
        assert_eq!(self.scheduler.live(), live, "unfinished jobs");
        assert_eq!(self.settled.len(), self.jobs.len() - live, "an outcome was not announced");
        for node in self.registry.all() {
            let has = |job: &&Arc<Job>| job.state().in_flight() && job.state().node == node.index;
            let turns: BTreeSet<_> =
                self.jobs.iter().filter(has).map(|j| (j.spec.session, j.spec.turn)).collect();
            assert_eq!(node.slots().0 as usize, turns.len(), "slots of {}", node.id);
        }
        let queued = self.jobs.iter().filter(|job| job.state().phase == Phase::Queued).count();
        assert!(self.scheduler.waiting() >= queued, "a queued job waits nowhere");
        for job in &self.jobs {
            let ended = job.state().outcome();
            assert_eq!(job.audio().is_some(), ended.is_none(), "audio outlived its job");
            assert_eq!(self.settled.get(&job.id).copied(), ended, "what was announced");
        }
    }

    /// Nobody waits for ever: with time alone every job ends.
    fn finish(&mut self) {
        // The sessions are over: a slice waits for no further one.
        self.speakers.iter().for_each(|speaker| speaker.close_turn());
        for _ in 0..400 {
            if self.scheduler.live() == 0 {
                break;
            }
            // What is in an outbox leaves it, or its connection ends.
            for (job, node, attempt) in std::mem::take(&mut self.assigned) {
                let mut effects = Effects::new();
                self.scheduler.written(&job, attempt, self.now, &mut effects);
                self.held.push((job, node, attempt));
                self.perform(effects);
            }
            self.pass(5_000);
        }
        self.audit();
        let left = self.jobs.iter().find(|job| job.state().outcome().is_none());
        assert!(left.is_none(), "a job that never ends: {:?}", left.map(|job| job.state()));
        self.pass(1_000);
        assert_eq!(self.scheduler.waiting(), 0, "who waits for nothing is counted");
    }
}

fn spec(speaker: &Speaker, utterance_index: u64, turn: u128, cut: Cut) -> JobSpec {
    JobSpec {
        session: speaker.session,
        utterance_index,
        turn: TurnId(turn),
        cut,
        ..JobSpec::plain("zh".parse().expect("a language"), "en".parse().expect("a language"))
    }
}

fn report() -> Report {
    let text = r#"{"type":"node_heartbeat","node_id":"a",
        "language_capabilities":{"asr_languages":["zh","en"],"semantic_languages":["zh","en"]},
        "capability_by_type":[{"type":"asr","ready":true},{"type":"nmt","ready":true},
            {"type":"tts","ready":true}]}"#;
    match decode(&Bytes::from_static(text.as_bytes())) {
        Ok(Message::Heartbeat(report)) => *report,
        other => panic!("{other:?}"),
    }
}

/// What a node may answer.
fn result(job: JobId, attempt: u32, how: usize) -> Box<JobResult> {
    let rest = [
        r#""success":true,"text_asr":"a","text_translated":"b""#,
        r#""success":true"#,
        r#""success":true,"extra":{"reason":"NO_TEXT_ASSIGNED"}"#,
        r#""success":false,"error":{"code":"MODEL_NOT_AVAILABLE","details":{"service_id":"nmt"}}"#,
        r#""success":false,"error":{"code":"NODE_OVERLOADED"}"#,
        r#""success":false,"error":{"code":"BROKEN"}"#,
        r#""success":false"#,
    ][how];
    let text = format!(r#"{{"type":"job_result","job_id":"{job}","attempt_id":{attempt},{rest}}}"#);
    match decode(&Bytes::from(text)) {
        Ok(Message::JobResult(result)) => result,
        other => panic!("{other:?}"),
    }
}
