//! `docs/operator.md` is what the real tool prints: each block is run here and compared. With
//! `BYOKV_OVERWRITE=1` the file is written anew. What differs from run to run (ids, random keys,
//! times, rates) is shown as a stand-in of the same shape.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// Prose, or a line for the shell.
enum Part {
    Says(&'static str),
    Runs(&'static str),
}
use Part::{Runs, Says};

const STORY: &[Part] = &[
    Says(
        "# A key's life, from the command line\n\nA customer's key from `openssl` to *erased*. Three \
         people: the **operator** runs the store, the **customer** owns the key, the **auditor** wants \
         proof. This page is what the tool prints, run line by line by `tests/operator.rs`; ids, times, \
         durations and sizes are stand-ins, and the progress of rotations on stderr is left \
         out.\n\n## A store and an org\n\nThe operator makes a store. The root key \
         wraps everything in it: keep a copy where you will find it. An org starts under a platform \
         key of its own.",
    ),
    Runs("export BYOKV_DATA=data BYOKV_ROOT_KEY_FILE=root.key"),
    Runs("byokv init --new-root-key-file root.key"),
    Runs("byokv org create acme --byok"),
    Runs(
        "for i in $(seq 500); do echo '{\"name\":\"clusters/'$i'/token\",\"value\":\"s3cret-'$i'\"}'; done | byokv import acme --format jsonl",
    ),
    Runs("byokv get acme clusters/7/token"),
    Says(
        "## The key travels sealed\n\nThe operator makes a token for the customer. It is public, takes one key, and expires.",
    ),
    Runs("byokv key import-token acme > token.txt"),
    Says(
        "The customer makes a key, notes its fingerprint, and seals it under the token, on a machine \
         that needs no store. The fingerprint goes to the operator by another channel. It is \
         HMAC-SHA-256, which Python computes too, here without showing the key in its arguments:",
    ),
    Runs("openssl rand -base64 32 > acme.key; chmod 600 acme.key"),
    Runs("byokv key fingerprint --file acme.key | tee announced.txt"),
    Runs(
        "python3 -c 'import base64, hmac, sys; print(hmac.digest(base64.b64decode(sys.stdin.read()), b\"byokv fingerprint v1\", \"sha256\")[:16].hex())' < acme.key",
    ),
    Runs("byokv key wrap --token \"$(cat token.txt)\" --file acme.key > acme.sealed"),
    Says(
        "## Rotation\n\nThe operator provisions it, and refuses any other key than the one whose \
         fingerprint was announced: what the customer told stands in `announced.txt`. Five steps happen, in this order: the key is **installed** in the \
         keyring, durably; it is **activated**, so that every new value uses it; the records of \
         before are **rewritten**; an independent count **verifies** that none is left under the old \
         key; the old key is **retired**, which means destroyed. The certificate says so. It can be \
         killed at any moment and goes on by itself.",
    ),
    Runs(
        "byokv key provision acme --sealed --file acme.sealed --expect-fingerprint $(cat announced.txt)",
    ),
    Runs("byokv key list acme"),
    Runs("byokv rotation status"),
    Says("A sealed key works once, and so does a key:"),
    Runs("byokv key provision acme --sealed --file acme.sealed"),
    Runs("byokv key provision acme --file acme.key"),
    Says(
        "## The next key, held before it goes\n\nThe customer asks that the old key waits for a word of the operator before it is destroyed.",
    ),
    Runs("byokv org policy acme --retire manual --rotate-after-age 90d"),
    Runs("openssl rand -base64 32 > next.key; chmod 600 next.key"),
    Runs("byokv key provision acme --file next.key"),
    Runs("byokv key list acme"),
    Says(
        "A weaker policy destroys nothing by itself: it is for keys that are replaced later. What is held \
         waits for the operator's word.",
    ),
    Runs("byokv org policy acme --retire immediate"),
    Runs("byokv key retire acme"),
    Says(
        "## The kill switch\n\nSuspended, the org's records cannot be read by anybody, nor written or deleted, until the same key is given back. What a rotation has not brought under that key yet can; the tool says how much.",
    ),
    Runs("byokv key suspend acme --yes"),
    Runs("byokv get acme clusters/7/token"),
    Runs("byokv key resume acme --file next.key"),
    Runs("byokv get acme clusters/7/token"),
    Says(
        "## From retired to erased\n\nsled appends: what retired keys sealed still lies in its files. Nobody has their keys, but who kept a copy of one could open it. Say how much, erase it, and search again. Each certificate lists what erasing does not reach; where the file system does not write in place, that is said too.",
    ),
    Runs("byokv key erase --dry-run"),
    Runs("byokv key erase"),
    Runs("byokv key erase --dry-run"),
    Says(
        "## Backup\n\nA backup shows one moment of the store, which works on meanwhile. It is sealed under a \
         key of its own, holds every value and no key of any org. Restored, here into another store, \
         each org is under a new key with a higher number; what a customer's key was once used for \
         is not forgotten.",
    ),
    Runs("(umask 077; byokv keygen > backup.key)"),
    Runs("byokv backup --key-file backup.key --out monday.backup"),
    Runs("byokv backup show --key-file backup.key monday.backup"),
    Runs("byokv --data elsewhere init"),
    Runs("byokv --data elsewhere restore --key-file backup.key monday.backup"),
    Runs("byokv --data elsewhere key list acme"),
    Runs("byokv --data elsewhere verify --deep"),
    Runs("byokv --data elsewhere key provision acme --file next.key"),
    Says(
        "## For the auditor\n\nEvery record opens, every certificate is true of this store, and the log of every change of a key has no gap. The first retirements are superseded: the erasure of the same keys says more.",
    ),
    Runs("byokv verify --deep"),
    Runs("byokv certificate list"),
    Runs(
        "byokv --json certificate list > certificates.json; byokv certificate verify certificates.json",
    ),
    Runs("byokv audit"),
    Says(
        "## The store that is meant\n\nWhoever works with a store should open that one and make no other: a program opens it with `Options::create(false)`, better with `expect_store` and the id that `init` printed. The store notices when parts of it go back in time, and cannot notice when all of it does, or when the directories of two stores under one root key are exchanged: keep its position elsewhere now and then. `BYOKV_STORE_ID` and `BYOKV_MINIMUM_POSITION` hold for every command.\n\nThe directory is its owner's alone, mode 0700. A store that others could write is refused; `byokv doctor` lists every mode, and `chmod -R go-rwx` on the directory is what lets it open again, with `byokv verify --deep` after it.",
    ),
    Runs("byokv status"),
    Runs("byokv --expect-store 0123456789abcdef0123456789abcdef org list"),
    Runs("byokv --minimum-position $(byokv status | sed -n 's/^position *//p') org list"),
    Says(
        "## The clock\n\nNobody ends a hold, or keeps a key from being due, by setting this machine's clock: what counts is the time that the store has observed. That is the time in which it was open, and of each gap between two openings a day at most. `byokv key list` says how much of it a hold still lasts. Jumps of the clock stand in the audit log. Where the machine was really off for longer than a day, `byokv doctor` says how much is not counted, and a word counts it. While the clock is behind the audit log, as after it was set ahead and back again, new entries repeat the last one's time and say beside it what the clock showed.",
    ),
    Runs("byokv clock status | tail -n 1"),
    Runs("byokv clock confirm"),
    Says(
        "## The org leaves\n\nWhich backups hold it, the store knows: it keeps a register of all that it made. Its keys \
         are destroyed first, then its records deleted. Neither reaches a backup, so the certificate names each, with \
         the key that reads it: destroy these, or their key. An org whose policy refuses backups (`byokv org policy acme \
         --backups refuse`) is left out of them.",
    ),
    Runs("byokv backup list acme"),
    Runs("byokv org delete acme --yes"),
    Runs("byokv org list"),
    Runs("byokv doctor"),
    Says(
        "## A root key has leaked\n\nSomebody may have a root key and a copy of the data directory from its \
         time: from a stolen disk, a backup of the machine, somebody who has left. Whatever is in that copy \
         can be read for ever, and no command takes it back. What can be ended is that they forge proofs \
         which the store takes for its own, and that they read what is written from now on. These two orgs \
         stand for those of your store.",
    ),
    Runs("byokv org create umbra"),
    Runs("byokv org create acme --byok"),
    Runs("openssl rand -base64 32 > third.key; chmod 600 third.key"),
    Runs("byokv -q key provision acme --file third.key > certificate.txt"),
    Says(
        "1. **Close the way** by which it leaked: a new root key does not help while they still read the \
         disk. Stop what has the store open.\n\
         2. **Keep a copy** of `byokv --json audit` and `byokv --json certificate list` elsewhere: with the \
         old secret they may have been changed already. Compare the end of the log (`byokv audit --verify`) \
         with one that you noted before the leak, if you have one.\n\
         3. **Change the root key as compromised.** A plain `root-key change` is not enough: it leaves the \
         store's secret, from which proofs are made, as the copy has it. This copies the database, so it \
         needs as much free space as that takes. Import tokens of before are withdrawn, and with \
         `--rotate-keys` each org with a platform key gets a new one.",
    ),
    Runs(
        "byokv root-key change --compromised --rotate-keys --generate --new-root-key-file next-root.key",
    ),
    Runs("mv next-root.key root.key"),
    Says(
        "4. **Replace every key that the copy has.** Those of the platform rotate now; wait for them. A \
         customer's key can only be replaced by its owner: tell each customer that the old key is known to \
         somebody, and ask for a new one, under a new import token.",
    ),
    Runs("byokv -q rotation wait > certificates.txt"),
    Runs("openssl rand -base64 32 > fourth.key; chmod 600 fourth.key"),
    Runs("byokv -q key provision acme --file fourth.key > certificate.txt"),
    Says(
        "5. **Erase the residue**: who has the copy has the keys of what still lies in the database's \
         files.\n\
         6. **Back up under another backup key.** Backup keys are not in the store, but what a backup holds \
         is as old as it is; keep the old ones where the copy's finder cannot get them, or destroy them.\n\
         7. **Look**: `doctor` names each key of the copy that is still in use. The log tells when it was \
         done, and certificates from before count as they did.",
    ),
    Runs("byokv -q key erase > certificates.txt"),
    Runs("byokv audit --verify"),
    Runs("byokv doctor | grep -v -e syncs -e 'file system'"),
];

/// Replaces what is random by stand-ins that are the same in every run.
fn settle(text: &str, root: &Path, seen: &mut HashMap<String, usize>) -> String {
    let text = text.replace(&format!("{}/", root.display()), "");
    let mut settled = String::new();
    let mut word = String::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || "+/=-_.:µ".contains(c);
    for c in text.chars().chain(['\n']) {
        if is_word(c) {
            word.push(c);
            continue;
        }
        settled += &stand_in(&std::mem::take(&mut word), seen);
        settled.push(c);
    }
    settled.pop();
    settled
}

fn stand_in(word: &str, seen: &mut HashMap<String, usize>) -> String {
    // A store's position: its id, and two figures.
    if let Some((id, figures)) = word.split_once(':')
        && id.len() == 32
        && !figures.is_empty()
    {
        // How often the store was synced depends on the machine.
        return format!("{}:19:24", stand_in(id, seen));
    }
    let core = word.trim_end_matches([':', '.', ',']);
    let tail = &word[core.len()..];
    let is_hex = [32, 64].contains(&core.len()) && core.bytes().all(|b| b.is_ascii_hexdigit());
    let is_time = core.len() == 20 && core.ends_with('Z') && core.as_bytes()[10] == b'T';
    let is_base64 = core.len() == 44 && core.ends_with('=');
    let duration = ["µs", "ms", "s"].iter().any(|unit| {
        core.strip_suffix(unit).is_some_and(|n| n.contains('.') && n.parse::<f64>().is_ok())
    });
    if is_time {
        return format!("2026-01-01T00:00:00Z{tail}");
    }
    if duration || core.contains("ms") && core.trim_end_matches("ms").parse::<f64>().is_ok() {
        return format!("1.5ms{tail}");
    }
    if !(is_hex || is_base64) {
        return word.to_owned();
    }
    let next = seen.len() + 1;
    let number = *seen.entry(core.to_owned()).or_insert(next);
    let width = core.len();
    if is_hex { format!("{number:0width$x}{tail}") } else { format!("{number:043}={tail}") }
}

/// What the tool adds where the file system does not write in place: the page is of one that does.
fn is_of_another_file_system(line: &str) -> bool {
    line.starts_with("    - Old blocks of the files")
        || line.trim_start().starts_with("do: keep the store on a file system")
}

/// Figures that depend on how sled laid out its files, and on the machine's disk.
fn blur(line: &str) -> String {
    if line.split_whitespace().skip(1).take(2).eq(["file", "system"]) {
        return "fine    file system   ext4, which writes in place".to_owned();
    }
    let mut line = line.to_owned();
    if line.starts_with("acme  v")
        && !line.contains("active")
        && line.split_whitespace().count() == 4
    {
        let row: Vec<_> = line.split_whitespace().collect();
        return format!("{}  {}   1234       12345", row[0], row[1]);
    }
    for (before, after) in [
        ("files had ", " bytes"),
        ("and have ", " now"),
        ("at most ", " bytes"),
        ("acme: ", " envelopes"),
        ("", " envelopes of retired keys erased"),
        ("envelopes erased   ", ""),
        ("rewritten, ", "/s"),
        ("disk", " MiB free"),
        ("database  ", " KiB"),
    ] {
        let Some(start) = line.find(before).map(|at| at + before.len()) else { continue };
        let Some(len) =
            (if after.is_empty() { Some(line.len() - start) } else { line[start..].find(after) })
        else {
            continue;
        };
        let figure = &line[start..start + len];
        if figure.trim().parse::<f64>().is_ok() {
            let spaces: String = figure.chars().take_while(|c| *c == ' ').collect();
            line.replace_range(start..start + len, &format!("{spaces}1234"));
        }
    }
    line
}

#[test]
fn the_operators_page_is_what_the_tool_prints() {
    let missing = ["openssl", "python3"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--help").output().is_err());
    if let Some(tool) = missing {
        eprintln!("no {tool} on this machine: the page is not compared");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_byokv"), bin.join("byokv")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut seen = HashMap::new();
    let mut page = String::new();
    let mut in_block = false;
    for part in STORY {
        match part {
            Says(prose) => {
                if std::mem::take(&mut in_block) {
                    page += "```\n\n";
                }
                page += &format!("{prose}\n\n");
            }
            Runs(line) => {
                if !std::mem::replace(&mut in_block, true) {
                    page += "```console\n";
                }
                let output = Command::new("sh")
                    .args(["-c", &format!("umask 077; {{ {line}; }} 2>&1")])
                    .current_dir(dir.path())
                    .env_clear()
                    .env("PATH", &path)
                    .env("BYOKV_DATA", "data")
                    .env("BYOKV_ROOT_KEY_FILE", "root.key")
                    .output()
                    .unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let text = settle(&text, dir.path(), &mut seen);
                page += &format!("$ {line}\n");
                let is_progress = |line: &&str| {
                    let phases =
                        ["queued", "rewriting", "verifying", "retiring", "erasing", "held", "done"];
                    phases.iter().any(|phase| line.starts_with(&format!("acme: {phase}")))
                };
                let lines = text.lines().filter(|line| !is_progress(line));
                for line in lines.filter(|line| !is_of_another_file_system(line)) {
                    page += &format!("{}\n", blur(line).trim_end());
                }
            }
        }
    }
    page += "```\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operator.md");
    if std::env::var_os("BYOKV_OVERWRITE").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    for (line, (is, was)) in page.lines().zip(written.lines()).enumerate() {
        assert_eq!(
            is,
            was,
            "docs/operator.md, line {}; BYOKV_OVERWRITE=1 writes it anew",
            line + 1
        );
    }
    assert_eq!(page.lines().count(), written.lines().count());
}
