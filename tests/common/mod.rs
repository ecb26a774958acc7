//! What the tests share: a store in a temporary directory that can be closed and reopened.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use byokv::{
    Certificate, KeyMaterial, Options, Org, OrgPolicy, Restored, Result, RootKey, Rotation, Store,
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
        let ended = self.wait_timeout(Duration::from_secs(30)).unwrap();
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
    let org = store.create_org(name, OrgPolicy::byok()).unwrap();
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
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
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

/// Changes a tree of sled's behind the store's back.
pub(crate) fn tamper(place: &Place, tree: &str, change: impl FnOnce(&sled::Tree)) {
    let db = sled::open(place.data().join("db")).unwrap();
    change(&db.open_tree(tree).unwrap());
    db.flush().unwrap();
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
