//! What a backup holds, as its end says and its entries prove.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, malformed};
use super::stream::{Head, Opener};
use crate::error::Result;
use crate::id::{BackupId, Fingerprint, KeyVersion, OrgId};
use crate::keyring::{OrgHistory, OrgPolicy};
use crate::material::KeyMaterial;

/// The last entry of a backup: all that is known of its orgs but the records.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) store: OrgId,
    /// Milliseconds since 1970: of the moment that the records show.
    pub(crate) at: u64,
    pub(crate) is_whole: bool,
    pub(crate) orgs: Vec<OrgPart>,
    pub(crate) left_out: Vec<LeftOutOrg>,
    pub(crate) unreadable: Vec<UnreadableRecord>,
    /// Keys that the store knew besides those of `orgs`: of other orgs, erased ones, root keys.
    pub(crate) other_keys: Vec<Fingerprint>,
    pub(crate) backup_keys: Vec<Fingerprint>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrgPart {
    pub(crate) history: OrgHistory,
    pub(crate) entries: u64,
    /// Of values.
    pub(crate) bytes: u64,
}

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
    /// The suspended version that its records need.
    pub suspended: KeyVersion,
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

    /// Whether it holds every record of every org that was asked for.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_out.is_empty() && self.unreadable.is_empty()
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
            left_out: manifest.left_out.clone(),
            unreadable: manifest.unreadable.clone(),
        }
    }
}

/// Opens everything to the end, without keeping it.
pub(crate) fn check(key: &KeyMaterial, from: impl Read) -> Result<(Head, Manifest)> {
    let mut opener = Opener::new(from, key)?;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let mut count = |org: usize, bytes: usize| {
        /// More orgs than any backup has.
        const LIMIT: usize = 1 << 20;
        if org >= LIMIT {
            return Err(malformed("it has a record of no org"));
        }
        if org >= seen.len() {
            seen.resize(org + 1, (0, 0));
        }
        seen[org].0 += 1;
        seen[org].1 += bytes as u64;
        Ok(())
    };
    let manifest = loop {
        match opener.entry()? {
            Entry::Put { org, value, .. } => count(org, value.len())?,
            Entry::Delete { org, .. } => count(org, 0)?,
            Entry::End(manifest) => break manifest,
        }
    };
    let said = manifest.orgs.iter().map(|part| (part.entries, part.bytes));
    let silent = manifest.orgs.len().saturating_sub(seen.len());
    if !said.eq(seen.into_iter().chain(std::iter::repeat_n((0, 0), silent))) {
        return Err(malformed("its list of contents does not fit its entries"));
    }
    if !manifest.orgs.iter().all(|part| part.history.is_plausible()) {
        return Err(malformed("the history of an org's keys makes no sense"));
    }
    Ok((opener.head(), *manifest))
}
