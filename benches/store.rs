//! What it costs to turn rows into bytes and back, and to make groups of them durable on the disk
//! that holds the build directory.
//!
//! `cargo bench --bench store` measures; `cargo test --bench store` only shows that it works.

mod world;

use std::fmt::Debug;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use utterd::protocol::job::{Audio, ChunkMark, Outcome};
use utterd::protocol::{JobId, NodeId, SessionId};
use utterd::store::codec::{Record, decode, encode};
use utterd::store::{Engine, StoreOptions, Write};
use utterd::store::{IdemRow, JobRow, OutboxRow, SessionRow, TerminalRow};

use world::SECOND_BYTES;

const SESSION: SessionId = SessionId(0x00C0_FFEE);
const NOW_MS: u64 = 1_700_000_000_000;

fn job_row(index: u64) -> JobRow {
    let spec = world::spec(SESSION, index, "zh:en".parse().expect("a pair"));
    JobRow {
        id: JobId(fastrand::u128(..)),
        spec,
        accepted_unix_ms: NOW_MS,
        attempts: 0,
        chunks: Some(ChunkMark { through: index, skip: 0 }),
        audio_crc: 0,
        audio_bytes: 0,
    }
}

fn terminal_row(job: JobId, index: u64) -> TerminalRow {
    TerminalRow {
        id: job,
        session: SESSION,
        utterance_index: index,
        outcome: Outcome::Succeeded,
        code: String::new(),
        message: String::new(),
        attempts: 1,
        node: Some(NodeId::from("node-0001")),
        settled_unix_ms: NOW_MS,
        explanation: br#"{"phase":"succeeded","placements":[{"node":"node-0001"}]}"#.repeat(10),
    }
}

fn session_row() -> SessionRow {
    SessionRow {
        id: SESSION,
        trace_id: "trace-2f1c8a90".into(),
        tenant: None,
        platform: "android".into(),
        client_version: "2.3.1".into(),
        src: "zh".parse().expect("a language"),
        tgt: "en".parse().expect("a language"),
        opened_unix_ms: NOW_MS,
        epoch: 1,
        resume_hash: Some([7; 32]),
        paired: None,
        init: vec![b' '; 300],
    }
}

fn there_and_back<T>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, row: T)
where
    T: Record + Debug + PartialEq,
{
    let bytes = encode(&row);
    assert_eq!(decode::<T>(&bytes).as_ref(), Ok(&row));
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(format!("{name}, encode"), |b| b.iter(|| encode(black_box(&row))));
    group.bench_function(format!("{name}, decode"), |b| {
        b.iter(|| decode::<T>(black_box(&bytes)));
    });
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row");
    let job = JobId(9);
    there_and_back(&mut group, "JobRow", job_row(3));
    there_and_back(&mut group, "TerminalRow", terminal_row(job, 3));
    let expires_unix_ms = NOW_MS + 300_000;
    there_and_back(&mut group, "IdemRow", IdemRow { key: 5, job, digest: 7, expires_unix_ms });
    there_and_back(&mut group, "SessionRow", session_row());
    let outbox = |frame: Vec<u8>| OutboxRow {
        session: SESSION,
        seq: 4,
        job,
        utterance_index: 3,
        created_unix_ms: NOW_MS,
        frame,
    };
    let voice = world::base64_of(SECOND_BYTES).into_bytes();
    there_and_back(&mut group, "OutboxRow of 400 B", outbox(voice[..400].to_vec()));
    there_and_back(&mut group, "OutboxRow of 43 KB", outbox(voice));
    group.finish();
}

/// A database, and jobs of one session that come and go.
struct Disk {
    engine: Engine,
    audio: Audio,
    next: u64,
    _directory: tempfile::TempDir,
}

impl Disk {
    /// Whose jobs have so many bytes of audio, as base64 that is decoded on the way.
    fn new(audio_bytes: usize) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let options =
            StoreOptions { terminal_rows_max: 4_096, ballast_bytes: 0, ..StoreOptions::default() };
        let opened = Engine::open(directory.path(), &options, NOW_MS);
        let (mut engine, _) = opened.expect("a new database");
        engine.commit(vec![Write::OpenSession(session_row())], NOW_MS).expect("durable");
        let audio = Audio::Base64(Bytes::from(world::base64_of(audio_bytes)));
        Self { engine, audio, next: 0, _directory: directory }
    }

    fn jobs(&mut self, batch: usize) -> Vec<Write> {
        let accept = |index| {
            let row = Box::new(job_row(index));
            let (key, job, expires_unix_ms) = (fastrand::u128(..), row.id, NOW_MS + 300_000);
            let idempotency = Some(IdemRow { key, job, digest: 0, expires_unix_ms });
            Write::AcceptJob { row, audio: self.audio.clone(), idempotency }
        };
        let from = self.next;
        self.next += batch as u64;
        (from..self.next).map(accept).collect()
    }

    /// One transaction and its sync; how long that took.
    fn commit(&mut self, writes: Vec<Write>) -> Duration {
        let (began, n) = (Instant::now(), writes.len());
        let committed = self.engine.commit(writes, NOW_MS);
        let took = began.elapsed();
        assert_eq!(committed.expect("durable").len(), n);
        took
    }

    /// Accepts so many jobs in one transaction, and ends them in another, which is not counted:
    /// what is live stays little, as it does on a server that keeps up.
    fn accept(&mut self, batch: usize) -> Duration {
        let writes = self.jobs(batch);
        let end = |write: &Write| match write {
            Write::AcceptJob { row, .. } => {
                let terminal = Box::new(terminal_row(row.id, row.spec.utterance_index));
                Write::SettleJob {
                    terminal,
                    outbox: None,
                    heard: Vec::new(),
                    dead: false,
                    refused: None,
                }
            }
            other => panic!("not a job: {other:?}"),
        };
        let ends = writes.iter().map(end).collect();
        let took = self.commit(writes);
        self.commit(ends);
        took
    }
}

fn groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.warm_up_time(Duration::from_secs(1));
    let sizes = [(0, [1, 32, 128, 512].as_slice()), (SECOND_BYTES, &[1, 8, 32])];
    for (audio, batches) in sizes {
        let what = if audio == 0 { "job rows" } else { "job rows with 32 KB of audio" };
        for &batch in batches {
            let mut disk = Disk::new(audio);
            disk.accept(batch);
            let write = disk.jobs(1).remove(0);
            let Write::AcceptJob { ref row, .. } = write else { panic!("not a job") };
            let (id, index) = (row.id, row.spec.utterance_index);
            disk.commit(vec![write]);
            let terminal = Box::new(terminal_row(id, index));
            let write = Write::SettleJob {
                terminal,
                outbox: None,
                heard: Vec::new(),
                dead: false,
                refused: None,
            };
            disk.commit(vec![write]);
            let stored = disk.engine.reader().terminal(id).expect("readable");
            assert_eq!(stored, Some(terminal_row(id, index)), "what was committed is there");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("{batch} {what}"), |bencher| {
                bencher.iter_custom(|iters| (0..iters).map(|_| disk.accept(batch)).sum());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rows, groups);
criterion_main!(benches);
