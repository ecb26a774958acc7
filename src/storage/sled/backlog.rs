//! Holds writers back where sled does not come after them with writing its log.
//!
//! sled gives each full buffer of its log to a pool of seven threads, which also shorten the log's
//! file. One that has written a buffer waits for the lock under which a writer takes the next segment, and
//! that writer waits for the file to be shortened, if that was begun. With seven buffers before it in the
//! queue all of them wait for ever, and with them every store of the process
//! (<https://github.com/spacejam/sled/pull/1269>, after 0.34.7;
//! <https://github.com/spacejam/sled/issues/1412>). So only a few buffers may be waiting.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::files::Files;
use crate::error::Result;

/// A segment of the log is one buffer, or more where it was flushed before it was full.
pub(super) struct Backlog {
    segment_size: i64,
    /// A writer has found too much of the log unwritten.
    behind: AtomicBool,
    /// How far the log was written when a writer waited for it in vain.
    stuck_at: AtomicI64,
    /// Batches since the last flush.
    batches: Mutex<u8>,
}

impl Backlog {
    /// Segments of the log that may be begun and not written.
    const MOST: i64 = 2;

    pub(super) fn new(segment_size: usize) -> Self {
        let segment_size = i64::try_from(segment_size).unwrap_or(i64::MAX);
        Self {
            segment_size,
            behind: AtomicBool::new(false),
            stuck_at: AtomicI64::new(i64::MIN),
            batches: Mutex::new(0),
        }
    }

    /// Bytes of values and keys that are written between two looks. What sled writes for them may
    /// be three times as much.
    pub(super) fn look(&self) -> u64 {
        const MOST: u64 = 128 << 10;

        MOST.min(self.segment_size.unsigned_abs() / 8)
    }

    /// Returns when more may be written to `db`: at once, unless it is time for a look or others
    /// wait. Where the log does not go on by itself, as behind a batch whose last buffer is not
    /// full, `flush` is called once. Waits no longer than it takes to see that sled does not go on
    /// at all.
    pub(super) fn wait(
        &self,
        db: &sled::Db,
        files: &Files,
        is_due: bool,
        flush: impl FnOnce(),
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_micros(200);
        const BY_ITSELF: Duration = Duration::from_millis(2);
        const LONGEST: Duration = Duration::from_secs(10);

        if !is_due && !self.behind.load(Ordering::Relaxed) {
            return Ok(());
        }
        let log = &db.context.pagecache.log;
        let mut flush = Some(flush);
        let mut last = i64::MIN;
        let mut since = Instant::now();
        while let Some(enough) = self.behind(db) {
            self.behind.store(true, Ordering::Relaxed);
            loop {
                let written = log.stable_offset();
                if written >= enough {
                    break;
                }
                if written != last {
                    (last, since) = (written, Instant::now());
                }
                if since.elapsed() > LONGEST || written == self.stuck_at.load(Ordering::Relaxed) {
                    self.stuck_at.store(written, Ordering::Relaxed);
                    self.behind.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                if since.elapsed() > BY_ITSELF
                    && let Some(flush) = flush.take()
                {
                    flush();
                }
                files.check_writable()?;
                std::thread::park_timeout(PAUSE);
            }
        }
        self.behind.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Before a batch. Each begins a buffer and ends one, however short it is: after two, `flush` is
    /// to return when they are written.
    pub(super) fn wait_for_batches(&self, flush: impl FnOnce()) {
        const MOST: u8 = 2;

        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if *batches >= MOST {
            flush();
            *batches = 0;
        }
        *batches += 1;
    }

    /// How far the log must be written before more may come, if it is not yet, nor in vain. (All of
    /// this is public in 0.34.7, but not documented.)
    fn behind(&self, db: &sled::Db) -> Option<i64> {
        let log = &db.context.pagecache.log;
        let written = log.stable_offset();
        let iter = log.iter_from(written.max(0));
        let (&begun, _) = iter.segments.last_key_value()?;
        // The last byte that is written: one less than the place of the next.
        let enough = begun - Self::MOST * self.segment_size - 1;
        (written < enough && iter.config.global_error().is_ok()).then_some(enough)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use crossbeam::channel::{self, RecvTimeoutError};

    use super::super::{SledOptions, SledStorage};
    use super::*;
    use crate::material::KeyMaterial;
    use crate::storage::{Space, Storage, Write};

    fn open(dir: &std::path::Path) -> SledStorage {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 64 << 10,
            flush_interval: Duration::from_secs(3600),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        let storage = SledStorage::open(&dir.join("db"), &options, &key, false).unwrap();
        storage.begin().unwrap();
        storage
    }

    /// What ends a batch lies in a buffer that is not full, and all of it counts as written only
    /// then: each of these would wait until sled's own thread comes by, or 10 s.
    #[test]
    fn batches_longer_than_a_segment_are_flushed_where_others_wait() {
        const WITHOUT_A_FLUSH: Duration = Duration::from_secs(10);

        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        let start = Instant::now();
        for round in 0..20u8 {
            let write =
                |i: u8| Write { key: vec![i], value: Some([vec![round], vec![i; 8000]].concat()) };
            storage.apply(Space::Records, (0..30).map(write).collect()).unwrap();
            storage.put(Space::Records, b"single", Some(vec![round; 8000])).unwrap();
            assert!(start.elapsed() < WITHOUT_A_FLUSH, "round {round}");
        }
    }

    /// A buffer that is not written keeps a flush from ending.
    #[test]
    fn after_two_batches_the_next_waits_for_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        let database = storage.0.current();
        let log = &database.sled().context.pagecache.log;
        let left = log.reserve(sled::LogKind::Free, 0, &(), &sled::pin()).unwrap();
        let (made, makes) = channel::unbounded();
        thread::scope(|scope| {
            let storage = &storage;
            scope.spawn(move || {
                for i in 0..3 {
                    let write = Write { key: vec![i], value: Some(vec![i]) };
                    storage.apply(Space::Records, vec![write]).unwrap();
                    made.send(i).unwrap();
                }
            });
            let next = |longest| makes.recv_timeout(Duration::from_secs(longest));
            let early = [next(60), next(60), next(1)];
            left.abort().unwrap();
            assert_eq!(early, [Ok(0), Ok(1), Err(RecvTimeoutError::Timeout)]);
            assert_eq!(next(60), Ok(2));
        });
    }

    /// A buffer that is not written keeps what comes after it from counting as written.
    #[test]
    fn writers_wait_for_the_log() {
        const LONGEST: Duration = Duration::from_secs(60);

        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        let database = storage.0.current();
        let log = &database.sled().context.pagecache.log;
        let left = log.reserve(sled::LogKind::Free, 0, &(), &sled::pin()).unwrap();
        let written = AtomicUsize::new(0);
        let written_by_now = || written.load(Ordering::Relaxed);
        thread::scope(|scope| {
            for thread in 0..3u8 {
                let (storage, written) = (&storage, &written);
                scope.spawn(move || {
                    for i in 0..100 {
                        storage.put(Space::Records, &[thread, i], Some(vec![i; 8000])).unwrap();
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let (mut last, mut since, start) = (0, Instant::now(), Instant::now());
            while since.elapsed() < Duration::from_secs(1) {
                assert!(start.elapsed() < LONGEST);
                thread::park_timeout(Duration::from_millis(10));
                if written_by_now() != last {
                    (last, since) = (written_by_now(), Instant::now());
                }
            }
            assert!((10..150).contains(&last), "of 300: {last}");
            left.abort().unwrap();
        });
        assert_eq!(written.into_inner(), 300);
    }
}
