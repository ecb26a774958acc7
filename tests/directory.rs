//! A store's directory: who may use it, and which store lies in it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use byokv::{Error, Options, OrgPolicy, Store, StorePosition};
use common::{Place, contents, copy_dir};

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Everything in it with its mode, but for what is private.
fn not_private(dir: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    entries
        .filter(|entry| {
            let wanted = if entry.file_type().is_dir() { 0o700 } else { 0o600 };
            mode(entry.path()) != wanted
        })
        .map(|entry| format!("{} {:o}", entry.path().display(), mode(entry.path())))
        .collect()
}

/// With large pages, which sled puts into files of their own.
fn fill(store: &Store) {
    let acme = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for i in 0..5u8 {
        acme.put(format!("large{i}"), vec![i; 300_000]).unwrap();
    }
    acme.durable().put("small", "value").unwrap();
}

/// P12: `mkdir -m 777 data` stayed so, with `db/` 755 and files 644 in it.
#[test]
fn an_empty_directory_becomes_private_or_is_refused() {
    let place = Place::new();
    for before in [0o777, 0o755, 0o2775, 0o700] {
        fs::create_dir(place.data()).unwrap();
        set(&place.data(), before);
        let store = place.open();
        fill(&store);
        store.erase_residue().unwrap();
        store.close().unwrap();
        assert_eq!(not_private(&place.data()), [""; 0], "{before:o}");
        fs::remove_dir_all(place.data()).unwrap();
    }
    fs::create_dir(place.data()).unwrap();
    set(&place.data(), 0o1777);
    let refused = |said: &str| match place.try_open() {
        Err(error @ Error::NotPrivate { .. }) => {
            let text = error.to_string();
            assert!(text.contains(said) && text.contains("directory inside it"), "{text}");
        }
        other => panic!("{other:?}"),
    };
    refused("sticky");
    assert_eq!((mode(&place.data()), contents(&place.data()).len()), (0o1777, 0));
    // Only root can give a directory away.
    if fs::metadata(place.data()).unwrap().uid() == 0 {
        set(&place.data(), 0o777);
        std::os::unix::fs::chown(place.data(), Some(12345), None).unwrap();
        refused("belongs to another user");
        assert_eq!((mode(&place.data()), contents(&place.data()).len()), (0o777, 0));
        // As it is to be, whoever's it is.
        set(&place.data(), 0o700);
        place.open();
    }
}

#[test]
fn a_store_that_others_may_read_becomes_private() {
    let place = Place::new();
    let store = place.open();
    fill(&store);
    store.close().unwrap();
    for entry in walkdir::WalkDir::new(place.data()) {
        let entry = entry.unwrap();
        set(entry.path(), if entry.file_type().is_dir() { 0o755 } else { 0o644 });
    }
    // Whoever has another root key changes nothing, no mode either.
    let other = Place::new();
    let refused = Options::new().open(place.data(), other.root_key());
    assert!(matches!(refused, Err(Error::RootKeyWrong { .. })));
    assert_eq!(mode(&place.data()), 0o755);
    place.open().close().unwrap();
    assert_eq!(not_private(&place.data()), [""; 0]);
}

#[test]
fn a_store_that_others_may_write_is_refused_and_left_alone() {
    let place = Place::new();
    let store = place.open();
    fill(&store);
    store.close().unwrap();
    let blob = fs::read_dir(place.data().join("db/blobs")).unwrap().next().unwrap().unwrap().path();
    let before = contents(&place.data());
    let refused = |named: &Path| match place.try_open() {
        Err(error @ Error::NotPrivate { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&named.display().to_string()), "{text}");
            assert!(text.contains("chmod -R go-rwx"), "{text}");
            assert!(contents(&place.data()) == before, "left as it was");
        }
        other => panic!("{other:?}"),
    };
    for wrong in [0o777, 0o770, 0o722, 0o1777] {
        set(&place.data(), wrong);
        refused(&place.data());
        assert_eq!(mode(&place.data()), wrong);
    }
    for inner in [place.data().join("keyring"), place.data().join("db/db"), blob] {
        let (folder, was) = (inner.parent().unwrap().to_owned(), mode(&inner));
        set(&place.data(), 0o711);
        set(&place.data().join("db"), 0o711);
        set(&folder, 0o711);
        set(&inner, 0o666);
        refused(&inner);
        set(&inner, was);
        set(&folder, 0o700);
    }
    set(&place.data(), 0o700);
    place.open();
}

/// P14: two stores under one root key whose directories were exchanged opened silently.
#[test]
fn exchanged_directories_are_noticed_by_who_knows_the_store() {
    let place = Place::new();
    let other = place.dir.path().join("other");
    let open = |options: Options, dir: &Path| options.open(dir, place.root_key());
    let ids = [place.data(), other.clone()].map(|dir| open(Options::new(), &dir).unwrap().id());
    open(Options::new().expect_store(ids[0]), &place.data()).unwrap();
    fs::rename(place.data(), place.dir.path().join("third")).unwrap();
    fs::rename(&other, place.data()).unwrap();
    let before = contents(&place.data());
    match open(Options::new().expect_store(ids[0]), &place.data()) {
        Err(error @ Error::OtherStore { expected, found, .. }) => {
            assert_eq!((expected, found), (ids[0], ids[1]));
            assert!(error.to_string().contains("exchanged"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let minimum = StorePosition { store: ids[0], keyring_generation: 0, syncs: 0 };
    let refused = open(Options::new().minimum_position(minimum), &place.data());
    assert!(matches!(refused, Err(Error::OtherStore { .. })));
    assert!(contents(&place.data()) == before, "left as it was");
    open(Options::new().expect_store(ids[1]), &place.data()).unwrap();
    // Where there is no store, none is made.
    for options in [Options::new().expect_store(ids[0]), Options::new().minimum_position(minimum)] {
        let refused = open(options, &place.dir.path().join("none"));
        assert!(matches!(refused, Err(Error::FileDamaged { .. })));
    }
    assert!(!place.dir.path().join("none").exists());
}

/// P14: an older copy of the whole directory cannot be noticed by the store itself.
#[test]
fn an_older_copy_of_everything_is_noticed_by_a_position() {
    let place = Place::new();
    let store = place.open();
    fill(&store);
    store.close().unwrap();
    let (first, second) = (place.dir.path().join("first"), place.dir.path().join("second"));
    copy_dir(&place.data(), &first);
    let store = place.open();
    store.org("acme").unwrap().durable().put("small", "newer").unwrap();
    let written = store.position();
    store.create_org("umbra", OrgPolicy::byok()).unwrap();
    let created = store.position();
    assert!(created.syncs > written.syncs);
    assert_eq!(created.keyring_generation, written.keyring_generation + 1);
    assert_eq!(created.to_string().parse(), Ok(created));
    drop(store);
    let at = |minimum, dir: &Path| {
        let accepts = Options::new().danger_accept_rollback(true);
        let accepting = accepts.minimum_position(minimum).open(dir, place.root_key()).is_ok();
        let opened = Options::new().minimum_position(minimum).open(dir, place.root_key());
        assert_eq!(accepting, opened.is_ok(), "the position counts also then");
        opened
    };
    let before = contents(&first);
    for minimum in [written, created] {
        match at(minimum, &first) {
            Err(error @ Error::BeforeMinimum { .. }) => assert!(error.is_rollback()),
            other => panic!("{other:?}"),
        }
        // By each of its numbers alone.
        let by_syncs = StorePosition { keyring_generation: 0, ..minimum };
        assert!(matches!(at(by_syncs, &first), Err(Error::BeforeMinimum { .. })));
    }
    let keyring = StorePosition { syncs: 0, ..created };
    assert!(matches!(at(keyring, &first), Err(Error::BeforeMinimum { .. })));
    assert!(contents(&first) == before, "left as it was");
    for minimum in [written, created] {
        at(minimum, &place.data()).unwrap();
    }
    copy_dir(&place.data(), &second);
    at(created, &second).unwrap();
}

/// A position is what a kill at any moment leaves, at least.
#[test]
fn a_position_holds_after_a_kill() {
    let place = Place::new();
    let store = place.open();
    fill(&store);
    let acme = store.org("acme").unwrap();
    let copy = place.dir.path().join("copy");
    for i in 0..5 {
        if i % 2 == 0 {
            acme.clone().durable().put("n", "v").unwrap();
        } else {
            store.create_org(&format!("org{i}"), OrgPolicy::byok()).unwrap();
        }
        let position = store.position();
        acme.put("buffered", "v").unwrap();
        copy_dir(&place.data(), &copy);
        let opened = Options::new().minimum_position(position).open(&copy, place.root_key());
        drop(opened.unwrap());
    }
}

#[cfg(feature = "cli")]
mod tool {
    use std::process::Command;

    use super::*;
    use crate::common::shell::{BYOKV, Shell, run};

    /// P12: sled makes its files with the umask of the process, which is not ours to change.
    #[test]
    fn files_are_private_under_any_umask() {
        let shell = Shell::empty();
        let value = vec![7; 300_000];
        for umask in ["000", "022", "077"] {
            let run = |line: &str, stdin: &[u8]| {
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!("umask {umask}; exec {BYOKV} {line}"));
                command.env("BYOKV_DATA", "data").env("BYOKV_ROOT_KEY_FILE", "root.key");
                let output = run(command.current_dir(shell.dir.path()), stdin);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            };
            run("init --new-root-key-file root.key", b"");
            run("org create acme", b"");
            run("put acme large", &value);
            run("key rotate acme", b"");
            run("key erase", b"");
            assert_eq!(not_private(&shell.path("data")), [""; 0], "umask {umask}");
            fs::remove_dir_all(shell.path("data")).unwrap();
            fs::remove_file(shell.path("root.key")).unwrap();
        }
    }

    #[test]
    fn the_doctor_finds_every_mode_and_what_lies_above() {
        let shell = Shell::new();
        shell.fine("org create acme");
        assert!(shell.run("put acme large", &[7; 300_000]).status.success());
        let report = |level: &str| {
            let output = shell.run("doctor", b"");
            let report = String::from_utf8(output.stdout).unwrap();
            let lines = report.lines().filter(|line| line.starts_with(level));
            let lines: String = lines.filter(|line| line.contains("  modes ")).collect();
            (output.status.code().unwrap(), lines)
        };
        assert_eq!(report("FAULT"), (0, String::new()));
        assert!(report("fine").1.contains("the owner alone"));
        // Out of others' reach, so it is no fault; opening, which the doctor does then, mends it.
        let blob = fs::read_dir(shell.path("data/db/blobs")).unwrap().next().unwrap().unwrap();
        for path in [blob.path(), shell.path("data/db/conf"), shell.path("data/keyring")] {
            set(&path, 0o644);
            let (code, notice) = report("notice");
            assert!(notice.contains("mode 644") && notice.contains("data/"), "{notice}");
            assert_eq!((code, mode(&path)), (0, 0o600));
        }
        set(&shell.path("data/keyring"), 0o644);
        set(&shell.path("data"), 0o755);
        let (code, faults) = report("FAULT");
        assert_eq!(code, 1);
        assert!(
            faults.contains("the directory, mode 755") && faults.contains("keyring"),
            "{faults}"
        );
        assert_eq!(report("FAULT"), (0, String::new()), "opened, so it is private");
        set(&shell.path("data"), 0o777);
        assert!(report("FAULT").1.contains("mode 777"));
        let (code, error) = shell.refused("org list", b"");
        assert_eq!(code, 1);
        assert!(error.contains("chmod -R go-rwx"), "{error}");
        set(&shell.path("data"), 0o700);
        set(shell.dir.path(), 0o777);
        let (code, notice) = report("notice");
        assert!(code == 0 && notice.contains("everybody may write"), "{notice}");
        set(shell.dir.path(), 0o1777);
        assert_eq!(report("notice"), (0, String::new()));
    }

    #[test]
    fn the_tool_opens_the_store_that_is_meant() {
        let shell = Shell::new();
        let status = &shell.json("status")[0];
        let [id, position] = ["store", "position"].map(|field| status[field].as_str().unwrap());
        assert!(shell.fine("status").contains(&format!("position  {id}:1:")));
        shell.fine(&format!("--expect-store {id} --minimum-position {position} org create acme"));
        let with = |variable: &str, value: &str| {
            let mut command = shell.command("org list --json");
            let output = run(command.env(variable, value), b"");
            let error = serde_json::from_slice::<serde_json::Value>(&output.stderr);
            let kind = error.map(|error| error["error"]["kind"].as_str().unwrap().to_owned());
            (output.status.code().unwrap(), kind.unwrap_or_default())
        };
        assert_eq!(with("BYOKV_STORE_ID", id), (0, String::new()));
        let other = "00".repeat(16);
        assert_eq!(with("BYOKV_STORE_ID", &other), (4, "other_store".to_owned()));
        assert_eq!(with("BYOKV_STORE_ID", "acme").0, 2);
        let later = format!("{id}:999:1");
        assert_eq!(with("BYOKV_MINIMUM_POSITION", &later), (6, "before_minimum".to_owned()));
        let (code, error) = shell.refused(&format!("--expect-store {id} --data new init"), b"");
        assert!(code == 2 && error.contains("of its own"), "{error}");
        assert!(!shell.path("new").exists());
    }
}
