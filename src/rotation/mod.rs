//! Rotation in the background: install → activate → rewrite → verify → retire.
//!
//! Installing and activating happen in the call that asks for them. The rest is the worker's:
//! one coordinating thread that takes the rotating orgs in turn, and `n` threads that open and
//! seal. What is under way is read from the keyring, so a killed store goes on by itself.

mod count;
mod erase;
mod handle;
mod hold;
mod pass;
mod progress;
mod retire;
mod task;
mod throttle;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{self, Sender};

use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};
use crate::id::OrgId;

pub(crate) use count::HeaderCount;
pub(crate) use handle::Target;
pub use handle::{Erasure, Rotation};
pub(crate) use hold::release;
pub use progress::{Phase, Progress};
pub use throttle::Throttle;

/// What handles and worker share.
pub(crate) struct Rotations {
    pub(crate) engine: Arc<Engine>,
    commands: Sender<Command>,
    board: Mutex<Board>,
    changed: Condvar,
}

struct Board {
    reports: HashMap<OrgId, Report>,
    throttle: Throttle,
}

/// How one org's rotation stands.
#[derive(Clone)]
struct Report {
    progress: Progress,
    /// Why the rotation cannot end; cleared when it is resumed.
    blocked: Option<Error>,
}

enum Command {
    /// The org's keyring entry may have changed, or what blocked it may be mended.
    Wake(Arc<OrgState>),
    /// The org's keys are destroyed; its records are to go.
    Erase(Arc<OrgState>),
    Pause(OrgId, bool),
    /// The throttle was changed.
    Pace,
    Stop,
}

/// The worker's thread, joined when the store closes.
#[derive(Debug)]
pub(crate) struct WorkerThread(Option<JoinHandle<()>>);

impl Rotations {
    /// Starts the worker with every rotation that the keyring says is unfinished.
    pub(crate) fn start(
        engine: Arc<Engine>,
        workers: usize,
        throttle: Throttle,
    ) -> Result<(Arc<Self>, WorkerThread)> {
        let (commands, received) = channel::unbounded();
        let rotations = Arc::new(Self {
            engine,
            commands,
            board: Mutex::new(Board { reports: HashMap::new(), throttle }),
            changed: Condvar::new(),
        });
        for org in rotations.engine.rotating() {
            tracing::info!(org = %org.name, "going on with an unfinished rotation");
            rotations.wake(&org);
        }
        for org in rotations.engine.half_erased() {
            tracing::info!(org = %org.name, "going on with an unfinished erasure");
            rotations.erase(&org);
        }
        let shared = Arc::clone(&rotations);
        let thread = std::thread::Builder::new()
            .name("byokv-rotation".to_owned())
            .spawn(move || worker::run(&shared, &received, workers))
            .map_err(|e| Error::io("starting the rotation's thread", e))?;
        Ok((rotations, WorkerThread(Some(thread))))
    }

    pub(crate) fn wake(&self, org: &Arc<OrgState>) {
        {
            let mut board = self.board();
            let report = board.reports.entry(org.id);
            let report = report.or_insert_with(|| Report::queued(&org.name));
            report.blocked = None;
            if report.progress.phase == Phase::Done {
                *report = Report::queued(&org.name);
            }
        }
        // The worker is gone only when the store is closed.
        let _ = self.commands.send(Command::Wake(Arc::clone(org)));
    }

    pub(crate) fn erase(&self, org: &Arc<OrgState>) {
        self.board().reports.insert(org.id, Report::queued(&org.name));
        let _ = self.commands.send(Command::Erase(Arc::clone(org)));
    }

    pub(crate) fn pause(&self, org: &OrgState, paused: bool) {
        if let Some(report) = self.board().reports.get_mut(&org.id)
            && report.progress.phase != Phase::Done
        {
            report.progress.paused = paused;
        }
        let _ = self.commands.send(Command::Pause(org.id, paused));
    }

    pub(crate) fn set_throttle(&self, throttle: Throttle) {
        self.board().throttle = throttle;
        let _ = self.commands.send(Command::Pace);
    }

    pub(crate) fn throttle(&self) -> Throttle {
        self.board().throttle.clone()
    }

    pub(crate) fn progress(&self, org: &OrgState) -> Option<Progress> {
        self.board().reports.get(&org.id).map(|report| report.progress.clone())
    }

    pub(crate) fn is_rotating(&self, org: &OrgState) -> bool {
        let rotating = |entry: &crate::keyring::OrgEntry| entry.is_rotating();
        self.engine.with_keyring(|keyring| keyring.entry(org.id).is_some_and(rotating))
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a report on the board and wakes those who wait for it.
    fn report(&self, org: OrgId, report: Report) {
        let mut board = self.board();
        let paused = board.reports.get(&org).is_some_and(|old| old.progress.paused);
        let progress = Progress { paused, ..report.progress };
        board.reports.insert(org, Report { progress, ..report });
        self.changed.notify_all();
    }
}

impl Report {
    fn queued(org: &str) -> Self {
        Self { progress: Progress::queued(org), blocked: None }
    }
}

impl WorkerThread {
    /// Stops the worker after the chunks in hand and wakes everyone who waits.
    pub(crate) fn stop(&mut self, rotations: &Rotations) {
        let _ = rotations.commands.send(Command::Stop);
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            tracing::error!("the rotation's thread had panicked");
        }
        let _board = rotations.board();
        rotations.changed.notify_all();
    }
}
