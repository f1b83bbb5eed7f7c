//! A byte stream that counts what passes.
//!
//! It sits between the WebSocket codec and the socket, because only there is the truth visible:
//! that a peer reads slowly but does read, that it lives although no whole message has arrived yet,
//! or that a message has arrived whole.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// Passes everything through to `S` and counts the bytes of both directions.
#[derive(Debug)]
pub struct Counted<S> {
    inner: S,
    /// Bytes read from the peer so far.
    bytes_in: u64,
    /// Bytes the socket has taken so far.
    bytes_out: u64,
    /// What came from the peer, frame by frame.
    frames_in: Frames,
}

impl<S> Counted<S> {
    /// Counts from zero, and expects the beginning of a WebSocket frame.
    pub fn new(inner: S) -> Self {
        Self { inner, bytes_in: 0, bytes_out: 0, frames_in: Frames::default() }
    }

    /// Whether all that came from the peer so far is whole WebSocket messages.
    pub fn is_between_messages(&self) -> bool {
        self.frames_in.between_messages()
    }

    /// Frames that the peer has begun, and how many of them are control frames.
    pub fn frames_in(&self) -> (u64, u64) {
        self.frames_in.count()
    }

    /// Bytes read from the peer so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes the socket has taken so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let came = &buffer.filled()[before..];
        self.bytes_in += came.len() as u64;
        self.frames_in.pass(came);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write(context, buffer))?;
        self.bytes_out += size as u64;
        Poll::Ready(Ok(size))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, buffers))?;
        self.bytes_out += size as u64;
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
