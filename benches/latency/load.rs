//! Reads and updates that come at their time, whether the last one has been answered or not.
//!
//! Latency counts from when an operation was due. One that comes late because the one before it
//! took long has waited too; measured from its start it would look quick ("coordinated omission").

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use byokv::Org;
use hdrhistogram::Histogram;

pub(crate) type Nanos = u64;

pub(crate) const THREADS: u64 = 4;

pub(crate) fn value(number: u64, stamp: u64, size: usize) -> Vec<u8> {
    let mut value = vec![0xA5; size];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value[8..16].copy_from_slice(&stamp.to_be_bytes());
    value
}

pub(crate) fn name(number: u64) -> String {
    format!("clusters/{number:07}/token")
}

pub(crate) fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new(3).unwrap();
    histogram.auto(true);
    histogram
}

pub(crate) struct Load {
    pub(crate) org: Org,
    pub(crate) records: u64,
    pub(crate) size: usize,
    start: Instant,
    stop: AtomicBool,
    /// When the rotation began and ended, since the start.
    began: AtomicU64,
    ended: AtomicU64,
    /// By thread: what was served before the rotation.
    before: Vec<Mutex<Histogram<u64>>>,
}

/// What happened before, during and after the rotation.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) phases: [Histogram<u64>; 3],
    /// The same from the start of each operation, with those that would have come meanwhile: what
    /// the store itself can see.
    pub(crate) served: [Histogram<u64>; 3],
    /// Operations that were answered in that time, whenever they were due.
    pub(crate) answered: [u64; 3],
    pub(crate) seconds: Vec<Histogram<u64>>,
    pub(crate) errors: u64,
}

impl Seen {
    fn new() -> Self {
        let three = || [histogram(), histogram(), histogram()];
        let (phases, served) = (three(), three());
        Self { phases, served, answered: [0; 3], seconds: Vec::new(), errors: 0 }
    }

    fn add(&mut self, other: &Self) {
        let mine = self.phases.iter_mut().chain(&mut self.served);
        for (mine, theirs) in mine.zip(other.phases.iter().chain(&other.served)) {
            mine.add(theirs).unwrap();
        }
        for (mine, theirs) in self.answered.iter_mut().zip(other.answered) {
            *mine += theirs;
        }
        let longest = self.seconds.len().max(other.seconds.len());
        self.seconds.resize_with(longest, histogram);
        for (mine, theirs) in self.seconds.iter_mut().zip(&other.seconds) {
            mine.add(theirs).unwrap();
        }
        self.errors += other.errors;
    }
}

impl Load {
    pub(crate) fn new(org: Org, records: u64, size: usize) -> Self {
        let unset = || AtomicU64::new(u64::MAX);
        let (began, ended) = (unset(), unset());
        let stop = AtomicBool::new(false);
        let before = (0..THREADS).map(|_| Mutex::new(histogram())).collect();
        Self { org, records, size, start: Instant::now(), stop, began, ended, before }
    }

    pub(crate) fn since_start(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn rotation_begins(&self) {
        self.began.store(nanos(self.start.elapsed()), Ordering::Release);
    }

    pub(crate) fn rotation_ended(&self) {
        self.ended.store(nanos(self.start.elapsed()), Ordering::Release);
    }

    /// What the store saw 99 of 100 operations take until now, before the rotation.
    pub(crate) fn p99_before(&self) -> Duration {
        let mut all = histogram();
        self.before.iter().for_each(|of_one| all.add(&*of_one.lock().unwrap()).unwrap());
        Duration::from_nanos(all.value_at_quantile(0.99))
    }

    /// When the rotation began and ended.
    pub(crate) fn rotation(&self) -> (Nanos, Nanos) {
        (self.began.load(Ordering::Acquire), self.ended.load(Ordering::Acquire))
    }

    /// Offers `rate` operations per second (`None`: each as soon as the last is answered) until
    /// `conduct` returns.
    pub(crate) fn run<T>(&self, rate: Option<f64>, conduct: impl FnOnce() -> T) -> (Seen, T) {
        std::thread::scope(|scope| {
            let start = |(thread, before)| scope.spawn(move || self.work(thread, before, rate));
            let threads: Vec<_> = (0..THREADS).zip(&self.before).map(start).collect();
            let conducted = conduct();
            self.stop.store(true, Ordering::Relaxed);
            let mut all = Seen::new();
            for thread in threads {
                all.add(&thread.join().unwrap());
            }
            (all, conducted)
        })
    }

    fn work(&self, thread: u64, before: &Mutex<Histogram<u64>>, rate: Option<f64>) -> Seen {
        // The kernel rounds sleeps up by 50 µs otherwise.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).unwrap();
        let mut seen = Seen::new();
        for step in 0.. {
            let now = nanos(self.start.elapsed());
            let due = rate.map_or(now, |rate| scheduled(step * THREADS + thread, rate));
            if due > now {
                std::thread::sleep(Duration::from_nanos(due - now));
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let started = nanos(self.start.elapsed());
            let right = self.operate(step * THREADS + thread);
            let answered = nanos(self.start.elapsed());
            seen.errors += u64::from(!right);
            let phase = self.note(&mut seen, due, answered);
            let interval = rate.map_or(0, |rate| scheduled(THREADS, rate));
            let took = (answered - started).max(1);
            seen.served[phase].record_correct(took, interval).unwrap();
            if phase == 0 {
                before.lock().unwrap().record_correct(took, interval).unwrap();
            }
        }
        seen
    }

    /// Half reads, half updates, over all records in an order of no pattern.
    fn operate(&self, step: u64) -> bool {
        let mixed = step.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let number = (mixed >> 20) % self.records;
        let name = name(number);
        if mixed >> 63 == 0 {
            let read = self.org.get(name);
            let right =
                |value: &[u8]| value.len() == self.size && value[..8] == number.to_be_bytes()[..];
            read.is_ok_and(|value| value.is_some_and(|value| right(&value)))
        } else {
            self.org.put(name, value(number, step, self.size)).is_ok()
        }
    }

    /// An operation that was due before the rotation ended, or answered after it began, met it.
    /// Before, during, or after.
    fn note(&self, seen: &mut Seen, due: Nanos, answered: Nanos) -> usize {
        let (began, ended) = self.rotation();
        let phase = usize::from(answered >= began) + usize::from(due >= ended);
        let took = (answered - due).max(1);
        seen.phases[phase].record(took).unwrap();
        let at = usize::from(answered >= began) + usize::from(answered >= ended);
        seen.answered[at] += 1;
        let second = usize::try_from(due / 1_000_000_000).unwrap();
        if seen.seconds.len() <= second {
            seen.seconds.resize_with(second + 1, histogram);
        }
        seen.seconds[second].record(took).unwrap();
        phase
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn scheduled(number: u64, rate: f64) -> Nanos {
    (number as f64 / rate * 1e9) as u64
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap()
}
