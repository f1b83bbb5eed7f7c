//! What a peer may send in a second, counted below the WebSocket codec: what never becomes a
//! message is counted there too.

use std::time::Duration;

use crate::telemetry::{Bucket, Now, Rate};

/// What one connection may send in a second, as much of it at once; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes. Who sends more is read more slowly, and loses nothing.
    pub bytes: usize,
    /// Frames of any kind. Who sends more is closed with 1008.
    pub frames: u32,
    /// Pings, pongs and close frames. Who sends more is closed with 1008.
    pub controls: u32,
}

/// Charges what came against what may come.
#[derive(Debug)]
pub(super) struct Toll {
    bytes: Option<(Rate, Bucket)>,
    frames: Option<(Rate, Bucket)>,
    controls: Option<(Rate, Bucket)>,
    /// What was charged so far: bytes, frames, control frames.
    charged: [u64; 3],
}

/// More came than may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// Bytes: nothing is to be read for so long.
    Bytes(Duration),
    /// Frames: the peer is not one of ours.
    Frames,
}

impl Toll {
    pub(super) fn new(rates: Rates) -> Self {
        let bucket = |units: u64| (units > 0).then(|| (Rate::new(units, 1_000), Bucket::default()));
        Self {
            bytes: bucket(rates.bytes as u64),
            frames: bucket(rates.frames.into()),
            controls: bucket(rates.controls.into()),
            charged: [0; 3],
        }
    }

    /// So much has come since the connection began, which was `now_us` microseconds ago.
    pub(super) fn charge(&mut self, came: [u64; 3], now_us: u64) -> Result<(), Excess> {
        // From one second on, so that a bucket begins full.
        let now = Now { us: 1_000_000 + now_us, unix_ms: 0 };
        let [bytes, frames, controls] = std::array::from_fn(|n| came[n] - self.charged[n]);
        self.charged = came;
        let owe = |bucket: &Option<(Rate, Bucket)>, units| match (bucket, units) {
            (Some((rate, bucket)), 1..) => {
                bucket.overdraw(*rate, units, now);
                // What has come is taken; there has to be room for the next.
                bucket.wait_for(*rate, 1, now)
            }
            _ => 0,
        };
        let too_many = owe(&self.frames, frames).max(owe(&self.controls, controls));
        let wait_ms = owe(&self.bytes, bytes);
        match (too_many, wait_ms) {
            (1.., _) => Err(Excess::Frames),
            (0, 1..) => Err(Excess::Bytes(Duration::from_millis(wait_ms))),
            (0, 0) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_fast_is_told_by_kind() {
        let mut toll = Toll::new(Rates { bytes: 1_000, frames: 10, controls: 2 });
        assert_eq!(toll.charge([900, 5, 1], 0), Ok(()));
        assert_eq!(toll.charge([1_500, 6, 1], 0), Err(Excess::Bytes(Duration::from_millis(501))));
        assert_eq!(toll.charge([1_500, 6, 1], 1_000_000), Ok(()));
        assert_eq!(toll.charge([1_500, 8, 3], 1_000_000), Err(Excess::Frames), "control frames");
        assert_eq!(toll.charge([1_500, 8, 3], 9_000_000), Ok(()));
        assert_eq!(toll.charge([1_500, 18, 3], 9_000_000), Err(Excess::Frames));
    }

    #[test]
    fn without_limits_everything_may_come() {
        let mut toll = Toll::new(Rates::default());
        assert_eq!(toll.charge([u64::MAX; 3], 0), Ok(()));
    }
}
