//! What a job costs from its submission to its outcome on disk, in the scheduler alone; and that
//! the cost does not grow with sessions and nodes.
//!
//! `cargo bench --bench jobs` measures; `cargo test --bench jobs` only shows that it works.

mod world;

use std::collections::VecDeque;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use utterd::config;
use utterd::job::{Event, Phase, State, transition};
use utterd::node::NodeIndex;
use utterd::protocol::job::Outcome;

use world::{Load, World, all_pairs, is_smoke};

/// Jobs that are with nodes at the same time.
const IN_FLIGHT: usize = 100;

fn the_word(criterion: &mut Criterion) {
    let node = NodeIndex(7);
    let life = |attempt: u32| {
        let events = [
            Event::Place { node, floor: 0x100 },
            Event::Written(attempt),
            Event::Started(attempt),
            Event::Answer(attempt, Outcome::Succeeded),
        ];
        let step = |state, event| transition(black_box(state), black_box(event));
        events.into_iter().try_fold(State::queued(1), step)
    };
    let ended = State { phase: Phase::Ended(Outcome::Succeeded), node, attempt: 0x101 };
    assert_eq!(life(0x101), Some(ended));
    criterion.bench_function("state::transition, four in a life", |bencher| {
        bencher.iter(|| life(black_box(0x101)));
    });
}

/// submit → placed → written → answered → kept, all effects taken.
fn whole_life(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("job");
    let many = if is_smoke() { 100 } else { 1_000 };
    for (sessions, nodes) in [(10, 4), (10_000, 4), (10, many), (10_000, many)] {
        fastrand::seed(1);
        let pairs = all_pairs();
        let world = World::new(nodes, &pairs, 64, config::Job::default());
        let mut load = Load::new(world, sessions, pairs);
        let mut in_flight: VecDeque<_> = load.fill(IN_FLIGHT).into();
        // The memory of ended jobs is full in a server that is not young.
        let mut one_more = || {
            let submission = load.submission();
            load.submit(submission);
            in_flight.extend(load.placed());
            let oldest = in_flight.pop_front().expect("there are many");
            load.answer(&oldest);
            load.settled(1);
        };
        let warm = if is_smoke() { 10 } else { 12_000 };
        (0..warm).for_each(|_| one_more());
        group.bench_function(format!("{sessions} sessions, {nodes} nodes"), |bencher| {
            bencher.iter(&mut one_more);
        });
        assert_eq!(load.world.scheduler.live(), IN_FLIGHT);
    }
    group.finish();
}

criterion_group!(benches, the_word, whole_life);
criterion_main!(benches);
