//! Holds writers back where sled does not come after them with writing its log.
//!
//! sled gives each full buffer of its log to a pool of seven threads, which also shorten the log's
//! file. One that has written a buffer waits for the lock under which a writer takes the next segment, and
//! that writer waits for the file to be shortened, if that was begun. With seven buffers before it in the
//! queue all of them wait for ever, and with them every store of the process
//! (<https://github.com/spacejam/sled/pull/1269>, after 0.34.7;
//! <https://github.com/spacejam/sled/issues/1412>). So only a few buffers may be waiting while the log's
//! file is shortened now and then. Where it was not for long, more may be: a disk that stands still for a
//! moment holds nobody up there.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::files::Files;
use crate::error::Result;

/// A segment of the log is one buffer, or more where it was flushed before it was full, or where a
/// batch begins or ends.
pub(super) struct Backlog {
    segment_size: i64,
    /// What was written, by our count.
    written: AtomicU64,
    is_due: AtomicBool,
    /// The log's file when somebody last looked.
    length: AtomicU64,
    /// Where the log went on when its file was last seen shorter than before, or first seen.
    shortened_at: AtomicI64,
    /// Where it went on before the last batch.
    batch_at: AtomicI64,
    /// How far the log must be written before more may be written to it.
    needed: AtomicI64,
    /// How far the log was written when a writer waited for it in vain.
    stuck_at: AtomicI64,
    /// One of those who wait has asked for a flush.
    asked: AtomicBool,
}

/// Where the log goes on, and how long its file is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: i64,
    pub(super) length: u64,
}

impl Backlog {
    /// Whole segments that may be begun and not written; until the next look one more. With what two
    /// batches begin and end, and one flush, six buffers.
    const SEGMENTS: i64 = 1;
    /// Likewise, in bytes, where the log's file was not shortened for [`LONG`](Self::LONG).
    const WIDE: i64 = 32 << 20;
    /// Segments.
    const LONG: i64 = 128;

    pub(super) fn new(segment_size: usize) -> Self {
        let never = || AtomicI64::new(i64::MIN);
        Self {
            segment_size: i64::try_from(segment_size).unwrap_or(i64::MAX),
            written: AtomicU64::new(0),
            is_due: AtomicBool::new(true),
            length: AtomicU64::new(u64::MAX),
            shortened_at: never(),
            batch_at: never(),
            needed: never(),
            stuck_at: never(),
            asked: AtomicBool::new(false),
        }
    }

    /// Counts what is about to be written; whether it is time to say where the log goes on. A
    /// deletion has few bytes, and sled writes a page for some of them.
    pub(super) fn is_due(&self, bytes: usize) -> bool {
        const EACH: u64 = 1 << 10;
        const LOOK: u64 = 128 << 10;

        let look = LOOK.min(self.segment_size.unsigned_abs() / 8);
        let bytes = bytes as u64 + EACH;
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / look != (before + bytes) / look {
            self.is_due.store(true, Ordering::Relaxed);
        }
        self.is_due.load(Ordering::Relaxed)
    }

    /// The log goes on there. All that came before a batch must be written before the next.
    pub(super) fn begun(&self, place: Place, is_batch: bool) {
        self.is_due.store(false, Ordering::Relaxed);
        let is_shorter = place.length < self.length.swap(place.length, Ordering::Relaxed);
        if is_shorter {
            self.shortened_at.fetch_max(place.at, Ordering::Relaxed);
        }
        let since = place.at.saturating_sub(self.shortened_at.load(Ordering::Relaxed));
        let is_wide = since / self.segment_size >= Self::LONG;
        let segments = match is_wide {
            true => (Self::WIDE / self.segment_size).max(Self::SEGMENTS),
            false => Self::SEGMENTS,
        };
        let segment = place.at - place.at.rem_euclid(self.segment_size);
        let mut needed = segment.saturating_sub(segments.saturating_mul(self.segment_size));
        if is_batch {
            let before = self.batch_at.swap(place.at, Ordering::Relaxed);
            if !is_wide {
                needed = needed.max(before);
            }
        }
        // The last byte that is written is one less than the place of the next.
        self.needed.fetch_max(needed.saturating_sub(1), Ordering::Relaxed);
    }

    /// Returns when more may be written: at once, unless too much was begun when somebody looked.
    /// Where the log does not go on by itself, as behind a batch whose last buffer is not full,
    /// `flush` is called by one of those who wait. Waits no longer than it takes to see that sled
    /// does not go on at all.
    pub(super) fn wait(
        &self,
        written: impl Fn() -> i64,
        files: &Files,
        flush: impl FnOnce(),
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_micros(50);
        const BY_ITSELF: Duration = Duration::from_millis(2);
        const LONGEST: Duration = Duration::from_secs(10);

        let needed = self.needed.load(Ordering::Relaxed);
        let mut last = written();
        if last >= needed {
            return Ok(());
        }
        let (mut flush, mut since) = (Some(flush), Instant::now());
        let mut waited = Ok(());
        while waited.is_ok() && last < needed && last != self.stuck_at.load(Ordering::Relaxed) {
            if since.elapsed() > LONGEST {
                self.stuck_at.store(last, Ordering::Relaxed);
            }
            if since.elapsed() > BY_ITSELF
                && flush.is_some()
                && !self.asked.swap(true, Ordering::Relaxed)
                && let Some(flush) = flush.take()
            {
                flush();
            }
            std::thread::park_timeout(PAUSE);
            let now = written();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            waited = files.check_writable();
        }
        if flush.is_none() {
            self.asked.store(false, Ordering::Relaxed);
        }
        waited
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

    /// A buffer that is not written keeps what comes after it from counting as written.
    #[test]
    fn a_batch_waits_for_what_came_before_the_last_one() {
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
            let early = [next(60), next(1)];
            left.abort().unwrap();
            assert_eq!(early, [Ok(0), Err(RecvTimeoutError::Timeout)]);
            assert_eq!([next(60), next(60)], [Ok(1), Ok(2)]);
        });
    }

    #[test]
    fn more_may_wait_where_the_log_was_not_shortened_for_long() {
        const SEGMENT: i64 = 512 << 10;

        let backlog = Backlog::new(512 << 10);
        let unwritten = |at: i64, length| {
            backlog.begun(Place { at: at * SEGMENT + 1, length }, false);
            at - (backlog.needed.load(Ordering::Relaxed) + 1) / SEGMENT
        };
        assert_eq!([unwritten(10, 100), unwritten(20, 100), unwritten(137, 200)], [1; 3]);
        assert_eq!(unwritten(210, 200), 64);
        assert_eq!([unwritten(220, 199), unwritten(230, 300)], [1; 2]);
        let place = |at| Place { at, length: 300 };
        backlog.begun(place(231 * SEGMENT), true);
        backlog.begun(place(231 * SEGMENT + 100), true);
        assert_eq!(backlog.needed.load(Ordering::Relaxed), 231 * SEGMENT - 1);
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
            assert!((3..150).contains(&last), "of 300: {last}");
            left.abort().unwrap();
        });
        assert_eq!(written.into_inner(), 300);
    }
}
