//! A killed process keeps the system's cache; a power cut does not. Everything that a working
//! store does to its files is recorded, states that a power cut may leave are built from the
//! record, and each is opened and checked.
//!
//! 200 states of two workloads; with `BYOKV_TORTURE=n`, n × 2,000 of n × 20. What fails is said as
//! `BYOKV_STATE=WORKLOAD:STATE BYOKV_RECORD=FILE`: these in the environment try that state alone, of
//! that record.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod ledger;
mod raw;
mod recorder;
mod workload;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use common::key_text;
use disk::{Bytes, Disk, Names, Rng};
use ledger::Ledger;
use recorder::Event;

/// States of one record of one workload.
const STATES: u64 = 100;

/// Not a test of its own: the process that is recorded.
#[test]
fn child_works() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let text = |name| std::env::var(name).unwrap();
    let number = |name| text(name).parse().unwrap();
    let (seed, life) = (number("BYOKV_CHILD_SEED"), number("BYOKV_CHILD_LIFE"));
    workload::run(Path::new(&data), &text("BYOKV_CHILD_ROOT"), seed, life)
}

/// Not a test of its own: tries states, and says of each how it went.
#[test]
fn child_checks() {
    let Some(dir) = std::env::var_os("BYOKV_CHILD_RECORD").map(PathBuf::from) else { return };
    let states = std::env::var("BYOKV_CHILD_STATES").unwrap();
    let (seed, states) = states.split_once(':').unwrap();
    let (from, to) = states.split_once('-').unwrap();
    let events = recorder::read(&dir.join("log"));
    for state in from.parse::<u64>().unwrap()..to.parse::<u64>().unwrap() {
        let outcome = try_state(&events, &dir, seed.parse::<u64>().unwrap(), state);
        println!("\nstate {state} {outcome}");
    }
}

/// One word of how it went, then what there is to say.
fn try_state(events: &[Event], dir: &Path, seed: u64, state: u64) -> String {
    let mut rng = Rng::new(seed << 32 | state);
    let cut = 1 + usize::try_from(rng.below(events.len() as u64)).unwrap();
    // Half of the cuts right after something was promised: that is when most can be broken.
    let promised = |event: &Event| matches!(event, Event::Mark(text) if text.contains(" d "));
    let cut = match events[cut..].iter().position(promised) {
        Some(next) if rng.one_in(2) => cut + next + 1,
        _ => cut,
    };
    let names = if state % 4 == 3 { Names::Any } else { Names::Ordered };
    let bytes = [Bytes::Lost, Bytes::Kept, Bytes::Writes, Bytes::Sectors];
    let bytes = bytes[usize::try_from(rng.below(4)).unwrap()];
    let disk = Disk::at(events, cut);
    let (late_bytes, late_names) = disk.unsynced();
    let data = dir.join("state");
    let made = |event: &'_ Event| match event {
        Event::Mkdir { path } => Some(path.clone()),
        _ => None,
    };
    let recorded = events.iter().find_map(made).unwrap();
    disk.lay_down(&recorded, &data, names, bytes, &mut rng);
    let told = format!(
        "cut {cut} of {}, {names:?} names ({late_names} open), {bytes:?} bytes ({late_bytes} open)",
        events.len()
    );
    let ledger = Ledger::of(&events[..cut]);
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let store = match ledger.open(&data) {
            Ok(store) => store,
            Err(error) => return Err(error),
        };
        ledger.check(&store);
        Ledger::finish(&store);
        ledger.check(&store);
        Ok(())
    }));
    match checked {
        Ok(Ok(())) => format!("fine {told}"),
        Ok(Err(error)) => format!("refused {told}: {error}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            format!("LOST {told}: {}", text.unwrap_or_default().replace('\n', " "))
        }
    }
}

/// A directory in memory, where there is such a place: what is made is read and thrown away.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// How each state of one workload went; a state that takes too long went wrong.
fn outcomes(seed: u64, from: u64, to: u64) -> Vec<(u64, String)> {
    const LONGEST: Duration = Duration::from_secs(60);

    let dir = in_memory();
    let place = dir.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let log = dir.path().join("log");
    match std::env::var_os("BYOKV_RECORD") {
        Some(kept) => drop(std::fs::copy(kept, &log).unwrap()),
        None => record(seed, &place, &log),
    }
    let events = recorder::read(&log);
    describe(seed, &events);
    assert_synced_before_recovery(&events);
    assert_overwritten_once_it_is_gone(seed, &events);
    drop(events);

    let mut outcomes = Vec::new();
    let mut next = from;
    while next < to {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_checks", "--nocapture"])
            .env("BYOKV_CHILD_RECORD", dir.path())
            .env("BYOKV_CHILD_STATES", format!("{seed}:{next}-{to}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (said, heard) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|line| drop(said.send(line)));
        });
        while next < to {
            let Ok(line) = heard.recv_timeout(LONGEST) else { break };
            if let Some(outcome) = line.strip_prefix(&format!("state {next} ")) {
                outcomes.push((next, outcome.to_owned()));
                next += 1;
            }
        }
        if next < to {
            let hung = child.try_wait().unwrap().is_none();
            outcomes.push((next, if hung { "HUNG".into() } else { "DIED".into() }));
            next += 1;
        }
        let _ = child.kill();
        child.wait().unwrap();
        reader.join().unwrap();
    }
    if outcomes.iter().any(|(_, outcome)| !outcome.starts_with("fine")) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-{seed}.record"));
        std::fs::copy(&log, &kept).unwrap();
        println!("BYOKV_RECORD={}", kept.display());
    }
    outcomes
}

/// Two lives of a workload, the first of them cut short.
fn record(seed: u64, place: &Path, log: &Path) {
    let mut root = key_text();
    for life in ["0", "1"] {
        let worked = recorder::child("child_works", place)
            .env("BYOKV_RECORD_LOG", log)
            .env("BYOKV_CHILD", place.join("data"))
            .env("BYOKV_CHILD_ROOT", &root)
            .env("BYOKV_CHILD_SEED", seed.to_string())
            .env("BYOKV_CHILD_LIFE", life)
            .output()
            .unwrap();
        let events = recorder::read(log);
        let ended = |event: &&Event| matches!(event, Event::Mark(text) if text == "end");
        let said = String::from_utf8_lossy(&worked.stderr);
        let ends = events.iter().filter(ended).count();
        assert_eq!(ends.to_string(), if life == "0" { "1" } else { "2" }, "{seed}: {said}");
        root = Ledger::of(&events).root();
    }
}

/// sled's recovery frees what the log replaces: all that a killed process left in the system's cache
/// is durable before sled's first change.
fn assert_synced_before_recovery(events: &[Event]) {
    let is_log = |path: &Path| path.ends_with("db/db");
    let logs: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            Event::Create { inode, path } if is_log(path) => Some(*inode),
            _ => None,
        })
        .collect();
    let killed = events.iter().position(|e| matches!(e, Event::Mark(text) if text == "killed"));
    let killed = killed.unwrap();
    let is_change = |e: &Event| matches!(e, Event::Write { inode, .. } if logs.contains(inode));
    let first = killed + events[killed..].iter().position(is_change).unwrap();
    let mut late = Disk::at(events, first).unsynced_files(killed);
    late.retain(|path| path.iter().any(|part| part == "db"));
    assert!(late.is_empty(), "not synced before sled's recovery: {late:?}");
}

/// A large page that sled has removed is overwritten only once its name is gone for good: a power cut
/// must not bring it back, overwritten. Until residue is erased, which overwrites what nobody reads.
fn assert_overwritten_once_it_is_gone(seed: u64, events: &[Event]) {
    let is_erasure = |e: &Event| matches!(e, Event::Mark(text) if text == "K b residue");
    let ends = events.iter().position(is_erasure).unwrap_or(events.len());
    let is_blob = |path: &Path| path.parent().is_some_and(|dir| dir.ends_with("blobs"));
    let (mut made, mut gone, mut syncs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut overwritten = 0;
    for (at, event) in events[..ends].iter().enumerate() {
        match event {
            Event::Create { inode, path } => {
                // An inode is used again once nothing is left of its file.
                gone.remove(inode);
                made.insert(path, *inode);
            }
            Event::Unlink { path } if is_blob(path) => {
                gone.extend(made.get(path).map(|inode| (*inode, (at, false))));
            }
            Event::SyncBegins { id, path, .. } if path.ends_with("blobs") => {
                syncs.insert(id, at);
            }
            Event::SyncEnded { id } => {
                let began = syncs.remove(id).unwrap_or_default();
                gone.values_mut().for_each(|(since, is_durable)| *is_durable |= *since < began);
            }
            Event::Write { inode, data, .. } if data.iter().all(|&byte| byte == 0) => {
                if let Some((since, is_durable)) = gone.get(inode) {
                    assert!(is_durable, "event {at}: removed by event {since}, not durably");
                    overwritten += 1;
                }
            }
            _ => {}
        }
    }
    println!("{overwritten} writes over large pages that sled has removed");
    assert!(overwritten > 0 || seed.is_multiple_of(2), "of a heavy workload");
}

fn describe(seed: u64, events: &[Event]) {
    let count = |is: fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
    let bytes: usize = events
        .iter()
        .map(|event| match event {
            Event::Write { data, .. } => data.len(),
            _ => 0,
        })
        .sum();
    println!(
        "workload {seed}: {} events, {} writes of {} KiB, {} syncs, {} marks",
        events.len(),
        count(|e| matches!(e, Event::Write { .. })),
        bytes >> 10,
        count(|e| matches!(e, Event::SyncEnded { .. })),
        count(|e| matches!(e, Event::Mark(_))),
    );
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let workloads = std::env::var("BYOKV_TORTURE").map_or(2, |n| 20 * n.parse::<u64>().unwrap());
    let one = std::env::var("BYOKV_STATE").ok();
    let all: Vec<(u64, u64, u64)> = match one.as_deref().and_then(|one| one.split_once(':')) {
        Some((seed, state)) => {
            let state = state.parse().unwrap();
            vec![(seed.parse().unwrap(), state, state + 1)]
        }
        None => (0..workloads).map(|seed| (seed, 0, STATES)).collect(),
    };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (seed, from, to) in all {
        for (state, outcome) in outcomes(seed, from, to) {
            let word = outcome.split(' ').next().unwrap().to_owned();
            if word != "fine" || one.is_some() {
                println!("BYOKV_STATE={seed}:{state} {outcome}");
            }
            *counts.entry(word).or_default() += 1;
        }
    }
    let of = |word: &str| counts.get(word).copied().unwrap_or_default();
    let states: u64 = counts.values().sum();
    let wrong = states - of("fine");
    println!(
        "torture: power cut: {states} states, {} lost ({} refused to open, {} took too long)",
        of("LOST") + of("DIED"),
        of("refused"),
        of("HUNG"),
    );
    assert_eq!(wrong, 0, "{counts:?}");
}
