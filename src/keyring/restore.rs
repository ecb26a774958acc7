//! Orgs on their way into the store from a backup: known to the keyring, seen by nobody, until
//! every record is there. What a backup knows of an org's keys comes along as history: no number
//! and no material of it is used again.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Keyring, OrgEntry, OrgPolicy, VersionEntry, names};
use crate::error::{Error, Result};
use crate::id::{Fingerprint, KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::material::KeyMaterial;

/// An org without its records and key material, as a backup holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrgHistory {
    pub(crate) id: OrgId,
    pub(crate) ancestors: Vec<OrgId>,
    pub(crate) name: String,
    pub(crate) policy: OrgPolicy,
    pub(crate) suite: Suite,
    pub(crate) versions: Vec<PastVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastVersion {
    pub(crate) version: KeyVersion,
    pub(crate) origin: Origin,
    pub(crate) fingerprint: Fingerprint,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
    pub(crate) retired: Option<u64>,
}

impl OrgHistory {
    /// What any org of any store has: a name, and versions that rise.
    pub(crate) fn is_plausible(&self) -> bool {
        let rise = self.versions.is_sorted_by(|one, two| one.version < two.version);
        let numbered = self.versions.iter().all(|v| v.version >= KeyVersion::FIRST);
        let ruled = names::name_fault(&self.name).is_none() && self.policy.check().is_ok();
        rise && numbered && !self.versions.is_empty() && ruled
    }

    pub(crate) fn newest(&self) -> KeyVersion {
        self.versions.last().map_or(KeyVersion::FIRST, |v| v.version)
    }

    pub(crate) fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> + '_ {
        self.versions.iter().map(|v| v.fingerprint)
    }
}

/// An org to be restored, with what is new about it.
pub(crate) struct Newcomer<'a> {
    pub(crate) history: &'a OrgHistory,
    pub(crate) id: OrgId,
    pub(crate) material: KeyMaterial,
    pub(crate) origin: Origin,
}

impl Keyring {
    pub(crate) fn history(&self, name: &str) -> Result<OrgHistory> {
        let org = self.org(name)?;
        let past = |v: &VersionEntry| PastVersion {
            version: v.version,
            origin: v.origin,
            fingerprint: v.fingerprint,
            created: v.created,
            retired: v.retired,
        };
        Ok(OrgHistory {
            id: org.id,
            ancestors: org.ancestors.clone(),
            name: org.name.clone(),
            policy: org.policy.clone(),
            suite: org.suite,
            versions: org.versions.iter().map(past).collect(),
        })
    }

    /// Every key that the store knows and that is not one of `orgs`, but for backup keys.
    pub(crate) fn other_keys(&self, orgs: &HashSet<OrgId>) -> Vec<Fingerprint> {
        let others = self.orgs.iter().filter(|org| !orgs.contains(&org.id));
        let others = others.flat_map(|org| &org.versions).map(|v| v.fingerprint);
        let mut keys: Vec<_> =
            others.chain(self.roots.iter().chain(&self.foreign).copied()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Takes `key` as a key of backups, unless it has another use; `false` if it is one already.
    pub(crate) fn add_backup_key(&mut self, key: Fingerprint) -> Result<bool> {
        if self.backup_keys.contains(&key) {
            return Ok(false);
        }
        self.refuse_reuse(key)?;
        self.backup_keys.push(key);
        Ok(true)
    }

    /// Keys of another store, which no org of this one may have either.
    pub(crate) fn add_foreign(&mut self, keys: impl IntoIterator<Item = Fingerprint>) {
        for key in keys {
            if self.refuse_reuse(key).is_ok() {
                self.foreign.push(key);
            }
        }
    }

    /// Adds an org that is not seen before [`end_restore`](Self::end_restore). Its new key
    /// gets a number above all that it ever had, here or where the backup was made.
    pub(crate) fn begin_restore(&mut self, newcomer: Newcomer<'_>, now: u64) -> Result<KeyVersion> {
        let Newcomer { history, id, material, origin } = newcomer;
        let name = &history.name;
        let free = self.free_name(name)?;
        if self.entry(id).is_some() {
            return Err(Error::OrgExists { org: name.clone() });
        }
        if origin == Origin::Customer && !history.policy.may_bring_key() {
            return Err(Error::NotEntitled { org: name.clone() });
        }
        self.check_suite(name, history.suite)?;
        let fingerprint = material.fingerprint();
        self.refuse_reuse(fingerprint)?;
        let mut ancestors = history.ancestors.clone();
        ancestors.push(history.id);
        let kin = self.orgs.iter().filter(|org| org.is_kin(&ancestors));
        let newest = kin.map(|org| org.newest().version).max();
        let newest = newest.map_or(history.newest(), |newest| newest.max(history.newest()));
        let used_up =
            || Error::KeyConflict { org: name.clone(), why: "its version numbers are used up" };
        let version = newest.next().ok_or_else(used_up)?;
        let past = |v: &PastVersion| VersionEntry {
            version: v.version,
            origin: v.origin,
            state: KeyState::Retired,
            fingerprint: v.fingerprint,
            material: None,
            created: v.created,
            retired: Some(v.retired.unwrap_or(now)),
            held: None,
            released: false,
            // Nothing was ever sealed under it here.
            residue_erased: true,
            due: None,
        };
        let mut versions: Vec<_> = history.versions.iter().map(past).collect();
        versions.push(VersionEntry::active(version, origin, fingerprint, material, now));
        self.orgs.push(OrgEntry {
            id,
            name: name.clone(),
            policy: history.policy.clone(),
            suite: history.suite,
            suite_before: None,
            created: now,
            versions,
            erasure: None,
            ancestors,
            is_restoring: true,
        });
        self.note_taken(free);
        Ok(version)
    }
}

impl OrgEntry {
    /// The suspended version that some of its records may need.
    pub(crate) fn withheld(&self) -> Option<KeyVersion> {
        let mut versions = self.versions.iter();
        versions.find(|v| v.state == KeyState::Suspended).map(|v| v.version)
    }

    /// Whether it goes back to one of these orgs, or one of them is it.
    fn is_kin(&self, ids: &[OrgId]) -> bool {
        ids.contains(&self.id) || self.ancestors.iter().any(|id| ids.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> OrgId {
        OrgId::from_bytes([byte; 16])
    }

    fn material(byte: u8) -> KeyMaterial {
        KeyMaterial::take(&mut [byte; 32])
    }

    fn ring(root: u8) -> Keyring {
        Keyring::new(material(root).fingerprint()).unwrap()
    }

    fn restore(ring: &mut Keyring, history: &OrgHistory, new: u8) -> Result<KeyVersion> {
        let origin = Origin::Platform;
        let newcomer = Newcomer { history, id: id(new), material: material(new), origin };
        ring.begin_restore(newcomer, 9)
    }

    /// With two versions, the second brought by the org.
    fn history() -> OrgHistory {
        let mut ring = ring(0);
        ring.create_org(id(1), "acme", OrgPolicy::byok(), material(1), 5).unwrap();
        ring.install((id(1), "acme"), material(2), Origin::Customer, 6).unwrap();
        ring.history("acme").unwrap()
    }

    #[test]
    fn a_restored_org_is_unseen_until_it_is_whole_and_keeps_its_name() {
        let mut ring = ring(9);
        restore(&mut ring, &history(), 3).unwrap();
        assert!(matches!(ring.org("acme"), Err(Error::OrgUnknown { .. })));
        let taken = ring.create_org(id(4), "acme", OrgPolicy::byok(), material(4), 5);
        assert!(matches!(taken, Err(Error::OrgExists { .. })));
        assert!(matches!(restore(&mut ring, &history(), 5), Err(Error::OrgExists { .. })));
        ring.end_restore(id(3));
        let org = ring.org("acme").unwrap();
        let states: Vec<_> = org.versions.iter().map(|v| (v.version.get(), v.state)).collect();
        use KeyState::{Active, Retired};
        assert_eq!(states, [(1, Retired), (2, Retired), (3, Active)]);
        assert_eq!(org.ancestors, [id(1)]);
        assert!(!org.is_rotating());
    }

    #[test]
    fn in_fips_mode_an_org_under_another_suite_is_not_restored() {
        let mut history = history();
        history.suite = Suite::XChaCha20Poly1305;
        let mut ring = ring(9);
        ring.fips_mode = true;
        let refused = restore(&mut ring, &history, 3);
        assert!(matches!(refused, Err(Error::SuiteNotApproved { .. })), "{refused:?}");
    }

    /// Invariant 10, over a backup.
    #[test]
    fn no_material_of_the_history_comes_again() {
        let mut ring = ring(9);
        ring.add_foreign([material(7).fingerprint(), material(9).fingerprint()]);
        assert_eq!(ring.foreign.len(), 1, "it is the root key already");
        restore(&mut ring, &history(), 3).unwrap();
        ring.end_restore(id(3));
        for used in [1, 2, 3, 7, 9] {
            let again = ring.install((id(3), "acme"), material(used), Origin::Customer, 8);
            assert!(matches!(again, Err(Error::KeyReused { .. })), "{used}");
        }
        assert!(ring.add_backup_key(material(8).fingerprint()).unwrap());
        assert!(!ring.add_backup_key(material(8).fingerprint()).unwrap());
        let again = ring.install((id(3), "acme"), material(8), Origin::Customer, 8);
        assert!(matches!(again, Err(Error::KeyReused { .. })), "a backup key");
        for used in [1, 2, 3, 7, 9] {
            assert!(ring.add_backup_key(material(used).fingerprint()).is_err(), "{used}");
        }
    }

    /// The org of the backup went on here, and was restored before: its numbers rise all the same.
    #[test]
    fn no_number_of_any_kin_comes_again() {
        let history = history();
        let mut ring = ring(9);
        assert_eq!(restore(&mut ring, &history, 3).unwrap().get(), 3);
        ring.end_restore(id(3));
        ring.install((id(3), "acme"), material(4), Origin::Platform, 8).unwrap();
        let of_child = ring.history("acme").unwrap();
        ring.erase(id(3), "acme", 8).unwrap();
        assert_eq!(restore(&mut ring, &history, 5).unwrap().get(), 5);
        ring.end_restore(id(5));
        ring.erase(id(5), "acme", 8).unwrap();
        assert_eq!(restore(&mut ring, &of_child, 6).unwrap().get(), 6);
        assert_eq!(ring.entry(id(6)).unwrap().ancestors, [id(1), id(3)]);

        let mut last = history;
        last.versions[1].version = KeyVersion::new(u32::MAX).unwrap();
        last.name = "last".to_owned();
        assert!(matches!(restore(&mut ring, &last, 7), Err(Error::KeyConflict { .. })));
    }

    #[test]
    fn a_history_that_no_org_has_is_not_plausible() {
        assert!(history().is_plausible());
        let with = |change: &dyn Fn(&mut OrgHistory)| {
            let mut history = history();
            change(&mut history);
            history.is_plausible()
        };
        assert!(!with(&|h| h.name.clear()));
        assert!(!with(&|h| h.versions.clear()));
        assert!(!with(&|h| h.policy = OrgPolicy::byok().with_rotation_after_records(0)));
        assert!(!with(&|h| h.versions.swap(0, 1)));
        assert!(!with(&|h| h.versions[1].version = h.versions[0].version));
    }
}
