//! Keeps sled from using space again before what took its place is durable.
//!
//! sled frees a segment of its log, and removes the file of a large page, once what replaced it
//! was handed to the system (`sync_file_range`). It does so by a deferred function of
//! crossbeam-epoch's default collector (`pagecache/iobuf.rs`, `write_to_log`), which runs once
//! every thread that was pinned when it was deferred has let go. So a thread of ours stays
//! pinned, and lets go only after a sync that began later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use crossbeam_epoch::{Guard, LocalHandle, default_collector};

use super::files::Files;
use super::log;
use super::tail::Durable;
use crate::error::{Error, Result};

pub(super) struct Keeper {
    files: Arc<Files>,
    /// Bytes that were written since the last turn.
    written: Arc<AtomicU64>,
    /// Asks for a turn; dropped to end the thread.
    due: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// While the thread is pinned, sled's old pages stay in memory too: a turn is due after so
    /// many bytes, or after so long.
    const BYTES: u64 = 8 << 20;
    const LONGEST: Duration = Duration::from_millis(500);

    /// Returns pinned. sled may be opened by `open` only then.
    pub(super) fn start<T>(
        files: Arc<Files>,
        segment_size: usize,
        open: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Self)> {
        let (due, turns) = channel::bounded(1);
        let (say_pinned, pinned) = channel::bounded(1);
        let (go, opened) = channel::bounded::<()>(1);
        let (say_noted, noted) = channel::bounded(1);
        let written = Arc::new(AtomicU64::new(0));
        let (of_thread, counted) = (Arc::clone(&files), Arc::clone(&written));
        let thread = std::thread::Builder::new()
            .name("byokv-keeper".to_owned())
            .spawn(move || {
                let mut pins = Pins::new();
                let _ = say_pinned.send(());
                if opened.recv().is_err() {
                    return;
                }
                let durable = Durable::open(of_thread.dir());
                let durable =
                    durable.map_err(|e| Error::io("opening the note of what is durable", e));
                let first = durable.and_then(|mut durable| {
                    pins.turn(&of_thread, segment_size, &mut durable)?;
                    Ok(durable)
                });
                match first {
                    Ok(durable) => {
                        let _ = say_noted.send(Ok(()));
                        run(&of_thread, segment_size, &counted, &turns, pins, durable);
                    }
                    Err(error) => drop(say_noted.send(Err(error))),
                }
            })
            .map_err(|e| Error::io("starting a thread", e))?;
        let gone = |_| Error::io("starting a thread", std::io::ErrorKind::BrokenPipe.into());
        pinned.recv().map_err(gone)?;
        // Without a word the thread ends.
        let opened = open()?;
        let _ = go.send(());
        noted.recv().map_err(gone)??;
        let keeper = Self { files, written, due: Some(due), thread: Some(thread) };
        Ok((opened, keeper))
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Counts what was written.
    pub(super) fn wrote(&self, bytes: usize) {
        let before = self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if before < Self::BYTES
            && before + bytes as u64 >= Self::BYTES
            && let Some(due) = &self.due
        {
            let _ = due.try_send(());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.due = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the keeper had panicked");
        }
    }
}

fn run(
    files: &Files,
    segment_size: usize,
    written: &AtomicU64,
    turns: &Receiver<()>,
    mut pins: Pins,
    mut durable: Durable,
) {
    loop {
        let ends = turns.recv_timeout(Keeper::LONGEST) == Err(RecvTimeoutError::Disconnected);
        if ends {
            break;
        }
        // After a refused sync it stays pinned: nothing is freed any more.
        if files.check_writable().is_ok() && written.swap(0, Ordering::Relaxed) > 0 {
            // A failure is noted in `files`, and met by the next write.
            if let Err(error) = pins.turn(files, segment_size, &mut durable) {
                tracing::warn!(%error, "space is not used again for now");
            }
        }
    }
    // sled is closed: no more space is used again, and who opens the files without us may.
    if files.check_writable().is_ok() {
        let noted = files.sync().and_then(|()| {
            durable.note(None).map_err(|e| files.refused(&files.dir().join("durable"), &e))
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "closing the database");
        }
    }
}

/// Two places in the collector, one of them always pinned.
struct Pins {
    places: [LocalHandle; 2],
    held: Option<Guard>,
    next: usize,
}

impl Pins {
    fn new() -> Self {
        let places = [default_collector().register(), default_collector().register()];
        let held = Some(places[0].pin());
        Self { places, held, next: 1 }
    }

    /// 1. pinned anew: what is deferred from now on waits for the next turn;
    /// 2. how far the log has got that was handed to the system, read from its segments;
    /// 3. a sync; must come after 2, or that is not durable;
    /// 4. the note of 2; must come before 5, or a later segment is freed;
    /// 5. the older pin let go.
    ///
    /// If a step fails the older pin stays, and what is freed waits.
    fn turn(&mut self, files: &Files, segment_size: usize, durable: &mut Durable) -> Result<()> {
        let pinned = self.places[self.next].pin();
        let during = |e| Error::io("reading the log's segments", e);
        let segments = log::segments(files.log(), segment_size).map_err(during)?;
        let size = i64::try_from(segment_size).unwrap_or(i64::MAX);
        let reached = match durable.noted() {
            Some(before) => {
                let stable = segments.values().map(|segment| segment.stable).max().unwrap_or(0);
                before.max(stable / size * size)
            }
            // sled was just opened, and everything flushed: it has freed nothing from the
            // segment on that it writes to.
            None => segments.last_key_value().map_or(0, |(lsn, _)| *lsn),
        };
        files.sync()?;
        let note = durable.note(Some(reached));
        note.map_err(|e| files.refused(&files.dir().join("durable"), &e))?;
        self.held = Some(pinned);
        self.next = 1 - self.next;
        Ok(())
    }
}
