//! What the tool writes and reads as dotenv, against the real readers: bash, node, python-dotenv,
//! dotenvy and Docker's own command. A reader that is missing is said to be, and is not compared.
//!
//! python-dotenv is looked for in `target/dotenv`, where `.ci/run` installs it.

#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "dotenv/readers.rs"]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};

use byokv::OrgPolicy;
use common::shell::Shell;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use readers::{Bytes, Docker, READERS, Variables, assert_same, is_there, read};

/// Text of the pieces that some reader treats in a way of its own.
fn text(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(pieces), 0..8).prop_map(|pieces| pieces.concat())
}

const PLAIN: &[&str] =
    &["a", "Z", "0", "_", ".", "/", ":", "@", "%", "+", ",", "-", "=", "^", "export", "A=1"];

const PIECES: &[&str] = &[
    "a",
    "Z",
    "0",
    "=",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\r",
    "\r\n",
    "#",
    " #",
    "# ",
    "'",
    "\"",
    "`",
    "$",
    "${A}",
    "$A",
    "$(x)",
    "\\",
    "\\n",
    "\\\\",
    "\\'",
    "\\\"",
    "\\$",
    "~",
    "!",
    "*",
    "?",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "<",
    ">",
    "&",
    "|",
    ";",
    "\u{1}",
    "\u{7f}",
    "\u{1b}",
    "\u{b}",
    "\u{c}",
    "\u{1c}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "\u{a0}",
    "\u{3000}",
    "ä",
    "€",
    "😀",
    "export ",
    "\nB=2",
    "\nexport C='3'",
    "'x'",
    "\"x\"",
    "\n#",
];

fn values(count: usize) -> Vec<String> {
    let strategy = prop_oneof![1 => text(PLAIN), 6 => text(PIECES)];
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Stores the values, exports all that are not refused, and returns the file.
fn export(shell: &Shell, values: &[String], format: &str) -> (PathBuf, Variables) {
    let mut expected = Variables::new();
    {
        let store = shell.open();
        let org = store.create_org(format, OrgPolicy::byok()).unwrap();
        for (i, value) in values.iter().enumerate() {
            org.put(format!("V{i}"), value).unwrap();
            expected.insert(format!("V{i}").into_bytes(), value.clone().into_bytes());
        }
    }
    let file = shell.path(&format!("{format}.env"));
    loop {
        let output = shell.run(&format!("export {format} --format {format}"), b"");
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            fs::write(&file, output.stdout).unwrap();
            return (file, expected);
        }
        assert_eq!(output.stdout, b"", "{said}");
        assert!(said.contains("--format jsonl"), "{said}");
        let store = shell.open();
        let org = store.org(format).unwrap();
        let named = said.lines().filter_map(|line| line.strip_prefix("  \"")?.split_once("\": "));
        let mut refused = 0;
        for (name, _) in named {
            org.delete(name).unwrap();
            refused += usize::from(expected.remove(name.as_bytes()).is_some());
        }
        assert!(refused > 0, "{said}");
    }
}

#[test]
fn every_reader_takes_an_export_as_it_is_stored() {
    let shell = Shell::new();
    let values = values(400);
    let (file, expected) = export(&shell, &values, "dotenv");
    assert!(expected.len() > 150, "of 400 values only {} are written", expected.len());
    for reader in READERS.into_iter().filter(|reader| is_there(reader)) {
        assert_same(reader, &read(reader, &file), &expected);
    }
    // And by the tool itself.
    shell.fine("org create back");
    let back = shell.run("import back --format dotenv", &fs::read(&file).unwrap());
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
}

#[test]
fn docker_takes_what_is_written_for_it_and_what_has_no_quotes() {
    if !is_there("docker") {
        return;
    }
    let (shell, docker) = (Shell::new(), Docker::new());
    let (file, expected) = export(&shell, &values(400), "docker");
    assert!(expected.len() > 150, "of 400 values only {} are written", expected.len());
    assert_same("docker", &docker.read(&file), &expected);
    shell.fine("org create back");
    let back = shell.run("import back --format docker", &fs::read(&file).unwrap());
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let store = shell.open();
    for (name, value) in &expected {
        assert_eq!(Bytes(&store.org("back").unwrap().get(name).unwrap().unwrap()), Bytes(value));
    }
    drop(store);

    let mut runner = TestRunner::deterministic();
    let plain: Vec<_> =
        (0..50).map(|_| text(PLAIN).new_tree(&mut runner).unwrap().current()).collect();
    let (file, expected) = export(&shell, &plain, "dotenv");
    assert_eq!(expected.len(), 50);
    assert_same("docker", &docker.read(&file), &expected);
}

/// Records as people write them, many of them badly.
fn lines(count: usize) -> Vec<String> {
    const START: &[&str] = &["", "", "", "", "", "", " ", "export ", "\t", "export  "];
    const EQUAL: &[&str] = &["=", "=", "=", "=", "=", " =", "= ", "=  ", "==", ": ", ""];
    const QUOTE: &[&str] = &["", "", "'", "'", "\"", "\"", "`"];
    const END: &[&str] =
        &["", "", "", " ", "\t ", " # c", "\t# it's", " #\"", "#c", "\r", " x", ";"];
    const COMMENT: &[&str] = &["", "", "", "", "# don't\n", "# \"\n", "\n", "#A=1\n", "\n\n"];
    let select = |pieces| prop::sample::select(pieces);
    let value = prop_oneof![2 => text(PLAIN), 2 => text(PIECES), 1 => text(&["a", "b c", "\\n", "$A", "'", "\"", "#"])];
    let strategy =
        (select(COMMENT), select(START), select(EQUAL), select(QUOTE), value, select(END));
    let mut runner = TestRunner::deterministic();
    let line = |i| {
        let (comment, start, equal, quote, value, end) =
            strategy.new_tree(&mut runner).unwrap().current();
        format!("{comment}{start}N{i}{equal}{quote}{value}{quote}{end}\n")
    };
    (0..count).map(line).collect()
}

#[test]
fn an_import_stores_what_every_reader_takes_or_refuses_the_file() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let mut lines = lines(500);
    let file = shell.path("import.env");
    loop {
        let text = lines.concat();
        fs::write(&file, &text).unwrap();
        let (code, said) = shell.refused("import acme --format dotenv import.env", b"");
        if code == 0 {
            break;
        }
        let number = said.strip_prefix("error: line ").and_then(|said| said.split_once(": "));
        let number: usize = number.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap();
        assert!(said.contains("nothing was written"), "{said}");
        // The candidate in which that line is.
        let mut seen = 0;
        let at = lines.iter().position(|line| {
            seen += line.matches('\n').count();
            seen >= number
        });
        lines.remove(at.unwrap());
    }
    assert!(lines.len() > 80, "of 500 lines only {} are taken", lines.len());
    let store = shell.open();
    let stored: Variables = store
        .org("acme")
        .unwrap()
        .scan("")
        .map(|record| record.unwrap())
        .map(|record| (record.name.to_vec(), record.value.to_vec()))
        .collect();
    for reader in READERS.into_iter().filter(|reader| is_there(reader)) {
        let (mut stored, mut read) = (stored.clone(), read(reader, &file));
        if reader == "bash" {
            // It takes the carriage return of a line's end for a part of the value.
            for value in read.values_mut().filter(|value| value.ends_with(b"\r")) {
                value.pop();
            }
        }
        if reader == "node" {
            // node 20 finds no name behind a tab, two spaces, a line of spaces or an indented
            // comment. It takes no other value for it.
            stored.retain(|name, _| read.contains_key(name));
            assert!(stored.len() * 3 > lines.len() * 2, "{} of {}", stored.len(), lines.len());
        }
        assert_same(reader, &read, &stored);
    }
}

#[test]
fn an_import_changes_no_value() {
    let shell = Shell::new();
    shell.fine("org create acme");
    for (line, what) in [
        ("J={\"user\":\"app\"}", "a quotation mark"),
        ("J=\"{\"user\":\"app\"}\"", "closing quote"),
        ("LOGIN=CORP\\nora", "a backslash"),
        ("LOGIN=\"CORP\\nora\"", "a backslash"),
        ("A=one two", "a space"),
        ("A=a#b", "`#`"),
        ("A=$B", "`$`"),
        ("A=\"$B\"", "`$`"),
        ("A='${B}'", "`${`"),
        ("A='\\\\server'", "two backslashes"),
        ("A=\"`id`\"", "a backtick"),
        ("A=  ", "space behind `=`"),
        ("A='a\r\nb'", "carriage return"),
        ("A=a\rB=b", "carriage return"),
        ("A='a", "is not closed"),
    ] {
        let file = format!("FIRST=1\n{line}\n");
        let (code, said) = shell.refused("import acme --format dotenv", file.as_bytes());
        assert_eq!(code, 1, "{line}: {said}");
        assert!(said.starts_with("error: line 2: ") && said.contains(what), "{line}: {said}");
        assert!(said.contains("nothing was written") && !said.contains("user"), "{line}: {said}");
    }
    assert_eq!(shell.fine("list acme"), "");
    // All of them are named at once.
    let (_, said) = shell.refused("import acme --format dotenv", b"A=1 2\nB='x'\nC=3\\\nD=\"$\"\n");
    let lines: Vec<_> = said.lines().map(|line| line.trim_start_matches("error:").trim()).collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, start) in lines.iter().zip(["line 1: A: ", "line 3: C: ", "line 4: D: "]) {
        assert!(line.starts_with(start), "{said}");
    }
}

#[test]
fn a_name_that_comes_twice_is_refused_unless_the_last_wins() {
    let shell = Shell::new();
    shell.fine("org create acme");
    let json = b"{\"name\":\"a\",\"value\":\"1\"}\n\n{\"name_base64\":\"YQ==\",\"value\":\"2\"}\n\
                 {\"name\":\"b\",\"value\":\"3\"}\n";
    for (format, file) in
        [("dotenv", &b"a=1\n\na='2'\nb=3\n"[..]), ("docker", b"a=1\n\na=2\nb=3\n"), ("jsonl", json)]
    {
        let line = format!("import acme --prefix {format}/ --format {format}");
        let (code, said) = shell.refused(&line, file);
        assert_eq!(code, 1);
        let refused = format!("error: line 3: the record \"{format}/a\" stands in line 1 already");
        assert!(said.starts_with(&refused) && said.contains("nothing was written"), "{said}");
        assert_eq!(shell.fine(&format!("list acme {format}/")), "");
        let last = shell.run(&format!("{line} --last-wins"), file);
        let said = String::from_utf8(last.stdout).unwrap();
        assert_eq!(said, "2 records imported; 1 passed over, whose names came again\n");
        assert_eq!(shell.fine(&format!("get acme {format}/a")), "2");
        assert_eq!(shell.fine(&format!("list acme {format}/")).lines().count(), 2);
        let last = shell.run(&format!("--json {line} --last-wins"), file);
        let said: serde_json::Value = serde_json::from_slice(&last.stdout).unwrap();
        assert_eq!((&said["records"], &said["passed_over"]), (&2.into(), &1.into()));
    }
}

#[test]
fn an_export_writes_all_or_nothing_and_names_what_it_cannot_write() {
    let shell = Shell::new();
    shell.fine("org create acme");
    for name in ["A", "B", "C", "RANDOM", "BASH_ENV", "a/b", "1A"] {
        shell.run(&format!("put acme {name}"), b"1");
    }
    shell.run("put acme C", b"a\\\\b");
    shell.run("put acme D", b"\xff");
    shell.run("put acme E", &vec![b'x'; 64 << 10]);
    let output = shell.run("export acme --format dotenv", b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
    assert!(said.contains("7 records cannot be written") && said.contains("jsonl"), "{said}");
    for name in ["C", "RANDOM", "BASH_ENV", "a/b", "1A", "D", "E"] {
        assert!(said.contains(&format!("\n  \"{name}\": ")), "{said}");
    }
    let output = shell.run("export acme --format docker", b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty() && said.contains("2 records cannot be written"), "{said}");
    for name in ["C", "RANDOM", "BASH_ENV", "a/b", "1A", "D", "E"] {
        shell.fine(&format!("delete acme {name}"));
    }
    assert_eq!(shell.fine("export acme --format dotenv"), "A=1\nB=1\n");
    shell.run("put acme B", b"a b");
    let output = shell.run("export acme --format dotenv", b"");
    assert_eq!(output.stdout, b"A=1\nB='a b'\n");
    assert!(String::from_utf8(output.stderr).unwrap().contains("--format docker"));
}

/// In a cell of a table.
fn code(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\n', "⏎").replace('\r', "␍");
    match text.as_str() {
        "" => "empty".to_owned(),
        text if text.contains('`') => format!("`` {text} ``"),
        text => format!("`{text}`"),
    }
}

/// A row of a table.
struct Row {
    name: String,
    first: String,
    ours: String,
    line: String,
    /// Nothing is stored of what is refused.
    value: Option<Vec<u8>>,
    /// Whether it stands in a file with others.
    is_fine: bool,
}

/// The rows, with what each reader makes of the lines.
fn table(docker: &Docker, dir: &Path, rows: &[Row]) -> String {
    let file = dir.join("table.env");
    let readings = |text: String| -> Vec<Variables> {
        fs::write(&file, text).unwrap();
        READERS.iter().map(|reader| read(reader, &file)).chain([docker.read(&file)]).collect()
    };
    let fine = rows.iter().filter(|row| row.is_fine).map(|row| row.line.clone());
    let together = readings(fine.collect());
    let mut table = String::new();
    for Row { name, first, ours, line, value, is_fine } in rows {
        let alone = if *is_fine { Vec::new() } else { readings(line.clone()) };
        let readings = if *is_fine { &together } else { &alone };
        let cells: Vec<_> = readings
            .iter()
            .map(|read| match read.get(name.as_bytes()) {
                Some(read) if Some(read) == value.as_ref() => "same".to_owned(),
                Some(read) => code(read),
                None => "none".to_owned(),
            })
            .collect();
        table += &format!("| {first} | {ours} | {} |\n", cells.join(" | "));
    }
    table
}

const PAGE: &str = "\
# dotenv files

`byokv export --format dotenv` writes what bash (`set -a; . ./.env`), node (`--env-file`, 20.12 or
newer), python-dotenv and dotenvy read alike, to exactly the bytes that are stored. Values of
letters, digits and `_ . / : @ % + , - = ^` stand without quotes, and Docker's `--env-file` reads
those too; all others stand in single quotes, or in double quotes if there is a single quote in them
and none of `\" \\ $` and the backtick. Whatever readers would not read alike is refused, with the
names of the records, and nothing is written: `--format jsonl` holds every record. Names that are no
variables of a shell are refused too, and those to which bash or node give a value of their own
(`UID`, `RANDOM`, `SECONDS`, …). A line has at most 64 KiB.

`--format docker` writes for Docker's `--env-file`, which takes quotes for a part of the value: each
line is a name, `=` and the value as it is. A value with a line break or a carriage return is refused.

`tests/dotenv.rs` runs the real readers over hundreds of generated values, and writes the tables of this
page.

## Values that are exported

What each reader makes of the line; for a value that is refused, of the line that would be next at
hand. ⏎ is a line break, ␍ a carriage return.

| value | the line after `N=` | bash | node | python-dotenv | dotenvy | Docker |
|---|---|---|---|---|---|---|
";

const IMPORTS: &str = "
## Lines that are imported

`byokv import --format dotenv` stores a value exactly as it stands, without its quotes, or refuses
the file and names each line and variable. A line is taken only if bash, node, python-dotenv and
dotenvy give the variable the same value; node 20 does not find a variable at all behind an indented
comment or a tab. Lines may end as on Windows, which bash alone does not take. Nothing is replaced:
no `$`, no backslash. What refuses a value says how to write it: mostly in single quotes. Files that
were written for Docker are read with `--format docker`. A name that comes twice is refused, in every
format, unless `--last-wins` is given.

| line | stored | bash | node | python-dotenv | dotenvy | Docker |
|---|---|---|---|---|---|---|
";

/// `docs/dotenv.md` is what the readers do. With `BYOKV_OVERWRITE=1` it is written anew.
#[test]
fn the_page_is_what_the_readers_do() {
    let there: Vec<_> =
        READERS.into_iter().chain(["docker"]).filter(|reader| is_there(reader)).collect();
    if there.len() < 5 {
        return;
    }
    let (shell, docker) = (Shell::new(), Docker::new());
    let values = [
        "",
        "s3cret",
        "a+b/c==",
        "pa#word",
        "two words",
        " spaces ",
        "a\nb",
        "it's",
        "say \"hi\"",
        "p`id`w",
        "$A",
        "a${A}",
        "$(id)",
        "a\\nb",
        "C:\\dir",
        "\\\\server",
        "dir\\",
        "{\"user\":\"app\"}",
        "a=b&c;d",
        "~/x",
        "don't \"x\"",
        "a\r\nb",
        "€",
    ];
    let stored: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    let (exported, written) = export(&shell, &stored, "dotenv");
    let exported = format!("\n{}", fs::read_to_string(exported).unwrap());
    let rows = values.iter().enumerate().map(|(i, value)| {
        let name = format!("V{i}");
        let line = |text: &str| format!("{name}={text}\n");
        let (line, ours) = if written.contains_key(name.as_bytes()) {
            let start = format!("\n{name}=");
            let text = exported.split_once(&start).unwrap().1;
            let text = text.split("\nV").next().unwrap().trim_end_matches('\n');
            (line(text), code(text.as_bytes()))
        } else {
            let quoted = if value.contains('\'') {
                format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                format!("'{value}'")
            };
            (line(&quoted), format!("refused; {}", code(quoted.as_bytes())))
        };
        let value = value.as_bytes().to_vec();
        let is_fine = !ours.starts_with("refused");
        Row { name, first: code(&value), ours, line, value: Some(value), is_fine }
    });
    let rows: Vec<_> = rows.collect();
    let mut page = PAGE.to_owned() + &table(&docker, shell.dir.path(), &rows) + IMPORTS;

    let lines = [
        "=s3cret",
        "=",
        "='two words' # comment",
        "=\"it's\"",
        "=a&b",
        "='a\nb'",
        "=two words",
        "= s3cret",
        "=a#b",
        "=a # b",
        "={\"user\":\"app\"}",
        "=CORP\\nora",
        "=\"CORP\\nora\"",
        "='CORP\\nora'",
        "='\\\\server'",
        "=$A",
        "=\"$A\"",
        "='a${A}'",
        "=\"p`echo`w\"",
        "=~/x",
        "=a;b",
        "='a'b",
        "=\"a\\\"b\"",
        "='a\r\nb'",
    ];
    shell.fine("org create acme");
    let rows = lines.iter().enumerate().map(|(i, line)| {
        let name = format!("N{i}");
        let line = format!("{name}{line}\n");
        let imported = shell.run("import acme --format dotenv", line.as_bytes());
        let value = imported.status.success().then(|| shell.run(&format!("get acme {name}"), b""));
        let value = value.map(|output| output.stdout);
        let first = code(line.trim_end_matches('\n').replacen(&name, "N", 1).as_bytes());
        let ours = value.as_ref().map_or("refused".to_owned(), |value| code(value));
        let is_fine = value.is_some();
        Row { name, first, ours, line, value, is_fine }
    });
    let rows: Vec<_> = rows.collect();
    page += &table(&docker, shell.dir.path(), &rows);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dotenv.md");
    if std::env::var_os("BYOKV_OVERWRITE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    for (is, was) in page.lines().zip(written.lines()) {
        assert_eq!(is, was, "docs/dotenv.md; BYOKV_OVERWRITE=1 writes it anew");
    }
    assert_eq!(page.lines().count(), written.lines().count());
}
