//! Bytes decide what is damaged in a small store, after a clean close or after a kill. What comes
//! of it is the right values or an error; never another value, a panic of ours, or silence.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::Arbitrary;
use byokv::{Error, KeyMaterial, Options, OrgPolicy, RootKey, Store};

#[derive(Arbitrary, Debug)]
enum Kind {
    Flip(u32, u8),
    Zero(u32, u16),
    Overwrite(u32, Vec<u8>),
    Truncate(u32),
    Append(Vec<u8>),
    Delete,
    Swap(u8),
    /// As it was earlier in the store's life.
    RollBack,
}

#[derive(Arbitrary, Debug)]
struct Damage {
    killed: bool,
    /// A file, by its number, and what becomes of it.
    to: Vec<(u8, Kind)>,
}

/// The store at three moments.
struct Before {
    earlier: PathBuf,
    killed: PathBuf,
    closed: PathBuf,
    /// Relative to each.
    files: Vec<PathBuf>,
}

const RECORDS: usize = 80;

fn open(dir: &Path) -> Result<Store, Error> {
    let mut root = *b"\x01\x92root key of the fuzzing harness";
    let root = KeyMaterial::from_bytes((&mut root[..32]).try_into().unwrap()).unwrap();
    let options = Options::new().cache_bytes(1 << 20).sync_interval(Duration::from_secs(3600));
    options.create(!dir.exists()).open(dir, RootKey::from_material(root))
}

/// Some are larger than a segment of sled's takes inline.
fn value(round: usize, i: usize) -> Vec<u8> {
    let len = if i % 20 == 7 { 70_000 } else { i * 13 };
    format!("value {round} of {i} ").into_bytes().into_iter().cycle().take(len + 20).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn files(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(root, &path, found),
            false => found.push(path.strip_prefix(root).unwrap().to_owned()),
        }
    }
}

fn before() -> &'static Before {
    static BEFORE: OnceLock<Before> = OnceLock::new();
    BEFORE.get_or_init(|| {
        let place = place().keep();
        let data = place.join("data");
        let store = open(&data).unwrap();
        let orgs = ["acme", "umbra"].map(|name| store.create_org(name, OrgPolicy::byok()).unwrap());
        let (earlier, killed) = (place.join("earlier"), place.join("killed"));
        for round in 0..2 {
            for org in &orgs {
                (0..RECORDS).for_each(|i| org.put(format!("n{i}"), value(round, i)).unwrap());
            }
            store.keys().rotate_platform_key("acme").unwrap().wait().unwrap();
            store.sync().unwrap();
            copy(&data, [&earlier, &killed][round]);
        }
        drop(orgs);
        store.close().unwrap();
        let mut found = Vec::new();
        files(&data, &data, &mut found);
        found.sort();
        Before { earlier, killed, closed: data, files: found }
    })
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn damage(kind: &Kind, path: &Path, other: &Path, earlier: &Path) -> std::io::Result<()> {
    let mut bytes = fs::read(path)?;
    let len = bytes.len();
    let at = |at: u32| at as usize % len.max(1);
    match kind {
        Kind::Flip(position, bits) => {
            if let Some(byte) = bytes.get_mut(at(*position)) {
                *byte ^= bits;
            }
        }
        Kind::Zero(position, count) => {
            bytes.iter_mut().skip(at(*position)).take(usize::from(*count)).for_each(|b| *b = 0);
        }
        Kind::Overwrite(position, by) => {
            bytes.iter_mut().skip(at(*position)).zip(by).for_each(|(byte, by)| *byte = *by);
        }
        Kind::Truncate(position) => bytes.truncate(at(*position)),
        Kind::Append(more) => bytes.extend_from_slice(more),
        Kind::Delete => return fs::remove_file(path),
        Kind::Swap(_) => {
            fs::write(path, fs::read(other)?)?;
            return fs::write(other, bytes);
        }
        Kind::RollBack => bytes = fs::read(earlier)?,
    }
    fs::write(path, bytes)
}

fn look(dir: &Path, killed: bool) {
    let store = match open(dir) {
        Err(Error::Bug { org }) => panic!("a panic in {org}"),
        Err(error) => return assert!(!error.to_string().is_empty()),
        Ok(store) => store,
    };
    // Records that are missing or older, each by itself content: the digest tells.
    let mut silent = Vec::new();
    for org in ["acme", "umbra"] {
        let Ok(org) = store.org(org) else { panic!("{org} is missing") };
        for i in 0..RECORDS {
            match org.get(format!("n{i}")) {
                Ok(Some(found)) if *found == *value(1, i) => {}
                Ok(Some(found)) => {
                    assert!(*found == *value(0, i), "n{i} never had this value");
                    silent.push(format!("{} n{i} is older", org.name()));
                }
                Ok(None) => silent.push(format!("{} n{i} is missing", org.name())),
                Err(error) => assert!(!matches!(error, Error::Bug { .. })),
            }
        }
    }
    if !silent.is_empty() {
        assert!(!killed && store.verify().is_err(), "silently: {silent:?}");
    }
    for org in ["acme", "umbra"] {
        let Ok(org) = store.org(org) else { panic!("{org} is missing") };
        org.scan("").for_each(|record| match record {
            Ok(record) => assert!(record.name.starts_with(b"n")),
            Err(error) => assert!(!matches!(error, Error::Bug { .. })),
        });
        // What is written now must be there.
        if org.put("after", "the damage").is_ok() {
            assert_eq!(org.get("after").unwrap().as_deref(), Some(&b"the damage"[..]));
        }
    }
    store.keys().audit().for_each(drop);
    let _ = store.close();
}

/// sled panics on some damage, and the store catches that; nothing else may panic.
fn no_panic_but_sleds() {
    std::panic::set_hook(Box::new(|info| {
        let of_sled = info.location().is_some_and(|at| at.file().contains("/sled-0.34"));
        if !of_sled {
            eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
            std::process::abort();
        }
    }));
}

libfuzzer_sys::fuzz_target!(
    init: no_panic_but_sleds(),
    |plan: Damage| {
        let before = before();
        let place = place();
        let data = place.path().join("data");
        copy(if plan.killed { &before.killed } else { &before.closed }, &data);
        let number = |n: u8| &before.files[usize::from(n) % before.files.len()];
        for (file, kind) in plan.to.iter().take(4) {
            let other = number(if let Kind::Swap(other) = kind { *other } else { 0 });
            let (path, earlier) = (data.join(number(*file)), before.earlier.join(number(*file)));
            // A file that an earlier damage removed cannot be damaged again.
            let _ = damage(kind, &path, &data.join(other), &earlier);
        }
        look(&data, plan.killed);
    }
);
