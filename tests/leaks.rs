//! What a look into the memory of a running process finds: key material while a key lives, and
//! nothing of it once the key is retired or suspended or the store is closed; nothing of a value
//! once it is dropped. All writable memory is searched, heap and stacks, used or freed, and at the
//! end the core dump that the process leaves.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
use common::{Ended, Place, key_text};
use hkdf::Hkdf;
use rustix::process::{Resource, Rlimit};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Length of a key's text and of the values, with the end of the line.
const LINE: usize = 45;

/// Reads one line from the parent past all buffers.
fn secret() -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(vec![0; LINE]);
    File::open("/dev/stdin").unwrap().read_exact(&mut line).unwrap();
    line
}

fn key() -> KeyMaterial {
    KeyMaterial::from_base64(std::str::from_utf8(&secret()).unwrap()).unwrap()
}

/// Says where the process is, and waits until the parent has looked.
fn at(stage: &str) {
    std::io::stdout().write_all(format!("\nat {stage}\n").as_bytes()).unwrap();
    let mut go = [0];
    File::open("/dev/stdin").unwrap().read_exact(&mut go).unwrap();
}

/// Not a test of its own: the process that is looked into.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let store = Store::open(&data, RootKey::from_material(key())).unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    let keys = store.keys();
    keys.provision("acme", key()).unwrap().ended();
    at(&format!("first {}", org.id()));
    org.put("name", secret()).unwrap();
    org.batch().put("other", secret()).commit().unwrap();
    at("written");
    let value = org.get("name").unwrap().unwrap();
    let scanned: Vec<_> = org.scan("").map(|record| record.unwrap().value).collect();
    at("read");
    drop((value, scanned));
    at("dropped");
    keys.provision("acme", key()).unwrap().ended();
    at("second");
    keys.suspend("acme").unwrap();
    at("suspended");
    keys.resume("acme", key()).unwrap();
    assert!(org.get("name").unwrap().is_some());
    at("resumed");
    drop((org, keys));
    store.close().unwrap();
    at("closed");
    let store = Store::open(data, RootKey::from_material(key())).unwrap();
    assert!(store.org("acme").unwrap().get("name").unwrap().is_some());
    store.keys().suspend("acme").unwrap();
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Core);
    rustix::process::setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
    at("end");
    std::process::abort();
}

/// Names of the patterns that lie there.
fn search(memory: &File, place: Range<u64>, patterns: &[(&str, Vec<u8>)]) -> BTreeSet<String> {
    const WINDOW: usize = 1 << 20;
    const PAGE: [u8; 4096] = [0; 4096];
    let mut begins = vec![false; 1 << 16];
    for (_, pattern) in patterns {
        begins[usize::from(pattern[0]) << 8 | usize::from(pattern[1])] = true;
    }
    let longest = patterns.iter().map(|(_, pattern)| pattern.len()).max().unwrap();
    let mut found = BTreeSet::new();
    let mut bytes = vec![0; WINDOW + longest];
    for at in place.clone().step_by(WINDOW) {
        let len = usize::try_from((place.end - at).min(bytes.len() as u64)).unwrap();
        let Ok(read) = memory.read_at(&mut bytes[..len], at) else { break };
        let bytes = &bytes[..read];
        for (page, content) in bytes.chunks(PAGE.len()).enumerate() {
            if content == &PAGE[..content.len()] {
                continue;
            }
            let start = page * PAGE.len();
            for i in start..(start + content.len()).min(bytes.len().saturating_sub(1)) {
                if !begins[usize::from(bytes[i]) << 8 | usize::from(bytes[i + 1])] {
                    continue;
                }
                for (name, pattern) in patterns {
                    if bytes[i..].starts_with(pattern) {
                        found.insert((*name).to_owned());
                    }
                }
            }
        }
    }
    found
}

struct Looked {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Looked {
    fn give(&mut self, line: &str) {
        assert_eq!(line.len(), LINE - 1);
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits until the child is there, and what it says of it.
    fn at(&mut self, stage: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the child ended before {stage}");
            if let Some(said) = line.strip_prefix("at ").and_then(|s| s.strip_prefix(stage)) {
                return said.trim().to_owned();
            }
        }
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"g").unwrap();
    }

    /// Where the patterns are found: names of patterns and mappings.
    fn search(&self, patterns: &[(&str, Vec<u8>)]) -> BTreeSet<(String, String)> {
        let pid = self.child.id();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut found = BTreeSet::new();
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if !words[1].starts_with("rw") {
                continue;
            }
            let (from, to) = words[0].split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let (from, to) = (number(from), number(to));
            let mapping = words.get(5).unwrap_or(&"anonymous");
            for name in search(&memory, from..to, patterns) {
                found.insert((name, (*mapping).to_owned()));
            }
        }
        found
    }

    /// Searches again for a while: a thread may be about to let go.
    fn gone(&self, stage: &str, patterns: &[(&str, Vec<u8>)]) {
        let start = Instant::now();
        loop {
            let found = self.search(patterns);
            if found.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(4), "{stage}: {found:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn there(&self, stage: &str, patterns: &[(&str, Vec<u8>)]) {
        for pattern in patterns {
            let found = self.search(std::slice::from_ref(pattern));
            assert!(!found.is_empty(), "{stage}: the search does not find {}", pattern.0);
        }
    }
}

fn raw(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn derived(text: &str, info: &[&[u8]]) -> Vec<u8> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::from_prk(&raw(text)).unwrap().expand_multi_info(info, &mut key).unwrap();
    key.to_vec()
}

/// The material, its text, and the keys that seal and open records with it: an expanded AES key
/// begins with the key itself.
fn of_key(text: &str, org: &str, version: u8) -> [(&'static str, Vec<u8>); 4] {
    let org = base16ct::lower::decode_vec(org).unwrap();
    let header = |suite| [&[1, suite][..], &org, &[0, 0, 0, version]].concat();
    let seal = |suite| derived(text, &[b"byokv seal v1", &header(suite)]);
    [("material", raw(text)), ("XAES key", seal(1)), ("XChaCha key", seal(2)), of_text(text)]
}

fn of_text(text: &str) -> (&'static str, Vec<u8>) {
    ("text", text.as_bytes().to_vec())
}

#[test]
fn a_dead_key_and_a_dropped_value_are_nowhere_in_memory() {
    let place = Place::new();
    let [first, second, value, other] = std::array::from_fn(|_| key_text());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("BYOKV_CHILD", place.data())
        .current_dir(place.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut looked = Looked { child, out };

    looked.give(&place.root);
    looked.give(&first);
    let org = looked.at("first");
    let first_key = of_key(&first, &org, 2);
    looked.there("first", &first_key[..2]);
    looked.gone("first", &first_key[3..]);
    looked.there("first", &[("root", raw(&place.root))]);
    looked.gone("first", &[of_text(&place.root)]);
    looked.go();

    let values = [("value", value.as_bytes().to_vec()), ("other", other.as_bytes().to_vec())];
    looked.give(&value);
    looked.give(&other);
    looked.at("written");
    looked.gone("written", &values);
    looked.go();
    looked.at("read");
    looked.there("read", &values);
    looked.go();
    looked.at("dropped");
    looked.gone("dropped", &values);
    looked.go();

    looked.give(&second);
    looked.at("second");
    let second_key = of_key(&second, &org, 3);
    looked.gone("the first is retired", &first_key);
    looked.there("second", &second_key[..2]);
    looked.go();
    looked.at("suspended");
    looked.gone("suspended", &second_key);
    looked.go();
    looked.give(&second);
    looked.at("resumed");
    looked.there("resumed", &second_key[..2]);
    looked.gone("resumed", &[&second_key[3..], &values[..]].concat());
    looked.go();
    looked.at("closed");
    let wrap = derived(&place.root, &[b"byokv root wrap v1"]);
    let root = [("root", raw(&place.root)), ("wrapping key", wrap), of_text(&place.root)];
    looked.gone("closed", &[&root[..], &second_key, &first_key, &values].concat());
    looked.go();

    looked.give(&place.root);
    looked.at("end");
    looked.go();
    assert_eq!(
        looked.child.wait().unwrap().signal(),
        Some(rustix::process::Signal::ABORT.as_raw())
    );
    let dumped = match core_dump(place.dir.path()) {
        Some(core) => {
            let size = core.metadata().unwrap().len();
            assert_eq!(search(&core, 0..size, &root[..1]).len(), 1, "the search finds nothing");
            let dead = [&root[2..], &second_key, &first_key, &values].concat();
            assert_eq!(search(&core, 0..size, &dead), BTreeSet::new(), "in the core dump");
            "a core dump"
        }
        None => "no core dump, for this system writes none beside the process",
    };
    println!("torture: leaks: 8 looks into a running process and {dumped}, 0 found");
}

/// What `kernel.core_pattern` makes of it is the system's affair.
fn core_dump(dir: &Path) -> Option<File> {
    let mut files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_core = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("core");
    files.find(is_core).map(|path| File::open(path).unwrap())
}
