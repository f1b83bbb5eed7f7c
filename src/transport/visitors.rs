//! What one address may have: connections at one time and a second, and wrong credentials.
//!
//! An IPv6 address counts as its /64, of which a visitor has as many addresses as it likes.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use foldhash::fast::RandomState;
use ipnet::IpNet;
use papaya::HashMap;
use tokio::time::Instant;

use crate::telemetry::{Bucket, Now, Rate};

/// Addresses counted apart. When there are as many, those that owe nothing are forgotten; while
/// none does, further ones are bounded by what is there for all.
const ADDRESSES_MAX: usize = 65_536;

/// What one address may have; 0 is no limit.
#[derive(Debug, Clone, Default)]
pub struct VisitorLimits {
    /// Connections at one time.
    pub connections_max: usize,
    /// New connections a second; as many may come at once.
    pub connections_per_second: u32,
    /// Wrong credentials a minute; as many may come at once.
    pub failures_per_minute: u32,
    /// Who is not counted.
    pub unlimited: Vec<IpNet>,
}

/// Who is here, by address.
#[derive(Debug)]
pub(super) struct Visitors {
    limits: VisitorLimits,
    by_address: HashMap<IpAddr, Arc<Visitor>, RandomState>,
    begun: Instant,
}

/// One address.
#[derive(Debug, Default)]
pub(super) struct Visitor {
    open: AtomicUsize,
    new: Bucket,
    failures: Bucket,
}

impl Visitor {
    fn owes_nothing(&self, now: Now) -> bool {
        self.open.load(SeqCst) == 0 && self.new.is_full(now) && self.failures.is_full(now)
    }

    /// One connection less.
    pub(super) fn leave(&self) {
        self.open.fetch_sub(1, SeqCst);
    }
}

impl Visitors {
    pub(super) fn new(limits: VisitorLimits) -> Self {
        let by_address = HashMap::with_hasher(RandomState::default());
        Self { limits, by_address, begun: Instant::now() }
    }

    fn now(&self) -> Now {
        // From one second on, so that a bucket begins full.
        Now { us: 1_000_000 + self.begun.elapsed().as_micros() as u64, unix_ms: 0 }
    }

    fn visitor(&self, address: IpAddr, now: Now) -> Option<Arc<Visitor>> {
        let address = address.to_canonical();
        if self.limits.unlimited.iter().any(|net| net.contains(&address)) {
            return None;
        }
        let key = counted_as(address);
        let visitors = self.by_address.pin();
        if let Some(known) = visitors.get(&key) {
            return Some(Arc::clone(known));
        }
        if visitors.len() >= ADDRESSES_MAX {
            visitors.retain(|_, visitor| !visitor.owes_nothing(now));
            if visitors.len() >= ADDRESSES_MAX {
                return None;
            }
        }
        Some(Arc::clone(visitors.get_or_insert_with(key, Default::default)))
    }

    /// So many units each so many milliseconds, if that is a limit.
    fn rate(units: u32, ms: u64) -> Option<Rate> {
        (units > 0).then(|| Rate::new(units.into(), ms))
    }

    fn failures(&self) -> Option<Rate> {
        Self::rate(self.limits.failures_per_minute, 60_000)
    }

    /// Counts a connection from there: none if it is not counted. The error is the seconds after
    /// which to come again.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Option<Arc<Visitor>>, u64> {
        let now = self.now();
        let Some(visitor) = self.visitor(address, now) else { return Ok(None) };
        let failed_ms = self.failures().map_or(0, |rate| visitor.failures.wait_for(rate, 1, now));
        if failed_ms > 0 {
            return Err(failed_ms.div_ceil(1_000));
        }
        let new = Self::rate(self.limits.connections_per_second, 1_000);
        if let Some(Err(wait_ms)) = new.map(|rate| visitor.new.take(rate, 1, now)) {
            return Err(wait_ms.div_ceil(1_000).max(1));
        }
        let max = match self.limits.connections_max {
            0 => usize::MAX,
            max => max,
        };
        let room = |open: usize| (open < max).then_some(open + 1);
        visitor.open.fetch_update(SeqCst, SeqCst, room).map_err(|_| 1_u64)?;
        Ok(Some(visitor))
    }

    /// Somebody from there showed a credential that is not good.
    pub(super) fn failed(&self, address: IpAddr) {
        let now = self.now();
        if let (Some(rate), Some(visitor)) = (self.failures(), self.visitor(address, now)) {
            visitor.failures.overdraw(rate, 1, now);
        }
    }
}

/// The address that another is counted as.
fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => IpAddr::V6((six.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitors(connections_max: usize, connections_per_second: u32) -> Visitors {
        Visitors::new(VisitorLimits {
            connections_max,
            connections_per_second,
            failures_per_minute: 2,
            unlimited: vec!["10.1.0.0/16".parse().unwrap()],
        })
    }

    fn from(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_connections_and_another_its_own() {
        let visitors = visitors(2, 0);
        let first = visitors.enter(from("10.0.0.1")).unwrap().expect("it is counted");
        assert!(visitors.enter(from("::ffff:10.0.0.1")).is_ok(), "the same in other words");
        assert_eq!(visitors.enter(from("10.0.0.1")).err(), Some(1));
        assert!(visitors.enter(from("10.0.0.2")).is_ok());
        first.leave();
        assert!(visitors.enter(from("10.0.0.1")).is_ok());
        for _ in 0..9 {
            assert!(visitors.enter(from("10.1.2.3")).unwrap().is_none(), "it is not counted");
        }
        assert!(visitors.enter(from("2001:db8::1")).is_ok());
        assert!(visitors.enter(from("2001:db8::2")).is_ok());
        assert!(visitors.enter(from("2001:db8::3")).is_err(), "one visitor has all of these");
        assert!(visitors.enter(from("2001:db8:0:1::1")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_comes_so_often_in_a_second() {
        let visitors = visitors(0, 2);
        let come = || visitors.enter(from("10.0.0.1")).map(|seen| seen.unwrap().leave());
        assert_eq!([come(), come(), come()], [Ok(()), Ok(()), Err(1)]);
        tokio::time::advance(std::time::Duration::from_millis(500)).await;
        assert_eq!([come(), come()], [Ok(()), Err(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_shows_wrong_credentials_is_kept_out_for_a_while() {
        let visitors = visitors(0, 0);
        visitors.failed(from("10.0.0.1"));
        assert!(visitors.enter(from("10.0.0.1")).is_ok());
        visitors.failed(from("10.0.0.1"));
        assert_eq!(visitors.enter(from("10.0.0.1")).err(), Some(30));
        assert!(visitors.enter(from("10.0.0.2")).is_ok());
        tokio::time::advance(std::time::Duration::from_secs(30)).await;
        assert!(visitors.enter(from("10.0.0.1")).is_ok());
    }
}
