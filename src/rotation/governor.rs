//! Steers rotations towards a target by what it measures: an end in time, and reads and writes
//! that stay quick. Time is a parameter.

use std::fmt;
use std::time::{Duration, Instant};

use super::throttle::{Limits, Throttle};
use crate::engine::Counts;

/// What is looked at in a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Reads and writes that ended in it, once it is over.
    pub(super) taken: Counts,
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
    /// What reads and writes took since `cores` was last set, for how long that is, and since when
    /// none has ended.
    taken: Counts,
    judged: Duration,
    quiet: Duration,
    /// Reads and writes that were slow beyond the share that may be, and not made up for since.
    overdrawn: f64,
    /// Windows in a row in which the deadline was out of reach.
    short: u32,
    /// For how long reads and writes took too long with the rotation at its slowest.
    slow: Duration,
    /// Of reads and writes, when they last took too long.
    p99: Option<Duration>,
    missed: Option<Missed>,
}

impl Governor {
    /// Between two looks.
    pub(super) const WINDOW: Duration = Duration::from_millis(100);
    const FIRST: f64 = 0.1;
    const LEAST: f64 = 0.05;
    /// What reads and writes take is judged over this.
    const PERIOD: Duration = Duration::from_secs(1);
    /// Windows after which a target counts as missed: two seconds.
    const PATIENCE: u32 = 20;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            cores: Self::FIRST,
            enough: None,
            spare: None,
            taken: Counts::default(),
            judged: Duration::ZERO,
            quiet: Duration::ZERO,
            overdrawn: 0.0,
            short: 0,
            slow: Duration::ZERO,
            p99: None,
            missed: None,
        }
    }

    /// Looks, if a window is over (`see` is told how long it was) or a deadline has no pace yet;
    /// whether what it says of missed targets has changed.
    pub(super) fn look(
        &mut self,
        now: Instant,
        to: &Throttle,
        workers: usize,
        see: impl FnOnce(Option<Duration>) -> Seen,
    ) -> bool {
        let window = Some(now.saturating_duration_since(self.since));
        let window = window.filter(|window| *window >= Self::WINDOW);
        let is_needed = to.finish_by_unix_ms().is_some() && self.enough.is_none();
        if window.is_none() && !is_needed {
            return false;
        }
        let seen = see(window);
        if let Some(window) = window {
            self.since = now;
            self.follow_latency(to, workers, window, &seen.taken);
        }
        let late = self.follow_deadline(&seen);
        let slow =
            self.p99.filter(|_| self.slow >= Self::WINDOW * Self::PATIENCE).map(Missed::Slow);
        let missed = late.or(slow);
        let changed = missed.is_some() != self.missed.is_some();
        self.missed = missed;
        changed
    }

    /// One of a hundred may take longer than the target, counted over a period. As soon as a whole
    /// period's share of slow ones is used up, it goes slower, and judges afresh; faster only once
    /// those beyond the share are made up for. The nearer to the share, the smaller the step,
    /// either way. Where few read or write, it stays until there are enough to tell.
    fn follow_latency(&mut self, to: &Throttle, workers: usize, window: Duration, taken: &Counts) {
        /// Fewer say nothing about one in a hundred.
        const ENOUGH: u64 = 100;
        /// Of reads and writes.
        const SLOW: f64 = 0.01;
        /// A rotation that was not the cause is not held back for longer, in periods.
        const LONGEST_DEBT: f64 = 5.0;

        let Some(target) = to.foreground_p99() else {
            self.slow = Duration::ZERO;
            return;
        };
        if window > Self::PERIOD {
            // Nothing was rewritten for some of it.
            return self.judge_afresh();
        }
        self.judged += window;
        if taken.all() == 0 {
            if taken.under_way == 0 {
                self.rest(to, workers, window);
            }
            return;
        }
        self.quiet = Duration::ZERO;
        self.taken.add(taken);
        if self.taken.all() < ENOUGH {
            return;
        }
        #[allow(clippy::cast_precision_loss)]
        let all = self.taken.all() as f64;
        let slow = self.taken.longer_than(target);
        let may_be = all * SLOW;
        let periods = self.judged.as_secs_f64() / Self::PERIOD.as_secs_f64();
        if slow > may_be / periods.min(1.0) {
            self.p99 = self.taken.p99();
            self.slow =
                if self.cores <= Self::LEAST { self.slow + self.judged } else { Duration::ZERO };
            let most = LONGEST_DEBT * may_be / periods;
            self.overdrawn = (self.overdrawn + slow - may_be).min(most);
            self.step(to, workers, (may_be / slow).max(0.5));
        } else if periods >= 1.0 {
            self.slow = Duration::ZERO;
            self.overdrawn -= may_be - slow;
            let by = if self.overdrawn > 0.0 { 1.0 } else { (may_be / slow).sqrt().min(2.0) };
            self.overdrawn = self.overdrawn.max(0.0);
            self.step(to, workers, by);
        }
    }

    /// Nobody reads or writes, or waits: after a while nothing that was seen counts any more.
    fn rest(&mut self, to: &Throttle, workers: usize, window: Duration) {
        self.quiet += window;
        if self.quiet >= Self::PERIOD {
            (self.slow, self.overdrawn) = (Duration::ZERO, 0.0);
            self.step(to, workers, 1.15);
        }
    }

    /// To so many times as much of a core, as far as the fixed ceilings go.
    fn step(&mut self, to: &Throttle, workers: usize, by: f64) {
        #[allow(clippy::cast_precision_loss)]
        let most = to.limits(workers).cores.min(workers as f64);
        self.cores = (self.cores * by).max(Self::LEAST).min(most);
        self.judge_afresh();
    }

    fn judge_afresh(&mut self) {
        (self.taken, self.judged) = (Counts::default(), Duration::ZERO);
    }

    /// Aims at an end a tenth of the time before. While the records are not counted, nothing
    /// holds the rotation back: that would have to be made up for.
    fn follow_deadline(&mut self, seen: &Seen) -> Option<Missed> {
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
            self.governor.look(self.now, &self.throttle, 4, |_| seen)
        }

        fn limits(&self) -> Limits {
            self.governor.limits(&self.throttle, 4)
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A window of a thousand reads and writes, so many of which took so long.
    fn slow(slow: u64, time: Duration) -> Seen {
        let taken = Counts::of(&[(1000 - slow, Duration::from_micros(100)), (slow, time)]);
        Seen { taken, ..Seen::default() }
    }

    #[test]
    fn it_looks_once_a_window() {
        let mut run = Run::new(Throttle::unlimited());
        run.look(Seen::default());
        let seen = run.governor.look(run.now, &run.throttle, 4, |_| panic!("too early"));
        assert!(!seen);
    }

    /// A foreground that is slow the more often the more the rotation uses: it settles where one of
    /// a hundred is.
    #[test]
    fn the_pace_settles_where_reads_and_writes_stay_quick() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let (mut late, mut cores) = (0, 0.0);
        for window in 0..600 {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let often = (2.0 + 32.0 * run.limits().cores) as u64;
            if window >= 100 {
                late += often;
                cores += run.limits().cores / 500.0;
            }
            run.look(slow(often, ms(20)));
        }
        assert!(late <= 5050, "of 500,000: {late}");
        assert!(cores > 0.2, "{cores}");
        assert_eq!(run.governor.missed(), None);
        for _ in 0..100 {
            run.look(Seen::default());
        }
        assert!(run.limits().cores > 3.9, "nobody reads: {}", run.limits().cores);
    }

    /// A window that is slow by itself, every other second.
    #[test]
    fn what_the_rotation_does_not_cause_does_not_hold_it_back() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(100)).unwrap());
        for window in 0..600 {
            run.look(slow(if window % 20 == 7 { 30 } else { 3 }, ms(130)));
        }
        assert!(run.limits().cores > 1.0, "{}", run.limits().cores);
    }

    #[test]
    fn it_backs_off_at_once_where_a_second_of_slowness_comes_in_a_window() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let before = run.limits().cores;
        run.look(slow(90, ms(20)));
        assert!((run.limits().cores - before).abs() < 1e-9, "less than a second may have");
        run.look(slow(60, ms(20)));
        assert!(run.limits().cores < before * 0.6, "{}", run.limits().cores);
    }

    /// Quick up to half a core, and half of all slow above: what is overdrawn is made up for.
    #[test]
    fn one_of_a_hundred_is_slow_where_it_comes_all_at_once() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let (mut late, mut cores) = (0, 0.0);
        for _ in 0..3000 {
            let often = if run.limits().cores > 0.5 { 500 } else { 0 };
            late += often;
            cores += run.limits().cores / 3000.0;
            run.look(slow(often, ms(20)));
        }
        assert!(late <= 30_000 * 11 / 10, "of 3,000,000: {late}");
        assert!(cores > 0.2, "{cores}");
    }

    /// An end that nobody has reached yet is not quiet.
    #[test]
    fn who_waits_is_not_nobody() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let waits = Counts::under_way(1);
        let before = run.limits();
        for _ in 0..50 {
            run.look(Seen { taken: waits.clone(), ..Seen::default() });
        }
        assert_eq!(run.limits(), before);
    }

    /// The last few of an evening do not hold it back all night, nor one a minute.
    #[test]
    fn few_do_not_count_for_ever() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let few = Seen { taken: Counts::of(&[(40, ms(20))]), ..Seen::default() };
        let one = Seen { taken: Counts::of(&[(1, ms(20))]), ..Seen::default() };
        for seen in [few, one] {
            run.look(slow(1000, ms(20)));
            run.look(seen);
            for _ in 0..60 {
                run.look(Seen::default());
            }
            assert!(run.limits().cores > 3.9, "{}", run.limits().cores);
        }
    }

    /// A second is one too where nothing ends in most of its windows.
    #[test]
    fn time_counts_in_which_nothing_ends() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        let before = run.limits().cores;
        let waits = Seen { taken: Counts::under_way(1), ..Seen::default() };
        for _ in 0..9 {
            run.look(waits.clone());
        }
        run.look(slow(20, ms(20)));
        assert!(run.limits().cores < before * 0.6, "{}", run.limits().cores);
    }

    /// What happened while the rotation was paused says nothing.
    #[test]
    fn a_long_window_does_not_count() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(10)).unwrap());
        run.now += Duration::from_secs(3600);
        let before = run.limits();
        run.look(slow(1000, ms(20)));
        assert_eq!(run.limits(), before);
    }

    /// It must not have to come down from far above what it may use.
    #[test]
    fn it_does_not_grow_beyond_a_ceiling() {
        let throttle = Throttle::unlimited().with_share_of_core(0.25).unwrap();
        let mut run = Run::new(throttle.with_foreground_p99(ms(10)).unwrap());
        for _ in 0..100 {
            run.look(Seen::default());
        }
        run.look(slow(1000, ms(20)));
        assert!(run.limits().cores < 0.13, "{}", run.limits().cores);
        let throttle = Throttle::unlimited().with_share_of_core(0.001).unwrap();
        let mut run = Run::new(throttle.with_foreground_p99(ms(10)).unwrap());
        run.look(slow(1000, ms(20)));
        assert!((run.limits().cores - 0.001).abs() < 1e-9);
    }

    #[test]
    fn a_target_below_what_reads_take_anyhow_is_told() {
        let mut run = Run::new(Throttle::unlimited().with_foreground_p99(ms(1)).unwrap());
        let told = (0..100).filter(|_| run.look(slow(1000, ms(5)))).count();
        assert_eq!(told, 1);
        let missed = run.governor.missed();
        let Some(Missed::Slow(p99)) = missed else { panic!("{missed:?}") };
        assert!(p99 >= ms(5) && p99 < ms(6), "{p99:?}");
        assert!((run.limits().cores - Governor::LEAST).abs() < 1e-9, "it goes on all the same");
        for _ in 0..10 {
            run.look(Seen { taken: Counts::of(&[(5, ms(5))]), ..Seen::default() });
        }
        assert!(run.governor.missed().is_some(), "too few to tell");
        let told = (0..20).filter(|_| run.look(Seen::default())).count();
        assert_eq!((told, run.governor.missed()), (1, None));
        for _ in 0..100 {
            run.look(slow(1000, ms(5)));
        }
        let told = (0..20).filter(|_| run.look(slow(0, ms(0)))).count();
        assert_eq!((told, run.governor.missed()), (1, None));
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
            run.look(Seen { taken: Counts::default(), left: counted, rate, time_left });
            left -= run.limits().records_per_second.unwrap() * window;
            assert_eq!(run.governor.missed(), None);
        }
        assert!((850..=901).contains(&windows), "{windows}");
    }

    #[test]
    fn a_deadline_sets_the_pace_and_says_early_when_it_cannot_be_kept() {
        let mut run = Run::new(Throttle::unlimited());
        let seen = |left, rate, time_left| Seen {
            taken: Counts::default(),
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
            run.look(Seen { time_left: Some(Duration::from_secs(10)), ..seen.clone() });
        }
        assert_eq!(run.limits().records_per_second, Some(500.0));
        assert!((run.limits().cores - 0.5).abs() < 1e-9);
    }
}
