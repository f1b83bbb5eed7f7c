//! Open consoles in numbers.
//!
//! A console here reads the views as a browser does, one of them each, and forgets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::LoadError;
use super::calm::authority;

/// What consoles look at, in turns.
const VIEWS: [&str; 5] = ["overview", "nodes", "pools", "jobs", "sessions"];
/// Time for all consoles to be told something.
const TOLD: Duration = Duration::from_secs(10);
/// What a console is told begins with this.
const MARK: &[u8] = b"event: ";

/// Consoles of one server, open or not.
pub(super) struct Consoles {
    authority: String,
    count: usize,
    pictures: Arc<AtomicU64>,
    looking: JoinSet<Result<(), LoadError>>,
}

impl Consoles {
    /// So many; none is open yet.
    pub(super) fn of(url: &str, count: usize) -> Result<Self, LoadError> {
        let (authority, pictures) = (authority(url)?.to_owned(), Arc::default());
        Ok(Self { authority, count, pictures, looking: JoinSet::new() })
    }

    /// Pictures that they were sent so far.
    pub(super) fn pictures(&self) -> u64 {
        self.pictures.load(SeqCst)
    }

    /// Opens them; returns when each was told something.
    pub(super) async fn look(&mut self) -> Result<(), LoadError> {
        let begins = self.pictures();
        for number in 0..self.count {
            let (authority, view) = (&self.authority, VIEWS[number % VIEWS.len()]);
            let stream = TcpStream::connect(authority).await?;
            let request = format!(
                "GET /api/v1/console/feed?view={view} HTTP/1.1\r\nhost: {authority}\r\n\r\n"
            );
            self.looking.spawn(read(stream, request, Arc::clone(&self.pictures)));
        }
        let all = async {
            while self.pictures.load(SeqCst) < begins + self.count as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if let Some(ended) = self.looking.try_join_next() {
                    ended.map_err(std::io::Error::other)??;
                }
            }
            Ok(())
        };
        match tokio::time::timeout(TOLD, all).await {
            Ok(told) => told,
            Err(_) => Err(LoadError::Refused(format!("consoles were told nothing in {TOLD:?}"))),
        }
    }

    /// Ends them; who was turned away before is a fault.
    pub(super) async fn close(&mut self) -> Result<(), LoadError> {
        while let Some(ended) = self.looking.try_join_next() {
            ended.map_err(std::io::Error::other)??;
        }
        self.looking.shutdown().await;
        Ok(())
    }
}

/// One console: reads for as long as it is let.
async fn read(
    mut stream: TcpStream,
    request: String,
    pictures: Arc<AtomicU64>,
) -> Result<(), LoadError> {
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = vec![0; 64 * 1024];
    let mut is_first = true;
    loop {
        let n = stream.read(&mut bytes).await?;
        let read = &bytes[..n];
        if n == 0 || (is_first && !read.starts_with(b"HTTP/1.1 200")) {
            let words = String::from_utf8_lossy(read).lines().next().unwrap_or("").to_owned();
            return Err(LoadError::Refused(format!("a console was ended: {words}")));
        }
        is_first = false;
        let told = memchr::memmem::find_iter(read, MARK).count();
        pictures.fetch_add(told as u64, SeqCst);
    }
}
