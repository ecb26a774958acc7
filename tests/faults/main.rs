//! A disk that is full, and one that fails: each outcome is success or an error that says what
//! happened, never a panic, an abort or a hang, and nothing acknowledged as durable is lost.
//!
//! Some calls of each kind fail, chosen over the whole run of a small workload; with
//! `BYOKV_TORTURE`, every one. `BYOKV_FAULT=KIND:K:ERRNO` tries one alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod full;
#[path = "../power/recorder.rs"]
#[allow(dead_code)]
mod recorder;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use byokv::{
    CertificateKind, ErasureLimit, Error, KeyState, Options, Org, OrgPolicy, Result, RootKey, Store,
};
use common::{Place, key_text, material};

/// Names and lengths that the child writes durably, one after the other; the large one becomes a
/// file of its own.
const RECORDS: [(&str, usize); 5] =
    [("a", 20), ("b", 3000), ("c", 200_000), ("d", 50), ("e", 9000)];

/// Of an org with blinded names, which move: likewise.
const HIDDEN: [(&str, usize); 3] = [("h", 20), ("i", 12_000), ("j", 40_000)];
/// A batch that is longer than a segment takes the first away and puts the others; the last
/// becomes a file of its own.
const LONG: [(&str, usize); 8] = [
    ("old", 50),
    ("new/1", 12_000),
    ("new/2", 12_000),
    ("new/3", 12_000),
    ("new/4", 12_000),
    ("new/5", 12_000),
    ("new/6", 12_000),
    ("new/7", 40_000),
];

fn value(name: &str, len: usize) -> Vec<u8> {
    name.bytes().cycle().take(len).collect()
}

/// Says how a step ended, in one write: nothing torn is counted. Whether it was done.
fn said(step: &str, outcome: Result<()>) -> bool {
    use std::io::Write;
    let is_done = outcome.is_ok();
    let line = match outcome {
        Ok(()) => format!("\nack {step}\n"),
        Err(error) => format!("\nerror {step}: {error}\n"),
    };
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    is_done
}

/// Not a test of its own: the process whose calls fail.
#[test]
fn child_works() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let root = || RootKey::from_material(material(&std::env::var("BYOKV_CHILD_ROOT").unwrap()));
    recorder::mark("arm");
    let work = || -> Result<()> {
        // So small that pages are read again.
        let options = Options::new().cache_bytes(1 << 20).segment_bytes(64 << 10);
        let store = options.open(&data, root())?;
        let org = store.create_org("acme", OrgPolicy::byok())?;
        said("created", Ok(()));
        let durable = org.durable();
        let mut acknowledged = Vec::new();
        for (name, len) in RECORDS {
            if said(name, durable.put(name, value(name, len))) {
                acknowledged.push(name);
            }
        }
        let batch = durable.batch().put("f/x", "1").put("f/y", "2").delete("d");
        said("batch", batch.commit());
        let hidden = store.create_org("hidden", common::blinded())?;
        said("hidden", Ok(()));
        let durable = hidden.durable();
        for (name, len) in HIDDEN.into_iter().chain([LONG[0]]) {
            if said(name, durable.put(name, value(name, len))) {
                acknowledged.push(name);
            }
        }
        let long = durable.batch().delete(LONG[0].0);
        let puts = LONG[1..].iter();
        let long = puts.fold(long, |long, (name, len)| long.put(name, value(name, *len)));
        said("long", long.commit());
        for name in ["acme", "hidden"] {
            match store.keys().rotate_platform_key(name) {
                Ok(rotation) => {
                    // A failing disk may hold it up for long: it is tried again later and later.
                    let ended = rotation.wait_timeout(Duration::from_secs(3));
                    said("rotated", ended.map(drop));
                }
                Err(error) => drop(said("rotated", Err(error))),
            }
        }
        let records = RECORDS.iter().filter(|(name, _)| *name != "d");
        let records = records.map(|record| (&org, record));
        for (org, (name, len)) in records.chain(HIDDEN.iter().map(|record| (&hidden, record))) {
            match org.get(name) {
                Ok(Some(found)) => assert!(found[..] == value(name, *len)[..], "a wrong value"),
                Ok(None) => assert!(!acknowledged.contains(name), "{name} is gone"),
                Err(error) => drop(said("get", Err(error))),
            }
        }
        let long = LONG.iter().map(|(name, _)| hidden.get(name).map(|found| found.is_some()));
        match long.collect::<Result<Vec<_>>>() {
            Ok(long) => {
                let made = long[1];
                assert!(long[1..].iter().all(|is_there| *is_there == made), "{long:?}");
                assert!(long[0] != made || !acknowledged.contains(&LONG[0].0), "{long:?}");
            }
            Err(error) => drop(said("get", Err(error))),
        }
        said("verified", store.verify());
        store.close()
    };
    said("closed", work());
}

/// How a child ended, and what it said.
fn ended(mut child: Child, longest: Duration) -> (Option<bool>, String, String) {
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || std::io::read_to_string(pipe.unwrap()).unwrap_or_default())
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let err = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status.success()),
            None if start.elapsed() > longest => break None,
            None => std::thread::park_timeout(Duration::from_millis(5)),
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    (status, out.join().unwrap(), err.join().unwrap())
}

fn run(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What went wrong with one failing call, or whether there was one to fail.
fn trial(fault: &str) -> std::result::Result<bool, String> {
    let place = Place::new();
    let mut command = recorder::child("child_works", place.dir.path());
    command.env("BYOKV_RECORD_FAULT", fault).env("BYOKV_CHILD", place.data());
    let child = run(command.env("BYOKV_CHILD_ROOT", &place.root));
    let (status, out, err) = ended(child, Duration::from_secs(60));
    match status {
        None => return Err(format!("{fault} hangs: {out}")),
        Some(false) => return Err(format!("{fault} ends badly: {out} {err}")),
        Some(true) => {}
    }
    if err.contains("panicked at src/") {
        return Err(format!("{fault} panics: {err}"));
    }
    let after_refusal = out.split("the disk refused a sync").nth(1).unwrap_or_default();
    if RECORDS.iter().any(|(name, _)| after_refusal.contains(&format!("\nack {name}\n"))) {
        return Err(format!("{fault}: writes after a refused sync: {out}"));
    }
    if out.contains("went back in time") {
        return Err(format!("{fault}: nothing is missing, and it says so: {out}"));
    }
    let acknowledged: Vec<&str> =
        out.lines().filter_map(|line| line.strip_prefix("ack ")).collect();
    let store = match place.try_open() {
        Ok(store) => store,
        Err(error) if acknowledged.is_empty() => {
            // Nothing was promised; a store that was not finished says so.
            let says = matches!(error, Error::FileDamaged { .. } | Error::StorageDamaged { .. });
            return if says { Ok(true) } else { Err(format!("{fault}: {error}")) };
        }
        Err(error) => return Err(format!("{fault}: does not open: {error}\n{out}")),
    };
    check(&store, &acknowledged).map_err(|lost| format!("{fault}: {lost}\n{out}"))?;
    Ok(err.contains("recorder: failed a call"))
}

fn check(store: &Store, acknowledged: &[&str]) -> std::result::Result<(), String> {
    if acknowledged.is_empty() {
        return Ok(());
    }
    let is_acknowledged = |name: &str| acknowledged.contains(&name);
    store.verify().map_err(|error| error.to_string())?;
    let org = store.org("acme").map_err(|error| error.to_string())?;
    // What follows may have deleted it, acknowledged or not.
    check_values(&org, acknowledged, &RECORDS, "d")?;
    let batch = ["f/x", "f/y"].map(|name| org.get(name).is_ok_and(|found| found.is_some()));
    if batch[0] != batch[1] || (is_acknowledged("batch") && !batch[0]) {
        return Err(format!("the batch is {batch:?}"));
    }
    let mut orgs = vec!["acme"];
    if is_acknowledged("hidden") {
        orgs.push("hidden");
        let org = store.org("hidden").map_err(|error| error.to_string())?;
        check_values(&org, acknowledged, &HIDDEN, "")?;
        check_values(&org, acknowledged, &LONG[..1], "old")?;
        let old = org.get("old").map_err(|error| error.to_string())?.is_some();
        let new = LONG[1..].iter().map(|(name, len)| {
            org.get(name).is_ok_and(|found| found.is_some_and(|v| v[..] == value(name, *len)[..]))
        });
        let new: Vec<bool> = new.collect();
        let made = new[0];
        if new.iter().any(|is_there| *is_there != made)
            || old == made && (made || is_acknowledged("old"))
            || is_acknowledged("long") && !made
        {
            return Err(format!("the long batch is {old} {new:?}"));
        }
    }
    for rotation in store.keys().rotations().map_err(|error| error.to_string())? {
        let ended = rotation.wait_timeout(Duration::from_secs(30));
        if !matches!(ended, Ok(Some(_))) {
            return Err(format!("the rotation does not go on: {ended:?}"));
        }
    }
    for org in orgs {
        let status = store.keys().status(org).map_err(|error| error.to_string())?;
        let (_, older) = status.versions.split_last().ok_or("no version")?;
        if older.iter().any(|version| version.state != KeyState::Retired) {
            return Err(format!("a version of {org} was not retired"));
        }
    }
    Ok(())
}

/// Whether what was acknowledged is there; `deleted` may be gone.
fn check_values(
    org: &Org,
    acknowledged: &[&str],
    records: &[(&str, usize)],
    deleted: &str,
) -> std::result::Result<(), String> {
    for (name, len) in records.iter().filter(|(name, _)| acknowledged.contains(name)) {
        let found = org.get(name).map_err(|error| format!("{name}: {error}"))?;
        let is_there = found.as_ref().is_some_and(|found| found[..] == value(name, *len)[..]);
        if !(is_there || *name == deleted && found.is_none()) {
            return Err(format!("{name} is lost"));
        }
    }
    Ok(())
}

#[test]
fn each_failing_call_is_an_error_and_loses_nothing() {
    const KINDS: [(&str, &[&str]); 9] = [
        ("read", &["5", "5+"]),
        ("write", &["5", "28", "0", "5+", "28+"]),
        ("sync", &["5", "5+"]),
        ("range", &["5", "5+"]),
        ("rename", &["5", "28"]),
        ("create", &["28", "24", "28+"]),
        ("truncate", &["5"]),
        ("remove", &["5"]),
        ("link", &["28", "95+"]),
    ];
    let all = std::env::var("BYOKV_TORTURE").is_ok();
    let jobs = KINDS.iter().flat_map(|(kind, errors)| errors.iter().map(move |e| (*kind, *e)));
    let jobs = Mutex::new(jobs.collect::<Vec<_>>());
    let counts = Mutex::new(BTreeMap::<&str, u32>::new());
    let wrong = Mutex::new(Vec::new());
    if let Ok(fault) = std::env::var("BYOKV_FAULT") {
        println!("{fault}: {:?}", trial(&fault));
        return;
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((kind, errno)) = { jobs.lock().unwrap().pop() } {
                    let mut at = 1;
                    loop {
                        match trial(&format!("{kind}:{at}:{errno}")) {
                            Ok(true) => *counts.lock().unwrap().entry(kind).or_default() += 1,
                            Ok(false) => break,
                            Err(why) => wrong.lock().unwrap().push(why),
                        }
                        // In the ordinary run: some early ones, and ever fewer.
                        at += if all { 1 } else { 1 + at / 2 + at % 3 };
                        assert!(at < 10_000);
                    }
                }
            });
        }
    });
    let (counts, wrong) = (counts.into_inner().unwrap(), wrong.into_inner().unwrap());
    let tried: u32 = counts.values().sum();
    for why in &wrong {
        println!("BYOKV_FAULT={why}");
    }
    println!(
        "torture: failing I/O: {tried} calls failed {counts:?}, {} lost or unclear",
        wrong.len()
    );
    assert!(tried > 50 && wrong.is_empty(), "{} of {tried}", wrong.len());
}

/// Not a test of its own: the process whose file system makes no hard links.
#[test]
fn child_without_links() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let root = RootKey::from_material(material(&std::env::var("BYOKV_CHILD_ROOT").unwrap()));
    recorder::mark("arm");
    let store = Options::new().segment_bytes(64 << 10).open(data, root).unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for i in 0..40_u8 {
        org.put("large", vec![i; 100_000]).unwrap();
        org.put("small", vec![i; 10_000]).unwrap();
    }
    store.sync().unwrap();
    let retired = store.keys().rotate_platform_key("acme").unwrap();
    retired.wait_timeout(Duration::from_secs(30)).unwrap().unwrap();
    store.erase_residue().unwrap();
    assert_eq!(org.get("large").unwrap().unwrap(), vec![39; 100_000][..]);
    store.close().unwrap();
}

/// Large pages are removed as they are there, and every certificate from then on says so: their blocks
/// may hold envelopes of any key of the time.
#[test]
fn without_hard_links_the_store_works_and_its_certificates_say_so() {
    let place = Place::new();
    let mut command = recorder::child("child_without_links", place.dir.path());
    command.env("BYOKV_RECORD_FAULT", "link:1:95+").env("BYOKV_CHILD", place.data());
    let child = run(command.env("BYOKV_CHILD_ROOT", &place.root));
    let (status, out, err) = ended(child, Duration::from_secs(60));
    assert!(status == Some(true) && err.contains("recorder: failed a call"), "{out} {err}");
    let store = place.open();
    let limits = |store: &Store| {
        let certificates = store.keys().certificates().map(Result::unwrap);
        let erased = certificates.filter(|c| c.kind == CertificateKind::KeyErased);
        erased.map(|c| c.scope.contains(&ErasureLimit::PagesNotKept)).collect::<Vec<_>>()
    };
    assert_eq!(limits(&store), [true]);
    let retired = store.keys().rotate_platform_key("acme").unwrap();
    retired.wait_timeout(Duration::from_secs(30)).unwrap().unwrap();
    store.erase_residue().unwrap();
    assert_eq!(limits(&store), [true, true]);
}

/// Where a tmpfs cannot be mounted, or `BYOKV_NO_TMPFS` is set, the recorder plays the full disk;
/// the test says which it was.
#[test]
fn a_full_disk_stops_writes_and_loses_nothing() {
    fill("to the end");
}

/// Only the store writes: it refuses before sled meets the full disk, and so need not be opened again.
#[test]
fn a_disk_that_is_full_but_for_the_reserve_is_gone_on_with() {
    fill("to the reserve");
}

fn fill(how: &str) {
    let place = Place::new();
    let disk = place.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mounted = Mounted::new(&disk);
    if mounted.0.is_none() && how != "to the end" {
        println!("torture: full disk, {how}: not tried, no tmpfs may be mounted");
        return;
    }
    let mut command = recorder::child("child_fills", &disk);
    command.env("BYOKV_CHILD", &disk).env("BYOKV_CHILD_ROOT", key_text());
    command.env("BYOKV_CHILD_FILL", how);
    command.env("BYOKV_CHILD_MOUNTED", if mounted.0.is_some() { "yes" } else { "no" });
    let (status, out, err) = ended(run(&mut command), Duration::from_secs(120));
    assert_eq!(status, Some(true), "{out}\n{err}");
    let disk = if mounted.0.is_some() {
        "a tmpfs of 64 MiB"
    } else {
        "played by the recorder: no tmpfs may be mounted"
    };
    let told = out.lines().find_map(|line| line.strip_prefix("told ")).unwrap_or_default();
    println!("torture: full disk ({disk}, {how}): {told}, 0 lost");
}

/// Not a test of its own: the process whose disk is full.
#[test]
fn child_fills() {
    let Some(dir) = std::env::var_os("BYOKV_CHILD") else { return };
    let mounted = std::env::var("BYOKV_CHILD_MOUNTED").unwrap() == "yes";
    let to_the_end = std::env::var("BYOKV_CHILD_FILL").unwrap() == "to the end";
    full::run(Path::new(&dir), &std::env::var("BYOKV_CHILD_ROOT").unwrap(), mounted, to_the_end);
}

/// A small disk, gone when dropped.
struct Mounted<'a>(Option<&'a Path>);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path) -> Self {
        if std::env::var_os("BYOKV_NO_TMPFS").is_some() {
            return Self(None);
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(at).stderr(Stdio::null());
        Self(mount.status().is_ok_and(|status| status.success()).then_some(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}
