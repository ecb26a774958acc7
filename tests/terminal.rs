//! What the tool shows of what it was given or has stored: nothing that a terminal would obey.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;

use byokv::OrgPolicy;
use common::shell::{Shell, run};

/// What the tool prints on a terminal.
fn on_terminal(shell: &Shell, line: &str) -> (Option<i32>, Vec<u8>) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::{ErrorKind, Read};

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let side = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = shell.command(line);
    let mut child = command.stdout(side).stderr(std::process::Stdio::null()).spawn().unwrap();
    // It has the other side too, until it is dropped.
    drop(command);
    let mut shown = Vec::new();
    let mut terminal = fs::File::from(terminal);
    // The end of a terminal is an error on Linux.
    if let Err(e) = terminal.read_to_end(&mut shown) {
        assert_ne!(e.kind(), ErrorKind::Interrupted);
    }
    (child.wait().unwrap().code(), shown)
}

/// P14: `get` wrote escapes to a terminal.
#[test]
fn a_terminal_is_shown_text_only() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let text = "Ümlaut, 社, \u{1f680}\r\n\ttab\n";
    assert!(shell.run("put acme text", text.as_bytes()).status.success());
    let values: [&[u8]; 5] =
        [b"\x1b]0;title\x07", b"\x9b2J", "\u{9b}31m\u{202e}".as_bytes(), b"a\rb", b"\0\xff"];
    let (code, shown) = on_terminal(&shell, "get acme text");
    assert_eq!(code, Some(0));
    assert!(String::from_utf8(shown).unwrap().contains("Ümlaut, 社, \u{1f680}"));
    for value in values {
        assert!(shell.run("put acme bytes", value).status.success());
        assert_eq!(on_terminal(&shell, "get acme bytes"), (Some(2), Vec::new()), "{value:?}");
        let (code, shown) = on_terminal(&shell, "get acme bytes --raw");
        assert_eq!(code, Some(0));
        let is_there = shown.windows(value.len()).any(|part| part == value);
        assert!(is_there || value.contains(&b'\r'), "{shown:?}");
        let (code, shown) = on_terminal(&shell, "get acme bytes --json");
        assert_eq!(code, Some(0));
        assert!(shown.iter().all(|byte| (b' '..=b'~').contains(byte) || b"\r\n".contains(byte)));
        // A program gets every byte.
        assert_eq!(shell.run("get acme bytes", b"").stdout, value);
    }
}

/// P14: `list --json` let C1 controls through.
#[test]
fn json_holds_no_character_that_a_terminal_obeys() {
    let shell = Shell::new();
    let name = "a\u{7f}\u{85}\u{9b}2J\u{200b}\u{202e}\u{2028}\u{feff}\u{e0041}ä社🚀";
    let value = "v\u{9b}\u{202e}";
    {
        let store = shell.open();
        store.create_org("acme", OrgPolicy::byok()).unwrap().put(name, value).unwrap();
    }
    for line in ["list acme", "get acme NAME", "export acme --format jsonl", "put acme NAME"] {
        let mut command = shell.command("--json");
        command.args(line.split(' ').map(|word| if word == "NAME" { name } else { word }));
        if line.starts_with("export") {
            command = shell.command(line);
        }
        let output = run(&mut command, value.as_bytes());
        assert!(output.status.success(), "{line}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.chars().all(|c| c == '\n' || byokv::text::is_visible(c)), "{line}: {text:?}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["name"], name, "{line}");
    }
}

/// P14: `OrgUnknown` and others repeated escapes.
#[test]
fn messages_repeat_nothing_that_a_terminal_obeys() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let evil = "x\u{1b}[2J\u{9b}31m\u{202e}\u{200b}";
    let lines: [&[&str]; 14] = [
        &["get", evil, "name"],
        &["get", "acme", evil],
        &["list", evil],
        &["org", "create", evil],
        &["org", "show", evil],
        &["org", "delete", evil, "--yes"],
        &["key", "provision", evil, "--file", evil],
        &["key", "import-token", evil],
        &["import", "acme", "--format", "jsonl", evil],
        &["backup", evil, "--key-file", evil, "--out", evil],
        &["certificate", "verify", evil],
        &["--data", evil, "org", "list"],
        &["--root-key-file", evil, "org", "list"],
        &[evil],
    ];
    for line in lines {
        for json in [false, true] {
            let mut command = shell.command("");
            command.args(line).args(json.then_some("--json"));
            let output = run(&mut command, b"");
            assert!(!output.status.success(), "{line:?}");
            for text in [output.stdout, output.stderr] {
                let text = String::from_utf8(text).unwrap();
                let hidden = |c: char| c != '\n' && c != '\t' && !byokv::text::is_visible(c);
                assert!(!text.contains(hidden), "{line:?}: {text:?}");
            }
        }
    }
}

/// P14: `man DIR` wrote through links.
#[test]
fn manual_pages_replace_links_and_write_through_none() {
    let shell = Shell::empty();
    let (man, victim) = (shell.path("man"), shell.path("victim"));
    fs::create_dir(&man).unwrap();
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, man.join("byokv.1")).unwrap();
    shell.fine("man man");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    assert!(!fs::symlink_metadata(man.join("byokv.1")).unwrap().is_symlink());
    assert!(fs::read_to_string(man.join("byokv.1")).unwrap().contains("byokv"));
    shell.fine("man man");
    let hidden = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
    assert!(!fs::read_dir(&man).unwrap().map(Result::unwrap).any(|entry| hidden(&entry)));
}
