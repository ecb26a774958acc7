//! `byokv backup` and `restore`, as scripts meet them. `tests/cli/backup.trycmd` is the example.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

struct Shell(tempfile::TempDir);

impl Shell {
    /// A store with an org of 500 records, and a backup key.
    fn new() -> Self {
        let shell = Self(tempfile::tempdir().unwrap());
        assert!(shell.run("init --new-root-key-file root.key").status.success());
        // No store is opened in this process: a test that spawns a child at that moment would
        // hand its lock on to the child.
        shell.fill("acme", 500);
        for key in ["key", "other"] {
            fs::write(shell.path(key), common::key_text()).unwrap();
            fs::set_permissions(shell.path(key), fs::Permissions::from_mode(0o600)).unwrap();
        }
        shell
    }

    fn fill(&self, org: &str, records: usize) {
        let line = |i| format!("{{\"name\": \"n{i:05}\", \"value\": \"v{i}\"}}\n");
        fs::write(self.path("records"), (0..records).map(line).collect::<String>()).unwrap();
        self.json(&format!("org create {org} --byok"));
        self.json(&format!("import {org} --format jsonl records"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byokv"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).env_clear();
        command.env("BYOKV_DATA", "data").env("BYOKV_ROOT_KEY_FILE", "root.key");
        command.output().unwrap()
    }

    fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("--json {line}"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Its exit code, the kind of its error, and the message.
    fn refused(&self, line: &str) -> (i32, String, String) {
        let output = self.run(&format!("--json {line}"));
        let error = String::from_utf8(output.stderr).unwrap();
        let error: Value = serde_json::from_str(error.lines().last().unwrap()).unwrap();
        let text = |field: &str| error["error"][field].as_str().unwrap().to_owned();
        (output.status.code().unwrap(), text("kind"), text("message"))
    }
}

#[test]
fn a_backup_is_a_private_file_that_nothing_is_written_over() {
    let shell = Shell::new();
    let made = shell.json("backup --key-file key --out a.backup");
    assert_eq!((&made["orgs"][0]["entries"], &made["whole_store"]), (&500.into(), &true.into()));
    let mode = fs::metadata(shell.path("a.backup")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let bytes = fs::read(shell.path("a.backup")).unwrap();
    let (code, _, message) = shell.refused("backup --key-file key --out a.backup");
    assert!(code == 1 && message.contains("exists already"), "{message}");
    assert_eq!(fs::read(shell.path("a.backup")).unwrap(), bytes);
    // One that fails leaves nothing behind.
    let failed = shell.refused("backup --key-file root.key --out b.backup");
    assert_eq!((failed.0, &failed.1[..]), (5, "key_reused"));
    assert_eq!(shell.refused("backup none --key-file key --out b.backup").0, 4);
    let left = fs::read_dir(shell.0.path()).unwrap().map(|e| e.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("b.backup")));
    fs::write(shell.path("c.backup.part"), "of somebody else").unwrap();
    let (code, _, message) = shell.refused("backup --key-file key --out c.backup");
    assert!(code == 1 && message.contains("c.backup.part is there"), "{message}");
    assert_eq!(fs::read(shell.path("c.backup.part")).unwrap(), b"of somebody else");
    assert_eq!(shell.refused("backup --out d.backup").0, 2, "no key");
}

#[test]
fn a_backup_goes_through_a_pipe_and_back_into_a_store() {
    let shell = Shell::new();
    let output = shell.run("backup acme --key-file key");
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"byokvBK1"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("of chosen orgs: 1 org, 500 records"), "{said}");
    fs::write(shell.path("a.backup"), &output.stdout).unwrap();
    let shown = shell.json("backup show --key-file key a.backup");
    assert_eq!((&shown["orgs"][0]["name"], &shown["whole_store"]), (&"acme".into(), &false.into()));
    assert!(shell.run("--data data2 init").status.success());
    let restored = shell.json("--data data2 restore --key-file key a.backup");
    assert_eq!((&restored["records"], &restored["key"]), (&500.into(), &2.into()));
    let verified = shell.json("--data data2 verify --deep");
    assert_eq!((&verified["opened"], &verified["faults"]), (&500.into(), &Value::Array(vec![])));
    let audit = |data: &str, org: &str| {
        let output = shell.run(&format!("--data {data} audit --org {org}"));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(audit("data", "acme").contains("made, of org acme"));
    let there = audit("data2", "acme");
    assert!(there.contains("begun") && there.contains("org restored from backup"), "{there}");
}

#[test]
fn a_restored_org_may_bring_its_key_at_once() {
    let shell = Shell::new();
    shell.json("backup --key-file key --out a.backup");
    assert!(shell.run("--data data2 init").status.success());
    let refused = shell.refused("--data data2 restore --key-file key --with-key acme=key a.backup");
    assert_eq!((refused.0, &refused.1[..]), (5, "key_reused"));
    let line = "--data data2 restore --key-file key --with-key acme=other a.backup";
    let restored = shell.json(line);
    assert_eq!((&restored["origin"], &restored["records"]), (&"customer".into(), &500.into()));
    let print = shell.json("key fingerprint --file other");
    assert_eq!(print["fingerprint"], restored["fingerprint"]);
    assert_eq!(shell.refused("restore --key-file key --with-key acme a.backup").0, 2);
}

#[test]
fn who_restores_what_does_not_fit_is_told_what_to_do() {
    let shell = Shell::new();
    shell.fill("umbra", 3);
    shell.json("backup --key-file key --out a.backup");
    let output = shell.run("restore --key-file key a.backup");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("exists already") && said.contains("byokv org delete acme"), "{said}");
    let refused =
        shell.refused("restore --key-file key --org umbra --with-key acme=other a.backup");
    assert_eq!((refused.0, &refused.1[..]), (2, "backup_org_not_chosen"));
    let output = shell.run("restore --key-file key -");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("save it to a file first"), "{said}");
}

#[test]
fn what_is_wrong_with_a_backup_has_its_exit_code_and_kind() {
    let shell = Shell::new();
    shell.json("backup --key-file key --out a.backup");
    shell.json("backup --key-file key --out b.backup");
    let good = fs::read(shell.path("a.backup")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(shell.path(name), bytes).unwrap();
    write("cut", &good[..good.len() - 1]);
    let mut altered = good.clone();
    altered[500] ^= 1;
    write("altered", &altered);
    write("longer", &[&good[..], b"x"].concat());
    write("letter", b"Dear operator");
    let orgs = shell.json("org list");
    for command in ["restore", "backup show"] {
        for (file, code, kind) in [
            ("cut", 6, "backup_cut_short"),
            ("altered", 6, "backup_altered"),
            ("longer", 6, "backup_goes_on"),
            ("letter", 6, "backup_unknown_format"),
        ] {
            let (found, its_kind, message) =
                shell.refused(&format!("{command} --key-file key {file}"));
            assert_eq!((found, &its_kind[..]), (code, kind));
            assert!(message.contains("nothing was restored"), "{message}");
        }
        let wrong = shell.refused(&format!("{command} --key-file other a.backup"));
        assert_eq!((wrong.0, &wrong.1[..]), (5, "backup_other_key"));
    }
    let missing = shell.refused("restore --key-file key --org none a.backup");
    assert_eq!((missing.0, &missing.1[..]), (4, "backup_org_missing"));
    assert_eq!(shell.refused("restore --key-file key a.backup").1, "org_exists");
    assert_eq!(shell.refused("restore --key-file key .").0, 2, "a folder");
    assert_eq!(shell.json("org list"), orgs);
}

/// What is not in it makes the exit code 1, and the file stays: it is what can be had.
#[test]
fn a_backup_that_is_not_whole_says_so() {
    let shell = Shell::new();
    shell.fill("umbra", 10);
    shell.json("key provision umbra --file other");
    shell.json("key suspend umbra --yes");
    let output = shell.run("backup --key-file key --out a.backup");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("org \"umbra\" is not in the backup") && said.contains("not complete"),
        "{said}"
    );
    assert_eq!(shell.run("backup show --key-file key a.backup").status.code(), Some(1));
    assert!(shell.run("--data data2 init").status.success());
    let restored = shell.run("--data data2 restore --key-file key a.backup");
    assert!(restored.status.success());
    assert!(
        String::from_utf8_lossy(&restored.stderr).contains("org \"umbra\" is not in the backup")
    );
}

/// Whoever has the key of a backup may write what he likes into it; a terminal does not obey it.
#[test]
fn what_a_hostile_backup_says_reaches_no_terminal_as_it_is() {
    let shell = Shell::new();
    let key = common::material(&fs::read_to_string(shell.path("key")).unwrap());
    let umbra = common::material(&fs::read_to_string(shell.path("other")).unwrap());
    let hostile = byokv::fuzzing::HostileBackup {
        org: "umbra",
        ancestor: None,
        newest: 1,
        claimed: &[umbra.fingerprint()],
        more: 10,
        orgs: 0,
        text: "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{2067}\u{200d}\u{feff}\u{2029}",
    };
    fs::write(shell.path("hostile"), byokv::fuzzing::backup_hostile(&key, &hostile)).unwrap();
    for line in [
        "backup show --key-file key hostile",
        "--json backup show --key-file key hostile",
        "restore --key-file key hostile",
        "--json key foreign list",
        "key foreign list",
    ] {
        let output = shell.run(line);
        for said in [output.stdout, output.stderr] {
            let said = String::from_utf8(said).unwrap();
            assert!(
                said.chars().all(|c| c == '\n' || (' '..='~').contains(&c)),
                "{line}: {said:?}"
            );
        }
    }
    // Its own org may not have the key; another org may.
    assert_eq!(shell.refused("key provision umbra --file other").1, "key_reused");
    let print = umbra.fingerprint();
    let found = shell.json(&format!("key foreign list --fingerprint {print}"));
    assert_eq!(found["orgs"][0]["name"], "umbra");
    let backup = found["backup"].as_str().unwrap();
    let dropped = shell.json(&format!("key foreign drop {backup}"));
    assert_eq!(dropped["dropped"], found["keys"]);
    let again = shell.refused(&format!("key foreign drop {backup}"));
    assert_eq!((again.0, &again.1[..]), (4, "foreign_keys_none"));
    assert!(shell.run("key provision umbra --file other").status.success());
    let audit = String::from_utf8(shell.run("audit").stdout).unwrap();
    assert!(audit.contains("foreign keys dropped, which came with backup"), "{audit}");
}

#[test]
fn one_record_or_one_org_is_taken_from_a_backup() {
    let shell = Shell::new();
    shell.json("backup --key-file key --out a.backup");
    let restored = shell.json("restore --key-file key a.backup --org acme --as old");
    assert_eq!((&restored["name"], &restored["was_name"]), (&"old".into(), &"acme".into()));
    shell.json("delete acme n00003");
    let line = "restore --key-file key a.backup --org acme --record n00003";
    assert_eq!(shell.json(line)["records"], 1);
    assert_eq!(shell.refused(line).1, "record_exists");
    shell.json("org create into");
    let some = shell.json("restore --key-file key a.backup --org acme --prefix n0001 --into into");
    assert_eq!(some["records"], 10);
    let again = "restore --key-file key a.backup --org acme --prefix n0001 --into into --overwrite";
    assert_eq!(shell.json(again)["records"], 10);
    let none = shell.refused("restore --key-file key a.backup --org acme --record none");
    assert_eq!((none.0, &none.1[..]), (4, "backup_no_such_record"));
    for usage in ["--record n", "--as old", "--org acme --into x", "--org a --org b --as c"] {
        assert_eq!(
            shell.refused(&format!("restore --key-file key a.backup {usage}")).0,
            2,
            "{usage}"
        );
    }
    // Which backups there are, and what erasing the org does not reach.
    let known = shell.json("backup list");
    assert_eq!((&known["state"], &known["whole_store"]), (&"made".into(), &true.into()));
    shell.json("org policy acme --backups refuse");
    let left = shell.json("backup --key-file key --out b.backup");
    assert_eq!(left["left_out"][0]["why"]["kind"], "refused_by_policy");
    assert_eq!(shell.refused("backup acme --key-file key --out c.backup").1, "backup_org_refuses");
    let output = shell.run("org delete acme --yes");
    let said =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    let backup = known["backup"].as_str().unwrap();
    assert!(said.contains("1 backup still holds it: destroy that backup, or its key"), "{said}");
    assert!(said.contains(backup) && !said.contains("Nobody can"), "{said}");
}
