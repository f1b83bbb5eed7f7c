//! WebSocket frames by hand, also such as no library writes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection of which only the handshake is as it should be.
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub async fn upgraded(addr: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(crate::upgrade(path, "").as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        assert!(read.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&read));
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // Who is refused half way is reset.
        self.stream.write_all(bytes).await.ok();
    }

    /// The next frame of the server: first byte and payload; none at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.read.extend_from_slice(&more[..n]),
            }
        }
    }

    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, short, ..] = self.read[..] else { return None };
        let (head, length) = match short & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes([*self.read.get(2)?, *self.read.get(3)?]))),
            length => (2, usize::from(length)),
        };
        if self.read.len() < head + length {
            return None;
        }
        let frame: Vec<u8> = self.read.drain(..head + length).skip(head).collect();
        Some((first, frame))
    }
}

/// What becomes of the connection: the close code, or that it stays: then a ping is answered.
pub async fn read_outcome(wire: &mut Wire) -> String {
    let until = async {
        loop {
            match wire.next().await {
                None => return "closed".to_owned(),
                Some((0x88, payload)) if payload.len() >= 2 => {
                    return u16::from_be_bytes([payload[0], payload[1]]).to_string();
                }
                Some((0x88, _)) => return "closed".to_owned(),
                Some((0x8a, payload)) if payload == b"still?" => return "open".to_owned(),
                Some(_) => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), until).await.expect("an end")
}

/// A frame of a client: its first byte, as it says it, and its payload.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..=125 => frame.push(0x80 | n as u8),
        n => {
            frame.push(0x80 | 126);
            frame.extend((n as u16).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    frame.extend(mask);
    frame.extend(payload.iter().enumerate().map(|(n, byte)| byte ^ mask[n % 4]));
    frame
}

/// A ping whose answer tells that the connection is open.
pub fn still() -> Vec<u8> {
    frame(0x89, b"still?")
}

/// The head of a masked binary frame that says it is so long.
pub fn head_of(length: u64) -> Vec<u8> {
    let mut head = vec![0x82, 0x80 | 127];
    head.extend(length.to_be_bytes());
    head.extend([0; 4]);
    head
}
