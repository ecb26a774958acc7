//! Steers rotations towards a target by what it measures: an end in time, and reads and writes
//! that stay quick. Time is a parameter.

use std::fmt;
use std::time::{Duration, Instant};

use super::throttle::{Limits, Throttle};
use crate::engine::Taken;

/// What is looked at in a window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Of reads and writes.
    pub(super) taken: Taken,
    /// Records that no pass has reached, once they are counted.
    pub(super) left: Option<u64>,
    /// Records per second of late.
    pub(super) rate: Option<f64>,
    /// Until they should be finished; zero once that is over.
    pub(super) time_left: Option<Duration>,
}

/// Why a target will be missed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Missed {
    /// The end comes so much later, at this rate.
    Late(Duration),
    /// 99 of 100 reads and writes take at most this, and the rotation is at its slowest.
    Slow(Duration),
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(by) if *by > Duration::from_secs(365 * 24 * 3600) => {
                f.write_str("at this rate it does not end in time")
            }
            Self::Late(by) => {
                let by = humantime::format_duration(Duration::from_secs(by.as_secs().max(1)));
                write!(f, "at this rate it ends {by} later than it should be finished by")
            }
            Self::Slow(p99) => {
                let p99 = humantime::format_duration(*p99);
                write!(
                    f,
                    "reads and writes take {p99} (99 of 100) though the rotation is at its \
                     slowest: it is not what slows them"
                )
            }
        }
    }
}

pub(super) struct Governor {
    since: Instant,
    /// Cores that rotations may keep busy, by what reads and writes took.
    cores: f64,
    /// Records per second that end in time.
    enough: Option<f64>,
    /// Of the time until the deadline, what is not planned for.
    spare: Option<Duration>,
    /// Windows in a row in which a target was missed.
    short: u32,
    slow: u32,
    /// When it was last seen.
    p99: Option<Duration>,
    missed: Option<Missed>,
}

impl Governor {
    /// Between two looks.
    pub(super) const WINDOW: Duration = Duration::from_millis(100);
    const FIRST: f64 = 0.1;
    const LEAST: f64 = 0.01;
    /// A target counts as missed when it was so often in a row: two seconds.
    const PATIENCE: u32 = 20;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            cores: Self::FIRST,
            enough: None,
            spare: None,
            short: 0,
            slow: 0,
            p99: None,
            missed: None,
        }
    }

    /// Looks, if a window is over or a deadline has no pace yet; whether what it says of missed
    /// targets has changed.
    pub(super) fn look(
        &mut self,
        now: Instant,
        to: &Throttle,
        workers: usize,
        see: impl FnOnce() -> Seen,
    ) -> bool {
        let is_over = now.saturating_duration_since(self.since) >= Self::WINDOW;
        let is_needed = to.finish_by_unix_ms().is_some() && self.enough.is_none();
        if !is_over && !is_needed {
            return false;
        }
        let seen = see();
        if is_over {
            self.since = now;
            self.follow_latency(to, workers, seen.taken);
        }
        let late = self.follow_deadline(seen);
        let slow = self.p99.filter(|_| self.slow >= Self::PATIENCE).map(Missed::Slow);
        let missed = late.or(slow);
        let changed = missed.is_some() != self.missed.is_some();
        self.missed = missed;
        changed
    }

    /// Backs off fast and comes back slowly, the slower the nearer to the target: where reads and
    /// writes take nearly as long without a rotation, it must not stay where one of ten windows
    /// that was slow by itself has left it. Where nobody reads or writes it only comes back, where
    /// few do it stays until there are enough to tell.
    fn follow_latency(&mut self, to: &Throttle, workers: usize, taken: Taken) {
        let Some(target) = to.foreground_p99() else {
            self.slow = 0;
            return;
        };
        if let Taken::P99(p99) = taken {
            self.p99 = Some(p99);
        }
        match taken {
            Taken::TooFew => {
                // What the last look said still holds.
                self.slow += u32::from(self.slow > 0);
            }
            Taken::P99(p99) if p99 > target => {
                self.slow = if self.cores <= Self::LEAST { self.slow + 1 } else { 0 };
                self.cores = (self.cores * 0.6).max(Self::LEAST);
            }
            Taken::P99(p99) if p99 > target.mul_f64(0.75) => self.grow(workers, 0.05),
            _ => self.grow(workers, 0.15),
        }
    }

    fn grow(&mut self, workers: usize, by: f64) {
        self.slow = 0;
        #[allow(clippy::cast_precision_loss)]
        let most = workers as f64;
        self.cores = (self.cores * (1.0 + by) + Self::LEAST * by).min(most);
    }

    /// Aims at an end a tenth of the time before. While the records are not counted, nothing
    /// holds the rotation back: that would have to be made up for.
    fn follow_deadline(&mut self, seen: Seen) -> Option<Missed> {
        let (Some(left), Some(time_left)) = (seen.left, seen.time_left) else {
            (self.enough, self.short) = (None, 0);
            return None;
        };
        #[allow(clippy::cast_precision_loss)]
        let left = left as f64;
        let in_time = |time: Duration| left / time.as_secs_f64().max(1e-3);
        let spare = *self.spare.get_or_insert(time_left / 10);
        self.enough = Some(in_time(time_left.saturating_sub(spare)));
        let needed = in_time(time_left);
        let rate = seen.rate.unwrap_or_default();
        self.short = if rate < needed { self.short + 1 } else { 0 };
        if self.short < Self::PATIENCE {
            return None;
        }
        let end = Duration::try_from_secs_f64(left / rate).unwrap_or(Duration::MAX);
        Some(Missed::Late(end.saturating_sub(time_left)))
    }

    /// What rotations may use now.
    pub(super) fn limits(&self, to: &Throttle, workers: usize) -> Limits {
        let mut limits = to.limits(workers);
        if to.foreground_p99().is_some() {
            limits.cores = limits.cores.min(self.cores);
        }
        if let Some(enough) = self.enough {
            let ceiling = limits.records_per_second.unwrap_or(f64::INFINITY);
            limits.records_per_second = Some(ceiling.min(enough.max(1.0)));
        }
        limits
    }

    pub(super) fn missed(&self) -> Option<Missed> {
        self.missed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        governor: Governor,
        throttle: Throttle,
        now: Instant,
    }

    impl Run {
        fn new(throttle: Throttle) -> Self {
            let now = Instant::now();
            Self { governor: Governor::new(now), throttle, now }
        }

        fn look(&mut self, seen: Seen) -> bool {
            self.now += Governor::WINDOW;
            self.governor.look(self.now, &self.throttle, 4, || seen)
        }

        fn limits(&self) -> Limits {
            self.governor.limits(&self.throttle, 4)
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_looks_once_a_window() {
        let mut run = Run::new(Throttle::unlimited());
        run.look(Seen::default());
        let seen = run.governor.look(run.now, &run.throttle, 4, || panic!("too early"));
        assert!(!seen);
    }

    /// A foreground whose p99 grows with what the rotation uses: it settles at the target.
    #[test]
    fn the_pace_settles_where_reads_and_writes_stay_quick() {
        let target = ms(10);
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(target).unwrap());
        let p99 = |cores: f64| ms(2).mul_f64(1.0 + 10.0 * cores);
        let mut over = 0;
        for window in 0..300 {
            let p99 = p99(run.limits().cores);
            over += u32::from(window > 50 && p99 > target.mul_f64(1.2));
            run.look(Seen { taken: Taken::P99(p99), ..Seen::default() });
        }
        assert_eq!(over, 0);
        assert!(run.limits().cores > 0.15, "{}", run.limits().cores);
        assert_eq!(run.governor.missed(), None);
        for _ in 0..100 {
            run.look(Seen::default());
        }
        assert!(run.limits().cores > 3.9, "nobody reads: {}", run.limits().cores);
    }

    /// They take nearly as long by themselves, and now and then longer.
    #[test]
    fn what_the_rotation_does_not_cause_does_not_hold_it_back_for_long() {
        let target = ms(100);
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(target).unwrap());
        let mut cores = 0.0;
        for window in 0..1200 {
            let p99 = if window % 15 == 0 { ms(130) } else { ms(85) };
            run.look(Seen { taken: Taken::P99(p99), ..Seen::default() });
            cores += run.limits().cores / 1200.0;
        }
        assert!(cores > 0.2, "{cores}");
    }

    #[test]
    fn a_target_below_what_reads_take_anyhow_is_told() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(1)).unwrap());
        let slow = Seen { taken: Taken::P99(ms(5)), ..Seen::default() };
        let told = (0..100).filter(|_| run.look(slow)).count();
        assert_eq!((told, run.governor.missed()), (1, Some(Missed::Slow(ms(5)))));
        assert!((run.limits().cores - Governor::LEAST).abs() < 1e-9, "it goes on all the same");
        assert!(run.look(Seen::default()));
        assert_eq!(run.governor.missed(), None);
    }

    /// What holds it back shrinks with what is left, and yet it arrives.
    #[test]
    fn it_ends_before_the_deadline_and_not_much() {
        let mut run = Run::new(Throttle::unlimited());
        let (mut left, mut windows) = (50_000.0, 0u32);
        let window = Governor::WINDOW.as_secs_f64();
        while left >= 1.0 {
            windows += 1;
            let time_left = Duration::from_secs(100).checked_sub(Governor::WINDOW * windows);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let counted = Some(left as u64);
            let rate = run.limits().records_per_second;
            run.look(Seen { taken: Taken::Nothing, left: counted, rate, time_left });
            left -= run.limits().records_per_second.unwrap() * window;
            assert_eq!(run.governor.missed(), None);
        }
        assert!((850..=901).contains(&windows), "{windows}");
    }

    #[test]
    fn a_deadline_sets_the_pace_and_says_early_when_it_cannot_be_kept() {
        let mut run = Run::new(Throttle::unlimited());
        let seen = |left, rate, time_left| Seen {
            taken: Taken::Nothing,
            left: Some(left),
            rate: Some(rate),
            time_left: Some(Duration::from_secs(time_left)),
        };
        run.look(seen(90_000, 5000.0, 100));
        let rate = run.limits().records_per_second.unwrap();
        assert!((rate - 1000.0).abs() < 1e-6, "{rate}");
        for _ in 0..100 {
            assert!(!run.look(seen(90_000, 1000.0, 100)), "in time");
        }
        let changes = (0..30).filter(|_| run.look(seen(90_000, 300.0, 100))).count();
        assert_eq!(changes, 1);
        assert_eq!(run.governor.missed(), Some(Missed::Late(Duration::from_secs(200))));
        assert!(run.look(seen(10_000, 300.0, 100)), "it caught up");
        run.look(Seen { left: None, ..seen(0, 1.0, 1) });
        assert_eq!(run.limits().records_per_second, None);
    }

    #[test]
    fn fixed_ceilings_stay_ceilings() {
        let throttle = Throttle::unlimited().with_records_per_second(500).unwrap();
        let throttle = throttle.with_share_of_core(0.5).unwrap();
        let mut run = Run::new(throttle.with_foreground_p99(ms(10)).unwrap());
        let seen = Seen { left: Some(90_000), rate: Some(1.0), ..Seen::default() };
        for _ in 0..100 {
            run.look(Seen { time_left: Some(Duration::from_secs(10)), ..seen });
        }
        assert_eq!(run.limits().records_per_second, Some(500.0));
        assert!((run.limits().cores - 0.5).abs() < 1e-9);
    }
}
