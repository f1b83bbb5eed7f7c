//! How much memory an utterance asks for on its way between the sockets, counted.
//!
//! The same utterances go the same way as in `benches/utterance.rs`: a frame is decoded, the
//! session submits, the scheduler places, the assignment is encoded, the answer is decoded, the
//! last word is encoded. Speech is to be copied once, into the assignment, and a voice once, into
//! the last word. Whoever copies either once more is found here.
//!
//! Counts are of this thread alone, and a block that grows counts whole each time. What the
//! WebSocket library and the store's thread ask for is not in them.

#![allow(clippy::print_stdout, reason = "the counts of a run")]

#[path = "../benches/journey/mod.rs"]
mod journey;
#[path = "../benches/world/mod.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WireFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use utterd::transport::{Connection, Event, Frame, Limits, Outbox, Rates, server_socket};

use journey::Journey;
use world::SECOND_BYTES;

/// Utterances over which a figure is an average: some of what is done is not done for each.
const EACH: u64 = 100;
/// Blocks an utterance may ask for, whatever its length: 70, and a tenth.
const BLOCKS_MAX: u64 = 77;
/// Bytes it may ask for beside one copy of its audio: 12,112, and a fourteenth.
const BYTES_BESIDE_AUDIO_MAX: u64 = 13_000;
/// Bytes by which two averages may differ that should be the same: tables free what left them by
/// and by, and numbers become longer.
const NOISE_BYTES: u64 = 256;
/// Bytes a connection at rest may hold, its pipe of this test included: 4,128, and a tenth.
const RESTING_BYTES_MAX: i64 = 4_600;

/// What so many utterances asked for, each, in blocks and in bytes.
fn per_utterance(journey: &mut Journey) -> (u64, u64) {
    let AllocationInfo { count_total, bytes_total, .. } = measure(|| {
        for _ in 0..EACH {
            journey.go();
        }
    });
    (count_total / EACH, bytes_total / EACH)
}

/// A session in which so many utterances were said before.
fn after(utterances: u64, speech_bytes: usize, voice_bytes: usize) -> Journey {
    let mut journey = Journey::new(speech_bytes, voice_bytes);
    journey.go_and_show();
    for _ in 1..utterances {
        journey.go();
    }
    journey
}

fn base64_len(bytes: usize) -> u64 {
    base64_simd::STANDARD.encoded_length(bytes) as u64
}

#[test]
fn speech_is_copied_once_and_nothing_else_depends_on_its_length() {
    let mut counts = Vec::new();
    for seconds in [1, 10] {
        let mut journey = after(100, seconds * SECOND_BYTES, 0);
        let (blocks, bytes) = per_utterance(&mut journey);
        let audio = base64_len(seconds * SECOND_BYTES);
        println!("{seconds} s of speech: {blocks} blocks, {bytes} bytes, of which {audio} audio");
        assert!(blocks <= BLOCKS_MAX, "{blocks} blocks an utterance of {seconds} s");
        let beside = bytes.saturating_sub(audio);
        let say = format!("{seconds} s: {beside} bytes beside one copy of {audio} bytes of audio");
        assert!(beside <= BYTES_BESIDE_AUDIO_MAX, "{say}");
        counts.push((blocks, beside));
    }
    let [short, long] = [counts[0], counts[1]];
    assert!(short.0.abs_diff(long.0) <= 1, "{} blocks, {} of 10 s", short.0, long.0);
    assert!(short.1.abs_diff(long.1) <= NOISE_BYTES, "{} bytes, {} of 10 s", short.1, long.1);
}

#[test]
fn a_voice_is_copied_once() {
    let (_, without) = per_utterance(&mut after(100, SECOND_BYTES, 0));
    let (blocks, with) = per_utterance(&mut after(100, SECOND_BYTES, 5 * SECOND_BYTES));
    let voice = base64_len(5 * SECOND_BYTES);
    println!(
        "5 s of voice: {blocks} blocks, {} bytes more, of which {voice} audio",
        with - without
    );
    assert!(blocks <= BLOCKS_MAX, "{blocks} blocks an utterance");
    assert!(with - without <= voice + NOISE_BYTES, "{} bytes for {voice} of voice", with - without);
}

#[test]
fn the_thousandth_utterance_asks_for_no_more_than_the_hundredth() {
    let mut journey = after(100, SECOND_BYTES, 0);
    let early = per_utterance(&mut journey);
    for _ in 200..1_000 {
        journey.go();
    }
    let late = per_utterance(&mut journey);
    println!("behind the hundredth utterance {early:?}, behind the thousandth {late:?}");
    assert!(late.0 <= early.0 + 1, "{} blocks, later {}", early.0, late.0);
    assert!(late.1 <= early.1 + NOISE_BYTES, "{} bytes, later {}", early.1, late.1);
}

/// Bytes of a message in the test of connections at rest.
const LONG: usize = 256 * 1024;

/// A connection that has carried a long message each way, and then nothing for so long.
async fn after_a_long_message(quiet: Duration) -> (Connection<DuplexStream, ()>, DuplexStream) {
    const HOUR: Duration = Duration::from_secs(3600);
    let limits = Limits {
        message_bytes_max: LONG,
        read_buffer_bytes: 4096,
        write_buffer_bytes: 4096,
        outbox_bytes_max: LONG,
        rates: Rates::default(),
        ping_interval: HOUR,
        pong_timeout: HOUR,
        write_progress_timeout: HOUR,
        first_message_timeout: HOUR,
        close_timeout: HOUR,
    };
    let (near, mut far) = tokio::io::duplex(1024);
    let outbox = Outbox::new(4, LONG);
    let mut server = Connection::new(server_socket(near, &limits), limits, Arc::clone(&outbox));
    let mut said = WireFrame::message(vec![7; LONG], OpCode::Data(Data::Binary), true);
    said.header_mut().mask = Some([1, 2, 3, 4]);
    let mut wire = Vec::new();
    said.format(&mut wire).expect("a vector takes everything");
    let (_, heard) = tokio::join!(far.write_all(&wire), server.next());
    assert!(matches!(heard, Event::Binary(_)), "{heard:?}");
    drop(heard);
    outbox.push(Frame { text: vec![b'x'; LONG].into(), tag: () }).expect("there is room");
    let mut answer = vec![0; LONG + 10];
    let (_, written) = tokio::join!(far.read_exact(&mut answer), server.next());
    assert_eq!(written, Event::Written(()));
    assert!(timeout(quiet, server.next()).await.is_err(), "nothing else passes");
    (server, far)
}

/// Bytes such a connection holds then.
fn held(quiet: Duration) -> i64 {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    let mut kept = None;
    let held = measure(|| kept = Some(runtime.block_on(after_a_long_message(quiet))));
    drop(kept);
    held.bytes_current
}

#[test]
fn a_connection_at_rest_holds_no_buffers() {
    let busy = held(Duration::from_millis(1));
    let resting = held(Duration::from_secs(3));
    println!("a connection holds {busy} bytes behind two long messages, {resting} at rest");
    assert!(busy > 2 * LONG as i64, "the codec is said to keep its buffers: {busy} bytes");
    assert!(resting < RESTING_BYTES_MAX, "{resting} bytes");
}
