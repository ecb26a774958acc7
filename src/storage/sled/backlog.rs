//! Holds writers back where sled does not come after them with writing its log.
//!
//! sled gives each full buffer of its log to a pool of seven threads, which also shorten the log's
//! file. One that has written a buffer waits for the lock under which a writer takes the next segment, and
//! that writer waits for the file to be shortened, if that was begun. With seven buffers before it in the
//! queue all of them wait for ever, and with them every store of the process
//! (<https://github.com/spacejam/sled/pull/1269>, after 0.34.7;
//! <https://github.com/spacejam/sled/issues/1412>). So only a few buffers may be waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::files::Files;
use crate::error::Result;

/// A segment of the log is one buffer, or more where it was flushed before it was full.
pub(super) struct Backlog {
    segment_size: i64,
    /// A writer has found too much of the log unwritten.
    behind: AtomicBool,
}

impl Backlog {
    /// Segments of the log that may be begun and not written.
    const MOST: i64 = 2;
    /// Bytes of values and keys that are written between two looks. What sled writes for them may
    /// be three times as much.
    pub(super) const LOOK: u64 = 128 << 10;

    pub(super) fn new(segment_size: usize) -> Self {
        let segment_size = i64::try_from(segment_size).unwrap_or(i64::MAX);
        Self { segment_size, behind: AtomicBool::new(false) }
    }

    /// Returns when so many bytes may be written to `db`; at once, unless it is time for a look or
    /// others wait. Waits no longer than it takes to see that sled does not go on at all.
    pub(super) fn wait(
        &self,
        db: &sled::Db,
        files: &Files,
        (bytes, is_due): (usize, bool),
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_micros(200);
        const LONGEST: Duration = Duration::from_secs(10);

        if !is_due && !self.behind.load(Ordering::Relaxed) {
            return Ok(());
        }
        let is_long = i64::try_from(bytes).is_ok_and(|bytes| bytes > self.segment_size);
        let most = if is_long { 0 } else { Self::MOST };
        let (mut seen, mut since) = (i64::MIN, Instant::now());
        loop {
            let (written, head) = ends(db);
            if written != seen {
                (seen, since) = (written, Instant::now());
            }
            let is_behind = head - written > most * self.segment_size;
            self.behind.store(is_behind, Ordering::Relaxed);
            if !is_behind || since.elapsed() > LONGEST {
                return Ok(());
            }
            files.check_writable()?;
            std::thread::park_timeout(PAUSE);
        }
    }
}

/// How far the log is written, and where its last segment begins (both public in 0.34.7, but not
/// documented).
fn ends(db: &sled::Db) -> (i64, i64) {
    let log = &db.context.pagecache.log;
    let written = log.stable_offset();
    let segments = log.iter_from(written.max(0)).segments;
    (written, segments.last_key_value().map_or(written, |(&begin, _)| begin))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::super::{SledOptions, SledStorage};
    use super::*;
    use crate::material::KeyMaterial;
    use crate::storage::{Space, Storage};

    /// A buffer that is not written keeps what comes after it from counting as written.
    #[test]
    fn writers_wait_for_the_log() {
        const LONGEST: Duration = Duration::from_secs(60);

        let dir = tempfile::tempdir().unwrap();
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 64 << 10,
            flush_interval: Duration::from_secs(3600),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        let storage = SledStorage::open(&dir.path().join("db"), &options, &key, false).unwrap();
        storage.begin().unwrap();
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
