//! What this machine's clock has done.

use byokv::ClockStatus;

use super::super::clock::length;
use super::{Level, Report};

pub(super) fn clock(report: &mut Report, clock: ClockStatus) {
    if clock.uncounted_ms > 0 {
        let found = format!(
            "{} passed by this machine's clock while nobody watched, and end no hold",
            length(clock.uncounted_ms)
        );
        let advice = "`byokv clock confirm` if the machine was off for so long; else set the clock";
        report.add(Level::Notice, "clock", found, advice);
    }
    if clock.behind_log_ms > 0 {
        let found = format!(
            "it is {} behind the audit log, whose entries repeat a time until it has caught up",
            length(clock.behind_log_ms)
        );
        report.add(Level::Notice, "clock", found, "nothing, if the clock is right now");
    }
    if (clock.uncounted_ms, clock.behind_log_ms) == (0, 0) {
        report.fine("clock", "all time that passed is counted");
    }
}
