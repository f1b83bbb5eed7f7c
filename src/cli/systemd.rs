//! What a service manager hands over and wants to hear: sockets that listen (`LISTEN_FDS`), and
//! words about the state of the service (`NOTIFY_SOCKET`). Without one nothing here does anything.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;

use crate::server::Handed;

/// The sockets that were handed over, by their names in `LISTEN_FDNAMES`: `client`, `node`, and the
/// first of any other name as `client` if there is none. One that has no use is a fault, for who
/// connects to it would wait for ever.
///
/// To be called once, while the process has one thread: it takes `LISTEN_FDS` and `LISTEN_PID` out
/// of the environment.
pub(super) fn handed_over() -> anyhow::Result<Handed> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let roles = roles(&names, sockets.len())?;
    let mut handed = Handed::default();
    for (index, role) in roles.into_iter().enumerate() {
        let taken = sockets.take_tcp_listener(index);
        let taken = taken.with_context(|| format!("LISTEN_FDS: socket {index} cannot be used"))?;
        match role {
            Role::Client => handed.client = taken,
            Role::Node => handed.node = taken,
        }
    }
    Ok(handed)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Node,
}

/// What each of `count` sockets with these names, split by colons, is for.
fn roles(names: &str, count: usize) -> anyhow::Result<Vec<Role>> {
    let mut names = names.split(':').chain(std::iter::repeat("")).take(count);
    let named = |name| match name {
        "client" => Some(Role::Client),
        "node" => Some(Role::Node),
        _ => None,
    };
    let roles: Vec<Option<Role>> = names.by_ref().map(named).collect();
    // Sockets without a name of ours are for clients.
    let roles: Vec<Role> = roles.into_iter().map(|role| role.unwrap_or(Role::Client)).collect();
    for role in [Role::Client, Role::Node] {
        if roles.iter().filter(|r| **r == role).count() > 1 {
            bail!("LISTEN_FDS: more than one socket for {role:?}; name them in LISTEN_FDNAMES");
        }
    }
    Ok(roles)
}

/// Tells the service manager again and again that the runtime turns, twice in the time within
/// which it wants to hear that (`WATCHDOG_USEC`). Returns at once if it does not want to.
///
/// This says nothing of the disk: the store's own watch ends a process whose disk does not answer.
pub(super) async fn keep_alive() {
    let within = std::env::var("WATCHDOG_USEC").ok();
    let pid = std::env::var("WATCHDOG_PID").ok();
    let Some(within) = watched(within.as_deref(), pid.as_deref(), std::process::id()) else {
        return;
    };
    let mut beat = tokio::time::interval(within / 2);
    loop {
        beat.tick().await;
        notify("WATCHDOG=1");
    }
}

/// The time within which this process is to give a sign, if it is the one that is watched.
fn watched(within_us: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let within = within_us?.parse().ok().filter(|us| *us > 1)?;
    let mine = pid.is_none_or(|pid| pid.parse() == Ok(own));
    mine.then(|| Duration::from_micros(within))
}

/// Tells the service manager, if there is one. It may be gone, or not care.
pub(super) fn notify(state: &str) {
    let Some(to) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell(&to, state) {
        tracing::warn!(%error, state, "the service manager was not told");
    }
}

fn tell(to: &OsStr, state: &str) -> io::Result<()> {
    let sent = UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address(to)?)?;
    if sent == state.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A path, or on Linux a name that is no file, written with `@` before it.
fn address(text: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::ffi::OsStrExt as _;
        if let Some(name) = text.as_bytes().strip_prefix(b"@") {
            return SocketAddr::from_abstract_name(name);
        }
    }
    SocketAddr::from_pathname(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_known_by_their_names() {
        let of = |names, count| roles(names, count).ok();
        use Role::{Client, Node};
        assert_eq!(of("", 0), Some(vec![]));
        assert_eq!(of("", 1), Some(vec![Client]));
        assert_eq!(of("utterd.socket", 1), Some(vec![Client]));
        assert_eq!(of("node:client", 2), Some(vec![Node, Client]));
        assert_eq!(of("node", 2), Some(vec![Node, Client]));
        assert_eq!(of("node:utterd.socket", 2), Some(vec![Node, Client]));
        assert_eq!(of("client:other", 2), None);
        assert_eq!(of("", 2), None);
    }

    #[test]
    fn who_is_watched_gives_a_sign_in_time() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watched(Some("1000000"), None, 7), second);
        assert_eq!(watched(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watched(Some("1000000"), Some("8"), 7), None);
        for odd in [None, Some("0"), Some("1"), Some(""), Some("-3"), Some("soon")] {
            assert_eq!(watched(odd, None, 7), None, "{odd:?}");
        }
    }

    #[test]
    fn a_manager_is_told_at_a_path_or_at_a_bare_name() {
        let dir = tempfile::tempdir().unwrap();
        let bare = format!("utterd-test-{}", fastrand::u64(..));
        let path = dir.path().join("notify");
        let abstract_name = std::ffi::OsString::from(format!("@{bare}"));
        for to in [path.as_os_str(), &abstract_name] {
            let manager = UnixDatagram::bind_addr(&address(to).unwrap()).unwrap();
            tell(to, "READY=1").unwrap();
            let mut heard = [0; 64];
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        assert!(tell(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }
}
