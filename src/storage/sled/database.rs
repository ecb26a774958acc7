//! One database of sled's: real durability, panics caught.

use std::fs::File;
use std::io;
use std::ops::{Bound, Deref};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError};

use super::super::Space;
use super::backlog::{Backlog, Place};
use super::border::{await_release, forget_cached, guarded};
use super::closed;
use super::digest::{self, Digest};
use super::files::Files;
use super::flush::{self, InBatch};
use super::keeper::{self, Keeper};
use super::keys::escape;
use super::{settings, sums, tail};
use crate::disk::access;
use crate::error::{Error, Result};
use crate::time::{distinct_nanos, machine_wall};

/// In `system`, without a meaning of its own: written where sled has to write something.
pub(super) const OPENED_KEY: &[u8] = b"opened";

/// How long sled's log may stand still while a flush waits: far above what a disk takes to take some
/// MiB.
const LONGEST: Duration = Duration::from_secs(120);

/// sled writes nothing where the value is the one that is there.
fn another_value() -> Vec<u8> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = distinct_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    [nanos, count].map(u64::to_be_bytes).concat()
}

/// Flushes where there is no keeper yet. sled wakes nobody who waits for a flush when a write
/// fails that it had left to whoever was writing (`Log::exit_reservation`); the next write does.
fn flush_first(db: &sled::Db, system: &sled::Tree) -> sled::Result<()> {
    let flushed = db.clone();
    let flush = move || flush::flush(&flushed);
    let nudge = || {
        system.insert(OPENED_KEY, another_value())?;
        Ok(db.context.pagecache.log.stable_offset())
    };
    nudged((keeper::LOOK, LONGEST), flush, nudge).unwrap_or_else(|| {
        let why = format!("sled has not written its log for {LONGEST:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, why).into())
    })
}

/// Does `work`, which may wait for ever unless there is a `nudge` now and then, which tells how far it
/// has got; `None` if that stays the same for `longest`. Its thread is left to the end of the process
/// then, as it is where the nudge fails and that wakes nobody.
fn nudged<E: Send + 'static>(
    (every, longest): (Duration, Duration),
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
    nudge: impl Fn() -> Result<i64, E>,
) -> Option<Result<(), E>> {
    let (done, ended) = channel::bounded(1);
    let working = std::thread::spawn(move || {
        let outcome = work();
        let _ = done.send(outcome);
    });
    let (mut seen, mut failed) = ((i64::MIN, Instant::now()), None);
    while seen.1.elapsed() < longest {
        match ended.recv_timeout(every) {
            Ok(outcome) => return Some(outcome),
            Err(RecvTimeoutError::Disconnected) => match working.join() {
                Ok(()) => return None,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(RecvTimeoutError::Timeout) if failed.is_some() => break,
            Err(RecvTimeoutError::Timeout) => match nudge() {
                Ok(reached) if reached != seen.0 => seen = (reached, Instant::now()),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            },
        }
    }
    failed.map(Err)
}

/// A range of keys as sled has them, and a pair.
pub(super) type RawRange = (Bound<sled::IVec>, Bound<sled::IVec>);
pub(super) type RawPair = (sled::IVec, sled::IVec);

/// Settings that are passed on to sled.
#[derive(Clone, Debug)]
pub(crate) struct SledOptions {
    /// Page cache, bytes.
    pub(crate) cache_bytes: u64,
    /// Bytes of a log segment of a database that is made: 256 B to 16 MiB, a power of two.
    pub(crate) segment_bytes: usize,
    /// How often sled's own thread writes and collects garbage.
    pub(crate) flush_interval: Duration,
}

/// A value as sled hands it out: shared, not copied. What the digest added is not seen.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Stored(pub(super) sled::IVec);

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        digest::plain(&self.0)
    }
}

impl Stored {
    /// With what the digest added.
    pub(super) fn raw(&self) -> &[u8] {
        &self.0
    }
}

pub(super) struct Database {
    db: sled::Db,
    records: sled::Tree,
    system: sled::Tree,
    /// What its values are dressed for.
    digest: Arc<Digest>,
    backlog: Backlog,
    /// Held by whoever makes a batch.
    batches: Mutex<()>,
    /// After sled: its thread has the last handle, closes sled, and then lets go of its space.
    keeper: Keeper,
}

impl Database {
    /// Whether `dir` holds a database, found out without opening it.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join("db").exists()
    }

    /// And whether its files are as they were left, where that is known: those that are not are
    /// refused, before anything is changed, unless what is lost is accepted.
    pub(super) fn open(
        dir: &Path,
        options: &SledOptions,
        digest: Arc<Digest>,
        accepts: bool,
    ) -> Result<(Self, bool)> {
        const LONGEST: Duration = Duration::from_secs(10);

        let millis = u64::try_from(options.flush_interval.as_millis()).unwrap_or(u64::MAX);
        let preparing = |e| Error::io(format!("preparing {}", dir.display()), e);
        await_release(dir, LONGEST)?;
        forget_cached(dir)?;
        let noted = settings::segment_size(dir, options.segment_bytes).map_err(preparing)?;
        let Some(segment) = noted else {
            let why = "its settings, the file conf, are damaged or missing".to_owned();
            return Err(Error::StorageDamaged { path: dir.to_owned(), why });
        };
        if let Some(blob) = sums::misplaced(dir).map_err(preparing)? {
            let why = format!("{} holds another page than was written to it", blob.display());
            return Err(Error::StorageDamaged { path: dir.to_owned(), why });
        }
        let damage = closed::damage(dir, segment).map_err(preparing)?;
        if let Some(damage) = damage.as_ref().filter(|_| !accepts) {
            let what = format!(
                "{damage}: the database (db/) is not as it was left when it was closed; nothing of \
                 it was changed"
            );
            return Err(Error::RolledBack { what, syncs: None });
        }
        tail::prepare(dir, segment).map_err(preparing)?;
        // sled panics where it makes its settings before 1970.
        machine_wall()?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .segment_size(segment)
            .flush_every_ms(Some(millis));
        let files = Arc::new(Files::open(dir)?);
        let open = || {
            guarded(dir, "opening the database", None, || {
                let db = config.open()?;
                let records = db.open_tree("records")?;
                let system = db.open_tree("system")?;
                for (space, tree) in [(Space::Records, &records), (Space::System, &system)] {
                    let prints = Arc::clone(digest.prints());
                    let merge = move |key: &[u8], old: Option<&[u8]>, new: &[u8]| {
                        Some(prints.merge((space, key), old, new))
                    };
                    tree.set_merge_operator(merge);
                }
                // sled has freed segments up to where it goes on writing: this makes it write
                // there, so that `Keeper::start` finds the place.
                system.insert(OPENED_KEY, another_value())?;
                flush_first(&db, &system)?;
                Ok((db.clone(), (db, records, system)))
            })
        };
        let ((db, records, system), keeper) = Keeper::start(files, segment, open)?;
        let database = Self {
            db,
            records,
            system,
            digest,
            backlog: Backlog::new(segment),
            batches: Mutex::default(),
            keeper,
        };
        // sled makes its files with the process's umask.
        if let Err(error) = access::tighten_all(dir) {
            tracing::warn!(%error, dir = %dir.display(), "others may read files of the database");
        }
        database.sync_names()?;
        Ok((database, damage.is_none()))
    }

    #[cfg(test)]
    pub(super) fn sled(&self) -> &sled::Db {
        &self.db
    }

    fn tree(&self, space: Space) -> &sled::Tree {
        match space {
            Space::Records => &self.records,
            Space::System => &self.system,
        }
    }

    fn attempt<T>(&self, during: &str, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        let done = guarded(self.dir(), during, Some(&self.files().broken), f);
        #[cfg(test)]
        if FAILS_BEHIND.replace(FAILS_BEHIND.get().saturating_sub(1)) == 1 {
            return Err(Error::io(during, io::ErrorKind::Other.into()));
        }
        done
    }

    fn reading<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        guarded(self.dir(), "reading", Some(&self.files().broken), f)
    }

    /// Reads keys that are not known before.
    pub(super) fn walking<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        let read = self.reading(f)?;
        self.files().check_known(None).map(|()| read)
    }

    /// Refused once sled has panicked or a sync has failed: its accounts of what is free may be
    /// half changed, and what is written then may go over what is needed.
    fn writing<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        self.check_writable()?;
        self.attempt("writing", f).inspect_err(|error| self.note_failed(error))
    }

    fn note_failed(&self, error: &Error) {
        if let Error::Io { .. } | Error::DiskFull { .. } = error {
            self.files().note_failed(error);
        }
    }

    /// Writes where it first has to read. Where that is what fails, nothing was written, and
    /// nothing is wrong with writing.
    fn finding<T>(
        &self,
        space: Space,
        key: &[u8],
        f: impl FnOnce() -> sled::Result<T>,
    ) -> Result<T> {
        self.check_writable()?;
        let written = self.attempt("writing", f);
        if let Err(error @ (Error::Io { .. } | Error::DiskFull { .. })) = &written
            && self.get_raw(space, key).is_ok()
        {
            self.files().note_failed(error);
        }
        written
    }

    /// Counts what is about to be written, and refuses what there is no space for, before anything
    /// of it is. What is `needed` to go on may go into the space that is kept.
    pub(super) fn admit(&self, bytes: usize, needed: bool) -> Result<()> {
        self.admit_some(bytes, needed, false)
    }

    /// Before a batch of so many bytes, and before any lock that a flush could wait for. No other
    /// batch is admitted before what it gives is dropped.
    pub(super) fn admit_batch(&self, bytes: usize, needed: bool) -> Result<MutexGuard<'_, ()>> {
        let one_at_a_time = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        self.admit_some(bytes, needed, true)?;
        Ok(one_at_a_time)
    }

    fn admit_some(&self, bytes: usize, needed: bool, is_batch: bool) -> Result<()> {
        self.check_writable()?;
        self.files().check_space(bytes, needed)?;
        self.keeper.wrote(bytes);
        if (self.backlog.is_due(bytes) || is_batch)
            && let Some(place) = self.keeper.flushes().between_batches(|| self.place())
        {
            self.backlog.begun(place?, is_batch);
        }
        self.backlog.wait(|| self.reached(), self.files(), || self.keeper.flush())
    }

    /// To ask sled for its segments would take the very lock that those wait for who write the log,
    /// and time for each segment.
    fn place(&self) -> Result<Place> {
        let place = || flush::place(&self.db);
        let at = guarded(self.dir(), "writing", Some(&self.files().broken), place)
            .inspect_err(|error| self.note_failed(error))?;
        Ok(Place { at, length: self.files().log_length() })
    }

    /// sled creates `blobs/` and snapshots and syncs no directory.
    fn sync_names(&self) -> Result<()> {
        let sync = |path: PathBuf| {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|e| Error::io(format!("syncing {}", path.display()), e))
        };
        let dir = self.dir();
        sync(dir.join("blobs"))?;
        sync(dir.to_owned())?;
        dir.parent().map_or(Ok(()), |parent| sync(parent.to_owned()))
    }
}

impl Database {
    pub(super) fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>> {
        self.get_raw(space, &escape(key)).map(|found| found.map(Stored))
    }

    /// Writes one pair as sled has it.
    pub(super) fn put_raw(&self, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        let tree = self.tree(space);
        self.writing(|| tree.insert(key, value).map(drop))
    }

    /// Writes one pair whose value lacks what `Prints::merge` adds.
    pub(super) fn merge_raw(&self, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        let tree = self.tree(space);
        self.finding(space, key, || tree.merge(key, value).map(drop))
    }

    /// Replaces exactly `old`; `false` if something else is there.
    pub(super) fn swap_raw(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&[u8]>,
        new: &[u8],
    ) -> Result<bool> {
        let tree = self.tree(space);
        self.finding(space, key, || tree.compare_and_swap(key, old, Some(new)))
            .map(|swapped| swapped.is_ok())
    }

    pub(super) fn remove_raw(&self, space: Space, key: &[u8]) -> Result<()> {
        let tree = self.tree(space);
        self.writing(|| tree.remove(key).map(drop))
    }

    /// Makes a pair what it was, though no more writes are taken.
    pub(super) fn put_back(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&sled::IVec>,
    ) -> Result<()> {
        let tree = self.tree(space);
        self.attempt("taking a batch back", || match old {
            Some(old) => tree.insert(key, old).map(drop),
            None => tree.remove(key).map(drop),
        })
    }

    /// Over keys as sled has them.
    pub(super) fn range(&self, space: Space, range: RawRange) -> Result<sled::Iter> {
        let tree = self.tree(space);
        self.walking(|| Ok(tree.range(range)))
    }

    pub(super) fn step(
        &self,
        step: impl FnOnce() -> Option<sled::Result<RawPair>>,
    ) -> Result<Option<RawPair>> {
        self.walking(|| step().transpose())
    }

    /// Lets no flush begin before what it gives is dropped. What sled makes of a batch that it does
    /// not end must not be flushed.
    pub(super) fn begin_batch(&self) -> Result<InBatch<'_>> {
        self.keeper.flushes().begin_batch(self.files(), || self.reached())
    }

    /// How far sled has written its log (public in 0.34.7, but not documented).
    fn reached(&self) -> i64 {
        self.db.context.pagecache.log.stable_offset()
    }

    /// Writes pairs as sled has them, together. Where that fails, for whatever reason, no more
    /// writes are taken: where not all are made, the next opening cuts the log off before them
    /// ([`tail`]).
    pub(super) fn apply_raw(
        &self,
        space: Space,
        batch: sled::Batch,
        _: &InBatch<'_>,
    ) -> Result<()> {
        let tree = self.tree(space);
        self.check_writable()?;
        let written = self.attempt("writing a batch", || tree.apply_batch(batch));
        written.inspect_err(|error| self.files().note_failed(error))
    }

    pub(super) fn get_raw(&self, space: Space, key: &[u8]) -> Result<Option<sled::IVec>> {
        let tree = self.tree(space);
        let found = self.reading(|| tree.get(key))?;
        self.files().check_known(Some((space, key))).map(|()| found)
    }

    /// Never sent to: disconnected once the database is closed.
    pub(super) fn closed(&self) -> Receiver<()> {
        self.keeper.ended()
    }

    pub(super) fn digest(&self) -> &Arc<Digest> {
        &self.digest
    }

    pub(super) fn files(&self) -> &Files {
        self.keeper.files()
    }

    pub(super) fn dir(&self) -> &Path {
        self.files().dir()
    }

    /// `flush` ends in `sync_file_range`, which does not survive a power cut (sled 0.34.7,
    /// `pagecache/iobuf.rs`), so the files are synced too.
    pub(super) fn sync(&self) -> Result<()> {
        self.check_writable()?;
        let write = || self.writing(|| self.system.insert(OPENED_KEY, another_value()).map(drop));
        self.keeper.sync(write, || self.reached(), LONGEST)
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.files().check_writable()
    }

    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.files().stop_writing(error)
    }

    pub(super) fn bytes_on_disk(&self) -> Result<u64> {
        self.reading(|| self.db.size_on_disk())
    }
}

#[cfg(test)]
thread_local! {
    /// Which of the next writes of this thread is made, and fails all the same; none for 0.
    pub(super) static FAILS_BEHIND: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
impl Database {
    /// As a batch leaves it that fails before its first write.
    pub(super) fn fail_batch(&self) {
        const BATCHES: sled::PageId = sled::PageId::MAX - 666;

        let (log, manifest) = (&self.db.context.pagecache.log, sled::BatchManifest::default());
        let begun = log.reserve(sled::LogKind::Skip, BATCHES, &manifest, &sled::pin()).unwrap();
        begun.abort().unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Likewise a flush that a failed write has left waiting; as long as the log grows.
    #[test]
    fn who_waits_for_the_first_flush_is_nudged_until_it_ends() {
        const LONGEST: Duration = Duration::from_secs(2);

        let (nudge, nudged_by) = channel::unbounded();
        let work = move || (0..150).try_for_each(|_| nudged_by.recv_timeout(10 * LONGEST));
        let reached = AtomicU64::new(0);
        let (start, times) = (Instant::now(), (Duration::from_millis(20), LONGEST));
        let done = nudged(times, work, || {
            let _ = nudge.send(());
            Ok(reached.fetch_add(1, Ordering::Relaxed) as i64)
        });
        assert_eq!(done, Some(Ok(())));
        assert!(start.elapsed() > LONGEST);
    }

    #[test]
    fn nobody_waits_for_ever_for_the_first_flush() {
        for fails in [false, true] {
            let (_never, waits) = channel::bounded::<()>(0);
            let work = move || waits.recv().map_err(|_| "let go");
            let nudge = move || if fails { Err("nudge") } else { Ok(5) };
            let times = (Duration::from_millis(1), Duration::from_millis(50));
            let (say, said) = channel::bounded(1);
            std::thread::spawn(move || say.send(nudged(times, work, nudge)));
            let done = said.recv_timeout(Duration::from_secs(20));
            assert_eq!(done, Ok(fails.then_some(Err("nudge"))));
        }
    }
}
