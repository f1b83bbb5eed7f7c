//! The program itself, in a process of its own that can be killed.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a start may take before it counts as none.
pub const START: Duration = Duration::from_secs(10);

pub struct Daemon {
    child: Child,
    addr: SocketAddr,
    pub began: Instant,
}

impl Daemon {
    /// Begins to start; nothing is awaited.
    pub fn spawn(addr: SocketAddr, dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::spawn_with(addr, dir, settings, None)
    }

    /// The same, with no more open files than these, if there is a number.
    pub fn spawn_with(
        addr: SocketAddr,
        dir: &Path,
        settings: &[(&str, &str)],
        files: Option<u64>,
    ) -> Self {
        let log = File::options().create(true).append(true).open(log_of(dir)).unwrap();
        let program = std::env::var_os("UTTERD_TORTURE_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_utterd").into());
        let mut command = match files {
            None => Command::new(program),
            Some(files) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
                shell.arg(program);
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UTTERD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["serve", "--listen", &addr.to_string(), "--data"])
            .arg(dir.join("data"))
            .env("UTTERD_LOG_LEVEL", "warn")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, addr, began: Instant::now() }
    }

    /// Whether it takes sessions; its port takes connections before that.
    async fn answers(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(self.addr).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    }

    /// Waits until it takes sessions; says why when it does not.
    pub async fn until_up(&mut self) -> Result<Duration, String> {
        loop {
            let left = START.saturating_sub(self.began.elapsed());
            if let Ok(Ok(true)) = tokio::time::timeout(left, self.answers()).await {
                return Ok(self.began.elapsed());
            }
            if let Some(status) = self.ended() {
                return Err(format!("it ended by itself: {status}"));
            }
            if left.is_zero() {
                return Err(format!("it does not answer after {START:?}"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends in good order, within the time given.
    pub async fn stop(mut self, within: Duration) -> Result<(), String> {
        self.terminate();
        let began = Instant::now();
        while began.elapsed() < within {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("it ended with {status}")),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Err(format!("it did not end within {within:?}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

pub fn log_of(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// An address for the whole test. Its port is not one that the system gives to outgoing
/// connections: with the server dead, a client could be given the port it dials and talk to itself.
pub fn address(rng: &mut Rng) -> SocketAddr {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let low = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    let low: u16 = low.unwrap_or(32_768).max(20_000);
    loop {
        let addr = SocketAddr::from(([127, 0, 0, 1], rng.u16(10_000..low)));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}
