//! Invariant 9: a process killed at any fail point that it passes, whatever it does, reopens and
//! gets to the same end; also if it is killed once more while it recovers. Which points those are
//! is found out by running: a new one is killed at without a line here, and one that nothing
//! passes fails the last test.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use byokv::{
    AuditEvent, CertificateKind, Error, KeyState, Options, OrgPolicy, RetirePolicy, RootKey, Store,
    Suite, Throttle, failpoint,
};
use common::{
    Ended, Place, check_filled, copy_dir, filled, filled_blinded, has_dropped_pages, key_text,
    material,
};

const SOON: Duration = Duration::from_secs(30);

/// What is done, and where a process was killed before that, if the recovery is what is tried.
const SCENARIOS: &[(&str, &str)] = &[
    ("create", ""),
    ("rotate", ""),
    ("blinded", ""),
    ("suite", ""),
    ("hand", ""),
    ("suspend", ""),
    ("erase", ""),
    ("residue", ""),
    ("root", ""),
    ("compromised", ""),
    ("due", ""),
    ("token", ""),
    ("restore", ""),
    ("large", ""),
    ("create", "keyring.saved"),
    ("rotate", "sync.flushed:2"),
    ("rotate", "outbox.written"),
    ("rotate", "rewrite.swapped:20"),
    ("rotate", "keyring.exchanged:2"),
    ("blinded", "names.moved:20"),
    ("erase", "erase.keys_gone"),
    ("restore", "restore.begun"),
    ("restore", "backup.begun"),
    ("restore", "restore.synced"),
    ("residue", "residue.copied"),
    ("residue", "residue.switched"),
    ("compromised", "secret.copied"),
    ("compromised", "secret.marked"),
    ("compromised", "keyring.exchanged"),
    ("compromised", "secret.switched"),
    ("large", "pages.unlinked"),
];

/// A place with the two keys that a scenario needs.
struct Trial {
    place: Place,
    key: String,
    next_root: String,
}

fn options() -> Options {
    // Due keys are looked for at this pace; more than one thread would make the order of points
    // depend on chance.
    Options::new().sync_interval(Duration::from_millis(40)).rotation_workers(1)
}

impl Trial {
    fn new(what: &str) -> Self {
        let trial = Self { place: Place::new(), key: key_text(), next_root: key_text() };
        if what == "create" {
            return trial;
        }
        let store = trial.place.open();
        let records = if what == "erase" { 600 } else { 40 };
        match what {
            "blinded" => drop(filled_blinded(&store, "acme", records)),
            _ => drop(filled(&store, "acme", records)),
        }
        drop(filled(&store, "umbra", 5));
        let keys = store.keys();
        match what {
            "hand" => {
                let policy = OrgPolicy::byok().with_retire(RetirePolicy::Manual);
                keys.set_policy("acme", policy).unwrap();
            }
            "due" => {
                let policy = OrgPolicy::byok().with_rotation_after_records(60);
                keys.set_policy("acme", policy).unwrap();
            }
            "suspend" | "residue" | "compromised" => {
                keys.provision("acme", material(&trial.key)).unwrap().ended();
            }
            "restore" => {
                let file = std::fs::File::create(trial.backup()).unwrap();
                let key = material(&trial.key);
                store.backup(&key).only("acme").write_to(file).unwrap();
                keys.erase_org("acme").unwrap().wait_timeout(SOON).unwrap().unwrap();
            }
            _ => {}
        }
        store.close().unwrap();
        trial
    }

    /// The same once more.
    fn again(&self) -> Self {
        let place = Place { root: self.place.root.clone(), ..Place::new() };
        if self.place.data().exists() {
            copy_dir(&self.place.data(), &place.data());
        }
        let trial = Self { place, key: self.key.clone(), next_root: self.next_root.clone() };
        if self.backup().exists() {
            std::fs::copy(self.backup(), trial.backup()).unwrap();
        }
        trial
    }

    /// Whichever of the two root keys opens it.
    fn open(&self) -> Store {
        let root = |text: &str| RootKey::from_material(material(text));
        match options().open(self.place.data(), root(&self.place.root)) {
            Err(Error::RootKeyWrong { .. }) => {
                options().open(self.place.data(), root(&self.next_root)).unwrap()
            }
            opened => opened.unwrap(),
        }
    }

    /// Runs the scenario in a process of its own. Whether that came to its end.
    fn child(&self, what: &str, point: &str) -> bool {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env("BYOKV_FAILPOINT", point)
            .env("BYOKV_FAILPOINT_TRACE", self.trace())
            .env("BYOKV_CHILD", what)
            .env("BYOKV_CHILD_DATA", self.place.data())
            .env("BYOKV_CHILD_KEYS", [&*self.place.root, &self.key, &self.next_root].join(" "))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success() || status.code().is_none(), "{what} failed, killed at {point}");
        status.success()
    }

    fn backup(&self) -> std::path::PathBuf {
        self.place.data().with_extension("backup")
    }

    fn trace(&self) -> std::path::PathBuf {
        self.place.dir.path().join("trace")
    }

    /// How often each point was passed since this was last asked.
    fn passed(&self) -> BTreeMap<String, usize> {
        let trace = std::fs::read_to_string(self.trace()).unwrap_or_default();
        let _ = std::fs::remove_file(self.trace());
        let mut passed = BTreeMap::new();
        trace.lines().for_each(|point| *passed.entry(point.to_owned()).or_default() += 1);
        passed
    }
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Ok(what) = std::env::var("BYOKV_CHILD") else { return };
    let keys = std::env::var("BYOKV_CHILD_KEYS").unwrap();
    let keys: Vec<&str> = keys.split(' ').collect();
    let data = std::env::var_os("BYOKV_CHILD_DATA").unwrap();
    let root = |text| RootKey::from_material(material(text));
    let store = match options().open(&data, root(keys[0])) {
        Err(Error::RootKeyWrong { .. }) => options().open(&data, root(keys[2])).unwrap(),
        opened => opened.unwrap(),
    };
    go_on(&what, &store, (keys[1], keys[2]), &Path::new(&data).with_extension("backup"));
    store.close().unwrap();
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < SOON, "{what}: does not go on");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Brings the store to the scenario's end, from wherever it is.
fn go_on(what: &str, store: &Store, (key, next_root): (&str, &str), backup: &Path) {
    let keys = store.keys();
    let certified = |kind| keys.certificates().any(|c| c.unwrap().kind == kind);
    let versions = || keys.status("acme").unwrap().versions;
    match what {
        "create" => {
            let org = match store.org("acme") {
                Ok(org) => org,
                Err(_) => store.create_org("acme", OrgPolicy::byok()).unwrap(),
            };
            org.durable().put("n00000", "v0").unwrap();
            assert!(org.get("n00000").unwrap().is_some());
        }
        "rotate" => {
            store.org("acme").unwrap().put("n00000", "v0").unwrap();
            if versions().len() == 1 {
                keys.provision("acme", material(key)).unwrap();
            }
        }
        "blinded" => {
            let org = store.org("acme").unwrap();
            org.put("n00000", "v0").unwrap();
            if versions().len() == 1 {
                // Slow enough for a look under both keys.
                let slow = Throttle::unlimited().with_records_per_second(1).unwrap();
                keys.set_throttle(slow).unwrap();
                keys.provision("acme", material(key)).unwrap();
                assert!(org.get("none").unwrap().is_none());
            }
            org.batch().put("gone", "x").put("n00039", "v39").commit().unwrap();
            org.delete("gone").unwrap();
            keys.set_throttle(Throttle::unlimited()).unwrap();
        }
        "suite" => {
            if keys.status("acme").unwrap().suite == Suite::Xaes256Gcm {
                keys.change_suite("acme", Suite::XChaCha20Poly1305).unwrap();
            }
        }
        "hand" => {
            if versions().len() == 1 {
                keys.provision("acme", material(key)).unwrap();
            }
            until(what, || match keys.retire("acme") {
                Ok(rotation) => rotation.wait_timeout(SOON).is_ok(),
                Err(error) => {
                    assert!(matches!(error, Error::KeyConflict { .. }), "{error}");
                    versions()[0].state == KeyState::Retired
                }
            });
        }
        "suspend" => {
            let suspended = |entry: byokv::Result<byokv::AuditEntry>| {
                entry.unwrap().event == AuditEvent::KeySuspended
            };
            if !keys.audit().any(suspended) {
                keys.suspend("acme").unwrap();
            }
            if versions()[1].state == KeyState::Suspended {
                keys.resume("acme", material(key)).unwrap();
            }
        }
        "erase" => {
            if store.org("acme").is_ok() {
                keys.erase_org("acme").unwrap();
            }
            until(what, || certified(CertificateKind::OrgErased));
        }
        "residue" => {
            if !certified(CertificateKind::KeyErased) {
                store.erase_residue().unwrap();
            }
        }
        "large" => {
            let org = store.org("acme").unwrap();
            until(what, || {
                for i in 0..10 {
                    org.put("n00000", vec![i; 300_000]).unwrap();
                    // Large pages are dropped once the log has gone on.
                    org.put("n00001", vec![i; 100_000]).unwrap();
                }
                store.sync().unwrap();
                has_dropped_pages(&backup.with_extension(""))
            });
            org.put("n00000", "v0").unwrap();
            org.put("n00001", "v1").unwrap();
        }
        "root" | "compromised" => {
            let next = RootKey::from_material(material(next_root));
            let print = next.fingerprint();
            let changed =
                |entry: byokv::Result<byokv::AuditEntry>| entry.unwrap().fingerprint == Some(print);
            match (keys.audit().any(changed), what) {
                (false, "root") => store.change_root_key(next).unwrap(),
                (false, _) => drop(store.change_compromised_root_key(next).unwrap()),
                (true, _) => {}
            }
        }
        "due" => {
            let org = store.org("acme").unwrap();
            let mut puts = 0;
            until(what, || {
                if versions().len() == 1 && puts < 60 {
                    org.put("n00000", "v0").unwrap();
                    puts += 1;
                }
                versions().len() > 1
            });
        }
        "token" => {
            if versions().len() == 1 {
                let token = keys.import_token("acme", Duration::from_secs(86_400)).unwrap();
                let sealed = token.seal(&material(key)).unwrap();
                keys.provision_sealed("acme", &sealed, None).unwrap();
            }
        }
        "restore" => {
            if store.org("acme").is_err() {
                let file = std::fs::File::open(backup).unwrap();
                store.restore(&material(key)).read_from(file).unwrap();
            }
            store.backup(&material(key)).write_to(std::io::sink()).unwrap();
            let erased = |c: &byokv::Result<byokv::Certificate>| {
                c.as_ref().unwrap().kind == CertificateKind::OrgErased
            };
            let discarded = |e: &byokv::Result<byokv::AuditEntry>| {
                e.as_ref().unwrap().event == AuditEvent::RestoreDiscarded
            };
            let discarded = 1 + keys.audit().filter(discarded).count();
            until(what, || keys.certificates().filter(erased).count() == discarded);
        }
        other => panic!("{other}"),
    }
    for rotation in keys.rotations().unwrap() {
        let ended = rotation.wait_timeout(SOON).unwrap();
        assert!(ended.is_some(), "{what}: {}", rotation.progress());
    }
}

/// What the end of a scenario is known by. Which keys and how many entries there are, may differ.
fn end_of(what: &str, trial: &Trial, store: Store) -> Vec<String> {
    let keys = store.keys();
    let mut end = Vec::new();
    for org in store.orgs() {
        let states: Vec<_> = org.versions.iter().map(|v| (v.origin, v.state)).collect();
        let states = match what {
            // What a killed process had reserved counts as used: it may rotate once more.
            "due" => states[states.len().saturating_sub(2)..].to_vec(),
            _ => states,
        };
        let census = keys.census(&org.name).unwrap();
        let newest = org.versions.last().unwrap().version;
        let mut found = census.by_version.keys().chain(census.by_name_version.keys());
        assert!(found.all(|version| *version == newest), "{census:?}");
        end.push(format!("{} {} {} {states:?}", org.name, org.suite, org.rotating));
        let records = match (&*org.name, what) {
            ("acme", "create") => 1,
            ("acme", _) => 40,
            _ => 5,
        };
        check_filled(&store.org(&org.name).unwrap(), records);
    }
    let mut certificates: Vec<_> = keys
        .certificates()
        .map(Result::unwrap)
        .filter(|_| !["due", "restore"].contains(&what))
        .map(|c| format!("{} {} {:?} {}", c.org, c.version, c.kind, c.records_left))
        .collect();
    certificates.sort();
    end.append(&mut certificates);
    keys.audit().for_each(|entry| drop(entry.unwrap()));
    store.verify().unwrap();
    if what == "compromised" {
        let known = keys.compromised_keys();
        let known: Vec<_> = known.iter().map(|key| (&*key.org, key.version.get())).collect();
        assert_eq!(known, [("acme", 2), ("umbra", 1)]);
    }
    if what == "residue" {
        assert!(store.residue().unwrap().is_empty());
    }
    drop(keys);
    store.close().unwrap();
    if ["root", "compromised"].contains(&what) {
        let old = trial.place.try_open();
        assert!(matches!(old, Err(Error::RootKeyWrong { .. })), "{old:?}");
    }
    let files = std::fs::read_dir(trial.place.data()).unwrap().count();
    assert_eq!(files, 4, "{what}: db, keyring, mark, LOCK");
    end
}

/// Kills at the points of `scenarios`; every other one twice in a row. How often.
fn kill_at_each_point_of(scenarios: &[(&str, &str)]) -> usize {
    let all = std::env::var_os("BYOKV_TORTURE").is_some();
    let mut kills = 0;
    for &(what, before) in scenarios {
        let prepared = Trial::new(what);
        if !before.is_empty() {
            assert!(!prepared.child(what, before), "{what}: {before} was not reached");
        }
        let trial = prepared.again();
        assert!(trial.child(what, ""));
        let passed = trial.passed();
        let expected = end_of(what, &trial, trial.open());
        for (point, &times) in &passed {
            let mut at = BTreeSet::from([1]);
            if before.is_empty() || all {
                at.insert(times);
            }
            if all {
                at.extend([2.min(times), 3.min(times), times.div_ceil(2)]);
            }
            for n in at {
                let at = format!("{point}:{n}");
                let trial = prepared.again();
                // Two threads may race to a point, so the last time may not come.
                let mut killed = usize::from(!trial.child(what, &at));
                assert!(n > 1 || killed == 1, "{what} after {before:?}: {at} was not reached");
                if (n + kills) % 2 == 0 {
                    killed += usize::from(!trial.child(what, point));
                }
                kills += killed;
                let store = trial.open();
                go_on(what, &store, (&trial.key, &trial.next_root), &trial.backup());
                let end = end_of(what, &trial, store);
                assert_eq!(end, expected, "{what} after {before:?}, killed at {at}");
            }
        }
        EVERY.lock().unwrap().extend(passed.into_keys());
    }
    kills
}

/// Every point that a scenario passed and was killed at.
static EVERY: std::sync::Mutex<BTreeSet<String>> = std::sync::Mutex::new(BTreeSet::new());

#[test]
fn killed_at_each_point_everything_comes_to_the_same_end() {
    let (one, two) = SCENARIOS.split_at(SCENARIOS.len() / 2 - 1);
    let kills = std::thread::scope(|scope| {
        let two = scope.spawn(|| kill_at_each_point_of(two));
        kill_at_each_point_of(one) + two.join().unwrap()
    });
    let every = EVERY.lock().unwrap();
    let listed = failpoint::LISTS.concat();
    let missed: Vec<_> = listed.iter().filter(|point| !every.contains(**point)).collect();
    assert!(missed.is_empty(), "no scenario is killed at {missed:?}");
    println!("torture: crash points: {} points, {kills} kills, 0 lost", listed.len());
}
