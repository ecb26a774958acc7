//! Pace: how fast a rotation may go, and how fast it goes. Time is a parameter.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};

use super::job::Amount;
use crate::error::{Error, Result};
use crate::time::rfc3339;

/// What rotations of a store may use, all orgs together: fixed ceilings, and targets that they
/// are steered towards by what is measured. Every ceiling holds, whatever a target would like.
/// The default is none.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use byokv::Throttle;
///
/// let gentle = Throttle::unlimited()
///     .with_records_per_second(2_000)?
///     .with_bytes_per_second(4 << 20)?
///     .with_share_of_time(0.25)?;
///
/// // By tomorrow, and out of the way of those who read and write:
/// let steered = Throttle::unlimited()
///     .with_finish_by(SystemTime::now() + Duration::from_secs(24 * 3600))
///     .with_foreground_p99(Duration::from_millis(2))?
///     .with_share_of_core(0.5)?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Throttle {
    records_per_second: Option<u32>,
    bytes_per_second: Option<u64>,
    share_of_time: f64,
    share_of_core: Option<f64>,
    foreground_p99: Option<Duration>,
    finish_by_unix_ms: Option<u64>,
}

/// A [`Throttle`] as it is read, whose limits may lie beyond their ranges.
#[derive(Deserialize)]
#[serde(rename = "Throttle")]
struct Unchecked {
    records_per_second: Option<u32>,
    bytes_per_second: Option<u64>,
    share_of_time: f64,
    share_of_core: Option<f64>,
    foreground_p99: Option<Duration>,
    finish_by_unix_ms: Option<u64>,
}

impl TryFrom<Unchecked> for Throttle {
    type Error = Error;

    fn try_from(read: Unchecked) -> Result<Self> {
        let mut throttle = Self::unlimited().with_share_of_time(read.share_of_time)?;
        if let Some(records) = read.records_per_second {
            throttle = throttle.with_records_per_second(records)?;
        }
        if let Some(bytes) = read.bytes_per_second {
            throttle = throttle.with_bytes_per_second(bytes)?;
        }
        if let Some(share) = read.share_of_core {
            throttle = throttle.with_share_of_core(share)?;
        }
        if let Some(p99) = read.foreground_p99 {
            throttle = throttle.with_foreground_p99(p99)?;
        }
        Ok(Self { finish_by_unix_ms: read.finish_by_unix_ms, ..throttle })
    }
}

/// For what was stored: a throttle that could not be set is none, and what lies beside it is kept.
pub(super) fn read_or_unlimited<'de, D: Deserializer<'de>>(from: D) -> Result<Throttle, D::Error> {
    let throttle = Throttle::try_from(Unchecked::deserialize(from)?);
    Ok(throttle.unwrap_or_else(|error| {
        tracing::warn!(%error, "the throttle that is stored is none; rotations are not limited");
        Throttle::unlimited()
    }))
}

/// What rotations may use at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) records_per_second: Option<f64>,
    pub(super) bytes_per_second: Option<f64>,
    /// Cores that may be busy, infinite for all that there are.
    pub(super) cores: f64,
}

impl Throttle {
    /// As fast as the worker threads can.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            records_per_second: None,
            bytes_per_second: None,
            share_of_time: 1.0,
            share_of_core: None,
            foreground_p99: None,
            finish_by_unix_ms: None,
        }
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

    /// The worker threads work at most this share of the time, and rest for the remainder. To wait
    /// for a processor is not work on Linux; to wait for the disk is.
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

    /// All worker threads together keep at most this share of one core busy, measured as for
    /// [`with_share_of_time`](Self::with_share_of_time), also while they count headers, which no
    /// ceiling of records or bytes is for.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] unless 0.001 ≤ `share` ≤ 64.
    pub fn with_share_of_core(mut self, share: f64) -> Result<Self> {
        if !(0.001..=64.0).contains(&share) {
            let why = "0.001 to 64";
            return Err(Error::InvalidOption { option: "share_of_core", why });
        }
        self.share_of_core = Some(share);
        Ok(self)
    }

    /// Rotations take what leaves 99 of 100 reads and writes at most `p99` long, as measured
    /// second by second while they are under way; where a tenth of a second is bad enough for all
    /// of one, at once. Operations that a thread begins late because one held it up count as if
    /// they had begun in time, unless the thread spends half of its time or more in calls; at most
    /// 1,000 for one slow call. Scans, counts and `contains` do not count.
    /// Rotations never stop for it: where reads and writes take longer at a twentieth of a core
    /// too, [`Progress::warning`] says so.
    /// Durable writes count with their sync. At least 1 µs.
    ///
    /// [`Progress::warning`]: crate::Progress::warning
    ///
    /// # Errors
    /// [`Error::InvalidOption`] below that.
    pub fn with_foreground_p99(mut self, p99: Duration) -> Result<Self> {
        if p99 < Duration::from_micros(1) {
            return Err(Error::InvalidOption { option: "foreground_p99", why: "at least 1 µs" });
        }
        self.foreground_p99 = Some(p99);
        Ok(self)
    }

    /// Rotations that are under way go no faster than it takes to rewrite every record by then and
    /// count what is left, with a tenth of the time to spare. [`Progress::warning`] says as soon as
    /// it shows that they cannot, be it for another limit; they go on all the same. Never slower than
    /// one record per second. Once that time has passed it limits nothing, also in later rotations,
    /// until another throttle is set.
    ///
    /// [`Progress::warning`]: crate::Progress::warning
    #[must_use]
    pub fn with_finish_by(mut self, end: SystemTime) -> Self {
        let since = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.finish_by_unix_ms = Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        self
    }

    pub(super) fn foreground_p99(&self) -> Option<Duration> {
        self.foreground_p99
    }

    pub(super) fn finish_by_unix_ms(&self) -> Option<u64> {
        self.finish_by_unix_ms
    }

    /// The fixed ceilings, for so many worker threads.
    pub(super) fn limits(&self, workers: usize) -> Limits {
        #[allow(clippy::cast_precision_loss)]
        let by_time = match self.share_of_time < 1.0 {
            true => self.share_of_time * workers as f64,
            false => f64::INFINITY,
        };
        #[allow(clippy::cast_precision_loss)]
        let bytes_per_second = self.bytes_per_second.map(|rate| rate as f64);
        Limits {
            records_per_second: self.records_per_second.map(f64::from),
            bytes_per_second,
            cores: by_time.min(self.share_of_core.unwrap_or(f64::INFINITY)),
        }
    }
}

impl Limits {
    /// How many records to take at once, so that a low ceiling does not come in bursts: about a
    /// tenth of a second's worth, and the fewer the less of a core may be busy.
    pub(super) fn chunk_records(&self) -> usize {
        const MOST: f64 = 128.0;
        const LEAST: f64 = 4.0;
        let tenth = self.records_per_second.map_or(MOST, |rate| rate / 10.0).clamp(1.0, MOST);
        let share = (MOST * self.cores).clamp(LEAST, MOST);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let records = tenth.min(share) as usize;
        records
    }
}

impl Limits {
    /// How long the next chunk has to wait for one that comes to this.
    fn rest_after(&self, amount: Amount) -> Duration {
        #[allow(clippy::cast_precision_loss)]
        let seconds =
            |amount: u64, rate: Option<f64>| rate.map_or(0.0, |rate| amount as f64 / rate);
        let by_records = seconds(amount.records, self.records_per_second);
        let by_bytes = seconds(amount.bytes, self.bytes_per_second);
        rest(by_records.max(by_bytes))
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
            (self.share_of_time < 1.0).then(|| format!("{} of the time", self.share_of_time)),
            self.share_of_core.map(|share| format!("{share} of a core")),
            self.foreground_p99.map(|p99| {
                let p99 = humantime::format_duration(p99);
                format!("what leaves 99 of 100 reads and writes within {p99}")
            }),
            self.finish_by_unix_ms.map(|end| format!("what it takes to end by {}", rfc3339(end))),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        write!(f, "rotations use at most {}", limits.join(", "))
    }
}

/// When the next chunk may be handed out.
#[derive(Default)]
pub(super) struct Pace {
    by_rate: Option<Instant>,
    by_cores: Option<Instant>,
}

impl Pace {
    /// How long to wait; zero if nothing stands against the next chunk.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let next = self.by_rate.max(self.by_cores);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// A chunk was handed out of which so much is expected.
    pub(super) fn handed_out(&mut self, now: Instant, to: &Limits, expected: Amount) -> Duration {
        let rest = to.rest_after(expected);
        if !rest.is_zero() {
            self.by_rate = Some(self.by_rate.map_or(now, |next| next.max(now)) + rest);
        }
        rest
    }

    /// What the next chunk had to wait for it, and what it came to.
    pub(super) fn came_back(&mut self, now: Instant, to: &Limits, charged: Duration, came: Amount) {
        let rest = to.rest_after(came);
        if let Some(more) = rest.checked_sub(charged).filter(|more| !more.is_zero()) {
            self.by_rate = Some(self.by_rate.map_or(now, |next| next.max(now)) + more);
        } else if let Some(next) = self.by_rate {
            self.by_rate = next.checked_sub(charged.saturating_sub(rest));
        }
    }

    /// A thread worked for `busy`: as much as the cores that may be busy take longer for.
    pub(super) fn worked(&mut self, now: Instant, to: &Limits, busy: Duration) {
        let takes = rest(busy.as_secs_f64() / to.cores);
        if !takes.is_zero() {
            let since = now.checked_sub(busy).unwrap_or(now);
            self.by_cores = Some(self.by_cores.map_or(since, |next| next.max(since)) + takes);
        }
    }
}

fn rest(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_REST).min(LONGEST_REST)
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
        for share in [0.0, -1.0, 64.1, f64::INFINITY, f64::NAN] {
            assert!(Throttle::unlimited().with_share_of_core(share).is_err(), "{share}");
        }
        assert!(Throttle::unlimited().with_foreground_p99(Duration::ZERO).is_err());
    }

    #[test]
    fn what_is_read_is_checked_like_what_is_set() {
        let throttle = Throttle::unlimited().with_share_of_core(0.5).unwrap();
        let text = serde_json::to_string(&throttle).unwrap();
        assert_eq!(serde_json::from_str::<Throttle>(&text).unwrap(), throttle);
        for (right, wrong) in [("0.5", "0.0"), ("1.0", "0.0"), ("null", "0")] {
            let text = text.replacen(right, wrong, 1);
            assert!(serde_json::from_str::<Throttle>(&text).is_err(), "{text}");
        }
    }

    /// What lies beside it, as which rotations are paused, must not be lost with it.
    #[test]
    fn a_stored_throttle_that_is_none_is_no_limit() {
        #[derive(Deserialize)]
        struct Stored {
            #[serde(deserialize_with = "read_or_unlimited")]
            throttle: Throttle,
            beside: u8,
        }
        let text = serde_json::to_string(&Throttle::unlimited()).unwrap().replace("1.0", "0.0");
        let text = format!("{{\"throttle\": {text}, \"beside\": 7}}");
        let stored: Stored = serde_json::from_str(&text).unwrap();
        assert_eq!((stored.throttle, stored.beside), (Throttle::unlimited(), 7));
    }

    #[test]
    fn a_throttle_reads_as_a_sentence() {
        let throttle = Throttle::unlimited()
            .with_share_of_core(0.5)
            .and_then(|t| t.with_foreground_p99(Duration::from_millis(2)))
            .unwrap()
            .with_finish_by(SystemTime::UNIX_EPOCH + SECOND);
        assert_eq!(
            throttle.to_string(),
            "rotations use at most 0.5 of a core, what leaves 99 of 100 reads and writes within \
             2ms, what it takes to end by 1970-01-01T00:00:01Z"
        );
    }

    #[test]
    fn the_slower_of_records_and_bytes_counts() {
        let now = Instant::now();
        let throttle = Throttle::unlimited()
            .with_records_per_second(100)
            .and_then(|t| t.with_bytes_per_second(1000))
            .unwrap();
        let mut pace = Pace::default();
        let limits = throttle.limits(1);
        pace.handed_out(now, &limits, Amount { records: 50, bytes: 100 });
        assert_eq!(pace.wait(now), SECOND / 2);
        pace.handed_out(now, &limits, Amount { records: 1, bytes: 2000 });
        assert_eq!(pace.wait(now), SECOND * 5 / 2);
        assert_eq!(pace.wait(now + SECOND * 3), Duration::ZERO);
        pace.handed_out(now + SECOND * 10, &limits, Amount { records: 100, bytes: 0 });
        assert_eq!(pace.wait(now + SECOND * 10), SECOND);
    }

    #[test]
    fn what_a_chunk_came_to_counts_in_the_end() {
        let now = Instant::now();
        let limits = Throttle::unlimited().with_bytes_per_second(1000).unwrap().limits(1);
        let amount = |bytes| Amount { records: 1, bytes };
        let mut pace = Pace::default();
        let charged = pace.handed_out(now, &limits, amount(3000));
        assert_eq!(charged, SECOND * 3);
        pace.came_back(now, &limits, charged, amount(1000));
        assert_eq!(pace.wait(now), SECOND);
        let charged = pace.handed_out(now, &limits, amount(0));
        pace.came_back(now, &limits, charged, amount(2000));
        assert_eq!(pace.wait(now), SECOND * 3);
        pace.came_back(now, &limits, SECOND * 2, amount(0));
        assert_eq!(pace.wait(now), SECOND);
    }

    /// Whatever the threads: they end their chunks at the same time, again and again.
    #[test]
    fn work_earns_rest_by_the_share() {
        let start = Instant::now();
        for (workers, throttle, cores) in [
            (1, Throttle::unlimited().with_share_of_time(0.25), 0.25),
            (3, Throttle::unlimited().with_share_of_time(0.25), 0.75),
            (3, Throttle::unlimited().with_share_of_core(0.1), 0.1),
            (4, Throttle::unlimited().with_share_of_core(2.0), 2.0),
            (4, Ok(Throttle::unlimited()), 4.0),
        ] {
            let limits = throttle.unwrap().limits(workers);
            let (mut pace, mut now, mut busy) = (Pace::default(), start, Duration::ZERO);
            for _ in 0..100 {
                now += SECOND;
                for _ in 0..workers {
                    pace.worked(now, &limits, SECOND);
                    busy += SECOND;
                }
                now += pace.wait(now);
            }
            let share = busy.as_secs_f64() / (now - start).as_secs_f64();
            assert!((share - cores).abs() < 0.01, "{share} of {cores}");
        }
    }

    #[test]
    fn a_low_ceiling_takes_small_chunks() {
        let chunk = |rate| {
            Throttle::unlimited().with_records_per_second(rate).unwrap().limits(1).chunk_records()
        };
        assert_eq!([chunk(1), chunk(50), chunk(1_000_000)], [1, 5, 128]);
        assert_eq!(Throttle::unlimited().limits(1).chunk_records(), 128);
        let chunk = |share| {
            Throttle::unlimited().with_share_of_core(share).unwrap().limits(4).chunk_records()
        };
        assert_eq!([chunk(0.001), chunk(0.5), chunk(3.0)], [4, 64, 128]);
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
