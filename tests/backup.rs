//! Backups: a picture of one moment, sealed, and what a restore makes of it or refuses.

#![cfg(feature = "backup")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use byokv::{
    AuditEvent, BackupContents, BackupError, Error, KeyState, LeftOut, OrgPolicy, Origin, RootKey,
    Store, Suite,
};
use common::{
    Ended, Place, backup, check_filled, filled, filled_blinded, here, key_text, material, new_key,
    restore,
};

fn all(org: &byokv::Org) -> Vec<(Vec<u8>, Vec<u8>)> {
    org.scan("").map(|record| record.map(|r| (r.name, r.value.to_vec())).unwrap()).collect()
}

#[test]
fn orgs_come_back_under_new_keys_with_their_names_policies_and_history() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 300);
    acme.put("large", vec![7; 5 << 20]).unwrap();
    acme.put([0xff, 0, 0xfe], b"").unwrap();
    let policy = OrgPolicy::platform_only().with_suite(Suite::XChaCha20Poly1305);
    let umbra = store.create_org("umbra", policy.clone()).unwrap();
    umbra.put("n", "v").unwrap();
    store.create_org("empty", OrgPolicy::byok()).unwrap();
    let blinded = all(&filled_blinded(&store, "blinded", 100));
    let customers = key_text();
    store.keys().provision("acme", material(&customers)).unwrap().ended();
    let (before, records) = (store.orgs(), all(&acme));
    let key = new_key();
    let mut file = Vec::new();
    let contents = store.backup(&key).write_to(&mut file).unwrap();
    assert_eq!(BackupContents::read(&key, &file[..]).unwrap(), contents);
    assert!(contents.is_complete() && contents.whole_store);
    assert_eq!((contents.store, contents.key), (store.id(), key.fingerprint()));
    let entries: Vec<_> = contents.orgs.iter().map(|org| (&org.name[..], org.entries)).collect();
    assert_eq!(entries, [("acme", 302), ("blinded", 100), ("empty", 0), ("umbra", 1)]);
    let other = Place::new();
    let copy = other.open();
    let there = filled(&copy, "there", 10);
    let restored = restore(&copy, &key, &file).unwrap();
    let check = |copy: &Store| {
        for was in &before {
            let now = copy.keys().status(&was.name).unwrap();
            assert_ne!(now.id, was.id);
            assert_eq!((&now.policy, now.suite), (&was.policy, was.suite));
            let (newest, past) = now.versions.split_last().unwrap();
            assert_eq!((newest.state, newest.origin), (KeyState::Active, Origin::Platform));
            assert_eq!(newest.version.get() as usize, was.versions.len() + 1);
            for (now, was) in past.iter().zip(&was.versions) {
                assert_eq!(now.state, KeyState::Retired);
                assert_eq!((now.version, now.fingerprint), (was.version, was.fingerprint));
                assert_eq!((now.origin, now.created_unix_ms), (was.origin, was.created_unix_ms));
            }
            let census = copy.keys().census(&was.name).unwrap();
            assert!(census.by_version.keys().all(|version| *version == newest.version));
            assert!(census.by_suite.keys().all(|suite| *suite == was.suite));
        }
    };
    check(&copy);
    let counts: Vec<_> =
        restored.orgs.iter().map(|o| (&o.name[..], o.key.get(), o.records)).collect();
    assert_eq!(counts, [("acme", 3, 302), ("blinded", 2, 100), ("empty", 2, 0), ("umbra", 2, 1)]);
    assert_eq!(restored.orgs[0].was_origin, Origin::Customer);
    assert!(all(&copy.org("acme").unwrap()) == records);
    assert!(all(&copy.org("blinded").unwrap()) == blinded);
    check_filled(&there, 10);
    drop(there);
    // A number that was issued is never issued again, a key that was used never taken again.
    let again = copy.keys().provision("acme", material(&customers));
    assert!(matches!(again, Err(Error::KeyReused { .. })), "it was retired by the restore");
    copy.keys().provision("acme", new_key()).unwrap().ended();
    assert_eq!(copy.keys().status("acme").unwrap().versions.last().unwrap().version.get(), 4);
    copy.keys().audit().for_each(|entry| drop(entry.unwrap()));
    copy.close().unwrap();
    let copy = other.open();
    assert!(all(&copy.org("acme").unwrap()) == records);
    assert!(copy.keys().certificates().all(|c| c.unwrap().version.get() > 2), "only its own");
}

/// Lets a write through only when the writers have got somewhere: nobody waits for the backup.
struct Slow<'a> {
    to: Vec<u8>,
    written: &'a AtomicU64,
    seen: u64,
}

impl Write for Slow<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begun = Instant::now();
        while self.written.load(Ordering::SeqCst) < self.seen + 20 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the writers wait for the backup");
            std::thread::yield_now();
        }
        self.seen = self.written.load(Ordering::SeqCst);
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The guarantee, word for word: every write that had returned before one moment is in it, none
/// that began later, no batch in part; over all orgs, while rotations and moves of the database
/// go on.
#[test]
fn a_backup_shows_one_moment() {
    shows_one_moment(filled);
}

#[test]
fn a_backup_of_blinded_names_shows_one_moment() {
    shows_one_moment(filled_blinded);
}

fn shows_one_moment(filled: fn(&Store, &str, usize) -> byokv::Org) {
    const NAMES: u64 = 40;
    let place = Place::new();
    let store = place.open();
    let (acme, umbra) = (filled(&store, "acme", 2000), filled(&store, "umbra", 2000));
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let key = new_key();
    let file = std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (acme, umbra, written, stop) = (&acme, &umbra, &written, &stop);
            scope.spawn(move || {
                for i in 1.. {
                    // In two orgs, one after the other; then a batch, half of it deletions.
                    acme.put(format!("w{thread}"), format!("{i}")).unwrap();
                    umbra.put(format!("w{thread}"), format!("{i}")).unwrap();
                    let (gone, there) = (i % NAMES, (i + NAMES / 2) % NAMES);
                    acme.batch()
                        .put(format!("a{thread}"), format!("{i}"))
                        .delete(format!("t{thread}/{gone}"))
                        .put(format!("t{thread}/{there}"), format!("{i}"))
                        .put(format!("z{thread}"), format!("{i}"))
                        .commit()
                        .unwrap();
                    written.fetch_add(1, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        // Also where something fails, or the scope would wait for the writers for ever.
        let _stops = Stops(&stop);
        let rotation = store.keys().provision("acme", new_key()).unwrap();
        let moving = scope.spawn(|| store.erase_residue().unwrap());
        let mut slow = Slow { to: Vec::new(), written: &written, seen: 0 };
        acme.put("before", "1").unwrap();
        store.backup(&key).write_to(&mut slow).unwrap();
        acme.put("after", "1").unwrap();
        moving.join().unwrap();
        rotation.ended();
        slow.to
    });
    let home = Place::new();
    let copy = home.open();
    restore(&copy, &key, &file).unwrap();
    let (acme, umbra) = (copy.org("acme").unwrap(), copy.org("umbra").unwrap());
    assert!(acme.get("before").unwrap().is_some() && acme.get("after").unwrap().is_none());
    let number = |org: &byokv::Org, name: String| -> u64 {
        let value = org.get(name).unwrap();
        value.map_or(0, |value| value.as_str().unwrap().parse().unwrap())
    };
    // A thread alone may have been kept waiting by the machine.
    let mut all = 0;
    for thread in 0..3u64 {
        let [first, second] = [&acme, &umbra].map(|org| number(org, format!("w{thread}")));
        assert!(first == second || first == second + 1, "{first} in acme, {second} in umbra");
        let [a, z] = ["a", "z"].map(|name| number(&acme, format!("{name}{thread}")));
        assert_eq!(a, z, "a batch was torn");
        assert!(a == second || a + 1 == second, "{a} after {second}");
        all += a;
        for i in 0..NAMES {
            let last = |of: u64| {
                let mut back = (0..NAMES).filter_map(|back| a.checked_sub(back));
                back.find(|n| n % NAMES == of).unwrap_or(0)
            };
            let (put, deleted) = (last((i + NAMES / 2) % NAMES), last(i));
            let expected = if put > deleted { put } else { 0 };
            assert_eq!(number(&acme, format!("t{thread}/{i}")), expected, "of {a}: {i}");
        }
    }
    assert!(all > 40, "nothing was written meanwhile");
    for i in 0..2000 {
        assert!(acme.get(format!("n{i:05}")).unwrap().is_some());
    }
}

/// In the last moment before the standstill, when the notes were just read.
#[test]
fn what_returned_before_the_moment_is_in_it() {
    let (place, home) = (Place::new(), Place::new());
    let store = place.open();
    let org = filled(&store, "acme", 50);
    let late = org.clone();
    let hook = here("backup.caught_up", move || {
        late.put("late", "1").unwrap();
        late.delete("n00007").unwrap();
        late.batch().put("n00008", "new").put("n00009", "new").commit().unwrap();
    });
    let key = new_key();
    let file = backup(&store, &key);
    drop(hook);
    let copy = home.open();
    restore(&copy, &key, &file).unwrap();
    assert!(all(&copy.org("acme").unwrap()) == all(&org));
    assert!(org.get("late").unwrap().is_some() && org.count().unwrap() == 50);
}

/// With each piece that is written, more records change than may be left for the standstill.
#[test]
fn a_backup_ends_although_records_never_rest() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 50);
    struct Restless<'a>(Vec<u8>, &'a byokv::Org, u64);
    impl Write for Restless<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.2 += 1;
            let value = format!("{:0700}", self.2);
            (0..110).for_each(|i| self.1.put(format!("r{i}"), &value).unwrap());
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let key = new_key();
    let mut restless = Restless(Vec::new(), &org, 0);
    store.backup(&key).write_to(&mut restless).unwrap();
    let Restless(file, _, pieces) = restless;
    assert!(pieces > 100, "it did not take many rounds");
    let home = Place::new();
    let copy = home.open();
    assert_eq!(restore(&copy, &key, &file).unwrap().orgs[0].records, 160);
    let restored = all(&copy.org("acme").unwrap());
    let restless: Vec<_> = restored.iter().filter(|(name, _)| name[0] == b'r').collect();
    let mut values: Vec<u64> =
        restless.iter().map(|(_, v)| str::from_utf8(v).unwrap().parse().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values.first(), values.last(), "of one moment, between two pieces");
}

/// Does something with the first chunk: the head is written before any org is looked at.
struct Then<F: FnMut()>(Vec<u8>, Option<F>);

impl<F: FnMut()> Write for Then<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.0.is_empty()
            && let Some(mut then) = self.1.take()
        {
            then();
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The moment that a backup shows is its end: what is withheld then is not in it.
#[test]
fn an_org_that_is_suspended_after_it_was_read_ends_the_backup() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 10));
    filled(&store, "umbra", 10).put("large", vec![1; 200_000]).unwrap();
    store.keys().provision("acme", new_key()).unwrap().ended();
    let mut file = Then(Vec::new(), Some(|| drop(store.keys().suspend("acme").unwrap())));
    let refused = store.backup(&new_key()).write_to(&mut file);
    assert!(
        matches!(&refused, Err(Error::KeySuspended { org, .. }) if org == "acme"),
        "{refused:?}"
    );
}

/// Orgs that come while a backup is made are in it; one that goes ends it.
#[test]
fn orgs_that_come_or_go_meanwhile() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 10);
    acme.put("large", vec![1; 200_000]).unwrap();
    let key = new_key();
    let mut file = Then(Vec::new(), Some(|| drop(filled(&store, "new", 5))));
    let contents = store.backup(&key).write_to(&mut file).unwrap();
    assert_eq!(contents.orgs.iter().map(|org| org.entries).collect::<Vec<_>>(), [11, 5]);
    let home = Place::new();
    let copy = home.open();
    restore(&copy, &key, &file.0).unwrap();
    check_filled(&copy.org("new").unwrap(), 5);
    let mut file = Then(Vec::new(), Some(|| drop(store.keys().erase_org("acme").unwrap())));
    let gone = store.backup(&key).write_to(&mut file);
    assert!(matches!(gone, Err(Error::OrgErased { org }) if org == "acme"));
    assert!(BackupContents::read(&key, &file.0[..]).is_err(), "what is left of it is no backup");
}

#[test]
fn one_org_alone() {
    let place = Place::new();
    let store = place.open();
    drop((filled(&store, "acme", 20), filled(&store, "umbra", 30)));
    let key = new_key();
    let mut file = Vec::new();
    let contents = store.backup(&key).only("umbra").write_to(&mut file).unwrap();
    assert_eq!(contents.orgs.len(), 1);
    let missing = store.backup(&key).only("none").write_to(&mut Vec::new());
    assert!(matches!(missing, Err(Error::OrgUnknown { org }) if org == "none"));

    // Of a backup of all, one.
    let whole = backup(&store, &key);
    let home = Place::new();
    let copy = home.open();
    let restored = copy.restore(&key).only("umbra").read_from(Cursor::new(&whole)).unwrap();
    assert_eq!(restored.orgs.len(), 1);
    check_filled(&copy.org("umbra").unwrap(), 30);
    assert!(matches!(copy.org("acme"), Err(Error::OrgUnknown { .. })));
    let refused = restore(&copy, &key, &file);
    assert!(matches!(refused, Err(Error::OrgExists { org }) if org == "umbra"));
    let none = copy.restore(&key).only("acme").read_from(Cursor::new(&file));
    assert!(matches!(none, Err(Error::Backup(BackupError::OrgMissing { org })) if org == "acme"));
    // What stands before it in the file is not looked at.
    let mut shifted = Cursor::new([b"before", &whole[..]].concat());
    shifted.seek(SeekFrom::Start(6)).unwrap();
    copy.restore(&key).only("acme").read_from(shifted).unwrap();
    check_filled(&copy.org("acme").unwrap(), 20);
}

/// The org that is restored into the store it came from goes on with higher numbers.
#[test]
fn an_org_that_was_erased_comes_back_and_no_number_twice() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    let key = new_key();
    let file = backup(&store, &key);
    let customers = key_text();
    store.keys().provision("acme", material(&customers)).unwrap().ended();
    for expected in [3, 4] {
        let erased = store.keys().erase_org("acme").unwrap();
        erased.wait_timeout(Duration::from_secs(20)).unwrap().unwrap();
        let restored = restore(&store, &key, &file).unwrap();
        assert_eq!(restored.orgs[0].key.get(), expected);
        check_filled(&store.org("acme").unwrap(), 20);
    }
    let again = store.keys().provision("acme", material(&customers));
    assert!(matches!(again, Err(Error::KeyReused { .. })));
}

/// Invariant 10, for backup keys and over backups.
#[test]
fn no_key_serves_two_purposes() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 5));
    let [of_acme, of_gone, backup_key] = [(); 3].map(|()| key_text());
    store.keys().provision("acme", material(&of_acme)).unwrap().ended();
    store.create_org("gone", OrgPolicy::byok()).unwrap();
    store.keys().provision("gone", material(&of_gone)).unwrap().ended();
    store.keys().erase_org("gone").unwrap();
    for used in [&of_acme, &of_gone, &place.root] {
        let refused = store.backup(&material(used)).write_to(&mut Vec::new());
        assert!(matches!(refused, Err(Error::KeyReused { .. })));
    }
    let file = backup(&store, &material(&backup_key));
    backup(&store, &material(&backup_key));
    let refused = store.keys().provision("acme", material(&backup_key));
    assert!(matches!(refused, Err(Error::KeyReused { .. })));
    let root = RootKey::from_material(material(&backup_key));
    assert!(matches!(store.change_root_key(root), Err(Error::KeyReused { .. })));

    let other = Place::new();
    let copy = other.open();
    let generation = || copy.metrics().unwrap().keyring_generation;
    let before = generation();
    for used in [&of_acme, &of_gone, &place.root, &backup_key, &other.root] {
        let key = material(&backup_key);
        let restore = copy.restore(&key).with_key("acme", material(used));
        let refused = restore.read_from(Cursor::new(&file));
        assert!(matches!(refused, Err(Error::KeyReused { .. })));
    }
    assert_eq!(generation(), before, "nothing was written");
    let own = key_text();
    let key = material(&backup_key);
    let restore = copy.restore(&key).with_key("acme", material(&own));
    let restored = restore.read_from(Cursor::new(&file)).unwrap();
    let acme = &restored.orgs[0];
    assert_eq!((acme.key.get(), acme.origin), (3, Origin::Customer));
    assert_eq!(acme.fingerprint, material(&own).fingerprint());
    check_filled(&copy.org("acme").unwrap(), 5);
    for used in [&of_acme, &of_gone, &place.root, &backup_key, &own] {
        let refused = copy.keys().provision("acme", material(used));
        assert!(matches!(refused, Err(Error::KeyReused { .. })));
    }
    store.create_org("free", OrgPolicy::platform_only()).unwrap();
    let file = backup(&store, &key);
    let restore = copy.restore(&key).only("free").with_key("free", new_key());
    let refused = restore.read_from(Cursor::new(&file));
    assert!(matches!(refused, Err(Error::NotEntitled { org }) if org == "free"));
    let restore = copy.restore(&key).only("free").with_key("acme", new_key());
    let refused = restore.read_from(Cursor::new(&file));
    let not_chosen = Error::Backup(BackupError::OrgNotChosen { org: "acme".to_owned() });
    assert_eq!(refused.unwrap_err().to_string(), not_chosen.to_string());
}

#[test]
fn what_cannot_be_read_is_left_out_aloud_or_ends_it() {
    let place = Place::new();
    let store = place.open();
    drop((filled(&store, "acme", 20), filled(&store, "umbra", 20)));
    store.keys().provision("umbra", new_key()).unwrap().ended();
    store.keys().suspend("umbra").unwrap();
    let key = new_key();
    let mut file = Vec::new();
    let contents = store.backup(&key).write_to(&mut file).unwrap();
    assert!(!contents.is_complete());
    let LeftOut::Suspended { version } = contents.left_out[0].why else { panic!("not suspended") };
    assert_eq!((&contents.left_out[0].name[..], version.get()), ("umbra", 2));
    assert_eq!(contents.orgs.len(), 1);
    let refused = store.backup(&key).only("umbra").write_to(&mut Vec::new());
    assert!(matches!(refused, Err(Error::KeySuspended { org, .. }) if org == "umbra"));
    store.close().unwrap();

    common::tamper(&place, "records", |records| {
        let damage = |number: usize| {
            let (key, mut value) = records.iter().nth(number).unwrap().unwrap();
            let tag = value.len() - 17;
            value[tag] ^= 1;
            records.insert(key, value).unwrap();
        };
        [3, 23].into_iter().for_each(damage);
    });
    let store = place.open();
    let refused = store.backup(&key).only("acme").write_to(&mut Vec::new());
    assert!(matches!(&refused, Err(Error::RecordDamaged { name, .. }) if name == "n00003"));
    let mut file = Vec::new();
    let contents = store.backup(&key).skip_unreadable().write_to(&mut file).unwrap();
    let named: Vec<_> = contents.unreadable.iter().map(|r| (&r.org[..], &r.name[..])).collect();
    assert_eq!(named, [("acme", "n00003")]);
    assert_eq!(BackupContents::read(&key, &file[..]).unwrap(), contents);
    let home = Place::new();
    let copy = home.open();
    assert_eq!(restore(&copy, &key, &file).unwrap().orgs[0].records, 19);
    let made: Vec<_> = store.keys().audit().map(|entry| entry.unwrap().event).collect();
    let short = |event: &&AuditEvent| {
        matches!(event, AuditEvent::BackupMade { left_out: Some(1), unreadable: Some(1), .. })
    };
    assert_eq!(made.iter().filter(short).count(), 1);
}

#[test]
fn the_file_holds_no_plaintext_and_no_key() {
    let place = Place::new();
    let store = place.open();
    let acme = store.create_org("the-org-of-acme", OrgPolicy::byok()).unwrap();
    for i in 0..2000 {
        acme.put(format!("the-name-{i}"), format!("the-value-{i}").repeat(20)).unwrap();
    }
    let texts = [key_text(), key_text()];
    store.keys().provision("the-org-of-acme", material(&texts[0])).unwrap().ended();
    let file = backup(&store, &material(&texts[1]));
    let holds = |needle: &[u8]| file.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"byokvBK1"), "the search works");
    for needle in ["the-name-", "the-value-", "the-org", "acme"] {
        assert!(!holds(needle.as_bytes()), "{needle}");
    }
    for text in texts.iter().chain([&place.root]) {
        let decode = base64::Engine::decode;
        let bytes = decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        assert!(!holds(&bytes[..8]) && !holds(&text.as_bytes()[..12]));
    }
    // The same, sealed twice, has nothing in common behind the key's fingerprint.
    let again = backup(&store, &material(&texts[1]));
    let alike = file.iter().zip(&again).skip(40 + 25).filter(|(a, b)| a == b).count();
    assert!(alike < file.len() / 100, "{alike} of {}", file.len());
}

#[test]
fn the_largest_values_go_through() {
    if std::env::var_os("BYOKV_TORTURE").is_none() {
        return;
    }
    let place = Place::new();
    let store = place.open();
    let acme = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for name in ["a", "b"] {
        acme.put(name, vec![name.as_bytes()[0]; byokv::MAX_VALUE_LEN]).unwrap();
    }
    let key = new_key();
    let file = backup(&store, &key);
    let home = Place::new();
    let copy = home.open();
    restore(&copy, &key, &file).unwrap();
    let copied = copy.org("acme").unwrap();
    for name in ["a", "b"] {
        let value = copied.get(name).unwrap().unwrap();
        assert_eq!(value.len(), byokv::MAX_VALUE_LEN);
        assert!(value.iter().all(|byte| *byte == name.as_bytes()[0]));
    }
}
