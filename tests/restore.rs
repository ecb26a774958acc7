//! What a restore refuses, before it writes anything; and invariant 9: killed at any point, a
//! restored org is whole or unseen. The test binary runs itself as the process that is killed.

#![cfg(feature = "backup")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use byokv::fuzzing::HostileBackup;
use byokv::{
    AuditEvent, BackupContents, BackupError, CertificateKind, Error, KeyMaterial, KeyState,
    Options, RootKey, Store, failpoint,
};
use common::{Ended, Place, backup, check_filled, filled, key_text, material, new_key, restore};

/// Whatever is wrong with it, it is refused by its name and before anything is written.
#[test]
fn each_refusal_comes_before_anything_is_written() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 10);
    acme.put("large", vec![9; 300_000]).unwrap();
    let key = new_key();
    let (good, other) = (backup(&store, &key), backup(&store, &key));
    assert_ne!(good, other);
    const CHUNK: usize = 25 + 65_536 + 16;
    let chunk = |number: usize| 40 + number * CHUNK..40 + (number + 1) * CHUNK;
    let mut flipped = good.clone();
    flipped[100_000] ^= 1;
    let mut reordered = good.clone();
    reordered[chunk(1)].copy_from_slice(&good[chunk(2)]);
    reordered[chunk(2)].copy_from_slice(&good[chunk(1)]);
    let spliced = [&good[..40 + 2 * CHUNK], &other[40 + 2 * CHUNK..]].concat();
    let longer = [&good[..], b"\n"].concat();
    let home = Place::new();
    let copy = home.open();
    let before = copy.metrics().unwrap();
    type Is = fn(&BackupError) -> bool;
    let cases: [(&[u8], &KeyMaterial, Is, &str); 8] = [
        (&good[..150_000], &key, |e| matches!(e, BackupError::CutShort { chunks: 2 }), "cut short"),
        (
            &good[..40 + 3 * CHUNK],
            &key,
            |e| matches!(e, BackupError::CutShort { chunks: 3 }),
            "cut short",
        ),
        (&flipped, &key, |e| matches!(e, BackupError::Altered { chunk: 1 }), "altered or damaged"),
        (
            &reordered,
            &key,
            |e| matches!(e, BackupError::OutOfPlace { chunk: 1, found: 2 }),
            "chunk 2 stands where chunk 1",
        ),
        (
            &spliced,
            &key,
            |e| matches!(e, BackupError::OtherBackup { chunk: 2 }),
            "of another backup",
        ),
        (&longer, &key, |e| matches!(e, BackupError::GoesOn), "goes on"),
        (&good, &new_key(), |e| matches!(e, BackupError::OtherKey { .. }), "wrong backup key"),
        (b"a letter", &key, |e| matches!(e, BackupError::NoBackup), "no backup"),
    ];
    for (file, key, is, words) in cases {
        for error in
            [restore(&copy, key, file).unwrap_err(), BackupContents::read(key, file).unwrap_err()]
        {
            let text = error.to_string();
            assert!(matches!(&error, Error::Backup(why) if is(why)), "{text}");
            assert!(text.contains(words) && text.contains("nothing was restored"), "{text}");
        }
    }
    let after = copy.metrics().unwrap();
    assert_eq!((after.keyring_generation, after.syncs), (before.keyring_generation, before.syncs));
    restore(&copy, &key, &good).unwrap();
}

/// A backup of somebody who has its key.
fn hostile() -> HostileBackup<'static> {
    HostileBackup {
        org: "acme",
        ancestor: None,
        newest: 1,
        claimed: &[],
        more: 0,
        orgs: 0,
        text: "text",
    }
}

/// Two million fingerprints took over five minutes under the keyring's lock. How many are taken is
/// limited, and how many steps those take is counted in `keyring/restore.rs`.
#[test]
fn a_list_of_contents_has_limits() {
    let (home, key) = (Place::new(), new_key());
    let store = home.open();
    let generation = || store.metrics().unwrap().keyring_generation;
    let before = generation();
    for (hostile, what) in [
        (HostileBackup { more: 500_001, ..hostile() }, "fingerprints of keys"),
        (HostileBackup { text: &"x".repeat(200), ..hostile() }, "bytes in the name of an org"),
    ] {
        let file = byokv::fuzzing::backup_hostile(&key, &hostile);
        let error = restore(&store, &key, &file).unwrap_err();
        let text = error.to_string();
        let is_limit = matches!(error, Error::Backup(BackupError::TooMany { .. }));
        assert!(is_limit && text.contains(what) && text.contains("nothing was restored"), "{text}");
    }
    assert_eq!(generation(), before, "nothing was written");
    let file = byokv::fuzzing::backup_hostile(&key, &HostileBackup { more: 50_000, ..hostile() });
    restore(&store, &key, &file).unwrap();
    let keyring = std::fs::metadata(home.data().join("keyring")).unwrap().len();
    assert!(keyring < 16 * 50_000 + 10_000, "{keyring} bytes");
}

/// What a hostile backup says of keys keeps only its own org from them, until an operator drops it.
#[test]
fn a_hostile_backup_blocks_nobody_else() {
    let (home, key) = (Place::new(), new_key());
    let store = home.open();
    let victim = filled(&store, "victim", 5);
    let texts = [(); 5].map(|()| key_text());
    let claimed = texts.each_ref().map(|text| material(text).fingerprint());
    let hostile = HostileBackup {
        ancestor: Some(victim.id()),
        newest: u32::MAX - 2,
        claimed: &claimed,
        ..hostile()
    };
    let file = byokv::fuzzing::backup_hostile(&key, &hostile);
    restore(&store, &key, &file).unwrap();
    let keys = store.keys();
    let provision = |org: &str, text: &str| keys.provision(org, material(text)).map(drop);
    for text in &texts {
        assert!(matches!(provision("acme", text), Err(Error::KeyReused { .. })));
    }
    provision("victim", &texts[0]).unwrap();
    store.create_org("other", byokv::OrgPolicy::byok()).unwrap();
    provision("other", &texts[1]).unwrap();
    backup(&store, &material(&texts[2]));
    store.change_root_key(RootKey::from_material(material(&texts[3]))).unwrap();

    let foreign = keys.foreign_keys();
    assert_eq!((foreign.len(), &foreign[0].orgs[0].0[..]), (1, "acme"));
    assert!(claimed.iter().all(|key| foreign[0].keys.contains(key)));
    let dropped = keys.drop_foreign_keys(foreign[0].backup).unwrap();
    assert_eq!(dropped, foreign[0].keys.len() as u64);
    assert!(keys.foreign_keys().is_empty());
    provision("acme", &texts[4]).unwrap();
    let event = AuditEvent::ForeignKeysDropped { backup: foreign[0].backup, keys: dropped };
    assert_eq!(keys.audit().filter(|entry| entry.as_ref().unwrap().event == event).count(), 1);
    let none = keys.drop_foreign_keys(foreign[0].backup).unwrap_err();
    assert!(matches!(none, Error::Backup(BackupError::NothingForeign { .. })), "{none}");

    // The numbers of the org that it calls its ancestor are not used up.
    let whole = backup(&store, &key);
    keys.erase_org("victim").unwrap();
    let restored = store.restore(&key).only("victim").read_from(Cursor::new(&whole)).unwrap();
    assert!(restored.orgs[0].key.get() < 10, "{}", restored.orgs[0].key);
}

/// It goes on with the orgs that it came with, and with no other: a backup of the whole store is
/// not restored with what a hostile one said.
#[test]
fn what_a_hostile_backup_says_stays_with_its_org_over_another_backup() {
    let (place, home, key) = (Place::new(), Place::new(), new_key());
    let store = place.open();
    drop(filled(&store, "victim", 5));
    let texts = [key_text(), key_text()];
    let claimed = texts.each_ref().map(|text| material(text).fingerprint());
    let hostile = HostileBackup { claimed: &claimed, ..hostile() };
    let file = byokv::fuzzing::backup_hostile(&key, &hostile);
    restore(&store, &key, &file).unwrap();
    let copy = home.open();
    restore(&copy, &key, &backup(&store, &key)).unwrap();
    let provision = |org: &str, text: &str| copy.keys().provision(org, material(text)).map(drop);
    provision("victim", &texts[0]).unwrap();
    assert!(matches!(provision("acme", &texts[1]), Err(Error::KeyReused { .. })));
}

/// Texts of somebody else's cannot turn a terminal's line or look like others.
#[test]
fn texts_of_a_backup_are_escaped() {
    let (home, key) = (Place::new(), new_key());
    let text = "a\u{1b}[31mb\u{9b}1mc\u{202e}d\u{2066}e\u{200b}f\u{feff}g\u{2028}h\ni";
    let file = byokv::fuzzing::backup_hostile(&key, &HostileBackup { text, ..hostile() });
    let contents = BackupContents::read(&key, &file[..]).unwrap();
    let restored = restore(&home.open(), &key, &file).unwrap().backup;
    for contents in [contents, restored] {
        let record = &contents.unreadable[0];
        for shown in [&contents.left_out[0].name, &record.org, &record.name, &record.why] {
            assert!(shown.is_ascii() && !shown.contains(|c: char| c.is_control()), "{shown}");
            assert!(shown.starts_with("a\\u{1b}[31mb") && shown.ends_with("h\\ni"), "{shown}");
        }
    }
    let file =
        byokv::fuzzing::backup_hostile(&key, &HostileBackup { org: "a\u{202e}b", ..hostile() });
    let error = BackupContents::read(&key, &file[..]).unwrap_err();
    assert!(matches!(error, Error::Backup(BackupError::Malformed { .. })), "{error}");
}

/// What one tenant gets says nothing of the keys of another.
#[test]
fn a_backup_of_one_org_holds_no_other_keys() {
    let (place, home, key) = (Place::new(), Place::new(), new_key());
    let store = place.open();
    drop((filled(&store, "acme", 5), filled(&store, "umbra", 5)));
    store.keys().provision("umbra", new_key()).unwrap().ended();
    let mut file = Vec::new();
    store.backup(&key).only("acme").write_to(&mut file).unwrap();
    let copy = home.open();
    restore(&copy, &key, &file).unwrap();
    let foreign = copy.keys().foreign_keys();
    let of_acme: Vec<_> =
        store.keys().status("acme").unwrap().versions.iter().map(|v| v.fingerprint).collect();
    assert_eq!(foreign.iter().flat_map(|f| &f.keys).copied().collect::<Vec<_>>(), of_acme);
}

/// Becomes another once it was read to its end.
struct Changing {
    file: Cursor<Vec<u8>>,
    then: Vec<u8>,
}

impl Read for Changing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read(bytes)
    }
}

impl Seek for Changing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        if self.file.position() > 0 {
            self.file = Cursor::new(std::mem::take(&mut self.then));
        }
        self.file.seek(to)
    }
}

fn wait_until_erased(store: &Store) {
    let begun = Instant::now();
    let is_erased =
        || store.keys().certificates().any(|c| c.unwrap().kind == CertificateKind::OrgErased);
    while !is_erased() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not erased");
        std::thread::yield_now();
    }
}

#[test]
fn a_backup_that_changes_between_check_and_restore_is_taken_back() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 3000);
    acme.put("zlarge", vec![9; 300_000]).unwrap();
    let key = new_key();
    let (good, other) = (backup(&store, &key), backup(&store, &key));
    let mut altered = good.clone();
    let at = altered.len() - 200_000;
    altered[at] ^= 1;
    for then in [altered, good[..good.len() - 1].to_vec(), other, Vec::new()] {
        let home = Place::new();
        let copy = home.open();
        let file = Changing { file: Cursor::new(good.clone()), then };
        let error = copy.restore(&key).read_from(file).unwrap_err();
        assert!(matches!(error, Error::Backup(BackupError::Changed)), "{error}");
        assert!(
            matches!(copy.org("acme"), Err(Error::OrgUnknown { .. })) && copy.orgs().is_empty()
        );
        wait_until_erased(&copy);
        let discarded = |entry: byokv::AuditEntry| entry.event == AuditEvent::RestoreDiscarded;
        assert!(copy.keys().audit().any(|entry| discarded(entry.unwrap())));
        assert_eq!(restore(&copy, &key, &good).unwrap().orgs[0].records, 3001);
        assert_eq!(copy.org("acme").unwrap().get("zlarge").unwrap().unwrap().len(), 300_000);
    }
}

#[test]
fn nobody_sees_an_org_before_it_is_whole() {
    let (place, home) = (Place::new(), Place::new());
    let source = place.open();
    drop((filled(&source, "first", 1500), filled(&source, "second", 1500)));
    let key = new_key();
    let file = backup(&source, &key);
    let copy = Arc::new(home.open());
    let looked = Arc::new(AtomicUsize::new(0));
    let look = || {
        let (copy, looked) = (Arc::clone(&copy), Arc::clone(&looked));
        move || {
            looked.fetch_add(1, Ordering::SeqCst);
            assert!(copy.orgs().is_empty() && copy.metrics().unwrap().orgs.is_empty());
            for org in ["first", "second"] {
                assert!(matches!(copy.org(org), Err(Error::OrgUnknown { .. })));
                assert!(matches!(copy.keys().status(org), Err(Error::OrgUnknown { .. })));
                let taken = copy.create_org(org, byokv::OrgPolicy::byok());
                assert!(matches!(taken, Err(Error::OrgExists { .. })));
            }
        }
    };
    let hooks = ["first", "second"].map(|org| failpoint::on("restore.written", org, look()));
    restore(&copy, &key, &file).unwrap();
    drop(hooks);
    assert_eq!(looked.load(Ordering::SeqCst), 4, "twice within each org");
    check_filled(&copy.org("second").unwrap(), 1500);
}

/// Not a test of its own: restores a backup, or opens the store, and is killed on the way.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let text = |name| std::env::var(name).unwrap();
    let root = RootKey::from_material(material(&text("BYOKV_CHILD_ROOT")));
    // So that nothing becomes durable by itself, however slow the machine.
    let options = Options::new().sync_interval(Duration::from_secs(3600));
    let store = options.open(data, root).unwrap();
    if let Some(file) = std::env::var_os("BYOKV_CHILD_BACKUP") {
        let file = std::fs::File::open(file).unwrap();
        store.restore(&material(&text("BYOKV_CHILD_KEY"))).read_from(file).unwrap();
    }
    if text("BYOKV_FAILPOINT").starts_with("erase.") {
        wait_until_erased(&store);
    }
}

/// Killed at any point, the store opens with every restored org whole or with none; what was
/// half restored can be read by nobody, and is deleted.
#[test]
fn a_restore_killed_at_each_point_happened_or_did_not() {
    let (place, key) = (Place::new(), key_text());
    let source = place.open();
    drop((filled(&source, "acme", 1500), filled(&source, "umbra", 1500)));
    let file = place.dir.path().join("backup");
    let sealed = backup(&source, &material(&key));
    std::fs::write(&file, &sealed).unwrap();

    let of_keyring =
        |point: &&&str| point.starts_with("keyring.") && **point != "keyring.published";
    let of_keyring = failpoint::ALL.iter().filter(of_keyring);
    let ours = |point: &str| point.starts_with("restore.") && point != "restore.discarded";
    let mut points: Vec<(String, Option<&str>)> = Vec::new();
    for point in failpoint::RESTORE.iter().filter(|point| ours(point)) {
        points.push(((*point).to_owned(), None));
    }
    points.push(("restore.written:3".to_owned(), None));
    for point in of_keyring.clone() {
        // When the restore begins, and when it ends.
        points.extend([(format!("{point}:1"), None), (format!("{point}:2"), None)]);
        // When what it left is discarded.
        points.push(("restore.written:2".to_owned(), Some(point)));
    }
    points.push(("restore.synced".to_owned(), Some("restore.discarded")));
    points.extend(
        failpoint::ERASURE
            .iter()
            .filter(|point| **point != "erase.keys_gone")
            .map(|point| ("restore.synced".to_owned(), Some(*point))),
    );
    for (point, then) in points {
        let home = Place::new();
        let store = home.open();
        drop(filled(&store, "there", 50));
        store.close().unwrap();
        let child = |point: &str, restores: bool| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "child"]).env("BYOKV_FAILPOINT", point);
            command.env("BYOKV_CHILD", home.data()).env("BYOKV_CHILD_ROOT", &home.root);
            if restores {
                command.env("BYOKV_CHILD_BACKUP", &file).env("BYOKV_CHILD_KEY", &key);
            }
            let silent = || std::process::Stdio::null();
            !command.stdout(silent()).stderr(silent()).status().unwrap().success()
        };
        assert!(child(&point, true), "{point} was not reached");
        if let Some(then) = then {
            assert!(child(then, false), "{point}, then {then}: not reached");
        }
        let store = home.open();
        let seen: Vec<_> = store.orgs().into_iter().map(|org| org.name).collect();
        check_filled(&store.org("there").unwrap(), 50);
        for org in ["acme", "umbra"] {
            assert_eq!(store.org(org).is_ok(), seen.len() == 3, "{point}");
        }
        match seen.len() {
            3 => assert_eq!(seen, ["acme", "there", "umbra"]),
            _ => {
                assert_eq!(seen, ["there"], "{point}");
                if store.keys().audit().any(|e| e.unwrap().event == AuditEvent::RestoreDiscarded) {
                    wait_until_erased(&store);
                }
                restore(&store, &material(&key), &sealed).unwrap();
            }
        }
        for org in ["acme", "umbra"] {
            check_filled(&store.org(org).unwrap(), 1500);
            let versions = store.keys().status(org).unwrap().versions;
            let active = versions.iter().filter(|v| v.state == KeyState::Active).count();
            assert_eq!(active, 1, "{point}");
            let mut numbers: Vec<_> = versions.iter().map(|v| v.version).collect();
            numbers.dedup();
            assert_eq!(numbers.len(), versions.len());
        }
        store.keys().audit().for_each(|entry| drop(entry.unwrap()));
        store.close().unwrap();
        // Every record in the database is of an org that is seen.
        let store = home.open();
        let ids: Vec<_> = store.orgs().into_iter().map(|org| *org.id.as_bytes()).collect();
        store.close().unwrap();
        common::tamper(&home, "records", |records| {
            let known = |key: &[u8]| ids.iter().any(|id| key.starts_with(&common::escape(id)));
            let strays = records.iter().filter(|pair| !known(&pair.as_ref().unwrap().0)).count();
            assert_eq!(strays, 0, "{point}, then {then:?}");
        });
    }
}
