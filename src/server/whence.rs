//! From where somebody asks: from this host, from elsewhere, or through a browser that the page of
//! somebody else has made ask.
//!
//! Who asks from this host needs no key, and a browser on this host asks whatever the page it shows
//! wants. Such a page cannot read the answers of others, but it can ask; and with a name of its own
//! that suddenly means this host it can read them too. The first is seen by what browsers say of
//! the page (`Sec-Fetch-Site`, `Origin`), the second by the name they came by (`Host`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::http::uri::Authority;
use hyper::{Method, Request, header};

use crate::config;

/// From where somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whence {
    /// From this host, by an address or a name that only this host has.
    Here,
    /// From this host, by a name that anybody may have given it.
    Renamed,
    /// From another host, at this address.
    Elsewhere(IpAddr),
}

impl Whence {
    pub(super) fn of<B>(
        request: &Request<B>,
        peer: SocketAddr,
        config: &config::Transport,
    ) -> Self {
        if !peer.ip().to_canonical().is_loopback() {
            return Whence::Elsewhere(peer.ip());
        }
        // Who names no host is no browser.
        let named = request.headers().get_all(header::HOST).iter();
        let mut named = named.map(|host| Authority::try_from(host.as_bytes()).ok());
        let ours = |host: &str| is_own(host) || config.allowed_origins.iter().any(|o| of(o, host));
        match named.all(|host| host.is_some_and(|host| ours(host.host()))) {
            true => Whence::Here,
            false => Whence::Renamed,
        }
    }
}

impl Whence {
    /// The address it is.
    pub(super) fn address(self) -> IpAddr {
        match self {
            Whence::Here | Whence::Renamed => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Whence::Elsewhere(address) => address,
        }
    }
}

/// Whether that origin is one of that host.
fn of(origin: &str, host: &str) -> bool {
    let authority = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok());
    authority.is_some_and(|authority| authority.host().eq_ignore_ascii_case(host))
}

/// Whether nobody else can have made this name mean this host: an address means itself, and a name
/// of one word is nobody's on the internet.
fn is_own(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    bare.parse::<IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".localhost")
}

/// Whether the request comes from a page of this server, as its browser says, by a name that is
/// this host's own.
pub(super) fn is_own_page<B>(request: &Request<B>, origin: &header::HeaderValue) -> bool {
    let host = only(request, header::HOST).and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| is_own(host.host()) && names(origin, &host))
}

fn names(origin: &header::HeaderValue, host: &Authority) -> bool {
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    authority.is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host.as_str()))
}

/// Whether a page of somebody else has its visitor's browser ask for something that only operators
/// do. The browser says so itself where it thinks the connection safe; else its page's origin is
/// held against the name it came by.
pub(super) fn is_sent_by_others<B>(request: &Request<B>, config: &config::Transport) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    // Whoever wants a token shows a key for it, which no page of others has.
    let of_operators = path.starts_with("/api/v1/") && path != "/api/v1/session-tokens";
    // Places at the console's feed are few, so that taking one is doing something.
    if !of_operators || (reads && !path.starts_with("/api/v1/console/")) {
        return false;
    }
    let origins: Vec<_> = request.headers().get_all(header::ORIGIN).iter().collect();
    let allowed = |origin: &&header::HeaderValue| {
        config
            .allowed_origins
            .iter()
            .any(|one| one.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    };
    if !origins.is_empty() && origins.iter().all(allowed) {
        return false;
    }
    match only(request, header::HeaderName::from_static("sec-fetch-site")) {
        Some(site) => site != "same-origin" && site != "none",
        None => {
            let host = only(request, header::HOST).and_then(|host| host.parse::<Authority>().ok());
            !origins.iter().all(|origin| host.as_ref().is_some_and(|host| names(origin, host)))
        }
    }
}

/// The header of that name, if there is exactly one; else nothing that anybody is called.
fn only<B>(request: &Request<B>, name: header::HeaderName) -> Option<&str> {
    let mut values = request.headers().get_all(name).iter();
    let first = values.next()?.to_str().unwrap_or_default();
    Some(if values.next().is_none() { first } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().method(method).uri(path);
        headers.iter().fold(request, |r, (name, value)| r.header(*name, *value)).body(()).unwrap()
    }

    fn allowing(origin: &str) -> config::Transport {
        config::Transport { allowed_origins: vec![origin.to_owned()], ..Default::default() }
    }

    #[test]
    fn a_name_that_anybody_may_give_is_not_this_hosts_own() {
        let here = "127.0.0.1:4".parse().unwrap();
        let of = |host: &str, config: &config::Transport| {
            Whence::of(&asked("GET", "/metrics", &[("host", host)]), here, config)
        };
        let config = config::Transport::default();
        let own = [
            "127.0.0.1:5010",
            "[::1]:5010",
            "10.1.2.3",
            "localhost:5010",
            "LOCALHOST",
            "a.localhost",
        ];
        for host in own {
            assert_eq!(of(host, &config), Whence::Here, "{host}");
        }
        let given = [
            "evil.example",
            "evil.example:5010",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ];
        for host in given.into_iter().chain(["1.2.3", "a b", ""]) {
            assert_eq!(of(host, &config), Whence::Renamed, "{host}");
        }
        assert_eq!(of("talk.example", &allowing("https://talk.example")), Whence::Here);
        assert_eq!(of("talk.example:8", &allowing("https://TALK.example:9")), Whence::Here);
        assert_eq!(of("x.talk.example", &allowing("https://talk.example")), Whence::Renamed);
        let bare = asked("GET", "/", &[]);
        assert_eq!(Whence::of(&bare, here, &config), Whence::Here);
        assert_eq!(
            Whence::of(&bare, "[::ffff:127.0.0.1]:4".parse().unwrap(), &config),
            Whence::Here
        );
        let away: SocketAddr = "10.0.0.1:4".parse().unwrap();
        assert_eq!(Whence::of(&bare, away, &config), Whence::Elsewhere(away.ip()));
        let two = asked("GET", "/", &[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(Whence::of(&two, here, &config), Whence::Renamed);
    }

    #[test]
    fn what_pages_of_others_have_browsers_ask_is_seen() {
        const DRAIN: &str = "/api/v1/nodes/n/drain";
        let strange = |method: &str, path: &str, headers: &[(&str, &str)]| {
            is_sent_by_others(&asked(method, path, headers), &allowing("https://ops.example"))
        };
        let host = ("host", "127.0.0.1:5010");
        for site in ["cross-site", "same-site", "", "other"] {
            assert!(strange("POST", DRAIN, &[host, ("sec-fetch-site", site)]), "{site}");
        }
        for origin in ["null", "http://evil.example", "http://127.0.0.1:8080", "127.0.0.1:5010", ""]
        {
            assert!(strange("POST", DRAIN, &[host, ("origin", origin)]), "{origin}");
            assert!(strange("DELETE", "/api/v1/keys/1", &[host, ("origin", origin)]), "{origin}");
            assert!(
                strange("GET", "/api/v1/console/feed", &[host, ("origin", origin)]),
                "{origin}"
            );
            assert!(!strange("GET", "/api/v1/nodes", &[host, ("origin", origin)]), "{origin}");
            assert!(!strange("POST", "/api/v1/session-tokens", &[host, ("origin", origin)]));
        }
        let own = ("origin", "http://127.0.0.1:5010");
        assert!(!strange("POST", DRAIN, &[host]), "no browser");
        assert!(!strange("POST", DRAIN, &[host, own]));
        assert!(!strange("POST", DRAIN, &[host, own, ("sec-fetch-site", "same-origin")]));
        assert!(!strange("POST", DRAIN, &[host, ("sec-fetch-site", "none")]));
        assert!(strange("POST", DRAIN, &[host, own, ("origin", "http://evil.example")]));
        let twice = [host, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")];
        assert!(strange("POST", DRAIN, &twice));
        let listed = [host, ("origin", "https://ops.example"), ("sec-fetch-site", "cross-site")];
        assert!(!strange("POST", DRAIN, &listed));
    }

    #[test]
    fn only_a_page_by_this_hosts_own_name_is_its_own() {
        let own = |host: &str, origin: &str| {
            let request = asked("POST", "/", &[("host", host), ("origin", origin)]);
            is_own_page(&request, &request.headers()[header::ORIGIN])
        };
        assert!(own("127.0.0.1:5010", "http://127.0.0.1:5010"));
        assert!(own("localhost:5010", "https://LOCALHOST:5010"));
        assert!(!own("evil.example:5010", "http://evil.example:5010"));
        assert!(!own("127.0.0.1:5010", "http://127.0.0.1:5011"));
        assert!(!own("127.0.0.1:5010", "null"));
    }
}
