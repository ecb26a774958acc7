//! Rotations and erasures that are under way: what each waits for.

use std::time::Duration;

use byokv::{Error, Phase, Store};

use super::super::failure::quoted;
use super::{Level, Report};

/// Opening the store has taken them up again; a while shows whether they get on.
pub(super) fn rotations(report: &mut Report, store: &Store) {
    const A_WHILE: Duration = Duration::from_secs(3);
    let rotations = match store.keys().rotations() {
        Ok(none) if none.is_empty() => return report.fine("rotations", "none under way"),
        Ok(rotations) => rotations,
        Err(error) => return report.add(Level::Fault, "rotations", error.to_string(), ""),
    };
    for rotation in rotations {
        let org = quoted(rotation.org());
        let ended = rotation.wait_timeout(A_WHILE);
        let progress = rotation.progress();
        let (level, found, advice) = match ended {
            Ok(Some(_)) => (Level::Fine, format!("of org {org} has just ended"), String::new()),
            Ok(None) => {
                let advice = match progress.phase {
                    _ if progress.paused => format!("`byokv rotation resume {org}` lets it go on"),
                    Phase::Held => format!("nothing until its time, or `byokv key retire {org}`"),
                    Phase::Waiting => {
                        "nothing, if a key is suspended; else mend what the reason names".to_owned()
                    }
                    _ => format!("byokv rotation wait {org}"),
                };
                let level = if progress.paused { Level::Waits } else { Level::Notice };
                (level, progress.to_string(), advice)
            }
            Err(error @ Error::RetirementAwaited { .. }) => {
                (Level::Waits, error.to_string(), format!("byokv key retire {org}"))
            }
            Err(error @ Error::RotationBlocked { .. }) => {
                let advice =
                    format!("byokv verify --deep {org}; put or delete what it names; then wait");
                (Level::Fault, error.to_string(), advice)
            }
            Err(error) => (Level::Fault, error.to_string(), String::new()),
        };
        report.add(level, "rotation", found, &advice);
    }
}

/// They have no org any more that could be asked about.
pub(super) fn erasures(report: &mut Report, store: &Store) {
    for erasure in store.keys().erasures().into_iter().flatten() {
        let found = format!("the erasure of org {} has not ended", quoted(erasure.org()));
        let advice = format!("`byokv org delete {}` waits for it", quoted(erasure.org()));
        report.add(Level::Notice, "erasure", found, &advice);
    }
}
