//! The register of backups: what the store knows of the copies that were made of its orgs.

use super::Engine;
use super::change::Drafts;
use crate::audit::{AuditEvent, BackupCopy, BackupState, Draft, Ended, Registered};
use crate::error::Result;
use crate::failpoint;
use crate::id::OrgId;
use crate::keyring::{Keyring, Owed, RestoredFrom, Treatment, Treatments, UnderWay};
use crate::storage::{Space, prefix_range};

/// Backups that hold an org, as far as the store knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    /// In the order of their times.
    pub(crate) known: Vec<BackupCopy>,
    /// Entries of the register that are not there, or do not open.
    pub(crate) missing: u64,
}

/// What the register is to be asked about an org.
struct Asked {
    id: OrgId,
    treatments: Treatments,
    registered: u64,
}

impl Engine {
    /// Has the keyring that is being changed owe the register what is so of a backup now.
    fn owe_registered(
        &self,
        keyring: &mut Keyring,
        backup: &UnderWay,
        end: Option<&Ended>,
    ) -> Result<()> {
        let notary = self.notary();
        let all = backup.orgs.iter().map(|id| Some(*id));
        let whole = backup.orgs.is_empty().then_some(None);
        for org in all.chain(whole) {
            let entry = Registered {
                backup: backup.backup,
                key: backup.key,
                begun: backup.begun,
                begun_at: backup.begun_at,
                end: end.cloned(),
            };
            let key = Registered::place(org, backup.begun);
            let value = notary.seal(&key, &entry)?;
            keyring.outbox.push(Owed { key, value });
        }
        Ok(())
    }

    fn end_under_way(
        &self,
        keyring: &mut Keyring,
        drafts: &mut Drafts,
        backup: &UnderWay,
        end: &Ended,
    ) -> Result<()> {
        keyring.backups.under_way.retain(|other| other.backup != backup.backup);
        self.owe_registered(keyring, backup, Some(end))?;
        if !end.is_made {
            let event = AuditEvent::BackupNotFinished { backup: backup.backup };
            drafts.push(Draft { fingerprint: Some(backup.key), ..Draft::new(event) });
        }
        Ok(())
    }

    /// At open: whatever was being made when the store was last open has ended.
    pub(super) fn end_cut_off_backups(&self) -> Result<()> {
        if self.with_keyring(|keyring| keyring.backups.under_way.is_empty()) {
            return Ok(());
        }
        self.change(None, |keyring, drafts| {
            let end = Ended {
                is_made: false,
                generation: keyring.generation,
                at: keyring.time.wall,
                without: Vec::new(),
            };
            for backup in std::mem::take(&mut keyring.backups.under_way) {
                tracing::warn!(backup = %backup.backup, "a backup was cut off");
                self.end_under_way(keyring, drafts, &backup, &end)?;
            }
            Ok(())
        })?;
        failpoint::reach("backup.given_up", "");
        Ok(())
    }

    /// Every backup that holds an org, erased or not, or that it was restored from; also of the
    /// orgs that it was before.
    pub(crate) fn copies_of(&self, org: OrgId) -> Result<Copies> {
        let (asked, sources, whole, store, generation) = self.with_keyring(|keyring| {
            let entry = keyring.entry(org);
            let ancestors = entry.map_or(&[][..], |entry| &entry.ancestors);
            let kin: std::collections::HashSet<_> = ancestors.iter().chain([&org]).collect();
            let known = || keyring.orgs.iter().filter(|org| kin.contains(&org.id));
            let asked = known().map(|org| Asked {
                id: org.id,
                treatments: org.treatments.clone(),
                registered: org.registered,
            });
            (
                asked.collect::<Vec<_>>(),
                known().filter_map(|org| org.restored_from).collect::<Vec<_>>(),
                keyring.backups.whole,
                keyring.store,
                keyring.generation,
            )
        });
        let mut copies = Copies { missing: whole, known: Vec::new() };
        copies.known.extend(sources.into_iter().map(|from| {
            let RestoredFrom { backup, key, store, org, at } = from;
            let state = BackupState::RestoredFrom;
            BackupCopy { backup, key, at_unix_ms: at, state, store, org_id: org }
        }));
        self.read_register(&Registered::prefix(None), &mut |_, entry| {
            copies.missing = copies.missing.saturating_sub(1);
            let holds = asked.iter().filter(|org| org.is_held_by(&entry, generation));
            copies.known.extend(holds.map(|org| copy(&entry, store, org.id)));
        })?;
        for org in &asked {
            let mut missing = org.registered;
            self.read_register(&Registered::prefix(Some(org.id)), &mut |_, entry| {
                missing = missing.saturating_sub(1);
                copies.known.push(copy(&entry, store, org.id));
            })?;
            copies.missing += missing;
        }
        copies.known.sort_by_key(|copy| (copy.at_unix_ms, *copy.backup.as_bytes()));
        copies.known.dedup();
        Ok(copies)
    }

    /// Gives each entry that opens to `each`, with its place.
    pub(crate) fn read_register(
        &self,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], Registered),
    ) -> Result<()> {
        for pair in self.storage.scan(Space::System, prefix_range(prefix)) {
            let (key, stored) = pair?;
            if let Some(entry) = self.open_kept(&key, &stored)? {
                each(&key, entry);
            }
        }
        Ok(())
    }
}

fn copy(entry: &Registered, store: OrgId, org_id: OrgId) -> BackupCopy {
    let Registered { backup, key, .. } = *entry;
    BackupCopy { backup, key, at_unix_ms: entry.at(), state: entry.state(), store, org_id }
}

impl Asked {
    /// Returns true if a backup of the whole store holds the org, or may hold records of it.
    fn is_held_by(&self, backup: &Registered, now: u64) -> bool {
        match &backup.end {
            Some(end) if end.is_made => {
                let treatment = self.treatments.at(end.generation);
                treatment != Treatment::LeftOut && !end.without.contains(&self.id)
            }
            end => {
                let to = end.as_ref().map_or(now, |end| end.generation);
                let mut may = self.treatments.within(backup.begun, to);
                may.any(|treatment| treatment != Treatment::LeftOut)
            }
        }
    }
}

#[cfg(feature = "backup")]
mod making {
    use super::{Draft, Ended, Engine, OrgId, Result, UnderWay, failpoint};
    use crate::audit::{AuditEvent, OrgRef};
    use crate::error::Error;
    use crate::id::{BackupId, Fingerprint};
    use crate::keyring::OrgEntry;

    /// What a backup turned out to be.
    pub(crate) struct BackupMade {
        /// Generation of the keyring at the moment that it shows.
        pub(crate) generation: u64,
        /// Milliseconds since 1970.
        pub(crate) at: u64,
        /// Orgs that were there at that moment and are not in it.
        pub(crate) without: Vec<OrgId>,
        pub(crate) event: AuditEvent,
    }

    impl Engine {
        /// Notes a backup, and its key, before anything is sealed: no org gets that key, and no
        /// copy of an org exists of which the register does not know. An org of `only` that has a
        /// `refusal` is not backed up.
        pub(crate) fn begin_backup(
            &self,
            backup: BackupId,
            key: Fingerprint,
            only: &[String],
            refusal: impl Fn(&OrgEntry) -> Option<Error>,
        ) -> Result<()> {
            self.check_open()?;
            self.change(None, |keyring, drafts| {
                keyring.add_backup_key(key)?;
                let mut named = Vec::with_capacity(only.len());
                for name in only {
                    let org = keyring.org(name)?;
                    if let Some(error) = refusal(org) {
                        return Err(error);
                    }
                    named.push(OrgRef { name: name.clone(), id: org.id });
                }
                let orgs: Vec<OrgId> = named.iter().map(|org| org.id).collect();
                match orgs.is_empty() {
                    true => keyring.backups.whole += 1,
                    false => keyring.note_registered(&orgs),
                }
                let begun = keyring.generation;
                let begun_at = keyring.time.wall;
                let under_way = UnderWay { backup, key, begun, begun_at, orgs };
                self.owe_registered(keyring, &under_way, None)?;
                keyring.backups.under_way.push(under_way);
                let event = AuditEvent::BackupBegun { backup, only: named };
                drafts.push(Draft { fingerprint: Some(key), ..Draft::new(event) });
                Ok(())
            })?;
            failpoint::reach("backup.begun", "");
            Ok(())
        }

        /// Notes how a backup ended: `None` if it was not finished.
        pub(crate) fn end_backup(&self, backup: BackupId, made: Option<BackupMade>) -> Result<()> {
            failpoint::reach("backup.sealed", "");
            self.change(None, |keyring, drafts| {
                let mut all = keyring.backups.under_way.iter();
                let Some(begun) = all.find(|other| other.backup == backup).cloned() else {
                    return Ok(());
                };
                let end = match made {
                    Some(BackupMade { generation, at, without, event }) => {
                        drafts.push(Draft { fingerprint: Some(begun.key), ..Draft::new(event) });
                        Ended { is_made: true, generation, at, without }
                    }
                    None => Ended {
                        is_made: false,
                        generation: keyring.generation,
                        at: keyring.time.wall,
                        without: Vec::new(),
                    },
                };
                self.end_under_way(keyring, drafts, &begun, &end)
            })?;
            failpoint::reach("backup.ended", "");
            Ok(())
        }
    }
}
#[cfg(feature = "backup")]
pub(crate) use making::BackupMade;
