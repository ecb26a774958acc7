//! Orgs on their way into the store from a backup: known to the keyring, seen by nobody, until
//! every record is there. What a backup knows of an org's keys comes along as history: no number
//! and no material of it is used again.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::foreign::{ForeignKeys, KeyOf, Known};
use super::{Keyring, OrgEntry, OrgPolicy, RestoredFrom, Treatments, VersionEntry, names};
use crate::error::{BackupError, Error, Result};
use crate::id::{Fingerprint, KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::material::KeyMaterial;

/// Fingerprints of other stores' keys that a keyring keeps, 16 bytes each.
const MOST_FOREIGN: usize = 2_000_000;

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
    pub(crate) from: RestoredFrom,
}

impl Keyring {
    /// Every org by its id.
    pub(crate) fn by_id(&self) -> HashMap<OrgId, &OrgEntry> {
        self.orgs.iter().map(|org| (org.id, org)).collect()
    }

    /// Every key that the store itself has or had, but those of `orgs`. Sorted.
    pub(crate) fn other_keys(&self, orgs: &HashSet<OrgId>) -> Vec<Fingerprint> {
        let ours = self.orgs.iter().filter(|org| orgs.contains(&org.id));
        let ours = ours.flat_map(|org| &org.versions).map(|version| version.fingerprint);
        let ours: HashSet<_> = ours.collect();
        let mut keys: Vec<_> = self.own_keys().filter(|key| !ours.contains(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What the backups that these orgs were restored from said of other keys, with the places of
    /// the orgs that it came with.
    pub(crate) fn foreign_of(&self, orgs: &[OrgId]) -> Vec<(&ForeignKeys, Vec<u32>)> {
        let by_id = self.by_id();
        let mut places: HashMap<OrgId, Vec<u32>> = HashMap::new();
        for (place, id) in (0..).zip(orgs) {
            let ancestors = by_id.get(id).map_or(&[][..], |org| &org.ancestors);
            ancestors.iter().chain([id]).for_each(|id| places.entry(*id).or_default().push(place));
        }
        let of = |foreign: &ForeignKeys| {
            let places = foreign.orgs.iter().filter_map(|id| places.get(id)).flatten();
            let places: BTreeSet<u32> = places.copied().collect();
            places.into_iter().collect::<Vec<_>>()
        };
        let all = self.foreign.iter().map(|foreign| (foreign, of(foreign)));
        all.filter(|(_, places)| !places.is_empty()).collect()
    }

    /// Takes `key` as a key of backups, unless it has another use; `false` if it is one already.
    pub(crate) fn add_backup_key(&mut self, key: Fingerprint) -> Result<bool> {
        if self.backup_keys.contains(&key) {
            return Ok(false);
        }
        self.refuse_reuse(key, KeyOf::Store)?;
        self.backup_keys.push(key);
        Ok(true)
    }

    /// Adds orgs that are not seen before [`end_restore`](Self::end_restore), and notes what
    /// their backup says of keys, their own among them. The new key of each gets a number above all that the org
    /// ever had, here or where the backup was made. The time that it takes grows with what the
    /// store knows and with how many orgs come, and not with how many keys come with them.
    pub(crate) fn begin_restore(
        &mut self,
        newcomers: Vec<Newcomer<'_>>,
        foreign: Vec<ForeignKeys>,
        now: u64,
    ) -> Result<()> {
        let mut known = Known::of(self);
        let mut come = Vec::with_capacity(newcomers.len());
        for newcomer in newcomers {
            let entry = self.admit(newcomer, &known, &foreign, now)?;
            known.note(&entry);
            come.push(entry);
        }
        self.orgs.append(&mut come);
        for foreign in foreign {
            self.note_foreign(foreign)?;
        }
        Ok(())
    }

    fn admit(
        &mut self,
        newcomer: Newcomer<'_>,
        known: &Known,
        foreign: &[ForeignKeys],
        now: u64,
    ) -> Result<OrgEntry> {
        /// How far numbers of orgs that only a backup calls kin may run ahead, so that no backup
        /// uses up another org's numbers.
        const FARTHEST_AHEAD: u32 = 1 << 20;

        let Newcomer { history, id, material, origin, from } = newcomer;
        let name = &history.name;
        let free = self.free_name(name)?;
        if known.has_id(id) {
            return Err(Error::OrgExists { org: name.clone() });
        }
        if origin == Origin::Customer && !history.policy.may_bring_key() {
            return Err(Error::NotEntitled { org: name.clone() });
        }
        self.check_suite(name, history.suite)?;
        let fingerprint = material.fingerprint();
        let mut ancestors = history.ancestors.clone();
        ancestors.push(history.id);
        known.refuse_reuse(fingerprint, (id, &ancestors), [&self.foreign, foreign])?;
        let own = history.newest();
        let is_near = |kin: &KeyVersion| kin.get() <= own.get().saturating_add(FARTHEST_AHEAD);
        let kin = known.newest(&ancestors).filter(is_near);
        let used_up =
            || Error::KeyConflict { org: name.clone(), why: "its version numbers are used up" };
        let version = kin.map_or(own, |kin| kin.max(own)).next().ok_or_else(used_up)?;
        let secret_generation = self.secret.generation();
        let past = |v: &PastVersion| VersionEntry {
            version: v.version,
            origin: v.origin,
            state: KeyState::Retired,
            fingerprint: v.fingerprint,
            material: None,
            created: v.created,
            observed: 0,
            retired: Some(v.retired.unwrap_or(now)),
            held: None,
            released: false,
            retire_by: None,
            // Nothing was ever sealed under it here.
            residue_erased: true,
            due: None,
            inherited: true,
            secret_generation,
        };
        let mut versions: Vec<_> = history.versions.iter().map(past).collect();
        let times = (now, self.time.observed);
        versions.push(VersionEntry::active((version, origin), material, times, secret_generation));
        let entry = OrgEntry {
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
            restored_from: Some(from),
            treatments: Treatments::default(),
            registered: 0,
        };
        self.note_taken(free);
        Ok(entry)
    }

    /// Once, however often that backup is restored.
    fn note_foreign(&mut self, foreign: ForeignKeys) -> Result<()> {
        let same =
            |known: &&mut ForeignKeys| known.backup == foreign.backup && known.keys == foreign.keys;
        if let Some(known) = self.foreign.iter_mut().find(same) {
            known.orgs.extend(foreign.orgs);
            known.orgs.sort_unstable();
            return Ok(());
        }
        let kept: usize = self.foreign.iter().map(|known| known.keys.len()).sum();
        if kept + foreign.keys.len() > MOST_FOREIGN {
            return Err(BackupError::ForeignFull { kept, limit: MOST_FOREIGN }.into());
        }
        self.foreign.push(foreign);
        Ok(())
    }
}

impl OrgEntry {
    /// What a backup says of it.
    pub(crate) fn history(&self) -> OrgHistory {
        let past = |v: &VersionEntry| PastVersion {
            version: v.version,
            origin: v.origin,
            fingerprint: v.fingerprint,
            created: v.created,
            retired: v.retired,
        };
        OrgHistory {
            id: self.id,
            ancestors: self.ancestors.clone(),
            name: self.name.clone(),
            policy: self.policy.clone(),
            suite: self.suite,
            versions: self.versions.iter().map(past).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::foreign::{looked_so_far, sorted};
    use super::*;
    use crate::id::BackupId;

    fn id(byte: u8) -> OrgId {
        OrgId::from_bytes([byte; 16])
    }

    fn material(byte: u8) -> KeyMaterial {
        KeyMaterial::take(&mut [byte; 32])
    }

    fn ring(root: u8) -> Keyring {
        Keyring::new(material(root).fingerprint()).unwrap()
    }

    fn from() -> RestoredFrom {
        RestoredFrom {
            backup: BackupId::from_bytes([5; 16]),
            key: material(8).fingerprint(),
            store: id(90),
            org: id(1),
            at: 7,
        }
    }

    fn restore(ring: &mut Keyring, history: &OrgHistory, new: u8) -> Result<KeyVersion> {
        restore_with(ring, history, new, &[])
    }

    fn restore_with(
        ring: &mut Keyring,
        history: &OrgHistory,
        new: u8,
        elsewhere: &[Fingerprint],
    ) -> Result<KeyVersion> {
        let origin = Origin::Platform;
        let newcomer =
            Newcomer { history, id: id(new), material: material(new), origin, from: from() };
        let keys = sorted(elsewhere.to_vec());
        let foreign = ForeignKeys::new(BackupId::from_bytes([5; 16]), 9, vec![id(new)], keys);
        ring.begin_restore(vec![newcomer], vec![foreign], 9)?;
        Ok(ring.entry(id(new)).unwrap().newest().version)
    }

    fn end(ring: &mut Keyring, new: u8) {
        ring.end_restore(&HashSet::from([id(new)]));
    }

    /// With two versions, the second brought by the org.
    fn history() -> OrgHistory {
        let mut ring = ring(0);
        ring.create_org(id(1), "acme", OrgPolicy::byok(), material(1), 5).unwrap();
        ring.install((id(1), "acme"), material(2), Origin::Customer, 6).unwrap();
        ring.org("acme").unwrap().history()
    }

    #[test]
    fn a_restored_org_is_unseen_until_it_is_whole_and_keeps_its_name() {
        let mut ring = ring(9);
        restore(&mut ring, &history(), 3).unwrap();
        assert!(matches!(ring.org("acme"), Err(Error::OrgUnknown { .. })));
        let taken = ring.create_org(id(4), "acme", OrgPolicy::byok(), material(4), 5);
        assert!(matches!(taken, Err(Error::OrgExists { .. })));
        assert!(matches!(restore(&mut ring, &history(), 5), Err(Error::OrgExists { .. })));
        end(&mut ring, 3);
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
        let elsewhere = [7, 9].map(|byte| material(byte).fingerprint());
        restore_with(&mut ring, &history(), 3, &elsewhere).unwrap();
        end(&mut ring, 3);
        for used in [1, 2, 3, 7, 9] {
            let again = ring.install((id(3), "acme"), material(used), Origin::Customer, 8);
            assert!(matches!(again, Err(Error::KeyReused { .. })), "{used}");
        }
        assert!(ring.add_backup_key(material(8).fingerprint()).unwrap());
        assert!(!ring.add_backup_key(material(8).fingerprint()).unwrap());
        let again = ring.install((id(3), "acme"), material(8), Origin::Customer, 8);
        assert!(matches!(again, Err(Error::KeyReused { .. })), "a backup key");
        for used in [3, 9] {
            assert!(ring.add_backup_key(material(used).fingerprint()).is_err(), "{used}");
        }
    }

    /// Whoever wrote the backup chose what it says of keys: that keeps nobody from a key but the
    /// orgs that came with it, and what is restored from backups of those.
    #[test]
    fn what_a_backup_says_of_keys_concerns_its_own_orgs_alone() {
        let mut ring = ring(9);
        ring.create_org(id(8), "umbra", OrgPolicy::byok(), material(8), 5).unwrap();
        let hostile = OrgHistory { ancestors: vec![id(8)], ..history() };
        let claimed = [20, 21, 22].map(|byte| material(byte).fingerprint());
        restore_with(&mut ring, &hostile, 3, &claimed).unwrap();
        end(&mut ring, 3);
        let install = |ring: &mut Keyring, org: (OrgId, &str), byte| {
            ring.install(org, material(byte), Origin::Customer, 8).map(|_| ())
        };
        for free in [20, 1] {
            install(&mut ring, (id(8), "umbra"), free).unwrap();
        }
        ring.create_org(id(10), "other", OrgPolicy::byok(), material(2), 5).unwrap();
        ring.refuse_reuse(claimed[1], KeyOf::Store).unwrap();
        assert!(ring.add_backup_key(claimed[2]).unwrap());
        for refused in [1, 2, 21] {
            assert!(install(&mut ring, (id(3), "acme"), refused).is_err(), "{refused}");
        }
        // One that comes from a backup of that org: also of what the org itself had.
        let child = ring.org("acme").unwrap().history();
        ring.erase(id(3), "acme", 8).unwrap();
        restore(&mut ring, &child, 4).unwrap();
        end(&mut ring, 4);
        for refused in [1, 3, 21] {
            assert!(install(&mut ring, (id(4), "acme"), refused).is_err(), "{refused}");
        }
        assert_eq!(ring.drop_foreign(BackupId::from_bytes([5; 16])), Some(3));
        assert_eq!(ring.drop_foreign(BackupId::from_bytes([5; 16])), None);
        install(&mut ring, (id(4), "acme"), 21).unwrap();
        assert!(install(&mut ring, (id(4), "acme"), 3).is_err(), "its own");
    }

    /// A backup that was restored twice tells the same twice.
    #[test]
    fn what_came_twice_is_kept_once_and_goes_on_with_its_orgs() {
        let mut ring = ring(9);
        let elsewhere = [20, 21].map(|byte| material(byte).fingerprint());
        restore_with(&mut ring, &history(), 3, &elsewhere).unwrap();
        let other = OrgHistory { name: "other".to_owned(), ..history() };
        restore_with(&mut ring, &other, 4, &elsewhere).unwrap();
        assert_eq!((ring.foreign.len(), &ring.foreign[0].orgs[..]), (1, &[id(3), id(4)][..]));
        let of = |orgs: &[OrgId]| {
            let found = ring.foreign_of(orgs);
            found.into_iter().map(|(_, places)| places).collect::<Vec<_>>()
        };
        assert_eq!(of(&[id(3), id(4)]), [[0, 1]]);
        assert_eq!(of(&[id(9), id(4)]), [[1]]);
        assert!(of(&[id(9)]).is_empty());
        let bytes = crate::sealed::encode(&ring.duplicate());
        let back: Keyring = crate::sealed::decode(&bytes).unwrap();
        assert!(back.foreign == ring.foreign);
    }

    /// Counted, not timed: with twice as many orgs and keys there are twice as many steps, and the
    /// keys that come along take none under the keyring's lock.
    #[test]
    fn the_steps_of_a_restore_grow_with_the_orgs_and_no_faster() {
        let steps = |orgs: u32, keys: u32| {
            let mut ring = ring(9);
            let fingerprint = |number: u32| {
                let mut bytes = [0; Fingerprint::LEN];
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                Fingerprint::from_bytes(bytes)
            };
            let named = |number: u32| {
                let mut bytes = [1; OrgId::LEN];
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                (OrgId::from_bytes(bytes), format!("org {number}"))
            };
            let histories = (0..orgs).map(|number| {
                let (id, name) = named(number);
                OrgHistory { id, name, ..history() }
            });
            let histories: Vec<_> = histories.collect();
            let newcomers = histories.iter().zip(0..).map(|(history, number)| {
                let id = named(orgs + number).0;
                let material = KeyMaterial::generate().unwrap();
                Newcomer { history, id, material, origin: Origin::Platform, from: from() }
            });
            let newcomers: Vec<_> = newcomers.collect();
            let ids = newcomers.iter().map(|newcomer| newcomer.id).collect();
            let keys = sorted((0..keys).map(fingerprint).collect());
            let foreign = ForeignKeys::new(BackupId::from_bytes([5; 16]), 9, ids, keys);
            let before = looked_so_far();
            ring.begin_restore(newcomers, vec![foreign], 9).unwrap();
            looked_so_far() - before
        };
        assert!(steps(500, 0) >= 500, "nothing is counted");
        assert!(steps(2000, 0) <= 4 * steps(500, 0) + 100);
        assert_eq!(steps(500, 100_000), steps(500, 0));
    }

    /// A backup that calls another org its ancestor, with numbers near the end.
    #[test]
    fn no_backup_uses_up_the_numbers_of_another_org() {
        let mut ring = ring(9);
        let mut hostile = history();
        hostile.name = "hostile".to_owned();
        hostile.id = id(7);
        hostile.ancestors = vec![id(1)];
        hostile.versions[1].version = KeyVersion::new(u32::MAX - 2).unwrap();
        assert_eq!(restore(&mut ring, &hostile, 6).unwrap().get(), u32::MAX - 1);
        assert_eq!(restore(&mut ring, &history(), 3).unwrap().get(), 3);
    }

    /// The org of the backup went on here, and was restored before: its numbers rise all the same.
    #[test]
    fn no_number_of_any_kin_comes_again() {
        let history = history();
        let mut ring = ring(9);
        assert_eq!(restore(&mut ring, &history, 3).unwrap().get(), 3);
        end(&mut ring, 3);
        ring.install((id(3), "acme"), material(4), Origin::Platform, 8).unwrap();
        let of_child = ring.org("acme").unwrap().history();
        ring.erase(id(3), "acme", 8).unwrap();
        assert_eq!(restore(&mut ring, &history, 5).unwrap().get(), 5);
        end(&mut ring, 5);
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
