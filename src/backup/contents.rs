//! What a backup holds, as its end says and its entries prove.

use std::fmt;
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, malformed};
use super::manifest::{MOST_ORGS, Manifest, OrgPart};
use super::stream::{Head, Opener};
use crate::envelope::name::{MAX_NAME_SEGMENTS, segments};
use crate::error::{BackupError, Error, Result};
use crate::id::{BackupId, Fingerprint, KeyVersion, OrgId};
use crate::keyring::{NamePolicy, OrgEntry, OrgPolicy};
use crate::material::KeyMaterial;
use crate::policy::BackupPolicy;
use crate::text::{cut, printable};

/// What a backup holds. From [`BackupContents::read`], or from making one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupContents {
    /// Random identity of the backup.
    pub id: BackupId,
    /// Fingerprint of its key.
    pub key: Fingerprint,
    /// The store that it was made of.
    pub store: OrgId,
    /// The moment that it shows, milliseconds since 1970-01-01 UTC.
    pub at_unix_ms: u64,
    /// Whether all orgs were asked for.
    pub whole_store: bool,
    /// The orgs in it.
    pub orgs: Vec<BackedUpOrg>,
    /// Orgs that were asked for and could not be read.
    pub left_out: Vec<LeftOutOrg>,
    /// Records that did not open and were left out because that was asked for; the first 1,000.
    pub unreadable: Vec<UnreadableRecord>,
}

/// An org in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackedUpOrg {
    /// Name.
    pub name: String,
    /// Id.
    pub id: OrgId,
    /// What it may do.
    pub policy: OrgPolicy,
    /// Its newest key version: restored, it gets a higher one.
    pub newest_key: KeyVersion,
    /// Entries of records: a record that changed while the backup was made has several, of which
    /// the last counts.
    pub entries: u64,
    /// Bytes of the values of all entries.
    pub bytes: u64,
}

/// An org that a backup does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOutOrg {
    /// Name.
    pub name: String,
    /// Id.
    pub id: OrgId,
    /// Why.
    pub why: LeftOut,
}

/// Why a backup does not hold an org. In JSON an object with `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftOut {
    /// Its records need a key that is suspended.
    Suspended {
        /// The version.
        version: KeyVersion,
    },
    /// Its policy refuses backups.
    RefusedByPolicy,
}
crate::json::tagged!(LeftOut);

impl LeftOut {
    /// `None` for an org that backups hold.
    pub(crate) fn of(org: &OrgEntry) -> Option<Self> {
        match (org.withheld(), org.policy.backups()) {
            (_, BackupPolicy::Refuse) => Some(Self::RefusedByPolicy),
            (Some(version), _) => Some(Self::Suspended { version }),
            (None, _) => None,
        }
    }

    /// For an org that was asked for by name.
    pub(crate) fn error(self, org: &str) -> Error {
        let org = org.to_owned();
        match self {
            Self::Suspended { version } => Error::KeySuspended { org, version },
            Self::RefusedByPolicy => BackupError::OrgRefuses { org }.into(),
        }
    }
}

/// As a part of a sentence about the org.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended { version } => write!(f, "its {version} is suspended"),
            Self::RefusedByPolicy => f.write_str("its policy refuses backups"),
        }
    }
}

/// A record that did not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UnreadableRecord {
    /// Name of its org.
    pub org: String,
    /// Its name, escaped and cut to 256 characters.
    pub name: String,
    /// Why.
    pub why: String,
}

impl BackupContents {
    /// Opens a whole backup, checks every byte of it, and says what it holds. Needs no store.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{BackupContents, KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// # store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// # let key = KeyMaterial::generate()?;
    /// # let mut file = Vec::new();
    /// # store.backup(&key).write_to(&mut file)?;
    /// let contents = BackupContents::read(&key, &file[..])?;
    /// assert!(contents.is_complete());
    /// assert_eq!((contents.orgs[0].name.as_str(), contents.orgs[0].entries), ("acme", 1));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backup`](crate::Error::Backup) with what is wrong with it; errors of reading.
    pub fn read(key: &KeyMaterial, from: impl Read) -> Result<Self> {
        let (head, manifest) = check(key, from)?;
        Ok(Self::new(head, &manifest))
    }

    /// Whether it holds every record of every org that was asked for and does not refuse backups.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let refuses = |org: &LeftOutOrg| org.why == LeftOut::RefusedByPolicy;
        self.left_out.iter().all(refuses) && self.unreadable.is_empty()
    }

    pub(crate) fn new(head: Head, manifest: &Manifest) -> Self {
        let org = |part: &OrgPart| BackedUpOrg {
            name: part.history.name.clone(),
            id: part.history.id,
            policy: part.history.policy.clone(),
            newest_key: part.history.newest(),
            entries: part.entries,
            bytes: part.bytes,
        };
        Self {
            id: head.id,
            key: head.key,
            store: manifest.store,
            at_unix_ms: manifest.at,
            whole_store: manifest.is_whole,
            orgs: manifest.orgs.iter().map(org).collect(),
            left_out: manifest.left_out.iter().map(LeftOutOrg::printable).collect(),
            unreadable: manifest.unreadable.iter().map(UnreadableRecord::printable).collect(),
        }
    }
}

/// Whoever wrote the backup chose these texts, and they are for people.
impl LeftOutOrg {
    fn printable(&self) -> Self {
        Self { name: printable(self.name.as_bytes()), ..self.clone() }
    }
}

impl UnreadableRecord {
    /// Longest reason, characters.
    const WHY: usize = 1000;

    fn printable(&self) -> Self {
        Self {
            org: printable(self.org.as_bytes()),
            name: printable(self.name.as_bytes()),
            why: cut(self.why.as_bytes(), Self::WHY),
        }
    }
}

/// Opens everything to the end, without keeping it.
pub(crate) fn check(key: &KeyMaterial, from: impl Read) -> Result<(Head, Manifest)> {
    let mut opener = Opener::new(from, key)?;
    let mut seen: Vec<Seen> = Vec::new();
    let mut count = |org: usize, name: &[u8], bytes: usize| {
        if org >= MOST_ORGS {
            return Err(malformed("it has a record of no org"));
        }
        if org >= seen.len() {
            seen.resize(org + 1, Seen::default());
        }
        let seen = &mut seen[org];
        seen.entries += 1;
        seen.bytes += bytes as u64;
        seen.deepest = seen.deepest.max(segments(name));
        Ok(())
    };
    let manifest = loop {
        match opener.entry()? {
            Entry::Put { org, name, value } => count(org, &name, value.len())?,
            Entry::Delete { org, name } => count(org, &name, 0)?,
            Entry::End(manifest) => break manifest,
        }
    };
    manifest.check_limits()?;
    if seen.len() > manifest.orgs.len() {
        return Err(malformed("it has a record of no org"));
    }
    seen.resize(manifest.orgs.len(), Seen::default());
    let fits =
        |part: &OrgPart, seen: &Seen| (part.entries, part.bytes) == (seen.entries, seen.bytes);
    if !manifest.orgs.iter().zip(&seen).all(|(part, seen)| fits(part, seen)) {
        return Err(malformed("its list of contents does not fit its entries"));
    }
    manifest.check_sense()?;
    let too_deep = |(part, seen): (&OrgPart, &Seen)| {
        part.history.policy.names() == NamePolicy::Blinded && seen.deepest > MAX_NAME_SEGMENTS
    };
    if manifest.orgs.iter().zip(&seen).any(too_deep) {
        return Err(malformed("a record's name has more segments than its org allows"));
    }
    Ok((opener.head(), *manifest))
}

/// What is met of one org.
#[derive(Clone, Default)]
struct Seen {
    entries: u64,
    bytes: u64,
    /// The most segments that a name has.
    deepest: usize,
}
