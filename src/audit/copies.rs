//! Backups as copies of an org: the register that the database keeps of them, and what a
//! certificate of erasure says.

use std::fmt;

use serde::de::Error as _;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::id::{BackupId, Fingerprint, OrgId};
use crate::time::rfc3339;

/// How far a backup got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackupState {
    /// It is being made.
    UnderWay,
    /// It was made, whole.
    Made,
    /// It failed or was cut off. What was written of it may hold records, and may even be whole if
    /// only the note of its end is missing.
    Unfinished,
    /// The org was restored from it. The store that made it may have made others.
    RestoredFrom,
}

impl fmt::Display for BackupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnderWay => "being made",
            Self::Made => "made",
            Self::Unfinished => "not finished",
            Self::RestoredFrom => "restored from",
        })
    }
}

/// A backup that holds an org, or may hold records of it. Whoever has its key can read them.
///
/// In JSON an object with the fields in their order, and `at`, the time as RFC 3339, before
/// `at_unix_ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[non_exhaustive]
pub struct BackupCopy {
    /// The backup.
    pub backup: BackupId,
    /// Fingerprint of the key that it is sealed under.
    pub key: Fingerprint,
    /// The moment that it shows, or when it was begun if it was not finished. Milliseconds since
    /// 1970-01-01 UTC.
    pub at_unix_ms: u64,
    /// How far it got.
    pub state: BackupState,
    /// The store that made it.
    pub store: OrgId,
    /// The id that the org had when it was made: its own, or one of before it was restored.
    pub org_id: OrgId,
}

impl Serialize for BackupCopy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let Self { backup, key, at_unix_ms, state, store, org_id } = self;
        let mut copy = serializer.serialize_struct("BackupCopy", 7)?;
        copy.serialize_field("backup", backup)?;
        copy.serialize_field("key", key)?;
        copy.serialize_field("at", &rfc3339(*at_unix_ms))?;
        copy.serialize_field("at_unix_ms", at_unix_ms)?;
        copy.serialize_field("state", state)?;
        copy.serialize_field("store", store)?;
        copy.serialize_field("org_id", org_id)?;
        copy.end()
    }
}

impl<'de> Deserialize<'de> for BackupCopy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let mut fields: Map<String, Value> = Deserialize::deserialize(deserializer)?;
        let at = fields.remove("at");
        let copy = Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)?;
        // A certificate's authenticator covers the number. A reader sees the text.
        if at.is_some_and(|at| at != rfc3339(copy.at_unix_ms)) {
            return Err(D::Error::custom("`at` is another time than `at_unix_ms`"));
        }
        Ok(copy)
    }
}

/// One line, such as `5f…, made 2026-01-01T00:00:00Z, key 0d…`.
impl fmt::Display for BackupCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backup, key, state, .. } = self;
        let at = rfc3339(self.at_unix_ms);
        match state {
            BackupState::UnderWay => write!(f, "{backup}, begun {at} and being made, key {key}"),
            BackupState::Made => write!(f, "{backup}, made {at}, key {key}"),
            BackupState::Unfinished => {
                write!(f, "{backup}, begun {at} and not finished, key {key}")
            }
            BackupState::RestoredFrom => {
                write!(f, "{backup}, made {at} by the store {}, key {key}", self.store)
            }
        }
    }
}

/// What a certificate tells people of the backups of an erased org.
pub(super) fn list(
    f: &mut fmt::Formatter<'_>,
    backups: &[BackupCopy],
    missing: u64,
) -> fmt::Result {
    if (backups.is_empty(), missing) == (true, 0) {
        return writeln!(f, "  in backups         none that the store knows of");
    }
    writeln!(f, "  in backups         not erased: destroy these, or their key")?;
    backups.iter().try_for_each(|copy| writeln!(f, "    - {copy}"))?;
    if backups.iter().any(|copy| copy.state == BackupState::RestoredFrom) {
        writeln!(
            f,
            "    - what the store that it was restored from has made besides is not known here"
        )?;
    }
    match missing {
        0 => Ok(()),
        missing => {
            let entries = if missing == 1 { "entry" } else { "entries" };
            writeln!(f, "    - unknown: {missing} {entries} of the register of backups missing")
        }
    }
}

/// What the register in the database says of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Registered {
    pub(crate) backup: BackupId,
    pub(crate) key: Fingerprint,
    /// Generation of the keyring in which it was begun.
    pub(crate) begun: u64,
    /// Milliseconds since 1970.
    pub(crate) begun_at: u64,
    pub(crate) end: Option<Ended>,
}

/// How a backup ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) is_made: bool,
    /// Generation of the keyring at the moment that the backup shows, or when it was given up.
    pub(crate) generation: u64,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    /// Of a backup of the whole store: orgs that it does not hold though it was to hold them.
    pub(crate) without: Vec<OrgId>,
}

impl Registered {
    pub(crate) const PREFIX: &'static [u8] = b"backup/";

    /// Where the entry lies in the database: by the org that was asked for, or `None` for the
    /// whole store, and by the generation in which it was begun.
    pub(crate) fn place(org: Option<OrgId>, begun: u64) -> Vec<u8> {
        [&Self::prefix(org)[..], &begun.to_be_bytes()].concat()
    }

    pub(crate) fn prefix(org: Option<OrgId>) -> Vec<u8> {
        let id = org.map_or([0; OrgId::LEN], |org| *org.as_bytes());
        [Self::PREFIX, &id[..]].concat()
    }

    /// The org that was asked for; `None` for the whole store, and for a place that is none.
    pub(crate) fn org_of(place: &[u8]) -> Option<OrgId> {
        let id = place.strip_prefix(Self::PREFIX)?.first_chunk()?;
        (*id != [0; OrgId::LEN]).then(|| OrgId::from_bytes(*id))
    }

    pub(crate) fn state(&self) -> BackupState {
        match &self.end {
            None => BackupState::UnderWay,
            Some(Ended { is_made: true, .. }) => BackupState::Made,
            Some(Ended { is_made: false, .. }) => BackupState::Unfinished,
        }
    }

    /// The moment that it shows, or when it was begun.
    pub(crate) fn at(&self) -> u64 {
        match &self.end {
            Some(end) if end.is_made => end.at,
            _ => self.begun_at,
        }
    }
}
