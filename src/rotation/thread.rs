//! How the rotation's threads stand back from those that read and write.

use std::time::{Duration, Instant};

/// The highest nice value of POSIX.
pub(crate) const NICEST: u8 = 19;

/// Adds to the calling thread's nice value, which the threads that it starts inherit. On Linux
/// that value is a thread's own; elsewhere it is the whole process's, and is left alone.
#[cfg(target_os = "linux")]
pub(super) fn stand_back(by: u8) {
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
pub(super) fn stand_back(_by: u8) {}

/// Measures how long the thread that makes it is at work.
pub(super) struct Work {
    started: Instant,
    #[cfg(target_os = "linux")]
    before: Duration,
}

impl Work {
    pub(super) fn begin() -> Self {
        Self {
            started: Instant::now(),
            #[cfg(target_os = "linux")]
            before: on_processor(),
        }
    }

    /// Time on a processor, where the system tells (Linux), else all of it.
    pub(super) fn done(&self) -> Duration {
        let all = self.started.elapsed();
        #[cfg(target_os = "linux")]
        let all = all.min(on_processor().saturating_sub(self.before));
        all
    }
}

#[cfg(target_os = "linux")]
fn on_processor() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn waiting_is_not_work() {
        const WORK: Duration = Duration::from_millis(5);

        let work = Work::begin();
        while work.started.elapsed() < WORK * 10 {
            std::thread::park_timeout(WORK);
        }
        assert!(work.done() < WORK * 5, "{:?}", work.done());
        let before = work.done();
        while work.done() < before + WORK {
            black_box(0);
        }
        assert!(work.started.elapsed() >= WORK * 11);
    }
}
