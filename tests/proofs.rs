//! Certificates are compared with what is so: in the audit log, in the keyring, among the records.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use byokv::{
    Certificate, CertificateCheck, CertificateKind, CertificateMismatch as Mismatch, FoundInstead,
    KeyState, OrgPolicy, Store, Suite, SupersededBy,
};
use common::shell::Shell;
use common::{Ended, Place, copy_dir, escape, filled, tamper};
use serde_json::Value;

fn check(store: &Store, certificate: &Certificate) -> CertificateCheck {
    store.keys().verify_certificate(certificate).unwrap()
}

fn superseded_by(check: &CertificateCheck) -> Vec<SupersededBy> {
    check.superseded_by.iter().map(|since| since.by).collect()
}

/// Where the database keeps it, see `docs/design.md`.
fn key_of(certificate: &Certificate) -> Vec<u8> {
    let kind = match certificate.kind {
        CertificateKind::KeyRetired => vec![0],
        CertificateKind::SuiteRetired { suite } => {
            [&[1, suite.byte()], &certificate.at_unix_ms.to_be_bytes()[..]].concat()
        }
        CertificateKind::OrgErased => vec![2],
        CertificateKind::KeyErased => vec![3],
        other => panic!("{other}"),
    };
    let (org, version) = (certificate.org_id, certificate.version.get().to_be_bytes());
    escape(&[b"certificate/", &org.as_bytes()[..], &version, &kind].concat())
}

/// One per line, as `certificate verify --json` prints them, whatever its exit code.
fn verified(shell: &Shell, line: &str, stdin: &str) -> (i32, Vec<Value>) {
    let output = shell.run(&format!("--json {line}"), stdin.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code().unwrap(), lines.collect())
}

/// Finding P1: a copy has the store's secret, so what it certifies is authentic; the original still
/// has the key and the records.
#[test]
fn what_a_copy_certifies_is_not_true_of_the_original() {
    let shell = Shell::new();
    shell.fine("org create acme");
    shell.run("put acme n", b"v");
    copy_dir(&shell.path("data"), &shell.path("clone"));
    let certificate = shell.fine("--json --data clone key rotate acme");

    let (code, checks) = verified(&shell, "--data clone certificate verify -", &certificate);
    assert_eq!((code, &checks[0]["true_now"]), (0, &Value::Bool(true)));
    let (code, checks) = verified(&shell, "certificate verify -", &certificate);
    assert_eq!(code, 1, "{checks:?}");
    assert_eq!((&checks[0]["authentic"], &checks[0]["true_now"]), (&true.into(), &false.into()));
    let kinds: Vec<_> = checks[0]["mismatches"].as_array().unwrap().iter().collect();
    for kind in ["not_in_audit_log", "not_kept", "key_not_retired"] {
        assert!(kinds.iter().any(|mismatch| mismatch["kind"] == kind), "{kind}: {kinds:?}");
    }
    let output = shell.run("certificate verify -", certificate.as_bytes());
    let text = String::from_utf8(output.stdout).unwrap();
    for said in [
        "authentic, NOT TRUE of this store: org acme, platform key v1 retired",
        "the key is active here, not retired",
        "a copy of this store made it",
    ] {
        assert!(text.contains(said), "{text}");
    }
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("1 of 1 certificates are not true of this store"), "{error}");
    assert_eq!(shell.json("key list acme")[0]["state"], "active");
}

/// Both retired the same key, so the keyring alone cannot tell whose certificate it is.
#[test]
fn two_copies_that_retired_the_same_key_each_believe_their_own() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    store.close().unwrap();
    let twin = Place { dir: tempfile::tempdir().unwrap(), root: place.root.clone() };
    copy_dir(&place.data(), &twin.data());
    let stores = [place.open(), twin.open()];
    let own = stores.each_ref().map(|store| store.keys().rotate_platform_key("acme").unwrap());
    let own = own.map(|rotation| rotation.ended());
    assert_eq!(own[0].fingerprint, own[1].fingerprint);
    for (here, there) in [(0, 1), (1, 0)] {
        assert!(check(&stores[here], &own[here]).is_true());
        let check = check(&stores[here], &own[there]);
        assert!(check.is_authentic() && !check.is_true() && !check.is_sound(), "{check}");
        let sha256 = own[here].sha256();
        let expected = [Mismatch::NotInAuditLog, Mismatch::AnotherKept { sha256 }];
        assert_eq!(check.mismatches, expected, "the keyring agrees with either");
    }
    // What the last change of the keyring owes is written again at each open.
    let [one, two] = stores;
    one.create_org("later", OrgPolicy::byok()).unwrap();
    one.close().unwrap();
    two.close().unwrap();

    // It opens at its place in the other database, too.
    let key = key_of(&own[0]);
    let mut theirs = None;
    tamper(&twin, "system", |system| theirs = system.get(&key).unwrap());
    tamper(&place, "system", |system| drop(system.insert(&key, theirs.unwrap()).unwrap()));
    let store = place.open();
    let report = store.keys().verify_certificates().unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.lost.len(), 1);
    assert_eq!(
        (report.lost[0].found, report.lost[0].sha256),
        (FoundInstead::Another, own[0].sha256())
    );
    assert_eq!(report.checks[0].mismatches, [Mismatch::NotInAuditLog]);
    let sha256 = own[1].sha256();
    assert_eq!(check(&store, &own[0]).mismatches, [Mismatch::AnotherKept { sha256 }]);
}

#[test]
fn what_was_noted_later_supersedes_a_certificate() {
    let shell = Shell::new();
    let (retired, suite) = {
        let store = shell.open();
        filled(&store, "acme", 20);
        let retired = store.keys().rotate_platform_key("acme").unwrap().ended();
        assert!(!check(&store, &retired).is_superseded());
        let suite = store.keys().change_suite("acme", Suite::XChaCha20Poly1305).unwrap().ended();
        assert!(check(&store, &suite).is_true());
        (retired, suite)
    };
    let store = shell.open();
    store.erase_residue().unwrap();
    let checked = check(&store, &retired);
    assert!(checked.is_true(), "{checked}");
    assert_eq!(superseded_by(&checked), [SupersededBy::KeyErased]);
    assert!(checked.to_string().starts_with("true, superseded: org acme"), "{checked}");
    let report = store.keys().verify_certificates().unwrap();
    assert!(report.is_sound() && report.checks.iter().all(CertificateCheck::is_true), "{report:?}");

    // Back to the first suite: what said that it is gone was true, and is so no more.
    store.keys().change_suite("acme", Suite::Xaes256Gcm).unwrap().ended();
    let checked = check(&store, &suite);
    assert!(checked.is_sound() && !checked.is_true(), "{checked}");
    assert_eq!(superseded_by(&checked), [SupersededBy::SuiteTakenAgain]);
    assert!(store.keys().verify_certificates().unwrap().is_sound());
    store.close().unwrap();
    shell.fine("certificate verify");
    let report = shell.fine("doctor");
    assert!(report.contains("4, 1 no longer true, 2 superseded"), "{report}");
    let (code, checks) = verified(&shell, "certificate verify -", &suite.to_json());
    assert_eq!((code, &checks[0]["authentic"]), (1, &true.into()), "it is not so now");
    assert_eq!(checks[0]["superseded_by"][0]["by"], "suite_taken_again");

    shell.fine("org delete acme --yes");
    let (code, checks) = verified(&shell, "certificate verify -", &retired.to_json());
    assert_eq!((code, &checks[0]["true_now"]), (0, &true.into()));
    let by = checks[0]["superseded_by"].as_array().unwrap();
    let by: Vec<_> = by.iter().map(|since| since["by"].as_str().unwrap()).collect();
    assert_eq!(by, ["key_erased", "org_erased"]);
    shell.fine("certificate verify");
}

/// Finding P14: nobody missed a certificate that somebody deleted from the database.
#[test]
fn a_certificate_that_was_deleted_is_missed_by_everybody_who_looks() {
    let shell = Shell::new();
    let certificates: Vec<_> = {
        let store = shell.open();
        filled(&store, "acme", 20);
        store.keys().rotate_platform_key("acme").unwrap().ended();
        store.keys().change_suite("acme", Suite::XChaCha20Poly1305).unwrap().ended();
        store.erase_residue().unwrap();
        filled(&store, "umbra", 5);
        store.keys().erase_org("umbra").unwrap().wait().unwrap();
        store.create_org("later", OrgPolicy::byok()).unwrap();
        store.keys().certificates().map(Result::unwrap).collect()
    };
    assert_eq!(certificates.len(), 4);
    copy_dir(&shell.path("data"), &shell.path("whole"));
    for certificate in &certificates {
        for change in [|_: &[u8]| None, |stored: &[u8]| Some([&stored[1..], &[0]].concat())] {
            copy_dir(&shell.path("whole"), &shell.path("data"));
            fs::set_permissions(shell.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
            {
                let db = sled::open(shell.path("data/db.1")).unwrap();
                let tree = db.open_tree("system").unwrap();
                let key = key_of(certificate);
                let stored = tree.remove(&key).unwrap().unwrap();
                if let Some(damaged) = change(&stored) {
                    tree.insert(key, damaged).unwrap();
                }
                db.flush().unwrap();
            }
            fs::write(shell.path("data/db.1/durable"), [0; 16]).unwrap();
            let what = if change(&[0]).is_some() { "damaged" } else { "missing" };
            let lost = format!(
                "the certificate \"{}\" of org {}, {}, is {what}",
                certificate.kind, certificate.org, certificate.version
            );
            for line in ["doctor", "audit --verify", "certificate verify"] {
                let output = shell.run(line, b"");
                let text = String::from_utf8(output.stdout).unwrap();
                assert_eq!(output.status.code(), Some(1), "{line}: {text}");
                assert!(text.contains(&lost), "{line}: {text}, not {lost}");
            }
            let (_, lines) = verified(&shell, "audit --verify", "");
            assert_eq!(lines[0]["lost"]["org"]["name"], *certificate.org);
            assert_eq!(lines[0]["lost"]["version"], certificate.version.get());
            assert_eq!(lines[0]["lost"]["found"], if what == "missing" { "nothing" } else { what });
            // Whoever has its text still has it, and is told.
            let (code, checks) = verified(&shell, "certificate verify -", &certificate.to_json());
            assert_eq!((code, &checks[0]["authentic"]), (1, &true.into()));
            assert_eq!(checks[0]["mismatches"], serde_json::json!([{"kind": "not_kept"}]));
        }
    }
}

/// The claims of erasure are about records, so these are counted.
#[test]
fn a_record_that_came_back_makes_an_erasure_untrue() {
    let place = Place::new();
    let store = place.open();
    let ids = ["acme", "umbra"].map(|org| filled(&store, org, 20).id());
    store.close().unwrap();
    let keys = ids.map(|id| escape(&[&id.as_bytes()[..], b"n00007"].concat()));
    let mut old = Vec::new();
    tamper(&place, "records", |records| {
        old.extend(keys.iter().map(|key| (key.clone(), records.get(key).unwrap().unwrap())));
    });
    let store = place.open();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    store.erase_residue().unwrap();
    store.keys().erase_org("umbra").unwrap().wait().unwrap();
    assert!(store.keys().verify_certificates().unwrap().is_sound());
    store.close().unwrap();

    let put_back = |place: &Place| {
        let db = sled::open(place.data().join("db.1")).unwrap();
        let records = db.open_tree("records").unwrap();
        for (key, value) in &old {
            records.insert(key, value).unwrap();
        }
        db.flush().unwrap();
        fs::write(place.data().join("db.1/durable"), [0; 16]).unwrap();
    };
    put_back(&place);
    let store = place.open();
    let report = store.keys().verify_certificates().unwrap();
    assert_eq!(report.checks.len(), 3);
    for check in &report.checks {
        let found = check.mismatches == [Mismatch::RecordsFound { records: 1 }];
        let claims_it = check.certificate.kind != CertificateKind::KeyRetired;
        assert_eq!((found, check.is_true()), (claims_it, !claims_it), "{check}");
    }
}

/// Finding O12: only the newest was printed, and an erased org's key was "replaced by" itself.
#[test]
fn every_certificate_of_a_rotation_is_printed() {
    let shell = Shell::new();
    shell.fine("org create acme");
    shell.fine("org policy acme --retire manual");
    shell.fine("key rotate acme --no-wait");
    shell.fine("key rotate acme");
    let printed = shell.json("key retire acme");
    let versions = |all: &[Value]| -> Vec<_> {
        all.iter().map(|certificate| certificate["version"].as_u64().unwrap()).collect()
    };
    assert_eq!(versions(printed[0]["certificates"].as_array().unwrap()), [1, 2]);
    assert_eq!(printed[0]["certificate"]["version"], 2);
    shell.fine("org policy acme --retire immediate");
    {
        let store = shell.open();
        let keys = store.keys();
        keys.rotate_platform_key("acme").unwrap().pause().unwrap();
        keys.rotate_platform_key("acme").unwrap();
        assert_eq!(keys.status("acme").unwrap().versions[2].state, KeyState::DecryptOnly);
    }
    shell.fine("rotation resume acme");
    // It may have ended while that had the store open; else `wait` prints both.
    let waited = versions(&shell.json("rotation wait acme"));
    assert!(waited.is_empty() || waited == [3, 4], "{waited:?}");

    shell.fine("org delete acme --yes");
    let erased = shell.json("key erase");
    let erased = erased[0]["certificates"].as_array().unwrap();
    assert_eq!(erased.last().unwrap()["version"], 5);
    assert!(erased.iter().all(|certificate| certificate["successor"].is_null()), "{erased:?}");
    let text = shell.fine("certificate show acme 5");
    assert!(text.contains("erasure") && !text.contains("replaced by"), "{text}");
}
