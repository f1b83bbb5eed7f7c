//! What the choice of a node costs: one look at the snapshot, one slot, and its return; alone and
//! against another thread; and what it costs to publish a snapshot.
//!
//! `cargo bench --bench placement` measures; `cargo test --bench placement` only shows that it
//! works.

mod world;

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use utterd::config;
use utterd::node::pool::Pools;
use utterd::node::{Need, Registry, Verdict, select};
use utterd::protocol::job::Pipeline;
use utterd::protocol::node::ServiceSet;
use utterd::protocol::{NodeId, Pair};
use utterd::telemetry::Now;

use world::{InFlight, Load, World, all_pairs, is_smoke, report};

/// Threads that place at the same time.
const THREADS: usize = 2;

fn one_pair() -> Vec<Pair> {
    vec!["zh:en".parse().expect("a pair")]
}

/// Places a job that needs `pair`, and takes it back.
fn place(pools: &Pools, pair: &[Pair]) {
    let services = ServiceSet::of(&Pipeline::default());
    let need =
        Need { pairs: pair, services, tenant: None, excluded: &[], prefer: None, only: None };
    let (claim, reasons) = pools.with(|s| select(s, black_box(&need), Now::default()));
    black_box(reasons);
    claim.expect("there is room").node.release();
}

/// Places as `place` does, on so many threads at the same time, each `iters` times.
fn contended(pools: &Arc<Pools>, pairs: &[Pair], iters: u64) -> Duration {
    let begin = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pools, begin) = (Arc::clone(pools), &begin);
            scope.spawn(move || {
                fastrand::seed(thread as u64);
                begin.wait();
                for n in 0..iters as usize {
                    place(&pools, &pairs[n % pairs.len()..][..1]);
                }
                begin.wait();
            });
        }
        begin.wait();
        let began = Instant::now();
        begin.wait();
        began.elapsed()
    })
}

fn among(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement");
    for nodes in [10, 100, 1_000] {
        let pair = one_pair();
        let world = World::new(nodes, &pair, 64, config::Job::default());
        let services = ServiceSet::of(&Pipeline::default());
        let need =
            Need { pairs: &pair, services, tenant: None, excluded: &[], prefer: None, only: None };
        let (claim, reasons) = world.pools.with(|s| select(s, &need, Now::default()));
        let claim = claim.expect("there is room");
        assert_eq!((claim.node.slots(), reasons.considered[0].verdict), ((1, 64), Verdict::Chosen));
        claim.node.release();
        fastrand::seed(1);
        group.bench_function(format!("1 of {nodes}, one thread"), |bencher| {
            bencher.iter(|| place(&world.pools, &pair));
        });
        group.bench_function(format!("1 of {nodes}, each of two threads"), |bencher| {
            bencher.iter_custom(|iters| contended(&world.pools, &pair, iters));
        });
        assert!(world.nodes.iter().all(|n| n.node.slots().0 == 0), "all slots were given back");
    }
    group.finish();
}

/// A large house: 1,000 nodes, twenty pairs, and 100,000 jobs that are with nodes.
fn in_a_full_house(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement_full_house");
    let (nodes, live) = if is_smoke() { (100, 1_000) } else { (1_000, 100_000) };
    let job = config::Job { live_max: 2 * live, ..config::Job::default() };
    fastrand::seed(1);
    let pairs = all_pairs();
    let world = World::new(nodes, &pairs, 128, job);
    let mut load = Load::new(world, live / 10, pairs.clone());
    let mut in_flight = load.fill(live);
    let mut next = 0;
    group.bench_function("choose, claim and release", |bencher| {
        bencher.iter(|| {
            next += 1;
            place(&load.world.pools, &pairs[next % pairs.len()..][..1]);
        });
    });
    group.bench_function("choose, claim and release, each of two threads", |bencher| {
        bencher.iter_custom(|iters| contended(&load.world.pools, &pairs, iters));
    });
    group.bench_function("from the submission to the assignment", |bencher| {
        bencher.iter_custom(|iters| {
            let mut taken = Duration::ZERO;
            for _ in 0..iters {
                let submission = load.submission();
                let began = Instant::now();
                load.submit(submission);
                taken += began.elapsed();
                in_flight.append(&mut load.placed());
                // One at random ends, so that as many stay.
                let over = fastrand::usize(..in_flight.len());
                let over: InFlight = in_flight.swap_remove(over);
                load.answer(&over);
                load.settled(1);
            }
            taken
        });
    });
    assert_eq!((in_flight.len(), load.world.scheduler.live()), (live, live));
    group.finish();
}

fn publishing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish");
    let nodes = if is_smoke() { 100 } else { 1_000 };
    let pairs = all_pairs();
    let mut world = World::new(nodes, &pairs, 4, config::Job::default());
    group.bench_function("the whole snapshot, 1,000 nodes × 20 pairs", |bencher| {
        bencher.iter(|| world.publisher.replace_config(Vec::new(), true));
    });
    let node = Arc::clone(&world.nodes[nodes / 2].node);
    group.bench_function("one node of 1,000 that serves all 20 pairs", |bencher| {
        bencher.iter(|| world.publisher.node_changed(&node));
    });
    let special = specialist(&world.registry, &pairs[..1]);
    group.bench_function("one node more that serves 1 of the 20 pairs", |bencher| {
        bencher.iter(|| world.publisher.node_changed(&special.node));
    });
    let served = world.pools.with(|s| {
        let of = |pair: Pair| s.route(pair).map_or(0, |route| route.pools[0].nodes.len());
        (of(pairs[0]), of(pairs[1]), s.routes().count())
    });
    assert_eq!(served, (nodes + 1, nodes, 20), "everybody is in the snapshot");
    group.finish();
}

fn specialist(registry: &Registry, pairs: &[Pair]) -> utterd::node::Attached {
    let attached = registry.attach(NodeId::from("special"), Now::default()).expect("there is room");
    registry.report(&attached, &report(pairs, 4), Now::default());
    attached
}

criterion_group!(benches, among, in_a_full_house, publishing);
criterion_main!(benches);
