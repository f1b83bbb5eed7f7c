//! Tenants that want the same slots, in virtual time: what a flood of one does to the other, and
//! that shares follow the weights.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::protocol::job::Pipeline;
use crate::tenant::Denied;

const SLOTS: usize = 8;
const SECOND_US: u64 = 1_000_000;

/// What is spoken and what is wanted.
type Languages = (&'static str, &'static str);

/// One tenant's stream of utterances, at random times.
struct Stream {
    tenant: &'static str,
    pair: Languages,
    pipeline: Pipeline,
    /// How many a second, on average.
    rate: f64,
    rng: fastrand::Rng,
    next_us: u64,
    speaker: Arc<Speaker>,
    said: u64,
    accepted: Vec<Arc<Job>>,
    refused: Vec<Denied>,
}

impl Stream {
    /// The stream of that number, from which its chances come.
    fn new(world: &World, (at, tenant): (usize, &'static str), pair: Languages, rate: f64) -> Self {
        let account = world.scheduler.accounts().of(Some(tenant));
        let session = SessionId(at as u64 + 1);
        let mut stream = Self {
            tenant,
            pair,
            pipeline: Pipeline::default(),
            rate,
            rng: fastrand::Rng::with_seed(session.0),
            next_us: 0,
            speaker: world.scheduler.speaker(session, account),
            said: 0,
            accepted: Vec::new(),
            refused: Vec::new(),
        };
        stream.wait();
        stream
    }

    /// Until the next utterance: exponential.
    fn wait(&mut self) {
        let seconds = -(1.0 - self.rng.f64()).ln() / self.rate;
        self.next_us += (seconds * SECOND_US as f64) as u64;
    }

    fn say(&mut self, world: &mut World, audio_ms: u32) {
        let index = self.said;
        self.said += 1;
        let spec = JobSpec {
            session: self.speaker.session,
            utterance_index: index,
            turn: TurnId(u128::from(self.speaker.session.0) << 64 | u128::from(index)),
            tenant: Some(self.tenant.into()),
            audio_ms,
            pipeline: self.pipeline,
            ..spec(self.pair.0, self.pair.1)
        };
        let audio = Audio::Raw(Bytes::from_static(b"audio"));
        let (received_us, cut_us) = (world.now.us, world.now.us);
        let submission = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
        let mut effects = Effects::new();
        match world.scheduler.submit(&self.speaker, submission, world.now, &mut effects) {
            Ok(Submitted::New(job)) => self.accepted.push(job),
            Ok(Submitted::Repeated(job)) => panic!("{job} came before"),
            Err(denied) => self.refused.push(denied),
        }
        world.perform(effects);
    }

    /// Jobs that were never with a node.
    fn unplaced(&self) -> usize {
        self.accepted.iter().filter(|job| job.stamps.at(Stage::Placed) == 0).count()
    }

    /// How long the others waited, in milliseconds, shortest first.
    fn waits_ms(&self) -> Vec<f64> {
        let wait = |job: &Arc<Job>| job.stamps.between(Stage::Queued, Stage::Placed);
        let mut waits: Vec<f64> =
            self.accepted.iter().filter_map(wait).map(|us| us as f64 / 1e3).collect();
        waits.sort_unstable_by(f64::total_cmp);
        waits
    }
}

/// The value that so many in a hundred do not exceed.
fn at_share(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0.0)
}

/// Eight of them, at four nodes.
fn slots() -> World {
    let config = config::Job { live_max: 2_000, queue_max: 64, ..small() };
    let mut world = World::new(config);
    for node in 0..SLOTS / 2 {
        world.join(&format!("n{node}"));
    }
    world
}

/// Lets the streams speak for so many seconds, and everything end. An utterance has 0.5 to 1.5 s of
/// audio, and a node takes as long for it.
fn play(world: &mut World, streams: &mut [Stream], seconds: u64) {
    let mut working: BinaryHeap<Reverse<(u64, JobId)>> = BinaryHeap::new();
    let until = seconds * SECOND_US;
    loop {
        let next = (0..streams.len()).min_by_key(|at| streams[*at].next_us).unwrap();
        let said_at = Some(streams[next].next_us).filter(|at| *at < until);
        let done_at = working.peek().map(|Reverse((at, _))| *at);
        let Some(at) = said_at.into_iter().chain(done_at).min() else { break };
        world.advance_to(at);
        if done_at == Some(at) {
            let Reverse((_, done)) = working.pop().unwrap();
            let held = world.held.iter().position(|(job, ..)| job.id == done).unwrap();
            world.answer_with(held, |_| {});
        } else {
            let audio_ms = streams[next].rng.u32(500..1_500);
            streams[next].say(world, audio_ms);
            streams[next].wait();
        }
        let started = world.assigned.len();
        world.flush();
        for (job, ..) in world.held.iter().rev().take(started) {
            let ends_us = world.now.us + u64::from(job.spec.audio_ms) * 1_000;
            working.push(Reverse((ends_us, job.id)));
        }
    }
}

/// The quiet tenant asks for a quarter of what the slots can do, the other for `times` the rest:
/// they are busy in either case. What became of both within so many seconds.
fn quiet_beside(
    times: f64,
    names: [&'static str; 2],
    pairs: [Languages; 2],
    seconds: u64,
) -> [Stream; 2] {
    let mut world = slots();
    let rates = [0.25 * SLOTS as f64, 0.75 * SLOTS as f64 * times];
    let stream = |at: usize| Stream::new(&world, (at, names[at]), pairs[at], rates[at]);
    let mut streams = [stream(0), stream(1)];
    play(&mut world, &mut streams, seconds);
    streams
}

/// Figures of docs/BENCHMARKS.md.
#[test]
#[allow(clippy::print_stdout, reason = "the figures")]
fn a_flood_of_one_tenant_leaves_the_waits_of_another_as_they_were() {
    const ZH_EN: Languages = ("zh", "en");
    // The other pair, for the same nodes, stands before this one in every table.
    let another = ("another pair", ("en", "zh"), 200);
    for (where_, flooded, seconds) in [("the same pair", ZH_EN, 600), another] {
        // With nine tenths there is a slot free now and then, which is another load.
        let figures = [0.9, 1.0, 50.0].map(|times| {
            let [quiet, busy] = quiet_beside(times, ["quiet", "busy"], [ZH_EN, flooded], seconds);
            assert_eq!((quiet.refused.len(), quiet.unplaced()), (0, 0), "it is shut out");
            let waits = quiet.waits_ms();
            let (p50, p99, most) =
                (at_share(&waits, 50), at_share(&waits, 99), at_share(&waits, 100));
            println!(
                "{where_}, the other at {times} times its share ({} said, {} refused): {} waits, \
                 p50 {p50:.0} ms, p99 {p99:.0} ms, most {most:.0} ms",
                busy.said,
                busy.refused.len(),
                waits.len()
            );
            p99
        });
        let [_, usual, flood] = figures;
        let change = (flood / usual - 1.0) * 100.0;
        println!("{where_}: p99 changes by {change:.1} %");
        assert!(change.abs() < 20.0, "{usual} ms, in the flood {flood} ms");
        assert!(flood < 1_500.0, "{flood} ms is longer than the longest utterance");
    }
    // What would become of it without an account of its own.
    let [quiet, _] = quiet_beside(50.0, ["both", "both"], [ZH_EN, ZH_EN], 60);
    let served = quiet.accepted.len() - quiet.unplaced();
    println!(
        "in one queue with the flood: {served} of {} utterances placed, p99 {:.0} ms",
        quiet.said,
        at_share(&quiet.waits_ms(), 99)
    );
    assert!(served * 2 < quiet.said as usize, "the flood does not show: {served}");
}

/// A tenant of that weight, as the configuration lists it.
fn listed(name: &str, weight: u32) -> config::Tenant {
    config::Tenant { name: name.into(), weight, ..config::Tenant::default() }
}

/// Tenants that all have many jobs waiting when the first node comes: whose jobs are placed, in
/// order, and how long each is.
fn order_of(weights: &[u32], lengths: &[Vec<u32>]) -> Vec<(usize, u32)> {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let tenants: Vec<_> = weights.iter().zip(NAMES).map(|(w, name)| listed(name, *w)).collect();
    let mut world = World::with_tenants(small(), &tenants);
    let mut streams: Vec<Stream> = (0..weights.len())
        .map(|at| Stream::new(&world, (at, NAMES[at]), ("zh", "en"), 1.0))
        .collect();
    for (stream, lengths) in streams.iter_mut().zip(lengths) {
        lengths.iter().for_each(|audio_ms| stream.say(&mut world, *audio_ms));
    }
    world.join("n");
    let mut order = Vec::new();
    while !world.assigned.is_empty() {
        for (job, ..) in &world.assigned {
            order.push((job.spec.session.0 as usize - 1, job.spec.audio_ms));
        }
        world.flush();
        world.answer_with(0, |_| {});
    }
    assert_eq!(world.scheduler.waiting(), 0, "somebody starves");
    order
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// At every moment at which two tenants both have jobs waiting, what they were given so far,
    /// divided by their weights, differs by no more than a longest job of each.
    #[test]
    fn shares_follow_the_weights_and_nobody_starves(
        tenants in proptest::collection::vec(
            (1_u32..=10, proptest::collection::vec(1_u32..3_000, 20..40)), 2..=4)
    ) {
        let (weights, lengths): (Vec<u32>, Vec<Vec<u32>>) = tenants.into_iter().unzip();
        let order = order_of(&weights, &lengths);
        prop_assert_eq!(order.len(), lengths.iter().map(Vec::len).sum::<usize>());
        let cost = |audio_ms: u32| f64::from(audio_ms.max(250));
        let longest = |t: usize| lengths[t].iter().map(|ms| cost(*ms)).fold(0.0, f64::max);
        let (mut had, mut jobs) = (vec![0.0; weights.len()], vec![0; weights.len()]);
        for (tenant, audio_ms) in order {
            had[tenant] += cost(audio_ms);
            jobs[tenant] += 1;
            let busy = |t: &usize| jobs[*t] < lengths[*t].len();
            for a in (0..weights.len()).filter(busy) {
                for b in (0..a).filter(busy) {
                    let [wa, wb] = [a, b].map(|t| f64::from(weights[t]));
                    let apart = (had[a] / wa - had[b] / wb).abs();
                    let bound = longest(a) / wa + longest(b) / wb + 1.0;
                    prop_assert!(apart <= bound, "{a} and {b}: {apart} > {bound}");
                }
            }
        }
    }
}

#[test]
fn within_a_tenant_who_came_first_goes_first() {
    let lengths: Vec<u32> = (1..=30).map(|n| n * 100).collect();
    let order = order_of(&[1, 5], &[lengths.clone(), lengths.clone()]);
    for tenant in [0, 1] {
        let own: Vec<u32> = order.iter().filter(|(t, _)| *t == tenant).map(|(_, ms)| *ms).collect();
        assert_eq!(own, lengths);
    }
}

#[test]
fn a_tenant_whose_jobs_cannot_be_placed_blocks_nobody_and_saves_nothing_up() {
    let mut world = World::new(small());
    let mut stuck = Stream::new(&world, (0, "stuck"), ("zh", "en"), 1.0);
    let mut other = Stream::new(&world, (1, "other one"), ("zh", "en"), 1.0);
    // No node has that service.
    stuck.pipeline.use_tone = true;
    for _ in 0..2 * 64 {
        stuck.say(&mut world, 1_000);
    }
    for _ in 0..10 {
        other.say(&mut world, 1_000);
    }
    world.join("n");
    let placed = |stream: &Stream| stream.accepted.len() - stream.unplaced();
    while !world.assigned.is_empty() {
        world.flush();
        world.answer_with(0, |_| {});
    }
    assert_eq!((placed(&stuck), placed(&other)), (0, 10));
    // Now it can be served, and gets one of two, not all until it has caught up.
    stuck.pipeline.use_tone = false;
    for job in std::mem::take(&mut stuck.accepted) {
        let mut effects = Effects::new();
        world.scheduler.cancel(&job, "test", world.now, &mut effects);
        world.perform(effects);
    }
    for _ in 0..6 {
        stuck.say(&mut world, 1_000);
        other.say(&mut world, 1_000);
    }
    for _ in 0..6 {
        world.flush();
        world.answer_with(0, |_| {});
    }
    world.flush();
    let got = (placed(&stuck), placed(&other) - 10);
    assert!(got.0.abs_diff(got.1) <= 2 && got.0 > 2, "{got:?}");
}
