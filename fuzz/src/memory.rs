//! A listener whose connections are pipes in memory, and a runtime in which time stands still until
//! it is moved.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::DuplexStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, mpsc};
use utterd::transport::Listen;

/// Who every connection says it comes from.
pub const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4_000);
/// Bytes a pipe holds in each direction.
const PIPE_BYTES: usize = 16 * 1024;

/// One thread; when nothing else is to be done time jumps to the next deadline.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Listens for what `Street` sends.
pub struct Door(Mutex<mpsc::Receiver<DuplexStream>>);

/// Where connections come from.
pub struct Street(mpsc::Sender<DuplexStream>);

pub fn door() -> (Door, Street) {
    let (sender, receiver) = mpsc::channel(8);
    (Door(Mutex::new(receiver)), Street(sender))
}

impl Street {
    /// A new connection: the peer's end of it.
    pub async fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        assert!(self.0.send(near).await.is_ok(), "nobody listens any more");
        far
    }
}

impl Listen for Door {
    type Stream = DuplexStream;

    async fn accept(&self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.lock().await.recv().await {
            Some(stream) => Ok((stream, PEER)),
            None => std::future::pending().await,
        }
    }

    fn set_nodelay(_: &DuplexStream) -> io::Result<()> {
        Ok(())
    }

    fn turn_away(_: DuplexStream, words: &[u8]) -> io::Result<usize> {
        Ok(words.len())
    }
}
