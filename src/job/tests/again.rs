//! Nodes that come again and say what they have, over lost connections, crashes of their program
//! and restarts of the server: chosen scenes, and random ones.

use std::collections::HashSet;

use super::*;
use crate::protocol::hello::{Action, Attempt, Hello};

/// A node that can say what it has, and all it knows.
#[derive(Default)]
struct Able {
    /// Its connection, while it has one.
    online: Option<Attached>,
    /// How often its program was started.
    run: u32,
    inflight: Vec<Attempt>,
    unacked: Vec<Attempt>,
    /// Jobs this run of its program was given.
    seen: HashSet<JobId>,
}

struct Again {
    world: World,
    nodes: Vec<Able>,
    /// Jobs whose outcome survives the server.
    kept: HashSet<JobId>,
    boot: u32,
    /// Of each session, and how many turns it has ended.
    speakers: HashMap<SessionId, (Arc<Speaker>, u64)>,
}

fn able(nodes: usize) -> Again {
    let nodes = (0..nodes).map(|_| Able::default()).collect();
    let (world, kept, speakers) = (World::new(small()), HashSet::new(), HashMap::new());
    Again { world, nodes, kept, boot: 3, speakers }
}

impl Again {
    fn with<R>(&mut self, act: impl FnOnce(&Scheduler, Now, &mut Effects) -> R) -> R {
        let mut effects = Effects::new();
        let result = act(&self.world.scheduler, self.world.now, &mut effects);
        self.world.perform(effects);
        self.deliver_acks();
        result
    }

    /// What is acknowledged is forgotten, if its node can hear it.
    fn deliver_acks(&mut self) {
        for (job_id, node, attempt, _) in std::mem::take(&mut self.world.acks) {
            if let Some(at) = self.at(node) {
                let named = Attempt { job_id, attempt_id: attempt.expect("always named") };
                self.nodes[at].unacked.retain(|a| *a != named);
            }
        }
    }

    /// Which of the connected nodes has that index.
    fn at(&self, node: NodeIndex) -> Option<usize> {
        let is = |n: &Able| n.online.as_ref().is_some_and(|a| a.node.index == node);
        self.nodes.iter().position(is)
    }

    /// The node connects; its connection, and what it says.
    fn connect(&self, at: usize) -> (Attached, Hello) {
        let node = &self.nodes[at];
        let hello = Hello {
            boot_id: node.run.to_string(),
            inflight: node.inflight.clone(),
            unacked: node.unacked.clone(),
            ignored: 0,
        };
        let id = NodeId::from(format!("able{at}").as_str());
        (self.world.registry.attach(id, self.world.now).unwrap(), hello)
    }

    /// The node connects and says what it has; what it is answered.
    fn come(&mut self, at: usize) -> Vec<Action> {
        let (attached, hello) = self.connect(at);
        let mut effects = Effects::new();
        let (scheduler, now) = (&self.world.scheduler, self.world.now);
        let welcome = scheduler.hello(&attached, &hello, now, &mut effects);
        let jobs = welcome.jobs.clone();
        self.world.assigned.retain(|(_, on, _)| *on != attached.node.index);
        self.nodes[at].online = Some(attached.clone());
        self.world.scheduler.welcomed(&attached, welcome, now, &mut effects);
        for told in &jobs {
            if told.action != Action::Cancel {
                self.world.adopted.insert((told.attempt.job_id, told.attempt.attempt_id));
            }
        }
        self.world.perform(effects);
        self.world.registry.report(&attached, &report_of(&["zh", "en"]), self.world.now);
        self.world.publisher.node_changed(&attached.node);
        self.world.perform(vec![Effect::WakeQueue]);
        self.deliver_acks();
        for told in &jobs {
            let node = &mut self.nodes[at];
            match told.action {
                Action::Keep => {}
                Action::Cancel => {
                    node.inflight.retain(|a| *a != told.attempt);
                    node.unacked.retain(|a| *a != told.attempt);
                }
                Action::Send => self.send(at, told.attempt),
            }
        }
        jobs.iter().map(|told| told.action).collect()
    }

    /// The connection is lost, with what was on its way.
    fn away(&mut self, at: usize) {
        let Some(attached) = self.nodes[at].online.take() else { return };
        self.world.assigned.retain(|(_, on, _)| *on != attached.node.index);
        if self.world.registry.detach(&attached) {
            self.world.publisher.node_changed(&attached.node);
            self.with(|s, now, effects| s.node_away(&attached, now, effects));
        }
    }

    /// The node's program ends, and with it all that it had.
    fn crash(&mut self, at: usize) {
        self.away(at);
        self.nodes[at] = Able { run: self.nodes[at].run + 1, ..Able::default() };
    }

    fn flush(&mut self) {
        for (job, on, attempt) in std::mem::take(&mut self.world.assigned) {
            if let Some(at) = self.at(on) {
                let node = &mut self.nodes[at];
                assert!(node.seen.insert(job.id), "{} came twice to able{at}", job.id);
                node.inflight.push(Attempt { job_id: job.id, attempt_id: attempt });
            }
            self.with(|s, now, effects| s.written(&job, attempt, now, effects));
        }
    }

    /// The node has done one of its jobs; whether it can say so to the server is another matter.
    fn work(&mut self, at: usize, which: usize, arrives: bool) {
        let node = &mut self.nodes[at];
        if node.inflight.is_empty() {
            return;
        }
        let done = node.inflight.remove(which % node.inflight.len());
        node.unacked.push(done);
        if arrives && node.online.is_some() {
            self.send(at, done);
        }
    }

    fn send(&mut self, at: usize, done: Attempt) {
        let index = self.nodes[at].online.as_ref().expect("connected").node.index;
        let result = Box::new(result_of(done.job_id, done.attempt_id));
        self.with(|s, now, effects| s.answer(index, result, now, effects));
    }

    /// The outcome of a settled job reaches the disk.
    fn keep(&mut self, which: usize) {
        let settled = self.world.jobs.iter().filter(|j| j.state().outcome().is_some());
        let unkept: Vec<_> = settled.filter(|j| !self.kept.contains(&j.id)).cloned().collect();
        if let Some(job) = unkept.get(which % unkept.len().max(1)) {
            self.kept.insert(job.id);
            self.with(|s, _, effects| s.kept(job, effects));
        }
    }

    /// The server dies and starts again: it has what was on disk, and nobody is connected.
    fn restart(&mut self) {
        self.boot += 1;
        let now = self.world.now;
        let before = std::mem::replace(&mut self.world, World::new(small()));
        let metrics = Arc::new(Metrics::new());
        let (publisher, pools) = Publisher::new(Vec::new(), 1);
        let world = &mut self.world;
        (world.publisher, world.now, world.attempts) = (publisher, now, before.attempts);
        world.wheel = Wheel::new(now.us);
        let registry = Arc::clone(&world.registry);
        let accounts = Accounts::new(config::TenantDefaults::default(), &[], &metrics);
        let admission = Admission::new(small(), 1_000, accounts);
        world.scheduler = Scheduler::new(small(), admission, self.boot, registry, pools, metrics);
        for (session, (speaker, _)) in &mut self.speakers {
            *speaker = world.speaker(*session);
        }
        for job in before.jobs.iter().filter(|job| !self.kept.contains(&job.id)) {
            let (speaker, _) = &self.speakers[&job.spec.session];
            let audio = Audio::Raw(Bytes::from_static(b"audio"));
            let (received_us, cut_us) = (now.us, now.us);
            let spec = job.spec.clone();
            let submission =
                Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
            world.scheduler.restore(job.id, speaker, submission, now);
            world.jobs.push(world.scheduler.job(job.id).unwrap());
        }
        for node in &mut self.nodes {
            node.online = None;
            // Where a job has been is not known in the next life.
            node.seen.clear();
        }
    }

    fn release(&mut self) {
        self.with(|s, now, effects| s.release_restored(now, effects));
    }

    fn submit(&mut self, session: u64, index: u64) -> Arc<Job> {
        self.say(session, index, Cut::Manual)
    }

    /// A slice of the session's turn, or its end.
    fn say(&mut self, session: u64, index: u64, cut: Cut) -> Arc<Job> {
        let id = SessionId(session);
        let new = || (self.world.speaker(id), 0);
        let (speaker, turns) = self.speakers.entry(id).or_insert_with(new);
        let turn = u128::from(session * 1_000 + *turns);
        *turns += u64::from(cut.closes_turn());
        let speaker = Arc::clone(speaker);
        self.world.submit(&speaker, index, turn, cut);
        Arc::clone(self.world.jobs.last().unwrap())
    }

    fn outcome(&self, job: &Job) -> Option<Outcome> {
        self.world.settled.get(&job.id).copied()
    }

    fn state(&self, job: &Job) -> State {
        self.world.scheduler.job(job.id).unwrap().state()
    }
}

/// A node that has a job it was given and works on, and one that has nothing.
fn scene() -> (Again, Arc<Job>) {
    let mut again = able(2);
    again.come(0);
    let job = again.submit(1, 0);
    again.flush();
    again.come(1);
    (again, job)
}

#[test]
fn a_job_stays_with_a_node_that_is_back_in_time() {
    let (mut again, job) = scene();
    let before = job.state();
    again.away(0);
    again.world.advance(2_900);
    assert_eq!(job.state(), before, "it waits for its node");
    assert_eq!(again.come(0), [Action::Keep]);
    again.world.advance(1_000);
    assert_eq!(job.state(), before);
    again.work(0, 0, true);
    assert_eq!(again.outcome(&job), Some(Outcome::Succeeded));
    assert!(again.world.assigned.is_empty());
    again.world.audit();
}

#[test]
fn a_job_goes_to_another_node_when_its_own_stays_away_and_may_come_back_before_that_has_it() {
    let (mut again, job) = scene();
    again.away(0);
    again.away(1);
    again.world.advance(3_010);
    assert_eq!(job.state().phase, Phase::Queued);
    // Better late than by nobody.
    again.work(0, 0, false);
    assert_eq!(again.come(0), [Action::Send]);
    assert_eq!(again.outcome(&job), Some(Outcome::Succeeded));
    let second = again.submit(2, 0);
    again.flush();
    again.come(1);
    again.away(0);
    again.world.advance(3_010);
    again.flush();
    again.work(0, 0, false);
    assert_eq!(again.come(0), [Action::Keep, Action::Cancel], "one is not on disk, one is void");
    again.work(1, 0, true);
    assert_eq!(again.outcome(&second), Some(Outcome::Succeeded));
    again.world.audit();
}

#[test]
fn an_outcome_kept_while_its_node_cannot_be_reached_is_acknowledged_once_it_can() {
    let (mut again, job) = scene();
    again.work(0, 0, true);
    again.away(0);
    let (attached, hello) = again.connect(0);
    let (scheduler, now) = (&again.world.scheduler, again.world.now);
    let (mut lost, mut effects) = (Effects::new(), Effects::new());
    let welcome = scheduler.hello(&attached, &hello, now, &mut effects);
    assert_eq!(welcome.jobs[0].action, Action::Keep);
    scheduler.kept(&job, &mut lost);
    scheduler.welcomed(&attached, welcome, now, &mut effects);
    let told = |e: &Effect| matches!(e, Effect::AckResult { status: AckStatus::Duplicate, .. });
    assert!(effects.iter().any(told), "{effects:?}");
}

#[test]
fn what_was_lost_on_its_way_is_given_out_again_even_to_the_same_node() {
    let mut again = able(1);
    again.come(0);
    let job = again.submit(1, 0);
    again.away(0);
    assert_eq!(job.state().phase, Phase::Assigned);
    assert!(again.come(0).is_empty());
    again.flush();
    assert_eq!((job.state().phase, job.state().attempts()), (Phase::Dispatched, 2));
    again.work(0, 0, true);
    assert_eq!(again.outcome(&job), Some(Outcome::Succeeded));
    again.world.audit();
}

#[test]
fn another_run_of_the_program_has_nothing_of_the_one_before() {
    let (mut again, job) = scene();
    again.away(1);
    again.crash(0);
    assert!(again.come(0).is_empty());
    again.flush();
    assert_eq!((job.state().phase, job.state().attempts()), (Phase::Dispatched, 2));
    again.crash(0);
    again.come(0);
    assert_eq!(job.ended().unwrap().code, Some(ErrorCode::PoisonJob), "it ended two programs");
    again.world.audit();
}

#[test]
fn a_job_whose_time_would_be_over_does_not_wait_for_its_node() {
    let (mut again, job) = scene();
    again.world.advance(28_000);
    again.away(0);
    assert_eq!(again.world.assigned.len(), 1, "the other node has it at once");
    again.flush();
    again.work(1, 0, true);
    assert_eq!(again.outcome(&job), Some(Outcome::Succeeded));
}

#[test]
fn coming_again_does_not_prolong_a_job_for_ever() {
    let (mut again, job) = scene();
    again.crash(1);
    let mut rounds = 0;
    while job.state().outcome().is_none() && rounds < 1_000 {
        again.away(0);
        again.come(0);
        again.world.advance(2_000);
        rounds += 1;
    }
    assert_eq!(job.ended().map(|e| e.code), Some(Some(ErrorCode::JobTimeout)));
    assert!(rounds > 20, "each time it has a fresh lease: {rounds}");
}

#[test]
fn after_a_restart_jobs_wait_for_the_nodes_that_have_them() {
    let mut again = able(2);
    again.come(0);
    let jobs: Vec<_> = (0..3).map(|n| again.submit(n, 0)).collect();
    again.flush();
    // Two slots: two are with the node, one waits.
    again.work(0, 0, false);
    let before = jobs[1].state().attempt;
    again.restart();
    again.come(1);
    assert!(again.world.assigned.is_empty(), "they are held back");
    assert_eq!(again.come(0), [Action::Keep, Action::Send]);
    let running = again.state(&jobs[1]);
    assert_eq!((running.phase, running.attempt), (Phase::Running, before));
    assert_eq!(again.outcome(&jobs[0]), Some(Outcome::Succeeded));
    again.world.audit();
    again.release();
    again.flush();
    assert_eq!(again.state(&jobs[2]).attempt, 4 << 8 | 1, "of this boot");
    again.work(0, 0, true);
    assert_eq!(again.outcome(&jobs[1]), Some(Outcome::Succeeded));
    again.world.audit();
}

#[test]
fn of_two_nodes_that_claim_a_restored_job_one_has_it() {
    let mut again = able(2);
    again.come(0);
    let job = again.submit(1, 0);
    again.flush();
    again.nodes[1].unacked = again.nodes[0].inflight.clone();
    again.restart();
    assert_eq!(again.come(0), [Action::Keep]);
    assert_eq!(again.come(1), [Action::Cancel]);
    // It is taken from there after all: what follows is of this boot, and above.
    again.world.advance(31_000);
    again.flush();
    let after = again.state(&job);
    assert_eq!((after.phase, after.attempt), (Phase::Dispatched, 4 << 8 | 1));
    again.away(0);
    assert_eq!(again.come(0), [Action::Cancel], "of an earlier boot, when there is one of this");
    again.world.audit();
}

#[test]
fn an_older_attempt_that_was_adopted_after_a_newer_one_is_lost_like_any_other() {
    let mut again = able(2);
    again.come(0);
    let job = again.submit(1, 0);
    again.flush();
    let (job_id, attempt_id) = (job.id, job.state().attempt);
    again.nodes[0].inflight[0].attempt_id = attempt_id + 4;
    again.nodes[1].inflight.push(Attempt { job_id, attempt_id });
    again.restart();
    for at in [0, 1] {
        assert_eq!(again.come(at), [Action::Keep]);
        assert_eq!(again.state(&job).phase, Phase::Running);
        again.away(at);
        again.world.advance(3_010);
        assert!(!again.state(&job).in_flight(), "it is at {:?}", again.state(&job));
    }
    assert_eq!(
        again.world.scheduler.job(job_id).unwrap().ended().unwrap().code.unwrap(),
        ErrorCode::PoisonJob
    );
    again.world.audit();
}

/// A step of a random world.
#[derive(Debug, Clone)]
enum Step {
    Say(u64, Cut),
    Flush,
    Work { node: usize, which: usize, arrives: bool },
    Keep(usize),
    Away(usize),
    Crash(usize),
    Come(usize),
    Advance(u64),
    Restart,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0_usize..3;
    prop_oneof![
        4 => (0_u64..4).prop_map(|session| Step::Say(session, Cut::Manual)),
        2 => (0_u64..4).prop_map(|session| Step::Say(session, Cut::MaxDuration)),
        5 => Just(Step::Flush),
        5 => (node(), 0_usize..4, any::<bool>())
            .prop_map(|(node, which, arrives)| Step::Work { node, which, arrives }),
        3 => (0_usize..8).prop_map(Step::Keep),
        3 => node().prop_map(Step::Away),
        1 => node().prop_map(Step::Crash),
        5 => node().prop_map(Step::Come),
        3 => (1_u64..6_000).prop_map(Step::Advance),
        1 => Just(Step::Restart),
        1 => Just(Step::Release),
    ]
}

fn run(steps: Vec<Step>) {
    let mut again = able(3);
    let mut submitted = 0;
    for step in steps {
        match step {
            Step::Say(session, cut) => {
                again.say(session, submitted, cut);
                submitted += 1;
            }
            Step::Flush => again.flush(),
            Step::Work { node, which, arrives } => again.work(node, which, arrives),
            Step::Keep(which) => again.keep(which),
            Step::Away(at) => again.away(at),
            Step::Crash(at) => again.crash(at),
            // Also while it is connected: the newer connection speaks.
            Step::Come(at) => {
                again.come(at);
            }
            Step::Advance(ms) => again.world.advance(ms),
            Step::Restart => again.restart(),
            Step::Release => again.release(),
        }
        again.world.audit();
    }
    (0..4).for_each(|session| drop(again.submit(session, submitted + session)));
    finish(again);
}

/// Everybody comes and works until everything is done, kept and acknowledged.
fn finish(mut again: Again) {
    again.release();
    for _ in 0..20 {
        for at in 0..again.nodes.len() {
            again.come(at);
            again.flush();
            again.work(at, 0, true);
        }
        again.world.advance(5_000);
        again.world.perform(vec![Effect::WakeQueue]);
        again.world.audit();
    }
    let left = again.world.jobs.iter().filter(|j| j.state().outcome().is_none());
    let left: Vec<_> = left.map(|j| j.explain()).collect();
    assert!(left.is_empty(), "never ended: {left:?}");
    for _ in 0..again.world.jobs.len() {
        again.keep(0);
    }
    for at in 0..again.nodes.len() {
        again.come(at);
        assert_eq!(again.nodes[at].unacked, [], "never acknowledged");
    }
    assert!(again.world.registry.all().iter().all(|node| node.slots().0 == 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn whoever_comes_and_goes_every_job_ends_and_no_run_of_a_node_has_one_twice(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        run(steps);
    }
}
