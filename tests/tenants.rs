//! What one org's commands, log, backups, errors and events show names no other org.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use byokv::{AuditEvent, KeyRefusal, OrgPolicy};
use common::shell::{Shell, run};
use common::{Ended, copy_dir, escape, filled, key_text, material};
use serde_json::Value;

/// Recognizable wherever it stands.
const OTHER: &str = "globex-7f3a";

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_key(shell: &Shell, name: &str, key: &str) {
    fs::write(shell.path(name), key).unwrap();
    fs::set_permissions(shell.path(name), fs::Permissions::from_mode(0o600)).unwrap();
}

/// Finding P8. Two tenants meet wherever they can: in backups, in keys and tokens that are offered to
/// the wrong one, in records that were moved. Then everything that the tool says to or of the first is
/// searched for the second.
#[test]
fn what_one_org_sees_names_no_other() {
    let shell = Shell::new();
    let id_of = |org: &str| shell.json(&format!("org show {org}"))[0]["id"].clone();
    for org in ["acme", OTHER] {
        shell.fine(&format!("org create {org} --byok"));
        for name in ["a", "b"] {
            shell.run(&format!("put {org} {name}"), b"value");
        }
    }
    let ids = ["acme", OTHER].map(|org| id_of(org).as_str().unwrap().to_owned());
    for key in ["own", "theirs", "suspended", "backup"] {
        write_key(&shell, key, &key_text());
    }
    let token = |org: &str| {
        let made = &shell.json(&format!("key import-token {org}"))[0];
        ["token", "token_id"].map(|field| made[field].as_str().unwrap().to_owned())
    };
    let (their_token, own_token) = (token(OTHER), token("acme"));
    let wrap = |key: &str, token: &str, to: &str| {
        let sealed = shell.fine(&format!("--quiet key wrap --file {key} --token {token}"));
        fs::write(shell.path(to), sealed).unwrap();
    };
    wrap("own", &their_token[0], "under-theirs");
    wrap("theirs", &own_token[0], "theirs-sealed");
    shell.fine(&format!("key provision {OTHER} --file theirs"));
    shell.fine("key provision acme --file suspended");
    let print = |key: &str| shell.fine(&format!("key fingerprint --file {key}")).trim().to_owned();

    // What is said of the first one. An error may repeat the fingerprint of the key that it refuses
    // to whoever has just brought that, so fingerprints are looked for in the second part alone.
    let meet = |line: &str| {
        let output = run(&mut shell.command(line), b"");
        let text = [output.stdout, output.stderr].concat();
        let text = format!("$ byokv {line}\n{}", String::from_utf8_lossy(&text));
        (output.status.success(), text)
    };
    let (mut offered, mut said) = (Vec::new(), Vec::new());
    let expect = format!("key provision acme --file own --expect-fingerprint {}", print("theirs"));
    for (line, fine) in [
        ("key provision acme --file theirs", false),
        ("key provision acme --sealed --file under-theirs", false),
        ("key provision acme --sealed --file theirs-sealed", false),
        (&expect, false),
        ("key suspend acme --yes", true),
        ("key resume acme --file theirs", false),
        ("get acme a", false),
        ("key resume acme --file suspended", true),
        ("backup acme --key-file backup --out own.backup", true),
    ] {
        let (was_fine, text) = meet(line);
        assert_eq!(was_fine, fine, "{text}");
        offered.push(text);
    }
    let of_all = meet("--json backup --key-file backup --out whole.backup").1;
    assert!(of_all.contains(OTHER), "the backup of all orgs is the operator's: {of_all}");

    // A record of the other one, at the place of one of the first, in a copy.
    copy_dir(&shell.path("data"), &shell.path("moved"));
    fs::set_permissions(shell.path("moved"), fs::Permissions::from_mode(0o700)).unwrap();
    {
        let db = sled::open(shell.path("moved/db")).unwrap();
        let records = db.open_tree("records").unwrap();
        let key_of = |id: &str, name: &[u8]| {
            escape(&[&base16ct::lower::decode_vec(id).unwrap(), name].concat())
        };
        let theirs = records.get(key_of(&ids[1], b"a")).unwrap().unwrap();
        records.insert(key_of(&ids[0], b"b"), theirs).unwrap();
        db.flush().unwrap();
    }
    fs::write(shell.path("moved/db/durable"), [0; 16]).unwrap();
    shell.fine(&format!("key suspend {OTHER} --yes"));
    // Without the other one, which is suspended.
    let left = shell.run("backup --key-file backup --out second.backup", b"");
    assert!(String::from_utf8_lossy(&left.stderr).contains(OTHER), "the operator is told");
    shell.fine("--data elsewhere init");
    shell.fine("key erase");
    for (line, fine) in [
        ("--data moved get acme b", false),
        ("--data moved verify acme", false),
        ("--data moved verify acme --deep", false),
        ("--data moved export acme --format jsonl", false),
        ("--data moved list acme", true),
        ("--data moved backup acme --key-file backup --out third.backup", false),
        ("--data moved key return acme", false),
        ("--data moved rotation wait acme", false),
        ("--data moved rotation status acme", true),
        ("--data moved audit --org acme", true),
        ("export acme --format jsonl", true),
        ("verify acme --deep", true),
        ("key return acme", true),
        ("rotation wait acme", true),
        ("rotation status acme", true),
        ("key rotate acme", true),
        ("key list acme", true),
        ("org show acme", true),
        ("org policy acme --retire 7d", true),
        ("audit --org acme", true),
        ("--json audit --org acme", true),
        ("certificate list acme", true),
        ("--json certificate list acme", true),
        ("certificate show acme v1", true),
        ("backup show --key-file backup own.backup", true),
        ("--json backup show --key-file backup own.backup", true),
        ("--data elsewhere restore --key-file backup --org acme second.backup", true),
        ("--data elsewhere audit --org acme", true),
        ("--json --data elsewhere audit --org acme", true),
        ("org delete acme --yes", true),
        ("audit --org acme", true),
        ("--json audit --org acme", true),
        ("--json certificate list acme", true),
    ] {
        let (was_fine, text) = meet(line);
        assert_eq!(was_fine, fine, "{text}");
        said.push(text);
    }

    let their_prints: Vec<String> = shell
        .json(&format!("key list {OTHER}"))
        .iter()
        .map(|key| key["fingerprint"].as_str().unwrap().to_owned())
        .collect();
    assert!(their_prints.contains(&print("theirs")));
    for text in offered.iter().chain(&said) {
        for name in [OTHER, "globex", &ids[1], &their_token[0], &their_token[1]] {
            assert!(!text.contains(name), "{name} stands in\n{text}");
        }
    }
    for text in &said {
        for print in &their_prints {
            assert!(!text.contains(print), "{print} stands in\n{text}");
        }
    }

    // What the org may see of what it met is there all the same.
    let seen = shell.json("audit --org acme");
    let of = |kind| -> Vec<&Value> {
        seen.iter().filter(|entry| entry["event"]["kind"] == kind).collect()
    };
    let why: Vec<_> =
        of("key_refused").iter().map(|e| e["event"]["why"]["kind"].as_str().unwrap()).collect();
    assert_eq!(why, ["reused", "other_org", "not_the_announced", "not_the_suspended"]);
    let made: Vec<_> = of("backup_made").into_iter().map(|entry| &entry["event"]["orgs"]).collect();
    assert_eq!(made.len(), 3, "{made:?}");
    assert!(made.iter().all(|orgs| orgs.as_array().unwrap().len() == 1 && orgs[0]["id"] == ids[0]));
    assert!(seen.iter().all(|entry| entry.get("previous").is_none()));
    let all = shell.json("audit");
    assert!(seen.len() < all.len() && all.iter().all(|entry| entry["previous"].is_string()));
}

/// A name is free once its org is erased, and whoever has it next is another tenant.
#[test]
fn a_name_that_was_anothers_before_shows_nothing_of_that() {
    let shell = Shell::new();
    shell.fine("org create acme");
    shell.fine("key rotate acme");
    let before = shell.json("org show acme")[0]["id"].as_str().unwrap().to_owned();
    shell.fine("org delete acme --yes");
    let of_erased = shell.json("audit --org acme");
    assert!(of_erased.iter().any(|entry| entry["event"]["kind"] == "org_erased"));
    shell.fine("org create acme");
    for line in ["audit --org acme", "certificate list acme"] {
        let lines = shell.json(line);
        let text = Value::from(lines.clone()).to_string();
        assert!(!text.contains(&before), "{line}: {text}");
        assert_eq!(lines.len(), usize::from(line.starts_with("audit")), "only its creation");
    }
    let output = shell.run("audit --org acme", b"");
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains(&format!("--org-id {before}")), "{note}");
    assert_eq!(shell.json(&format!("audit --org-id {before}")), of_erased);
    assert_eq!(shell.json(&format!("certificate list --org-id {before}")).len(), 2);
    assert_eq!(shell.refused("audit --org nobody", b"").0, 4);
}

/// In the process of an agent: errors, events of `tracing` about the first one, its part of the log.
#[test]
fn events_and_errors_of_one_org_name_no_other() {
    let said = Captured::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let shell = Shell::new();
    let store = shell.open();
    let keys = store.keys();
    let (acme, other) = (filled(&store, "acme", 20), filled(&store, OTHER, 20));
    let key = key_text();
    let token = keys.import_token(OTHER, Duration::from_secs(60)).unwrap();
    let own_token = keys.import_token("acme", Duration::from_secs(60)).unwrap();
    let under_theirs = token.seal(&material(&key_text())).unwrap();
    let theirs = own_token.seal(&material(&key)).unwrap();
    keys.provision(OTHER, material(&key)).unwrap().ended();
    let announced = material(&key).fingerprint();
    let mut refused = vec![
        keys.provision("acme", material(&key)).unwrap_err(),
        keys.provision_sealed("acme", &under_theirs, None).unwrap_err(),
        keys.provision_sealed("acme", &theirs, None).unwrap_err(),
        keys.provision_expecting("acme", material(&key_text()), announced).unwrap_err(),
        keys.set_policy("acme", OrgPolicy::byok().with_names(byokv::NamePolicy::Blinded))
            .unwrap_err(),
        store.create_org(acme.name(), OrgPolicy::byok()).unwrap_err(),
    ];
    let backup_key = common::new_key();
    let whole = common::backup(&store, &backup_key);
    keys.rotate_platform_key("acme").unwrap().ended();
    keys.erase_org("acme").unwrap().wait().unwrap();
    refused.push(acme.get("n00001").unwrap_err());
    common::restore(&store, &backup_key, &whole).unwrap_err();

    let forbidden = [OTHER.to_owned(), other.id().to_string(), token.id().to_string()];
    let check = |text: &str| {
        for name in &forbidden {
            assert!(!text.contains(name), "{name} stands in {text}");
        }
    };
    refused.iter().for_each(|error| check(&format!("{error} {error:?}")));
    let mut why = Vec::new();
    for entry in keys.audit_of(acme.id()) {
        let entry = entry.unwrap();
        check(&format!("{entry} {entry:?} {}", serde_json::to_string(&entry).unwrap()));
        assert_ne!(entry.fingerprint, Some(announced), "{entry}");
        match entry.event {
            AuditEvent::KeyRefused { why: refused } => why.push(refused),
            AuditEvent::SealedKeyRefused { why: refused, .. } => why.push(refused),
            _ => {}
        }
    }
    use KeyRefusal::{NotTheAnnounced, OtherOrg, Reused};
    assert_eq!(why, [Reused, OtherOrg, Reused, NotTheAnnounced { announced: None }]);
    // Both of the operator's views have them.
    assert_eq!(
        keys.audit().filter(|e| e.as_ref().unwrap().fingerprint == Some(announced)).count(),
        3
    );
    let events = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    let of_acme: Vec<_> = events.lines().filter(|line| line.contains("acme")).collect();
    assert!(of_acme.len() > 7, "{events}");
    of_acme.into_iter().for_each(check);
}
