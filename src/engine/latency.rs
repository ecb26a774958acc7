//! How long reads and writes take, measured only while somebody asks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets for each doubling, so a bucket is at most an eighth wide.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// Counts of operations by what they took, from 1 ns to 18 minutes.
pub(crate) struct Latency {
    asked: AtomicBool,
    buckets: Box<[AtomicU64; BUCKETS]>,
}

/// What was measured since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nobody read or wrote.
    #[default]
    Nothing,
    /// One in a hundred cannot be told from these.
    TooFew,
    P99(Duration),
}

/// Counts what passes from its making to its end.
#[must_use = "it measures until it is dropped"]
pub(crate) struct Timed<'a>(Option<(&'a Latency, Instant)>);

impl Latency {
    pub(super) fn new() -> Self {
        let buckets = Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        Self { asked: AtomicBool::new(false), buckets }
    }

    /// Begins or ends measuring.
    pub(crate) fn ask(&self, asked: bool) {
        if self.asked.swap(asked, Ordering::Relaxed) != asked {
            self.take_p99(1);
        }
    }

    pub(crate) fn start(&self) -> Timed<'_> {
        let asked = self.asked.load(Ordering::Relaxed);
        Timed(asked.then(|| (self, Instant::now())))
    }

    /// What 99 of 100 operations since the last call took at most, to an eighth. Where there were
    /// fewer than `least`, they are kept for the next call.
    pub(crate) fn take_p99(&self, least: u64) -> Taken {
        let counts: Vec<u64> = self.buckets.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        if all == 0 {
            return Taken::Nothing;
        }
        if all < least {
            return Taken::TooFew;
        }
        for (bucket, count) in self.buckets.iter().zip(&counts) {
            bucket.fetch_sub(*count, Ordering::Relaxed);
        }
        let mut above = all / 100;
        let mut slowest = counts.iter().enumerate().rev();
        let found = slowest.find(|(_, count)| match above.checked_sub(**count) {
            Some(left) => {
                above = left;
                false
            }
            None => true,
        });
        found.map_or(Taken::Nothing, |(bucket, _)| Taken::P99(Duration::from_nanos(upper(bucket))))
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        if let Some((latency, since)) = self.0 {
            let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            latency.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The three bits behind the highest one choose the step.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(STEPS as u64);
    let doubling = nanos.ilog2() as usize;
    let step = usize::try_from(nanos >> (doubling - 3)).unwrap_or(STEPS) - STEPS;
    ((doubling - 3) * STEPS + step).min(BUCKETS - 1)
}

/// The longest time that a bucket counts.
fn upper(bucket: usize) -> u64 {
    let (doubling, step) = (bucket / STEPS, bucket % STEPS);
    ((STEPS + step + 1) as u64) << doubling
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_an_eighth_wide() {
        let mut last = 0;
        for nanos in (1..100_000).chain((17..40).map(|shift| 1 << shift)) {
            let bound = upper(bucket(nanos));
            assert!(bound > nanos, "{nanos}: {bound}");
            assert!(bound as f64 <= (nanos.max(8) as f64) * 1.126, "{nanos}: {bound}");
            assert!(bucket(nanos) >= last);
            last = bucket(nanos);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_slowest_hundredth_is_left_out() {
        let latency = Latency::new();
        assert!(latency.start().0.is_none(), "nobody asked");
        latency.ask(true);
        let count = |nanos: u64, times: u64| {
            latency.buckets[bucket(nanos)].fetch_add(times, Ordering::Relaxed);
        };
        let p99 = |latency: &Latency| match latency.take_p99(1000) {
            Taken::P99(p99) => p99,
            other => panic!("{other:?}"),
        };
        count(1000, 990);
        count(1_000_000, 10);
        let fast = p99(&latency);
        assert!(
            fast >= Duration::from_nanos(1000) && fast < Duration::from_nanos(1130),
            "{fast:?}"
        );
        assert_eq!(latency.take_p99(1), Taken::Nothing, "taken");
        count(1000, 989);
        count(1_000_000, 11);
        assert_eq!(latency.take_p99(1001), Taken::TooFew, "kept");
        assert!(p99(&latency) >= Duration::from_millis(1));
        drop(latency.start());
        assert!(matches!(latency.take_p99(1), Taken::P99(_)));
        count(1000, 5);
        latency.ask(false);
        assert_eq!(latency.take_p99(1), Taken::Nothing, "forgotten");
    }
}
