//! Making a backup while the store works: a picture of one moment, without a copy in memory.
//!
//! 1. each org is watched: from now on the names of what is written are noted;
//! 2. writers that did not see that have left; must come before 3, or the scan passes a record
//!    that is then written without a note;
//! 3. every record is read and sealed into the stream;
//! 4. what was noted meanwhile is read again and added, until that is little;
//! 5. all writers of all these orgs stand still while the last notes and what the keyring says of
//!    the orgs are taken into memory: the moment that the backup shows. Of several entries of a
//!    record the last counts;
//! 6. they go on, and what was taken is sealed into the stream, with the contents at its end.
//!
//! Nobody who writes to the store ever waits for the backup to be written.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use crate::audit::{AuditEvent, OrgRef};
use crate::backup::{
    BackedUpOrg, BackupContents, EarlierKeys, Head, LeftOutOrg, MOST_KEYS, MOST_UNREADABLE,
    Manifest, OrgPart, Sealer, UnreadableRecord,
};
use crate::engine::{Engine, OrgState, Watch};
use crate::envelope::Value;
use crate::error::{BackupError, Error, Result};
use crate::failpoint;
use crate::id::OrgId;
use crate::keyring::Keyring;
use crate::material::KeyMaterial;
use crate::org::Org;
use crate::text::{cut, printable};

type Tell<'a> = dyn FnMut(&str, u64) + 'a;

/// A backup that is to be made. From [`Store::backup`](crate::Store::backup).
#[must_use = "nothing is written before `write_to`"]
pub struct Backup<'a> {
    engine: &'a Arc<Engine>,
    key: &'a KeyMaterial,
    /// All, if it is empty.
    only: HashSet<String>,
    skip_unreadable: bool,
    on_progress: Option<Box<Tell<'a>>>,
    limits: Limits,
}

/// What ends the race with those who write.
#[derive(Clone, Copy)]
struct Limits {
    /// Times that what changed meanwhile is read again.
    rounds: usize,
    /// Names that may be left for the standstill, but in the last round.
    few: usize,
    /// Bytes of values that are held in memory then, and one value more.
    held: usize,
}

const LIMITS: Limits = Limits { rounds: 50, few: 100, held: 64 << 20 };

impl<'a> Backup<'a> {
    pub(super) fn new(engine: &'a Arc<Engine>, key: &'a KeyMaterial) -> Self {
        Self {
            engine,
            key,
            only: HashSet::new(),
            skip_unreadable: false,
            on_progress: None,
            limits: LIMITS,
        }
    }

    /// Of this org alone; called again, of several. Such a backup tells nothing of other orgs, not
    /// even that there are any.
    pub fn only(mut self, org: &str) -> Self {
        self.only.insert(org.to_owned());
        self
    }

    /// Leaves records out that do not open, and names them in the contents. Without this, the
    /// first one ends the backup with its error.
    pub fn skip_unreadable(mut self) -> Self {
        self.skip_unreadable = true;
        self
    }

    /// Is told now and then which org is being read, and how many of its records are written.
    pub fn on_progress(mut self, tell: impl FnMut(&str, u64) + 'a) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    fn is_of(&self, org: &OrgState) -> bool {
        self.only.is_empty() || self.only.contains(&*org.name)
    }

    /// Writes the backup. Believe in what is written only if this returns `Ok`; whether it is
    /// durable is up to `to`. Writes to the store go on, and never wait for `to`. That it was begun is
    /// audited before anything is written, and that it was made when all is: if that fails, or
    /// the process is killed before it, what was written can be restored all the same.
    ///
    /// # Errors
    /// [`Error::KeyReused`] if the backup key is or was an org's key or a root key;
    /// [`Error::OrgUnknown`]; [`Error::KeySuspended`] for an org asked for by name, or for any that
    /// is suspended while it is read; [`Error::OrgErased`] if one is erased meanwhile;
    /// [`Error::RecordDamaged`], [`BackupError::Outrun`]; errors of `to`.
    pub fn write_to(self, to: impl Write) -> Result<BackupContents> {
        let head = Head::new(self.key)?;
        for org in &self.only {
            self.engine.org(org)?;
        }
        let mut only: Vec<_> = self.only.iter().cloned().collect();
        only.sort_unstable();
        self.engine.begin_backup(head.id, head.key, &only)?;
        let sealer = Sealer::new(to, self.key, head)?;
        let (engine, key) = (self.engine, head.key);
        let whole_store = self.only.is_empty();
        let making = Making {
            plan: self,
            sealer,
            parts: Vec::new(),
            known: HashSet::new(),
            pending: Vec::new(),
            left_out: Vec::new(),
            unreadable: Vec::new(),
            skipped: HashSet::new(),
            unnamed: 0,
        };
        let (contents, unreadable) = making.run(head)?;
        let named = |org: &BackedUpOrg| OrgRef { name: org.name.clone(), id: org.id };
        let left_out = contents.left_out.len() as u64;
        let event = AuditEvent::BackupMade {
            backup: head.id,
            whole_store,
            orgs: contents.orgs.iter().map(named).collect(),
            left_out: Some(left_out),
            unreadable: Some(unreadable),
        };
        engine.audit_backup(event, key)?;
        tracing::info!(backup = %head.id, orgs = contents.orgs.len(), left_out, "backup made");
        Ok(contents)
    }
}

/// An org that is in the backup.
struct Part {
    org: Org,
    watch: Watch,
    entries: u64,
    bytes: u64,
}

struct Making<'a, W> {
    plan: Backup<'a>,
    sealer: Sealer<W>,
    parts: Vec<Part>,
    /// Orgs that are in it or left out.
    known: HashSet<OrgId>,
    /// Noted names that are to be read again, by the place of their org.
    pending: Vec<(usize, Arc<[u8]>)>,
    left_out: Vec<LeftOutOrg>,
    unreadable: Vec<UnreadableRecord>,
    /// Records that do not open, by org and name, and how many have no name that opens.
    skipped: HashSet<(usize, Vec<u8>)>,
    unnamed: u64,
}

/// The end of a backup, taken at one moment.
struct Last {
    records: Vec<(usize, Arc<[u8]>, Option<Value>)>,
    manifest: Manifest,
}

impl<W: Write> Making<'_, W> {
    /// The contents, and how many records were left out.
    fn run(mut self, head: Head) -> Result<(BackupContents, u64)> {
        let Limits { rounds, few, .. } = self.plan.limits;
        for round in 1..=rounds {
            self.take_up()?;
            let reread = self.catch_up()?;
            if reread > few && round < rounds {
                continue;
            }
            failpoint::reach("backup.caught_up", "");
            if let Some(last) = self.stand_still()? {
                return self.end(head, last);
            }
        }
        Err(BackupError::Outrun.into())
    }

    /// Watches and scans every org that is not in the backup yet.
    fn take_up(&mut self) -> Result<()> {
        let withheld = self.plan.engine.with_keyring(|keyring| {
            let withheld = keyring.orgs.iter().filter_map(|org| Some((org.id, org.withheld()?)));
            withheld.collect::<HashMap<_, _>>()
        });
        for state in self.plan.engine.orgs() {
            if !self.plan.is_of(&state) || !self.known.insert(state.id) {
                continue;
            }
            match (withheld.get(&state.id).copied(), self.plan.only.is_empty()) {
                (None, _) => self.scan(state)?,
                (Some(suspended), true) => {
                    let (name, id) = (state.name.to_string(), state.id);
                    self.left_out.push(LeftOutOrg { name, id, suspended });
                }
                (Some(version), false) => {
                    let org = state.name.to_string();
                    return Err(Error::KeySuspended { org, version });
                }
            }
        }
        Ok(())
    }

    fn scan(&mut self, state: Arc<OrgState>) -> Result<()> {
        let org = Org::new(Arc::clone(self.plan.engine), Arc::clone(&state));
        let watch = org.watch("")?;
        drop(state.gate.hold());
        let records = org.scan("");
        let part = self.parts.len();
        self.parts.push(Part { org, watch, entries: 0, bytes: 0 });
        if self.plan.skip_unreadable {
            for name in records.names() {
                let name = match name {
                    Err(Error::RecordDamaged { name, why, .. }) => {
                        self.unnamed += 1;
                        self.note(part, name, why);
                        continue;
                    }
                    // Blinded under it: nobody can say what it is called, or ask for it.
                    Err(error @ Error::KeyRetired { .. }) => {
                        self.unnamed += 1;
                        self.note(part, "(blinded)".to_owned(), error.to_string());
                        continue;
                    }
                    name => name?,
                };
                if let Some(value) = self.read(part, &name)? {
                    self.put(part, &name, Some(&value))?;
                }
            }
        } else {
            for record in records {
                let record = record?;
                self.put(part, &record.name, Some(&record.value))?;
            }
        }
        Ok(())
    }

    /// Reads what was noted again. How many records that were.
    fn catch_up(&mut self) -> Result<usize> {
        self.collect_notes();
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len();
        for (part, name) in pending {
            let value = self.read(part, &name)?;
            self.put(part, &name, value.as_deref())?;
        }
        Ok(count)
    }

    /// `None` if too much is left, or an org came that is not in the backup yet.
    fn stand_still(&mut self) -> Result<Option<Last>> {
        let engine = Arc::clone(self.plan.engine);
        let only = self.plan.only.clone();
        engine.at_standstill(&only, |keyring, orgs| {
            self.collect_notes();
            if orgs.iter().any(|org| !self.known.contains(&org.id)) {
                return Ok(None);
            }
            let mut bytes = 0;
            let mut records = Vec::with_capacity(self.pending.len());
            for (part, name) in self.pending.clone() {
                if bytes > self.plan.limits.held {
                    return Ok(None);
                }
                let value = self.read(part, &name)?;
                bytes += name.len() + value.as_deref().map_or(0, <[u8]>::len);
                records.push((part, name, value));
            }
            Ok(Some(Last { records, manifest: self.manifest(keyring)? }))
        })
    }

    fn end(mut self, head: Head, last: Last) -> Result<(BackupContents, u64)> {
        let Last { records, mut manifest } = last;
        for (part, name, value) in records {
            self.put(part, &name, value.as_deref())?;
        }
        for (said, part) in manifest.orgs.iter_mut().zip(&self.parts) {
            (said.entries, said.bytes) = (part.entries, part.bytes);
        }
        if manifest.is_whole {
            self.note_other_keys(&mut manifest);
        }
        manifest.unreadable = self.unreadable;
        manifest.check_limits()?;
        self.sealer.end(&manifest)?;
        let unreadable = self.skipped.len() as u64 + self.unnamed;
        Ok((BackupContents::new(head, &manifest), unreadable))
    }

    /// What the keyring says at this moment; the rest comes later.
    fn manifest(&self, keyring: &Keyring) -> Result<Manifest> {
        let by_id = keyring.by_id();
        let part = |part: &Part| {
            let erased = || Error::OrgErased { org: part.org.name().to_owned() };
            let entry = by_id.get(&part.org.id()).filter(|org| org.is_seen()).ok_or_else(erased)?;
            if let Some(version) = entry.withheld() {
                return Err(Error::KeySuspended { org: entry.name.clone(), version });
            }
            Ok(OrgPart { history: entry.history(), entries: 0, bytes: 0 })
        };
        Ok(Manifest {
            store: keyring.store,
            at: self.plan.engine.clock.wall()?,
            is_whole: self.plan.only.is_empty(),
            orgs: self.parts.iter().map(part).collect::<Result<Vec<_>>>()?,
            left_out: self.left_out.clone(),
            unreadable: Vec::new(),
            other_keys: Vec::new(),
            earlier: Vec::new(),
        })
    }

    /// Nobody who writes waits for it. What came with restored orgs from elsewhere goes on with
    /// them as far as there is room: only whoever wrote those backups vouches for it.
    fn note_other_keys(&self, manifest: &mut Manifest) {
        let ids: Vec<OrgId> = manifest.orgs.iter().map(|part| part.history.id).collect();
        self.plan.engine.with_keyring(|keyring| {
            manifest.other_keys = keyring.other_keys(&ids.iter().copied().collect());
            let mut room = MOST_KEYS.saturating_sub(manifest.key_count());
            for (foreign, orgs) in keyring.foreign_of(&ids) {
                let needed = foreign.keys.len() + orgs.len();
                if needed > room {
                    let keys = foreign.keys.len();
                    tracing::warn!(from = %foreign.backup, keys, "foreign keys are left out of a backup");
                    continue;
                }
                room -= needed;
                let (backup, keys) = (foreign.backup, foreign.keys.to_vec());
                manifest.earlier.push(EarlierKeys { backup, orgs, keys });
            }
        });
    }

    fn collect_notes(&mut self) {
        for (index, part) in self.parts.iter().enumerate() {
            self.pending.extend(part.watch.take_names().into_iter().map(|name| (index, name)));
        }
    }

    fn put(&mut self, part: usize, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        const BETWEEN: u64 = 256;

        self.sealer.record(part, name, value)?;
        let part = &mut self.parts[part];
        part.entries += 1;
        part.bytes += value.map_or(0, <[u8]>::len) as u64;
        if part.entries.is_multiple_of(BETWEEN)
            && let Some(tell) = &mut self.plan.on_progress
        {
            tell(part.org.name(), part.entries);
        }
        Ok(())
    }

    /// The record's value now; `None` if there is none that opens and that may be.
    fn read(&mut self, part: usize, name: &[u8]) -> Result<Option<Value>> {
        let org = &self.parts[part].org.state;
        self.plan.engine.check_open()?;
        org.check_exists()?;
        match self.plan.engine.read(org, name) {
            Err(error) if self.may_skip(&error) => {
                self.skip(part, name, error.to_string());
                Ok(None)
            }
            read => read,
        }
    }

    fn may_skip(&self, error: &Error) -> bool {
        self.plan.skip_unreadable
            && matches!(error, Error::RecordDamaged { .. } | Error::KeyRetired { .. })
    }

    /// Once, however often it is read.
    fn skip(&mut self, part: usize, name: &[u8], why: String) {
        if self.skipped.insert((part, name.to_vec())) {
            self.note(part, printable(name), why);
        }
    }

    fn note(&mut self, part: usize, name: String, why: String) {
        const WHY: usize = 1000;

        if self.unreadable.len() < MOST_UNREADABLE {
            let org = self.parts[part].org.name().to_owned();
            let why = cut(why.as_bytes(), WHY);
            self.unreadable.push(UnreadableRecord { org, name, why });
        }
    }
}

impl fmt::Debug for Backup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("key", &self.key.fingerprint())
            .field("only", &self.only)
            .field("skip_unreadable", &self.skip_unreadable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::OrgPolicy;
    use crate::keyring::root::RootKey;
    use crate::store::Store;

    /// Writes more than may be held, whenever a piece of the backup is written.
    struct Restless<'a>(&'a Org, u64);

    impl Write for Restless<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 += 1;
            for name in 0..200 {
                let value = [self.1.to_be_bytes(); 128].concat();
                self.0.put(format!("{name}"), value).map_err(std::io::Error::other)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_backup_that_cannot_catch_up_fails_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let store = Store::open(dir.path().join("data"), root).unwrap();
        let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
        let key = KeyMaterial::generate().unwrap();
        let made = |limits| {
            let backup = Backup { limits, ..store.backup(&key) };
            backup.write_to(Restless(&org, 0))
        };
        let refused = made(Limits { rounds: 3, few: 100, held: 100_000 });
        assert!(matches!(refused, Err(Error::Backup(BackupError::Outrun))));
        made(Limits { rounds: 3, few: 100, held: 300_000 }).unwrap();
    }
}
