//! Holds writers back where sled does not come after them with writing its log.
//!
//! sled gives each full buffer of its log to a pool of seven threads, which also shorten the log's
//! file. One that has written a buffer waits for the lock under which a writer takes the next segment, and
//! that writer waits for the file to be shortened, if that was begun. With seven buffers before it in the
//! queue all of them wait for ever, and with them every store of the process
//! (<https://github.com/spacejam/sled/pull/1269>, after 0.34.7;
//! <https://github.com/spacejam/sled/issues/1412>). So only a few buffers may be waiting, the fewer
//! of each database the more of them are open.
//!
//! The file is shortened where its last segment is free, and a writer waits for that where no other
//! is. The last one is free only when all that it holds was written anew, and meanwhile no other was
//! begun behind it: of a log of a few segments often, of one of thousands hardly ever. So the longer the
//! log, the more may be waiting: a disk that stands still for half a second holds nobody up there.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::files::Files;
use crate::error::Result;

/// Databases that are open in this process, all of which share sled's threads.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A segment of the log is one buffer, or more where it was flushed before it was full.
pub(super) struct Backlog {
    segment_size: i64,
    /// How far the log must be written before more may be written to it.
    needed: AtomicI64,
    /// How far the log was written when a writer waited for it in vain.
    stuck_at: AtomicI64,
    /// Batches since the last flush.
    batches: Mutex<i64>,
}

/// Segments of a log of so many that may be begun and not written, where so many databases are
/// open. Until the next look there may be one more: of up to six short ones together six buffers.
fn most_segments(open: usize, segments: i64) -> i64 {
    const MOST: i64 = 64;
    /// Of a log that is long.
    const SHARE: i64 = 64;

    match (segments / SHARE, open) {
        (share @ 8.., _) => share.min(MOST),
        (_, 0 | 1) => 4,
        (_, 2) => 2,
        (_, 3) => 1,
        _ => 0,
    }
}

/// Likewise batches that may follow each other without a flush. Each begins a buffer and ends one,
/// however short it is.
fn most_batches(open: usize, segments: i64) -> i64 {
    (most_segments(open, segments) / 2).max(1)
}

impl Backlog {
    pub(super) fn new(segment_size: usize) -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        let segment_size = i64::try_from(segment_size).unwrap_or(i64::MAX);
        Self {
            segment_size,
            needed: AtomicI64::new(i64::MIN),
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

    /// The log is begun up to `place`, and its file is so long.
    pub(super) fn begun(&self, place: i64, length: u64) {
        let segment = place - place.rem_euclid(self.segment_size);
        let most = most_segments(OPEN.load(Ordering::Relaxed), self.segments(length));
        // The last byte that is written is one less than the place of the next.
        self.needed.fetch_max(segment - most * self.segment_size - 1, Ordering::Relaxed);
    }

    fn segments(&self, length: u64) -> i64 {
        i64::try_from(length).unwrap_or(i64::MAX) / self.segment_size
    }

    /// Returns when more may be written: at once, unless too much was begun when somebody looked.
    /// Where the log does not go on by itself, as behind a batch whose last buffer is not full,
    /// `flush` is called once. Waits no longer than it takes to see that sled does not go on at
    /// all.
    pub(super) fn wait(
        &self,
        written: impl Fn() -> i64,
        files: &Files,
        flush: impl FnOnce(),
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_micros(200);
        const BY_ITSELF: Duration = Duration::from_millis(2);
        const LONGEST: Duration = Duration::from_secs(10);

        let needed = self.needed.load(Ordering::Relaxed);
        let mut last = written();
        if last >= needed {
            return Ok(());
        }
        let mut flush = Some(flush);
        let mut since = Instant::now();
        while last < needed && last != self.stuck_at.load(Ordering::Relaxed) {
            if since.elapsed() > LONGEST {
                self.stuck_at.store(last, Ordering::Relaxed);
            }
            if since.elapsed() > BY_ITSELF
                && let Some(flush) = flush.take()
            {
                flush();
            }
            files.check_writable()?;
            std::thread::park_timeout(PAUSE);
            let now = written();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Before a batch, where the log's file is so long. `flush` is to return when those before are
    /// written.
    pub(super) fn wait_for_batches(&self, length: u64, flush: impl FnOnce()) {
        let most = most_batches(OPEN.load(Ordering::Relaxed), self.segments(length));
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if *batches >= most {
            flush();
            *batches = 0;
        }
        *batches += 1;
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use crossbeam::channel;

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

    #[test]
    fn of_six_databases_one_of_the_seven_threads_is_left() {
        const SHORT: i64 = 511;

        for open in 1..=6 {
            let buffers = i64::try_from(open).unwrap() * (most_segments(open, SHORT) + 1);
            assert!(buffers < 7, "{open} databases: {buffers}");
        }
        assert_eq!([1, 2, 3, 7].map(|open| most_batches(open, SHORT)), [2, 1, 1, 1]);
        let long = [640, 10_000].map(|segments| [1, 7].map(|open| most_segments(open, segments)));
        assert_eq!(long, [[10, 10], [64, 64]]);
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
            let mut early = vec![next(60)];
            while early.last().is_some_and(Result::is_ok) {
                early.push(next(1));
            }
            left.abort().unwrap();
            // Where other tests have databases open, the second waits already.
            assert!((2..=3).contains(&early.len()), "{early:?}");
            early.pop();
            early.extend((early.len()..3).map(|_| next(60)));
            assert_eq!(early, [0, 1, 2].map(Ok));
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
            assert!((3..150).contains(&last), "of 300: {last}");
            left.abort().unwrap();
        });
        assert_eq!(written.into_inner(), 300);
    }
}
