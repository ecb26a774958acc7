//! What the recorded child does: an agent's writes by several threads, and an operator's changes of
//! keys, each said before it begins and when it is done. See `ledger.rs` for the words.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use byokv::{Error, Options, Org, OrgPolicy, RootKey, Rotation, Store};

use super::common::{Ended, key_text, material};
use super::disk::Rng;
use super::recorder::mark;

const NAMES: u64 = 40;

/// The value of a name at a number: begins with both, is as long as it says.
pub(crate) fn value(name: &str, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{name} {number} {len} ").into_bytes();
    let mut rng = Rng::new(number);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes
}

/// Name, number and length that a value claims.
pub(crate) fn claims(value: &[u8]) -> Option<(String, u64, usize)> {
    let head = String::from_utf8_lossy(&value[..value.len().min(100)]).into_owned();
    let mut words = head.split(' ');
    let (name, number, len) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    Some((name.to_owned(), number, len.parse().ok()?))
}

/// Of some workloads nearly all writes are buffered, and the segments of sled's log are used again
/// long before the next sync.
fn is_heavy(seed: u64) -> bool {
    seed % 2 == 1
}

/// Works in a new store until it is killed in the middle of it (`life` 0), or goes on with what
/// that left (`life` 1).
pub(crate) fn run(data: &Path, root: &str, seed: u64, life: u64) -> ! {
    let mut rng = Rng::new(seed);
    let interval =
        [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3600)];
    let interval = match is_heavy(seed) {
        true => interval[2],
        false => interval[usize::try_from(rng.below(3)).unwrap()],
    };
    if life == 0 {
        mark(&format!("K b root {root}"));
    } else {
        mark("killed");
    }
    let root = RootKey::from_material(material(root));
    let store =
        Options::new().sync_interval(interval).cache_bytes(4 << 20).open(data, root).unwrap();
    let store = &store;
    let orgs = ["acme", "umbra"].map(|name| match life {
        0 => step(&format!("create {name}"), || store.create_org(name, OrgPolicy::byok()).unwrap()),
        _ => store.org(name).unwrap(),
    });
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let org = orgs[usize::from(thread == 2)].clone();
            scope.spawn(move || write(store, &org, thread, seed, life, stop));
        }
        if is_heavy(seed) {
            write(store, &orgs[0], 3, seed, life, &AtomicBool::new(false));
        }
        if life == 0 {
            provision(store, "acme");
            drop(begin_provision(store, "acme"));
            end();
        }
        for rotation in store.keys().rotations().unwrap() {
            rotation.ended();
        }
        operate(store, &mut rng);
        stop.store(true, Ordering::Relaxed);
    });
    end();
}

/// As in a power cut, nothing is closed.
fn end() -> ! {
    mark("end");
    unreachable!("the recorder ends the process at this mark");
}

/// Says that a change begins, makes it, says that it is done.
fn step<T>(what: &str, change: impl FnOnce() -> T) -> T {
    mark(&format!("K b {what}"));
    let done = change();
    mark(&format!("K d {what}"));
    done
}

fn begin_provision(store: &Store, org: &str) -> (Rotation, String) {
    let key = key_text();
    let rotation = step(&format!("provision {org} {key}"), || {
        store.keys().provision(org, material(&key)).unwrap()
    });
    (rotation, key)
}

fn provision(store: &Store, org: &str) -> String {
    let (rotation, key) = begin_provision(store, org);
    certified(org, &rotation);
    key
}

fn certified(org: &str, rotation: &Rotation) {
    let certificate = rotation.ended();
    mark(&format!("K d certified {org} {}", certificate.version.get()));
}

fn operate(store: &Store, rng: &mut Rng) {
    let keys = store.keys();
    let mut key = provision(store, "acme");
    for _ in 0..2 {
        let rotation = step("provision umbra -", || keys.rotate_platform_key("umbra").unwrap());
        if rng.one_in(2) {
            let root = key_text();
            let compromised = rng.one_in(2);
            step(&format!("root {root}"), || {
                let root = RootKey::from_material(material(&root));
                match compromised {
                    true => drop(store.change_compromised_root_key(root).unwrap()),
                    false => store.change_root_key(root).unwrap(),
                }
            });
        }
        certified("umbra", &rotation);
        step("suspend acme -", || keys.suspend("acme").unwrap());
        step(&format!("resume acme {key}"), || keys.resume("acme", material(&key)).unwrap());
        let entries = keys.audit().map(Result::unwrap).count();
        mark(&format!("K d audited {entries}"));
        key = provision(store, "acme");
    }
    step("residue", || store.erase_residue().unwrap());
    let gone = step("create gone", || store.create_org("gone", OrgPolicy::byok()).unwrap());
    gone.put("x", value("x", 1, 4000)).unwrap();
    let erasure = step("erase gone", || keys.erase_org("gone").unwrap());
    assert!(erasure.wait_timeout(Duration::from_secs(30)).unwrap().is_some());
    provision(store, "acme");
}

fn write(store: &Store, org: &Org, thread: u64, seed: u64, life: u64, stop: &AtomicBool) {
    let mut rng = Rng::new(seed.wrapping_mul(31) + 7 * life + thread);
    let durable = org.durable();
    let org_name = org.name().to_owned();
    let (rare, count) = if is_heavy(seed) { (100, 400) } else { (1, 1_000_000) };
    for number in life * 1_000_000 + 1..=life * 1_000_000 + count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{thread}/{}", rng.below(NAMES));
        let len = match rng.below(100) {
            0 => 140_000 + usize::try_from(rng.below(200_000)).unwrap(),
            1..10 => 10_000 + usize::try_from(rng.below(30_000)).unwrap(),
            10..40 => 1000,
            _ => 20 + usize::try_from(rng.below(200)).unwrap(),
        };
        let is_durable = rng.one_in(4 * rare) || number % 1_000_000 <= NAMES / 2;
        let handle = if is_durable { &durable } else { org };
        let done = match rng.below(20) {
            0 if rng.one_in(rare) => {
                mark(&format!("S b {thread}"));
                store.sync().unwrap();
                mark(&format!("S d {thread}"));
                continue;
            }
            1 | 2 => {
                mark(&format!("W b {org_name} {name} {number} -"));
                handle.delete(&name)
            }
            3 => {
                let both = [format!("{thread}/b{number}/x"), format!("{thread}/b{number}/y")];
                mark(&format!("B b {org_name} {} {number} {len}", both[0]));
                let [x, y] = both.each_ref().map(|name| value(name, number, len / 2));
                let done = handle.batch().put(&both[0], x).put(&both[1], y).commit();
                if done.is_ok() {
                    let how = if is_durable { 'd' } else { 'w' };
                    mark(&format!("B {how} {org_name} {} {number} {len}", both[0]));
                }
                refused_while_suspended(done);
                continue;
            }
            _ => {
                mark(&format!("W b {org_name} {name} {number} {len}"));
                handle.put(&name, value(&name, number, len))
            }
        };
        if refused_while_suspended(done) {
            mark(&format!("W x {org_name} {name} {number}"));
        } else {
            let how = if is_durable { 'd' } else { 'w' };
            mark(&format!("W {how} {org_name} {name} {number}"));
        }
    }
}

fn refused_while_suspended(done: byokv::Result<()>) -> bool {
    match done {
        Ok(()) => false,
        Err(Error::KeySuspended { .. }) => true,
        Err(other) => panic!("{other}"),
    }
}
