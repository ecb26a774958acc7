//! When a key is retired, and what a change of an org's policy changed.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a version under which no record is left is retired.
///
/// A key that was replaced keeps the strictest policy that its org has had since: a policy that is
/// weakened later holds for keys that are replaced later, and destroys nothing by itself.
/// [`KeyAdmin::retire`](crate::KeyAdmin::retire) lets a held key go before its time.
///
/// In JSON an object with `kind`, and the hold as `secs` and `nanos`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum RetirePolicy {
    /// As soon as that is proven.
    #[default]
    Immediate,
    /// After a hold of this length, which is a rehearsal: a record that would need the version
    /// meanwhile is served all the same, counted and re-encrypted, and the hold starts anew.
    /// When the hold is over it is proven once more that no record is left. It is counted by time
    /// that the store has observed ([`ClockStatus::observed_ms`](crate::ClockStatus::observed_ms)),
    /// so it lasts longer than its length where the store is closed for more than a day at a time.
    AfterHold(Duration),
    /// Not before [`KeyAdmin::retire`](crate::KeyAdmin::retire) is called. Until then it is held
    /// like above.
    Manual,
}
crate::json::tagged!(RetirePolicy);

impl RetirePolicy {
    /// Returns the one that keeps a key longer.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Manual, _) | (_, Self::Manual) => Self::Manual,
            (Self::AfterHold(one), Self::AfterHold(two)) => Self::AfterHold(one.max(two)),
            (hold @ Self::AfterHold(_), Self::Immediate)
            | (Self::Immediate, hold @ Self::AfterHold(_)) => hold,
            (Self::Immediate, Self::Immediate) => Self::Immediate,
        }
    }
}

/// As a part of a sentence about keys that retire.
impl fmt::Display for RetirePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Immediate => f.write_str("at once"),
            Self::AfterHold(hold) => write!(f, "after a hold of {}", plain(*hold)),
            Self::Manual => f.write_str("by hand"),
        }
    }
}

/// What backups do with an org.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackupPolicy {
    /// They hold it: whoever has the key of a backup can read its records, whatever becomes of the
    /// org and its keys.
    #[default]
    Include,
    /// They leave it out, and name it as left out.
    Refuse,
}

/// As a part of a sentence about an org.
impl fmt::Display for BackupPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Include => "in backups",
            Self::Refuse => "in no backup",
        })
    }
}

/// One setting of an org's policy that was changed, before and after.
///
/// In JSON an object with `kind`, `before` and `after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PolicyChange {
    /// Whether the org may bring its own key.
    Byok {
        /// What it was.
        before: bool,
        /// What it is now.
        after: bool,
    },
    /// When a replaced key is retired.
    Retire {
        /// What it was.
        before: RetirePolicy,
        /// What it is now, for keys that are replaced from now on.
        after: RetirePolicy,
    },
    /// The age at which a key is due.
    RotationAfterAge {
        /// What it was; `None` is never.
        before: Option<Duration>,
        /// What it is now.
        after: Option<Duration>,
    },
    /// The number of records after which a key is due.
    RotationAfterRecords {
        /// What it was; `None` is never.
        before: Option<u64>,
        /// What it is now.
        after: Option<u64>,
    },
    /// The bytes of values after which a key is due.
    RotationAfterBytes {
        /// What it was; `None` is never.
        before: Option<u64>,
        /// What it is now.
        after: Option<u64>,
    },
    /// What backups do with the org.
    Backups {
        /// What it was.
        before: BackupPolicy,
        /// What it is now.
        after: BackupPolicy,
    },
}
crate::json::tagged!(PolicyChange);

/// Such as `retire: by hand -> at once`.
impl fmt::Display for PolicyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let age = |age: Option<Duration>| age.map_or_else(|| "never".to_owned(), plain);
        let count =
            |count: Option<u64>| count.map_or_else(|| "never".to_owned(), |n| n.to_string());
        match *self {
            Self::Byok { before, after } => write!(f, "byok: {} -> {}", yes(before), yes(after)),
            Self::Retire { before, after } => write!(f, "retire: {before} -> {after}"),
            Self::RotationAfterAge { before, after } => {
                write!(f, "rotate after age: {} -> {}", age(before), age(after))
            }
            Self::RotationAfterRecords { before, after } => {
                write!(f, "rotate after records: {} -> {}", count(before), count(after))
            }
            Self::RotationAfterBytes { before, after } => {
                write!(f, "rotate after bytes: {} -> {}", count(before), count(after))
            }
            Self::Backups { before, after } => write!(f, "backups: {before} -> {after}"),
        }
    }
}

/// Days, where that is exact: months have no fixed length.
pub(crate) fn plain(time: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    match (time.as_secs(), time.subsec_nanos()) {
        (DAY, 0) => "1 day".to_owned(),
        (seconds, 0) if seconds > 0 && seconds.is_multiple_of(DAY) => {
            format!("{} days", seconds / DAY)
        }
        _ => humantime::format_duration(time).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_policy_keeps_a_key_longer() {
        use RetirePolicy::{AfterHold, Immediate, Manual};
        let (short, long) = (AfterHold(Duration::from_secs(1)), AfterHold(Duration::from_secs(2)));
        let ascending = [Immediate, short, long, Manual];
        for (i, one) in ascending.into_iter().enumerate() {
            for (j, two) in ascending.into_iter().enumerate() {
                assert_eq!(one.stricter(two), ascending[i.max(j)], "{one} {two}");
            }
        }
    }

    #[test]
    fn a_change_reads_as_before_and_after_also_for_programs() {
        let hold = RetirePolicy::AfterHold(Duration::from_secs(7 * 24 * 3600));
        let change = PolicyChange::Retire { before: hold, after: RetirePolicy::Immediate };
        assert_eq!(change.to_string(), "retire: after a hold of 7 days -> at once");
        let json = r#"{"kind":"retire","after":{"kind":"immediate"},"before":{"kind":"after_hold","nanos":0,"secs":604800}}"#;
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
        assert_eq!(serde_json::from_str::<PolicyChange>(json).unwrap(), change);
        let age = PolicyChange::RotationAfterAge {
            before: None,
            after: Some(Duration::from_secs(24 * 3600)),
        };
        assert_eq!(age.to_string(), "rotate after age: never -> 1 day");
    }
}
