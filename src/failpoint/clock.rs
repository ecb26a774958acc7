//! Clocks that a test sets, for the stores of one directory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// By data directory. Directories of tests are never used again, so nothing is removed.
static SET: Mutex<Option<HashMap<PathBuf, Clock>>> = Mutex::new(None);

/// The wall clock and the running clock of the stores in one directory. Both stand still until
/// they are moved.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<Shown>>);

#[derive(Debug)]
struct Shown {
    wall: i64,
    running: u64,
    boot: u8,
}

impl Clock {
    /// Stands in for the machine's clocks in every store that is opened in `dir` from now on. The
    /// wall clock begins in October 2025.
    #[must_use]
    pub fn set_for(dir: &Path) -> Self {
        let shown = Shown { wall: 1_760_000_000_000, running: 1000, boot: 1 };
        let clock = Self(Arc::new(Mutex::new(shown)));
        clock.share(dir);
        clock
    }

    /// Stands in for them in `dir` too.
    pub fn share(&self, dir: &Path) {
        let mut set = SET.lock().unwrap_or_else(PoisonError::into_inner);
        set.get_or_insert_default().insert(dir.to_owned(), self.clone());
    }

    pub(crate) fn of(dir: &Path) -> Option<Self> {
        let set = SET.lock().unwrap_or_else(PoisonError::into_inner);
        set.as_ref()?.get(dir).cloned()
    }

    /// Lets time pass, by both clocks.
    pub fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut shown = self.shown();
        shown.running = shown.running.saturating_add(ms);
        shown.wall = shown.wall.saturating_add_unsigned(ms);
    }

    /// Sets the wall clock, milliseconds since 1970-01-01 UTC; negative before.
    pub fn set(&self, wall: i64) {
        self.shown().wall = wall;
    }

    /// What the wall clock shows.
    #[must_use]
    pub fn wall(&self) -> i64 {
        self.shown().wall
    }

    /// Begins another boot: the running clock begins anew.
    pub fn reboot(&self) {
        let mut shown = self.shown();
        shown.running = 0;
        shown.boot = shown.boot.wrapping_add(1);
    }

    pub(crate) fn running(&self) -> (u64, Option<[u8; 16]>) {
        let shown = self.shown();
        (shown.running, Some([shown.boot; 16]))
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
