//! What the keyring knows of backups: from when to when a backup of the whole store held an org,
//! which backups are under way, how many the register in the database has, and how a restore ends. Times are
//! generations of the keyring, which no clock can turn back.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Erasure, Keyring, OrgEntry};
use crate::id::{BackupId, Fingerprint, KeyState, KeyVersion, OrgId};
use crate::policy::BackupPolicy;

/// How a backup of the whole store treats an org.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Treatment {
    /// It is left out: its policy says so, it cannot be read, or nobody sees it.
    LeftOut,
    /// It is in it, under the key of the backup.
    Held,
}

/// How backups of the whole store treated an org, each from a generation on; before the first
/// they did not hold it.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Treatments(Vec<(u64, Treatment)>);

impl Treatments {
    /// How a backup treated it that shows the moment of this generation.
    pub(crate) fn at(&self, generation: u64) -> Treatment {
        let before = self.0.iter().rev().find(|(since, _)| *since <= generation);
        before.map_or(Treatment::LeftOut, |(_, treatment)| *treatment)
    }

    /// Every way in which a backup may have treated it that was under way from one generation to
    /// another.
    pub(crate) fn within(&self, from: u64, to: u64) -> impl Iterator<Item = Treatment> + '_ {
        let later = self.0.iter().filter(move |(since, _)| *since > from && *since <= to);
        std::iter::once(self.at(from)).chain(later.map(|(_, treatment)| *treatment))
    }

    fn note(&mut self, generation: u64, now: Treatment) {
        if self.at(generation) != now {
            self.0.retain(|(since, _)| *since < generation);
            self.0.push((generation, now));
        }
    }
}

/// What the keyring knows of backups of this store.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Backups {
    /// How many backups of the whole store the register has.
    pub(crate) whole: u64,
    pub(crate) under_way: Vec<UnderWay>,
}

/// A backup that was begun and has not ended.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct UnderWay {
    pub(crate) backup: BackupId,
    pub(crate) key: Fingerprint,
    /// Generation of the keyring in which it was begun.
    pub(crate) begun: u64,
    /// Milliseconds since 1970.
    pub(crate) begun_at: u64,
    /// The orgs that were asked for; none if it is of the whole store.
    pub(crate) orgs: Vec<OrgId>,
}

/// The backup that an org was restored from.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct RestoredFrom {
    pub(crate) backup: BackupId,
    pub(crate) key: Fingerprint,
    pub(crate) store: OrgId,
    /// The org's id there.
    pub(crate) org: OrgId,
    /// The moment that it shows, milliseconds since 1970.
    pub(crate) at: u64,
}

impl Keyring {
    /// Notes of every org how backups of the whole store treat it from this generation on. Part
    /// of each change, so that no change can forget it.
    pub(crate) fn note_treatments(&mut self) {
        let generation = self.generation;
        for org in &mut self.orgs {
            let now = org.treatment();
            org.treatments.note(generation, now);
        }
    }

    /// Counts an entry of the register for each of these orgs.
    #[cfg(feature = "backup")]
    pub(crate) fn note_registered(&mut self, orgs: &[OrgId]) {
        let asked: HashSet<_> = orgs.iter().collect();
        let asked = self.orgs.iter_mut().filter(|org| asked.contains(&org.id));
        asked.for_each(|org| org.registered += 1);
    }
}

impl Keyring {
    /// Restored orgs are whole: they are orgs like any other.
    #[cfg(feature = "backup")]
    pub(crate) fn end_restore(&mut self, orgs: &HashSet<OrgId>) {
        let ended = self.orgs.iter_mut().filter(|org| orgs.contains(&org.id));
        ended.for_each(|org| org.is_restoring = false);
    }

    /// Destroys the keys of orgs that never became whole.
    pub(crate) fn give_up_restore(&mut self, orgs: &HashSet<OrgId>, now: u64) {
        for org in self.orgs.iter_mut().filter(|org| org.is_restoring && orgs.contains(&org.id)) {
            org.is_restoring = false;
            org.destroy_keys(now);
        }
        self.looks = None;
    }
}

impl OrgEntry {
    /// Its records stay, and nobody can open them.
    pub(super) fn destroy_keys(&mut self, now: u64) -> Vec<KeyVersion> {
        let mut destroyed = Vec::new();
        for version in self.versions.iter_mut().filter(|v| v.state != KeyState::Retired) {
            version.state = KeyState::Retired;
            version.material = None;
            version.retired = Some(now);
            destroyed.push(version.version);
        }
        self.suite_before = None;
        self.erasure = Some(Erasure::KeysDestroyed);
        destroyed
    }

    /// The suspended version that some of its records may need.
    pub(crate) fn withheld(&self) -> Option<KeyVersion> {
        let mut versions = self.versions.iter();
        versions.find(|v| v.state == KeyState::Suspended).map(|v| v.version)
    }

    /// How a backup of the whole store treats it now.
    pub(crate) fn treatment(&self) -> Treatment {
        if !self.is_seen() || self.withheld().is_some() {
            return Treatment::LeftOut;
        }
        match self.policy.backups() {
            BackupPolicy::Include => Treatment::Held,
            BackupPolicy::Refuse => Treatment::LeftOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Origin;
    use crate::keyring::OrgPolicy;
    use crate::material::KeyMaterial;

    fn material(byte: u8) -> KeyMaterial {
        KeyMaterial::take(&mut [byte; 32])
    }

    #[test]
    fn how_an_org_was_treated_is_known_for_every_generation() {
        use Treatment::{Held, LeftOut};
        let id = OrgId::from_bytes([1; 16]);
        let mut ring = Keyring::new(material(9).fingerprint()).unwrap();
        let mut change = |generation: u64, change: &dyn Fn(&mut Keyring)| {
            ring.generation = generation;
            change(&mut ring);
            ring.note_treatments();
        };
        let policy = OrgPolicy::byok();
        change(3, &|ring| {
            ring.create_org(id, "acme", policy.clone(), material(1), 5).unwrap();
        });
        change(4, &|_| ());
        change(5, &|ring| {
            ring.install((id, "acme"), material(2), Origin::Customer, 6).unwrap();
        });
        change(6, &|ring| drop(ring.org_mut(id, "acme").unwrap().suspend().unwrap()));
        change(8, &|ring| {
            ring.org_mut(id, "acme").unwrap().resume(material(2)).unwrap();
        });
        let refuse = policy.clone().with_backups(BackupPolicy::Refuse);
        change(9, &|ring| ring.org_mut(id, "acme").unwrap().policy = refuse.clone());
        change(11, &|ring| ring.org_mut(id, "acme").unwrap().policy = policy.clone());
        change(13, &|ring| drop(ring.erase(id, "acme", 7).unwrap()));
        let org = ring.entry(id).unwrap();
        let at: Vec<_> = (2..=14).filter(|at| org.treatments.at(*at) == Held).collect();
        assert_eq!(at, [3, 4, 5, 8, 11, 12]);
        let within = |from, to| org.treatments.within(from, to).collect::<Vec<_>>();
        assert_eq!(within(9, 10), [LeftOut]);
        assert_eq!(within(6, 8), [LeftOut, Held]);
        assert_eq!(within(13, 20), [LeftOut]);
    }
}
