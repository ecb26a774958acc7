//! Memory that is locked, and core dumps that are not made.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::{Command, Output};

use byokv::{Error, OrgPolicy, process};
use common::{Place, key_text};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

const TOOL: &str = env!("CARGO_BIN_EXE_byokv");

/// A figure of this process's in /proc, KiB.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Whether the memory at `place` is locked, by the flags of its mapping.
fn is_locked(place: *const u8) -> bool {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_inside = false;
    for line in maps.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((from, to)) = first.split_once('-') {
            let [from, to] = [from, to].map(|text| usize::from_str_radix(text, 16).unwrap());
            is_inside = (from..to).contains(&place.addr());
        } else if is_inside && first == "VmFlags:" {
            return rest.split(' ').any(|flag| flag == "lo");
        }
    }
    false
}

/// All of it, and what comes later as well; or an error that says how it could be.
#[test]
fn memory_is_locked_and_a_store_works_in_it() {
    assert_eq!(status("VmLck:"), 0);
    let place = Place::new();
    match process::lock_memory() {
        Ok(()) => assert!(status("VmLck:") >= status("VmRSS:")),
        Err(Error::MemoryNotLocked { why }) => {
            let is_limited = getrlimit(Resource::Memlock).current.is_some();
            // Or the kernel does not know the call.
            assert!(is_limited || !why.contains("os error 12"), "without a limit: {why}");
            return;
        }
        Err(other) => panic!("{other}"),
    }
    let store = place.open();
    let org = store.create_org("acme", OrgPolicy::platform_only()).unwrap();
    for i in 0..2_000 {
        org.put(format!("name/{i}"), [7; 1024]).unwrap();
    }
    store.keys().rotate_platform_key("acme").unwrap().wait().unwrap();
    store.close().unwrap();
    // So much that it gets pages of its own.
    let later = std::hint::black_box(vec![1_u8; 64 << 20]);
    assert!(is_locked(&raw const later[1 << 20]), "what came later is not locked");
}

/// By the tool, without the right to lock memory.
fn without_the_right(arguments: &[&str]) -> Output {
    std::thread::scope(|scope| {
        let run = || {
            // What this thread starts has no such right. Who may not give it up has none.
            let _ = remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK);
            let shell = "ulimit -l 64 && exec \"$0\" \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", shell, TOOL]).args(arguments);
            command.env("BYOKV_ROOT_KEY", key_text()).output().unwrap()
        };
        scope.spawn(run).join().unwrap()
    })
}

#[test]
fn who_may_not_lock_memory_is_told_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let refused = without_the_right(&["--lock-memory", "--data", data, "init"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("ulimit -l unlimited") && text.contains("CAP_IPC_LOCK"), "{text}");
    assert!(!fs::exists(data).unwrap());
    let made = without_the_right(&["--data", data, "init"]);
    assert!(made.status.success());
}

/// Of 1 byte: with 0 Linux makes no file, but pipes a dump to the program that wants them.
#[test]
fn core_dumps_are_forbidden_for_good() {
    let before = getrlimit(Resource::Core).maximum;
    process::forbid_core_dumps().unwrap();
    let limit = getrlimit(Resource::Core);
    assert_eq!(limit.maximum, limit.current);
    if before == Some(0) {
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    } else {
        assert_eq!(limit.current, Some(1));
    }
}

/// The test above, in a process that may not have the limit of 1.
#[test]
fn core_dumps_are_forbidden_where_the_limit_is_0_already() {
    std::thread::scope(|scope| {
        let run = || {
            // Who has this right may raise every limit.
            let _ = remove_capability_from_bounding_set(CapabilitySet::SYS_RESOURCE);
            let shell = "ulimit -c 0 && exec \"$0\" --exact core_dumps_are_forbidden_for_good";
            let own = std::env::current_exe().unwrap();
            let ran = Command::new("sh").args(["-c", shell]).arg(own).output().unwrap();
            let text = String::from_utf8(ran.stdout).unwrap();
            assert!(ran.status.success() && text.contains("1 passed"), "{text}");
        };
        scope.spawn(run).join().unwrap();
    });
}
