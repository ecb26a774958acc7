//! The command line tool, as shells and operators meet it. `tests/cli/*.trycmd` are the examples.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use byokv::OrgPolicy;
use common::shell::{BYOKV, Shell, run};
use serde_json::Value;

#[test]
fn examples() {
    // git keeps no mode but the executable one.
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    for key in
        ["keys.in/acme", "keys.in/other", "backup.in/acme", "backup.in/backup", "backup.in/other"]
    {
        let key = cases.join(key).with_extension("key");
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    trycmd::TestCases::new()
        .register_bin("byokv", Path::new(BYOKV))
        .env("BYOKV_DATA", "data")
        .env("BYOKV_ROOT_KEY_FILE", "root.key")
        .case("tests/cli/*.trycmd");
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn any_value_goes_in_and_out_byte_for_byte() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for value in [&b""[..], b"\n", b"no newline at the end", &bytes] {
        assert!(shell.run("put acme name", value).status.success());
        assert_eq!(shell.run("get acme name", b"").stdout, value);
    }
    let large = vec![7; byokv::MAX_VALUE_LEN + 1];
    let (code, error) = shell.refused("put acme large", &large);
    assert_eq!(code, 2);
    assert!(error.contains("at most 67108864 bytes"), "{error}");
    assert_eq!(shell.fine("list acme"), "name\n");
}

#[test]
fn exports_import_as_they_were() {
    let shell = Shell::new();
    {
        let store = shell.open();
        for name in ["acme", "umbra"] {
            store.create_org(name, OrgPolicy::byok()).unwrap();
        }
        let acme = store.org("acme").unwrap();
        let values: [&[u8]; 8] = [
            b"",
            b" # \\ ' \" $HOME ${HOME} \\n",
            b"\n\r\n\t\x7f",
            b"\xff\x00\xfe",
            "\u{feff}ä€😀\u{2028}".as_bytes(),
            b"'",
            b"\\",
            b"a\\\nb",
        ];
        for (i, value) in values.iter().enumerate() {
            acme.put(format!("V{i}"), value).unwrap();
            acme.put([b"\xff\n\\", &[u8::try_from(i).unwrap()][..]].concat(), value).unwrap();
        }
    }
    let exported = shell.run("export acme --format jsonl", b"").stdout;
    assert!(shell.run("import umbra --format jsonl -", &exported).status.success());
    assert_eq!(shell.run("export umbra --format jsonl", b"").stdout, exported);
    assert_eq!(exported.iter().filter(|byte| **byte == b'\n').count(), 16);
}

#[test]
fn imports_take_what_other_systems_write() {
    let shell = Shell::new();
    shell.fine("org create acme");
    for (format, content) in [
        (
            "jsonl",
            "\u{feff}{\"name\":\"A\",\"value\":\"1\"}\r\n\r\n{\"value\":\"\",\"name\":\"B\"}",
        ),
        ("dotenv", "\u{feff}A=1\r\n\r\n# c $A\r\nexport B=\"\" # b\r\n  "),
        ("docker", "\u{feff}A=1\r\n\r\n # c $A\r\n B=\r\n"),
    ] {
        let line = format!("import acme --format {format}");
        let output = shell.run(&line, content.as_bytes());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2 records imported\n", "{format}");
        assert_eq!([shell.fine("get acme A"), shell.fine("get acme B")], ["1", ""]);
        shell.fine("delete acme A");
        shell.fine("delete acme B");
    }
}

/// Not on a terminal, so no bars: lines on stderr, and nothing at all with `--quiet`.
#[test]
fn progress_is_on_stderr_and_can_be_silenced() {
    let shell = Shell::new();
    common::filled(&shell.open(), "acme", 500);
    let output = shell.run("key rotate acme", b"");
    let progress = String::from_utf8(output.stderr).unwrap();
    assert!(progress.lines().all(|line| line.starts_with("acme: ")), "{progress}");
    assert!(!progress.is_empty());
    assert!(output.stdout.starts_with(b"Certificate of retirement"));
    assert_eq!(shell.refused("key rotate acme --quiet", b""), (0, String::new()));
    assert_eq!(shell.refused("key rotate acme --json", b""), (0, String::new()));
}

#[test]
fn a_bad_line_is_named_without_its_value_and_nothing_is_written() {
    let shell = Shell::new();
    shell.fine("org create acme");
    for (format, content, line) in [
        ("jsonl", "{\"name\":\"a\",\"value\":\"1\"}\n\n{\"name\":\"b\",\"value\":4711}\n", 3),
        ("jsonl", "{\"name\":\"a\",\"value\":\"1\",\"valve\":\"4711\"}", 1),
        ("jsonl", "{\"name\":\"a\",\"value\":\"4711\",\"value_base64\":\"\"}", 1),
        ("jsonl", "{\"name\":\"a\",\"value_base64\":\"4711!\"}", 1),
        ("jsonl", "{\"name\":\"a\"}", 1),
        ("jsonl", "{\"name\":\"\",\"value\":\"4711\"}", 1),
        ("jsonl", "{\"name\":\"a\",\"value\":\"4711", 1),
        ("dotenv", "A=1\n# a\n\nB 4711\n", 4),
        ("dotenv", "A=1\n# $A\nB='4711\n\n", 3),
        ("dotenv", "A=1\nB=4711$HOME\n", 2),
        ("docker", "A=1\n\nB\n", 3),
        ("docker", "A=1\nB =4711\n", 2),
        ("dotenv", "A=1\nB=\"\n$HOME\n4711\"\n", 2),
    ] {
        let (code, error) =
            shell.refused(&format!("import acme --format {format}"), content.as_bytes());
        assert_eq!(code, 1, "{content}: {error}");
        assert!(error.starts_with(&format!("error: line {line}: ")), "{content}: {error}");
        assert!(error.contains("nothing was written") && !error.contains("4711"), "{error}");
    }
    assert_eq!(shell.fine("list acme"), "");

    shell.fine("org create blinded --names blinded");
    let deep = format!("{{\"name\":\"{}\",\"value\":\"1\"}}", "a/".repeat(200));
    let many = (0..1500).map(|n| format!("{{\"name\":\"{n}\",\"value\":\"1\"}}\n"));
    let many = many.collect::<String>() + &deep;
    let (code, error) = shell.refused("import blinded --format jsonl", many.as_bytes());
    assert!(code == 2 && error.contains("at most 128 segments"), "{error}");
    assert_eq!(shell.fine("list blinded"), "");
}

#[test]
fn key_files_are_private_and_made_once() {
    let shell = Shell::new();
    assert_eq!(mode(&shell.path("root.key")), 0o600);
    let key = fs::read(shell.path("root.key")).unwrap();
    for line in [
        "--data other init --new-root-key-file root.key",
        "root-key change --generate --new-root-key-file root.key",
    ] {
        assert_eq!(shell.refused(line, b"").0, 1);
    }
    assert_eq!(fs::read(shell.path("root.key")).unwrap(), key);
    shell.fine("root-key change --generate --new-root-key-file two.key");
    assert_eq!(mode(&shell.path("two.key")), 0o600);
    assert_eq!(shell.refused("org list", b"").0, 5);
    shell.fine("--root-key-file two.key org list");
    fs::set_permissions(shell.path("two.key"), fs::Permissions::from_mode(0o660)).unwrap();
    let (code, error) = shell.refused("--root-key-file two.key org list", b"");
    assert!(code == 5 && error.contains("chmod 600"), "{error}");
}

#[test]
fn the_root_key_may_come_from_the_environment() {
    let shell = Shell::new();
    let key = fs::read_to_string(shell.path("root.key")).unwrap();
    let mut command = shell.command("org list");
    command.env_remove("BYOKV_ROOT_KEY_FILE");
    assert_eq!(run(&mut command, b"").status.code(), Some(2));
    command.env("BYOKV_ROOT_KEY", key);
    assert!(run(&mut command, b"").status.success());
    command.env("BYOKV_ROOT_KEY", "hunter2hunter2");
    let output = run(&mut command, b"");
    assert_eq!(output.status.code(), Some(5));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
}

#[test]
fn keygen_makes_keys_that_are_taken() {
    let shell = Shell::empty();
    let key = shell.fine("keygen");
    assert_eq!(key.len(), 45);
    let with_fingerprint = &shell.json("keygen")[0];
    let key = with_fingerprint["key"].as_str().unwrap();
    let fingerprint = shell.run("key fingerprint", key.as_bytes()).stdout;
    assert_eq!(String::from_utf8(fingerprint).unwrap().trim(), with_fingerprint["fingerprint"]);
    let (code, error) = shell.refused("key fingerprint", b"aHVudGVyMg==");
    assert!(code == 5 && !error.contains("aHVu"), "{error}");
    assert_eq!(shell.refused("key fingerprint", b"\xff").0, 5);
}

/// The customer's side needs no store, no root key and no settings.
#[test]
fn a_key_travels_sealed() {
    let (operator, customer) = (Shell::new(), Shell::empty());
    operator.fine("org create acme --byok");
    operator.fine("org create umbra --byok");
    let made = operator.run("key import-token acme --valid-for 1h", b"");
    let token = String::from_utf8(made.stdout).unwrap();
    let about = String::from_utf8(made.stderr).unwrap();
    assert!(about.contains("for org \"acme\", until "), "{about}");

    let key = common::key_text();
    let mut wrap = Command::new(BYOKV);
    wrap.args(["key", "wrap", "--token", token.trim()]).env_clear().current_dir(&customer.dir);
    let wrapped = run(&mut wrap, key.as_bytes());
    let (sealed, said) = (wrapped.stdout, String::from_utf8(wrapped.stderr).unwrap());
    assert!(wrapped.status.success() && said.starts_with(&about), "{said}");
    let fingerprint = said.lines().last().unwrap().strip_prefix("fingerprint ").unwrap();
    assert!(sealed.starts_with(b"byokv-sealed-1."));

    let (code, error) = operator.refused("key provision umbra --sealed", &sealed);
    assert!(code == 5 && error.contains("sealed for another org"), "{error}");
    assert!(error.contains("hint: `byokv audit`") && !error.contains("acme"), "{error}");
    let mut altered = sealed.clone();
    altered[40] = if altered[40] == b'A' { b'B' } else { b'A' };
    let (code, error) = operator.refused("key provision acme --sealed", &altered);
    assert!(code == 5 && error.contains("checksum"), "{error}");
    let other = "key provision acme --sealed --expect-fingerprint 00000000000000000000000000000000";
    let (code, error) = operator.refused(other, &sealed);
    assert!(code == 5 && error.contains("wrong key: its fingerprint is"), "{error}");
    let (code, error) = operator.refused("key provision acme", &sealed);
    assert!(code == 5 && error.contains("not acceptable as key material"), "{error}");

    fs::write(operator.path("sealed"), &sealed).unwrap();
    let line = format!(
        "--json key provision acme --sealed --file sealed --expect-fingerprint {fingerprint}"
    );
    let provisioned: Value = serde_json::from_str(&operator.fine(&line)).unwrap();
    assert_eq!(provisioned["active"]["fingerprint"], fingerprint);
    assert_eq!(provisioned["certificate"]["records_left"], 0);
    let (code, error) = operator.refused("--json key provision acme --sealed", &sealed);
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!((code, &error["error"]["kind"]), (5, &"import_used".into()));
    let audit = operator.fine("audit");
    for event in ["import token", "used  org acme", "sealed key under token"] {
        assert!(audit.contains(event), "{audit}");
    }
    assert_eq!(operator.refused("key import-token acme --valid-for 59s", b"").0, 2);
    assert_eq!(operator.refused("key import-token acme --valid-for soon", b"").0, 2);
}

fn humantime_of(unix_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

#[test]
fn every_command_speaks_json() {
    let shell = Shell::empty();
    let init = &shell.json("init --new-root-key-file root.key")[0];
    assert_eq!(init["root_key_file"], "root.key");
    assert_eq!(shell.json("org create acme --byok")[0]["name"], "acme");
    let policy = &shell.json("org policy acme --retire 7d")[0];
    assert_eq!(policy["policy"]["may_bring_key"], true);
    assert_eq!(policy["changes"][0]["kind"], "retire");
    let unchanged = &shell.json("org policy acme --retire 7d")[0];
    assert_eq!(unchanged["changes"], serde_json::json!([]));
    shell.json("org policy acme --retire immediate");
    assert_eq!(shell.json("org show acme")[0]["suite"], "XAES-256-GCM");
    assert_eq!(shell.json("org list").len(), 1);
    assert_eq!(shell.json("put acme a")[0]["bytes"], 0);
    assert_eq!(shell.json("get acme a")[0]["value"], "");
    assert_eq!(shell.json("list acme")[0]["name"], "a");
    assert_eq!(shell.json("export acme --format jsonl").len(), 1);
    assert_eq!(shell.json("import acme --format jsonl")[0]["records"], 0);
    fs::write(shell.path("k"), common::key_text()).unwrap();
    let fingerprint = shell.json("key fingerprint --file k")[0]["fingerprint"].clone();
    let provisioned = &shell.json("key provision acme --file k")[0];
    assert_eq!(provisioned["active"]["fingerprint"], fingerprint);
    assert_eq!(provisioned["certificate"]["records_left"], 0);
    assert_eq!(shell.json("key list acme").len(), 2);
    let token = &shell.json("key import-token acme")[0];
    assert_eq!(token["org"], "acme");
    fs::write(shell.path("k2"), common::key_text()).unwrap();
    let line = format!("key wrap --file k2 --token {}", token["token"].as_str().unwrap());
    let wrapped = &shell.json(&line)[0];
    assert_eq!(wrapped["token_id"], token["token_id"]);
    assert!(wrapped["sealed"].is_string() && wrapped["fingerprint"].is_string());
    assert_eq!(shell.json("key suspend acme --yes")[0]["unreadable"], 1);
    assert_eq!(shell.json("verify --deep")[0]["withheld"], 1);
    assert_eq!(shell.json("key resume acme --file k")[0]["resumed"], 2);
    assert!(shell.json("key suite acme xchacha --no-wait")[0]["certificate"].is_null());
    shell.json("rotation wait");
    assert!(shell.json("rotation status").is_empty());
    assert_eq!(shell.json("key return acme")[0]["replaces"], 2);
    assert_eq!(shell.json("key rotate acme")[0]["replaces"], 3);
    assert_eq!(shell.json("certificate list").len(), 4);
    assert_eq!(shell.json("certificate show acme 1")[0]["version"], 1);
    assert!(shell.json("certificate verify").iter().all(|each| each["authentic"] == true));
    assert_eq!(shell.json("audit --verify")[0]["intact"], true);
    let audit = shell.json("audit");
    let verified = &shell.json("audit --verify")[0];
    assert_eq!(audit.len() as u64, verified["entries"]);
    assert_eq!(verified["head"]["number"], verified["entries"]);
    assert_eq!(verified["head"]["sha256"].as_str().unwrap().len(), 64);
    for entry in &audit {
        assert!(entry["event"]["kind"].is_string(), "{entry}");
        assert!(entry["org"].is_null() || entry["org"]["id"].is_string(), "{entry}");
        let (text, ms) = (entry["at"].as_str().unwrap(), entry["at_unix_ms"].as_u64().unwrap());
        assert_eq!(text, humantime_of(ms), "{entry}");
    }
    for certificate in shell.json("certificate list") {
        let ms = certificate["at_unix_ms"].as_u64().unwrap();
        assert_eq!(certificate["at"], humantime_of(ms), "{certificate}");
    }
    let kind = |wanted: &str| audit.iter().filter(|e| e["event"]["kind"] == wanted).count();
    assert_eq!((kind("key_retired"), kind("suite_retired"), kind("policy_changed")), (3, 1, 2));
    assert_eq!(shell.json("delete acme a")[0]["existed"], true);
    assert_eq!(shell.json("doctor")[0]["faults"], 0);
    assert!(shell.json("completions fish")[0]["script"].as_str().unwrap().contains("byokv"));
    shell.json("root-key change --generate --new-root-key-file two.key");
    let (code, error) = shell.refused("--json org list", b"");
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!((code, &error["error"]["kind"]), (5, &"root_key_wrong".into()));
}

#[test]
fn a_certificate_of_another_store_or_a_changed_one_is_no_proof() {
    let (one, two) = (Shell::new(), Shell::new());
    for shell in [&one, &two] {
        shell.fine("org create acme");
        shell.fine("key rotate acme");
    }
    let certificate = one.fine("--json certificate show acme v1");
    assert!(one.run("certificate verify -", certificate.as_bytes()).status.success());
    assert_eq!(two.refused("certificate verify -", certificate.as_bytes()).0, 1);
    let changed = certificate.replace("\"records_rewritten\":0", "\"records_rewritten\":9");
    assert_ne!(changed, certificate);
    assert_eq!(one.refused("certificate verify -", changed.as_bytes()).0, 1);
    assert_eq!(one.refused("certificate verify -", b"{}").0, 1);
    assert_eq!(one.refused("certificate verify -", b"").0, 1);
}

#[test]
fn a_locked_store_names_its_holder_and_the_doctor_comes_all_the_same() {
    let shell = Shell::new();
    let store = shell.open();
    let (code, error) = shell.refused("org list", b"");
    assert_eq!(code, 3);
    assert!(error.contains(&format!("by the process {}", std::process::id())), "{error}");
    let report = shell.fine("doctor");
    assert!(report.contains(&format!("the process {} has the store open", std::process::id())));
    store.close().unwrap();
    assert!(shell.fine("doctor").contains("no process has the store open"));
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let shell = Shell::new();
    let said = |wanted: &str| {
        let output = shell.run("doctor", b"");
        let report = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{report}");
        assert!(report.lines().any(|l| l.contains("FAULT") && l.contains(wanted)), "{report}");
    };
    fs::set_permissions(shell.path("data"), fs::Permissions::from_mode(0o755)).unwrap();
    said("mode 755");
    fs::set_permissions(shell.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
    shell.fine("doctor");
    fs::copy(shell.path("data/mark"), shell.path("mark.old")).unwrap();
    for name in ["a", "b"] {
        shell.fine(&format!("org create {name}"));
    }
    fs::copy(shell.path("mark.old"), shell.path("data/mark")).unwrap();
    said("went back in time");
    assert_eq!(shell.refused("org list", b"").0, 6);
    fs::remove_file(shell.path("data/keyring")).unwrap();
    said("keyring is missing");
    assert_eq!(shell.refused("org list", b"").0, 6);
    fs::remove_dir_all(shell.path("data")).unwrap();
    said("is not a directory");
    assert_eq!(shell.refused("org list", b"").0, 4);
}

/// From the first sign to the mended store, with what each message advises.
#[test]
fn a_damaged_record_is_found_named_and_mended() {
    let shell = Shell::new();
    common::filled(&shell.open(), "acme", 20);
    {
        let db = sled::open(shell.path("data/db")).unwrap();
        let tree = db.open_tree("records").unwrap();
        let record = |number: usize| tree.iter().nth(number).unwrap().unwrap();
        let (key, mut value) = record(3);
        let tag = value.len() - 17;
        value[tag] ^= 1;
        tree.insert(key, value).unwrap();
        tree.insert(record(7).0, b"x").unwrap();
        db.flush().unwrap();
    }
    // Nothing says how it was closed.
    fs::write(shell.path("data/db/durable"), [0; 16]).unwrap();
    let output = shell.run("verify", b"");
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("1 record whose header is damaged"), "{report}");
    let output = shell.run("--json verify acme --deep", b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["opened"]), (Some(1), &18.into()));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("2 faults") && error.contains("missing or older"), "{error}");
    let named: Vec<_> = report["faults"].as_array().unwrap().iter().collect();
    assert_eq!(named.len(), 2);
    assert_eq!((&named[0]["record"], &named[1]["record"]), (&"n00003".into(), &"n00007".into()));

    let (code, error) = shell.refused("key rotate acme", b"");
    assert!(code == 6 && error.contains("2 records do not open"), "{error}");
    assert!(error.contains("byokv verify --deep acme"), "{error}");
    let output = shell.run("doctor", b"");
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("is blocked"), "{report}");
    assert_eq!(shell.refused("rotation wait", b"").0, 6);
    assert_eq!(shell.refused("get acme n00003", b"").0, 6);

    assert!(shell.run("put acme n00003", b"v3").status.success());
    shell.fine("delete acme n00007");
    // Somebody wrote behind the store's back: mended or not, that is known until it is accepted.
    let (code, error) = shell.refused("rotation wait acme", b"");
    assert!(code == 6 && error.contains("no key was destroyed"), "{error}");
    for check in ["verify", "verify acme", "verify --deep"] {
        let (code, error) = shell.refused(check, b"");
        assert!(code == 6 && error.contains("records of org \"acme\""), "{error}");
        assert!(error.contains("byokv verify ORG --accept-loss"), "{error}");
    }
    let output = shell.run("doctor", b"");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("records of org \"acme\""), "{report}");
    assert_eq!(shell.refused("verify acme --accept-loss", b"").0, 2);
    assert_eq!(shell.json("verify acme --accept-loss --yes")[0]["accepted"], true);
    assert_eq!(shell.json("verify acme --accept-loss --yes")[0]["accepted"], false);
    // It may have ended while the store was open for that.
    shell.fine("rotation wait acme");
    assert_eq!(shell.json("certificate show acme 1")[0]["records_verified"], 19);
    assert!(shell.fine("audit --org acme").contains("rollback accepted"));
    shell.fine("verify acme --deep");
    shell.fine("doctor");
}

/// A rotation that waits for a suspended key would wait for ever: we hold the store.
#[test]
fn waiting_for_a_suspended_key_ends_at_once() {
    let shell = Shell::new();
    {
        let store = shell.open();
        common::filled(&store, "acme", 100);
        let keys = store.keys();
        let key = common::material(&common::key_text());
        keys.provision("acme", key).unwrap().wait().unwrap();
        keys.set_throttle(byokv::Throttle::unlimited().with_records_per_second(1).unwrap())
            .unwrap();
        keys.return_to_platform_key("acme").unwrap();
        keys.suspend("acme").unwrap();
    }
    let began = Instant::now();
    let (code, error) = shell.refused("rotation wait", b"");
    assert!(code == 5 && error.contains("v2 of org \"acme\" is suspended"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let status = &shell.json("rotation status")[0];
    assert_eq!((&status["replaces"], &status["records"]), (&2.into(), &100.into()));
    assert!(status["left"].as_u64().unwrap() > 0);
    // Though the store was opened only now.
    assert_ne!(status["progress"]["phase"], "queued", "{status}");
}

#[test]
fn nobody_reading_is_no_failure() {
    let shell = Shell::new();
    {
        let store = shell.open();
        common::filled(&store, "acme", 20_000);
    }
    for line in ["list acme", "export acme --format jsonl", "--json list acme"] {
        let mut command = shell.command(line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{line}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let shell = Shell::empty();
    for name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(shell.fine(&format!("completions {name}")).contains("byokv"));
    }
    shell.fine("man man");
    for page in ["byokv.1", "byokv-key-provision.1"] {
        assert!(fs::read_to_string(shell.path("man").join(page)).unwrap().contains(".TH"));
    }
    let help = shell.fine("--help");
    for code in ["0  fine", "3  another process", "6  something is damaged"] {
        assert!(help.contains(code));
    }
}
