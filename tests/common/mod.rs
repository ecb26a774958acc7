//! What the tests share: a store in a temporary directory that can be closed and reopened.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

#[cfg(feature = "cli")]
pub(crate) mod shell;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use base64::Engine as _;
use byokv::{
    Certificate, KeyMaterial, KeyState, KeyVersion, NamePolicy, Options, Org, OrgPolicy, Restored,
    Result, RootKey, Rotation, Store, failpoint,
};

/// Base64 text of 32 random bytes, as `openssl rand -base64 32` prints it.
pub(crate) fn key_text() -> String {
    use rand::TryRng;
    let mut bytes = [0u8; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).unwrap();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(crate) fn material(text: &str) -> KeyMaterial {
    KeyMaterial::from_base64(text).unwrap()
}

pub(crate) trait Ended {
    /// Waits for the certificate, but not for ever.
    fn ended(&self) -> Certificate;
}

impl Ended for Rotation {
    fn ended(&self) -> Certificate {
        let ended = self.wait_timeout(Duration::from_secs(120)).unwrap();
        ended.unwrap_or_else(|| panic!("does not end: {}", self.progress()))
    }
}

pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), root: key_text() }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn try_open(&self) -> Result<Store> {
        Options::new().open(self.data(), self.root_key())
    }

    pub(crate) fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub(crate) fn root_key(&self) -> RootKey {
        RootKey::from_material(material(&self.root))
    }
}

/// An org with `records` records `n0`… of the values `v0`….
pub(crate) fn filled(store: &Store, name: &str, records: usize) -> Org {
    fill(store.create_org(name, OrgPolicy::byok()).unwrap(), records)
}

pub(crate) fn blinded() -> OrgPolicy {
    OrgPolicy::byok().with_names(NamePolicy::Blinded)
}

fn fill(org: Org, records: usize) -> Org {
    for i in 0..records {
        org.put(format!("n{i:05}"), format!("v{i}")).unwrap();
    }
    org
}

pub(crate) fn check_filled(org: &Org, records: usize) {
    for i in 0..records {
        let value = org.get(format!("n{i:05}")).unwrap();
        assert_eq!(value.as_deref(), Some(format!("v{i}").as_bytes()), "record {i}");
    }
    assert_eq!(org.count().unwrap(), records as u64);
}

pub(crate) fn backup(store: &Store, key: &KeyMaterial) -> Vec<u8> {
    let mut file = Vec::new();
    store.backup(key).write_to(&mut file).unwrap();
    file
}

pub(crate) fn restore(store: &Store, key: &KeyMaterial, file: &[u8]) -> Result<Restored> {
    store.restore(key).read_from(std::io::Cursor::new(file))
}

pub(crate) fn new_key() -> KeyMaterial {
    material(&key_text())
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    // A store that was just refused may still be closing, and leave a file behind the removal.
    let start = Instant::now();
    while let Err(error) = fs::remove_dir_all(to)
        && error.kind() != ErrorKind::NotFound
    {
        assert!(start.elapsed() < Duration::from_secs(10), "{error}");
        std::thread::yield_now();
    }
    private_dir(to);
    for entry in walkdir::WalkDir::new(from) {
        // sled removes files of a store that is open while they are copied.
        let entry = match entry {
            Err(e) if e.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound) => continue,
            entry => entry.unwrap(),
        };
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            private_dir(&target);
        } else {
            match fs::copy(entry.path(), target) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

/// Whatever the umask is: a store that others may write is refused.
fn private_dir(dir: &Path) {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir).unwrap();
}

/// Every file below `dir` with its bytes.
pub(crate) fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter();
    files
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap()))
        .collect()
}

/// Returns true once files of large pages were dropped, overwritten, and their links removed.
pub(crate) fn has_dropped_pages(data: &Path) -> bool {
    let links = fs::read_dir(data.join("db/links")).unwrap();
    let numbers = links.map(|link| link.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let numbers: Vec<usize> = numbers.collect();
    numbers.iter().max().is_some_and(|max| max + 1 > numbers.len())
}

/// Where `needle` stands in `bytes`, not overlapping. Looks at one byte in as many as `needle` has,
/// mostly (Horspool): tests are not optimized.
pub(crate) fn places_of(bytes: &[u8], needle: &[u8]) -> Vec<usize> {
    let last = needle.len() - 1;
    let mut steps = [needle.len(); 256];
    for (at, &byte) in needle[..last].iter().enumerate() {
        steps[usize::from(byte)] = last - at;
    }
    let (mut at, mut places) = (0, Vec::new());
    while at + last < bytes.len() {
        if bytes[at..].starts_with(needle) {
            places.push(at);
            at += needle.len();
        } else {
            at += steps[usize::from(bytes[at + last])];
        }
    }
    places
}

/// sled holds its lock a little longer than its handles live, and so does a child that another
/// test is just starting.
fn open_sled(dir: &Path) -> sled::Db {
    const LONGEST: Duration = Duration::from_secs(10);

    let start = Instant::now();
    loop {
        match sled::open(dir) {
            Err(sled::Error::Io(error))
                if error.to_string().contains("acquire lock") && start.elapsed() < LONGEST =>
            {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Changes a tree of sled's behind the store's back, and what says how the database was closed.
pub(crate) fn tamper(place: &Place, tree: &str, change: impl FnOnce(&sled::Tree)) {
    tamper_in(&place.data().join("db"), tree, change);
}

/// The same, with the directory of the database.
pub(crate) fn tamper_in(dir: &Path, tree: &str, change: impl FnOnce(&sled::Tree)) {
    let db = open_sled(dir);
    change(&db.open_tree(tree).unwrap());
    db.flush().unwrap();
    fs::write(dir.join("durable"), [0; 16]).unwrap();
}

/// The storage's key encoding, see `docs/design.md`.
pub(crate) fn escape(key: &[u8]) -> Vec<u8> {
    key.iter()
        .flat_map(|&byte| match byte {
            0xfe => vec![0xfe, 0],
            0xff => vec![0xfe, 1],
            byte => vec![byte],
        })
        .collect()
}

/// Like [`filled`], with blinded names.
pub(crate) fn filled_blinded(store: &Store, name: &str, records: usize) -> Org {
    fill(store.create_org(name, blinded()).unwrap(), records)
}

pub(crate) fn states(store: &Store, org: &str) -> Vec<KeyState> {
    store.keys().status(org).unwrap().versions.iter().map(|v| v.state).collect()
}

/// Every record under one version, name and value.
pub(crate) fn all_under(store: &Store, org: &str, version: u32, records: u64) {
    let census = store.keys().census(org).unwrap();
    let plain = |counts: &BTreeMap<KeyVersion, u64>| {
        counts.iter().map(|(version, count)| (version.get(), *count)).collect::<Vec<_>>()
    };
    assert_eq!(plain(&census.by_version), [(version, records)]);
    assert_eq!(census.by_name_version, census.by_version);
    assert_eq!(census.malformed, 0);
}

/// Holds the first thread that comes to a point, until it is let go.
pub(crate) struct Held {
    _hook: failpoint::Installed,
    at_point: mpsc::Receiver<()>,
    release: Option<mpsc::Sender<()>>,
}

impl Held {
    pub(crate) fn at(point: &'static str, org: &str) -> Self {
        let (reached, at_point) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(Some(released));
        let hook = failpoint::on(point, org, move || {
            let released = released.lock().unwrap().take();
            if let Some(released) = released {
                reached.send(()).unwrap();
                let _ = released.recv();
            }
        });
        Self { _hook: hook, at_point, release: Some(release) }
    }

    pub(crate) fn wait(&self) {
        self.at_point.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    pub(crate) fn let_go(&mut self) {
        self.release = None;
    }
}

/// An action at a point that has no org, on this thread alone: other tests of the process pass it
/// too, on threads of theirs.
#[cfg(debug_assertions)]
pub(crate) fn here(
    point: &'static str,
    action: impl Fn() + Send + Sync + 'static,
) -> failpoint::Installed {
    let this = std::thread::current().id();
    failpoint::on(point, "", move || {
        if std::thread::current().id() == this {
            action();
        }
    })
}
