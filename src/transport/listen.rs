//! Where connections come from: sockets of the system, or of a network that exists only in a
//! simulation.

use std::io::{self, Write};
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// Something that listens.
pub trait Listen: Send + Sync + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection, and who is at its other end.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Has small messages sent without waiting for more.
    fn set_nodelay(stream: &Self::Stream) -> io::Result<()>;

    /// Has the system hold no more than about so many bytes that are written and not yet taken by
    /// the peer. A network that has no such bound leaves it.
    fn bound_send_buffer(stream: &Self::Stream, bytes: usize) -> io::Result<()> {
        let _ = (stream, bytes);
        Ok(())
    }

    /// Sends what can be sent of `words` without waiting, and closes.
    fn turn_away(stream: Self::Stream, words: &[u8]) -> io::Result<usize>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }

    fn set_nodelay(stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)
    }

    fn bound_send_buffer(stream: &TcpStream, bytes: usize) -> io::Result<()> {
        // The system doubles it, for what it needs beside the bytes.
        Ok(rustix::net::sockopt::set_socket_send_buffer_size(stream, bytes / 2)?)
    }

    fn turn_away(stream: TcpStream, words: &[u8]) -> io::Result<usize> {
        // The runtime does not know yet that it could write; the system does.
        stream.into_std().and_then(|mut stream| stream.write(words))
    }
}
