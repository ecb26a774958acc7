//! Opening records on several threads, ahead of who takes them.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::vec;

use crossbeam::channel::{self, Receiver, Sender};

use super::scan::{End, Found, Record, Scan, Source, open};
use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};

/// Records opened in one go, and bytes that end it.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 512 << 10;
const MOST_THREADS: usize = 64;

type Batch = Vec<Result<Record>>;

/// A [`Scan`] whose records are opened by threads of its own, ahead of who takes them, in the
/// same order. Made by [`Scan::parallel`].
///
/// Each thread is at most three batches ahead, of 256 records or 512 KiB (a larger value is a
/// batch of its own): a record that changes between is given as it was. Dropping the scan ends
/// its threads.
pub struct ParallelScan {
    /// `None` at the end. What is received in turn are the batches to be.
    batches: Option<Receiver<Receiver<Batch>>>,
    batch: vec::IntoIter<Result<Record>>,
    threads: Vec<JoinHandle<()>>,
    org: Arc<OrgState>,
}

struct Shared {
    /// First, as in [`Scan`].
    line: Mutex<Line>,
    engine: Arc<Engine>,
    org: Arc<OrgState>,
}

/// Who holds it takes the next batch out of the storage and the place for it in the order.
struct Line {
    source: Source,
    batches: Sender<Receiver<Batch>>,
}

impl ParallelScan {
    pub(super) fn start(scan: Scan, threads: usize) -> Result<Self> {
        if !(1..=MOST_THREADS).contains(&threads) {
            return Err(Error::InvalidOption { option: "threads", why: "1 to 64" });
        }
        let Scan { engine, org, source } = scan;
        // Bounded, and so is what is opened and not yet taken.
        let (places, batches) = channel::bounded(threads * 2);
        let line = Mutex::new(Line { source, batches: places });
        let shared = Arc::new(Shared { engine, org: Arc::clone(&org), line });
        let mut parallel = Self {
            batches: Some(batches),
            batch: Vec::new().into_iter(),
            threads: Vec::with_capacity(threads),
            org,
        };
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("byokv-scan".to_owned());
            let thread = thread.spawn(move || shared.work());
            parallel.threads.push(thread.map_err(|e| Error::io("starting a scan's thread", e))?);
        }
        Ok(parallel)
    }

    /// Ends the threads; `false` if one had panicked.
    fn join(&mut self) -> bool {
        self.batches = None;
        self.threads.drain(..).fold(true, |well, thread| thread.join().is_ok() & well)
    }
}

impl Shared {
    /// Until nothing is left, or nobody takes it.
    fn work(&self) {
        while let Some((found, place)) = self.take() {
            let opened = found.into_iter().filter_map(|found| open(&self.engine, &self.org, found));
            if place.send(opened.collect()).is_err() {
                return;
            }
        }
    }

    fn take(&self) -> Option<(Vec<Result<Found>>, Sender<Batch>)> {
        // Whoever panicked here has lost records: the scan must not go on behind them.
        let mut line = self.line.lock().ok()?;
        let mut found = Vec::with_capacity(BATCH);
        let mut bytes = 0;
        while found.len() < BATCH && bytes < BATCH_BYTES {
            let Some(next) = line.source.take(&self.engine, &self.org, End::Front) else { break };
            if let Ok((_, Some(stored))) = &next {
                bytes += stored.len();
            }
            found.push(next);
        }
        if found.is_empty() {
            return None;
        }
        let (place, batch) = channel::bounded(1);
        line.batches.send(batch).ok()?;
        Some((found, place))
    }
}

impl Iterator for ParallelScan {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.batch.next() {
                return Some(record);
            }
            match self.batches.as_ref()?.recv().map(|batch| batch.recv()) {
                Ok(Ok(batch)) => self.batch = batch.into_iter(),
                // The end, or a thread that panicked before it kept its promise.
                _ if self.join() => return None,
                _ => return Some(Err(Error::Bug { org: self.org.name.to_string() })),
            }
        }
    }
}

impl FusedIterator for ParallelScan {}

impl Drop for ParallelScan {
    fn drop(&mut self) {
        self.join();
    }
}

impl fmt::Debug for ParallelScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParallelScan").field("org", &self.org.name).finish_non_exhaustive()
    }
}
