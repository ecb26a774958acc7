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
use std::io::Write;
use std::sync::Arc;

use super::{Backup, Limits};
use crate::audit::{AuditEvent, OrgRef};
use crate::backup::{
    BackedUpOrg, BackupContents, EarlierKeys, Head, LeftOut, LeftOutOrg, MOST_KEYS,
    MOST_UNREADABLE, Manifest, OrgPart, Sealer, UnreadableRecord,
};
use crate::engine::{BackupMade, OrgState, Watch};
use crate::envelope::Value;
use crate::error::{BackupError, Error, Result};
use crate::failpoint;
use crate::id::OrgId;
use crate::keyring::{Keyring, Treatment};
use crate::org::Org;
use crate::text::{cut, printable};

/// An org that is in the backup.
struct Part {
    org: Org,
    watch: Watch,
    entries: u64,
    bytes: u64,
}

pub(super) struct Making<'a, W> {
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
    /// Orgs that are there and are not in it, though nothing stands against that.
    without: Vec<OrgId>,
    generation: u64,
}

/// A backup that was made, and what is noted of that.
pub(super) struct Made {
    pub(super) contents: BackupContents,
    pub(super) moment: BackupMade,
}

impl<'a, W: Write> Making<'a, W> {
    pub(super) fn new(plan: Backup<'a>, sealer: Sealer<W>) -> Self {
        Self {
            plan,
            sealer,
            parts: Vec::new(),
            known: HashSet::new(),
            pending: Vec::new(),
            left_out: Vec::new(),
            unreadable: Vec::new(),
            skipped: HashSet::new(),
            unnamed: 0,
        }
    }

    pub(super) fn run(mut self, head: Head) -> Result<Made> {
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
        let whole = self.plan.only.is_empty();
        let reasons = self.plan.engine.with_keyring(|keyring| {
            let reasons = keyring.orgs.iter().filter_map(|org| Some((org.id, LeftOut::of(org)?)));
            reasons.collect::<HashMap<_, _>>()
        });
        for state in self.plan.engine.orgs() {
            if !self.plan.is_of(&state) || !self.known.insert(state.id) {
                continue;
            }
            match reasons.get(&state.id) {
                None => self.scan(state)?,
                Some(&why) if whole => {
                    let (name, id) = (state.name.to_string(), state.id);
                    self.left_out.push(LeftOutOrg { name, id, why });
                }
                Some(why) => return Err(why.error(&state.name)),
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
                    Err(Error::RecordNameless { key, why, .. }) => {
                        self.unnamed += 1;
                        self.note(part, format!("(nameless) {key}"), why);
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
            let manifest = self.manifest(keyring)?;
            let without = self.without(keyring);
            Ok(Some(Last { records, manifest, without, generation: keyring.generation }))
        })
    }

    fn end(mut self, head: Head, last: Last) -> Result<Made> {
        let Last { records, mut manifest, without, generation } = last;
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
        let contents = BackupContents::new(head, &manifest);
        let named = |org: &BackedUpOrg| OrgRef { name: org.name.clone(), id: org.id };
        let event = AuditEvent::BackupMade {
            backup: head.id,
            whole_store: manifest.is_whole,
            orgs: contents.orgs.iter().map(named).collect(),
            left_out: Some(contents.left_out.len() as u64),
            unreadable: Some(self.skipped.len() as u64 + self.unnamed),
        };
        let moment = BackupMade { generation, at: manifest.at, without, event };
        Ok(Made { contents, moment })
    }

    /// What the keyring says at this moment; the rest comes later.
    fn manifest(&self, keyring: &Keyring) -> Result<Manifest> {
        let by_id = keyring.by_id();
        let part = |part: &Part| {
            let erased = || Error::OrgErased { org: part.org.name().to_owned() };
            let entry = by_id.get(&part.org.id()).filter(|org| org.is_seen()).ok_or_else(erased)?;
            match LeftOut::of(entry) {
                None => {}
                Some(LeftOut::RefusedByPolicy) => {
                    let org = entry.name.clone();
                    return Err(BackupError::PolicyChanged { org }.into());
                }
                Some(why) => return Err(why.error(&entry.name)),
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

    /// Orgs that a backup of the whole store would hold if it were begun at this moment.
    fn without(&self, keyring: &Keyring) -> Vec<OrgId> {
        let held: HashSet<OrgId> = self.parts.iter().map(|part| part.org.id()).collect();
        let missed = keyring.orgs.iter().filter(|org| {
            self.plan.only.is_empty()
                && org.treatment() != Treatment::LeftOut
                && !held.contains(&org.id)
        });
        missed.map(|org| org.id).collect()
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
