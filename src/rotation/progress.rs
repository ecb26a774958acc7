//! How far a rotation has got, for people and programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What a rotation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The new key is active; the worker has not taken the org up yet.
    Queued,
    /// Records are opened, and the stale ones sealed under the active key.
    Rewriting,
    /// Headers are counted once more, independently.
    Verifying,
    /// Storage, certificate and keyring are made durable.
    Retiring,
    /// Nothing is left under the old key, which the org's policy holds before it is retired.
    Held,
    /// The org's keys are destroyed; its records are deleted.
    Erasing,
    /// Something is in the way; it is tried again by itself. See [`Progress::reason`].
    Waiting,
    /// Records do not open; somebody must look. See [`Progress::reason`].
    Blocked,
    /// Nothing is left under another key; every older version is retired.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Rewriting => "rewriting",
            Self::Verifying => "verifying",
            Self::Retiring => "retiring",
            Self::Held => "held",
            Self::Erasing => "erasing",
            Self::Waiting => "waiting",
            Self::Blocked => "blocked",
            Self::Done => "done",
        })
    }
}

/// How far the rotation of one org has got.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Name of the org.
    pub org: String,
    /// What is done now.
    pub phase: Phase,
    /// Whether it was told to pause.
    pub paused: bool,
    /// Records looked at in this phase.
    pub scanned: u64,
    /// Records of the org, once they are counted: that begins when progress is first asked for.
    pub total: Option<u64>,
    /// Records re-encrypted, over all restarts of the store.
    pub rewritten: u64,
    /// Records that do not open: each keeps the old key alive.
    pub unreadable: u64,
    /// Records per second, of late.
    pub rate: Option<f64>,
    /// At this rate, for the rest of this phase.
    #[serde(serialize_with = "seconds")]
    pub time_left: Option<Duration>,
    /// Why it waits, is held or is blocked.
    pub reason: Option<String>,
    /// Which target of the [`Throttle`](crate::Throttle) will be missed, and by how much.
    pub warning: Option<String>,
}

impl Progress {
    pub(super) fn queued(org: &str) -> Self {
        Self {
            org: org.to_owned(),
            phase: Phase::Queued,
            paused: false,
            scanned: 0,
            total: None,
            rewritten: 0,
            unreadable: 0,
            rate: None,
            time_left: None,
            reason: None,
            warning: None,
        }
    }

    /// Done, from 0 to 1; `None` until the records are counted.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn fraction(&self) -> Option<f64> {
        match (self.phase, self.total) {
            (Phase::Done, _) => Some(1.0),
            (_, Some(total)) if total > 0 => Some((self.scanned as f64 / total as f64).min(1.0)),
            _ => None,
        }
    }
}

/// One line, such as `acme: rewriting, 41 of 100 records, 40 rewritten, 20/s, 3s left`.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.org, self.phase)?;
        if self.paused {
            f.write_str(" (paused)")?;
        }
        match self.total {
            Some(total) if self.phase != Phase::Done => {
                write!(f, ", {} of {total} records", self.scanned.min(total))?;
            }
            _ => write!(f, ", {} records", self.scanned)?,
        }
        write!(f, ", {} rewritten", self.rewritten)?;
        if self.unreadable > 0 {
            write!(f, ", {} unreadable", self.unreadable)?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", {rate:.0}/s")?;
        }
        if let Some(left) = self.time_left {
            let left = Duration::from_secs(left.as_secs().max(1));
            write!(f, ", {} left", humantime::format_duration(left))?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        if let Some(warning) = &self.warning {
            write!(f, "; {warning}")?;
        }
        Ok(())
    }
}

#[allow(clippy::ref_option)]
fn seconds<S: serde::Serializer>(left: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    left.map(|left| left.as_secs_f64()).serialize(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_one_line() {
        let mut progress = Progress::queued("acme");
        assert_eq!(progress.to_string(), "acme: queued, 0 records, 0 rewritten");
        progress.phase = Phase::Rewriting;
        (progress.scanned, progress.total, progress.rewritten) = (41, Some(100), 40);
        progress.rate = Some(19.8);
        progress.time_left = Some(Duration::from_millis(2980));
        assert_eq!(
            progress.to_string(),
            "acme: rewriting, 41 of 100 records, 40 rewritten, 20/s, 2s left"
        );
        assert_eq!(progress.fraction(), Some(0.41));
        progress.phase = Phase::Done;
        assert_eq!(progress.fraction(), Some(1.0));
    }
}
