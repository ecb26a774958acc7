//! The tool where something is unusual: an org that is erased, a directory of somebody else's, a key
//! that is held or withheld, names of records that nobody could type.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::time::Duration;

use byokv::{OrgPolicy, RetirePolicy, failpoint};
use common::shell::{Shell, run};

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
    // The erasure goes on as soon as the store is open, and may be over before the tool asks for it.
    let deleted = shell.run("--json org delete acme", b"");
    assert!(deleted.status.success() || deleted.status.code() == Some(4), "{deleted:?}");
    let certificate = &shell.json("certificate list acme")[0];
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
        run(command.env("X", "a$b"), text.as_bytes()).status.success()
    };
    for refused in [
        "A=$X\n",
        "A=\"$X\"\n",
        "B='$5'\nA=$B\n",
        "A=\\\\$X\n",
        "A=\"'$X'\"\n",
        "B=\\$X\n",
        "C=\"\\$X\"\n",
    ] {
        assert!(!import(refused), "{refused}");
    }
    assert!(import("A='$X'\nD=bar # costs $5\nE=plain\n"));
    for (name, value) in [("A", "$X"), ("D", "bar"), ("E", "plain")] {
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
    let doctor = shell.run("doctor", b"");
    let report = String::from_utf8(doctor.stdout).unwrap();
    assert!(report.contains("byokv key retire 'acme corp'"), "{report}");
    assert!(report.contains("`byokv rotation resume umbra` lets it go on"), "{report}");
    assert!(!report.contains("FAULT") && report.contains("WAITS"), "{report}");
    assert_eq!(doctor.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&doctor.stderr).starts_with("waiting: 2 things wait for you"));
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

/// Names with all that a terminal, a shell or a line of text could trip over.
#[test]
fn names_that_list_prints_can_be_given_back() {
    let shell = Shell::new();
    let names: Vec<Vec<u8>> = [
        &b"plain/name"[..],
        b"a\\b",
        b"\\",
        b"\\n",
        b"a\nb",
        b"a\r\nb\t",
        b"\x1b[31m",
        b"\xff\xfe",
        b"a\xffb",
        b"\x00",
        b" ",
        b"  x  ",
        b"-x",
        b"--help",
        b"'\"`$HOME",
        b"\\x41",
        b"\\u{41}",
        "\u{202e}\u{200b}\u{feff}".as_bytes(),
        "ä\u{301}\u{85}\u{9b}".as_bytes(),
        "😀".as_bytes(),
    ]
    .iter()
    .map(|name| name.to_vec())
    .chain((0..=255_u8).step_by(15).map(|byte| vec![b'n', byte, byte.wrapping_mul(7)]))
    .collect();
    {
        let store = shell.open();
        let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
        for name in &names {
            org.put(name, name).unwrap();
        }
    }
    let list = shell.fine("list acme");
    assert_eq!(list.lines().count(), names.len());
    assert!(list.chars().all(|c| c == '\n' || byokv::text::is_visible(c)), "{list}");
    let mut seen = Vec::new();
    for shown in list.lines() {
        let mut command = shell.command("get acme --escaped --");
        let got = run(command.arg(shown), b"");
        let said = String::from_utf8_lossy(&got.stderr);
        assert!(got.status.success(), "{shown}: {said}");
        seen.push(got.stdout);
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(seen, sorted);

    // As they are, but for those that have the byte that ends a name.
    let (code, said) = shell.refused("list acme --raw", b"");
    assert!(code == 1 && said.contains("\"\\u{0}\" has a zero byte"), "{said}");
    for name in names.iter().filter(|name| name.contains(&0)) {
        let shown = byokv::text::escape(name);
        assert!(run(shell.command("delete acme --escaped --").arg(&shown), b"").status.success());
        assert_eq!(
            run(shell.command("get acme --escaped --").arg(&shown), b"").status.code(),
            Some(4)
        );
    }
    sorted.retain(|name| !name.contains(&0));
    let raw: Vec<_> = sorted.iter().flat_map(|name| [&name[..], b"\0"].concat()).collect();
    assert_eq!(shell.run("list acme -0", b"").stdout, raw);
    assert_eq!(shell.run("list acme -0 --json", b"").status.code(), Some(2));

    // What begins with them, put under them, and what is no escape.
    assert_eq!(shell.fine(r"list acme --escaped \xff"), "\\xff\\xfe\n");
    assert_eq!(
        shell.json(r"export acme --format jsonl --escaped --prefix a\x5c")[0]["name"],
        "a\\b"
    );
    let put = shell.run(r"put acme --escaped \u{e4}\x00", b"v");
    assert!(put.status.success());
    let imported = shell.run(r"import acme --format docker --escaped --prefix \x01", b"A=1\n");
    assert!(imported.status.success());
    let store = shell.open();
    let org = store.org("acme").unwrap();
    assert_eq!(&*org.get("ä\0").unwrap().unwrap(), b"v");
    assert_eq!(&*org.get("\u{1}A").unwrap().unwrap(), b"1");
    drop((org, store));
    for wrong in [r"a\q", r"\x4", r"\u{110000}", "\\"] {
        let output = run(shell.command("get acme --escaped").arg(wrong), b"");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    // Without the option a backslash is one.
    assert_eq!(shell.fine(r"get acme a\b"), r"a\b");
}

#[test]
fn all_names_that_start_alike_are_deleted_once_somebody_agreed() {
    let shell = Shell::new();
    common::filled(&shell.open(), "acme", 2500);
    for name in ["keep", "m"] {
        shell.run(&format!("put acme {name}"), b"v");
    }
    let (code, said) = shell.refused("delete acme --prefix n", b"");
    assert_eq!(code, 2);
    assert!(
        said.contains("2500 records of org \"acme\", whose names start with \"n\", are deleted"),
        "{said}"
    );
    assert_eq!(shell.fine("list acme n").lines().count(), 2500);
    assert_eq!(shell.fine("delete acme --prefix n0000 --yes"), "10 records deleted\n");
    assert_eq!(shell.json(r"delete acme --prefix \x6e --escaped --yes")[0]["deleted"], 2490);
    assert_eq!(shell.fine("list acme"), "keep\nm\n");
    // Nothing to agree to.
    assert_eq!(shell.fine("delete acme --prefix n"), "0 records deleted\n");
    for line in ["delete acme", "delete acme keep --prefix k", "delete acme keep --yes"] {
        assert_eq!(shell.refused(line, b"").0, 2, "{line}");
    }
    assert_eq!(shell.fine("list acme"), "keep\nm\n");
}

/// No script takes it for done, nor for a fault.
#[test]
fn what_waits_for_somebody_has_an_exit_code_of_its_own() {
    let shell = Shell::new();
    {
        let store = shell.open();
        common::filled(&store, "acme", 10);
        store.keys().rotate_platform_key("acme").unwrap().pause().unwrap();
    }
    let (code, said) = shell.refused("rotation wait", b"");
    assert_eq!(code, 7);
    assert!(said.contains("waiting: it is paused; `byokv rotation resume acme` lets it"), "{said}");
    let (code, said) = shell.refused("--json rotation wait acme", b"");
    let said: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!((code, &said["error"]["kind"]), (7, &"waiting".into()));
    // A command that replaces a key waits for the same.
    let (code, said) = shell.refused("key suite acme xchacha", b"");
    assert!(code == 7 && said.contains("waiting: it is paused"), "{said}");
    shell.fine("rotation resume acme");
    shell.fine("rotation wait");

    assert_eq!(shell.json("org policy acme --byok")[0]["suite"], "XChaCha20-Poly1305");
    // What the policy holds is what was asked for, but not the end that somebody waits for.
    shell.fine("org policy acme --byok --retire manual");
    fs::write(shell.path("acme.key"), common::key_text()).unwrap();
    assert!(shell.fine("key provision acme --file acme.key").contains("held as the org's policy"));
    let (code, said) = shell.refused("rotation wait", b"");
    assert!(code == 7 && said.contains("`byokv key retire acme` lets it go"), "{said}");
    shell.fine("key retire acme");
    shell.fine("rotation wait");
    shell.fine("doctor");
}

/// The tool cannot replace a customer's key by itself.
#[test]
fn the_doctor_says_which_keys_are_overdue() {
    let shell = Shell::new();
    shell.fine("org create acme --byok");
    fs::write(shell.path("acme.key"), common::key_text()).unwrap();
    shell.fine("key provision acme --file acme.key");
    shell.fine("org policy acme --byok --rotate-after-records 1");
    shell.run("put acme n", b"v");
    shell.run("put acme m", b"v");
    let doctor = shell.run("doctor", b"");
    let report = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(7), "{report}");
    assert!(report.contains("WAITS   key           v2 of org acme is overdue by"), "{report}");
    assert!(
        report.contains("have the org bring a new key, `byokv key provision acme`"),
        "{report}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&shell.run("--json doctor", b"").stdout).unwrap();
    assert_eq!((&json["waiting"], &json["faults"]), (&1.into(), &0.into()));
}

#[test]
fn what_is_printed_fits_80_columns_and_breaks_no_word() {
    let shell = Shell::new();
    shell.fine("org create acme --byok");
    shell.run("put acme n", b"v");
    shell.fine("key rotate acme");
    shell.fine("key rotate acme");
    let keys = shell.json("key list acme");
    for line in
        ["key list acme", "org show acme", "certificate list", "audit", "doctor", "org list"]
    {
        let mut command = shell.command(line);
        let output = run(command.env("COLUMNS", "80"), b"");
        assert!(output.status.success());
        let printed = String::from_utf8(output.stdout).unwrap();
        let wide: Vec<_> = printed.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{line}: {wide:?}");
        if line != "doctor" && line != "org list" {
            for key in &keys[..2] {
                let fingerprint = key["fingerprint"].as_str().unwrap();
                assert!(printed.contains(fingerprint), "{line}: {printed}");
            }
        }
        // Programs find the same words, one row in each line.
        let words = |text: &str| text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
        if line == "doctor" {
            // The space on the disk changes.
            continue;
        }
        let unbroken = shell.fine(line);
        for word in words(&unbroken) {
            assert!(words(&printed).contains(&word), "{line}: no {word} in {printed}");
        }
    }
    assert_eq!(shell.fine("key list acme").lines().count(), 4);
    assert_eq!(shell.fine("audit").lines().count(), shell.json("audit").len());
}
