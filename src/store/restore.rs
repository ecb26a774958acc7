//! Restoring a backup: first the whole of it is checked, then its records are sealed anew under
//! keys of their own, in orgs that nobody sees before they are whole.

mod records;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use serde::Serialize;

use crate::backup::{BackupContents, Entry, Head, Manifest, Opener, check};
use crate::engine::{Earlier, Engine, OrgState, Provenance};
use crate::error::{BackupError, Error, Result};
use crate::failpoint;
use crate::id::{Fingerprint, KeyVersion, OrgId, Origin};
use crate::keyring::{OrgHistory, sorted};
use crate::material::KeyMaterial;
use crate::org::{Batch, Org};
use crate::rotation::Rotations;
use crate::store::Store;

pub use records::{RecordSelection, RestoredRecords};

/// A backup that is to be restored. From [`Store::restore`](crate::Store::restore).
#[must_use = "nothing is restored before `read_from`"]
pub struct Restore<'a> {
    engine: &'a Arc<Engine>,
    rotations: &'a Arc<Rotations>,
    key: &'a KeyMaterial,
    /// All, if it is empty.
    only: HashSet<String>,
    keys: HashMap<String, KeyMaterial>,
    /// New names, by the names in the backup.
    names: HashMap<String, String>,
}

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// What the backup holds.
    pub backup: BackupContents,
    /// The orgs that were restored.
    pub orgs: Vec<RestoredOrg>,
}

/// An org that was restored.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RestoredOrg {
    /// Name: as it was, unless another one was asked for.
    pub name: String,
    /// Name that it has in the backup.
    pub was_name: String,
    /// Id, a new one.
    pub id: OrgId,
    /// The id that it had where the backup was made.
    pub was_id: OrgId,
    /// The key that its records are under now: higher than any that it ever had.
    pub key: KeyVersion,
    /// Who made that key.
    pub origin: Origin,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Who had made the key that sealed when the backup was made.
    pub was_origin: Origin,
    /// Records that it has now.
    pub records: u64,
}

impl Store {
    /// Restores orgs from a backup that was sealed under `key`: each under its name, with a new
    /// id, sealed anew under a new platform key (or one that it brings). What the backup says of
    /// their keys comes along: no material of theirs is taken and no version number issued again.
    pub fn restore<'a>(&'a self, key: &'a KeyMaterial) -> Restore<'a> {
        Restore::new(&self.engine, &self.rotations, key)
    }
}

impl<'a> Restore<'a> {
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        rotations: &'a Arc<Rotations>,
        key: &'a KeyMaterial,
    ) -> Self {
        let (only, keys, names) = (HashSet::new(), HashMap::new(), HashMap::new());
        Self { engine, rotations, key, only, keys, names }
    }

    /// This org alone; called again, several.
    pub fn only(mut self, org: &str) -> Self {
        self.only.insert(org.to_owned());
        self
    }

    /// Restores `org` under another name, also beside the org of its name that is there.
    pub fn rename(mut self, org: &str, name: &str) -> Self {
        self.names.insert(org.to_owned(), name.to_owned());
        self
    }

    /// Puts the records of `org` directly under a key that it brings, instead of a new platform
    /// key: new random bytes, never used before in any store that the backup knows of.
    pub fn with_key(mut self, org: &str, material: KeyMaterial) -> Self {
        self.keys.insert(org.to_owned(), material);
        self
    }

    /// Restores what is between the place where `from` stands and its end. It is read twice:
    /// once to check every byte of it, before anything is written, and once to write.
    ///
    /// All orgs appear together, when all of their records are durable. If this fails or the
    /// process is killed before, none of them is ever seen, their keys are destroyed, and what
    /// was written of them is deleted in the background: now or from the next open on. But where it
    /// fails with [`Error::SyncFailed`] or [`Error::WriteFailed`], nobody knows what the disk has kept:
    /// the next open finds all of the orgs, or none.
    ///
    /// # Errors
    /// [`Error::Backup`] with what is wrong with the backup; [`Error::OrgExists`] if the store
    /// has an org of the same name; [`Error::KeyReused`], [`Error::NotEntitled`] for a key that
    /// an org brings; disk errors of the machine.
    pub fn read_from(mut self, mut from: impl Read + Seek) -> Result<Restored> {
        self.engine.check_writable()?;
        let start = from.stream_position().map_err(reading)?;
        let (head, manifest) = check(self.key, &mut from)?;
        let chosen = self.choose(&manifest)?;
        let states = self.begin(head, &manifest, &chosen)?;
        let written = from
            .seek(SeekFrom::Start(start))
            .map_err(reading)
            .and_then(|_| self.write((head, &manifest), &chosen, &states, from))
            .and_then(|orgs| {
                self.engine.finish_restore(head.id, &states)?;
                Ok(orgs)
            });
        match written {
            Ok(orgs) => {
                tracing::info!(backup = %head.id, orgs = orgs.len(), "backup restored");
                Ok(Restored { backup: BackupContents::new(head, &manifest), orgs })
            }
            Err(error) => Err(self.give_up(&states, error)),
        }
    }

    /// The places of the orgs to restore, in the manifest.
    fn choose(&self, manifest: &Manifest) -> Result<Vec<usize>> {
        let missing = |org: &String| Error::from(BackupError::OrgMissing { org: org.clone() });
        let named: HashSet<&String> = manifest.orgs.iter().map(|p| &p.history.name).collect();
        let is_chosen = |org: &String| self.only.is_empty() || self.only.contains(org);
        let changed = || self.keys.keys().chain(self.names.keys());
        if let Some(org) = changed().chain(&self.only).find(|org| !named.contains(org)) {
            return Err(missing(org));
        }
        if let Some(org) = changed().find(|org| !is_chosen(org)) {
            return Err(BackupError::OrgNotChosen { org: org.clone() }.into());
        }
        let chosen = |place: &usize| is_chosen(&manifest.orgs[*place].history.name);
        Ok((0..manifest.orgs.len()).filter(chosen).collect())
    }

    fn begin(
        &mut self,
        head: Head,
        manifest: &Manifest,
        chosen: &[usize],
    ) -> Result<Vec<Arc<OrgState>>> {
        let mut among: Vec<Option<usize>> = vec![None; manifest.orgs.len()];
        chosen.iter().enumerate().for_each(|(at, &place)| among[place] = Some(at));
        let earlier = manifest.earlier.iter().map(|earlier| {
            let places = earlier.orgs.iter().filter_map(|place| *among.get(*place as usize)?);
            let keys = sorted(earlier.keys.clone());
            Earlier { backup: earlier.backup, orgs: places.collect(), keys }
        });
        let provenance = Provenance {
            backup: head.id,
            key: head.key,
            source: (manifest.store, manifest.at),
            keys: manifest.keys(),
            earlier: earlier.collect(),
        };
        let histories = chosen.iter().map(|&place| {
            let history = &manifest.orgs[place].history;
            match self.names.get(&history.name) {
                None => Cow::Borrowed(history),
                Some(name) => Cow::Owned(OrgHistory { name: name.clone(), ..history.clone() }),
            }
        });
        let histories: Vec<_> = histories.collect();
        let keys = chosen.iter().map(|&place| &manifest.orgs[place].history.name);
        let keys: Vec<_> = keys.map(|name| self.keys.remove(name)).collect();
        let orgs = histories.iter().map(AsRef::as_ref).zip(keys).collect();
        self.engine.begin_restore(provenance, orgs)
    }

    fn write(
        &self,
        (head, manifest): (Head, &Manifest),
        chosen: &[usize],
        states: &[Arc<OrgState>],
        from: impl Read,
    ) -> Result<Vec<RestoredOrg>> {
        let mut writers: Vec<Option<Writer>> = Vec::new();
        writers.resize_with(manifest.orgs.len(), || None);
        for (&place, state) in chosen.iter().zip(states) {
            let org = Org::new(Arc::clone(self.engine), Arc::clone(state));
            writers[place] = Some(Writer::new(org));
        }
        let mut opener = Opener::new(from, self.key).map_err(changed)?;
        if opener.head() != head {
            return Err(BackupError::Changed.into());
        }
        let mut pending = 0;
        loop {
            let (org, name, value) = match opener.entry().map_err(changed)? {
                Entry::Put { org, name, value } => (org, name, Some(value)),
                Entry::Delete { org, name } => (org, name, None),
                Entry::End(again) if *again == *manifest => break,
                Entry::End(_) => return Err(BackupError::Changed.into()),
            };
            let Some(Some(writer)) = writers.get_mut(org) else { continue };
            pending += writer.put(&name, value.as_deref())?;
            if pending > MOST_PENDING {
                for writer in writers.iter_mut().flatten() {
                    writer.flush()?;
                }
                pending = 0;
            }
        }
        let keys: HashMap<OrgId, (Fingerprint, Origin)> = self.engine.with_keyring(|keyring| {
            let newest = keyring.orgs.iter().map(|org| (org.id, org.newest()));
            newest.map(|(id, newest)| (id, (newest.fingerprint, newest.origin))).collect()
        });
        let written = chosen.iter().zip(writers.into_iter().flatten());
        let written = written.map(|(&place, writer)| {
            let history = &manifest.orgs[place].history;
            let key = keys.get(&writer.org.id()).copied();
            let missing = || Error::OrgUnknown { org: history.name.clone() };
            writer.finish(history, key.ok_or_else(missing)?)
        });
        written.collect()
    }

    /// Destroys the keys of what was begun, and has the rest deleted.
    fn give_up(&self, states: &[Arc<OrgState>], error: Error) -> Error {
        if self.engine.check_writable().is_ok() {
            tracing::warn!(%error, "a restore failed; what it wrote is erased");
        }
        match self.engine.abandon_restore(states) {
            Ok(()) => states.iter().for_each(|org| self.rotations.erase(org)),
            Err(error) => tracing::warn!(
                %error,
                "a restore failed; the next open finds all of its orgs, or erases what it wrote"
            ),
        }
        error
    }
}

/// Once the whole backup was checked, what does not open is no longer what it was.
fn changed(error: Error) -> Error {
    match error {
        Error::Backup(_) => BackupError::Changed.into(),
        other => other,
    }
}

fn reading(error: std::io::Error) -> Error {
    Error::io("reading the backup", error)
}

/// Bytes that all orgs together may have waiting to be written, where a backup jumps between them.
const MOST_PENDING: usize = 64 << 20;

/// Writes the records of one org in batches.
struct Writer {
    org: Org,
    batch: Batch,
    entries: usize,
    bytes: usize,
}

impl Writer {
    fn new(org: Org) -> Self {
        Self { batch: org.batch(), org, entries: 0, bytes: 0 }
    }

    /// How many bytes it keeps more than before.
    fn put(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<usize> {
        const ENTRIES: usize = 1000;
        const BYTES: usize = 4 << 20;
        /// About what an entry takes besides.
        const OVERHEAD: usize = 100;

        let batch = std::mem::replace(&mut self.batch, self.org.batch());
        self.batch = match value {
            Some(value) => batch.put(name, value),
            None => batch.delete(name),
        };
        let more = name.len() + value.map_or(0, <[u8]>::len) + OVERHEAD;
        self.entries += 1;
        self.bytes += more;
        if self.entries >= ENTRIES || self.bytes >= BYTES {
            self.flush()?;
        }
        Ok(more)
    }

    fn flush(&mut self) -> Result<()> {
        if self.entries == 0 {
            return Ok(());
        }
        std::mem::replace(&mut self.batch, self.org.batch()).commit()?;
        (self.entries, self.bytes) = (0, 0);
        failpoint::reach("restore.written", self.org.name());
        Ok(())
    }

    fn finish(
        mut self,
        history: &OrgHistory,
        (fingerprint, origin): (Fingerprint, Origin),
    ) -> Result<RestoredOrg> {
        self.flush()?;
        Ok(RestoredOrg {
            name: self.org.name().to_owned(),
            was_name: history.name.clone(),
            id: self.org.id(),
            was_id: history.id,
            key: self.org.state.gate.snapshot().active,
            origin,
            fingerprint,
            was_origin: history.versions.last().map_or(Origin::Platform, |v| v.origin),
            records: self.org.count()?,
        })
    }
}

impl fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("key", &self.key.fingerprint())
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}
