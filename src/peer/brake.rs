//! A reader that takes little at a time, for as long as somebody holds it back.
//!
//! It refuses to know what is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that a held back connection takes: so little that what is for it piles up, so much that
/// the sender sees some of it taken before it thinks that nobody is there...
const BYTES: usize = 16 * 1_024;
/// ...in this time.
const EVERY: Duration = Duration::from_secs(1);

/// Holds back all connections that have it, while it is on. What they write is not held back.
#[derive(Debug, Clone, Default)]
pub struct Brake(Arc<AtomicBool>);

impl Brake {
    /// On, or off; a connection learns of the latter within a second.
    pub fn set(&self, on: bool) {
        self.0.store(on, SeqCst);
    }
}

/// A connection with a brake.
#[derive(Debug)]
pub struct Braked<S> {
    inner: S,
    brake: Brake,
    /// When it may read again.
    again: Pin<Box<Sleep>>,
    /// Bytes it may read until it has to wait.
    left: usize,
}

impl<S> Braked<S> {
    pub(super) fn new(inner: S, brake: Brake) -> Self {
        Self { inner, brake, again: Box::pin(sleep_until(Instant::now())), left: 0 }
    }

    pub(super) fn inner(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Braked<S> {
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.brake.0.load(SeqCst) {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        if self.left == 0 {
            ready!(self.again.as_mut().poll(context));
            self.left = BYTES;
        }
        let room = buffer.remaining().min(self.left);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        self.left -= read;
        if self.left == 0 {
            self.again.as_mut().reset(Instant::now() + EVERY);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;
    use crate::peer::dial::Stream;

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_reads_a_little_each_second_and_then_all() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        far.write_all(&[7; 10 * BYTES]).await.unwrap();
        let brake = Brake::default();
        let mut slow = Stream::Plain(near).slowed(brake.clone());
        brake.set(true);
        let began = Instant::now();
        let mut bytes = vec![0; 4 * BYTES];
        slow.read_exact(&mut bytes).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        let took = began.elapsed();
        assert!((3 * EVERY..5 * EVERY).contains(&took), "{took:?}");
        brake.set(false);
        let began = Instant::now();
        slow.read_exact(&mut [0; 6 * BYTES]).await.unwrap();
        assert!(began.elapsed() < EVERY);
    }
}
