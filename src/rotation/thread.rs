//! How the rotation's threads stand back from those that read and write.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The highest nice value of POSIX.
pub(crate) const NICEST: u8 = 19;

thread_local! {
    static STANDS_BACK: Cell<bool> = const { Cell::new(false) };
}

/// Makes the calling thread one that stands back, if by anything.
pub(super) fn stand_back(by: u8) {
    STANDS_BACK.set(by > 0);
    be_nicer(by);
}

/// Gives the processor to whoever is ready, if the calling thread is one that stands back. To be
/// called after some tens of microseconds of work: whatever its nice value, Linux lets a thread
/// that has the processor go on for milliseconds while one that just woke up to read or write
/// waits (`RUN_TO_PARITY` in its `kernel/sched/features.h`).
pub(super) fn let_others_go_first() {
    if STANDS_BACK.get() {
        std::thread::yield_now();
    }
}

/// Adds to the calling thread's nice value. On Linux that value is a thread's own; elsewhere it is
/// the whole process's, and is left alone.
#[cfg(target_os = "linux")]
fn be_nicer(by: u8) {
    use rustix::process::{getpriority_process, setpriority_process};

    let stood = getpriority_process(None).and_then(|nice| {
        let nice = (nice + i32::from(by)).min(NICEST.into());
        // Without a process number, of the calling thread.
        setpriority_process(None, nice)
    });
    if let Err(error) = stood {
        tracing::warn!(%error, "the rotation's threads compete with all others");
    }
}

#[cfg(not(target_os = "linux"))]
fn be_nicer(_by: u8) {}

/// Measures how long the thread that makes it is at work.
pub(super) struct Work {
    started: Instant,
    kept_waiting: Option<Duration>,
}

impl Work {
    pub(super) fn begin() -> Self {
        Self { started: Instant::now(), kept_waiting: kept_waiting() }
    }

    /// All of the time, but for what the thread waited for a processor, where the system tells
    /// (Linux): who has the processor meanwhile is not slowed by it. The disk that it waits for
    /// is.
    pub(super) fn done(&self) -> Duration {
        let all = self.started.elapsed();
        let kept_waiting = kept_waiting().zip(self.kept_waiting);
        all.saturating_sub(
            kept_waiting.map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then)),
        )
    }
}

/// How long the calling thread was ready and had no processor: the second number of
/// `/proc/PID/schedstat`, nanoseconds
/// (<https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat>).
#[cfg(target_os = "linux")]
fn kept_waiting() -> Option<Duration> {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    thread_local! {
        static STATS: Option<File> = File::open("/proc/thread-self/schedstat").ok();
    }
    let mut text = [0; 64];
    let len = STATS.with(|stats| stats.as_ref()?.read_at(&mut text, 0).ok())?;
    let numbers = std::str::from_utf8(text.get(..len)?).ok()?;
    Some(Duration::from_nanos(numbers.split(' ').nth(1)?.parse().ok()?))
}

#[cfg(not(target_os = "linux"))]
fn kept_waiting() -> Option<Duration> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::hint::black_box;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// More threads than processors: each is kept waiting, and no processor has more to give than
    /// the time.
    #[test]
    fn waiting_for_a_processor_is_not_work() {
        const LONG: Duration = Duration::from_millis(300);

        let cores = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let end = AtomicBool::new(false);
        let (all, work) = std::thread::scope(|scope| {
            let busy = || {
                let work = Work::begin();
                while !end.load(Ordering::Relaxed) {
                    black_box(0);
                }
                work.done()
            };
            let start = Instant::now();
            let threads: Vec<_> = (0..cores * 4).map(|_| scope.spawn(busy)).collect();
            while start.elapsed() < LONG {
                std::thread::park_timeout(LONG / 10);
            }
            end.store(true, Ordering::Relaxed);
            let work: Duration = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            (start.elapsed(), work)
        });
        assert!(work <= all * cores * 3 / 2, "{work:?} of {all:?} on {cores}");
        assert!(!work.is_zero());
    }

    #[test]
    fn who_adds_nothing_to_its_nice_value_yields_to_nobody() {
        for (by, stands_back) in [(0, false), (1, true)] {
            let thread = std::thread::spawn(move || {
                stand_back(by);
                STANDS_BACK.get()
            });
            assert_eq!(thread.join().unwrap(), stands_back);
        }
    }

    #[test]
    fn waiting_for_anything_else_is() {
        const LONG: Duration = Duration::from_millis(50);

        let work = Work::begin();
        while work.started.elapsed() < LONG {
            std::thread::park_timeout(LONG);
        }
        assert!(work.done() >= LONG / 2, "{:?}", work.done());
    }
}
