//! The tool where something is unusual: an org that is erased, a directory of somebody else's, a key
//! that is held or withheld.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::time::Duration;

use byokv::{OrgPolicy, RetirePolicy, failpoint};
use common::shell::Shell;

#[test]
fn the_log_is_read_of_an_org_that_is_erased() {
    let shell = Shell::new();
    shell.fine("org create acme");
    shell.fine("org delete acme --yes");
    let entries = shell.json("audit --org acme");
    assert!(entries.len() >= 2, "{entries:?}");
    for line in ["audit --org none", "audit --org none --verify"] {
        assert_eq!(shell.refused(line, b"").0, 4);
    }
    shell.fine("audit --org acme --verify");
}

/// It was cut off before the records were gone: whoever asks again gets the certificate.
#[test]
fn an_erasure_that_was_cut_off_is_seen_and_ended() {
    let shell = Shell::new();
    {
        let mut stops = Vec::new();
        let store = shell.open();
        for org in ["acme", "umbra"] {
            common::filled(&store, org, 2000);
            stops.push(failpoint::on("erase.deleted", org, || panic!("no further")));
            drop(store.keys().erase_org(org).unwrap());
        }
    }
    let report = shell.fine("doctor");
    assert!(report.contains("`byokv org delete acme` waits for it"), "{report}");
    let certificate = &shell.json("org delete acme")[0];
    assert_eq!((&certificate["kind"], &certificate["org"]), (&"org_erased".into(), &"acme".into()));
    assert_eq!(certificate["records_deleted"], 2000);
    shell.fine("rotation wait");
    assert_eq!(shell.json("certificate list umbra").len(), 1);
    assert!(shell.open().keys().erasures().unwrap().is_empty());
    assert_eq!(shell.refused("org delete acme --yes", b"").0, 4);
}

/// Whatever commands print of certificates.
#[test]
fn certificates_are_found_inside_what_commands_print() {
    let shell = Shell::new();
    shell.fine("org create acme --byok");
    let mut printed = shell.fine("--json key rotate acme");
    printed += &shell.fine("--json key rotate acme --no-wait");
    shell.fine("rotation wait");
    printed += &shell.fine("--json key erase");
    let all = serde_json::Value::from(shell.json("certificate show acme v1")).to_string();
    for (given, count) in [(printed, 2), (all, 2)] {
        let verified = shell.run("--json certificate verify -", given.as_bytes());
        let text = String::from_utf8(verified.stdout).unwrap();
        assert!(verified.status.success(), "{given}\n{text}");
        assert!(text.lines().count() >= count, "{text}");
    }
}

#[test]
fn a_directory_of_somebody_elses_is_left_as_it_is() {
    let shell = Shell::empty();
    let other = shell.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "theirs").unwrap();
    let (_, error) = shell.refused("--data other init --new-root-key-file root.key", b"");
    assert!(error.contains("not of a store"), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "no lock either");
    fs::write(other.join("LOCK"), "").unwrap();
    let (code, error) = shell.refused("--data other org list", b"");
    assert!(code == 4 && error.contains("there is no store"), "{error}");
}

/// A secret does not depend on what is in our environment.
#[test]
fn a_dotenv_file_means_what_it_says() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let import = |text: &str| {
        let mut command = shell.command("import acme --format dotenv");
        common::shell::run(command.env("X", "a$b"), text.as_bytes()).status.success()
    };
    for refused in ["A=$X\n", "A=\"$X\"\n", "B='$5'\nA=$B\n", "A=\\\\$X\n", "A=\"'$X'\"\n"] {
        assert!(!import(refused), "{refused}");
    }
    assert!(import("A='$X'\nB=\\$X\nC=\"\\$X\"\nD=bar # costs $5\nE=plain\n"));
    for (name, value) in [("A", "$X"), ("B", "$X"), ("C", "$X"), ("D", "bar"), ("E", "plain")] {
        assert_eq!(shell.fine(&format!("get acme {name}")).trim_end(), value, "{name}");
    }
}

/// The tool has the store open for a moment only.
#[test]
fn a_key_that_is_due_is_rotated_by_the_next_command() {
    let shell = Shell::new();
    {
        let store = shell.open();
        let policy = OrgPolicy::platform_only().with_rotation_after_records(1);
        let org = store.create_org("acme", policy).unwrap();
        org.put("n", "v").unwrap();
    }
    shell.fine("rotation wait");
    let keys = shell.json("key list acme");
    assert!(keys.len() >= 2, "{keys:?}");
}

#[test]
fn what_is_held_or_paused_is_no_fault_and_says_what_ends_it() {
    let shell = Shell::new();
    {
        let store = shell.open();
        let policy = OrgPolicy::byok().with_retire(RetirePolicy::Manual);
        let org = store.create_org("acme corp", policy).unwrap();
        org.put("n", "v").unwrap();
        let key = common::material(&common::key_text());
        let rotation = store.keys().provision("acme corp", key).unwrap();
        let _ = rotation.wait_timeout(Duration::from_secs(30));
        common::filled(&store, "umbra", 10);
        store.keys().rotate_platform_key("umbra").unwrap().pause().unwrap();
    }
    let report = shell.fine("doctor");
    assert!(report.contains("byokv key retire 'acme corp'"), "{report}");
    assert!(!report.contains("FAULT"), "{report}");
    let watched = shell.command("--json rotation status").args(["acme corp", "--watch"]).output();
    assert!(watched.unwrap().status.success());
}

/// What a command began is begun, though it cannot wait for its end.
#[test]
fn a_change_that_waits_for_a_suspended_key_says_that_it_is_made() {
    let shell = Shell::new();
    {
        let store = shell.open();
        common::filled(&store, "acme", 10);
        let key = common::material(&common::key_text());
        store.keys().provision("acme", key).unwrap().wait().unwrap();
        store.keys().suspend("acme").unwrap();
    }
    let refused = shell.run("key suite acme xchacha", b"");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned()
        + &String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(said.contains("it was begun") && said.contains("v2 of org"), "{said}");
    assert_eq!(shell.json("org show acme")[0]["suite"], "XChaCha20-Poly1305");
}

/// A new key opens no store that is there.
#[test]
fn a_root_key_of_another_length_is_not_to_be_replaced() {
    let shell = Shell::new();
    let file = shell.path("root.key");
    fs::write(&file, "c2hvcnQ=").unwrap();
    let (_, error) = shell.refused("org list", b"");
    assert!(error.contains("never with a new one") && !error.contains("openssl"), "{error}");
}
