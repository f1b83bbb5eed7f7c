//! What it costs to take in a stream of chunks and to cut it, through the session that does it.
//!
//! `cargo bench --bench segmenter` measures; `cargo test --bench segmenter` only shows that it
//! works.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use utterd::config;
use utterd::protocol::SessionId;
use utterd::protocol::job::{Audio, Cut};
use utterd::protocol::session::{AudioChunk, Request, decode};
use utterd::session::{Effect, Effects, Input, Profile, Session};
use utterd::telemetry::Now;

const SESSION: SessionId = SessionId(0x00C0_FFEE);
/// Length of a chunk, in milliseconds.
const CHUNK_MS: u64 = 200;
/// Chunks of an utterance that the speaker ends: two seconds.
const CHUNKS: u64 = 10;

/// One session and its clock.
struct Stream {
    session: Session,
    effects: Effects,
    now: Now,
    seq: u64,
    chunk: Bytes,
}

/// What came of some chunks.
#[derive(Debug, Default, PartialEq)]
struct Came {
    cuts: Vec<Cut>,
    said_bytes: usize,
    silent_bytes: usize,
}

impl Stream {
    fn new(format: &str, chunk: Bytes) -> Self {
        let init = json!({"type": "session_init", "client_version": "1", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "audio_format": format, "sample_rate": 16_000});
        let request = decode(&Bytes::from(init.to_string()));
        let Ok(Request::Init(init)) = request else { panic!("{request:?}") };
        let profile = Profile::new(*init, "trace".into()).expect("a good profile");
        let config = (config::Session::default(), config::Segmenter::default());
        let session = Session::new(SESSION, profile, 1, false, config);
        let now = Now { us: 1_000_000, unix_ms: 1_700_000_000_000 };
        Self { session, effects: Effects::new(), now, seq: 0, chunk }
    }

    /// One chunk more.
    fn push(&mut self, is_final: bool) {
        self.seq += 1;
        self.now.us += CHUNK_MS * 1_000;
        let chunk = AudioChunk {
            session_id: SESSION.to_string(),
            seq: self.seq,
            is_final,
            audio: self.chunk.clone(),
            client_timestamp_ms: None,
        };
        let input = Input::Request(Request::AudioChunk(black_box(chunk)));
        self.session.apply(input, self.now, &mut self.effects);
    }

    /// An utterance of so many chunks, and the moment at which it is cut.
    fn utterance(&mut self, chunks: u64) {
        (1..=chunks).for_each(|n| self.push(n == chunks));
        self.now.us += 201_000;
        self.session.apply(Input::Tick, self.now, &mut self.effects);
    }

    /// Takes what came of it.
    fn came(&mut self) -> Came {
        let mut came = Came::default();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Submit(cutting) => {
                    came.cuts.push(cutting.spec.cut);
                    let Audio::Raw(audio) = &cutting.audio else { panic!("cut from bytes") };
                    came.said_bytes += black_box(audio).len();
                }
                Effect::Silence(_, bytes) | Effect::Dropped(_, bytes) => came.silent_bytes += bytes,
                Effect::WasCut(_) => {}
                other => panic!("not of a stream: {other:?}"),
            }
        }
        came
    }
}

/// So many milliseconds of a tone.
fn pcm(ms: u64) -> Bytes {
    let sample = |n: u64| if (n / 20).is_multiple_of(2) { 6_000_i16 } else { -6_000 };
    (0..ms * 16).flat_map(|n| sample(n).to_le_bytes()).collect()
}

/// So many milliseconds of 20 ms packets at 24 kbit/s.
fn opus(ms: u64) -> Bytes {
    (0..ms / 20).flat_map(|n| [60, 0].into_iter().chain([0x48 ^ n as u8; 60])).collect()
}

fn ended_by_the_speaker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segmenter");
    for (format, chunk) in [("pcm16", pcm(CHUNK_MS)), ("opus", opus(CHUNK_MS))] {
        let mut stream = Stream::new(format, chunk);
        stream.utterance(CHUNKS);
        let bytes = stream.chunk.len() * CHUNKS as usize;
        let all = Came { cuts: vec![Cut::Manual], said_bytes: bytes, silent_bytes: 0 };
        assert_eq!(stream.came(), all, "an utterance is what was said");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{format}: ten chunks of 200 ms, cut by the speaker"), |b| {
            b.iter(|| {
                stream.utterance(CHUNKS);
                stream.came()
            });
        });
    }
    group.finish();
}

fn without_an_end(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segmenter");
    for (format, chunk) in [("pcm16", pcm(CHUNK_MS)), ("opus", opus(CHUNK_MS))] {
        let mut stream = Stream::new(format, chunk);
        (0..51).for_each(|_| stream.push(false));
        let came = stream.came();
        assert_eq!((came.cuts, came.silent_bytes), (vec![Cut::MaxDuration], 0));
        group.throughput(Throughput::Bytes(stream.chunk.len() as u64));
        group.bench_function(format!("{format}: a chunk of 200 ms, sliced at 10 s"), |b| {
            b.iter(|| {
                stream.push(false);
                stream.came()
            });
        });
    }
    group.finish();
}

/// All of it is listened to, and thrown away.
fn silence(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segmenter");
    let mut stream = Stream::new("pcm16", Bytes::from(vec![0; 6_400]));
    (0..10).for_each(|_| stream.push(false));
    let came = stream.came();
    assert_eq!((came.cuts.len(), came.said_bytes), (0, 0));
    assert!(came.silent_bytes > 0, "silence before speech is not kept");
    group.throughput(Throughput::Bytes(6_400));
    group.bench_function("pcm16: a chunk of 200 ms of silence", |b| {
        b.iter(|| {
            stream.push(false);
            stream.came()
        });
    });
    group.finish();
}

criterion_group!(benches, ended_by_the_speaker, without_an_end, silence);
criterion_main!(benches);
