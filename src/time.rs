//! The one place that reads clocks, and times as text.
//!
//! Two clocks are read. The *wall clock* tells the date, and anybody who may set it can make it
//! show anything. The *running clock* tells how much time has passed in this boot of the machine,
//! sleep included, and nobody sets it. What the store concludes from both is in [`observed`].

pub(crate) mod observed;

use std::path::Path;
use std::time::{Duration, SystemTime};

#[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
use crate::failpoint::Clock as SetClock;

/// The wall clock shows a time before 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before1970;

/// What the clocks show at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The wall clock, milliseconds since 1970-01-01 UTC.
    pub(crate) wall: u64,
    pub(crate) running: Running,
}

/// What the running clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// Milliseconds since a moment that stays the same within one boot, or, where `boot` is
    /// `None`, within one process.
    pub(crate) ms: u64,
    /// Which boot that is.
    pub(crate) boot: Option<Boot>,
}

/// Identity of one boot of the machine.
pub(crate) type Boot = [u8; 16];

/// The clocks that a store goes by.
pub(crate) enum Clocks {
    Machine,
    /// Set by a test; no release build has it.
    #[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
    Set(SetClock),
}

impl Clocks {
    /// Returns the machine's clocks, or those that a test has set for stores in `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        #[cfg(not(any(test, all(feature = "failpoints", debug_assertions))))]
        let _ = dir;
        #[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
        if let Some(set) = SetClock::of(dir) {
            return Self::Set(set);
        }
        Self::Machine
    }

    /// Reads both clocks.
    pub(crate) fn read(&self) -> Result<Reading, Before1970> {
        Ok(Reading { wall: self.wall()?, running: self.running() })
    }

    /// Returns the milliseconds since 1970-01-01 UTC by the wall clock.
    pub(crate) fn wall(&self) -> Result<u64, Before1970> {
        match self {
            Self::Machine => machine_wall(),
            #[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
            Self::Set(set) => u64::try_from(set.wall()).map_err(|_| Before1970),
        }
    }

    /// Reads the running clock.
    pub(crate) fn running(&self) -> Running {
        match self {
            Self::Machine => machine_running(),
            #[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
            Self::Set(set) => {
                let (ms, boot) = set.running();
                Running { ms, boot }
            }
        }
    }
}

/// Returns the milliseconds since 1970-01-01 UTC by this machine's wall clock.
pub(crate) fn machine_wall() -> Result<u64, Before1970> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(millis(since.map_err(|_| Before1970)?))
}

/// Reads the running clock of Linux, which goes on while the machine sleeps.
#[cfg(target_os = "linux")]
fn machine_running() -> Running {
    let shown = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (shown.tv_sec.unsigned_abs(), shown.tv_nsec.unsigned_abs());
    Running { ms: seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000), boot: boot() }
}

/// Counts from the first call in this process.
#[cfg(not(target_os = "linux"))]
fn machine_running() -> Running {
    use std::sync::OnceLock;
    use std::time::Instant;

    static BEGUN: OnceLock<Instant> = OnceLock::new();
    Running { ms: millis(BEGUN.get_or_init(Instant::now).elapsed()), boot: None }
}

/// Returns the identity of this boot: the kernel's, and that of the time namespace, in which the
/// running clock may have another beginning. `None` where `/proc` does not tell.
#[cfg(target_os = "linux")]
fn boot() -> Option<Boot> {
    use std::sync::OnceLock;

    use sha2::{Digest, Sha256};

    static BOOT: OnceLock<Option<Boot>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let kernel = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        // Kernels without time namespaces have no such link.
        let space = std::fs::read_link("/proc/self/ns/time").unwrap_or_default();
        let both =
            Sha256::new().chain_update(kernel).chain_update(space.as_os_str().as_encoded_bytes());
        both.finalize().first_chunk().copied()
    })
}

/// Returns a number that differs from call to call, to tell values apart. It says nothing about
/// time: the wall clock may be set to anything.
pub(crate) fn distinct_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let apart = since.unwrap_or_else(|before| before.duration());
    u64::try_from(apart.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns whole milliseconds, `u64::MAX` for more than fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Formats milliseconds since 1970-01-01 UTC as RFC 3339 with whole seconds.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    /// The last second of the year 9999, where the format ends.
    const LAST_MS: u64 = 253_402_300_799_000;
    let since = Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Formats a length of time for people, in whole seconds; less than one is called so.
pub(crate) fn plain(ms: u64) -> String {
    match ms / 1000 {
        0 => "less than a second".to_owned(),
        seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(plain(90_061_000), "1day 1h 1m 1s");
        assert_eq!(plain(999), "less than a second");
    }

    #[test]
    fn the_running_clock_does_not_run_backwards_and_knows_its_boot() {
        let (one, two) = (Clocks::Machine.running(), Clocks::Machine.running());
        assert!(one.ms <= two.ms && one.boot == two.boot);
        #[cfg(target_os = "linux")]
        assert!(one.boot.is_some());
    }
}
