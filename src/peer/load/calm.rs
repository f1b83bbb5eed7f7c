//! Waiting until a server has put on its disk what it was asked for.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::LoadError;

/// How often the server is asked, and how many times in a row it has to have nothing left: who
/// waits for room in a queue is in none for a moment.
const EVERY: Duration = Duration::from_millis(100);
const TIMES: u32 = 5;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of metrics that are read.
const METRICS_BYTES_MAX: u64 = 4 << 20;

/// A server whose queues are looked at.
pub(super) struct Watched {
    authority: String,
}

impl Watched {
    /// The server at this address, which must be one without TLS.
    pub(super) fn of(url: &str) -> Result<Self, LoadError> {
        Ok(Self { authority: authority(url)?.to_owned() })
    }

    /// Returns when nothing waits for the disk.
    pub(super) async fn until_calm(&self) -> Result<(), LoadError> {
        let begin = Instant::now();
        let mut calm = 0;
        while calm < TIMES {
            if begin.elapsed() > PATIENCE {
                return Err(LoadError::Refused("the disk does not come to rest".to_owned()));
            }
            calm = if self.queued().await? == 0.0 { calm + 1 } else { 0 };
            tokio::time::sleep(EVERY).await;
        }
        Ok(())
    }

    async fn queued(&self) -> Result<f64, LoadError> {
        let Self { authority } = self;
        let mut stream = TcpStream::connect(authority).await?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(METRICS_BYTES_MAX).read_to_end(&mut answer).await?;
        queued(&String::from_utf8_lossy(&answer)).ok_or_else(|| {
            LoadError::Refused("the server does not say what waits for its disk".to_owned())
        })
    }
}

/// Where the server's HTTP is.
pub(super) fn authority(url: &str) -> Result<&str, LoadError> {
    let apart = LoadError::Options("load beside others is for a server without TLS");
    url.strip_prefix("ws://").ok_or(apart)
}

/// What waits in all lanes of the store, if the metrics tell.
fn queued(metrics: &str) -> Option<f64> {
    let lanes = metrics.lines().filter(|line| line.starts_with("utterd_store_queued{"));
    let lengths = lanes.map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    lengths.reduce(|all, lane| Some(all? + lane?)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_the_sum_of_the_lanes_and_unknown_where_none_is_named() {
        let lanes = "HTTP/1.1 200 OK\r\n\r\n# HELP utterd_store_queued x\n\
            utterd_store_queued{lane=\"accepts\"} 2\nutterd_store_queued{lane=\"results\"} 40\n\
            utterd_store_syncs_total 7\n";
        assert_eq!(queued(lanes), Some(42.0));
        assert_eq!(queued("HTTP/1.1 401 Unauthorized\r\n\r\n"), None);
        assert_eq!(queued("utterd_store_queued{lane=\"results\"} many"), None);
    }
}
