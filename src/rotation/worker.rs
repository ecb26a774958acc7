//! The coordinating thread: takes the rotating orgs in turn, hands chunks to the threads, and
//! waits on a condition, never for a time alone.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};

use super::governor::{Governor, Seen};
use super::job::{Amount, Chunk, Done, Job};
use super::task::{Step, Task};
use super::thread::{Work, stand_back};
use super::throttle::{Limits, Pace, Throttle};
use super::{Command, Rotations};

struct Coordinator<'a> {
    shared: &'a Rotations,
    workers: usize,
    /// In the order in which they get their next step.
    tasks: VecDeque<Task>,
    jobs: Sender<Job>,
    outstanding: usize,
    pace: Pace,
    governor: Governor,
}

/// Says whether all threads have started, and if so runs until `Command::Stop`.
pub(super) fn run(
    shared: &Rotations,
    commands: &Receiver<Command>,
    (workers, niceness): (usize, u8),
    started: &Sender<io::Result<()>>,
) {
    // A second chunk for each thread waits in the channel, so that none has to wait for one.
    let (jobs, taken) = channel::bounded::<Job>(workers * 2);
    let (finished, results) = channel::unbounded::<Done>();
    let scope = crossbeam::thread::scope(|scope| {
        for _ in 0..workers {
            let (taken, finished) = (taken.clone(), finished.clone());
            let thread = scope.builder().name("byokv-rewrite".to_owned());
            let thread = thread.spawn(move |_| {
                stand_back(niceness);
                for job in taken {
                    if finished.send(job.run(&shared.engine)).is_err() {
                        break;
                    }
                }
            });
            if let Err(error) = thread {
                // The others end without a channel.
                let _ = started.send(Err(error));
                return;
            }
        }
        drop((taken, finished));
        let _ = started.send(Ok(()));
        let coordinator = Coordinator {
            shared,
            workers,
            tasks: VecDeque::new(),
            jobs,
            outstanding: 0,
            pace: Pace::default(),
            governor: Governor::new(Instant::now()),
        };
        coordinator.run(commands, &results);
    });
    if scope.is_err() {
        tracing::error!("a thread of the rotation panicked");
    }
}

impl Coordinator<'_> {
    fn run(mut self, commands: &Receiver<Command>, results: &Receiver<Done>) {
        loop {
            // Commands first: what is ready at the same time is taken at random below.
            if !commands.try_iter().all(|command| self.obey(command)) {
                break;
            }
            let timeout = self.go_on(Instant::now());
            let timeout = timeout.map_or_else(channel::never, channel::after);
            channel::select! {
                recv(commands) -> command => {
                    if !command.is_ok_and(|command| self.obey(command)) {
                        break;
                    }
                },
                recv(results) -> done => if let Ok(done) = done { self.take(done) },
                recv(timeout) -> _ => {}
            }
            // Whatever else came meanwhile is taken before the next step.
            for done in results.try_iter() {
                self.take(done);
            }
        }
        // What the threads have in hand is counted before they are let go.
        while self.outstanding > 0 {
            let Ok(done) = results.recv() else { return };
            self.take(done);
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Stop => return false,
            Command::Pace => {
                self.pace = Pace::default();
                self.governor = Governor::new(Instant::now());
                self.shared.engine.latency.take();
            }
            Command::Pause(org, paused) => {
                if let Some(task) = self.tasks.iter_mut().find(|task| task.org.id == org) {
                    task.paused = paused;
                    if !paused {
                        task.wake(task.woken, self.shared.is_rotating(&task.org));
                    }
                    self.shared.report(org, task.report());
                }
            }
            Command::Erase(org, woken) => {
                self.tasks.retain(|task| task.org.id != org.id);
                self.tasks.push_back(Task::erasing(org, woken));
            }
            Command::Wake(org, woken) => match self.tasks.iter_mut().find(|t| t.org.id == org.id) {
                Some(task) => task.wake(woken, self.shared.is_rotating(&org)),
                None if !self.shared.is_rotating(&org) => {}
                None => {
                    let mut task = Task::new(org);
                    task.woken = woken;
                    task.paused = self.shared.is_paused(task.org.id);
                    self.tasks.push_back(task);
                }
            },
        }
        true
    }

    fn take(&mut self, done: Done) {
        let now = Instant::now();
        self.outstanding -= 1;
        let limits = self.governor.limits(&self.shared.throttle(), self.workers);
        let came = Amount { records: done.tally.scanned(), bytes: done.tally.bytes };
        self.pace.came_back(now, &limits, done.charged, came);
        self.pace.worked(now, &limits, done.busy);
        if let Some(task) = self.tasks.iter_mut().find(|task| task.org.id == done.org) {
            task.done(&self.shared.engine, now, done);
            self.shared.report(task.org.id, task.report());
        }
    }

    /// Steps the tasks in turn until there is nothing more to do now. How long until there is,
    /// if that is known; a command or a finished chunk comes before.
    fn go_on(&mut self, now: Instant) -> Option<Duration> {
        let engine = &self.shared.engine;
        let throttle = self.shared.throttle();
        self.govern(&throttle, now);
        let limits = self.governor.limits(&throttle, self.workers);
        // How fast they must be taken is not known before they are counted.
        let by_deadline = throttle.finish_by_unix_ms().is_some();
        if by_deadline && self.survey(&limits, by_deadline, now) {
            return Some(self.pace.wait(now));
        }
        let mut idle = 0;
        let mut went = false;
        let mut turns = self.tasks.len();
        let mut earliest: Option<Duration> = None;
        while idle < self.tasks.len() {
            if turns == 0 && went {
                // A long deletion must not keep commands waiting.
                return Some(Duration::ZERO);
            }
            turns = turns.saturating_sub(1);
            let pause = self.pace.wait(now);
            if self.outstanding >= self.workers * 2 || !pause.is_zero() {
                // The threads have enough: time to count, or to wait.
                if self.survey(&limits, by_deadline, now) {
                    return Some(Duration::ZERO);
                }
                return (!pause.is_zero()).then_some(pause.min(Governor::WINDOW));
            }
            let Some(mut task) = self.tasks.pop_front() else { break };
            let chunk = Chunk { records: limits.chunk_records(), at_once: self.workers * 2 };
            match task.step(engine, now, chunk) {
                Step::Job(mut job) => {
                    idle = 0;
                    self.outstanding += 1;
                    job.charged = self.pace.handed_out(now, &limits, job.expected());
                    // The channel has room for all that may be outstanding.
                    let _ = self.jobs.send(job);
                }
                Step::Went => {
                    idle = 0;
                    went = true;
                    self.shared.report(task.org.id, task.report());
                }
                Step::Idle(until) => {
                    idle += 1;
                    if let Some(until) = until {
                        let wait = until.saturating_duration_since(now);
                        earliest = Some(earliest.map_or(wait, |e: Duration| e.min(wait)));
                    }
                }
                Step::Finished => {
                    self.shared.report(task.org.id, task.report());
                    continue;
                }
            }
            self.tasks.push_back(task);
        }
        earliest
    }

    /// Lets the governor look, and tells what it says of missed targets.
    fn govern(&mut self, throttle: &Throttle, now: Instant) {
        let latency = &self.shared.engine.latency;
        latency.ask(throttle.foreground_p99().is_some() && self.tasks.iter().any(Task::works));
        if self.tasks.is_empty() {
            // What it saw says nothing about the next rotation.
            self.governor = Governor::new(now);
            self.shared.miss(None, false);
            return;
        }
        let (tasks, clock) = (&self.tasks, &self.shared.engine.clock);
        let changed = self.governor.look(now, throttle, self.workers, |window| Seen {
            taken: window.map(|_| latency.take()).unwrap_or_default(),
            left: tasks.iter().map(Task::left).sum(),
            rate: tasks.iter().filter_map(Task::rate).reduce(|a, b| a + b),
            time_left: throttle.finish_by_unix_ms().map(|end| {
                // Before 1970 nothing is near.
                let now = clock.wall().unwrap_or_default();
                Duration::from_millis(end.saturating_sub(now))
            }),
        });
        self.shared.miss(self.governor.missed(), changed);
    }

    /// Counts a little for the time left, where somebody asked; `false` if there is nothing to
    /// count, or no time for it in the share that rotations have.
    fn survey(&mut self, limits: &Limits, by_deadline: bool, now: Instant) -> bool {
        if limits.cores.is_finite() && !self.pace.wait(now).is_zero() {
            return false;
        }
        let shared = self.shared;
        let work = Work::begin();
        let surveyed = self.tasks.iter_mut().any(|task| {
            let wanted = by_deadline || shared.is_asked(task.org.id);
            wanted && task.survey(&shared.engine)
        });
        if surveyed {
            self.pace.worked(now, limits, work.done());
        }
        surveyed
    }
}
