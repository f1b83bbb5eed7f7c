//! The task side of a connection, `transport::Connection`, over a pipe: any bytes in any pieces.
//!
//! The same bytes are sent twice, once whole and once in pieces, and must be heard the same; what
//! is heard must be what a plain reading of RFC 6455 hears up to the first fault. Then the
//! connection is lived with: frames go out, the peer stops reading, time passes, somebody closes.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use utterd::transport::{Connection, Event, Frame, Gone, Limits, Outbox, server_socket};

use super::memory::runtime;
use super::script::Script;
use super::websocket::{client_frame, first_frame, raw_frame};

const MESSAGE_MAX: usize = 2_000;
const OUTBOX_BYTES: usize = 3_000;

fn limits() -> Limits {
    let seconds = Duration::from_secs;
    Limits {
        rates: utterd::transport::Rates::default(),
        message_bytes_max: MESSAGE_MAX,
        read_buffer_bytes: 512,
        write_buffer_bytes: 256,
        outbox_bytes_max: OUTBOX_BYTES,
        ping_interval: seconds(30),
        pong_timeout: seconds(10),
        write_progress_timeout: seconds(10),
        first_message_timeout: seconds(10),
        close_timeout: seconds(2),
    }
}

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let runtime = runtime();
    if script.pick(3) > 0 {
        let (bytes, cuts) = stream(&mut script);
        let whole = runtime.block_on(hear(&bytes, &[]));
        let pieces = runtime.block_on(hear(&bytes, &cuts));
        assert_eq!(whole, pieces, "heard whole, and heard in pieces of {cuts:?}");
        let said: Vec<_> = whole.iter().filter_map(message).collect();
        assert_eq!(said, read_plainly(&bytes), "what was said");
        assert!(matches!(whole.last(), Some(Event::Closed(_))), "it ends");
    } else {
        runtime.block_on(live(&mut script));
    }
}

/// Bytes of a client, mostly frames, and where they are cut into pieces.
fn stream(script: &mut Script<'_>) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut cuts) = (Vec::new(), Vec::new());
    for _ in 0..script.pick(24) {
        cuts.push(usize::from(script.any::<u8>()) + 1);
    }
    while !script.is_over() {
        bytes.extend(some_frame(script));
    }
    (bytes, cuts)
}

fn some_frame(script: &mut Script<'_>) -> Vec<u8> {
    let payload = |script: &mut Script<'_>| {
        let repeat = script.of(&[1, 1, 1, 20]);
        script.bytes(300).repeat(repeat)
    };
    match script.pick(8) {
        0 => script.bytes(64).to_vec(),
        1 => client_frame(1, &payload(script)),
        2 => client_frame(2, &payload(script)),
        // A part of a message, the rest of which may come.
        3 => raw_frame(script.of(&[0x01, 0x02, 0x00, 0x80]), true, &payload(script)),
        4 => client_frame(script.of(&[9, 10]), script.bytes(130)),
        5 => {
            let mut reason = script.any::<u16>().to_be_bytes().to_vec();
            reason.extend_from_slice(script.bytes(130));
            reason.truncate(script.of(&[0, 1, 2, 132]));
            client_frame(8, &reason)
        }
        6 => raw_frame(script.any(), !script.seldom(4), &payload(script)),
        _ => client_frame(1, script.of(&["{}", "\u{e9}\u{1f600}", ""]).as_bytes()),
    }
}

/// What is heard until the end of a peer that sends this and leaves. The connection's own words are
/// read and forgotten.
async fn hear(bytes: &[u8], cuts: &[usize]) -> Vec<Event<u32>> {
    let (near, far) = tokio::io::duplex(4_096);
    let outbox = Outbox::new(8, OUTBOX_BYTES);
    let mut connection = Connection::new(server_socket(near, &limits()), limits(), outbox);
    let (mut reading, mut writing) = tokio::io::split(far);
    let (bytes, cuts) = (bytes.to_vec(), cuts.to_vec());
    let send = tokio::spawn(async move {
        let mut rest = &bytes[..];
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            if writing.write_all(piece).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if writing.write_all(rest).await.is_ok() {
            writing.shutdown().await.ok();
        }
    });
    let read = tokio::spawn(async move {
        let mut space = [0; 1_024];
        while reading.read(&mut space).await.is_ok_and(|len| len > 0) {}
    });
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(Event::Closed(_))) {
        heard.push(connection.next().await);
    }
    drop(connection);
    assert!(send.await.is_ok() && read.await.is_ok());
    heard
}

/// Text, or none for bytes; and the content.
type Message = (bool, Vec<u8>);

fn message(event: &Event<u32>) -> Option<Message> {
    match event {
        Event::Text(text) => Some((true, text.as_bytes().to_vec())),
        Event::Binary(bytes) => Some((false, bytes.to_vec())),
        _ => None,
    }
}

/// The messages of a client up to the end or the first thing that it may not do.
fn read_plainly(mut bytes: &[u8]) -> Vec<Message> {
    let (mut said, mut open): (Vec<Message>, Option<Message>) = (Vec::new(), None);
    while let Some((frame, len)) = first_frame(bytes, MESSAGE_MAX as u64) {
        bytes = &bytes[len..];
        let (opcode, fin) = (frame.opcode(), frame.first & 0x80 != 0);
        if !frame.masked || frame.first & 0x70 != 0 {
            break;
        }
        let (is_text, content) = match (opcode, open.take()) {
            (9 | 10, before) if fin && frame.payload.len() <= 125 => {
                open = before;
                continue;
            }
            (1 | 2, None) => (opcode == 1, frame.payload),
            (0, Some((is_text, before))) => (is_text, [before, frame.payload].concat()),
            _ => break,
        };
        if content.len() > MESSAGE_MAX || (is_text && !may_be_text(&content, fin)) {
            break;
        }
        match fin {
            true => said.push((is_text, content)),
            false => open = Some((is_text, content)),
        }
    }
    said
}

/// Whether it is text; of a message that goes on the last character may be cut.
fn may_be_text(content: &[u8], is_whole: bool) -> bool {
    match std::str::from_utf8(content) {
        Ok(_) => true,
        Err(fault) => !is_whole && fault.error_len().is_none(),
    }
}

/// The connection as its owner has it.
async fn live(script: &mut Script<'_>) {
    let (near, mut far) = tokio::io::duplex(1_024);
    let outbox = Outbox::new(8, OUTBOX_BYTES);
    let socket = server_socket(near, &limits());
    let mut connection = Connection::new(socket, limits(), std::sync::Arc::clone(&outbox));
    let (mut pushed, mut written, mut gone) = (0_u32, 0_u32, None);
    while !script.is_over() {
        match script.pick(9) {
            0 | 1 => offer(&mut far, &some_frame(script)).await,
            2 | 3 => {
                let text = Bytes::from(vec![b'x'; usize::from(script.any::<u16>()) % 3_000]);
                pushed += u32::from(outbox.push(Frame { text, tag: pushed }).is_ok());
            }
            4 => drop(take(&mut far).await),
            5 => {
                let ms = script.of(&[1, 900, 2_000, 10_500, 31_000]);
                tokio::time::advance(Duration::from_millis(ms)).await;
            }
            6 => connection.pause_reading(script.seldom(2)),
            7 if script.seldom(8) => outbox.request_close(4_000, "asked"),
            7 => connection.ping(Bytes::copy_from_slice(script.bytes(200))),
            _ => far.shutdown().await.unwrap_or_default(),
        }
        for _ in 0..8 {
            let polled = std::future::poll_fn(|context| {
                std::task::Poll::Ready(connection.poll_next(context))
            });
            let std::task::Poll::Ready(event) = polled.await else { break };
            assert!(gone.is_none(), "{event:?} after the end");
            match event {
                Event::Written(tag) => {
                    assert_eq!(tag, written, "frames leave in order");
                    written += 1;
                }
                Event::Closed(why) => gone = Some(why),
                _ => {}
            }
        }
        assert!(written <= pushed, "more was written than was pushed");
        tokio::task::yield_now().await;
    }
    if gone.is_none() {
        outbox.request_close(1_000, "bye");
        connection.pause_reading(false);
        // Whoever does not read is given up, and so is who does not answer.
        let ends = async {
            loop {
                if let Event::Closed(why) = connection.next().await {
                    break why;
                }
            }
        };
        let why = tokio::time::timeout(Duration::from_secs(60), ends).await;
        gone = Some(why.expect("a connection that was asked to close ends"));
    }
    assert!(gone.as_ref().is_some_and(|why| !Gone::as_str(why).is_empty()));
    assert!(connection.bytes_in() < u64::MAX / 2);
}

/// Writes what fits.
async fn offer(far: &mut DuplexStream, bytes: &[u8]) {
    let writes = far.write(bytes);
    tokio::time::timeout(Duration::ZERO, writes).await.ok();
}

/// Reads what is there.
async fn take(far: &mut DuplexStream) -> Vec<u8> {
    let mut space = vec![0; 2_048];
    let read = tokio::time::timeout(Duration::ZERO, far.read(&mut space)).await;
    space.truncate(read.unwrap_or(Ok(0)).unwrap_or(0));
    space
}
