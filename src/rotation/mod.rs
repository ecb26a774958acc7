//! Rotation in the background: install → activate → rewrite → verify → retire.
//!
//! Installing and activating happen in the call that asks for them. The rest is the worker's:
//! one coordinating thread that takes the rotating orgs in turn, and `n` threads that open and
//! seal. What is under way is read from the keyring, so a killed store goes on by itself.

mod count;
mod due;
mod erase;
mod governor;
mod handle;
mod hold;
mod job;
mod pass;
mod progress;
mod retire;
mod spans;
mod task;
mod thread;
mod throttle;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{self, Sender};
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};
use crate::id::OrgId;
use crate::storage::Space;
use crate::time::{plain, rfc3339};

pub(crate) use count::HeaderCount;
use governor::Missed;
pub use handle::{Erasure, Rotation};
pub(crate) use handle::{Leaving, Target};
pub(crate) use hold::release;
pub use progress::{Phase, Progress};
pub(crate) use thread::NICEST;
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
    settings: Settings,
    /// What holds now: that of the settings, or the one that the store was opened with.
    throttle: Throttle,
    /// Of whose rotation somebody wants to know how far it has got.
    asked: BTreeSet<OrgId>,
    /// The target of the throttle that will be missed.
    missed: Option<Missed>,
}

/// What an operator has set, kept in the database.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Settings {
    #[serde(deserialize_with = "throttle::read_or_unlimited")]
    throttle: Throttle,
    paused: BTreeSet<OrgId>,
}

const SETTINGS_KEY: &[u8] = b"settings";

/// How one org's rotation stands.
#[derive(Clone)]
struct Report {
    progress: Progress,
    /// Why the rotation cannot end; cleared when it is resumed.
    blocked: Option<Error>,
    /// When a hold ends, on the store's observed clock, milliseconds.
    held_until: Option<u64>,
    /// Which waking it comes after.
    woken: u64,
}

enum Command {
    /// The org's keyring entry may have changed, or what blocked it may be mended.
    ///
    /// Counted for each org: what is reported before a waking was seen says nothing about it.
    Wake(Arc<OrgState>, u64),
    /// The org's keys are destroyed; its records are to go.
    Erase(Arc<OrgState>, u64),
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
        niceness: u8,
        throttle: Option<Throttle>,
    ) -> Result<(Arc<Self>, WorkerThread)> {
        let starting = |e| Error::io("starting the rotation's threads", e);
        let settings: Option<Settings> = engine.kept(SETTINGS_KEY)?;
        if settings.is_none() && engine.storage.get(Space::System, SETTINGS_KEY)?.is_some() {
            tracing::error!("what was set for rotations cannot be read: paused ones go on");
        }
        let settings = settings.unwrap_or_default();
        let throttle = throttle.unwrap_or_else(|| settings.throttle.clone());
        let (commands, received) = channel::unbounded();
        let rotations = Arc::new(Self {
            engine,
            commands,
            board: Mutex::new(Board {
                reports: HashMap::new(),
                settings,
                throttle,
                asked: BTreeSet::new(),
                missed: None,
            }),
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
        let (say_started, started) = channel::bounded(1);
        let thread = std::thread::Builder::new()
            .name("byokv-rotation".to_owned())
            .spawn(move || worker::run(&shared, &received, (workers, niceness), &say_started))
            .map_err(starting)?;
        let started = started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        if let Err(error) = started {
            // Nothing holds the store when that is told.
            let _ = thread.join();
            return Err(starting(error));
        }
        Ok((rotations, WorkerThread(Some(thread))))
    }

    /// Nothing happens where there is nothing to rotate: it may have ended meanwhile.
    pub(crate) fn wake(&self, org: &Arc<OrgState>) {
        if !self.is_rotating(org) {
            return;
        }
        let mut held = self.board();
        let board = &mut *held;
        let report = board.reports.entry(org.id);
        let report = report.or_insert_with(|| Report::queued(&org.name));
        if report.progress.phase == Phase::Done {
            *report = Report { woken: report.woken, ..Report::queued(&org.name) };
            board.asked.remove(&org.id);
        }
        report.progress.paused = board.settings.paused.contains(&org.id);
        report.blocked = None;
        report.woken += 1;
        let woken = report.woken;
        self.send(board, Command::Wake(Arc::clone(org), woken));
    }

    pub(crate) fn erase(&self, org: &Arc<OrgState>) {
        let mut board = self.board();
        let woken = board.reports.get(&org.id).map_or(0, |report| report.woken) + 1;
        board.reports.insert(org.id, Report { woken, ..Report::queued(&org.name) });
        self.send(&board, Command::Erase(Arc::clone(org), woken));
    }

    /// While the board is held, so that the worker sees wakings in the order of their numbers.
    fn send(&self, _board: &Board, command: Command) {
        // The worker is gone only when the store is closed.
        let _ = self.commands.send(command);
    }

    /// Pauses or resumes, until that is changed: also over a restart.
    pub(crate) fn pause(&self, org: &OrgState, paused: bool) -> Result<()> {
        let mut board = self.board();
        if paused {
            // An erasure is not to be paused, and none begins while the board is held.
            org.check_exists()?;
        }
        if let Some(report) = board.reports.get_mut(&org.id)
            && report.progress.phase != Phase::Done
        {
            report.progress.paused = paused;
        }
        self.send(&board, Command::Pause(org.id, paused));
        self.set(board, |settings| {
            if paused {
                settings.paused.insert(org.id);
            } else {
                settings.paused.remove(&org.id);
            }
        })
    }

    pub(crate) fn is_paused(&self, org: OrgId) -> bool {
        self.board().settings.paused.contains(&org)
    }

    pub(crate) fn set_throttle(&self, throttle: Throttle) -> Result<()> {
        let mut board = self.board();
        board.throttle = throttle.clone();
        let set = self.set(board, |settings| settings.throttle = throttle);
        let _ = self.commands.send(Command::Pace);
        set
    }

    pub(crate) fn throttle(&self) -> Throttle {
        self.board().throttle.clone()
    }

    fn set(&self, mut board: MutexGuard<'_, Board>, set: impl FnOnce(&mut Settings)) -> Result<()> {
        set(&mut board.settings);
        self.engine.keep(SETTINGS_KEY, &board.settings)?;
        drop(board);
        self.engine.written();
        self.engine.sync()
    }

    pub(crate) fn progress(&self, org: &OrgState) -> Option<Progress> {
        let mut board = self.board();
        let report = board.reports.get(&org.id)?;
        let mut progress = report.progress.clone();
        if let Some(until) = report.held_until {
            progress.reason = Some(self.held(until));
        }
        if progress.phase != Phase::Done {
            board.asked.insert(org.id);
        }
        if progress.phase == Phase::Rewriting && !progress.paused {
            progress.warning = board.missed.as_ref().map(ToString::to_string);
        }
        Some(progress)
    }

    /// How long a hold still lasts, for people: the time of its end holds only if the store stays
    /// open until then and no clock is set.
    fn held(&self, until: u64) -> String {
        let left = until.saturating_sub(self.engine.clock.observed());
        let wall = self.engine.clock.wall();
        let end = wall.map_or_else(
            |_| String::new(),
            |wall| format!(", until {} at the earliest", rfc3339(wall.saturating_add(left))),
        );
        format!("the old key is held for {} of observed time{end}", plain(left))
    }

    /// Whether the records that its rotation has left are worth counting.
    fn is_asked(&self, org: OrgId) -> bool {
        self.board().asked.contains(&org)
    }

    /// Keeps for [`progress`](Self::progress) which target will be missed.
    fn miss(&self, missed: Option<Missed>, changed: bool) {
        let mut board = self.board();
        if changed && let Some(missed) = &missed {
            tracing::warn!(%missed, "rotations miss a target of their throttle");
        }
        board.missed = missed;
        if changed {
            self.changed.notify_all();
        }
    }

    pub(crate) fn is_rotating(&self, org: &OrgState) -> bool {
        let rotating = |entry: &crate::keyring::OrgEntry| entry.is_rotating();
        self.engine.with_keyring(|keyring| keyring.entry(org.id).is_some_and(rotating))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a report on the board and wakes those who wait for it.
    fn report(&self, org: OrgId, report: Report) {
        let mut board = self.board();
        let old = board.reports.get(&org);
        let paused = old.is_some_and(|old| old.progress.paused);
        let progress = Progress { paused, ..report.progress };
        // Somebody did something about it meanwhile, which the worker has yet to see.
        let woken = old.map_or(0, |old| old.woken);
        let blocked = report.blocked.filter(|_| report.woken == woken);
        let held_until = report.held_until;
        board.reports.insert(org, Report { progress, blocked, held_until, woken });
        self.changed.notify_all();
    }
}

impl Report {
    fn queued(org: &str) -> Self {
        Self { progress: Progress::queued(org), blocked: None, held_until: None, woken: 0 }
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
