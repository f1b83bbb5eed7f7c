//! Codes that bind a session to one node: six digits, said by one person to another.
//!
//! A code is made for a node, is good for one session, and for five minutes. Codes are short, so
//! wrong ones are counted: who offers too many has to wait, and so has everybody else who was wrong
//! when there are too many in all. Whoever is right at the first attempt is never kept waiting.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use papaya::HashMap;

use crate::protocol::NodeId;
use crate::telemetry::{Bucket, Now, Rate};

/// How long a code is good, in milliseconds.
pub const CODE_MS: u64 = 300_000;
/// Codes that may be good at once; the fewer there are the harder they are to guess.
const CODES_MAX: usize = 1_000;
/// Random codes tried before none is found.
const TRIES: usize = 64;
/// Time in which as many wrong codes as follow may be offered, in milliseconds.
const WRONG_MS: u64 = 60_000;
/// Wrong codes from one address.
const WRONG_OF_ONE_MAX: u64 = 5;
/// Wrong codes from all.
const WRONG_OF_ALL_MAX: u64 = 60;
/// Addresses whose wrong codes are counted apart.
const ADDRESSES_MAX: usize = 4_096;

fn of_one() -> Rate {
    Rate::new(WRONG_OF_ONE_MAX, WRONG_MS)
}

fn of_all() -> Rate {
    Rate::new(WRONG_OF_ALL_MAX, WRONG_MS)
}

/// Why a code was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPaired {
    /// It is wrong, was used, or is too old: which of these is not said.
    #[error("the pairing code is not valid")]
    Invalid,
    /// Too many wrong ones came before; after so many milliseconds another may be tried.
    #[error("too many wrong pairing codes")]
    TooMany(u64),
}

#[derive(Debug, Clone)]
struct Pairing {
    node: NodeId,
    until_us: u64,
}

/// The codes that are good now.
#[derive(Debug, Default)]
pub struct Pairings {
    codes: HashMap<u32, Pairing, RandomState>,
    /// Wrong codes that an address may still offer.
    wrong: HashMap<IpAddr, Arc<Bucket>, RandomState>,
    /// Those that all of them may.
    wrong_of_all: Bucket,
}

impl Pairings {
    /// A code for that node; none if too many are good already.
    pub fn make(&self, node: &NodeId, now: Now) -> Option<u32> {
        let codes = self.codes.pin();
        if codes.len() >= CODES_MAX {
            codes.retain(|_, pairing| pairing.until_us > now.us);
        }
        if codes.len() >= CODES_MAX {
            return None;
        }
        let until_us = now.after_ms(CODE_MS);
        let fresh = || {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).ok()?;
            // The remainder favours the lowest codes by less than one in four thousand.
            Some(u32::from_le_bytes(bytes) % 1_000_000)
        };
        (0..TRIES).find_map(|_| {
            let code = fresh()?;
            let pairing = Pairing { node: node.clone(), until_us };
            codes.try_insert(code, pairing).is_ok().then_some(code)
        })
    }

    /// The node that the code from this address is for. It is used up with that.
    pub fn redeem(&self, text: &str, from: IpAddr, now: Now) -> Result<NodeId, NotPaired> {
        if let Some(wait_ms) = self.must_wait(from, now) {
            return Err(NotPaired::TooMany(wait_ms));
        }
        let digits = text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit());
        let code = text.parse::<u32>().ok().filter(|_| digits);
        let pairing = code.and_then(|code| self.codes.pin().remove(&code).cloned());
        match pairing {
            Some(pairing) if pairing.until_us > now.us => Ok(pairing.node),
            _ => {
                self.note_wrong(from, now);
                Err(NotPaired::Invalid)
            }
        }
    }

    /// How long who was wrong before has to wait, in milliseconds.
    fn must_wait(&self, from: IpAddr, now: Now) -> Option<u64> {
        let wrong = self.wrong.pin();
        let own = wrong.get(&from).filter(|own| !own.is_full(now))?;
        let wait_ms =
            own.wait_for(of_one(), 1, now).max(self.wrong_of_all.wait_for(of_all(), 1, now));
        (wait_ms > 0).then_some(wait_ms)
    }

    fn note_wrong(&self, from: IpAddr, now: Now) {
        self.wrong_of_all.overdraw(of_all(), 1, now);
        let wrong = self.wrong.pin();
        if wrong.len() >= ADDRESSES_MAX {
            wrong.retain(|_, of| !of.is_full(now));
        }
        if wrong.len() < ADDRESSES_MAX {
            wrong.get_or_insert_with(from, Default::default).overdraw(of_one(), 1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(seconds: u64) -> Now {
        Now { us: seconds * 1_000_000, unix_ms: seconds * 1_000 }
    }

    fn made(pairings: &Pairings, seconds: u64) -> String {
        let code = pairings.make(&NodeId::from("n1"), at(seconds)).expect("there is room");
        format!("{code:06}")
    }

    #[test]
    fn a_code_is_good_once_and_for_five_minutes() {
        let pairings = Pairings::default();
        let code = made(&pairings, 0);
        assert_eq!(pairings.redeem(&code, HERE, at(299)), Ok(NodeId::from("n1")));
        assert_eq!(pairings.redeem(&code, HERE, at(299)), Err(NotPaired::Invalid));
        let code = made(&pairings, 0);
        assert_eq!(pairings.redeem(&code, HERE, at(300)), Err(NotPaired::Invalid));
        let there = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(pairings.redeem(&code, there, at(1)), Err(NotPaired::Invalid), "it is used up");
        for text in ["", "12345", "+12345", "1234567", "１２３４５６"] {
            assert!(pairings.redeem(text, HERE, at(400)).is_err(), "{text}");
        }
    }

    #[test]
    fn who_guesses_has_to_wait_and_keeps_nobody_else_out() {
        let pairings = Pairings::default();
        let code = made(&pairings, 59);
        for _ in 0..WRONG_OF_ONE_MAX {
            assert_eq!(pairings.redeem("x", HERE, at(50)), Err(NotPaired::Invalid));
        }
        assert_eq!(pairings.redeem(&code, HERE, at(50)), Err(NotPaired::TooMany(12_000)));
        let other = |n: u8| IpAddr::from([10, 0, 0, n]);
        assert_eq!(pairings.redeem(&code, other(1), at(50)), Ok(NodeId::from("n1")));
        let code = made(&pairings, 59);
        assert_eq!(pairings.redeem(&code, HERE, at(62)), Ok(NodeId::from("n1")));
    }

    #[test]
    fn many_who_guess_have_to_wait_sooner() {
        let pairings = Pairings::default();
        let code = made(&pairings, 0);
        for n in 0..WRONG_OF_ALL_MAX as u8 {
            let from = IpAddr::from([10, 0, 0, n]);
            assert_eq!(pairings.redeem("x", from, at(1)), Err(NotPaired::Invalid));
        }
        let guesser = IpAddr::from([10, 0, 0, 7]);
        assert!(matches!(pairings.redeem(&code, guesser, at(1)), Err(NotPaired::TooMany(_))));
        assert_eq!(pairings.redeem(&code, HERE, at(1)), Ok(NodeId::from("n1")));
    }

    #[test]
    fn there_are_so_many_codes_and_old_ones_make_way() {
        let pairings = Pairings::default();
        for _ in 0..CODES_MAX {
            made(&pairings, 0);
        }
        assert_eq!(pairings.make(&NodeId::from("n1"), at(299)), None);
        made(&pairings, 300);
    }
}
