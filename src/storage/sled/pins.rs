//! How long sled is kept from using space again, and what is noted of its log before it may.
//!
//! sled frees a segment of its log, and removes the file of a large page, once what replaced it
//! was handed to the system (`sync_file_range`). It does so by a deferred function of
//! crossbeam-epoch's default collector (`pagecache/iobuf.rs`, `write_to_log`), which runs once
//! every thread that was pinned when it was deferred has let go. So a thread of ours stays
//! pinned, and lets go only after a sync that began later. The collector is the whole process's:
//! what others have put there waits as well, so the thread also lets go where nothing happens.

use std::time::{Duration, Instant, SystemTime};

use crossbeam_epoch::{Guard, LocalHandle, default_collector};

use super::files::Files;
use super::flush::Flushes;
use super::tail::{Durable, Noted};
use crate::error::{Error, Result};

/// The segment of the log up to which everything was handed to the system; none if a batch is under
/// way that may have begun in an earlier one: should it fail, the log is cut off there. sled frees only
/// segments before it, and has freed none from it on (`pagecache/segment.rs`, `stabilize`): right
/// after it was opened only because something was written and flushed since
/// ([`OPENED_KEY`](super::database)).
fn reached(db: &sled::Db, segment_size: usize, flushes: &Flushes, waits: bool) -> Option<i64> {
    let size = i64::try_from(segment_size).unwrap_or(i64::MAX);
    let written = || db.context.pagecache.log.stable_offset().max(0);
    let (reached, before_batches) = match waits {
        true => flushes.reached_between_batches(written),
        false => flushes.reached(written),
    };
    let segment = reached / size;
    (before_batches / size == segment).then_some(segment * size)
}

/// Two places in the collector, one of them always pinned.
pub(super) struct Pins {
    places: [LocalHandle; 2],
    held: Option<Guard>,
    next: usize,
    /// The log as it was last seen to have changed.
    seen: Option<(Stamp, Instant)>,
    /// The log as a turn found and synced it, if it had not changed for long.
    settled: Option<Stamp>,
    /// Turns in a row in which batches stood in the way.
    skipped: u32,
}

/// What another write to the log changes, unless it comes within the same tick of the clock.
type Stamp = (SystemTime, u64);

impl Pins {
    /// Before one waits for the batches.
    const MOST_SKIPPED: u32 = 8;

    pub(super) fn new() -> Self {
        let places = [default_collector().register(), default_collector().register()];
        let held = Some(places[0].pin());
        Self { places, held, next: 1, seen: None, settled: None, skipped: 0 }
    }

    /// Notes what the log looks like. Whether it has for so long that any write would show, be
    /// the clock of the file system as coarse as 2 s, and one that was begun before has ended.
    fn look(&mut self, stamp: Stamp) -> bool {
        const LONG: Duration = Duration::from_secs(30);

        match self.seen {
            Some((seen, since)) if seen == stamp => since.elapsed() >= LONG,
            _ => {
                self.seen = Some((stamp, Instant::now()));
                false
            }
        }
    }

    /// 1. pinned anew: what is deferred from now on waits for the next turn;
    /// 2. how far the log has got that was handed to the system; must come after 1, or sled may
    ///    free a later segment in between;
    /// 3. a sync, which also links every large page that is there; must come after 1, or one that is
    ///    made in between is removed after 5 without a link; must come after 2, or that is not
    ///    durable;
    /// 4. the note of 2; must come before 5, or a later segment is freed;
    /// 5. the older pin let go.
    ///
    /// If a step fails the older pin stays, and what is freed waits; so it does where batches under
    /// way hide what 2 asks for, but for a few turns at most.
    ///
    /// sled frees something only after it has written to the log. If nothing was written since a
    /// turn that found the log at rest, 1 and 5 are enough. The log must be looked at after 1, or
    /// sled may write and free in between.
    pub(super) fn turn(
        &mut self,
        files: &Files,
        (db, segment_size): (&sled::Db, usize),
        (flushes, durable): (&Flushes, &mut Durable),
    ) -> Result<()> {
        let pinned = self.places[self.next].pin();
        let during = |e| Error::io("looking at the log", e);
        let log = files.log().metadata().map_err(during)?;
        let stamp = (log.modified().map_err(during)?, log.len());
        let settles = self.look(stamp);
        if self.settled == Some(stamp) {
            self.hold(pinned);
            return Ok(());
        }
        let waits = self.skipped >= Self::MOST_SKIPPED;
        let Some(reached) = reached(db, segment_size, flushes, waits) else {
            self.skipped += 1;
            return Ok(());
        };
        self.skipped = 0;
        // A batch that has failed by now may be before it.
        files.check_writable()?;
        files.sync()?;
        files.check_linked()?;
        durable.note_in(files, Noted::From(reached))?;
        self.settled = settles.then_some(stamp);
        self.hold(pinned);
        Ok(())
    }

    /// Lets go of the older pin.
    fn hold(&mut self, pinned: Guard) {
        self.held = Some(pinned);
        self.next = 1 - self.next;
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel;

    use super::super::flush;
    use super::*;

    /// Else the next opening, which looks from the note on, does not see that it failed.
    #[test]
    fn nothing_is_noted_beyond_where_a_batch_began_that_is_under_way() {
        const SIZE: usize = 64 << 10;

        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let db = sled::Config::new().path(dir.path()).segment_size(SIZE).open().unwrap();
        let flushes = Flushes::default();
        let written = || db.context.pagecache.log.stable_offset();
        let noted = || reached(&db, SIZE, &flushes, false);
        let first = flushes.begin_batch(&files, written).unwrap();
        assert_eq!(noted(), Some(0));
        for i in 0..200u8 {
            db.insert([i], vec![i; 1000]).unwrap();
        }
        flush::flush(&db).unwrap();
        let second = flushes.begin_batch(&files, written).unwrap();
        assert_eq!(noted(), None);
        let (found, finds) = channel::bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(|| found.send(reached(&db, SIZE, &flushes, true)));
            assert!(finds.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
            drop(first);
            assert!(noted().is_some_and(|segment| segment > 0 && segment % SIZE as i64 == 0));
            drop(second);
            assert_eq!(finds.recv(), Ok(noted()));
        });
    }

    #[test]
    fn batches_in_a_row_do_not_keep_the_keeper_from_noting() {
        const SIZE: usize = 64 << 10;
        const LONGEST: Duration = Duration::from_secs(20);

        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let db = sled::Config::new().path(dir.path()).segment_size(SIZE).open().unwrap();
        let (flushes, mut pins) = (Flushes::default(), Pins::new());
        let mut durable = Durable::open(dir.path()).unwrap();
        let mut turn = || {
            pins.turn(&files, (&db, SIZE), (&flushes, &mut durable)).unwrap();
            std::fs::read(dir.path().join("durable")).unwrap()
        };
        let first = turn();
        let batch = flushes.begin_batch(&files, || 0).unwrap();
        for i in 0..200u8 {
            db.insert([i], vec![i; 1000]).unwrap();
        }
        flush::flush(&db).unwrap();
        for _ in 0..Pins::MOST_SKIPPED {
            assert_eq!(turn(), first);
        }
        std::thread::scope(|scope| {
            let (start, flushes, files) = (Instant::now(), &flushes, &files);
            let kept_out = scope.spawn(move || {
                while !flushes.keeps_batches_out() && start.elapsed() < LONGEST {
                    std::thread::yield_now();
                }
                let (begun, begins) = channel::bounded(1);
                scope.spawn(move || begun.send(flushes.begin_batch(files, || 0).is_ok()));
                let waits = begins.recv_timeout(Duration::from_millis(50)).is_err();
                drop(batch);
                waits
            });
            assert_ne!(turn(), first);
            assert!(kept_out.join().unwrap());
        });
    }

    /// sled would remove it, and nothing led to it any more.
    #[test]
    fn a_large_page_without_a_link_keeps_the_pin() {
        const SIZE: usize = 64 << 10;

        let dir = tempfile::tempdir().unwrap();
        let (links, blobs) = (dir.path().join("links"), dir.path().join("blobs"));
        let files = Files::open(dir.path()).unwrap();
        let db = sled::Config::new().path(dir.path()).segment_size(SIZE).open().unwrap();
        let (flushes, mut pins) = (Flushes::default(), Pins::new());
        let mut durable = Durable::open(dir.path()).unwrap();
        let mut turn = || pins.turn(&files, (&db, SIZE), (&flushes, &mut durable));
        turn().unwrap();
        db.insert("large", vec![7; SIZE]).unwrap();
        flush::flush(&db).unwrap();
        std::fs::rename(&links, dir.path().join("aside")).unwrap();
        std::fs::write(&links, "").unwrap();
        let (dropped, drops) = channel::bounded(1);
        crossbeam_epoch::pin().defer(move || dropped.send(()).unwrap());
        let advance = || (0..1000).for_each(|_| crossbeam_epoch::pin().flush());
        for _ in 0..3 {
            assert!(turn().is_err());
            advance();
            assert!(drops.is_empty(), "what sled deferred is kept");
        }
        std::fs::remove_file(&links).unwrap();
        std::fs::rename(dir.path().join("aside"), &links).unwrap();
        turn().unwrap();
        let linked = std::fs::read_dir(&links).unwrap().count();
        assert_eq!(linked, std::fs::read_dir(&blobs).unwrap().count());
        assert!(linked > 0);
        let start = Instant::now();
        while drops.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "it is let go");
            turn().unwrap();
            advance();
        }
    }
}
