//! The processes that are killed: what they do, and what they say of it on their standard output.
//!
//! `start ID ORG NAME VALUE` … `done ID`, see [`super::model`].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use byokv::{
    BackupContents, Error, KeyState, Options, Org, OrgPolicy, RetirePolicy, RootKey, Store,
};

use super::common::{key_text, material, new_key};

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Says a whole line, in one write.
fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// 20 bytes to 100 KiB that only the operation `id` writes.
fn value(id: u64) -> Vec<u8> {
    let mut random = Random(id);
    let len = match random.below(40) {
        0 => 100 << 10,
        1..4 => 20 + random.below(20_000),
        _ => 20 + random.below(600),
    };
    let mut value = id.to_be_bytes().to_vec();
    while (value.len() as u64) < len {
        value.extend_from_slice(&random.next().to_be_bytes());
    }
    value
}

/// Which operation wrote this value; `None` for one that none did.
fn writer_of(found: &[u8]) -> Option<u64> {
    let id = u64::from_be_bytes(*found.first_chunk()?);
    (value(id) == found).then_some(id)
}

pub(crate) fn run(role: &str) {
    let env = |name| std::env::var(name).unwrap();
    let data = PathBuf::from(env("BYOKV_KILL_DATA"));
    let root = RootKey::from_material(material(&env("BYOKV_KILL_ROOT")));
    let options = Options::new().cache_bytes(16 << 20).sync_interval(Duration::from_millis(60));
    let store = options.open(data, root).unwrap();
    let said = env("BYOKV_KILL_SAID");
    match role {
        "work" => work(&store, &said, env("BYOKV_KILL_SEED").parse().unwrap()),
        "check" => check(&store, &said),
        _ => loop {
            std::thread::park();
        },
    }
}

/// Names the process's operations: unique over all processes, as their seeds are.
struct Ids(AtomicU64);

impl Ids {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Says that an operation starts, does it, says that it is done. Refusals that change nothing are
/// said too; any other error ends the process.
fn tell<T>(ids: &Ids, what: &str, work: impl FnOnce(u64) -> byokv::Result<T>) -> Option<T> {
    let id = ids.next();
    say(&format!("start {id} {what}"));
    match work(id) {
        Ok(done) => {
            say(&format!("done {id}"));
            Some(done)
        }
        Err(Error::KeySuspended { .. } | Error::OrgErased { .. } | Error::OrgUnknown { .. }) => {
            say(&format!("refused {id}"));
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

fn work(store: &Store, said: &str, seed: u64) {
    const AGENTS: u64 = 3;
    let ids = Ids(AtomicU64::new(seed << 20));
    say("ready");
    std::thread::scope(|scope| {
        for agent in 0..AGENTS {
            let ids = &ids;
            scope.spawn(move || {
                let mut random = Random(seed ^ agent);
                loop {
                    agent_step(store, ids, agent, &mut random);
                }
            });
        }
        // Buffered writes become durable by the syncing thread alone: after two more rounds
        // than there were, all that was done before is.
        scope.spawn(|| {
            loop {
                let syncs = || store.metrics().unwrap().syncs;
                tell(&ids, "synced", |_| {
                    // Once it is said that this starts: what comes before that must be covered.
                    let before = syncs();
                    while syncs() < before + 2 {
                        std::thread::park_timeout(Duration::from_millis(5));
                    }
                    Ok(())
                });
            }
        });
        let mut random = Random(seed ^ 0xad31);
        let mut operator = Operator::of(said);
        loop {
            operator.step(store, &ids, &mut random);
        }
    });
}

/// Each agent writes names of its own, so that what becomes of one is known in order.
fn agent_step(store: &Store, ids: &Ids, agent: u64, random: &mut Random) {
    let orgs = store.orgs();
    if orgs.is_empty() {
        std::thread::yield_now();
        return;
    }
    let index = usize::try_from(random.below(orgs.len() as u64)).unwrap();
    let Ok(org) = store.org(&orgs[index].name) else { return };
    let durable = random.below(12) == 0;
    let org = if durable { org.durable() } else { org };
    let how = if durable { "durable" } else { "buffered" };
    let name = |random: &mut Random| format!("{agent}/{}", random.below(60));
    let one = name(random);
    let what = |verb: &str, names: &str| format!("{how} {verb} {} {names}", org.name());
    match random.below(10) {
        0 | 1 => drop(tell(ids, &what("delete", &one), |_| org.delete(&one))),
        2 => {
            let (two, three) = (name(random), name(random));
            if one != two && two != three && one != three {
                // The third is deleted.
                let names = format!("{one} {two} {three}");
                tell(ids, &what("batch", &names), |id| {
                    let value = value(id);
                    org.batch().put(&one, &value).put(&two, &value).delete(&three).commit()
                });
            }
        }
        3 => {
            let Ok(before) = org.get(&one) else { return };
            tell(ids, &what("put", &one), |id| {
                let swap = org.compare_and_swap(&one, before.as_deref(), Some(&value(id)))?;
                assert!(swap.is_swapped(), "nobody else writes {one}");
                Ok(())
            });
        }
        _ => drop(tell(ids, &what("put", &one), |id| org.put(&one, value(id)))),
    }
}

/// Changes keys, one change at a time. Knows by the parent which keys it gave.
struct Operator {
    /// By org, every key that it brought.
    brought: BTreeMap<String, Vec<String>>,
    /// Orgs made so far.
    orgs: u64,
}

impl Operator {
    /// `orgs ORG KEY,KEY ORG KEY…`
    fn of(said: &str) -> Self {
        let mut words = said.split(' ');
        let orgs = words.next().unwrap_or_default().parse().unwrap_or(0);
        let mut brought = BTreeMap::new();
        while let (Some(org), Some(keys)) = (words.next(), words.next()) {
            let keys = keys.split(',').filter(|key| !key.is_empty()).map(str::to_owned);
            brought.insert(org.to_owned(), keys.collect());
        }
        Self { brought, orgs }
    }

    fn step(&mut self, store: &Store, ids: &Ids, random: &mut Random) {
        let orgs = store.orgs();
        if orgs.len() < 3 {
            self.orgs += 1;
            let name = format!("org{}", self.orgs);
            let policy = OrgPolicy::byok();
            let policy = match random.below(4) {
                0 => policy.with_retire(RetirePolicy::AfterHold(Duration::from_millis(50))),
                _ => policy,
            };
            tell(ids, &format!("key create {name}"), |_| store.create_org(&name, policy));
            return;
        }
        let index = usize::try_from(random.below(orgs.len() as u64)).unwrap();
        let name = orgs[index].name.clone();
        let keys = store.keys();
        let suspended: Vec<_> =
            orgs[index].versions.iter().filter(|v| v.state == KeyState::Suspended).collect();
        if let Some(version) = suspended.last() {
            let wanted = |text: &&String| material(text).fingerprint() == version.fingerprint;
            let key = self.brought[&name].iter().find(wanted).unwrap();
            tell(ids, &format!("key resume {name} {}", version.version.get()), |_| {
                keys.resume(&name, material(key))
            });
            return;
        }
        let newest = orgs[index].versions.last().unwrap();
        match random.below(16) {
            0 => drop(tell(ids, &format!("key erase {name}"), |_| keys.erase_org(&name))),
            1 => drop(tell(ids, "removal", |_| store.erase_residue())),
            2 | 3 if newest.origin == byokv::Origin::Customer => {
                tell(ids, &format!("key suspend {name}"), |_| keys.suspend(&name));
            }
            4..8 if newest.origin == byokv::Origin::Platform => {
                tell(ids, &format!("key rotate {name}"), |_| keys.rotate_platform_key(&name));
            }
            8..11 => {
                let key = key_text();
                self.brought.entry(name.clone()).or_default().push(key.clone());
                tell(ids, &format!("key provision {name} {key}"), |_| {
                    keys.provision(&name, material(&key))
                });
            }
            11 => drop(tell(ids, "sync", |_| store.sync())),
            12 => drop(tell(ids, "backup", |_| back_up(store))),
            // Time for the rotations.
            _ => std::thread::park_timeout(Duration::from_millis(random.below(40))),
        }
    }
}

/// While the agents write. The key is never used again.
fn back_up(store: &Store) -> byokv::Result<()> {
    let (key, mut file) = (new_key(), Vec::new());
    let made = store.backup(&key).write_to(&mut file)?;
    let read = BackupContents::read(&key, &file[..])?;
    assert_eq!((read.is_complete(), read), (true, made));
    Ok(())
}

/// Looks at everything, lets what is unfinished finish, and says what it found.
fn check(store: &Store, said: &str) {
    let keys = store.keys();
    let operator = Operator::of(said);
    for org in store.orgs() {
        for version in &org.versions {
            let state = version.state.to_string();
            let (number, print) = (version.version.get(), version.fingerprint);
            say(&format!("key {} {number} {print} {state}", org.name));
        }
        while let Some(version) = suspended(store, &org.name) {
            let brought = operator.brought.get(&org.name).unwrap();
            let key = brought.iter().find(|key| material(key).fingerprint() == version).unwrap();
            keys.resume(&org.name, material(key)).unwrap();
        }
    }
    // A version that was resumed while a pass was under way takes another one.
    loop {
        let rotations = keys.rotations().unwrap();
        for rotation in &rotations {
            let ended = rotation.wait_timeout(Duration::from_secs(60)).unwrap();
            assert!(ended.is_some(), "does not end: {}", rotation.progress());
        }
        if rotations.is_empty() {
            break;
        }
    }
    for org in store.orgs() {
        let states = keys.status(&org.name).unwrap();
        assert!(!states.rotating, "{states:?}");
        let live = states.versions.iter().filter(|v| v.state != KeyState::Retired).count();
        assert_eq!(live, 1, "{states:?}");
        let census = keys.census(&org.name).unwrap();
        assert_eq!(census.malformed, 0, "{census:?}");
        let newest = states.versions.last().unwrap().version;
        assert!(census.by_version.keys().all(|version| *version == newest), "{census:?}");
        look(&store.org(&org.name).unwrap());
    }
    store.verify().unwrap();
    let events: Vec<_> = keys.audit().map(Result::unwrap).collect();
    assert!(!events.is_empty());
    for certificate in keys.certificates() {
        let certificate = certificate.unwrap();
        assert!(keys.verify_certificate(&certificate).unwrap().is_true());
        let kind = format!("{:?}", certificate.kind);
        let (org, version) = (&certificate.org, certificate.version.get());
        say(&format!("certificate {org} {version} {kind}"));
    }
    say("end");
}

fn suspended(store: &Store, org: &str) -> Option<byokv::Fingerprint> {
    let versions = store.keys().status(org).unwrap().versions;
    versions.iter().find(|v| v.state == KeyState::Suspended).map(|v| v.fingerprint)
}

fn look(org: &Org) {
    for record in org.scan("") {
        let record = record.unwrap();
        let name = String::from_utf8(record.name).unwrap();
        let Some(writer) = writer_of(&record.value) else {
            panic!("{} of {} has a value that nobody wrote", name, org.name());
        };
        let value = org.get(&name).unwrap().unwrap();
        assert_eq!(writer_of(&value), Some(writer));
        say(&format!("record {} {name} {writer}", org.name()));
    }
}
