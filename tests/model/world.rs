//! A store and what must be true of it, a step at a time. Shared with `fuzz/`.
//!
//! Rotations run behind the program's back, so some answers may be one of two: a record of a
//! suspended key opens or not, by whether it was rewritten before. Everything else is exact.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::known::{Known, KnownOrg};
use super::ops::{BLINDED, Bytes, ORGS, Op, Retire, Who, name_of};
use byokv::{
    Error, KeyMaterial, KeyState, NamePolicy, Options, Org, OrgPolicy, Origin, Phase, Record,
    RootKey, Rotation, Store, Suite, Swap, Watch,
};

const LONG: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) known: Known,
    pub(crate) store: Store,
    pub(crate) orgs: Vec<Org>,
    pub(crate) watches: Vec<Watch>,
    /// Every write is durable.
    pub(crate) durable: bool,
}

/// Key material that is the same in each run.
pub(crate) fn material(number: u64) -> KeyMaterial {
    let mut state = number;
    let mut bytes = [0; 32];
    for byte in &mut bytes {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *byte = z.to_le_bytes()[7];
    }
    KeyMaterial::from_bytes(&mut bytes).unwrap()
}

pub(crate) fn create(store: &Store, i: usize) -> Org {
    let names = if i == BLINDED { NamePolicy::Blinded } else { NamePolicy::default() };
    store.create_org(&name_of(i), OrgPolicy::byok().with_names(names)).unwrap()
}

fn open(dir: &Path, root: u64) -> Result<Store, Error> {
    let options = Options::new().cache_bytes(8 << 20).rotation_workers(2);
    options.open(dir, RootKey::from_material(material(root)))
}

fn valid(name: &Bytes) -> bool {
    !name.0.is_empty() && name.0.len() <= byokv::MAX_NAME_LEN
}

impl World {
    pub(crate) fn new(dir: &Path) -> Self {
        let store = open(dir, 0).unwrap();
        let orgs: Vec<_> = (0..ORGS).map(|i| create(&store, i)).collect();
        let known = orgs.iter().map(KnownOrg::new).collect();
        let known = Known { made: 1, root: 0, orgs: known };
        let watches = orgs.iter().map(|org| org.watch("").unwrap()).collect();
        Self { dir: dir.to_owned(), known, store, orgs, watches, durable: false }
    }

    /// The store in `dir`, of which this is known.
    pub(crate) fn go_on(dir: &Path, known: Known) -> Result<Self, Error> {
        let store = open(dir, known.root)?;
        let orgs: Vec<_> = (0..ORGS).filter_map(|i| store.org(&name_of(i)).ok()).collect();
        let watches = orgs.iter().map(|org| org.watch("").unwrap()).collect();
        Ok(Self { dir: dir.to_owned(), known, store, orgs, watches, durable: false })
    }

    pub(crate) fn close(self) -> Known {
        drop((self.orgs, self.watches));
        self.store.close().unwrap();
        let mut known = self.known;
        known.orgs.iter_mut().for_each(|org| org.changed.clear());
        known
    }

    fn org(&self, who: Who) -> Org {
        let org = &self.orgs[who.index()];
        if self.durable { org.durable() } else { org.clone() }
    }

    fn make(&mut self) -> u64 {
        self.known.made += 1;
        self.known.made
    }

    /// Writes, deletions too: they need the active key, and leave what a suspended one withholds.
    fn written(&mut self, i: usize, writes: &[(&Bytes, Option<&Bytes>)], done: Result<(), Error>) {
        let known = &mut self.known.orgs[i];
        match done {
            Err(Error::NameLength { .. }) => {
                assert!(!writes.iter().all(|(name, _)| valid(name)));
            }
            Err(Error::KeySuspended { .. }) => {
                let is_there = writes.iter().any(|(name, _)| known.get(name).is_some());
                let withheld = known.any_suspended() && is_there;
                assert!(known.newest().suspended || known.may_be_blind() || withheld);
            }
            Err(error) => panic!("{error}"),
            Ok(()) => {
                assert!(writes.iter().all(|(name, _)| valid(name)));
                let is_withheld = known.newest().suspended && !writes.is_empty();
                assert!(!is_withheld, "written under a suspended key");
                writes.iter().for_each(|(name, value)| known.set(name, *value));
            }
        }
    }

    fn read(&self, i: usize, name: &Bytes) {
        let (org, known) = (&self.orgs[i], &self.known.orgs[i]);
        if !valid(name) {
            assert!(matches!(org.get(&name.0), Err(Error::NameLength { .. })));
            return;
        }
        let expected = known.get(name).map(|value| &value.0[..]);
        match org.get(&name.0) {
            Err(Error::KeySuspended { .. }) if known.any_suspended() => {
                assert!(expected.is_some() || known.may_be_blind());
            }
            found => assert_eq!(found.unwrap().as_deref(), expected),
        }
        match org.contains(&name.0) {
            Err(Error::KeySuspended { .. }) if known.may_be_blind() => {}
            contains => assert_eq!(contains.unwrap(), expected.is_some()),
        }
    }

    fn swap(&mut self, who: Who, name: &Bytes, right: bool, new: Option<&Bytes>) {
        let i = who.index();
        let known = &self.known.orgs[i];
        let current = known.get(name).cloned();
        let expected = if right { current.clone().map(|v| v.0) } else { Some(b"never".to_vec()) };
        let new_bytes = new.map(|new| &new.0[..]);
        let swap = self.org(who).compare_and_swap(&name.0, expected.as_deref(), new_bytes);
        match swap {
            Ok(Swap::Conflict { current: found }) => {
                assert!(!right);
                assert_eq!(found.as_deref(), current.as_ref().map(|v| &v.0[..]));
            }
            Err(Error::KeySuspended { .. }) if current.is_some() && known.any_suspended() => {}
            Err(Error::KeySuspended { .. }) if known.may_be_blind() => {}
            done => {
                assert!(right || done.is_err(), "swapped what was never there");
                self.written(i, &[(name, new)], done.map(drop));
            }
        }
    }

    /// What lies in the scan, both ways; values that need a suspended key may not open.
    fn check_scan(&self, i: usize, of: impl Fn(&[u8]) -> bool, scan: impl Fn() -> byokv::Scan) {
        let known = &self.known.orgs[i];
        if known.may_be_blind() {
            let suspended = |e: &Error| matches!(e, Error::KeySuspended { .. });
            assert!(scan().all(|record| record.is_ok() || record.is_err_and(|e| suspended(&e))));
            return;
        }
        let expected: Vec<_> = known.records.iter().filter(|(name, _)| of(&name.0)).collect();
        let names: Vec<_> = scan().names().map(Result::unwrap).collect();
        assert!(names.iter().eq(expected.iter().map(|(name, _)| &name.0)), "names of a scan");
        let backwards: Vec<_> = scan().names().rev().map(Result::unwrap).collect();
        assert!(backwards.iter().rev().eq(&names), "names of a scan backwards");
        let forwards: Vec<_> = scan().collect();
        let mut backwards: Vec<_> = scan().rev().collect();
        backwards.reverse();
        for found in [forwards, backwards] {
            assert_eq!(found.len(), expected.len());
            for (found, (name, value)) in found.into_iter().zip(&expected) {
                match found {
                    Err(Error::KeySuspended { .. }) if known.any_suspended() => {}
                    found => {
                        let found = found.unwrap();
                        assert_eq!((&found.name, &*found.value), (&name.0, &value.0[..]));
                    }
                }
            }
        }
    }

    pub(crate) fn check_all(&self) {
        for i in 0..ORGS {
            self.check_scan(i, |_| true, || self.orgs[i].scan(""));
            let known = &self.known.orgs[i];
            match self.orgs[i].count() {
                Err(Error::KeySuspended { .. }) if known.may_be_blind() => {}
                count => assert_eq!(count.unwrap(), known.records.len() as u64),
            }
            known.records.iter().for_each(|(name, _)| self.read(i, name));
        }
    }

    fn watched(&mut self, i: usize) {
        let changed = std::mem::take(&mut self.known.orgs[i].changed);
        let mut told = BTreeMap::new();
        for _ in 0..changed.len() {
            match self.watches[i].recv_timeout(LONG) {
                Ok(change) => {
                    let change = change.expect("a change is told");
                    told.insert(change.name, change.value);
                }
                // It tells no name then; which one it was shows in the count.
                Err(Error::KeySuspended { .. }) if self.known.orgs[i].any_suspended() => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(self.watches[i].recv_timeout(Duration::ZERO).unwrap().is_none(), "told twice");
        for (name, value) in told {
            assert!(changed.contains(&name), "told what did not change");
            let known = self.known.orgs[i].get(&Bytes(name));
            assert_eq!(value.as_deref(), known.map(|value| &value.0[..]));
        }
    }

    fn installed(&mut self, i: usize, brought: Option<u64>, done: Result<Rotation, Error>) {
        let known = &mut self.known.orgs[i];
        match done {
            Ok(_) => {
                assert!(!known.newest().suspended && (brought.is_none() || known.may_bring_key));
                known.install(brought);
            }
            Err(Error::NotEntitled { .. }) => assert!(brought.is_some() && !known.may_bring_key),
            Err(Error::KeyConflict { .. }) => assert!(known.newest().suspended),
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until the org's rotations are where they stay.
    fn wait(&mut self, i: usize) {
        let keys = self.store.keys();
        let known = &mut self.known.orgs[i];
        if known.paused || known.any_suspended() {
            return;
        }
        while let Some(rotation) = keys.rotation(&name_of(i)).unwrap() {
            match rotation.wait_timeout(Duration::from_millis(20)) {
                Err(Error::RetirementAwaited { version, .. }) => {
                    let held = &known.versions[version.get() as usize - 1];
                    assert_eq!(held.retires, Retire::Manual, "held, but not by its policy");
                    break;
                }
                ended => drop(ended.unwrap()),
            }
            let status = keys.status(&name_of(i)).unwrap();
            let (_, before) = status.versions.split_last().unwrap();
            let mut left = before.iter().filter(|version| version.state != KeyState::Retired);
            let all_held = left.all(|version| version.held_since_unix_ms.is_some());
            if all_held && rotation.progress().phase == Phase::Held {
                break;
            }
        }
        let status = keys.status(&name_of(i)).unwrap();
        let census = keys.census(&name_of(i)).unwrap();
        let newest = status.versions.last().unwrap().version;
        assert_eq!(census.total(), known.records.len() as u64);
        assert!(census.by_version.keys().all(|version| *version == newest));
        assert!(census.by_suite.keys().all(|suite| *suite == known.suite()));
        let (last, before) = status.versions.split_last().unwrap();
        assert_eq!(last.state, KeyState::Active);
        for (version, known) in before.iter().zip(&known.versions) {
            let is_retired = version.state == KeyState::Retired;
            assert!(is_retired || known.retires != Retire::Immediate, "{version:?}");
        }
        if !status.rotating {
            known.suite_changing = false;
        }
    }

    fn retire(&mut self, i: usize) {
        self.wait(i);
        let known = &self.known.orgs[i];
        let settled = !known.paused && !known.any_suspended();
        let keys = self.store.keys();
        let held = keys.status(&name_of(i)).unwrap().versions;
        let held = held.iter().any(|version| version.held_since_unix_ms.is_some());
        match keys.retire(&name_of(i)) {
            Err(Error::KeyConflict { .. }) => assert!(!held || !settled),
            Ok(rotation) => {
                let mut known = known.versions.iter();
                assert!(known.any(|known| known.retires != Retire::Immediate) || !settled);
                if settled {
                    let ended = rotation.wait_timeout(LONG).unwrap();
                    ended.expect("retired at an operator's word");
                    let versions = keys.status(&name_of(i)).unwrap().versions;
                    let (_, before) = versions.split_last().unwrap();
                    assert!(before.iter().all(|version| version.state == KeyState::Retired));
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn suspend(&mut self, i: usize) {
        let known = &mut self.known.orgs[i];
        let status = || self.store.keys().status(&name_of(i)).unwrap().versions;
        match self.store.keys().suspend(&name_of(i)) {
            Ok(versions) => assert!(!versions.is_empty()),
            Err(Error::KeyConflict { .. }) => {
                let newest = known.newest();
                assert!(newest.brought.is_none() || newest.suspended);
            }
            Err(error) => panic!("{error}"),
        }
        for (known, status) in known.versions.iter_mut().zip(status()) {
            known.suspended = status.state == KeyState::Suspended;
            let may_live = known.brought.is_none() && status.origin == Origin::Platform;
            assert!(may_live || known.suspended || status.state == KeyState::Retired);
        }
    }

    pub(crate) fn resume(&mut self, i: usize) {
        let known = &mut self.known.orgs[i];
        let Some(version) = known.versions.iter_mut().find(|version| version.suspended) else {
            return;
        };
        let number = version.brought.unwrap();
        self.store.keys().resume(&name_of(i), material(number)).unwrap();
        version.suspended = false;
    }

    fn erase_org(&mut self, i: usize) {
        let erasure = self.store.keys().erase_org(&name_of(i)).unwrap();
        let before = &self.orgs[i];
        assert!(matches!(before.get("a"), Err(Error::OrgErased { .. })));
        assert!(matches!(before.put("a", "b"), Err(Error::OrgErased { .. })));
        let certificate = erasure.wait_timeout(LONG).unwrap().expect("erased");
        assert_eq!(certificate.records_left, 0);
        self.recreate(i);
    }

    pub(crate) fn recreate(&mut self, i: usize) {
        let org = create(&self.store, i);
        self.known.orgs[i] = KnownOrg::new(&org);
        self.watches[i] = org.watch("").unwrap();
        self.orgs[i] = org;
    }

    pub(crate) fn reopen(self) -> Self {
        let dir = self.dir.clone();
        Self::go_on(&dir, self.close()).unwrap()
    }

    pub(crate) fn step(mut self, op: &Op) -> Self {
        if let Op::Reopen = op {
            return self.reopen();
        }
        let keys = self.store.keys();
        match op {
            Op::Put(who, name, value) => {
                let done = self.org(*who).put(&name.0, &value.0);
                self.written(who.index(), &[(name, Some(value))], done);
            }
            Op::PutDurably(who, name, value) => {
                let done = self.orgs[who.index()].durable().put(&name.0, &value.0);
                self.written(who.index(), &[(name, Some(value))], done);
            }
            Op::Get(who, name) => self.read(who.index(), name),
            Op::Delete(who, name) => {
                let done = self.org(*who).delete(&name.0);
                self.written(who.index(), &[(name, None)], done);
            }
            Op::Swap(who, name, new) => self.swap(*who, name, true, new.as_ref()),
            Op::SwapWrongly(who, name, new) => self.swap(*who, name, false, new.as_ref()),
            Op::Batch(who, writes) => {
                let mut batch = self.org(*who).batch();
                for (name, value) in writes {
                    batch = match value {
                        Some(value) => batch.put(&name.0, &value.0),
                        None => batch.delete(&name.0),
                    };
                }
                let done = batch.commit();
                let writes: Vec<_> = writes.iter().map(|(name, v)| (name, v.as_ref())).collect();
                self.written(who.index(), &writes, done);
            }
            Op::Scan(who, prefix) => {
                let org = &self.orgs[who.index()];
                let inside = |name: &[u8]| name.starts_with(&prefix.0);
                self.check_scan(who.index(), inside, || org.scan(&prefix.0));
            }
            Op::Range(who, from, to) => {
                let org = &self.orgs[who.index()];
                let inside = |name: &[u8]| *from.0 <= *name && *name < *to.0;
                self.check_scan(who.index(), inside, || {
                    org.range::<Vec<u8>>(from.0.clone()..to.0.clone())
                });
            }
            Op::Watched(who) => self.watched(who.index()),
            Op::Provision(who) => {
                let number = self.make();
                let done = keys.provision(&name_of(who.index()), material(number));
                self.installed(who.index(), Some(number), done);
            }
            Op::ProvisionUsed(who, of) => {
                let known = &self.known.orgs[who.index()];
                let used = self.known.orgs[of.index()].versions.iter().rev();
                let used = used.filter_map(|version| version.brought).next();
                let done = keys.provision(&name_of(who.index()), material(used.unwrap_or(0)));
                match done.unwrap_err() {
                    Error::KeyReused { .. } => assert!(known.may_bring_key),
                    Error::NotEntitled { .. } => assert!(!known.may_bring_key),
                    error => panic!("{error}"),
                }
            }
            Op::RotatePlatformKey(who) => {
                let brought = self.known.orgs[who.index()].newest().brought;
                let done = keys.rotate_platform_key(&name_of(who.index()));
                match brought {
                    Some(_) => assert!(matches!(done, Err(Error::KeyConflict { .. }))),
                    None => self.installed(who.index(), None, done),
                }
            }
            Op::ReturnToPlatformKey(who) => {
                let brought = self.known.orgs[who.index()].newest().brought;
                let done = keys.return_to_platform_key(&name_of(who.index()));
                match brought {
                    None => assert!(matches!(done, Err(Error::KeyConflict { .. }))),
                    Some(_) => self.installed(who.index(), None, done),
                }
            }
            Op::ChangeSuite(who) => {
                let known = &mut self.known.orgs[who.index()];
                let other = Suite::ALL[usize::from(known.next_suite())];
                match keys.change_suite(&name_of(who.index()), other) {
                    Ok(_) => (known.suite, known.suite_changing) = (known.next_suite(), true),
                    Err(Error::KeyConflict { .. }) => assert!(known.suite_changing),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Suspend(who) => self.suspend(who.index()),
            Op::Resume(who) => self.resume(who.index()),
            Op::ResumeWrongly(who) => {
                let number = self.make();
                let done = keys.resume(&name_of(who.index()), material(number)).unwrap_err();
                match self.known.orgs[who.index()].any_suspended() {
                    true => assert!(matches!(done, Error::WrongKey { .. })),
                    false => assert!(matches!(done, Error::KeyConflict { .. })),
                }
            }
            Op::Pause(who) => {
                if let Some(rotation) = keys.rotation(&name_of(who.index())).unwrap() {
                    rotation.pause().unwrap();
                    self.known.orgs[who.index()].paused = true;
                }
            }
            Op::Unpause(who) => {
                if let Some(rotation) = keys.rotation(&name_of(who.index())).unwrap() {
                    rotation.resume().unwrap();
                    self.known.orgs[who.index()].paused = false;
                }
            }
            Op::SetPolicy(who, may_bring_key, retire) => {
                let known = &mut self.known.orgs[who.index()];
                known.may_bring_key = *may_bring_key;
                known.set_retire(*retire);
                keys.set_policy(&name_of(who.index()), known.policy()).unwrap();
            }
            Op::Wait(who) => self.wait(who.index()),
            Op::Retire(who) => self.retire(who.index()),
            Op::EraseOrg(who) => self.erase_org(who.index()),
            Op::EraseResidue => {
                let erased = self.store.erase_residue().unwrap();
                let checks = keys.verify_each_certificate(&erased.certificates).unwrap();
                assert!(checks.iter().all(byokv::CertificateCheck::is_true), "{checks:?}");
            }
            Op::ChangeRootKey(compromised) => {
                let number = self.make();
                let root = RootKey::from_material(material(number));
                match compromised {
                    true => drop(self.store.change_compromised_root_key(root).unwrap()),
                    false => self.store.change_root_key(root).unwrap(),
                }
                self.known.root = number;
            }
            Op::Sync => self.store.sync().unwrap(),
            Op::Verify => self.store.verify().unwrap(),
            Op::ScanInParallel(who, prefix) => {
                let scan = || self.orgs[who.index()].scan(&prefix.0);
                let all = |records: &mut dyn Iterator<Item = Result<Record, Error>>| {
                    let told = |r: Result<Record, Error>| r.map(|r| (r.name, r.value.to_vec()));
                    records.map(|record| told(record).map_err(|e| e.to_string())).collect()
                };
                // A rotation may bring a record out of a suspended key meanwhile.
                let (one, two): (Vec<_>, Vec<_>) =
                    (all(&mut scan()), all(&mut scan().parallel(2).unwrap()));
                let suspended = self.known.orgs[who.index()].any_suspended();
                assert!(one == two || suspended, "{one:?} {two:?}");
            }
            Op::BackUp => self.back_up(),
            Op::Reopen => {}
        }
        self
    }

    fn back_up(&mut self) {
        let key = material(self.make());
        let mut file = Vec::new();
        // An org with a suspended key is left out, or what lies under that key is not readable.
        if let Err(error) = self.store.backup(&key).write_to(&mut file) {
            let suspended = matches!(error, Error::KeySuspended { .. });
            assert!(suspended && self.known.orgs.iter().any(KnownOrg::any_suspended), "{error}");
            return;
        }
        let dir = self.dir.with_extension("restored");
        let root = self.make();
        let other = open(&dir, root).unwrap();
        other.restore(&key).read_from(std::io::Cursor::new(&file)).unwrap();
        for (i, known) in self.known.orgs.iter().enumerate() {
            let Ok(org) = other.org(&name_of(i)) else {
                assert!(known.any_suspended());
                continue;
            };
            let found = org.scan("").map(|record| {
                let record = record.unwrap();
                (Bytes(record.name), Bytes(record.value.to_vec()))
            });
            assert!(found.eq(known.records.iter().cloned()), "what was restored");
        }
        other.close().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Lets everything come to its end, and looks at all of it.
    pub(crate) fn finish(mut self) {
        self.check_all();
        for i in 0..ORGS {
            while self.known.orgs[i].any_suspended() {
                self.resume(i);
            }
            if let Some(rotation) = self.store.keys().rotation(&name_of(i)).unwrap() {
                rotation.resume().unwrap();
            }
            self.known.orgs[i].paused = false;
            self.wait(i);
        }
        self.check_all();
        let audit: Result<Vec<_>, _> = self.store.keys().audit().collect();
        assert!(!audit.unwrap().is_empty());
        drop(self.reopen().close());
    }
}
