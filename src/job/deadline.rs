//! Deadlines as data: a hashed wheel, owned by one task, that hands back what is due.
//!
//! Nothing is ever disarmed: a job that has moved on makes its old deadline a no-op.

/// Width of a slot, in microseconds: deadlines closer than this are looked at together.
const SLOT_US: u64 = 2_000;
/// Half a minute, so that most deadlines are looked at once.
const SLOTS: usize = 16_384;
/// Deadlines that an empty slot keeps room for: what a burst has taken is given back when it is
/// over.
const KEPT: usize = 4;

/// A hashed timing wheel over monotonic microseconds.
#[derive(Debug)]
pub struct Wheel<T> {
    slots: Vec<Vec<(u64, T)>>,
    /// The slot last looked at, counted from time zero. What is left in it may be due soon.
    reached: u64,
    len: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel at time `now_us`.
    pub fn new(now_us: u64) -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { slots, reached: now_us / SLOT_US, len: 0 }
    }

    /// Arms `item` for `at_us`; a moment already past is due at the next `expire`.
    pub fn arm(&mut self, at_us: u64, item: T) {
        let tick = (at_us / SLOT_US).max(self.reached);
        self.slots[tick as usize % SLOTS].push((at_us, item));
        self.len += 1;
    }

    /// Hands everything due at `now_us` to `due`.
    pub fn expire(&mut self, now_us: u64, mut due: impl FnMut(T)) {
        let target = (now_us / SLOT_US).max(self.reached);
        // After a jump longer than the wheel each slot is looked at once.
        let first = self.reached.max((target + 1).saturating_sub(SLOTS as u64));
        for tick in first..=target {
            let slot = &mut self.slots[tick as usize % SLOTS];
            let mut at = 0;
            while at < slot.len() {
                if slot[at].0 <= now_us {
                    let (_, item) = slot.swap_remove(at);
                    self.len -= 1;
                    due(item);
                } else {
                    at += 1;
                }
            }
            if slot.is_empty() && slot.capacity() > KEPT {
                *slot = Vec::new();
            }
        }
        self.reached = target;
    }

    /// Deadlines armed and not yet handed back.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is armed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_early_and_nothing_is_late() {
        let mut wheel = Wheel::new(0);
        for at in [1, SLOT_US - 1, SLOT_US, SLOT_US + 1, 500_000, 60_000_000] {
            wheel.arm(at, at);
        }
        let mut due = Vec::new();
        let mut now = 0;
        while !wheel.is_empty() {
            now += 300;
            wheel.expire(now, |at| due.push((at, now)));
        }
        assert_eq!(due.len(), 6);
        for (at, now) in due {
            assert!(now >= at && now < at + 300, "{at} came at {now}");
        }
    }

    #[test]
    fn a_burst_is_forgotten_with_its_last_deadline() {
        let mut wheel = Wheel::new(0);
        for at in 0..200_000 {
            wheel.arm(1_000_000 + at % 60_000, at);
        }
        let room = |wheel: &Wheel<u64>| wheel.slots.iter().map(Vec::capacity).sum::<usize>();
        assert!(room(&wheel) >= 200_000);
        wheel.expire(2_000_000, drop);
        assert_eq!((wheel.len(), room(&wheel)), (0, 0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_list(
            arms in proptest::collection::vec((0_u64..200_000_000, 0_u64..200_000_000), 1..60)
        ) {
            let (mut wheel, mut twin, mut now) = (Wheel::new(0), Vec::new(), 0);
            for (step, at) in arms {
                wheel.arm(at, at);
                twin.push(at);
                now += step / 7;
                let mut due = Vec::new();
                wheel.expire(now, |at| due.push(at));
                for at in &due {
                    prop_assert!(*at <= now);
                    let i = twin.iter().position(|t| t == at).unwrap();
                    twin.swap_remove(i);
                }
                prop_assert!(twin.iter().all(|at| *at > now));
            }
            wheel.expire(now + 400_000_000, |_| {});
            prop_assert!(wheel.is_empty());
        }
    }
}
