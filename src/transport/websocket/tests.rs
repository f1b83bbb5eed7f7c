//! The socket's life against a peer that is polite, slow, silent, wrong or dead.
//!
//! Most peers sit at the other end of an in-memory pipe and time is paused: it moves only when
//! nobody has anything to do, so the deadlines are exact and nothing waits for real.

use std::io;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::transport::{Frame, Refusal};

type Client = WebSocketStream<DuplexStream>;
type Server = Connection<DuplexStream, u32>;

const SECOND: Duration = Duration::from_secs(1);
/// A pipe that takes everything at once.
const WIDE: usize = 1 << 20;

fn limits() -> Limits {
    Limits {
        message_bytes_max: 8 * 1024,
        read_buffer_bytes: 1024,
        write_buffer_bytes: 2048,
        outbox_bytes_max: 256 * 1024,
        rates: Rates::default(),
        ping_interval: 20 * SECOND,
        pong_timeout: 10 * SECOND,
        write_progress_timeout: 5 * SECOND,
        first_message_timeout: 3600 * SECOND,
        close_timeout: 2 * SECOND,
    }
}

/// A connection and the peer's bare end of its pipe.
async fn bare_pair(pipe: usize, limits: Limits) -> (Server, Arc<Outbox<u32>>, DuplexStream) {
    let (near, far) = duplex(pipe);
    let outbox = Outbox::new(1024, limits.outbox_bytes_max);
    let socket = server_socket(near, &limits);
    (Connection::new(socket, limits, Arc::clone(&outbox)), outbox, far)
}

async fn pair(pipe: usize, limits: Limits) -> (Server, Arc<Outbox<u32>>, Client) {
    let (server, outbox, far) = bare_pair(pipe, limits).await;
    (server, outbox, WebSocketStream::from_raw_socket(far, Role::Client, None).await)
}

fn push(outbox: &Outbox<u32>, text: impl Into<String>, tag: u32) {
    outbox.push(Frame { text: Bytes::from(text.into()), tag }).expect("the outbox has room");
}

fn text(text: &str) -> Message {
    Message::text(text)
}

/// All bytes the peer gets until the end of the stream.
async fn rest(mut far: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.expect("a pipe does not fail");
    bytes
}

/// The code of the close frame that `bytes`, sent by a server, end with.
fn close_code(bytes: &[u8]) -> Option<u16> {
    let at = bytes.iter().position(|byte| *byte == 0x88)?;
    Some(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]))
}

/// A frame as a client sends it, masked with zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn every_setting_of_the_codec_is_ours() {
    let WebSocketConfig {
        read_buffer_size,
        write_buffer_size,
        max_write_buffer_size,
        max_message_size,
        max_frame_size,
        accept_unmasked_frames,
        ..
    } = websocket_config(&limits());
    assert_eq!(read_buffer_size, 1024);
    assert_eq!(write_buffer_size, 2048);
    assert_eq!(max_write_buffer_size, 2048 + 256 * 1024 + CONTROL_MARGIN);
    assert_eq!(max_message_size, Some(8 * 1024));
    assert_eq!(max_frame_size, Some(8 * 1024));
    assert!(!accept_unmasked_frames);
    // A setting added by a new version of the codec would show here.
    let shown = format!("{:?}", WebSocketConfig::default());
    assert_eq!(shown.matches(": ").count(), 6, "{shown}");
}

#[test]
#[should_panic(expected = "a frame might never fit")]
fn an_outbox_beyond_the_limits_is_refused() {
    let (near, _far) = duplex(64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let outbox: Arc<Outbox<u32>> = Outbox::new(1, limits().outbox_bytes_max + 1);
        let socket = server_socket(near, &limits());
        Connection::new(socket, limits(), outbox)
    });
}

#[tokio::test(start_paused = true)]
async fn written_means_that_the_peer_can_read_it() {
    let (mut server, outbox, mut client) = pair(WIDE, limits()).await;
    push(&outbox, "hello", 7);
    assert_eq!(server.next().await, Event::Written(7));
    let seen = client.next().now_or_never().flatten().expect("it is there").unwrap();
    assert_eq!(seen, text("hello"));
}

#[tokio::test(start_paused = true)]
async fn written_waits_for_the_last_byte() {
    let (mut server, outbox, mut far) = bare_pair(16, limits()).await;
    push(&outbox, "x".repeat(20), 7);
    assert!(timeout(SECOND, server.next()).await.is_err(), "22 bytes do not fit into 16");
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).await.unwrap();
    assert!(timeout(SECOND, server.next()).await.is_err(), "one byte is missing");
    far.read_exact(&mut bytes[..1]).await.unwrap();
    assert_eq!(timeout(SECOND, server.next()).await, Ok(Event::Written(7)));
}

#[tokio::test(start_paused = true)]
async fn many_frames_arrive_in_order_through_a_narrow_pipe() {
    const COUNT: u32 = 1000;
    let (mut server, outbox, mut client) = pair(100, limits()).await;
    for n in 0..COUNT {
        push(&outbox, format!("{n}"), n);
    }
    let writing = async {
        for n in 0..COUNT {
            assert_eq!(server.next().await, Event::Written(n));
            assert!(server.in_flight.len() <= BATCH_FRAMES);
        }
        assert!(timeout(SECOND, server.next()).await.is_err(), "each is reported once");
    };
    let reading = async {
        for n in 0..COUNT {
            assert_eq!(client.next().await.unwrap().unwrap(), text(&format!("{n}")));
        }
    };
    tokio::join!(writing, reading);
    assert_eq!((outbox.frames(), outbox.bytes()), (0, 0));
}

/// Frames pushed one by one while earlier ones are being reported share the next flush.
#[tokio::test(start_paused = true)]
async fn the_next_batch_gathers_while_the_last_is_reported() {
    let (mut server, outbox, _client) = pair(WIDE, limits()).await;
    push(&outbox, "a", 0);
    push(&outbox, "b", 1);
    assert_eq!(server.next().await, Event::Written(0));
    push(&outbox, "c", 2);
    assert_eq!(server.next().await, Event::Written(1));
    assert_eq!(outbox.frames(), 1, "not sent alone");
    assert_eq!(server.next().await, Event::Written(2));
}

#[tokio::test(start_paused = true)]
async fn neither_direction_starves_the_other() {
    for (frames, messages) in [(500, 10), (10, 500)] {
        let (mut server, outbox, mut client) = pair(WIDE, limits()).await;
        for n in 0..frames {
            push(&outbox, "out", n);
        }
        for _ in 0..messages {
            client.send(text("in")).await.unwrap();
        }
        let (mut written, mut read) = (0, 0);
        for _ in 0..24 {
            match server.next().await {
                Event::Written(_) => written += 1,
                Event::Text(_) => read += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(written >= 10 && read >= 10, "{written} written, {read} read");
    }
}

/// Without a limit of its own, a full read buffer would keep a worker thread to itself.
#[tokio::test(start_paused = true)]
async fn a_flood_of_events_yields_to_other_tasks() {
    let (mut server, _outbox, mut client) =
        pair(WIDE, Limits { read_buffer_bytes: 64 * 1024, ..limits() }).await;
    for _ in 0..5_000 {
        client.feed(text("")).await.unwrap();
    }
    client.flush().await.unwrap();
    let mut yields = 0;
    for _ in 0..5_000 {
        let mut next = Box::pin(server.next());
        while poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await.is_pending() {
            yields += 1;
            tokio::task::yield_now().await;
        }
    }
    assert!(yields >= 20, "{yields} yields in 5,000 events");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_stalled() {
    let (mut server, outbox, _far) = bare_pair(16, limits()).await;
    push(&outbox, "x".repeat(100), 1);
    let start = Instant::now();
    assert_eq!(server.next().await, Event::Closed(Gone::WriteStalled));
    assert!((5 * SECOND..6 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    let refused = outbox.push(Frame { text: Bytes::new(), tag: 2 }).unwrap_err();
    assert_eq!(refused.why, Refusal::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_a_little_is_not_stalled() {
    let patient = Limits { ping_interval: 3600 * SECOND, ..limits() };
    let (mut server, outbox, mut far) = bare_pair(16, patient).await;
    push(&outbox, "x".repeat(100), 1);
    let start = Instant::now();
    let reader = async {
        for _ in 0..10 {
            sleep(4 * SECOND).await;
            far.read_u8().await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let gone = tokio::select! { gone = server.next() => gone, () = reader => unreachable!() };
    assert_eq!(gone, Event::Closed(Gone::WriteStalled));
    assert!((45 * SECOND..46 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_noticed_while_messages_keep_coming() {
    let (mut server, outbox, far) = bare_pair(64, limits()).await;
    push(&outbox, "x".repeat(200), 1);
    let (_far_read, mut far_write) = tokio::io::split(far);
    let chatter = tokio::spawn(async move {
        while far_write.write_all(&masked(0x81, b"chat")).await.is_ok() {
            sleep(SECOND / 10).await;
        }
    });
    let start = Instant::now();
    let gone = loop {
        match server.next().await {
            Event::Text(_) => assert!(start.elapsed() < 6 * SECOND),
            other => break other,
        }
    };
    assert_eq!(gone, Event::Closed(Gone::WriteStalled));
    chatter.abort();
}

#[tokio::test(start_paused = true)]
async fn pings_nobody_reads_the_answers_of_end_as_a_stall() {
    let (mut server, _outbox, far) = bare_pair(16, limits()).await;
    let (_far_read, mut far_write) = tokio::io::split(far);
    let pinger = tokio::spawn(async move {
        while far_write.write_all(&masked(0x89, b"0123456789")).await.is_ok() {
            sleep(SECOND / 10).await;
        }
    });
    let start = Instant::now();
    assert_eq!(server.next().await, Event::Closed(Gone::WriteStalled));
    assert!((5 * SECOND..7 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    pinger.abort();
}

#[tokio::test(start_paused = true)]
async fn one_pong_that_is_not_taken_is_a_stall_too() {
    let (mut server, _outbox, mut far) = bare_pair(16, limits()).await;
    // In a task of its own: nothing but its bytes may wake the connection.
    let peer = tokio::spawn(async move {
        far.write_all(&masked(0x89, &[b'x'; 20])).await.unwrap();
        far
    });
    let start = Instant::now();
    assert_eq!(server.next().await, Event::Closed(Gone::WriteStalled));
    assert!(start.elapsed() < 6 * SECOND, "before any ping of ours: {:?}", start.elapsed());
    peer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_and_then_given_up() {
    let (mut server, outbox, mut far) = bare_pair(WIDE, limits()).await;
    let start = Instant::now();
    let watching = async {
        let mut ping = [0; 2];
        far.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping, [0x89, 0]);
        assert!((20 * SECOND..21 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    };
    let (gone, ()) = tokio::join!(server.next(), watching);
    assert_eq!(gone, Event::Closed(Gone::PongMissing));
    assert!((30 * SECOND..31 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(outbox.is_closed());
    drop(server);
    assert_eq!(close_code(&rest(far).await), Some(1011));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_may_be_quiet_for_ever() {
    let (mut server, _outbox, mut client) = pair(WIDE, limits()).await;
    let start = Instant::now();
    let pings = tokio::spawn(async move {
        let mut pings = 0;
        while let Ok(Some(Ok(message))) = timeout(590 * SECOND, client.next()).await {
            assert_eq!(message, Message::Ping(Bytes::new()));
            client.flush().await.unwrap();
            pings += 1;
            if pings == 20 {
                break;
            }
        }
        (pings, client)
    });
    assert!(timeout(410 * SECOND, server.next()).await.is_err(), "pongs to keep-alives are silent");
    let (pings, _client) = pings.await.unwrap();
    assert_eq!(pings, 20);
    assert!((400 * SECOND..411 * SECOND).contains(&start.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_byte_of_an_unfinished_message_is_a_sign_of_life() {
    let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
    let message = masked(0x81, b"slow");
    let drip = async {
        for byte in &message {
            sleep(25 * SECOND).await;
            far.write_u8(*byte).await.unwrap();
        }
    };
    let (event, ()) = tokio::join!(server.next(), drip);
    assert_eq!(event, Event::Text("slow".into()));
}

#[tokio::test(start_paused = true)]
async fn the_first_message_must_come_in_time() {
    let hasty = Limits { first_message_timeout: 3 * SECOND, ..limits() };
    let (mut server, _outbox, mut far) = bare_pair(WIDE, hasty.clone()).await;
    let start = Instant::now();
    far.write_all(&masked(0x89, b"a ping is no message")).await.unwrap();
    assert_eq!(server.next().await, Event::Closed(Gone::FirstMessageLate));
    assert!((3 * SECOND..4 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    drop(server);
    let answer = rest(far).await;
    assert_eq!(answer[..2], [0x8a, 20], "the ping was answered");
    assert_eq!(close_code(&answer), Some(1008));

    let (mut server, _outbox, mut client) = pair(WIDE, hasty).await;
    client.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(server.next().await, Event::Binary(Bytes::from_static(&[1])));
    assert!(timeout(10 * SECOND, server.next()).await.is_err(), "one message is enough");
}

#[tokio::test]
async fn a_message_too_large_is_answered_1009_even_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let outbox: Arc<Outbox<u32>> = Outbox::new(1, 1);
    let socket = server_socket(accepted, &limits());
    let mut server = Connection::new(socket, limits(), outbox);
    let task = tokio::spawn(async move { server.next().await });
    let mut client = WebSocketStream::from_raw_socket(dialled, Role::Client, None).await;
    // Far beyond what the kernel buffers: unread bytes would turn the close into a reset.
    client.send(Message::binary(vec![0; 20 << 20])).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = client.next().await else { panic!("no close") };
    assert_eq!(u16::from(frame.code), 1009);
    drop(client);
    assert_eq!(task.await.unwrap(), Event::Closed(Gone::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn broken_rules_are_answered_with_their_code() {
    let big = [0x81, 0xff, 0, 0, 0, 0, 0, 0, 0x20, 1, 0, 0, 0, 0].to_vec();
    let mut pieces = [0x01, 0xfe, 0x20, 0, 0, 0, 0, 0].to_vec();
    pieces.resize(8 + 0x2000, b'x');
    pieces.extend(masked(0x80, b"x"));
    let split_utf8 = [masked(0x01, b"\xe2\x82"), masked(0x80, b"\x28")].concat();
    for (name, bytes, code) in [
        ("declared one byte too large", big, 1009),
        ("pieces one byte too large", pieces, 1009),
        ("text not UTF-8", masked(0x81, b"\xff"), 1007),
        ("text not UTF-8 across pieces", split_utf8, 1007),
        ("close reason not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
        ("unmasked", vec![0x81, 1, b'x'], 1002),
        ("reserved bit", masked(0xc1, b"x"), 1002),
        ("reserved opcode", masked(0x83, b"x"), 1002),
        ("ping in pieces", masked(0x09, b"x"), 1002),
        ("continuation of nothing", masked(0x80, b"x"), 1002),
        ("close of one byte", masked(0x88, b"x"), 1002),
    ] {
        let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
        far.write_all(&bytes).await.unwrap();
        let peer = tokio::spawn(async move {
            let mut seen = [0; 4];
            far.read_exact(&mut seen).await.unwrap();
            seen
        });
        let Event::Closed(gone) = server.next().await else { panic!("{name}: not closed") };
        assert_eq!(close_code(&peer.await.unwrap()), Some(code), "{name}");
        assert_eq!(gone == Gone::TooLarge, code == 1009, "{name}: {gone:?}");
        assert_eq!(matches!(gone, Gone::ProtocolError(_)), code != 1009, "{name}: {gone:?}");
        assert!(timeout(SECOND, server.next()).await.is_err(), "{name}: the end comes once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_largest_message_is_accepted() {
    let (mut server, _outbox, mut client) = pair(WIDE, limits()).await;
    client.send(Message::binary(vec![7; 8 * 1024])).await.unwrap();
    assert_eq!(server.next().await, Event::Binary(vec![7; 8 * 1024].into()));
}

/// A peer that has broken a rule and then lingers holds the connection for `close_timeout` only.
#[tokio::test(start_paused = true)]
async fn an_ending_is_bounded() {
    let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
    far.write_all(&masked(0x83, b"x")).await.unwrap();
    let start = Instant::now();
    assert!(matches!(server.next().await, Event::Closed(Gone::ProtocolError(_))));
    assert!((2 * SECOND..3 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
}

/// Losing every race against a timer must lose no message and no `Written`.
#[tokio::test(start_paused = true)]
async fn next_can_be_cancelled_anywhere() {
    const COUNT: u32 = 300;
    let (mut server, outbox, far) = bare_pair(7, limits()).await;
    let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    let peer = tokio::spawn(async move {
        for n in 0..COUNT {
            let (sent, seen) = {
                let (mut sink, mut stream) = (&mut client).split();
                tokio::join!(sink.send(text(&format!("message {n}"))), stream.next())
            };
            sent.unwrap();
            assert_eq!(seen.unwrap().unwrap(), text(&format!("frame {n}")));
        }
        client
    });
    for n in 0..COUNT {
        push(&outbox, format!("frame {n}"), n);
    }
    let (mut written, mut read, mut cancelled) = (0, 0, 0);
    while written < COUNT || read < COUNT {
        // Polled once and dropped: cancelled at every point where it can wait.
        let Some(event) = server.next().now_or_never() else {
            cancelled += 1;
            tokio::task::yield_now().await;
            continue;
        };
        match event {
            Event::Written(tag) => {
                assert_eq!(tag, written);
                written += 1;
            }
            Event::Text(seen) => {
                assert_eq!(seen.as_str(), format!("message {read}"));
                read += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(cancelled > COUNT, "{cancelled}");
    peer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_requested_close_comes_after_everything_queued() {
    let (mut server, outbox, mut client) = pair(64, limits()).await;
    for n in 0..10 {
        push(&outbox, format!("frame {n}"), n);
    }
    outbox.request_close(4000, "bye");
    assert!(outbox.push(Frame { text: Bytes::new(), tag: 99 }).is_err());
    let owner = async {
        for n in 0..10 {
            assert_eq!(server.next().await, Event::Written(n));
        }
        assert_eq!(server.next().await, Event::Closed(Gone::Requested { code: 4000 }));
    };
    let peer = async {
        for n in 0..10 {
            assert_eq!(client.next().await.unwrap().unwrap(), text(&format!("frame {n}")));
        }
        let Some(Ok(Message::Close(Some(frame)))) = client.next().await else { panic!("no close") };
        assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4000, "bye"));
        // The codec sends the answer when it is driven once more.
        assert!(timeout(SECOND, client.next()).await.is_err());
    };
    let start = Instant::now();
    tokio::join!(owner, peer);
    assert!(start.elapsed() < 2 * SECOND, "the peer's answer ended it, not the deadline");
}

#[tokio::test(start_paused = true)]
async fn a_requested_close_does_not_pretend() {
    let (mut server, outbox, _far) = bare_pair(16, limits()).await;
    push(&outbox, "x".repeat(100), 1);
    outbox.request_close(4000, "bye");
    assert_eq!(server.next().await, Event::Closed(Gone::WriteStalled));
}

/// What leaves during an ending is reported before the end.
#[tokio::test(start_paused = true)]
async fn written_is_reported_up_to_the_end() {
    let (mut server, outbox, mut far) = bare_pair(16, limits()).await;
    push(&outbox, "x".repeat(30), 1);
    far.write_all(&masked(0x83, b"x")).await.unwrap();
    let peer = tokio::spawn(async move {
        sleep(SECOND).await;
        let mut seen = [0; 32 + 4 + "protocol error".len()];
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(close_code(&seen[32..]), Some(1002));
        far
    });
    let start = Instant::now();
    assert_eq!(server.next().await, Event::Written(1));
    assert!(start.elapsed() < 2 * SECOND, "as soon as it has left");
    assert!(matches!(server.next().await, Event::Closed(Gone::ProtocolError(_))));
    peer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_from_another_thread_wakes_the_owner() {
    let (mut server, outbox, _client) = pair(WIDE, limits()).await;
    let owner = tokio::spawn(async move { server.next().await });
    tokio::task::yield_now().await;
    std::thread::spawn(move || outbox.request_close(1001, "")).join().unwrap();
    let gone = timeout(3 * SECOND, owner).await.expect("woken well before any ping").unwrap();
    assert_eq!(gone, Event::Closed(Gone::Requested { code: 1001 }));
}

#[tokio::test(start_paused = true)]
async fn close_sends_what_is_queued_and_says_goodbye() {
    let (server, outbox, mut client) = pair(64, limits()).await;
    for n in 0..100 {
        push(&outbox, format!("{n}"), n);
    }
    let peer = async {
        for n in 0..100 {
            assert_eq!(client.next().await.unwrap().unwrap(), text(&format!("{n}")));
        }
        client.send(text("too late to be heard")).await.unwrap();
        let Some(Ok(Message::Close(Some(frame)))) = client.next().await else { panic!("no close") };
        assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "going down"));
        sleep(5 * SECOND).await;
        assert!(client.next().await.is_none(), "the server closes first");
    };
    let start = Instant::now();
    tokio::join!(server.close(1001, "going down", 60 * SECOND), peer);
    assert!((5 * SECOND..6 * SECOND).contains(&start.elapsed()), "until the peer has answered");
    assert!(outbox.is_drained());
}

/// Both sides want to write first; closing must read, or neither would get anywhere.
#[tokio::test(start_paused = true)]
async fn closing_ends_a_pause() {
    let (mut server, outbox, mut client) = pair(16, limits()).await;
    server.pause_reading(true);
    push(&outbox, "x".repeat(100), 1);
    let peer = async {
        client.send(text(&"y".repeat(100))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), text(&"x".repeat(100)));
    };
    let start = Instant::now();
    tokio::join!(server.close(1001, "", SECOND), peer);
    assert!(start.elapsed() <= SECOND + SECOND / 100);
}

#[tokio::test(start_paused = true)]
async fn close_is_bounded_even_if_the_peer_takes_nothing() {
    for (queued, within) in [(100, SECOND), (0, SECOND), (100, Duration::ZERO)] {
        let (server, outbox, _far) = bare_pair(16, limits()).await;
        push(&outbox, "x".repeat(queued), 1);
        let start = Instant::now();
        server.close(1001, "", within).await;
        assert!(start.elapsed() <= within + SECOND / 100, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn the_peer_may_close_and_is_answered() {
    let (mut server, outbox, mut client) = pair(WIDE, limits()).await;
    client.send(text("last words")).await.unwrap();
    let farewell = CloseFrame { code: 4321.into(), reason: "done".into() };
    client.close(Some(farewell.clone())).await.unwrap();
    assert_eq!(server.next().await, Event::Text("last words".into()));
    assert_eq!(server.next().await, Event::Closed(Gone::ByPeer { code: Some(4321) }));
    assert!(outbox.is_closed());
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Close(Some(farewell)));
}

#[tokio::test(start_paused = true)]
async fn the_peer_may_close_without_a_code_or_just_leave() {
    let (mut server, _outbox, mut client) = pair(WIDE, limits()).await;
    client.close(None).await.unwrap();
    assert_eq!(server.next().await, Event::Closed(Gone::ByPeer { code: None }));

    let (mut server, _outbox, client) = pair(WIDE, limits()).await;
    drop(client);
    assert_eq!(server.next().await, Event::Closed(Gone::ByPeer { code: None }));
    assert!(timeout(SECOND, server.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_closes_its_outbox() {
    let (server, outbox, _client) = pair(WIDE, limits()).await;
    push(&outbox, "unsent", 1);
    drop(server);
    let refused = outbox.push(Frame { text: Bytes::new(), tag: 2 }).unwrap_err();
    assert_eq!(refused.why, Refusal::Closed);
    assert_eq!(outbox.pop().map(|frame| frame.tag), Some(1), "what was not sent can be collected");
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_messages_back_but_nothing_else() {
    let (mut server, outbox, mut client) = pair(WIDE, limits()).await;
    server.pause_reading(true);
    client.send(text("held")).await.unwrap();
    push(&outbox, "out", 1);
    assert_eq!(server.next().await, Event::Written(1));
    assert!(timeout(100 * SECOND, server.next()).await.is_err(), "silence is no fault in a pause");
    server.pause_reading(false);
    assert_eq!(server.next().await, Event::Text("held".into()));
    assert!(timeout(19 * SECOND, server.next()).await.is_err(), "and starts anew after it");
}

#[tokio::test(start_paused = true)]
async fn silence_during_a_pause_is_not_held_against_the_peer() {
    let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
    server.pause_reading(true);
    assert!(timeout(100 * SECOND, server.next()).await.is_err());
    server.pause_reading(false);
    assert!(timeout(19 * SECOND, server.next()).await.is_err());
    assert!(far.read_u8().now_or_never().is_none(), "not even a ping");
    assert!(timeout(2 * SECOND, server.next()).await.is_err());
    assert!(far.read_u8().now_or_never().is_some(), "now there is one");
}

#[tokio::test(start_paused = true)]
async fn own_pings_are_answered_to_the_owner() {
    let (mut server, _outbox, mut client) = pair(WIDE, limits()).await;
    server.ping(Bytes::from_static(b"replaced"));
    server.ping(Bytes::from(vec![b'p'; 200]));
    let peer = tokio::spawn(async move {
        let ping = client.next().await.unwrap().unwrap();
        client.flush().await.unwrap();
        (ping, client)
    });
    let payload = Bytes::from(vec![b'p'; PING_BYTES_MAX]);
    assert_eq!(server.next().await, Event::Pong(payload.clone()));
    assert_eq!(peer.await.unwrap().0, Message::Ping(payload));
}

/// The peer's pings are answered although the owner sees none of them.
#[tokio::test(start_paused = true)]
async fn pings_of_the_peer_are_answered() {
    let (mut server, _outbox, mut client) = pair(WIDE, limits()).await;
    client.send(Message::Ping(Bytes::from_static(b"you there?"))).await.unwrap();
    assert!(timeout(SECOND, server.next()).await.is_err());
    let pong = client.next().now_or_never().flatten().expect("answered").unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"you there?")));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_gives_its_buffers_back_and_loses_nothing() {
    let (mut server, outbox, mut client) = pair(WIDE, limits()).await;
    for round in 0..3 {
        client.send(Message::binary(vec![round; 8 * 1024])).await.unwrap();
        assert_eq!(server.next().await, Event::Binary(vec![round; 8 * 1024].into()));
        assert!(server.stream.is_awake(), "a codec has read this");
        assert!(timeout(3 * SECOND, server.next()).await.is_err(), "nothing more was sent");
        assert!(!server.stream.is_awake(), "nothing passed for three seconds");
        push(&outbox, "x".repeat(4096), 7);
        assert_eq!(server.next().await, Event::Written(7));
        assert_eq!(client.next().await.unwrap().unwrap(), text(&"x".repeat(4096)));
        assert!(timeout(3 * SECOND, server.next()).await.is_err(), "nothing more was queued");
        assert!(!server.stream.is_awake(), "nothing passed for three seconds");
    }
    client.close(None).await.unwrap();
    assert_eq!(server.next().await, Event::Closed(Gone::ByPeer { code: None }));
}

/// Whatever of a message is missing, the part that came is kept for as long as it takes.
#[tokio::test(start_paused = true)]
async fn half_a_message_outlasts_any_silence() {
    let whole = masked(0x82, &[5; 100]);
    let pieces = [masked(0x02, &[5; 60]), masked(0x89, b"ping"), masked(0x80, &[5; 40])].concat();
    for wire in [whole, pieces] {
        for cut in 1..wire.len() {
            let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
            far.write_all(&wire[..cut]).await.unwrap();
            assert!(timeout(5 * SECOND, server.next()).await.is_err(), "half of it is no event");
            far.write_all(&wire[cut..]).await.unwrap();
            assert_eq!(server.next().await, Event::Binary(vec![5; 100].into()), "cut at {cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_pause_is_kept() {
    let (mut server, _outbox, mut far) = bare_pair(WIDE, limits()).await;
    let both = [masked(0x82, b"one"), masked(0x82, b"two")].concat();
    far.write_all(&both).await.unwrap();
    assert_eq!(server.next().await, Event::Binary(Bytes::from_static(b"one")));
    server.pause_reading(true);
    assert!(timeout(3 * SECOND, server.next()).await.is_err(), "paused");
    server.pause_reading(false);
    assert_eq!(server.next().await, Event::Binary(Bytes::from_static(b"two")));
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_peer_has_not_taken_is_kept() {
    let (mut server, outbox, mut far) = bare_pair(16, limits()).await;
    push(&outbox, "x".repeat(20), 7);
    let mut seen = Vec::new();
    for _ in 0..22 {
        assert!(timeout(3 * SECOND, server.next()).await.is_err() || seen.len() >= 6);
        seen.push(far.read_u8().await.unwrap());
    }
    assert_eq!(seen, [[0x81, 20].as_slice(), &[b'x'; 20]].concat());
}

/// Readable to its end, but every write fails: a peer that sent its last words and went away.
struct HalfDead(io::Cursor<Vec<u8>>);

impl AsyncRead for HalfDead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for HalfDead {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn last_words_are_heard_although_writing_fails() {
    let words = [masked(0x81, b"last"), masked(0x81, b"words")].concat();
    let outbox = Outbox::new(10, 100);
    push(&outbox, "to nobody", 1);
    let socket = server_socket(HalfDead(io::Cursor::new(words)), &limits());
    let mut server = Connection::new(socket, limits(), Arc::clone(&outbox));
    assert_eq!(server.next().await, Event::Text("last".into()));
    assert!(outbox.is_closed());
    assert_eq!(server.next().await, Event::Text("words".into()));
    let Event::Closed(Gone::Io(why)) = server.next().await else { panic!("not an I/O error") };
    assert!(why.contains("broken pipe"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn bytes_are_counted_as_the_socket_sees_them() {
    let (mut server, outbox, mut far) = bare_pair(WIDE, limits()).await;
    far.write_all(&masked(0x81, b"four")).await.unwrap();
    push(&outbox, "four", 1);
    for _ in 0..2 {
        server.next().await;
    }
    assert_eq!((server.bytes_in(), server.bytes_out()), (10, 6));
}

#[test]
fn a_long_close_reason_is_cut_between_characters() {
    assert_eq!(close_reason("short").as_str(), "short");
    assert_eq!(close_reason(&"x".repeat(200)).len(), 123);
    assert_eq!(close_reason(&"é".repeat(100)).len(), 122);
}
