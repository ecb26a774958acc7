//! How much time a store has observed, and where the wall clock jumped.
//!
//! Holds, the age of keys and the end of import tokens are counted by the *observed clock*, which
//! no setting of a clock moves: it counts the time in which the store was open, by the running
//! clock, and of each gap between two openings a day at most. A gap within one boot is measured by
//! the running clock; any other is believed to be as long as the wall clock says.

use serde::{Deserialize, Serialize};

use super::{Boot, Reading, Running};

/// What of a gap between two openings counts at most.
pub(crate) const LONGEST_GAP: u64 = 24 * 3600 * 1000;

/// How far the two clocks may part before the wall clock is said to have jumped: more than clocks
/// drift or are slewed between two looks.
pub(crate) const JUMP: u64 = 60 * 1000;

/// What a store remembers of time: in the keyring, and between two changes of that in the
/// database. All in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The observed clock: 0 when the store was made; only rises.
    pub(crate) observed: u64,
    /// What the wall clock showed then, since 1970-01-01 UTC.
    pub(crate) wall: u64,
    /// What the running clock showed then.
    running: u64,
    /// In which boot, where that is known.
    boot: Option<Boot>,
    /// Time that passed by the wall clock alone, oldest first.
    uncounted: Vec<Uncounted>,
}

/// Time that the observed clock does not count unless an operator confirms it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Uncounted {
    /// The observed clock when it was met.
    at: u64,
    ms: u64,
}

/// The wall clock jumped: it shows another time than it would if it had run on. Milliseconds since
/// 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What an operator has confirmed: time that the observed clock counts now after all.
#[derive(Debug)]
pub(crate) struct Confirmed(Vec<Uncounted>);

impl Confirmed {
    /// Returns the milliseconds by which the observed clock was moved.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.saturating_add(part.ms))
    }

    /// Returns where on the observed clock lies now what was begun at `begun` before. What was
    /// begun after a part of the confirmed time has not seen that part, and gains nothing by it.
    pub(crate) fn moved(&self, begun: u64) -> u64 {
        let before = self.0.iter().filter(|part| part.at < begun);
        before.fold(begun, |moved, part| moved.saturating_add(part.ms))
    }
}

impl Seen {
    /// Begins the observed clock of a new store.
    pub(crate) fn first(now: Reading) -> Self {
        Self::default().at(now, 0)
    }

    /// Returns what the observed clock shows while the store stays open.
    pub(crate) fn observed_at(&self, running: Running) -> u64 {
        self.observed.saturating_add(running.ms.saturating_sub(self.running))
    }

    /// Returns the time that passed by the wall clock alone and that nobody has confirmed.
    pub(crate) fn uncounted(&self) -> u64 {
        self.uncounted.iter().fold(0, |sum, part| sum.saturating_add(part.ms))
    }

    /// Looks at the clocks while the store is open.
    pub(crate) fn watched(self, now: Reading) -> (Self, Option<Jump>) {
        let passed = now.running.ms.saturating_sub(self.running);
        let jump = self.jump(now, passed);
        let parted = jump.is_some();
        (self.went_on(now, passed, parted), jump)
    }

    /// Looks at the clocks when the store is opened again.
    pub(crate) fn opened(self, now: Reading) -> (Self, Option<Jump>) {
        let by_wall = now.wall.saturating_sub(self.wall);
        let is_same_boot = self.boot.is_some() && self.boot == now.running.boot;
        let measured = now.running.ms.checked_sub(self.running).filter(|_| is_same_boot);
        let gap = measured.unwrap_or(by_wall);
        let jump = match measured {
            Some(passed) => self.jump(now, passed),
            None => {
                let is_jump = by_wall > LONGEST_GAP || self.wall.saturating_sub(now.wall) > JUMP;
                is_jump.then_some(Jump { from: self.wall, to: now.wall })
            }
        };
        let parted = jump.is_some() || gap > LONGEST_GAP;
        (self.went_on(now, gap.min(LONGEST_GAP), parted), jump)
    }

    /// Counts all that was not counted.
    pub(crate) fn confirm(&mut self) -> Confirmed {
        let confirmed = Confirmed(std::mem::take(&mut self.uncounted));
        self.observed = self.observed.saturating_add(confirmed.total());
        confirmed
    }

    fn jump(&self, now: Reading, passed: u64) -> Option<Jump> {
        let expected = self.wall.saturating_add(passed);
        (now.wall.abs_diff(expected) > JUMP).then_some(Jump { from: expected, to: now.wall })
    }

    /// `parted`: the wall clock did not go on by about `counted`.
    fn went_on(mut self, now: Reading, counted: u64, parted: bool) -> Self {
        let wall = self.wall.saturating_add(counted);
        if parted {
            match now.wall.checked_sub(wall) {
                Some(ahead) => self.leave_out(ahead),
                None => self.take_back(wall - now.wall),
            }
        }
        self.at(now, counted)
    }

    fn leave_out(&mut self, ms: u64) {
        /// Jumps that are told apart. Of more, the oldest count as one.
        const MOST: usize = 8;

        self.uncounted.push(Uncounted { at: self.observed, ms });
        if self.uncounted.len() > MOST {
            let oldest = self.uncounted.remove(0);
            let next = &mut self.uncounted[0];
            *next = Uncounted { at: oldest.at, ms: oldest.ms.saturating_add(next.ms) };
        }
    }

    /// The wall clock came back: what it had shown too much was no time at all.
    fn take_back(&mut self, mut ms: u64) {
        while let Some(last) = self.uncounted.last_mut() {
            let taken = last.ms.min(ms);
            (last.ms, ms) = (last.ms - taken, ms - taken);
            if last.ms > 0 {
                return;
            }
            self.uncounted.pop();
        }
    }

    fn at(self, now: Reading, passed: u64) -> Self {
        let Running { ms, boot } = now.running;
        let observed = self.observed.saturating_add(passed);
        Self { observed, wall: now.wall, running: ms, boot, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600 * 1000;
    const DAY: u64 = 24 * HOUR;
    const YEARS: u64 = 10 * 365 * DAY;
    const NOW: u64 = 1_760_000_000_000;

    /// Somebody's clocks.
    #[derive(Clone, Copy)]
    struct Desk(Reading);

    impl Desk {
        fn new(boot: Option<Boot>) -> Self {
            Self(Reading { wall: NOW, running: Running { ms: 5, boot } })
        }

        fn pass(&mut self, ms: u64) -> Reading {
            self.0.wall += ms;
            self.0.running.ms += ms;
            self.0
        }

        fn set(&mut self, by: i64) -> Reading {
            self.0.wall = self.0.wall.checked_add_signed(by).unwrap();
            self.0
        }

        fn reboot(&mut self, boot: u8) {
            self.0.running = Running { ms: 1, boot: Some([boot; 16]) };
        }
    }

    fn signed(ms: u64) -> i64 {
        i64::try_from(ms).unwrap()
    }

    #[test]
    fn time_counts_while_it_is_watched_and_no_jump_does() {
        let mut desk = Desk::new(Some([1; 16]));
        let seen = Seen::first(desk.0);
        let (seen, jump) = seen.watched(desk.pass(30 * DAY));
        assert_eq!((seen.observed, jump), (30 * DAY, None));
        desk.pass(HOUR);
        let (seen, jump) = seen.watched(desk.set(signed(8 * DAY)));
        assert_eq!((seen.observed, seen.uncounted()), (30 * DAY + HOUR, 8 * DAY));
        let expected = NOW + 30 * DAY + HOUR;
        assert_eq!(jump, Some(Jump { from: expected, to: expected + 8 * DAY }));
        assert_eq!(seen.observed_at(desk.pass(7).running), 30 * DAY + HOUR + 7);
        let (seen, jump) = seen.watched(desk.set(-signed(8 * DAY)));
        assert_eq!((seen.observed, seen.uncounted()), (30 * DAY + HOUR + 7, 0));
        assert!(jump.is_some_and(|jump| jump.to < jump.from));
        // Slewed by less than a jump: believed, and nothing is left of it.
        let (seen, jump) = seen.watched(desk.set(signed(JUMP)));
        assert_eq!((seen.uncounted(), jump), (0, None));
    }

    #[test]
    fn a_gap_counts_a_day_at_most_and_never_more_than_was_measured() {
        let at_rest = Seen::first(Desk::new(Some([1; 16])).0);
        for (passed, set, reboots, counts, uncounted, jumps) in [
            (2 * HOUR, 0, false, 2 * HOUR, 0, false),
            (2 * HOUR, 0, true, 2 * HOUR, 0, false),
            // The running clock knows better than the wall clock.
            (1, signed(8 * DAY), false, 1, 8 * DAY, true),
            (1, signed(20 * HOUR), false, 1, 20 * HOUR, true),
            (HOUR, -signed(5 * HOUR), false, HOUR, 0, true),
            // Nothing was set, but nobody watched.
            (30 * DAY, 0, false, DAY, 29 * DAY, false),
            (30 * DAY, 0, true, DAY, 29 * DAY, true),
            (1, signed(8 * DAY), true, DAY, 7 * DAY + 1, true),
            (1, signed(20 * HOUR), true, 20 * HOUR + 1, 0, false),
            (HOUR, -signed(5 * HOUR), true, 0, 0, true),
        ] {
            let mut desk = Desk::new(Some([1; 16]));
            desk.pass(passed);
            desk.set(set);
            if reboots {
                desk.reboot(2);
            }
            let (seen, jump) = at_rest.clone().opened(desk.0);
            let what = format!("{passed} {set} {reboots}");
            assert_eq!(seen.observed, counts, "{what}");
            assert_eq!(seen.uncounted(), uncounted, "{what}");
            assert_eq!(jump.is_some(), jumps, "{what}");
            assert_eq!(seen.wall, desk.0.wall, "{what}");
        }
        // Where nothing is known of boots, the running clock says nothing of a gap.
        let mut desk = Desk::new(None);
        let seen = Seen::first(desk.0);
        assert_eq!(seen.opened(desk.pass(3 * DAY)).0.observed, DAY);
    }

    /// The clock is set ahead for one command after the other, and back again.
    #[test]
    fn many_jumps_within_a_boot_count_nothing() {
        let mut desk = Desk::new(Some([1; 16]));
        let mut seen = Seen::first(desk.0);
        for _ in 0..100 {
            for by in [signed(DAY), signed(YEARS), -signed(YEARS), -signed(DAY)] {
                desk.pass(10);
                seen = seen.opened(desk.set(by)).0;
                seen = seen.watched(desk.pass(10)).0;
            }
        }
        assert_eq!((seen.observed, seen.uncounted(), seen.wall), (8000, 0, NOW + 8000));
    }

    #[test]
    fn what_is_confirmed_counts_for_what_was_begun_before() {
        let mut desk = Desk::new(Some([1; 16]));
        let seen = Seen::first(desk.0).watched(desk.pass(HOUR)).0;
        let before = seen.observed;
        let seen = seen.opened(desk.pass(31 * DAY)).0;
        let between = seen.observed;
        let seen = seen.watched(desk.pass(HOUR)).0;
        let seen = seen.opened(desk.pass(11 * DAY)).0;
        let after = seen.observed;
        let mut seen = seen.watched(desk.pass(HOUR)).0;
        let confirmed = seen.confirm();
        assert_eq!(confirmed.total(), 40 * DAY);
        assert_eq!(seen.observed, 42 * DAY + 3 * HOUR, "as if it had always been watched");
        assert_eq!(seen.observed - confirmed.moved(before), 42 * DAY + 2 * HOUR);
        assert_eq!(seen.observed - confirmed.moved(between), 11 * DAY + 2 * HOUR);
        assert_eq!(seen.observed - confirmed.moved(after), HOUR);
        assert_eq!((seen.uncounted(), seen.confirm().total()), (0, 0));
    }

    #[test]
    fn of_many_jumps_the_oldest_are_told_as_one() {
        let mut desk = Desk::new(Some([1; 16]));
        let mut seen = Seen::first(desk.0);
        for _ in 0..100 {
            seen = seen.watched(desk.set(signed(DAY))).0;
            seen = seen.watched(desk.pass(1)).0;
        }
        assert_eq!((seen.uncounted.len(), seen.uncounted()), (8, 100 * DAY));
        assert_eq!(seen.uncounted[0], Uncounted { at: 0, ms: 93 * DAY });
        let seen = seen.watched(desk.set(-signed(99 * DAY))).0;
        assert_eq!((seen.uncounted.len(), seen.uncounted()), (1, DAY));
    }
}
