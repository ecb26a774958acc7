//! Holds the house: arrows downwards, sled named in one file, files of a readable size.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use byokv::failpoint;

/// Floor of each module; a folder is one module. See `docs/design.md`.
const FLOORS: &[(&str, u32)] = &[
    ("id", 0),
    ("error", 0),
    ("observe", 0),
    ("text", 0),
    ("time", 0),
    ("json", 0),
    ("policy", 1),
    ("process", 1),
    ("failpoint", 0),
    ("material", 1),
    ("disk", 1),
    ("envelope", 2),
    ("sealed", 2),
    ("import", 2),
    ("keyring", 3),
    ("storage", 3),
    ("mark", 3),
    ("audit", 3),
    ("engine", 4),
    ("gate", 4),
    ("backup", 5),
    ("rotation", 5),
    ("org", 6),
    ("admin", 6),
    ("store", 7),
    ("fuzzing", 7),
    ("lib", 8),
    ("bin", 8),
];

/// Public for tests and fuzzing only; the tool has to do without.
const HIDDEN: &[&str] = &["failpoint", "fuzzing"];

/// Siblings that may be imported: `(who, whom)`.
const SIBLINGS: &[(&str, &str)] = &[
    ("engine", "gate"),
    ("error", "id"),
    ("error", "text"),
    ("error", "time"),
    ("observe", "id"),
    ("time", "failpoint"),
    ("sealed", "envelope"),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["src", "tests", "examples"]
        .iter()
        .flat_map(|folder| walkdir::WalkDir::new(root.join(folder)))
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root).unwrap().to_owned(), text)
        })
        .collect()
}

fn floor(module: &str) -> u32 {
    let known = FLOORS.iter().find(|(name, _)| *name == module);
    known.unwrap_or_else(|| panic!("{module} has no floor")).1
}

#[test]
fn imports_point_downwards_and_siblings_are_strangers() {
    for (path, text) in sources() {
        let Ok(inside) = path.strip_prefix("src") else { continue };
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let name = |c: char| !c.is_ascii_lowercase() && c != '_';
                let used = used.split(name).next().unwrap();
                if used.is_empty() || used == module {
                    continue;
                }
                let allowed = floor(used) < floor(module) || SIBLINGS.contains(&(module, used));
                assert!(allowed, "{}: {module} imports {used}: {line}", path.display());
            }
        }
    }
}

/// `crate::` would be the tool itself there, which the floors know nothing of.
#[test]
fn the_tool_uses_the_public_api_only() {
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("src/bin")) {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let hidden: Vec<_> = words.filter(|word| HIDDEN.contains(word)).collect();
        assert!(hidden.is_empty(), "{} uses {hidden:?}", path.display());
        assert!(!text.contains("crate::"), "{}", path.display());
        assert!(text.lines().count() <= 300, "{} is long", path.display());
    }
}

#[test]
fn files_open_with_their_purpose_and_stay_short() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
        let lines = text.lines().count();
        assert!(lines <= 550, "{} has {lines} lines", path.display());
    }
}

#[test]
fn sled_is_named_in_one_file() {
    for (path, text) in sources() {
        if path.starts_with("src") && !path.starts_with("src/storage/sled") {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code.filter(|line| line.contains("sled::")) {
                assert!(line.contains("self::sled::"), "{}: {line}", path.display());
            }
        }
    }
}

/// Anybody who may set the wall clock can make it show anything, so one file reads it.
#[test]
fn the_wall_clock_is_read_in_one_file() {
    for (path, text) in sources() {
        if path.starts_with("src") && path != Path::new("src/time.rs") {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let reads =
                    ["SystemTime::now", "UNIX_EPOCH.elapsed"].map(|call| line.contains(call));
                assert_eq!(reads, [false, false], "{}: {line}", path.display());
            }
        }
    }
}

/// `tests/points.rs` kills at each point of the lists.
#[test]
fn every_fail_point_is_listed() {
    for (path, text) in sources() {
        if path.starts_with("src") {
            for point in text.split("failpoint::reach(\"").skip(1) {
                let point = point.split('"').next().unwrap();
                assert!(failpoint::LISTS.concat().contains(&point), "{}: {point}", path.display());
            }
        }
    }
}

/// What an error repeats may be anything that somebody typed or that stood on a disk.
#[test]
fn every_error_escapes_what_it_repeats() {
    let mut seen = 0;
    for (path, text) in sources() {
        if !path.starts_with("src/error") && !path.starts_with("src/error.rs") {
            continue;
        }
        for variant in text.split("    #[error(").skip(1) {
            let variant = variant.split("\n}\n").next().unwrap();
            let Some((message, fields)) = variant.split_once(")]\n") else { continue };
            assert!(!message.contains(".display()"), "{}: {message}", path.display());
            let strings: Vec<_> = fields.split(": String,").collect();
            for field in strings.iter().rev().skip(1) {
                let field = field.split(" ").last().unwrap();
                if message.contains(&format!("{{{field}}}")) {
                    seen += 1;
                    let is_escaped = ["escape", "clean"]
                        .iter()
                        .any(|with| message.contains(&format!("{field} = {with}(.{field}")));
                    assert!(is_escaped, "{}: {field} in {message}", path.display());
                }
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

/// Each dependency that ships is in `docs/dependencies.md`, and none that does not.
#[test]
fn every_dependency_has_its_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let mut named = BTreeSet::new();
    for section in manifest.split("\n[").filter(|section| {
        let head = section.lines().next().unwrap();
        head == "dependencies]" || head.starts_with("target.") && head.ends_with(".dependencies]")
    }) {
        let lines = section.lines().skip(1).filter(|line| !line.starts_with('#'));
        named.extend(lines.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name));
    }
    assert!(named.contains("sled") && named.contains("clap"), "{named:?}");
    let text = read("docs/dependencies.md");
    let mut listed = BTreeSet::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let crates = row.split('|').next().unwrap();
        listed.extend(crates.split('`').step_by(2));
    }
    assert_eq!(named, listed);
}
