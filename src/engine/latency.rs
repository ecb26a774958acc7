//! How long reads and writes take, measured only while somebody asks.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets for each doubling, so a bucket is at most an eighth wide.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// Counts of operations by what they took, from 1 ns to two hours.
pub(crate) struct Latency {
    asked: AtomicBool,
    buckets: Box<[AtomicU64; BUCKETS]>,
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Operations by what they took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counts {
    buckets: Box<[u64; BUCKETS]>,
    /// Operations that had begun and not ended.
    pub(crate) under_way: u64,
}

/// Counts what passes from its making to its end.
#[must_use = "it measures until it is dropped"]
pub(crate) struct Timed<'a>(Option<(&'a Latency, Instant)>);

thread_local! {
    static PACE: Cell<Pace> = const { Cell::new(Pace::NEW) };
}

/// How one thread calls, whatever the store: counted over a second, and used in the next.
#[derive(Clone, Copy)]
struct Pace {
    since: Option<Instant>,
    operations: u32,
    /// Within operations.
    busy: Duration,
    interval: Option<Duration>,
}

impl Pace {
    const NEW: Self = Self { since: None, operations: 0, busy: Duration::ZERO, interval: None };

    /// How far apart the thread's operations began of late, if most of the time it did something
    /// else: who calls as soon as the last call has ended has nothing waiting meanwhile. This one
    /// counts from now on.
    fn of_this_thread(begun: Instant, time: u64) -> Option<Duration> {
        const SECOND: Duration = Duration::from_secs(1);

        let mut pace = PACE.get();
        let since = *pace.since.get_or_insert(begun);
        let elapsed = begun.saturating_duration_since(since);
        if elapsed >= SECOND {
            let mostly_idle = pace.busy < elapsed / 2;
            let interval = mostly_idle.then(|| elapsed / pace.operations.max(1));
            pace = Self { since: Some(begun), interval, ..Self::NEW };
        }
        pace.operations += 1;
        pace.busy += Duration::from_nanos(time);
        PACE.set(pace);
        pace.interval
    }
}

impl Latency {
    pub(super) fn new() -> Self {
        let buckets = Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        Self { asked: AtomicBool::new(false), buckets, begun: 0.into(), ended: 0.into() }
    }

    /// Begins or ends measuring.
    pub(crate) fn ask(&self, asked: bool) {
        if self.asked.swap(asked, Ordering::Relaxed) != asked {
            self.take();
        }
    }

    pub(crate) fn start(&self) -> Timed<'_> {
        let asked = self.asked.load(Ordering::Relaxed);
        Timed(asked.then(|| {
            self.begun.fetch_add(1, Ordering::Relaxed);
            (self, Instant::now())
        }))
    }

    /// What has ended since the last call.
    pub(crate) fn take(&self) -> Counts {
        let mut counts = Counts::default();
        // In this order none seems to have ended that has not begun.
        let ended = self.ended.load(Ordering::Acquire);
        counts.under_way = self.begun.load(Ordering::Relaxed).saturating_sub(ended);
        for (count, bucket) in counts.buckets.iter_mut().zip(&*self.buckets) {
            *count = bucket.swap(0, Ordering::Relaxed);
        }
        counts
    }

    /// Counts an operation, and those that its thread would have begun meanwhile: they wait, begin
    /// late, and what they take from begin to end does not show it ("coordinated omission"). This
    /// is the correction of HdrHistogram's `recordValueWithExpectedInterval`.
    fn count(&self, begun: Instant) {
        let time = nanos(begun.elapsed());
        let interval = Pace::of_this_thread(begun, time);
        self.record(time, interval);
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// What took so long, and those that waited for it where one is expected each `interval`.
    fn record(&self, time: u64, interval: Option<Duration>) {
        /// For a single one that took long.
        const MOST: u64 = 1000;

        let add = |nanos| self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        add(time);
        let Some(interval) = interval else { return };
        let interval = nanos(interval).max(time / MOST).max(1);
        let mut waited = time.saturating_sub(interval);
        while waited >= interval {
            add(waited);
            waited -= interval;
        }
    }
}

impl Counts {
    pub(crate) fn all(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(crate) fn add(&mut self, others: &Self) {
        for (count, other) in self.buckets.iter_mut().zip(&*others.buckets) {
            *count += other;
        }
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
        Self { buckets: Box::new([0; BUCKETS]), under_way: 0 }
    }
}

#[cfg(test)]
impl Counts {
    pub(crate) fn under_way(under_way: u64) -> Self {
        Self { under_way, ..Self::default() }
    }

    /// So many that took so long.
    pub(crate) fn of(amounts: &[(u64, Duration)]) -> Self {
        let mut counts = Self::default();
        for (amount, time) in amounts {
            counts.buckets[bucket(nanos(*time))] += amount;
        }
        counts
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        if let Some((latency, begun)) = self.0 {
            latency.count(begun);
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

    /// On a thread of its own, whose pace is that of the test.
    fn on_its_own(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    /// So many operations that begin so far apart and take so long.
    fn called(latency: &Latency, calls: &[(u64, Duration, Duration)]) -> Counts {
        let mut begun = Instant::now();
        for (times, gap, time) in calls {
            for _ in 0..*times {
                begun += *gap;
                let interval = Pace::of_this_thread(begun, nanos(*time));
                latency.record(nanos(*time), interval);
            }
        }
        latency.take()
    }

    #[test]
    fn who_was_kept_waiting_is_counted() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        on_its_own(|| {
            let latency = Latency::new();
            // A thousand a second, one of which takes 100 ms.
            let counts = called(&latency, &[(1999, ms(1), us(50)), (1, ms(1), ms(100))]);
            let mut expected = hdrhistogram::Histogram::<u64>::new(3).unwrap();
            expected.record_n(nanos(us(50)), 1999).unwrap();
            expected.record_correct(nanos(ms(100)), nanos(ms(1))).unwrap();
            assert_eq!(counts.all(), expected.len());
            for time in [us(100), ms(10), ms(50), ms(90)] {
                let longer = expected.len() - expected.count_between(0, nanos(time));
                let longer = (counts.longer_than(time), longer as f64);
                assert!((longer.0 - longer.1).abs() < 2.0, "{time:?}: {longer:?}");
            }
            assert!(counts.p99().unwrap() > ms(80));
        });
    }

    #[test]
    fn nobody_waits_for_a_thread_that_calls_again_at_once_or_seldom() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        on_its_own(|| {
            let latency = Latency::new();
            let counts = called(&latency, &[(29_999, us(55), us(50)), (1, us(55), ms(100))]);
            assert_eq!(counts.all(), 30_000, "at once");
        });
        on_its_own(|| {
            let latency = Latency::new();
            let counts = called(&latency, &[(99, ms(400), ms(10)), (1, ms(400), ms(700))]);
            assert_eq!(counts.all(), 100, "seldom");
        });
        on_its_own(|| {
            let latency = Latency::new();
            let hours = Duration::from_secs(2 * 3600);
            let counts = called(&latency, &[(1999, ms(1), us(5)), (1, ms(1), hours)]);
            assert!(counts.all() > 2900 && counts.all() <= 3000, "bounded: {}", counts.all());
        });
    }

    #[test]
    fn it_counts_while_somebody_asks_and_forgets_what_was_taken() {
        let latency = Latency::new();
        drop(latency.start());
        assert_eq!(latency.take(), Counts::default(), "nobody asked");
        latency.ask(true);
        drop(latency.start());
        let second = latency.start();
        let counts = latency.take();
        assert_eq!((counts.all(), counts.under_way), (1, 1));
        drop(second);
        let counts = latency.take();
        assert_eq!((counts.all(), counts.under_way), (1, 0));
        assert_eq!(latency.take(), Counts::default(), "taken");
        drop(latency.start());
        latency.ask(false);
        assert_eq!(latency.take(), Counts::default(), "forgotten");
    }
}
