//! The scheduler against worlds without sockets: chosen scenes, and random ones with the accounts
//! checked after every step.

mod again;
mod endings;
mod fairness;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::node::pool::Publisher;
use crate::node::tests::report_of;
use crate::node::{Attached, State as NodeState};
use crate::protocol::NodeId;
use crate::protocol::TurnId;
use crate::protocol::hello::AckStatus;
use crate::protocol::job::samples::spec;
use crate::protocol::job::{Cut, Outcome};
use crate::protocol::node::{FaultDetails, NodeFault};

/// The defaults with small tables: a world is made many times.
fn small() -> config::Job {
    config::Job { live_max: 200, queue_max: 200, history_max: 200, ..config::Job::default() }
}

/// A scheduler, its nodes, and everything it asked for.
struct World {
    scheduler: Scheduler,
    registry: Arc<Registry>,
    publisher: Publisher,
    wheel: Wheel<Deadline>,
    queue: WaitQueue,
    now: Now,
    /// Assignments on their way to a socket.
    assigned: Vec<(Arc<Job>, NodeIndex, u32)>,
    /// Assignments a node holds.
    held: Vec<(Arc<Job>, NodeIndex, u32)>,
    settled: HashMap<JobId, Outcome>,
    cancels: Vec<(JobId, NodeIndex)>,
    acks: Vec<(JobId, NodeIndex, Option<u32>, AckStatus)>,
    jobs: Vec<Arc<Job>>,
    /// The highest attempt of each job that was given out.
    attempts: HashMap<JobId, u32>,
    /// Attempts that were left with a node that came again.
    adopted: HashSet<(JobId, u32)>,
}

impl World {
    fn new(config: config::Job) -> Self {
        Self::with_tenants(config, &[])
    }

    fn with_tenants(config: config::Job, tenants: &[config::Tenant]) -> Self {
        let registry = Arc::new(Registry::new(config::Node {
            slots_default: 2,
            // Health has its own tests; here it would only hide what is looked at.
            failure_consecutive: 32,
            failure_count: 32,
            failure_window: 32,
            ..config::Node::default()
        }));
        let (publisher, pools) = Publisher::new(Vec::new(), 1);
        let metrics = Arc::new(Metrics::new());
        let accounts = Accounts::new(config::TenantDefaults::default(), tenants, &metrics);
        let admission = Admission::new(config.clone(), 1_000, accounts);
        let scheduler = Scheduler::new(config, admission, 3, Arc::clone(&registry), pools, metrics);
        Self {
            scheduler,
            registry,
            publisher,
            wheel: Wheel::new(0),
            queue: WaitQueue::default(),
            now: Now { us: 1, unix_ms: 0 },
            assigned: Vec::new(),
            held: Vec::new(),
            settled: HashMap::new(),
            cancels: Vec::new(),
            acks: Vec::new(),
            jobs: Vec::new(),
            attempts: HashMap::new(),
            adopted: HashSet::new(),
        }
    }

    /// What the shell does, without sockets: until nothing more is asked.
    fn perform(&mut self, mut effects: Effects) {
        while !effects.is_empty() {
            let mut wake = false;
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Assign { job, node, attempt } => {
                        let before = self.attempts.insert(job.id, attempt);
                        assert!(before < Some(attempt), "attempts of {} go back", job.id);
                        let known = self.registry.by_index(node).expect("known");
                        job.carry(attempt, known.generation());
                        self.assigned.push((job, node, attempt));
                    }
                    Effect::CancelOn { job, node, .. } => self.cancels.push((job.id, node)),
                    Effect::Arm(at, deadline) => self.wheel.arm(at, deadline),
                    Effect::Settled { job, .. } => {
                        let outcome = job.ended().expect("settled jobs have ended").outcome;
                        let before = self.settled.insert(job.id, outcome);
                        assert!(before.is_none(), "{} was settled twice", job.id);
                    }
                    Effect::WakeQueue => wake = true,
                    Effect::NodeChanged(index) => {
                        let node = self.registry.by_index(index).expect("known");
                        self.publisher.node_changed(&node);
                    }
                    Effect::AckResult { job, node, attempt, status } => {
                        self.acks.push((job, node, attempt, status));
                    }
                    Effect::Accept(..) | Effect::Progress(..) => {}
                }
            }
            if wake {
                self.queue.drain(&self.scheduler, self.now, &mut effects);
            }
        }
    }

    /// A session without a tenant.
    fn speaker(&self, session: SessionId) -> Arc<Speaker> {
        self.scheduler.speaker(session, self.scheduler.accounts().of(None))
    }

    fn join(&mut self, id: &str) -> Attached {
        let attached = self.registry.attach(NodeId::from(id), self.now).unwrap();
        self.registry.report(&attached, &report_of(&["zh", "en"]), self.now);
        self.publisher.node_changed(&attached.node);
        self.perform(vec![Effect::WakeQueue]);
        attached
    }

    fn leave(&mut self, attached: &Attached) {
        if !self.registry.detach(attached) {
            return;
        }
        self.publisher.node_changed(&attached.node);
        let index = attached.node.index;
        self.assigned.retain(|(_, node, _)| *node != index);
        self.held.retain(|(_, node, _)| *node != index);
        let mut effects = Effects::new();
        self.scheduler.node_lost(index, self.now, &mut effects);
        self.perform(effects);
    }

    fn submit(&mut self, speaker: &Arc<Speaker>, index: u64, turn: u128, cut: Cut) -> Submitted {
        let spec = JobSpec {
            session: speaker.session,
            utterance_index: index,
            turn: TurnId(turn),
            cut,
            ..spec("zh", "en")
        };
        let audio = Audio::Raw(Bytes::from_static(b"audio"));
        let (received_us, cut_us) = (1, self.now.us);
        let submission = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
        let mut effects = Effects::new();
        let submitted = self.scheduler.submit(speaker, submission, self.now, &mut effects).unwrap();
        if let Submitted::New(job) = &submitted {
            self.jobs.push(Arc::clone(job));
        }
        self.perform(effects);
        submitted
    }

    /// All assignments on their way reach their nodes.
    fn flush(&mut self) {
        for (job, node, attempt) in std::mem::take(&mut self.assigned) {
            let mut effects = Effects::new();
            self.scheduler.written(&job, attempt, self.now, &mut effects);
            self.held.push((job, node, attempt));
            self.perform(effects);
        }
    }

    fn answer_with(&mut self, at: usize, change: impl FnOnce(&mut JobResult)) -> Answered {
        let (job, node, attempt) = self.held.remove(at);
        let mut result = result_of(job.id, attempt);
        change(&mut result);
        let mut effects = Effects::new();
        let answered = self.scheduler.answer(node, Box::new(result), self.now, &mut effects);
        self.perform(effects);
        answered
    }

    fn advance(&mut self, ms: u64) {
        self.advance_to(self.now.us + ms * 1_000);
    }

    /// To that moment, monotonic microseconds.
    fn advance_to(&mut self, us: u64) {
        self.now.us = us;
        let mut due = Vec::new();
        self.wheel.expire(self.now.us, |deadline| due.push(deadline));
        let mut effects = Effects::new();
        for deadline in due {
            self.scheduler.due(deadline, self.now, &mut effects);
        }
        self.perform(effects);
    }

    /// A node that is not there has no jobs.
    fn audit_lost(&self) {
        for node in self.registry.all().iter().filter(|n| n.state() == NodeState::Offline) {
            let has = |j: &&Arc<Job>| j.state().in_flight() && j.state().node == node.index;
            assert_eq!(self.jobs.iter().find(has).map(|j| j.id), None, "{} is lost", node.id);
        }
    }

    /// The accounts agree with the jobs.
    fn audit(&self) {
        let live = self.jobs.iter().filter(|j| j.state().outcome().is_none()).count();
        assert_eq!(self.scheduler.live(), live, "unfinished jobs are counted wrongly");
        assert_eq!(self.settled.len(), self.jobs.len() - live, "an outcome was not announced");
        for node in self.registry.all() {
            let mut turns: Vec<_> = self
                .jobs
                .iter()
                .filter(|j| j.state().in_flight() && j.state().node == node.index)
                .map(|j| (j.spec.session, j.spec.turn))
                .collect();
            turns.sort_unstable();
            turns.dedup();
            assert_eq!(node.slots().0 as usize, turns.len(), "slots of {} are off", node.id);
        }
        let waits = |j: &&Arc<Job>| j.state().phase == Phase::Queued && j.held.load(SeqCst) == 0;
        let queued = self.jobs.iter().filter(waits).count();
        assert!(self.scheduler.waiting() >= queued, "a queued job waits nowhere");
        for job in &self.jobs {
            let (excluded, n) = job.excluded();
            let state = job.state();
            let again = state.in_flight()
                && excluded[..n].contains(&state.node)
                && !self.adopted.contains(&(job.id, state.attempt));
            assert!(!again, "{} went again to a node that may have seen it", job.id);
            assert_eq!(job.audio().is_some(), state.outcome().is_none(), "audio outlived its job");
        }
    }
}

fn result_of(job_id: JobId, attempt: u32) -> JobResult {
    let json = format!(
        r#"{{"type":"job_result","job_id":"{job_id}","attempt_id":{attempt},"success":true,
        "text_asr":"a","text_translated":"b"}}"#
    );
    match crate::protocol::node::decode(&Bytes::from(json)) {
        Ok(crate::protocol::node::Message::JobResult(result)) => *result,
        other => panic!("{other:?}"),
    }
}

fn fault(code: &str, service: &str) -> NodeFault {
    NodeFault {
        code: code.into(),
        message: String::new(),
        details: Some(FaultDetails { service_id: Some(service.into()), model_id: None }),
    }
}

fn settled(world: &World, job: &Job) -> Option<Outcome> {
    world.settled.get(&job.id).copied()
}

#[test]
fn a_job_goes_there_and_back() {
    let mut world = World::new(small());
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    assert_eq!(world.assigned.len(), 1);
    assert_eq!(world.assigned[0].2, 3 << 8 | 1, "attempts carry the boot epoch");
    world.flush();
    assert_eq!(world.answer_with(0, |_| {}), Answered::Settled);
    assert_eq!(settled(&world, &world.jobs[0]), Some(Outcome::Succeeded));
    world.audit();
}

#[test]
fn the_same_utterance_again_finds_its_job() {
    let mut world = World::new(small());
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    let again = world.submit(&speaker, 0, 2, Cut::Manual);
    assert!(matches!(again, Submitted::Repeated(id) if id == world.jobs[0].id));
    world.audit();
}

#[test]
fn waiting_jobs_go_first_and_in_order() {
    let mut world = World::new(small());
    let speaker = world.speaker(SessionId(1));
    for index in 0..5 {
        world.submit(&speaker, index, u128::from(index) + 1, Cut::Manual);
    }
    world.join("a");
    let order = |w: &World| -> Vec<u64> {
        w.assigned.iter().map(|(job, ..)| job.spec.utterance_index).collect()
    };
    assert_eq!(order(&world), [0, 1], "as many as there are slots");
    world.flush();
    world.answer_with(0, |_| {});
    world.submit(&speaker, 5, 9, Cut::Manual);
    assert_eq!(order(&world), [2], "who waits goes before who comes");
    world.audit();
}

#[test]
fn a_long_turn_needs_one_slot_and_moves_as_a_whole() {
    let mut world = World::new(small());
    let a = world.join("a");
    let speaker = world.speaker(SessionId(1));
    for index in 0..4 {
        world.submit(&speaker, index, 1, Cut::MaxDuration);
    }
    world.submit(&speaker, 4, 1, Cut::Manual);
    world.flush();
    assert_eq!(world.held.len(), 5);
    assert_eq!(a.node.slots().0, 1);
    let b = world.join("b");
    world.leave(&a);
    let moved: Vec<_> =
        world.assigned.iter().map(|(j, n, _)| (j.spec.utterance_index, *n)).collect();
    assert_eq!(moved, (0..5).map(|i| (i, b.node.index)).collect::<Vec<_>>());
    world.flush();
    assert_eq!(world.answer_with(4, |_| {}), Answered::Settled);
    world.audit();
    world.advance(small().turn_merge_grace_ms + 20);
    assert!(world.jobs[..4].iter().all(|j| settled(&world, j) == Some(Outcome::Merged)));
    world.audit();
}

#[test]
fn a_refused_job_takes_its_turn_along_and_the_node_lets_go_of_the_rest() {
    let mut world = World::new(small());
    let a = world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::MaxDuration);
    world.submit(&speaker, 1, 1, Cut::Manual);
    world.flush();
    let b = world.join("b");
    let answered = world.answer_with(1, |r| {
        r.success = false;
        r.error = Some(fault("MODEL_NOT_AVAILABLE", "nmt-m2m100"));
    });
    assert_eq!(answered, Answered::Refused);
    assert_eq!(world.cancels, [(world.jobs[0].id, a.node.index)], "it has let go of the other");
    assert!(world.assigned.iter().all(|(_, node, _)| *node == b.node.index));
    assert_eq!((world.assigned.len(), a.node.slots().0), (2, 0));
    world.audit();
}

#[test]
fn a_silent_node_costs_a_lease_and_another_tries() {
    let mut world = World::new(small());
    let a = world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    let b = world.join("b");
    world.advance(30_000);
    assert!(world.assigned.is_empty(), "half a second for a second of audio is due too");
    world.advance(520);
    assert_eq!(world.cancels, [(world.jobs[0].id, a.node.index)]);
    assert_eq!(world.assigned[0].1, b.node.index);
    let late = world.answer_with(0, |_| {});
    assert_eq!(late, Answered::Stale, "the first node answers after all");
    world.flush();
    world.leave(&b);
    world.advance(10_010);
    assert_eq!(settled(&world, &world.jobs[0]), Some(Outcome::Expired));
    assert_eq!(world.jobs[0].ended().unwrap().code, Some(ErrorCode::NodeUnavailable));
    world.audit();
}

#[test]
fn without_another_node_a_timeout_is_final() {
    let mut world = World::new(small());
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    world.advance(30_520);
    assert_eq!(world.jobs[0].ended().unwrap().code, Some(ErrorCode::JobTimeout));
    world.audit();
}

#[test]
fn a_job_that_loses_its_nodes_is_poison() {
    let mut world = World::new(small());
    let speaker = world.speaker(SessionId(1));
    let nodes = ["a", "b", "c"].map(|id| world.join(id));
    world.submit(&speaker, 0, 1, Cut::Manual);
    for _ in 0..2 {
        world.flush();
        let on = world.held.last().unwrap().1;
        let node = nodes.iter().find(|n| n.node.index == on).unwrap();
        world.leave(node);
    }
    assert_eq!(world.jobs[0].ended().unwrap().code, Some(ErrorCode::PoisonJob));
    world.audit();
}

#[test]
fn a_missing_model_sends_the_job_on_and_is_remembered() {
    let mut world = World::new(small());
    let a = world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    let b = world.join("b");
    let answered = world.answer_with(0, |r| {
        r.success = false;
        r.error = Some(fault("MODEL_NOT_AVAILABLE", "nmt-m2m100"));
    });
    assert_eq!(answered, Answered::Refused);
    assert_eq!(world.assigned[0].1, b.node.index);
    world.flush();
    world.answer_with(0, |_| {});
    let placed_on = |world: &mut World, index: u64| {
        let other = world.speaker(SessionId(100 + index));
        world.submit(&other, 0, u128::from(index) + 50, Cut::Manual);
        world.flush();
        let (_, node, _) = *world.held.last().unwrap();
        let at = world.held.len() - 1;
        world.answer_with(at, |_| {});
        node
    };
    assert!((0..10).all(|i| placed_on(&mut world, i) == b.node.index));
    world.advance(60_010);
    assert!((10..60).any(|i| placed_on(&mut world, i) == a.node.index));
    world.audit();
}

#[test]
fn cancelling_frees_the_node_and_tells_it() {
    let mut world = World::new(small());
    let a = world.join("a");
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    let (job, mut effects) = (Arc::clone(&world.jobs[0]), Effects::new());
    assert!(world.scheduler.cancel(&job, "test", world.now, &mut effects));
    assert!(!world.scheduler.cancel(&job, "test", world.now, &mut effects));
    world.perform(effects);
    assert_eq!(world.cancels, [(job.id, a.node.index)]);
    assert_eq!(a.node.slots().0, 0);
    assert_eq!(world.answer_with(0, |_| {}), Answered::Stale);
    world.audit();
}

#[test]
fn history_is_bounded_and_keys_are_kept_for_their_time() {
    let mut world = World::new(config::Job { history_max: 3, ..small() });
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    for index in 0..6 {
        world.submit(&speaker, index, u128::from(index) + 1, Cut::Manual);
        world.flush();
        world.answer_with(0, |_| {});
    }
    let mut known = 0;
    world.scheduler.for_each(|_| known += 1);
    assert_eq!(known, 3);
    assert_eq!(world.scheduler.keys.pin().len(), 6, "keys outlive the memory of their jobs");
    world.advance(config::Job::default().idempotency_ms + 1);
    assert_eq!(world.scheduler.keys.pin().len(), 0);
    assert_eq!(speaker.open.load(SeqCst), 0);
}

#[test]
fn a_result_is_acknowledged_when_its_outcome_is_kept_and_no_copy_of_it_before() {
    let mut world = World::new(small());
    let node = world.join("a").node.index;
    let speaker = world.speaker(SessionId(1));
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    let held = world.held[0].clone();
    let (job, attempt) = (Arc::clone(&held.0), Some(held.2));
    world.held.push(held.clone());
    assert_eq!(world.answer_with(0, |_| {}), Answered::Settled);
    assert_eq!(world.answer_with(0, |_| {}), Answered::Stale);
    assert!(world.acks.is_empty(), "it is not kept yet");
    let mut effects = Effects::new();
    world.scheduler.kept(&job, &mut effects);
    world.scheduler.kept(&job, &mut effects);
    world.perform(effects);
    assert_eq!(world.acks, [(job.id, node, attempt, AckStatus::Committed)]);
    for (named, status) in [(attempt, AckStatus::Duplicate), (Some(1), AckStatus::Stale)] {
        world.held.push(held.clone());
        world.answer_with(0, |r| r.attempt_id = named);
        assert_eq!(world.acks.pop(), Some((job.id, node, named, status)));
    }
    world.held.push(held.clone());
    world.answer_with(0, |r| r.job_id = JobId(7));
    assert_eq!(world.acks.pop(), Some((JobId(7), node, attempt, AckStatus::Unknown)));
}

#[test]
fn a_result_that_is_no_outcome_is_acknowledged_at_once() {
    let mut world = World::new(small());
    let speaker = world.speaker(SessionId(1));
    let nodes = ["a", "b"].map(|id| world.join(id).node.index);
    world.submit(&speaker, 0, 1, Cut::Manual);
    world.flush();
    let (job, node, attempt) = world.held[0].clone();
    world.held.push((Arc::clone(&job), node, attempt));
    world.answer_with(0, |r| {
        (r.success, r.error) = (false, Some(fault("NODE_OVERLOADED", "")));
    });
    assert_eq!(world.acks.pop(), Some((job.id, node, Some(attempt), AckStatus::Committed)));
    world.flush();
    assert!(nodes.contains(&world.held[1].1) && world.held[1].1 != node);
    world.answer_with(0, |_| {});
    assert_eq!(world.acks.pop(), Some((job.id, node, Some(attempt), AckStatus::Stale)));
    // Ended by somebody else than its node: there is nothing to wait for.
    let mut effects = Effects::new();
    world.scheduler.cancel(&job, "test", world.now, &mut effects);
    world.perform(effects);
    let (_, node, attempt) = world.held[0];
    world.answer_with(0, |_| {});
    assert_eq!(world.acks.pop(), Some((job.id, node, Some(attempt), AckStatus::Stale)));
}

/// A step of a random world.
#[derive(Debug, Clone)]
enum Step {
    Submit { speaker: u64, cut: u8 },
    Flush,
    Answer { at: usize, kind: u8 },
    Join(u8),
    Leave(u8),
    Advance(u64),
    Cancel(usize),
    NotSent { at: usize, gone: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..3, 0_u8..3).prop_map(|(speaker, cut)| Step::Submit { speaker, cut }),
        4 => Just(Step::Flush),
        4 => (0_usize..8, 0_u8..6).prop_map(|(at, kind)| Step::Answer { at, kind }),
        2 => (0_u8..4).prop_map(Step::Join),
        1 => (0_u8..4).prop_map(Step::Leave),
        3 => (1_u64..20_000).prop_map(Step::Advance),
        1 => (0_usize..20).prop_map(Step::Cancel),
        1 => (0_usize..4, any::<bool>()).prop_map(|(at, gone)| Step::NotSent { at, gone }),
    ]
}

fn random_answer(world: &mut World, at: usize, kind: u8) {
    if world.held.is_empty() {
        return;
    }
    let at = at % world.held.len();
    world.answer_with(at, |r| match kind {
        0 | 1 => {}
        2 => (r.text_asr, r.text_translated) = (String::new(), String::new()),
        3 => (r.success, r.error) = (false, Some(fault("PROCESSING_ERROR", ""))),
        4 => (r.success, r.error) = (false, Some(fault("MODEL_NOT_AVAILABLE", "nmt-x"))),
        _ => r.attempt_id = Some(1),
    });
}

fn run(steps: Vec<Step>) {
    let mut world = World::new(small());
    let speakers: Vec<_> = (0..3).map(|i| world.speaker(SessionId(i + 1))).collect();
    let mut next = [0_u64; 3];
    let mut turn = [1_u128; 3];
    let mut online: HashMap<u8, Attached> = HashMap::new();
    for step in steps {
        match step {
            Step::Submit { speaker, cut } => {
                let s = speaker as usize;
                let cut = if cut == 0 { Cut::MaxDuration } else { Cut::Manual };
                world.submit(&speakers[s], next[s], turn[s] * 10 + u128::from(speaker), cut);
                next[s] += 1;
                turn[s] += u128::from(cut.closes_turn());
            }
            Step::Flush => world.flush(),
            Step::Answer { at, kind } => random_answer(&mut world, at, kind),
            Step::Join(id) if !online.contains_key(&id) => {
                let attached = world.join(&format!("n{id}"));
                online.insert(id, attached);
            }
            Step::Leave(id) => {
                if let Some(attached) = online.remove(&id) {
                    world.leave(&attached);
                }
            }
            Step::Advance(ms) => world.advance(ms),
            Step::Cancel(at) => {
                if let Some(job) = world.jobs.get(at).cloned() {
                    let mut effects = Effects::new();
                    world.scheduler.cancel(&job, "test", world.now, &mut effects);
                    world.perform(effects);
                }
            }
            Step::NotSent { at, gone } if at < world.assigned.len() => {
                let (job, _, attempt) = world.assigned.remove(at);
                let mut effects = Effects::new();
                world.scheduler.not_sent(&job, attempt, gone, world.now, &mut effects);
                world.perform(effects);
            }
            Step::Join(_) | Step::NotSent { .. } => {}
        }
        world.audit();
        world.audit_lost();
    }
    finish(world, &speakers, next, turn);
}

/// Closes every turn and lets all the time in the world pass: everything ends.
fn finish(mut world: World, speakers: &[Arc<Speaker>], next: [u64; 3], turn: [u128; 3]) {
    for (s, speaker) in speakers.iter().enumerate() {
        world.submit(speaker, next[s], turn[s] * 10 + s as u128, Cut::Pause);
    }
    for _ in 0..60 {
        world.flush();
        world.advance(20_000);
        world.perform(vec![Effect::WakeQueue]);
        world.audit();
    }
    let left: Vec<_> = world.jobs.iter().filter(|j| j.state().outcome().is_none()).collect();
    assert!(
        left.is_empty(),
        "never ended: {:?}",
        left.iter().map(|j| j.explain()).collect::<Vec<_>>()
    );
    assert_eq!(world.scheduler.waiting(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_every_job_ends_once_and_the_accounts_agree(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        run(steps);
    }
}
