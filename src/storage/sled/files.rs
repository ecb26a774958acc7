//! sled's files besides what sled does with them: made durable, and given up once the disk has
//! refused that.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::super::Space;
use super::border::note_refusal;
use super::links::Links;
use super::sums::{self, Head, Sums};
use crate::disk::access;
use crate::error::{Error, Result};

pub(super) struct Files {
    dir: PathBuf,
    log: File,
    blobs: Mutex<Blobs>,
    /// Whether dropped pages may be overwritten yet.
    wipes: AtomicBool,
    /// The first panic of sled's, or the first sync that the disk refused.
    pub(super) broken: OnceLock<Error>,
    /// Keys of which sled may show what was refused, until it is opened again.
    unknown: Mutex<HashSet<(Space, Vec<u8>)>>,
    /// Bytes that were written since the disk was last asked for its free space.
    unasked: AtomicU64,
    /// Whether there was too little then.
    short: AtomicBool,
}

struct Blobs {
    /// Those that were synced, with the length that they had before and how they begin.
    known: HashMap<OsString, (u64, Option<Head>)>,
    sums: Sums,
    links: Links,
    /// Why there are files that sled must not remove: they have no link.
    unlinked: Option<Error>,
    /// Time of the directory at a look that found every blob old and nothing new.
    settled: Option<SystemTime>,
    /// How often a blob was synced.
    #[cfg(test)]
    synced: u64,
}

/// What there is to note of a blob.
fn noted((name, head): (&OsString, &Option<Head>)) -> Option<(i64, Head)> {
    let name = name.to_str()?;
    let place = name.parse::<i64>().ok().filter(|place| place.to_string() == name)?;
    Some((place, (*head)?))
}

impl Files {
    /// Makes the directories and an empty log if they are not there, and links every large page.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("db");
        let is_fresh = !path.exists();
        // sled would make the directory of large pages with the process's umask.
        let log = access::make_dir(&dir.join("blobs"))
            .and_then(|()| access::private(&path))
            .map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        let links = Links::open(dir)
            .map_err(|e| Error::io(format!("linking the large pages in {}", dir.display()), e))?;
        let blobs = Blobs {
            known: HashMap::new(),
            sums: Sums::default(),
            links,
            unlinked: None,
            settled: None,
            #[cfg(test)]
            synced: 0,
        };
        Ok(Self {
            dir: dir.to_owned(),
            log,
            blobs: Mutex::new(blobs),
            wipes: AtomicBool::new(is_fresh),
            broken: OnceLock::new(),
            unknown: Mutex::default(),
            unasked: AtomicU64::new(0),
            short: AtomicBool::new(true),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn log(&self) -> &File {
        &self.log
    }

    /// Bytes of the log's file; 0 where that cannot be told.
    pub(super) fn log_length(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.broken.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.broken.get_or_init(|| error).clone()
    }

    /// sled holds for this key what was refused, and could not take it back. No more writes are taken.
    pub(super) fn note_unknown(&self, space: Space, key: &[u8]) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.insert((space, key.to_vec()));
    }

    /// For who has read that key, or any.
    pub(super) fn check_known(&self, key: Option<(Space, &[u8])>) -> Result<()> {
        let Some(error) = self.broken.get() else { return Ok(()) };
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unknown = match key {
            Some((space, key)) => unknown.contains(&(space, key.to_vec())),
            None => !unknown.is_empty(),
        };
        if is_unknown { Err(error.clone()) } else { Ok(()) }
    }

    /// Whether sled's buffers may wait for ever: it could not make a write, or has panicked.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get().is_some()
    }

    /// sled could not make a write. No more are taken: behind one that waits for ever, none would
    /// be durable.
    pub(super) fn note_failed(&self, error: &Error) {
        let why = match error {
            Error::DiskFull { during } => format!("the disk is full while {during}"),
            error => error.to_string(),
        };
        // First, for who is told of it may panic.
        self.stop_writing(Error::WriteFailed { why: why.clone() });
        tracing::error!(why, "a write failed; no more writes are taken");
    }

    /// Refuses `bytes` while the disk is nearly full: sled, which writes them later and several
    /// times, takes no more writes, and does not read everything, until it is opened again once
    /// it met a full disk. What is `needed` to go on may go further.
    pub(super) fn check_space(&self, bytes: usize, needed: bool) -> Result<()> {
        /// Left free, or an eighth of a small disk; a quarter of that to what is needed.
        const RESERVE: u64 = 16 << 20;
        const STEP: u64 = 16 << 10;
        /// Left to be made: large pages and changes of the keyring make some.
        const FILES: u64 = 16;

        let bytes = bytes as u64;
        let unasked = self.unasked.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unasked < STEP && !self.short.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.unasked.store(0, Ordering::Relaxed);
        // Where it cannot be told, sled finds out.
        let Ok(disk) = rustix::fs::fstatvfs(&self.log) else { return Ok(()) };
        // Not every file system counts its files.
        if !needed && disk.f_files > 0 && disk.f_favail < FILES {
            self.short.store(true, Ordering::Relaxed);
            let during = format!("writing (files: {} more can be made)", disk.f_favail);
            return Err(Error::DiskFull { during });
        }
        let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        let reserve = RESERVE.min(size / 8);
        self.short.store(free < reserve + bytes, Ordering::Relaxed);
        let reserve = if needed { reserve / 4 } else { reserve };
        if free < reserve + bytes {
            let (free, reserve) = (free >> 10, reserve >> 10);
            let during = format!(
                "writing ({free} KiB are free, {reserve} KiB are kept for what is under way)"
            );
            return Err(Error::DiskFull { during });
        }
        Ok(())
    }

    /// An operating system forgets what it could not write, so a later sync that succeeds would
    /// prove nothing.
    pub(super) fn refused(&self, path: &Path, error: &std::io::Error) -> Error {
        let why = format!("{}: {error}", path.display());
        note_refusal(&self.dir);
        let refused = self.stop_writing(Error::SyncFailed { why: why.clone() });
        tracing::error!(why, "a sync failed; no more writes are taken");
        refused
    }

    /// What was handed to the system: the log after the files that it points to.
    pub(super) fn sync(&self) -> Result<()> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_blobs(&mut blobs)?;
        self.log.sync_data().map_err(|e| self.refused(&self.dir.join("db"), &e))
    }

    /// Refuses where the last look has left a large page without a link: sled must not remove it.
    pub(super) fn check_linked(&self) -> Result<()> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.unlinked.clone().map_or(Ok(()), Err)
    }

    /// From now on dropped pages are overwritten: the database was found whole, or what was found is
    /// taken as it is.
    pub(super) fn begin_wiping(&self) {
        self.wipes.store(true, Ordering::Release);
    }

    /// Overwrites large pages that sled has dropped, and removes their links: at least one, if there
    /// is any, and as long as `goes_on`, but in any case until few are left.
    pub(super) fn wipe_dropped(&self, goes_on: impl Fn() -> bool) {
        const FEW: usize = 256;

        if !self.wipes.load(Ordering::Acquire) {
            return;
        }
        loop {
            let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            let (next, left) = (blobs.links.next_dropped(), blobs.links.dropped());
            drop(blobs);
            let Some(dropped) = next else { return };
            if let Err(error) = dropped.wipe() {
                // It is searched with the other files, and erased with them, or at the next opening.
                let path = dropped.path().display();
                tracing::warn!(%path, %error, "a large page that sled has dropped stays for now");
            }
            if left <= FEW && !goes_on() {
                return;
            }
        }
    }

    /// sled writes pages above a quarter of a segment to files of their own, never syncs
    /// them, and removes them as they are: each gets a link first ([`Links`]). It writes them in place, so a file may have been looked at while it still grew: one
    /// that is longer than it was, or young, is synced again. While nothing is young, the
    /// directory's time tells whether there are new ones.
    fn sync_blobs(&self, blobs: &mut Blobs) -> Result<()> {
        /// Far above the steps of a file system's clock, and what one write of a blob takes.
        const OLD: Duration = Duration::from_secs(10);

        let dir = self.dir.join("blobs");
        let during = |e| Error::io(format!("looking at {}", dir.display()), e);
        let changed = fs::metadata(&dir).and_then(|meta| meta.modified()).map_err(during)?;
        if blobs.settled == Some(changed) {
            return Ok(());
        }
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > OLD);
        let mut settled = is_old(changed);
        let (mut present, mut new) = (HashMap::new(), Vec::new());
        let (mut inodes, mut unlinked) = (HashSet::new(), None);
        for entry in fs::read_dir(&dir).map_err(during)? {
            let name = entry.map_err(during)?.file_name();
            let path = dir.join(&name);
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                // Removed by sled since it was listed: nothing points to it any more.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(during(e)),
            };
            if !meta.is_file() {
                let what = if meta.is_symlink() { "a symbolic link" } else { "no plain file" };
                return Err(Error::OutsideStore { path, what });
            }
            match blobs.links.hold(meta.ino(), &path) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound && !path.exists() => continue,
                Err(e) => unlinked = Some(Error::io(format!("linking {}", path.display()), e)),
            }
            inodes.insert(meta.ino());
            settled &= is_old(meta.modified().map_err(during)?);
            let known = blobs.known.get(&name).filter(|(len, _)| *len == meta.len());
            let mut head = known.and_then(|(_, head)| *head);
            if known.is_none() {
                settled = false;
                match File::open(&path) {
                    Ok(blob) => {
                        // sled makes it with the process's umask.
                        if let Err(error) = access::tighten_file(&blob) {
                            tracing::warn!(%error, path = %path.display(), "others may read it");
                        }
                        blob.sync_all().map_err(|e| self.refused(&path, &e))?;
                        #[cfg(test)]
                        {
                            blobs.synced += 1;
                        }
                        // What came after the sync began is not durable, and must not be noted.
                        head = match meta.len() >= sums::HEAD as u64 {
                            true => sums::head(&blob),
                            false => None,
                        };
                        new.extend(noted((&name, &head)));
                    }
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(during(e)),
                }
            }
            present.insert(name, (meta.len(), head));
        }
        let links = blobs.links.sync();
        let links = links.map_err(|e| self.refused(&self.dir.join("links"), &e));
        blobs.unlinked = links.err().or(unlinked);
        let misses = blobs.links.miss_any(&inodes);
        if misses || present.keys().any(|name| !blobs.known.contains_key(name)) {
            let opened = File::open(&dir).map_err(during)?;
            opened.sync_all().map_err(|e| self.refused(&dir, &e))?;
        }
        if misses {
            blobs.links.drop_missing(&inodes);
        }
        // Only once the names are durable: before that, a power cut may bring back what recovery has
        // just removed from one of them.
        if !new.is_empty() {
            let all: Vec<_> =
                present.iter().filter_map(|(name, (_, head))| noted((name, head))).collect();
            if let Err(error) = blobs.sums.note(&self.dir, &new, all.into_iter()) {
                tracing::warn!(%error, "the large pages' checksums are not noted");
            }
        }
        blobs.settled = (settled && blobs.unlinked.is_none()).then_some(changed);
        blobs.known = present;
        Ok(())
    }

    /// For a database that nobody has open any more, and that was synced: durably notes the large
    /// pages that are there.
    pub(super) fn note_blobs(&self) -> std::io::Result<()> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> =
            blobs.known.iter().filter_map(|(name, (_, head))| noted((name, head))).collect();
        blobs.sums.note_all(&self.dir, all.into_iter())?;
        File::open(sums::path(&self.dir))?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    /// The length that a blob had when it was last synced, whether all of them are settled, and how
    /// often one was synced.
    #[cfg(test)]
    pub(super) fn known_blob(&self, name: &std::ffi::OsStr) -> (Option<u64>, bool, u64) {
        let blobs = self.blobs.lock().unwrap();
        (blobs.known.get(name).map(|(len, _)| *len), blobs.settled.is_some(), blobs.synced)
    }
}
