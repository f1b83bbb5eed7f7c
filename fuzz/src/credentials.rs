//! What is shown at the doors: keys, tokens, pairing codes, and the ids of messages.
//!
//! Behind the choice of the first byte the rest is a credential as it came, or changes to a good
//! one: whatever is not exactly what was given out is good for nothing.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use utterd::config;
use utterd::protocol::{JobId, Lang, NodeId, Pair, RoomCode, SessionId, TurnId};
use utterd::telemetry::Now;
use utterd::tenant::{KeyKind, Keys, Pairings, Pass};

use super::bounded::bounded;
use super::script::Script;

const NOW_MS: u64 = 1_000_000;
const UNTIL_MS: u64 = NOW_MS + 60_000;

pub fn run(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    match how % 4 {
        0 => as_it_came(&String::from_utf8_lossy(rest)),
        1 => changed(rest, |keys, pass, _| keys.token(pass, UNTIL_MS).expect("a key's own")),
        2 => changed(rest, |_, _, text| text.to_owned()),
        _ => pairing(rest),
    }
}

struct Ring {
    keys: Keys,
    text: String,
    pass: Pass,
}

fn ring() -> Ring {
    let doors = config::Auth {
        session_keys_required: true,
        node_keys_required: true,
        admin_keys_required: true,
    };
    let keys = Keys::new([7; 32], doors, Vec::new());
    let of = (KeyKind::Session, Some("acme".to_owned()));
    let (key, text) = keys.make(of, "a".into(), None, NOW_MS).expect("there is room for one");
    let pass = Pass { key: Some(key.id), tenant: key.tenant.clone() };
    keys.put(key);
    Ring { keys, text, pass }
}

fn as_it_came(text: &str) {
    let Ring { keys, text: good, .. } = ring();
    for kind in KeyKind::ALL {
        let passed = bounded(text.len(), || keys.admit(kind, Some(text), NOW_MS));
        assert!(passed.is_err() || text == good, "{text} was taken");
        assert_eq!(Some(kind), KeyKind::parse(kind.as_str()));
    }
    bounded(text.len(), || {
        same_again::<SessionId>(text);
        same_again::<JobId>(text);
        same_again::<RoomCode>(text);
        same_again::<Lang>(text);
        same_again::<Pair>(text);
    });
    let turn = TurnId(text.len() as u128);
    if let Ok(lang) = text.parse::<Lang>() {
        assert_eq!(turn.into_lang(lang), turn.into_lang(lang));
    }
}

/// An id that is taken is what its own text says.
fn same_again<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(id) = text.parse::<T>() {
        assert_eq!(id.to_string().parse::<T>().ok(), Some(id));
    }
}

/// A good credential, a few of whose bytes are others.
fn changed(input: &[u8], make: fn(&Keys, &Pass, &str) -> String) {
    let Ring { keys, text, pass } = ring();
    let good = make(&keys, &pass, &text);
    let admit = |text: &str, now| keys.admit(KeyKind::Session, Some(text), now);
    assert_eq!(admit(&good, NOW_MS).as_ref(), Ok(&pass), "the good one");
    let mut script = Script::new(input);
    let mut bytes = good.clone().into_bytes();
    while !script.is_over() && !bytes.is_empty() {
        let at = script.pick(bytes.len());
        match script.pick(4) {
            0 => bytes[at] = script.any(),
            1 => bytes.insert(at, script.any()),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
    let bytes = String::from_utf8_lossy(&bytes);
    let taken = admit(&bytes, NOW_MS).is_ok();
    assert_eq!(taken, bytes == good, "{bytes} for {good}");
    for kind in [KeyKind::Node, KeyKind::Admin] {
        assert!(keys.admit(kind, Some(&bytes), NOW_MS).is_err(), "good for another door");
    }
    if Keys::is_token(&good) {
        assert!(admit(&good, UNTIL_MS).is_err(), "a token that is too old");
    }
    let revoked = keys.revoked(pass.key.unwrap_or_default(), NOW_MS).expect("it is there");
    keys.put(revoked);
    assert!(admit(&good, NOW_MS + 1).is_err(), "the key is revoked");
}

/// Pairing codes: given out, tried, too old. The twin is a list of those that are good.
fn pairing(input: &[u8]) {
    fastrand::seed(7);
    let mut script = Script::new(input);
    let pairings = Pairings::default();
    let mut good: Vec<(u32, NodeId, u64)> = Vec::new();
    let mut now = Now { us: 1, unix_ms: 0 };
    while !script.is_over() {
        let from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, script.pick(3) as u8));
        match script.pick(4) {
            0 => {
                let node = NodeId::from(script.of(&["a", "b"]));
                if let Some(code) = pairings.make(&node, now) {
                    assert!(code < 1_000_000);
                    good.retain(|(other, ..)| *other != code);
                    good.push((code, node, now.after_ms(utterd::tenant::CODE_MS)));
                }
            }
            1 if !good.is_empty() => {
                let (code, node, until_us) = good.swap_remove(script.pick(good.len()));
                match pairings.redeem(&format!("{code:06}"), from, now) {
                    Ok(found) => assert!(found == node && now.us < until_us),
                    Err(utterd::tenant::NotPaired::Invalid) => assert!(now.us >= until_us),
                    Err(utterd::tenant::NotPaired::TooMany(ms)) => {
                        assert!((1..=60_000).contains(&ms));
                        good.push((code, node, until_us));
                    }
                }
            }
            2 => {
                let text = String::from_utf8_lossy(script.bytes(8));
                let known = good.iter().any(|(code, ..)| format!("{code:06}") == text);
                if !known {
                    assert!(pairings.redeem(&text, from, now).is_err(), "{text} was never given");
                }
            }
            _ => now.us += u64::from(script.any::<u16>()) * 10_000,
        }
    }
}
