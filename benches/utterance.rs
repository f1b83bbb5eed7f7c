//! What an utterance costs between the sockets: decoded, cut, submitted, placed, encoded for the
//! node, answered, put into order, encoded for the client. One thread, no sockets, no disk.
//!
//! `cargo bench --bench utterance` takes the time. With `UTTERD_UTTERANCES` set it says so many
//! utterances of `UTTERD_SPEECH_BYTES` bytes and measures nothing: `tests/instructions.rs` counts
//! what the processor does meanwhile.

mod journey;
mod world;

use std::hint::black_box;

use criterion::{Criterion, Throughput};

use journey::Journey;
use world::SECOND_BYTES;

fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("utterance");
    for (name, seconds, voice) in [("43 KB", 1, 0), ("430 KB", 10, 0), ("43 KB, spoken", 1, 1)] {
        let mut journey = Journey::new(seconds * SECOND_BYTES, voice * SECOND_BYTES);
        journey.go_and_show();
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter(|| black_box(journey.go())));
    }
    group.finish();
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

fn main() {
    if let Some(utterances) = number("UTTERD_UTTERANCES") {
        let speech = number("UTTERD_SPEECH_BYTES").unwrap_or(SECOND_BYTES);
        let mut journey = Journey::new(speech, 0);
        for _ in 0..utterances {
            black_box(journey.go());
        }
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    measure(&mut criterion);
    criterion.final_summary();
}
