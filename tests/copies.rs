//! Backups as copies of an org: the register of them, the certificate of an org's erasure that
//! names each, and policies by which there are none.

#![cfg(feature = "backup")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{self, Write};
use std::process::Command;
use std::time::Duration;

use byokv::{
    AuditEvent, BackupContents, BackupError, BackupId, BackupPolicy, BackupState, Certificate,
    Error, KeyMaterial, LeftOut, Options, OrgPolicy, RecordSelection, RootKey, Store,
};
use common::{Ended, Place, backup, check_filled, filled, key_text, material, new_key, restore};

fn erase(store: &Store, org: &str) -> Certificate {
    let erasure = store.keys().erase_org(org).unwrap();
    erasure.wait_timeout(Duration::from_secs(60)).unwrap().unwrap()
}

/// The backups that a certificate names, and how far they got.
fn named(certificate: &Certificate) -> Vec<(BackupId, BackupState)> {
    certificate.backups.iter().map(|copy| (copy.backup, copy.state)).collect()
}

fn id(file: &[u8], key: &KeyMaterial) -> BackupId {
    BackupContents::read(key, file).unwrap().id
}

fn backup_of(store: &Store, key: &KeyMaterial, org: &str) -> Vec<u8> {
    let mut file = Vec::new();
    store.backup(key).only(org).write_to(&mut file).unwrap();
    file
}

/// Takes so many bytes, and then none.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 < bytes.len() {
            return Err(io::Error::other("no more"));
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// P9: whoever erases an org is told which copies of it the erasure does not reach.
#[test]
fn the_certificate_of_an_erased_org_names_every_backup_that_holds_it() {
    use BackupState::{Made, RestoredFrom, Unfinished};
    let place = Place::new();
    let store = place.open();
    drop((filled(&store, "acme", 20), filled(&store, "umbra", 20)));
    let (key, other) = (new_key(), new_key());
    let whole = backup(&store, &key);
    let single = backup_of(&store, &other, "acme");
    let of_umbra = backup_of(&store, &key, "umbra");
    let failed = store.backup(&key).write_to(Full(100)).unwrap_err();
    assert!(matches!(failed, Error::Io { .. }), "{failed}");
    store.create_org("later", OrgPolicy::byok()).unwrap();

    let register = store.keys().backups().unwrap();
    assert_eq!(register.missing, 0);
    let states: Vec<_> = register.backups.iter().map(|b| (b.whole_store, b.state)).collect();
    assert_eq!(states, [(true, Made), (false, Made), (false, Made), (true, Unfinished)]);
    let unfinished = register.backups[3].backup;
    assert_eq!(register.backups[1].orgs[0].name, "acme");
    let event = AuditEvent::BackupNotFinished { backup: unfinished };
    assert!(store.keys().audit().any(|entry| entry.unwrap().event == event));

    // An org that came later is in none of them.
    assert_eq!(named(&erase(&store, "later")), []);
    let held = store.keys().backups_of("acme").unwrap();
    let certificate = erase(&store, "acme");
    assert_eq!(certificate.backups, held.backups);
    let (whole_id, single_id) = (id(&whole, &key), id(&single, &other));
    let expected = [(whole_id, Made), (single_id, Made), (unfinished, Unfinished)];
    assert_eq!(named(&certificate), expected);
    assert_eq!(certificate.backups[0].key, key.fingerprint());
    assert_eq!(certificate.backups[1].key, other.fingerprint());
    assert_eq!(certificate.backups[0].store, store.id());
    assert_eq!(
        certificate.backups[0].at_unix_ms,
        BackupContents::read(&key, &whole[..]).unwrap().at_unix_ms
    );
    let (text, json) = (certificate.to_string(), certificate.to_json());
    for (id, _) in expected {
        assert!(text.contains(&id.to_string()) && json.contains(&id.to_string()), "{text}");
    }
    assert!(text.contains("destroy these, or their key"), "{text}");
    let back = Certificate::from_json(&json).unwrap();
    assert!(store.keys().verify_certificate(&back).unwrap().is_true());

    // It comes back, as said, and its own end names all of that again.
    let restored = restore(&store, &other, &single).unwrap().orgs[0].id;
    check_filled(&store.org("acme").unwrap(), 20);
    let again = backup(&store, &key);
    let certificate = erase(&store, "acme");
    assert_eq!(certificate.org_id, restored);
    let mut expected = expected.to_vec();
    expected.extend([(single_id, RestoredFrom), (id(&again, &key), Made)]);
    let mut found = named(&certificate);
    for list in [&mut expected, &mut found] {
        list.sort_by_key(|(id, state)| (*id, format!("{state}")));
    }
    assert_eq!(found, expected);

    // In another store nothing is known but the backup that it came from.
    let home = Place::new();
    let copy = home.open();
    restore(&copy, &key, &of_umbra).unwrap();
    let certificate = erase(&copy, "umbra");
    assert_eq!(named(&certificate), [(id(&of_umbra, &key), RestoredFrom)]);
    assert_eq!(certificate.backups[0].store, store.id());
    assert!(certificate.to_string().contains("not known here"), "{certificate}");

    // The register outlives the database's replacement and the process.
    store.erase_residue().unwrap();
    let known = store.keys().backups().unwrap().backups;
    store.close().unwrap();
    let store = place.open();
    assert_eq!(store.keys().backups().unwrap().backups, known);
    assert_eq!(known.len(), 5);
    // No retirement tells of backups.
    store.keys().rotate_platform_key("umbra").unwrap().ended();
    let all = store.keys().certificates().map(Result::unwrap);
    let retired = all.filter(|c| c.org == "umbra").last().unwrap();
    assert!(!retired.to_json().contains("backups") && retired.backups.is_empty());
}

/// Looks at the register when the first byte comes.
struct First<'a>(&'a Store, Option<BackupState>);

impl Write for First<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.is_none() {
            let known = self.0.keys().backups().unwrap().backups;
            self.1 = known.first().map(|backup| backup.state);
            assert_eq!(self.1, Some(BackupState::UnderWay), "sealed before it was noted");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_backup_is_in_the_register_before_its_first_byte() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 5));
    store.backup(&new_key()).write_to(First(&store, None)).unwrap();
    assert_eq!(store.keys().backups().unwrap().backups[0].state, BackupState::Made);
}

/// Does something with the second piece, once it is being read.
struct Then<F: FnMut()>(usize, F);

impl<F: FnMut()> Write for Then<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        if self.0 == 2 {
            (self.1)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_org_whose_policy_refuses_backups_is_in_none() {
    let place = Place::new();
    let store = place.open();
    let refuses = OrgPolicy::byok().with_backups(BackupPolicy::Refuse);
    store.create_org("secret", refuses.clone()).unwrap().put("n", "v").unwrap();
    filled(&store, "acme", 10).put("large", vec![1; 200_000]).unwrap();
    let (key, keys) = (new_key(), store.keys());
    let mut file = Vec::new();
    let contents = store.backup(&key).write_to(&mut file).unwrap();
    assert_eq!(contents.orgs.len(), 1);
    let left_out = &contents.left_out[0];
    assert_eq!((&left_out.name[..], left_out.why), ("secret", LeftOut::RefusedByPolicy));
    assert!(contents.is_complete(), "nothing is missing that was wanted");
    let refused = store.backup(&key).only("secret").write_to(io::sink()).unwrap_err();
    assert!(matches!(&refused, Error::Backup(BackupError::OrgRefuses { org }) if org == "secret"));
    assert_eq!(keys.backups().unwrap().backups.len(), 1, "none was begun");

    // Only those that were made while it did not refuse hold it.
    let include = refuses.clone().with_backups(BackupPolicy::Include);
    let changes = keys.set_policy("secret", include.clone()).unwrap();
    assert_eq!(changes.len(), 1);
    let second = id(&backup(&store, &key), &key);
    keys.set_policy("secret", refuses.clone()).unwrap();
    backup(&store, &key);
    keys.set_policy("secret", include).unwrap();

    // It refuses while a backup is made: what was written of that is none.
    let backup = store.backup(&key);
    let refused = backup.write_to(Then(0, || drop(keys.set_policy("secret", refuses.clone()))));
    let policy = |error: &Error| matches!(error, Error::Backup(BackupError::PolicyChanged { .. }));
    assert!(refused.as_ref().is_err_and(policy), "{refused:?}");
    let certificate = erase(&store, "secret");
    let unfinished = keys.backups().unwrap().backups[3].backup;
    let expected = [(second, BackupState::Made), (unfinished, BackupState::Unfinished)];
    assert_eq!(named(&certificate), expected);
}

/// What is missing of the register is not passed over: the list is said not to be whole.
#[test]
fn a_damaged_register_is_told() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 5));
    let key = new_key();
    backup_of(&store, &key, "acme");
    let whole = id(&backup(&store, &key), &key);
    backup(&store, &key);
    // What the last change of the keyring wrote is written again at the next open.
    store.create_org("other", OrgPolicy::byok()).unwrap();
    store.close().unwrap();
    common::tamper(&place, "system", |system| {
        let entries: Vec<_> = system.scan_prefix("backup/").map(|pair| pair.unwrap().0).collect();
        assert_eq!(entries.len(), 3);
        // The second of the whole store, and the one of the org.
        for gone in [1, 2] {
            system.remove(&entries[gone]).unwrap();
        }
    });
    let open = Options::new().danger_accept_rollback(true);
    let store = open.open(place.data(), place.root_key()).unwrap();
    assert_eq!(store.keys().backups().unwrap().missing, 2);
    let certificate = erase(&store, "acme");
    assert_eq!(
        (named(&certificate), certificate.backups_missing),
        (vec![(whole, BackupState::Made)], 2)
    );
    assert!(certificate.to_string().contains("2 entries"), "{certificate}");
}

/// Not a test of its own: makes a backup, and is killed on the way.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let text = |name| std::env::var(name).unwrap();
    let root = RootKey::from_material(material(&text("BYOKV_CHILD_ROOT")));
    let store = Options::new().open(data, root).unwrap();
    store.backup(&material(&text("BYOKV_CHILD_KEY"))).write_to(io::sink()).unwrap();
}

/// Wherever a process is killed that makes a backup, the next one knows that there may be one.
#[test]
fn a_backup_that_was_cut_off_is_in_the_register() {
    for (point, state) in [
        ("keyring.exchanged", Some(BackupState::Unfinished)),
        ("keyring.saved", Some(BackupState::Unfinished)),
        ("backup.begun", Some(BackupState::Unfinished)),
        ("backup.sealed", Some(BackupState::Unfinished)),
        ("keyring.written:2", Some(BackupState::Unfinished)),
        ("keyring.exchanged:2", Some(BackupState::Made)),
        ("backup.ended", Some(BackupState::Made)),
    ] {
        let (place, key) = (Place::new(), key_text());
        let store = place.open();
        drop(filled(&store, "acme", 5));
        store.close().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child"]).env("BYOKV_FAILPOINT", point);
        child.env("BYOKV_CHILD", place.data()).env("BYOKV_CHILD_ROOT", &place.root);
        child.env("BYOKV_CHILD_KEY", &key);
        child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        assert!(!child.status().unwrap().success(), "{point} was not reached");
        let store = place.open();
        let known = store.keys().backups().unwrap();
        assert_eq!(known.backups.first().map(|backup| backup.state), state, "{point}");
        let certificate = erase(&store, "acme");
        assert_eq!(named(&certificate).len(), 1, "{point}");
        assert_eq!(certificate.backups[0].key, material(&key).fingerprint());
        let cut_off = |entry: byokv::Result<byokv::AuditEntry>| {
            matches!(entry.unwrap().event, AuditEvent::BackupNotFinished { .. })
        };
        let noted = store.keys().audit().any(cut_off);
        assert_eq!(noted, state == Some(BackupState::Unfinished), "{point}");
    }
}

/// I6: one org beside the one that is there, under another name.
#[test]
fn an_org_is_restored_under_another_name() {
    let place = Place::new();
    let store = place.open();
    drop((filled(&store, "acme", 20), filled(&store, "umbra", 5)));
    let key = new_key();
    let file = backup(&store, &key);
    let restored = |org: &str, name: &str| {
        let restore = store.restore(&key).only("acme").rename(org, name);
        restore.read_from(io::Cursor::new(&file))
    };
    let taken = restored("acme", "umbra").unwrap_err();
    assert!(matches!(&taken, Error::OrgExists { org } if org == "umbra"), "{taken}");
    let unnamed = restored("umbra", "other").unwrap_err();
    assert!(matches!(unnamed, Error::Backup(BackupError::OrgNotChosen { .. })), "{unnamed}");
    assert!(matches!(restored("acme", "a\nb").unwrap_err(), Error::InvalidOrgName { .. }));
    let org = &restored("acme", "acme of monday").unwrap().orgs[0];
    assert_eq!((&org.name[..], &org.was_name[..]), ("acme of monday", "acme"));
    check_filled(&store.org("acme of monday").unwrap(), 20);
    check_filled(&store.org("acme").unwrap(), 20);
}

/// I6: one record, or those of one prefix, by ordinary writes.
#[test]
fn some_records_are_restored_into_an_org_that_is_there() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 20);
    let umbra = store.create_org("umbra", OrgPolicy::byok()).unwrap();
    let key = new_key();
    let file = backup(&store, &key);
    let restored = |which, into: &byokv::Org, overwrite| {
        let file = io::Cursor::new(&file);
        store.restore(&key).records_from(file, "acme", which, into, overwrite)
    };
    acme.put("n00003", "new").unwrap();
    acme.delete("n00004").unwrap();
    let (one, some) = (RecordSelection::Name(b"n00004"), RecordSelection::Prefix(b"n0000"));
    assert_eq!(restored(one, &acme, false).unwrap().records, 1);
    assert_eq!(acme.get("n00004").unwrap().as_deref(), Some(&b"v4"[..]));
    acme.delete("n00004").unwrap();
    let refused = restored(some, &acme, false).unwrap_err();
    assert!(matches!(refused, Error::Backup(BackupError::RecordExists { .. })), "{refused}");
    assert!(acme.get("n00004").unwrap().is_none(), "nothing was written");
    assert_eq!(acme.get("n00003").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(restored(some, &acme, true).unwrap().records, 10);
    check_filled(&acme, 20);
    let backup = restored(some, &umbra, false).unwrap().backup.id;
    check_filled(&umbra, 10);
    let none = restored(RecordSelection::Name(b"none"), &umbra, false).unwrap_err();
    assert!(matches!(none, Error::Backup(BackupError::NoSuchRecord { .. })), "{none}");
    let event = AuditEvent::RecordsRestored { backup, records: 10 };
    assert_eq!(
        store.keys().audit().filter(|entry| entry.as_ref().unwrap().event == event).count(),
        2
    );
}

/// A record that changed while the backup was made has several entries.
#[test]
fn the_last_entry_of_a_record_counts() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 5);
    acme.put("z", vec![1; 200_000]).unwrap();
    let key = new_key();
    let mut file = Vec::new();
    struct Changes<'a>(&'a mut Vec<u8>, &'a byokv::Org);
    impl Write for Changes<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() > 60_000 {
                self.1.put("n00001", "newer").unwrap();
                self.1.delete("n00002").unwrap();
            }
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    store.backup(&key).write_to(Changes(&mut file, &acme)).unwrap();
    assert!(BackupContents::read(&key, &file[..]).unwrap().orgs[0].entries > 6);
    let into = store.create_org("into", OrgPolicy::byok()).unwrap();
    let which = RecordSelection::Prefix(b"n");
    let restore = store.restore(&key);
    let restored = restore.records_from(io::Cursor::new(&file), "acme", which, &into, false);
    assert_eq!(restored.unwrap().records, 4);
    assert_eq!(into.get("n00001").unwrap().as_deref(), Some(&b"newer"[..]));
    assert!(into.get("n00002").unwrap().is_none());
}
