//! Pace: how fast a rotation may go, and how fast it goes. Time is a parameter.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A ceiling on what rotations of a store use, all orgs together. The default is none.
///
/// ```
/// use byokv::Throttle;
///
/// let gentle = Throttle::unlimited()
///     .with_records_per_second(2_000)?
///     .with_bytes_per_second(4 << 20)?
///     .with_share_of_time(0.25)?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throttle {
    records_per_second: Option<u32>,
    bytes_per_second: Option<u64>,
    share_of_time: f64,
}

impl Throttle {
    /// As fast as the worker threads can.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { records_per_second: None, bytes_per_second: None, share_of_time: 1.0 }
    }

    /// At most this many records are opened per second.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for 0: pause the rotation instead.
    pub fn with_records_per_second(mut self, records: u32) -> Result<Self> {
        if records == 0 {
            return Err(Error::InvalidOption { option: "records_per_second", why: "at least 1" });
        }
        self.records_per_second = Some(records);
        Ok(self)
    }

    /// At most this many bytes of envelopes are opened per second.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for 0: pause the rotation instead.
    pub fn with_bytes_per_second(mut self, bytes: u64) -> Result<Self> {
        if bytes == 0 {
            return Err(Error::InvalidOption { option: "bytes_per_second", why: "at least 1" });
        }
        self.bytes_per_second = Some(bytes);
        Ok(self)
    }

    /// The worker threads work at most this share of the time, and rest for the remainder.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] unless 0.001 ≤ `share` ≤ 1.
    pub fn with_share_of_time(mut self, share: f64) -> Result<Self> {
        if !(0.001..=1.0).contains(&share) {
            let why = "0.001 to 1";
            return Err(Error::InvalidOption { option: "share_of_time", why });
        }
        self.share_of_time = share;
        Ok(self)
    }

    pub(super) fn is_share(&self) -> bool {
        self.share_of_time < 1.0
    }

    /// How many records to take at once: about a tenth of a second's worth, so that a low
    /// ceiling does not come in bursts.
    pub(super) fn chunk_records(&self) -> usize {
        const MOST: usize = 128;
        let tenth = |rate: u32| usize::try_from(rate / 10).unwrap_or(MOST).clamp(1, MOST);
        self.records_per_second.map_or(MOST, tenth)
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// What one chunk can cost at most, whatever the ceiling.
const LONGEST_REST: Duration = Duration::from_secs(24 * 3600);

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::unlimited() {
            return f.write_str("rotations are not limited");
        }
        let limits = [
            self.records_per_second.map(|n| format!("{n} records per second")),
            self.bytes_per_second.map(|n| format!("{n} bytes per second")),
            self.is_share().then(|| format!("{} of the time", self.share_of_time)),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        write!(f, "rotations use at most {}", limits.join(", "))
    }
}

/// When the next chunk may be handed out.
pub(super) struct Pace {
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { next: None }
    }

    /// How long to wait; zero if nothing stands against the next chunk.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// A chunk was handed out.
    pub(super) fn handed_out(&mut self, now: Instant, to: &Throttle, records: u64, bytes: u64) {
        #[allow(clippy::cast_precision_loss)]
        let seconds = |amount: u64, rate: f64| amount as f64 / rate;
        let by_records = to.records_per_second.map_or(0.0, |rate| seconds(records, rate.into()));
        #[allow(clippy::cast_precision_loss)]
        let by_bytes = to.bytes_per_second.map_or(0.0, |rate| seconds(bytes, rate as f64));
        let rest = Duration::try_from_secs_f64(by_records.max(by_bytes));
        self.rest(now, rest.unwrap_or(LONGEST_REST));
    }

    /// One of `workers` threads worked for `busy`.
    pub(super) fn worked(&mut self, now: Instant, to: &Throttle, busy: Duration, workers: usize) {
        let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
        self.rest(now, busy.mul_f64(1.0 / to.share_of_time - 1.0) / workers);
    }

    fn rest(&mut self, now: Instant, rest: Duration) {
        if !rest.is_zero() {
            let rest = rest.min(LONGEST_REST);
            self.next = Some(self.next.map_or(now, |next| next.max(now)) + rest);
        }
    }
}

/// Speed of late: an average that forgets with a half-life of two seconds.
pub(super) struct Meter {
    since: Instant,
    per_second: f64,
    weight: f64,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, per_second: 0.0, weight: 0.0 }
    }

    pub(super) fn add(&mut self, now: Instant, amount: u64) {
        const HALF_LIFE: f64 = 2.0;
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        let keep = 0.5_f64.powf(seconds / HALF_LIFE);
        // Amounts and seconds decay alike, so their quotient is the speed.
        #[allow(clippy::cast_precision_loss)]
        let amount = amount as f64;
        self.per_second = self.per_second * keep + amount;
        self.weight = self.weight * keep + seconds;
    }

    /// Per second; `None` before anything was measured.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.weight > 1e-3).then(|| self.per_second / self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn impossible_ceilings_are_refused() {
        assert!(Throttle::unlimited().with_records_per_second(0).is_err());
        assert!(Throttle::unlimited().with_bytes_per_second(0).is_err());
        for share in [0.0, 1e-30, -1.0, 1.01, f64::NAN] {
            assert!(Throttle::unlimited().with_share_of_time(share).is_err(), "{share}");
        }
    }

    #[test]
    fn the_slower_of_records_and_bytes_counts() {
        let now = Instant::now();
        let throttle = Throttle::unlimited()
            .with_records_per_second(100)
            .and_then(|t| t.with_bytes_per_second(1000))
            .unwrap();
        let mut pace = Pace::new();
        pace.handed_out(now, &throttle, 50, 100);
        assert_eq!(pace.wait(now), SECOND / 2);
        pace.handed_out(now, &throttle, 1, 2000);
        assert_eq!(pace.wait(now), SECOND * 5 / 2);
        assert_eq!(pace.wait(now + SECOND * 3), Duration::ZERO);
        pace.handed_out(now + SECOND * 10, &throttle, 100, 0);
        assert_eq!(pace.wait(now + SECOND * 10), SECOND);
    }

    #[test]
    fn work_earns_rest_by_the_share() {
        let now = Instant::now();
        let quarter = Throttle::unlimited().with_share_of_time(0.25).unwrap();
        let mut pace = Pace::new();
        pace.worked(now, &quarter, SECOND, 1);
        assert_eq!(pace.wait(now), SECOND * 3);
        let mut pace = Pace::new();
        pace.worked(now, &quarter, SECOND, 3);
        assert_eq!(pace.wait(now), SECOND);
        let mut pace = Pace::new();
        pace.worked(now, &Throttle::unlimited(), SECOND, 1);
        assert_eq!(pace.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_low_ceiling_takes_small_chunks() {
        let chunk =
            |rate| Throttle::unlimited().with_records_per_second(rate).unwrap().chunk_records();
        assert_eq!([chunk(1), chunk(50), chunk(1_000_000)], [1, 5, 128]);
        assert_eq!(Throttle::unlimited().chunk_records(), 128);
    }

    #[test]
    fn the_meter_follows_the_speed_of_late() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(meter.rate(), None);
        for second in 1..=30 {
            meter.add(start + SECOND * second, 100);
        }
        assert!((meter.rate().unwrap() - 100.0).abs() < 1.0);
        for second in 31..=60 {
            meter.add(start + SECOND * second, 10);
        }
        assert!((meter.rate().unwrap() - 10.0).abs() < 1.0);
    }
}
