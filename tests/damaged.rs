//! Every file of a store damaged in every way, after a clean close and after a kill: the outcome
//! is right values, a clear error, or the one record's error. Never a wrong, missing or older
//! value while nothing says so, never a panic, an abort or a hang.
//!
//! 80 trials; with `BYOKV_TORTURE=n`, n × 100.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use byokv::{Error, Options, Org, OrgPolicy, RootKey, Store};
use common::{Ended, Place, copy_dir, key_text, material, tamper};

const ORGS: [&str; 2] = ["acme", "umbra"];
const NAMES: u64 = 220;
const ROUNDS: u64 = 4;
const LONGEST: Duration = Duration::from_secs(10);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// The value of a name after `round`; none if it is deleted then. Most are small, some span pages
/// of the file, some are blobs of sled's.
fn value(org: &str, name: u64, round: u64) -> Option<Vec<u8>> {
    let last = (0..=round).rfind(|round| (name + round * 7).is_multiple_of(3) || *round == 0)?;
    if last > 0 && (name + last).is_multiple_of(11) {
        return None;
    }
    let len = match name % 40 {
        39 => 150_000,
        30..39 => 9_000,
        _ => 300,
    };
    let mut value = format!("{org} {name} {last} ").into_bytes();
    let mut random = Random(name << 8 | last);
    while value.len() < len {
        value.extend_from_slice(&random.next().to_be_bytes());
    }
    Some(value)
}

fn write_round(org: &Org, round: u64) {
    for name in 0..NAMES {
        let now = value(org.name(), name, round);
        if round > 0 && value(org.name(), name, round - 1) == now {
            continue;
        }
        match now {
            Some(value) => org.put(format!("{name:05}"), value).unwrap(),
            None => org.delete(format!("{name:05}")).unwrap(),
        }
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap()
}

/// Not a test of its own: makes a store and is killed, or looks at a damaged one.
#[test]
fn child() {
    let Ok(role) = std::env::var("BYOKV_CHILD") else { return };
    let data = PathBuf::from(env("BYOKV_CHILD_DATA"));
    let root = RootKey::from_material(material(&env("BYOKV_CHILD_ROOT")));
    let options = Options::new().cache_bytes(16 << 20).sync_interval(Duration::from_secs(3600));
    if role == "look" {
        rustix::process::setrlimit(
            rustix::process::Resource::As,
            rustix::process::Rlimit { current: Some(3 << 30), maximum: Some(3 << 30) },
        )
        .unwrap();
        match options.open(data, root) {
            Ok(store) => look(&store),
            Err(error) => {
                assert!(error.is_damage() || error.is_rollback(), "{error:?}");
                println!("\nrefused {error}");
            }
        }
        println!("\nend");
        return;
    }
    let older = PathBuf::from(env("BYOKV_CHILD_OLDER"));
    let store = options.clone().open(&data, root).unwrap();
    let orgs = ORGS.map(|org| store.create_org(org, OrgPolicy::byok()).unwrap());
    for round in 0..ROUNDS {
        orgs.iter().for_each(|org| write_round(org, round));
        if round == 1 {
            store.keys().provision("acme", material(&key_text())).unwrap().ended();
        }
        store.sync().unwrap();
        if round == ROUNDS - 2 {
            copy_dir(&data, &older);
        }
    }
    if role == "killed" {
        // Some that were never synced.
        (0..50).for_each(|i| orgs[0].put(format!("tail{i}"), "x").unwrap());
        std::process::abort();
    }
    drop(orgs);
    store.close().unwrap();
}

/// Reads everything, as `byokv verify --deep` does, and says what is not right.
fn look(store: &Store) {
    for name in ORGS {
        let org = match store.org(name) {
            Ok(org) => org,
            Err(error) => {
                println!("\nlost {name}: {error}");
                continue;
            }
        };
        let mut seen = BTreeMap::new();
        for found in org.scan("").names() {
            match found {
                Ok(found) => drop(seen.insert(String::from_utf8(found).unwrap(), ())),
                Err(error) => {
                    println!("\nsaid {name}: {error}");
                    break;
                }
            }
        }
        for i in 0..NAMES {
            let record = format!("{i:05}");
            let expected = value(name, i, ROUNDS - 1);
            match org.get(&record) {
                Ok(found) if found.as_deref() == expected.as_deref() => {
                    if seen.remove(&record).is_some() != expected.is_some() {
                        println!("\nlost {name} {record}: not in the scan");
                    }
                }
                Ok(found) => {
                    seen.remove(&record);
                    let was =
                        (0..ROUNDS).find(|r| found.as_deref() == value(name, i, *r).as_deref());
                    match (found.is_some(), was) {
                        (true, None) => println!("\nwrong {name} {record}"),
                        (_, was) => println!("\nlost {name} {record}: as of {was:?}"),
                    }
                }
                Err(error) => {
                    seen.remove(&record);
                    println!("\nsaid {name} {record}: {error}");
                }
            }
        }
        seen.retain(|record, ()| !record.starts_with("tail"));
        if !seen.is_empty() {
            println!("\nlost {name}: {seen:?} should not be");
        }
        match store.keys().census(name) {
            Ok(census) if census.malformed == 0 => {}
            other => println!("\nsaid {name}: {other:?}"),
        }
    }
    if let Err(error) = store.verify() {
        assert!(error.is_rollback() || error.is_damage(), "{error:?}");
        println!("\nsaid {error}");
    }
    for error in store.keys().audit().filter_map(Result::err) {
        println!("\nsaid {error}");
    }
    let certificates = store.keys().certificates();
    match certificates.collect::<byokv::Result<Vec<_>>>() {
        Ok(all) if all.len() == 1 => {}
        Ok(all) => println!("\nlost {} certificates of 1", all.len()),
        Err(error) => println!("\nsaid {error}"),
    }
}

fn run(role: &str, place: &Place, older: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("BYOKV_CHILD", role)
        .env("BYOKV_CHILD_DATA", place.data())
        .env("BYOKV_CHILD_OLDER", older)
        .env("BYOKV_CHILD_ROOT", &place.root)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A store that was closed, or whose process was killed.
fn make(role: &str, place: &Place, older: &Path) {
    let made = run(role, place, older).wait_with_output().unwrap();
    let as_meant = match role {
        "closed" => made.status.success(),
        _ => made.status.signal() == Some(libc::SIGABRT),
    };
    assert!(as_meant, "{role}: {}", String::from_utf8_lossy(&made.stderr));
}

/// Such a store, a copy of it to begin each trial with, and an older one.
fn kept(role: &str) -> (Place, PathBuf, PathBuf) {
    let place = Place::new();
    let (good, older) = (place.dir.path().join("good"), place.dir.path().join("older"));
    make(role, &place, &older);
    copy_dir(&place.data(), &good);
    (place, good, older)
}

#[derive(Debug, Default)]
struct Tally {
    right: u64,
    refused: u64,
    said: u64,
    /// What nobody said, with how it came about.
    silent: Vec<String>,
}

/// Damages one file. What was done, in words.
fn damage(random: &mut Random, files: &[PathBuf], from: &Path, older: &Path, to: &Path) -> String {
    copy_dir(from, to);
    // Half of the trials go to the log: most of what is there lies in it.
    let log = PathBuf::from("db/db");
    let file = match random.below(2) {
        0 => log,
        _ => files[usize::try_from(random.below(files.len() as u64)).unwrap()].clone(),
    };
    let path = to.join(&file);
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len() as u64;
    let at = usize::try_from(random.below(len)).unwrap();
    let page = |at: usize| at / 4096 * 4096..(at / 4096 * 4096 + 4096).min(bytes.len());
    let how = match random.below(9) {
        0..3 if len > 0 => {
            bytes[at] ^= 1 << random.below(8);
            format!("bit flipped at {at}")
        }
        3 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        4 if len > 0 => {
            let range = page(at);
            bytes[range].fill(0);
            format!("page of {at} zeroed")
        }
        5 if len > 8192 => {
            let other = usize::try_from(random.below(len)).unwrap();
            let (one, two) = (page(at), page(other));
            let (first, second) = (bytes[one.clone()].to_vec(), bytes[two.clone()].to_vec());
            let shorter = first.len().min(second.len());
            bytes[two.start..two.start + shorter].copy_from_slice(&first[..shorter]);
            bytes[one.start..one.start + shorter].copy_from_slice(&second[..shorter]);
            format!("pages of {at} and {other} swapped")
        }
        6 => {
            let other = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
            let others = fs::read(to.join(other)).unwrap();
            fs::write(to.join(other), &bytes).unwrap();
            fs::write(&path, others).unwrap();
            return format!("{} and {} swapped", file.display(), other.display());
        }
        7 if older.join(&file).exists() => {
            bytes = fs::read(older.join(&file)).unwrap();
            "an older copy put back".to_owned()
        }
        _ => {
            fs::remove_file(&path).unwrap();
            return format!("{} deleted", file.display());
        }
    };
    fs::write(&path, bytes).unwrap();
    format!("{}: {how}", file.display())
}

fn trial(place: &Place, what: String, tally: &mut Tally) {
    let start = Instant::now();
    let mut child = run("look", place, Path::new(""));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (text, complaint) = std::thread::scope(|scope| {
        let err = scope.spawn(move || {
            let mut text = Vec::new();
            err.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let out = scope.spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > LONGEST {
                child.kill().unwrap();
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        (out.join().unwrap(), err.join().unwrap())
    });
    let has = |word: &str| text.lines().any(|line| line.starts_with(word));
    let lost = text.lines().filter(|line| line.starts_with("lost")).count();
    if start.elapsed() > LONGEST {
        tally.silent.push(format!("{what}: hangs"));
    } else if !text.lines().any(|line| line == "end") {
        let complaint: String = complaint.chars().take(600).collect();
        tally.silent.push(format!("{what}: ends in {:?}: {complaint}", child.wait()));
    } else if has("wrong") || (lost > 0 && !has("said")) {
        let first: Vec<_> = text.lines().filter(|line| line.len() > 3).take(3).collect();
        tally.silent.push(format!("{what}: {lost} lost: {first:?}"));
    } else if has("refused") {
        tally.refused += 1;
    } else if has("said") {
        tally.said += 1;
    } else {
        tally.right += 1;
    }
}

#[test]
fn no_damage_goes_unnoticed() {
    let trials = match std::env::var("BYOKV_TORTURE") {
        Ok(n) => 100 * n.parse::<u64>().unwrap(),
        Err(_) => 80,
    };
    let seed = std::env::var("BYOKV_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = Random(seed);
    let mut tally = Tally::default();
    for role in ["closed", "killed"] {
        let (place, good, older) = kept(role);
        let files: Vec<PathBuf> = common::contents(&good)
            .into_iter()
            .map(|(path, _)| path.strip_prefix(&good).unwrap().to_owned())
            .filter(|path| path != Path::new("LOCK"))
            .collect();
        let mut undamaged = Tally::default();
        trial(&place, "nothing done".to_owned(), &mut undamaged);
        assert_eq!(undamaged.right, 1, "{undamaged:?}");
        for i in 0..trials / 2 {
            let what = damage(&mut random, &files, &good, &older, &place.data());
            trial(&place, format!("trial {i}, {role}, {what}"), &mut tally);
        }
    }
    let Tally { right, refused, said, silent } = tally;
    println!(
        "torture: damage: {trials} trials, {} silent ({right} harmless, {refused} refused at \
         opening, {said} said in its place)",
        silent.len()
    );
    assert!(silent.is_empty(), "seed {seed}:\n{}", silent.join("\n"));
    assert!(right > 0 && refused > 0);
}

/// sled, which finds a page where another belongs, looks for a key for ever: found by 10,000 trials.
#[test]
fn large_pages_whose_files_were_exchanged_are_noticed() {
    for role in ["closed", "killed"] {
        let (place, good, _) = kept(role);
        // What was written right before the kill is not noted.
        let noted = fs::read(good.join("db/blob-sums")).unwrap();
        let number = |note: &[u8]| i64::from_be_bytes(note[..8].try_into().unwrap());
        let noted: BTreeSet<i64> = noted.chunks_exact(16).map(number).collect();
        let blobs: Vec<PathBuf> =
            noted.iter().map(|place| Path::new("db/blobs").join(place.to_string())).collect();
        let blobs: Vec<_> = blobs.iter().filter(|blob| good.join(blob).exists()).collect();
        let mut tally = Tally::default();
        for pair in blobs.windows(2) {
            copy_dir(&good, &place.data());
            let [one, other] = [pair[0], pair[1]].map(|blob| place.data().join(blob));
            let bytes = fs::read(&one).unwrap();
            fs::rename(&other, &one).unwrap();
            fs::write(&other, bytes).unwrap();
            trial(&place, format!("{role}, {pair:?} exchanged"), &mut tally);
        }
        assert!(blobs.len() > 5 && tally.silent.is_empty(), "{role}: {tally:?}");
        assert_eq!(tally.refused, blobs.len() as u64 - 1, "{role}: {tally:?}");
    }
}

/// A large page of sled's whose file is gone is passed over, and the page before it comes back.
#[test]
fn a_page_whose_file_is_gone_is_noticed() {
    for role in ["closed", "killed"] {
        let (place, good, _) = kept(role);
        // Some are of pages that were written anew since.
        let is_noticed = |blob: &PathBuf| {
            copy_dir(&good, &place.data());
            fs::remove_file(place.data().join(blob)).unwrap();
            place.try_open().is_err_and(|error| error.is_rollback())
        };
        let files = common::contents(&good.join("db/blobs")).into_iter();
        let blob =
            files.map(|(path, _)| path.strip_prefix(&good).unwrap().to_owned()).find(is_noticed);
        assert!(blob.is_some(), "{role}: nothing is noticed");
        // Accepted, it is what it is from then on.
        let accept = Options::new().danger_accept_rollback(true);
        let store = accept.open(place.data(), place.root_key()).unwrap();
        store.verify().unwrap();
        store.org("umbra").unwrap().put("later", "x").unwrap();
        // Every record is read by its name too, and written anew: not only as a scan meets it. One that
        // came back under a key that was retired since is lost, keeps the rotation waiting, and goes.
        for org in ORGS {
            let records = store.org(org).unwrap();
            for name in records.scan("").names().map(Result::unwrap) {
                match records.get(&name) {
                    Ok(_) => {}
                    Err(Error::KeyRetired { .. }) => records.delete(&name).unwrap(),
                    Err(error) => panic!("{error}"),
                }
            }
            store.keys().provision(org, material(&key_text())).unwrap().ended();
        }
        store.verify().unwrap();
        store.close().unwrap();
        place.open().verify().unwrap();
    }
}

/// sled's recovery would go on without what is damaged, for good. Of a store that was closed it does
/// not get that far: what was a bad cable is as it was once that is mended.
#[test]
fn damage_that_goes_away_again_has_cost_nothing() {
    let (place, good, _) = kept("closed");
    copy_dir(&good, &place.data());
    let log = place.data().join("db/db");
    let whole = fs::read(&log).unwrap();
    let before = common::contents(&place.data().join("db"));
    for at in [whole.len() / 3, whole.len() / 2, whole.len() * 2 / 3] {
        let mut damaged = whole.clone();
        damaged[at..at + 512].fill(0x55);
        fs::write(&log, damaged).unwrap();
        let error = place.try_open().unwrap_err();
        assert!(error.is_rollback(), "{error}");
        assert!(error.to_string().contains("nothing of it was changed"), "{error}");
        fs::write(&log, &whole).unwrap();
        assert!(common::contents(&place.data().join("db")) == before);
    }
    place.open().verify().unwrap();
}

/// After a kill the digest is asked at opening already.
#[test]
fn a_record_taken_away_after_a_kill_keeps_the_store_shut() {
    let place = Place::new();
    make("killed", &place, &place.dir.path().join("older"));
    tamper(&place, "records", |records| {
        let (name, _) = records.first().unwrap().unwrap();
        records.remove(name).unwrap();
    });
    let refused = place.try_open().err();
    assert!(refused.as_ref().is_some_and(Error::is_rollback), "{refused:?}");
}

/// An old envelope opens as well as a new one, so only the digest tells; the same of a record
/// that was taken away.
#[test]
fn a_record_put_back_or_taken_away_behind_the_store_is_noticed() {
    let place = Place::new();
    let store = place.open();
    let org = common::filled(&store, "acme", 20);
    let key = common::escape(&[&org.id().as_bytes()[..], b"n00007"].concat());
    drop(org);
    store.close().unwrap();
    let mut old = Vec::new();
    tamper(&place, "records", |records| old = records.get(&key).unwrap().unwrap().to_vec());
    let store = place.open();
    store.org("acme").unwrap().put("n00007", "newer").unwrap();
    store.close().unwrap();
    let mut newer = Vec::new();
    let put = |bytes: &[u8]| {
        let mut before = Vec::new();
        tamper(&place, "records", |records| {
            before = records.insert(&key, bytes).unwrap().unwrap().to_vec();
        });
        before
    };
    newer.extend(put(&old));
    let store = place.open();
    assert_eq!(store.org("acme").unwrap().get("n00007").unwrap().as_deref(), Some(&b"v7"[..]));
    assert!(store.verify().unwrap_err().is_rollback());
    store.close().unwrap();
    put(&newer);
    place.open().verify().unwrap();
    tamper(&place, "records", |records| drop(records.remove(&key).unwrap()));
    assert!(place.open().verify().unwrap_err().is_rollback());
}

/// The count goes on beside writers of all kinds, and agrees at every moment.
#[test]
fn a_store_is_whole_while_it_is_written_to() {
    let place = Place::new();
    let store = place.open();
    let org = common::filled(&store, "acme", 3000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (org, stop) = (&org, &stop);
            scope.spawn(move || {
                let mut random = Random(thread);
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("n{:05}", random.below(3000));
                    let other = format!("n{:05}", random.below(3000));
                    match random.below(4) {
                        0 => org.delete(name).unwrap(),
                        1 => org.batch().delete(name).put(other, "b").commit().unwrap(),
                        _ => org.put(name, random.next().to_be_bytes()).unwrap(),
                    }
                }
            });
        }
        let rotation = store.keys().rotate_platform_key("acme").unwrap();
        for _ in 0..5 {
            store.verify().unwrap();
            store.sync().unwrap();
        }
        store.erase_residue().unwrap();
        store.verify().unwrap();
        rotation.ended();
        stop.store(true, Ordering::Relaxed);
    });
    store.verify().unwrap();
}
