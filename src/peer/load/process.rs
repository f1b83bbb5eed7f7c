//! Another process of this program: started, looked at through `/proc`, and asked to end.
//!
//! Server and load are two processes so that what the server costs can be told apart. It refuses to
//! know what they say to each other.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use super::LoadError;

/// What a server says beside the load: not that every node is lost, which is how a load ends.
const LOG_LEVEL: &str = "warn,utterd::server=error";
/// How long a start may take.
const START: Duration = Duration::from_secs(20);
/// How long an end in good order may take.
const STOP: Duration = Duration::from_secs(35);
/// Nanoseconds of one tick of `/proc/PID/stat`, by the kernel's interface 1/100 s.
const TICK_NS: u64 = 10_000_000;

/// A process that was started here. Dropped, it is killed.
pub struct Spawned {
    child: Child,
    /// HOST:PORT.
    authority: String,
    /// Kept, for a program whose output nobody reads may end.
    stdout_kept: BufReader<ChildStdout>,
    /// Removed at the end.
    scratch: Option<PathBuf>,
}

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ServerPlan {
    /// The program, usually this one.
    pub program: PathBuf,
    /// Directory of the database; without one, a temporary one that is removed at the end.
    pub data: Option<PathBuf>,
    /// Settings as environment variables, above those of this process.
    pub settings: Vec<(String, String)>,
}

impl Spawned {
    /// Starts a server and waits until it takes sessions.
    pub async fn server(plan: &ServerPlan) -> Result<Self, LoadError> {
        let name = format!("utterd-load-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let temporary = std::env::temp_dir().join(name);
        let data = plan.data.clone().unwrap_or_else(|| temporary.clone());
        let mut command = Command::new(&plan.program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.env("UTTERD_LOG_LEVEL", LOG_LEVEL).envs(plan.settings.iter().cloned());
        let scratch = plan.data.is_none().then_some(temporary);
        Self::start(command, scratch).await
    }

    /// Starts the bare relay.
    pub async fn relay(program: &Path) -> Result<Self, LoadError> {
        let mut command = Command::new(program);
        command.args(["load", "--relay-only"]);
        Self::start(command, None).await
    }

    async fn start(mut command: Command, scratch: Option<PathBuf>) -> Result<Self, LoadError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let Some(stdout) = child.stdout.take() else {
            return Err(LoadError::NotUp("it has no output".to_owned()));
        };
        let stdout_kept = BufReader::new(stdout);
        let mut spawned = Self { child, authority: String::new(), stdout_kept, scratch };
        let up = async {
            let mut line = String::new();
            spawned.stdout_kept.read_line(&mut line).await?;
            let Some((_, authority)) = line.trim_end().rsplit_once(' ') else {
                return Err(LoadError::NotUp("it ended by itself".to_owned()));
            };
            spawned.authority = authority.to_owned();
            while !is_ready(authority).await.unwrap_or(false) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(START, up).await {
            Ok(up) => up?,
            Err(_) => return Err(LoadError::NotUp(format!("not after {START:?}"))),
        }
        Ok(spawned)
    }

    /// Where it listens, as a base of addresses: `ws://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.authority)
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to end, waits, and removes what it left.
    pub async fn stop(mut self) -> Result<(), LoadError> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(io::Error::from)?;
        }
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        self.clean()?;
        Ok(())
    }

    fn clean(&mut self) -> io::Result<()> {
        match self.scratch.take() {
            Some(dir) if dir.exists() => std::fs::remove_dir_all(dir),
            _ => Ok(()),
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // The child is killed by its own drop; its files may still be written for a moment.
        if let Err(error) = self.clean() {
            tracing::debug!(%error, "files of a process that was ended are left");
        }
    }
}

async fn is_ready(authority: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(authority).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: l\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// Processor time of a process so far, in nanoseconds.
pub(super) fn cpu_ns(pid: u32) -> Option<u64> {
    of_threads(pid).or_else(|| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(ticks(&stat)? * TICK_NS)
    })
}

/// Exact to the nanosecond, but blind for threads that have ended.
fn of_threads(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let path = thread.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(path).ok()?;
        sum += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// User and kernel time in `/proc/PID/stat`. The name before them may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, kernel) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + kernel.parse::<u64>().ok()?)
}

/// Resident memory of a process, in kB.
pub(super) fn rss_kb(pid: u32) -> Option<u64> {
    resident(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 1 0 5 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a) S"), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t   5120 kB\n"), Some(5_120));
        assert_eq!(resident(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(cpu_ns(pid).is_some_and(|ns| ns > 0));
        assert!(rss_kb(pid).is_some_and(|kb| kb > 100));
        assert_eq!(cpu_ns(u32::MAX), None);
    }
}
