//! Flushes, and batches between them.
//!
//! sled keeps batches out of a flush by a lock of the whole process (`concurrency_control.rs`), and
//! a flush that waits for a buffer of a write that failed never ends: with that lock it would hold
//! up every store of the process for ever. So a flush of ours goes without it, and each database
//! keeps its batches out by itself, until it takes no more writes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::files::Files;
use crate::error::Result;

#[derive(Default)]
struct State {
    /// How far the log was written when each batch began that is under way.
    batches: Vec<i64>,
    flushing: bool,
    /// sled is at it.
    begun: bool,
}

#[derive(Default)]
pub(super) struct Flushes {
    state: Mutex<State>,
    changed: Condvar,
}

/// Lasts as long as a batch.
pub(super) struct InBatch<'a> {
    flushes: &'a Flushes,
    begun_at: i64,
}

impl Drop for InBatch<'_> {
    fn drop(&mut self) {
        let mut state = self.flushes.state();
        if let Some(own) = state.batches.iter().position(|&at| at == self.begun_at) {
            state.batches.swap_remove(own);
        }
        drop(state);
        self.flushes.changed.notify_all();
    }
}

/// Lasts as long as a flush.
struct InFlush<'a>(&'a Flushes);

impl Drop for InFlush<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.flushing, state.begun) = (false, false);
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Flushes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a flush that is under way, unless it will never end. `reached` tells how far the
    /// log is written.
    pub(super) fn begin_batch(
        &self,
        files: &Files,
        reached: impl FnOnce() -> i64,
    ) -> Result<InBatch<'_>> {
        const LOOK: Duration = Duration::from_millis(100);

        let mut state = self.state();
        while state.flushing {
            files.check_writable()?;
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let begun_at = reached();
        state.batches.push(begun_at);
        Ok(InBatch { flushes: self, begun_at })
    }

    /// Does it where no batch is under way, and keeps batches out meanwhile.
    pub(super) fn between_batches<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        state.batches.is_empty().then(f)
    }

    /// How far the log is written, as `reached` tells, and how far before any batch that is under
    /// way, and may yet fail.
    pub(super) fn reached(&self, reached: impl FnOnce() -> i64) -> (i64, i64) {
        let state = self.state();
        let reached = reached();
        (reached, state.batches.iter().fold(reached, |least, &at| least.min(at)))
    }

    /// Likewise at a moment when no batch is under way; waits for it.
    pub(super) fn reached_between_batches(&self, reached: impl FnOnce() -> i64) -> (i64, i64) {
        let _flushing = self.keep_batches_out();
        self.reached(reached)
    }

    /// Whether sled flushes, and nothing else is waited for.
    pub(super) fn is_flushing(&self) -> bool {
        self.state().begun
    }

    /// [`flush`], while no batch is under way: sled flushes half a batch, and waits for the rest.
    /// For one thread at a time.
    pub(super) fn flush(&self, db: &sled::Db) -> sled::Result<()> {
        let _flushing = self.keep_batches_out();
        self.state().begun = true;
        flush(db)
    }

    #[cfg(test)]
    pub(super) fn keeps_batches_out(&self) -> bool {
        self.state().flushing
    }

    fn keep_batches_out(&self) -> InFlush<'_> {
        let mut state = self.state();
        state.flushing = true;
        let flushing = InFlush(self);
        while !state.batches.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        flushing
    }
}

/// Where sled's log goes on: a message that is taken back tells (`pagecache/logger.rs`, public and
/// undocumented), as sled leaves them by the thousand. Not while a batch begins: sled would not see
/// that the buffer before it must be sealed.
pub(super) fn place(db: &sled::Db) -> sled::Result<i64> {
    let log = &db.context.pagecache.log;
    let (place, _) = log.reserve(sled::LogKind::Free, 0, &(), &sled::pin())?.abort()?;
    Ok(place)
}

/// Hands all that was written before to the system.
pub(super) fn flush(db: &sled::Db) -> sled::Result<()> {
    db.context.pagecache.log.make_stable(place(db)?).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::error::Error;

    #[test]
    fn a_batch_waits_for_a_flush_until_no_more_writes_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let flushes = Flushes::default();
        let (begun, begins) = mpsc::channel();
        flushes.state().flushing = true;
        std::thread::scope(|scope| {
            let (flushes, files) = (&flushes, &files);
            let enter = |begun: mpsc::Sender<bool>| {
                scope.spawn(move || begun.send(flushes.begin_batch(files, || 0).is_ok()).unwrap());
            };
            enter(begun.clone());
            assert!(begins.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
            drop(InFlush(flushes));
            assert!(begins.recv().unwrap());
            flushes.state().flushing = true;
            enter(begun);
            files.stop_writing(Error::WriteFailed { why: "on purpose".to_owned() });
            let entered = begins.recv_timeout(Duration::from_secs(10));
            drop(InFlush(flushes));
            assert_eq!(entered, Ok(false));
        });
        assert!(flushes.state().batches.is_empty());
    }

    #[test]
    fn what_was_written_before_is_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let config = sled::Config::new().path(dir.path()).flush_every_ms(None);
        let db = config.open().unwrap();
        for i in 0..100u32 {
            db.insert(i.to_be_bytes(), vec![7; 1000]).unwrap();
            Flushes::default().flush(&db).unwrap();
            let log = std::fs::read(dir.path().join("db")).unwrap();
            let found = log.windows(4).filter(|bytes| **bytes == i.to_be_bytes());
            assert!(found.count() > 0, "{i}");
        }
    }
}
