//! How keys are delivered: files of all modes, pipes, variables, and what is no key.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use byokv::{Error, KeyFile, KeyMaterial, RootKey};
use common::key_text;
use common::shell::{BYOKV, Shell, run};

const KEY: &str = "+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=";

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A key file in a directory of its own.
struct Delivery {
    dir: tempfile::TempDir,
}

impl Delivery {
    fn new() -> Self {
        let delivery = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(delivery.dir.path().join("secrets")).unwrap();
        chmod(&delivery.secrets(), 0o755);
        fs::write(delivery.file(), format!("{KEY}\n")).unwrap();
        delivery
    }

    fn secrets(&self) -> PathBuf {
        self.dir.path().join("secrets")
    }

    fn file(&self) -> PathBuf {
        self.secrets().join("root.key")
    }

    fn taken(&self, mode: u32) -> Result<(), String> {
        chmod(&self.file(), mode);
        let fingerprint = KeyMaterial::from_base64(KEY).unwrap().fingerprint();
        match RootKey::from_file(self.file()) {
            Ok(root) => {
                assert_eq!(root.fingerprint(), fingerprint);
                Ok(())
            }
            Err(error @ Error::RootKeyUnavailable { .. }) => Err(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// As systemd delivers it (0440), Kubernetes (0644 or 0440) and Docker (0444).
#[test]
fn files_that_others_may_read_are_taken_where_they_were_delivered() {
    let delivery = Delivery::new();
    for mode in [0o400, 0o600, 0o440, 0o444, 0o640, 0o644] {
        delivery.taken(mode).unwrap();
    }
    for mode in [0o620, 0o602, 0o660, 0o666, 0o646] {
        let why = delivery.taken(mode).unwrap_err();
        let said = format!("others than its owner may write it (mode {mode:03o})");
        assert!(why.contains(&said) && why.contains("chmod 600"), "{why}");
    }
    // A directory where others may write, with and without a sticky bit: they could have put the
    // file there.
    for (dir, mode) in [(0o777, 0o444), (0o1777, 0o444), (0o775, 0o440)] {
        chmod(&delivery.secrets(), dir);
        let why = delivery.taken(mode).unwrap_err();
        assert!(
            why.contains("others than its owner may write in ") && why.contains("secrets"),
            "{why}"
        );
        delivery.taken(0o600).unwrap();
    }
    // Above, the sticky bit is enough: Kubernetes mounts its secrets so.
    chmod(&delivery.secrets(), 0o755);
    chmod(delivery.dir.path(), 0o1777);
    delivery.taken(0o444).unwrap();
    chmod(delivery.dir.path(), 0o777);
    assert!(delivery.taken(0o444).is_err());
    chmod(delivery.dir.path(), 0o700);

    // And it delivers them by links: what counts is where they lead.
    let data = delivery.secrets().join("..data");
    fs::create_dir(&data).unwrap();
    fs::rename(delivery.file(), data.join("root.key")).unwrap();
    std::os::unix::fs::symlink("..data/root.key", delivery.file()).unwrap();
    chmod(&data, 0o755);
    chmod(&delivery.secrets(), 0o1777);
    delivery.taken(0o444).unwrap();
    chmod(&data, 0o777);
    assert!(delivery.taken(0o444).is_err());
}

#[test]
fn another_owner_is_not_trusted_with_more_than_a_private_file() {
    if !are_we_root() {
        let mut stderr = std::io::stderr();
        stderr.write_all(b"NOT SHOWN: files of another owner, which only root can make\n").unwrap();
        return;
    }
    let delivery = Delivery::new();
    chown(delivery.file(), Some(4711), Some(4711)).unwrap();
    delivery.taken(0o600).unwrap();
    let why = delivery.taken(0o444).unwrap_err();
    assert!(why.contains("neither by root nor by this user"), "{why}");
    chown(delivery.file(), Some(0), Some(0)).unwrap();
    delivery.taken(0o444).unwrap();
    chown(delivery.secrets(), Some(4711), Some(4711)).unwrap();
    assert!(delivery.taken(0o444).is_err());
}

fn are_we_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

#[test]
fn more_is_allowed_by_name_only() {
    let delivery = Delivery::new();
    chmod(&delivery.secrets(), 0o777);
    let file = KeyFile::new(delivery.file());
    for mode in [0o440, 0o640] {
        chmod(&delivery.file(), mode);
        assert!(matches!(file.read(), Err(Error::KeyFile { .. })));
        assert!(file.exposure().unwrap().unwrap().contains("its group may read it"));
        let file = file.clone().allow_group_read();
        assert_eq!(file.exposure().unwrap(), None);
        file.read().unwrap();
        RootKey::from_key_file(&file).unwrap();
    }
    for mode in [0o444, 0o660] {
        chmod(&delivery.file(), mode);
        assert!(file.clone().allow_group_read().read().is_err());
        assert!(file.exposure().unwrap().is_some());
        let any = file.clone().allow_any_mode();
        assert_eq!(any.exposure().unwrap(), None);
        any.read().unwrap();
    }
    for path in [delivery.secrets(), delivery.secrets().join("none")] {
        let error = KeyFile::new(&path).read().unwrap_err();
        assert!(matches!(&error, Error::KeyFile { file, .. } if *file == path), "{error}");
    }
    fs::write(delivery.file(), "x".repeat(9000)).unwrap();
    let error = file.allow_any_mode().read().unwrap_err();
    assert!(error.to_string().contains("not a file of one key"), "{error}");
}

#[test]
fn the_tool_takes_delivered_files_and_says_how_to_take_more() {
    let shell = Shell::new();
    chmod(&shell.path("root.key"), 0o444);
    shell.fine("org list");
    shell.fine("doctor");
    chmod(shell.dir.path(), 0o777);
    let (code, said) = shell.refused("org list", b"");
    assert!(code == 5 && !said.contains("--allow-group-read"), "{said}");
    chmod(&shell.path("root.key"), 0o440);
    let (code, said) = shell.refused("org list", b"");
    assert!(code == 5 && said.contains("hint: --allow-group-read"), "{said}");
    shell.fine("org list --allow-group-read");
    let mut command = shell.command("org list");
    assert!(run(command.env("BYOKV_ALLOW_GROUP_READ", "1"), b"").status.success());

    // A customer's key is taken from anywhere, with a warning.
    fs::write(shell.path("acme.key"), key_text()).unwrap();
    chmod(&shell.path("acme.key"), 0o644);
    let (code, said) = shell.refused("key fingerprint --file acme.key", b"");
    assert!(
        code == 0 && said.starts_with("warning: acme.key: others may read it (mode 644)"),
        "{said}"
    );
    chmod(shell.dir.path(), 0o700);
    assert_eq!(shell.refused("key fingerprint --file acme.key", b""), (0, String::new()));
}

fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&path).status().unwrap().success());
    path
}

/// What reading `path` ends with, and that it ends.
fn soon(path: &Path) -> Error {
    let (ended, end) = mpsc::channel();
    let file = KeyFile::new(path).deadline(Duration::from_millis(50));
    std::thread::spawn(move || ended.send(file.read().unwrap_err()));
    end.recv_timeout(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_pipe_that_nobody_writes_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path());
    let began = Instant::now();
    let error = soon(&path);
    assert!(error.to_string().contains("nobody wrote a key into the pipe within 50ms"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(50));

    // One that is opened and not written, and one that is not closed.
    let held = File::options().read(true).write(true).open(&path).unwrap();
    let error = soon(&path);
    assert!(error.to_string().contains("nobody wrote"), "{error}");
    (&held).write_all(KEY.as_bytes()).unwrap();
    let error = soon(&path);
    assert!(error.to_string().contains("did not close it"), "{error}");

    let shell = Shell::new();
    let path = fifo(shell.dir.path());
    let line = format!("--root-key-file {} --root-key-wait 50ms org list", path.display());
    let (code, said) = shell.refused(&line, b"");
    assert!(code == 5 && said.contains("nobody wrote a key"), "{said}");
    let (code, said) = shell.refused("org list --root-key-wait soon", b"");
    assert_eq!(code, 2, "{said}");
}

#[test]
fn a_key_comes_through_a_pipe_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path());
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || fs::write(path, format!("{KEY}\n")).unwrap())
    };
    let key = KeyFile::new(&path).deadline(Duration::from_secs(60)).read().unwrap();
    assert_eq!(key.fingerprint(), KeyMaterial::from_base64(KEY).unwrap().fingerprint());
    writer.join().unwrap();
    // Others may read what comes through this one.
    chmod(&path, 0o666);
    let error = KeyFile::new(&path).read().unwrap_err();
    assert!(error.to_string().contains("mode 666"), "{error}");

    // Process substitution, and commands that need the key at several places.
    let shell = Shell::new();
    let bash = |line: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-c", &line.replace("byokv", BYOKV)]).current_dir(shell.dir.path()).env_clear();
        bash.env("PATH", std::env::var_os("PATH").unwrap()).env("BYOKV_DATA", "data");
        let output = run(&mut bash, b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    bash("byokv --root-key-file <(cat root.key) org create acme");
    assert!(
        bash("byokv --root-key-file <(cat root.key) doctor").contains("no process has the store")
    );
    assert_eq!(bash("cat root.key | byokv --root-key-file /dev/stdin list acme"), "");
    bash("byokv keygen > new.key; chmod 600 new.key");
    bash(
        "byokv --root-key-file <(cat root.key) root-key change --new-root-key-file <(cat new.key)",
    );
    bash("byokv --root-key-file new.key org list");
    assert_eq!(bash("byokv key fingerprint --file <(cat new.key)").len(), 33);
}

#[test]
fn a_variable_that_is_empty_is_not_set() {
    let shell = Shell::new();
    let key = fs::read_to_string(shell.path("root.key")).unwrap();
    let with = |variables: &[(&str, &str)]| {
        let mut command = shell.command("org list");
        for (name, value) in variables {
            command.env(name, value);
        }
        let output = run(&mut command, b"");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(with(&[("BYOKV_ROOT_KEY_FILE", ""), ("BYOKV_ROOT_KEY", &key)]).0, 0);
    assert_eq!(with(&[("BYOKV_ROOT_KEY", ""), ("BYOKV_LOCK_MEMORY", "")]).0, 0);
    let (code, said) = with(&[("BYOKV_ROOT_KEY_FILE", ""), ("BYOKV_ROOT_KEY", "")]);
    assert!(code == 2 && said.contains("give the root key with --root-key-file"), "{said}");
    let (code, said) = with(&[("BYOKV_DATA", "")]);
    assert!(code == 2 && said.contains("name the store with --data DIR"), "{said}");
}

/// Each form of a key that is none, and what is said about it: never any of the key.
#[test]
fn each_wrong_form_of_a_key_is_told_by_its_looks() {
    let hex = "f83b3fe6b40c9215fd7ef104eefabc39ee58e73364f5751f2d6cf141707 2d9bd".replace(' ', "");
    let raw: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(73) ^ 0x9f).collect();
    let utf16 = |big: bool, mark: bool| {
        let text = format!("{}{KEY}\r\n", if mark { "\u{feff}" } else { "" });
        let units = text.encode_utf16();
        units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let forms: Vec<(Vec<u8>, &str)> = vec![
        (text(""), "it is empty"),
        (text("\n\n"), "it is empty"),
        (text(&hex), "32 bytes in hex"),
        (text(&format!("0x{}\n", hex.to_uppercase())), "32 bytes in hex"),
        (text(&hex[..32]), "16 bytes in hex"),
        (
            text(
                &hex.as_bytes()
                    .chunks(2)
                    .map(|d| str::from_utf8(d).unwrap())
                    .collect::<Vec<_>>()
                    .join(":"),
            ),
            "32 bytes in hex",
        ),
        (
            text(&format!("-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n")),
            "looks like PEM",
        ),
        (text(&format!("BYOKV_ROOT_KEY={KEY}\n")), "NAME=KEY"),
        (text(&format!("export ROOT_KEY=\"{KEY}\"\n")), "NAME=KEY"),
        (text(&format!("root_key: {KEY}\n")), "NAME=KEY"),
        (utf16(false, true), "UTF-16"),
        (utf16(true, true), "UTF-16"),
        (utf16(false, false), "UTF-16"),
        (utf16(true, false), "UTF-16"),
        (text(&format!("\u{feff}{KEY}\n")), "byte order mark"),
        (text(&format!("\"{KEY}\"\n")), "quotation marks"),
        (text(&format!("'{KEY}'")), "quotation marks"),
        (text(&format!("\u{201c}{KEY}\u{201d}\n")), "quotation marks"),
        (raw.clone(), "32 raw bytes"),
        ([&raw[..], b"\n"].concat(), "32 raw bytes"),
        ([&raw[..], &raw[..]].concat(), "64 other bytes"),
        (text(&format!("{}\n{}\n", &KEY[..22], &KEY[22..])), "it has 2 lines"),
        (text(&format!("{KEY}\n{KEY}\n")), "it has 2 lines"),
        (text(&format!(" {KEY}\n")), "white space at position 1"),
        (text(&format!("{KEY} \n")), "white space at position 45"),
        (text(&format!("{KEY}\n\n")), "white space at position 45"),
        (text(&KEY.replace('+', "-").replace('/', "_")), "URL-safe"),
        (text(KEY.trim_end_matches('=')), "padding"),
        (text("hunter2hunter2\n"), "32 bytes are needed, 10 came"),
        (text("correct horse battery staple"), "position 8 is not base64"),
    ];
    let shell = Shell::new();
    let file = shell.path("wrong.key");
    let pieces: Vec<String> = [&hex[..], KEY, "hunter2", "staple"]
        .iter()
        .flat_map(|key| (0..key.len() - 5).map(|at| key[at..at + 6].to_owned()).collect::<Vec<_>>())
        .collect();
    for (form, said) in &forms {
        fs::write(&file, form).unwrap();
        chmod(&file, 0o600);
        let shown = format!("\"{}\"", form.escape_ascii());
        let mut messages = vec![
            RootKey::from_file(&file).unwrap_err().to_string(),
            KeyMaterial::from_base64_bytes(form).unwrap_err().to_string(),
        ];
        // By the tool: as the root key and a customer's, from a file and stdin.
        for (line, stdin) in [
            ("--root-key-file wrong.key org list", &b""[..]),
            ("key fingerprint --file wrong.key", b""),
            ("key fingerprint", form),
        ] {
            let (code, message) = shell.refused(line, stdin);
            assert_eq!(code, 5, "{line} of {shown}: {message}");
            messages.push(message);
        }
        for message in messages {
            assert!(message.contains(said), "{shown} gives {message}");
            for piece in &pieces {
                assert!(!message.contains(piece.as_str()), "{shown} gives {message}");
            }
        }
    }
}
