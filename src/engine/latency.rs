//! How long reads and writes take, measured only while somebody asks.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets for each doubling, so a bucket is at most an eighth wide.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// Counts of operations by what they took, from 1 ns to 18 minutes.
pub(crate) struct Latency {
    asked: AtomicBool,
    buckets: Box<[AtomicU64; BUCKETS]>,
    /// Of the looks of all stores of the process, the one that comes next here.
    look: AtomicU64,
    threads: AtomicU64,
}

static LOOKS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The look for which this thread was counted last.
    static COUNTED: Cell<u64> = const { Cell::new(0) };
}

/// Operations by what they took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counts {
    buckets: Box<[u64; BUCKETS]>,
    /// For how long, times the threads that called.
    thread_time: Duration,
}

/// Counts what passes from its making to its end.
#[must_use = "it measures until it is dropped"]
pub(crate) struct Timed<'a>(Option<(&'a Latency, Instant)>);

impl Latency {
    pub(super) fn new() -> Self {
        let buckets = Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        Self { asked: AtomicBool::new(false), buckets, look: next_look(), threads: 0.into() }
    }

    /// Begins or ends measuring.
    pub(crate) fn ask(&self, asked: bool) {
        if self.asked.swap(asked, Ordering::Relaxed) != asked {
            self.take(Duration::ZERO);
        }
    }

    pub(crate) fn start(&self) -> Timed<'_> {
        let asked = self.asked.load(Ordering::Relaxed);
        Timed(asked.then(|| (self, Instant::now())))
    }

    /// What has ended since the last call, which was so long ago.
    pub(crate) fn take(&self, since: Duration) -> Counts {
        let mut counts = Counts::default();
        for (count, bucket) in counts.buckets.iter_mut().zip(&*self.buckets) {
            *count = bucket.swap(0, Ordering::Relaxed);
        }
        self.look.store(LOOKS.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let threads = self.threads.swap(0, Ordering::Relaxed);
        counts.thread_time = since.saturating_mul(u32::try_from(threads).unwrap_or(u32::MAX));
        counts
    }

    fn count(&self, time: Duration) {
        self.buckets[bucket(nanos(time))].fetch_add(1, Ordering::Relaxed);
        let look = self.look.load(Ordering::Relaxed);
        if COUNTED.replace(look) != look {
            self.threads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn next_look() -> AtomicU64 {
    LOOKS.fetch_add(1, Ordering::Relaxed).into()
}

impl Counts {
    pub(crate) fn all(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(crate) fn add(&mut self, others: &Self) {
        for (count, other) in self.buckets.iter_mut().zip(&*others.buckets) {
            *count += other;
        }
        self.thread_time += others.thread_time;
    }

    /// With those that were kept waiting: a thread that is held up begins late what it would have
    /// begun meanwhile, at the pace that the threads had, and that shows in no time between begin
    /// and end ("coordinated omission"). HdrHistogram's correction for an expected interval.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn corrected(&self) -> Self {
        let mut corrected = self.clone();
        let interval = self.thread_time.as_nanos() as f64 / self.all() as f64;
        let (mut longer, mut more) = (0, 0.0);
        for at in (0..BUCKETS).rev() {
            let lower = at.checked_sub(1).map_or(0, upper);
            // An operation that took longer than the whole bucket keeps one waiting in it for each
            // interval that it spans.
            if lower as f64 >= interval {
                more += longer as f64 * (upper(at) - lower) as f64 / interval;
                corrected.buckets[at] += more as u64;
                more = more.fract();
            }
            longer += self.buckets[at];
        }
        corrected
    }

    /// How many took longer than this, where those of one bucket lie evenly in it.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn longer_than(&self, time: Duration) -> f64 {
        let time = nanos(time);
        let at = bucket(time);
        let longer: u64 = self.buckets[at + 1..].iter().sum();
        let lower = at.checked_sub(1).map_or(0, upper);
        let share = upper(at).saturating_sub(time) as f64 / (upper(at) - lower) as f64;
        longer as f64 + self.buckets[at] as f64 * share.min(1.0)
    }

    /// What 99 of 100 took at most, to an eighth; `None` where there are none.
    pub(crate) fn p99(&self) -> Option<Duration> {
        let mut above = self.all() / 100;
        let mut slowest = self.buckets.iter().enumerate().rev();
        let (bucket, _) = slowest.find(|(_, count)| match above.checked_sub(**count) {
            Some(left) => {
                above = left;
                false
            }
            None => true,
        })?;
        Some(Duration::from_nanos(upper(bucket)))
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), thread_time: Duration::ZERO }
    }
}

#[cfg(test)]
impl Counts {
    /// So many that took so long.
    pub(crate) fn of(amounts: &[(u64, Duration)]) -> Self {
        let mut counts = Self::default();
        for (amount, time) in amounts {
            counts.buckets[bucket(nanos(*time))] += amount;
        }
        counts
    }

    pub(crate) fn by_threads(self, thread_time: Duration) -> Self {
        Self { thread_time, ..self }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        if let Some((latency, since)) = self.0 {
            latency.count(since.elapsed());
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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
#[allow(clippy::float_cmp)]
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
        let (short, long) = (Duration::from_micros(1), Duration::from_millis(1));
        let fast = Counts::of(&[(990, short), (10, long)]).p99().unwrap();
        assert!(fast >= short && fast < short.mul_f64(1.13), "{fast:?}");
        assert!(Counts::of(&[(989, short), (11, long)]).p99().unwrap() >= long);
        assert_eq!(Counts::default().p99(), None);
    }

    #[test]
    fn what_takes_longer_is_counted_within_a_bucket_too() {
        let micros = Duration::from_micros;
        let counts = Counts::of(&[(70, micros(5)), (20, micros(900)), (10, micros(5000))]);
        for (time, longer) in [(0, 100.0), (10, 30.0), (1000, 10.0), (10_000, 0.0)] {
            assert_eq!(counts.longer_than(micros(time)), longer, "{time}");
        }
        assert_eq!(counts.longer_than(Duration::MAX), 0.0);
        // 896 to 960 ns is a bucket, and 915 lies at three tenths of it.
        let even = Counts::of(&[(100, Duration::from_nanos(930))]);
        let longer = even.longer_than(Duration::from_nanos(915));
        assert!((longer - 70.3).abs() < 0.1, "{longer}");
    }

    #[test]
    fn who_was_kept_waiting_is_counted() {
        // Four threads that begin 1000 operations a second, one of which takes 100 ms.
        let (short, long) = (Duration::from_micros(50), Duration::from_millis(100));
        let counts = Counts::of(&[(999, short), (1, long)]).by_threads(Duration::from_secs(4));
        let corrected = counts.corrected();
        // Every 4 ms one that waits until the long one has ended.
        assert!(corrected.all().abs_diff(1000 + 24) <= 3, "{}", corrected.all());
        let half = corrected.longer_than(long / 2);
        assert!((half - 13.0).abs() < 2.0, "{half}");
        assert!(counts.p99().unwrap() < short * 2);
        assert!(corrected.p99().unwrap() > long / 2);
        // None waits where they come further apart than they take, or nobody came.
        let rare = Counts::of(&[(10, long)]).by_threads(Duration::from_secs(4));
        assert_eq!(rare.corrected(), rare);
        assert_eq!(Counts::default().corrected(), Counts::default());
    }

    #[test]
    fn it_counts_while_somebody_asks_and_forgets_what_was_taken() {
        const SECOND: Duration = Duration::from_secs(1);
        let latency = Latency::new();
        drop(latency.start());
        assert_eq!(latency.take(SECOND), Counts::default(), "nobody asked");
        latency.ask(true);
        drop(latency.start());
        drop(latency.start());
        let one_thread = latency.take(SECOND);
        assert_eq!((one_thread.all(), one_thread.thread_time), (2, SECOND));
        assert_eq!(latency.take(SECOND), Counts::default(), "taken");
        std::thread::scope(|scope| {
            scope.spawn(|| drop(latency.start()));
            drop(latency.start());
        });
        assert_eq!(latency.take(SECOND).thread_time, SECOND * 2);
        drop(latency.start());
        latency.ask(false);
        assert_eq!(latency.take(SECOND), Counts::default(), "forgotten");
    }
}
