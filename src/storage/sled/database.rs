//! One database of sled's: real durability, panics caught.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::{Bound, Deref};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::super::{Space, Write};
use super::border::{await_release, forget_cached, guarded, note_refusal, segment_size};
use super::keys::escape;
use crate::error::{Error, Result};

/// A range of keys as sled has them, and a pair.
pub(super) type RawRange = (Bound<sled::IVec>, Bound<sled::IVec>);
pub(super) type RawPair = (sled::IVec, sled::IVec);

/// Settings that are passed on to sled.
#[derive(Clone, Debug)]
pub(crate) struct SledOptions {
    /// Page cache, bytes.
    pub(crate) cache_bytes: u64,
    /// How often sled's own thread writes and collects garbage.
    pub(crate) flush_interval: Duration,
}

/// A value as sled hands it out: shared, not copied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Stored(pub(super) sled::IVec);

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

pub(super) struct Database {
    db: sled::Db,
    records: sled::Tree,
    system: sled::Tree,
    dir: PathBuf,
    durability: Mutex<Durability>,
    /// The first panic of sled's, or the first sync that the disk refused.
    broken: OnceLock<Error>,
}

/// What `sync` knows of sled's files.
struct Durability {
    log: File,
    /// Blobs that were synced, with the length that they had before.
    blobs: HashMap<OsString, u64>,
    /// Time of the directory at a look that found every blob old and nothing new.
    blobs_settled: Option<SystemTime>,
}

impl Database {
    /// Whether `dir` holds a database, found out without opening it.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join("db").exists()
    }

    pub(super) fn open(dir: &Path, options: &SledOptions) -> Result<Self> {
        let millis = u64::try_from(options.flush_interval.as_millis()).unwrap_or(u64::MAX);
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .segment_size(segment_size(dir))
            .flush_every_ms(Some(millis));
        await_release(dir)?;
        forget_cached(dir)?;
        let (db, records, system) = guarded(dir, "opening the database", None, || {
            let db = config.open()?;
            let records = db.open_tree("records")?;
            let system = db.open_tree("system")?;
            Ok((db, records, system))
        })?;
        let log = File::open(dir.join("db"))
            .map_err(|e| Error::io(format!("opening {}", dir.join("db").display()), e))?;
        let durability = Durability { log, blobs: HashMap::new(), blobs_settled: None };
        let storage = Self {
            db,
            records,
            system,
            dir: dir.to_owned(),
            durability: durability.into(),
            broken: OnceLock::new(),
        };
        storage.sync_names()?;
        Ok(storage)
    }

    fn tree(&self, space: Space) -> &sled::Tree {
        match space {
            Space::Records => &self.records,
            Space::System => &self.system,
        }
    }

    fn reading<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        guarded(&self.dir, "reading", Some(&self.broken), f)
    }

    /// Refused once sled has panicked or a sync has failed: its accounts of what is free may be
    /// half changed, and what is written then may go over what is needed.
    fn writing<T>(&self, during: &'static str, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        self.check_writable()?;
        guarded(&self.dir, during, Some(&self.broken), f)
    }

    /// An operating system forgets what it could not write, so a later sync that succeeds would
    /// prove nothing.
    pub(super) fn refused(&self, path: &Path, error: &std::io::Error) -> Error {
        let why = format!("{}: {error}", path.display());
        note_refusal(&self.dir);
        tracing::error!(why, "a sync failed; no more writes are taken");
        self.broken.get_or_init(|| Error::SyncFailed { why }).clone()
    }

    /// sled creates `conf`, `db`, `blobs/` and snapshots and syncs no directory.
    fn sync_names(&self) -> Result<()> {
        let sync = |path: PathBuf| {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|e| Error::io(format!("syncing {}", path.display()), e))
        };
        sync(self.dir.join("conf"))?;
        sync(self.dir.join("blobs"))?;
        sync(self.dir.clone())?;
        self.dir.parent().map_or(Ok(()), |parent| sync(parent.to_owned()))
    }

    /// sled writes pages above a quarter of a segment to files of their own and never syncs
    /// them. It writes them in place, so a file may have been looked at while it still grew: one
    /// that is longer than it was, or young, is synced again. While nothing is young, the
    /// directory's time tells whether there are new ones.
    fn sync_blobs(&self, known: &mut Durability) -> Result<()> {
        /// Far above the steps of a file system's clock, and what one write of a blob takes.
        const OLD: Duration = Duration::from_secs(10);

        let dir = self.dir.join("blobs");
        let during = |e| Error::io(format!("looking at {}", dir.display()), e);
        let changed = fs::metadata(&dir).and_then(|meta| meta.modified()).map_err(during)?;
        if known.blobs_settled == Some(changed) {
            return Ok(());
        }
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > OLD);
        let mut settled = is_old(changed);
        let mut present = HashMap::new();
        for entry in fs::read_dir(&dir).map_err(during)? {
            let name = entry.map_err(during)?.file_name();
            let path = dir.join(&name);
            let meta = match fs::metadata(&path) {
                Ok(meta) => meta,
                // Removed by sled since it was listed: nothing points to it any more.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(during(e)),
            };
            settled &= is_old(meta.modified().map_err(during)?);
            if known.blobs.get(&name) != Some(&meta.len()) {
                settled = false;
                match File::open(&path) {
                    Ok(blob) => blob.sync_all().map_err(|e| self.refused(&path, &e))?,
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(during(e)),
                }
            }
            present.insert(name, meta.len());
        }
        if present.keys().any(|name| !known.blobs.contains_key(name)) {
            let opened = File::open(&dir).map_err(during)?;
            opened.sync_all().map_err(|e| self.refused(&dir, &e))?;
        }
        known.blobs_settled = settled.then_some(changed);
        known.blobs = present;
        Ok(())
    }
}

impl Database {
    pub(super) fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>> {
        let tree = self.tree(space);
        self.reading(|| Ok(tree.get(escape(key))?.map(Stored)))
    }

    pub(super) fn put(&self, space: Space, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        let tree = self.tree(space);
        self.writing("writing", || {
            match value {
                Some(value) => tree.insert(escape(key), value)?,
                None => tree.remove(escape(key))?,
            };
            Ok(())
        })
    }

    pub(super) fn compare_and_swap(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<Vec<u8>>,
    ) -> Result<bool> {
        let tree = self.tree(space);
        self.writing("writing", || Ok(tree.compare_and_swap(escape(key), old, new)?.is_ok()))
    }

    pub(super) fn apply(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for Write { key, value } in writes {
            let key = escape(&key).into_owned();
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let tree = self.tree(space);
        self.writing("writing a batch", || tree.apply_batch(batch))
    }

    /// Over keys as sled has them.
    pub(super) fn range(&self, space: Space, range: RawRange) -> Result<sled::Iter> {
        let tree = self.tree(space);
        self.reading(|| Ok(tree.range(range)))
    }

    pub(super) fn step(
        &self,
        step: impl FnOnce() -> Option<sled::Result<RawPair>>,
    ) -> Result<Option<RawPair>> {
        self.reading(|| step().transpose())
    }

    /// Writes pairs as they came from another database, in pieces of about a mebibyte.
    pub(super) fn apply_raw(&self, space: Space, batch: sled::Batch) -> Result<()> {
        let tree = self.tree(space);
        self.writing("copying", || tree.apply_batch(batch))
    }

    pub(super) fn get_raw(&self, space: Space, key: &[u8]) -> Result<Option<sled::IVec>> {
        let tree = self.tree(space);
        self.reading(|| tree.get(key))
    }

    #[cfg(test)]
    pub(super) fn known_blob(&self, name: &std::ffi::OsStr) -> (Option<u64>, bool) {
        let known = self.durability.lock().unwrap();
        (known.blobs.get(name).copied(), known.blobs_settled.is_some())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `flush` ends in `sync_file_range`, which does not survive a power cut (sled 0.34.7,
    /// `pagecache/iobuf.rs`), so the log is synced here, after the files that it points to.
    pub(super) fn sync(&self) -> Result<()> {
        self.writing("flushing", || self.db.flush())?;
        let mut known = self.durability.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_blobs(&mut known)?;
        known.log.sync_data().map_err(|e| self.refused(&self.dir.join("db"), &e))
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.broken.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.broken.get_or_init(|| error).clone()
    }

    pub(super) fn bytes_on_disk(&self) -> Result<u64> {
        self.reading(|| self.db.size_on_disk())
    }
}
