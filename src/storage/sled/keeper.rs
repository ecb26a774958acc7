//! Keeps sled from using space again before what took its place is durable, and makes it durable.
//!
//! sled uses space again once every thread that was pinned before has let go (`pins.rs`). So a thread
//! of ours stays pinned, and lets go only after a sync that began later.
//!
//! The thread also flushes sled for all others: a flush may never end once a write of sled's has
//! failed (it leaves a buffer that waits for its writer), and only this thread is lost then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::border::{await_release, guarded};
use super::closed;
use super::files::Files;
use super::flush::{self, Flushes};
use super::pins::Pins;
use super::tail::{Durable, Noted};
use crate::error::{Error, Result};

/// How often whoever waits for a flush looks whether it can still come.
pub(super) const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Keeper {
    files: Arc<Files>,
    flushes: Arc<Flushes>,
    /// Bytes that were written since the last turn.
    written: Arc<AtomicU64>,
    /// Dropped to end the thread.
    asks: Option<Sender<Ask>>,
    /// Never sent to: disconnected once the thread has ended.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

enum Ask {
    /// Flush and sync, and say how that went.
    Sync(Sender<Result<()>>),
    /// Flush.
    Flush,
    Turn,
}

impl Keeper {
    /// While the thread is pinned, sled's old pages stay in memory too: a turn is due after so
    /// many bytes, or after so long. With 8 MiB, buffered writes were slower and took more memory.
    const BYTES: u64 = 1 << 20;
    const LONGEST: Duration = Duration::from_millis(500);
    /// Between two turns, however much is written.
    const SHORTEST: Duration = Duration::from_millis(25);

    /// Opens sled by `open` once the thread is pinned.
    pub(super) fn start<T>(
        files: Arc<Files>,
        segment_size: usize,
        open: impl FnOnce() -> Result<(sled::Db, T)>,
    ) -> Result<(T, Self)> {
        let (asks, asked) = channel::unbounded();
        let (say_pinned, pinned) = channel::bounded(1);
        let (go, opened) = channel::bounded(1);
        let (say_noted, noted) = channel::bounded(1);
        let (alive, ended) = channel::bounded(0);
        let written = Arc::new(AtomicU64::new(0));
        let (of_thread, counted) = (Arc::clone(&files), Arc::clone(&written));
        let flushes = Arc::new(Flushes::default());
        let flushed = Arc::clone(&flushes);
        let thread = std::thread::Builder::new()
            .name("byokv-keeper".to_owned())
            .spawn(move || {
                let _alive: Sender<()> = alive;
                let mut pins = Pins::new();
                let _ = say_pinned.send(());
                let Ok(db) = opened.recv() else { return };
                let durable = Durable::open(of_thread.dir());
                let durable =
                    durable.map_err(|e| Error::io("opening the note of what is durable", e));
                let first = durable.and_then(|mut durable| {
                    pins.turn(&of_thread, (&db, segment_size), (&flushed, &mut durable))?;
                    Ok(durable)
                });
                match first {
                    Ok(durable) => {
                        let _ = say_noted.send(Ok(()));
                        let (files, flushes) = (of_thread, flushed);
                        let work = Work { files, flushes, segment_size, db, pins, durable };
                        work.run(&counted, &asked);
                    }
                    Err(error) => {
                        close(&of_thread, db);
                        let _ = say_noted.send(Err(error));
                    }
                }
            })
            .map_err(|e| Error::io("starting a thread", e))?;
        let gone = |_| Error::io("starting a thread", std::io::ErrorKind::BrokenPipe.into());
        pinned.recv().map_err(gone)?;
        // Without a word the thread ends.
        let (db, opened) = open()?;
        let _ = go.send(db);
        if let Err(error) = noted.recv().map_err(gone).flatten() {
            // These are the last handles now.
            close(&files, opened);
            return Err(error);
        }
        let (asks, thread) = (Some(asks), Some(thread));
        Ok((opened, Self { files, flushes, written, asks, ended, thread }))
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    pub(super) fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// Counts what is written.
    pub(super) fn wrote(&self, bytes: usize) {
        let before = self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if before < Self::BYTES && before + bytes as u64 >= Self::BYTES {
            self.ask(Ask::Turn);
        }
    }

    /// Has what is in sled's last buffer written, soon.
    pub(super) fn flush(&self) {
        self.ask(Ask::Flush);
    }

    fn ask(&self, ask: Ask) {
        if let Some(asks) = &self.asks {
            // Should the thread have ended, nobody answers, which is noticed.
            let _ = asks.send(ask);
        }
    }

    /// Returns when all that was written before is durable. `write` writes something to sled,
    /// `reached` tells how far its log is written: a flush during which that stands still for
    /// `longest` waits for what never comes, as where a thread of sled's has ended in the middle.
    pub(super) fn sync(
        &self,
        write: impl Fn() -> Result<()>,
        reached: impl Fn() -> i64,
        longest: Duration,
    ) -> Result<()> {
        let (reply, answer) = channel::bounded(1);
        self.ask(Ask::Sync(reply));
        let mut seen = (reached(), Instant::now());
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    self.files.check_writable()?;
                    let why = "the thread that syncs has ended".to_owned();
                    return Err(self.files.stop_writing(Error::SyncFailed { why }));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.files.check_writable()?;
                    // Not every failure of sled's wakes those who wait for a flush; the next
                    // write does.
                    // First, for a write may wait as well.
                    let now = reached();
                    if now != seen.0 || !self.flushes.is_flushing() {
                        seen = (now, Instant::now());
                    } else if seen.1.elapsed() > longest {
                        let why = format!("sled has not written its log for {longest:?}");
                        return Err(self.files.stop_writing(Error::SyncFailed { why }));
                    }
                    write()?;
                }
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        const LONGEST: Duration = Duration::from_secs(5);

        self.asks = None;
        if self.files.is_broken()
            && self.ended.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout)
        {
            tracing::error!(
                "sled does not close; end the process before the store is opened again"
            );
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper had panicked");
        }
    }
}

/// What the thread works with.
struct Work {
    files: Arc<Files>,
    flushes: Arc<Flushes>,
    segment_size: usize,
    db: sled::Db,
    pins: Pins,
    durable: Durable,
}

impl Work {
    fn flush(&self) -> Result<()> {
        let flush = || self.flushes.flush(&self.db);
        let flushed = guarded(self.files.dir(), "flushing", Some(&self.files.broken), flush);
        if let Err(error @ (Error::Io { .. } | Error::DiskFull { .. })) = &flushed {
            self.files.note_failed(error);
        }
        // A batch before the flush may have failed meanwhile.
        flushed.and_then(|()| self.files.check_writable())
    }

    fn run(mut self, written: &AtomicU64, asked: &Receiver<Ask>) {
        let (mut turned, mut wanted) = (Instant::now(), false);
        loop {
            let due_at = turned + if wanted { Keeper::SHORTEST } else { Keeper::LONGEST };
            let due = match asked.recv_deadline(due_at) {
                Ok(Ask::Sync(reply)) => {
                    let flushed = self.flush();
                    let _ = reply.send(flushed.and_then(|()| self.files.sync()));
                    Instant::now() >= due_at
                }
                Ok(Ask::Flush) => {
                    // Whoever syncs or writes next meets an error.
                    let _ = self.flush();
                    Instant::now() >= due_at
                }
                Ok(Ask::Turn) => {
                    wanted = true;
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if !due {
                continue;
            }
            (turned, wanted) = (Instant::now(), false);
            // After a refused sync it stays pinned: nothing is freed any more.
            if self.files.check_writable().is_ok() {
                written.store(0, Ordering::Relaxed);
                let log = (&self.db, self.segment_size);
                let turn = self.pins.turn(&self.files, log, (&self.flushes, &mut self.durable));
                if let Err(error) = turn {
                    // Noted in `files` too, and met by the next write.
                    tracing::warn!(%error, "space is not used again for now");
                }
                // Whoever waits for a sync goes first.
                self.files.wipe_dropped(|| asked.is_empty());
            }
        }
        let closed = close_in_time(&self.files, self.db);
        // No more space is used again, and who opens the files without us may. Where sled does not
        // close, what is noted stays: it wrote no more.
        if self.files.check_writable().is_ok() {
            let noted = self.files.sync().and_then(|()| match closed {
                true => note_closed(&self.files, self.segment_size, &mut self.durable),
                false => Ok(()),
            });
            if let Err(error) = noted {
                tracing::warn!(%error, "closing the database");
            }
            if closed {
                self.files.wipe_dropped(|| true);
            }
        }
    }
}

/// Notes how the database was left, once nothing of sled's works on its files any more: a thread of
/// sled's may still shorten the log. Else that it was closed is all there is to say.
fn note_closed(files: &Files, segment_size: usize, durable: &mut Durable) -> Result<()> {
    const LONGEST: Duration = Duration::from_secs(1);

    let during = |e| Error::io("noting how the database was left", e);
    let left = match await_release(files.dir(), LONGEST) {
        Ok(()) => {
            files.sync()?;
            if let Noted::From(from) = durable.noted()
                && !closed::is_written(files.log(), segment_size, from).map_err(during)?
            {
                // What was noted stays: the next opening cuts the log off there.
                return Ok(());
            }
            files.note_blobs().map_err(during)?;
            closed::look(files.log(), segment_size).map_err(during)?
        }
        Err(_) => None,
    };
    durable.note_in(files, left.map_or(Noted::Nothing, Noted::Closed))
}

/// [`close`], and whether it ended. sled waits until its own thread says that it has, which it never
/// does if it has panicked, as where the file of a page is gone (`flusher.rs`): then what it holds
/// is left to the end of the process. The caller must let go of its pins all the same: others in the
/// process wait for them.
fn close_in_time(files: &Arc<Files>, db: sled::Db) -> bool {
    /// In which the log does not change.
    const LONGEST: Duration = Duration::from_secs(10);

    let (alive, ended) = channel::bounded::<()>(0);
    let of_thread = Arc::clone(files);
    let closing = std::thread::Builder::new().name("byokv-closing".to_owned()).spawn(move || {
        let _alive = alive;
        if of_thread.is_broken() {
            // If sled's own flush never ends, it holds up all stores of the process.
            let dir = of_thread.dir();
            let _ = guarded(dir, "flushing", None, || flush::flush(&db));
        }
        close(&of_thread, db);
    });
    // Without the thread its closure is dropped, and the handle with it.
    let Ok(_detached) = closing else { return true };
    let log = || files.log().metadata().and_then(|log| Ok((log.modified()?, log.len()))).ok();
    loop {
        let before = log();
        if ended.recv_timeout(LONGEST) != Err(RecvTimeoutError::Timeout) {
            return true;
        }
        if log() == before {
            tracing::error!(
                "sled does not close; end the process before the store is opened again"
            );
            return false;
        }
    }
}

/// Lets go of the last handles: sled flushes, and panics if that fails.
fn close<T>(files: &Files, handles: T) {
    let closed = guarded(files.dir(), "closing", Some(&files.broken), || {
        drop(handles);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::error!(%error, "closing the database; what was acknowledged as durable is safe");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;
    use crate::material::KeyMaterial;
    use crate::storage::Space;

    #[test]
    fn a_panic_of_the_last_handle_is_not_ours() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("as sled does where it cannot flush");
            }
        }

        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(dir.path()).unwrap());
        // What is durable cannot be noted.
        std::fs::create_dir(dir.path().join("durable")).unwrap();
        let open = || Ok((sled::Config::new().path(dir.path()).open().unwrap(), Panics));
        let started = Keeper::start(files, 512 << 10, open);
        assert!(matches!(started, Err(Error::Io { .. })));
    }

    /// Nobody waits for ever for a flush that does not end: neither who syncs or closes, nor the
    /// batches of other databases.
    #[test]
    fn a_flush_that_stands_still_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(dir.path()).unwrap());
        let db = sled::Config::new().path(dir.path()).open().unwrap();
        let started = Keeper::start(Arc::clone(&files), 512 << 10, || Ok((db.clone(), ())));
        // As a write leaves it that fails before it is in its buffer.
        let log = &db.context.pagecache.log;
        let left = log.reserve(sled::LogKind::Free, 0, &(), &sled::pin()).unwrap();
        let ((), keeper) = started.unwrap();
        let looks = AtomicU64::new(0);
        let moves = || i64::try_from(looks.fetch_add(1, Ordering::Relaxed)).unwrap().min(3);
        let synced = keeper.sync(|| Ok(()), moves, LOOK);
        assert!(matches!(synced, Err(Error::SyncFailed { .. })), "{synced:?}");
        assert!(looks.into_inner() > 4, "it moved at first");
        drop(keeper);
        let other = tempfile::tempdir().unwrap();
        let other = sled::open(other.path()).unwrap();
        other.apply_batch(sled::Batch::default()).unwrap();
        // What waits is part of this process, and others are pinned by it.
        drop(left);
    }

    /// The collector is the process's: whoever else uses it must not wait for our next write.
    #[test]
    fn what_others_deferred_is_done_while_the_store_rests() {
        const LONGEST: Duration = Duration::from_secs(60);

        let dir = tempfile::tempdir().unwrap();
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        let storage = SledStorage::open(&dir.path().join("db"), &options, &key, false).unwrap();
        storage.begin().unwrap();
        storage.put(Space::Records, b"a", Some(vec![1])).unwrap();
        storage.sync().unwrap();
        let start = Instant::now();
        // The last ones are deferred once nothing has been written for long.
        for rests in [Duration::ZERO, Duration::from_secs(5)] {
            let done = Arc::new(AtomicBool::new(false));
            while start.elapsed() < rests {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            let in_time = Arc::clone(&done);
            crossbeam_epoch::pin().defer(move || in_time.store(true, Ordering::Release));
            while !done.load(Ordering::Acquire) {
                assert!(start.elapsed() < LONGEST);
                crossbeam_epoch::pin().flush();
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }
}
