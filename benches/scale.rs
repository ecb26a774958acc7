//! What a store costs as it grows, in orgs, records and sizes of values:
//! `cargo bench --bench scale`. `BYOKV_SCALE_RECORDS=10000000` for ten million records, `BYOKV_SCALE_ORGS`
//! for other than 10,000 orgs whose keys are retired,
//! `cargo bench --bench scale -- retire` for the parts with `retire` in their name: `orgs`, `retire`,
//! `records`, `caches`, `sizes`.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use byokv::{KeyMaterial, Options, Org, OrgPolicy, RootKey, Store};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ORGS: usize = 10_000;
const RECORDS: usize = 500_000;
const VALUE: usize = 128;
const CACHE: u64 = 256 << 20;

const ROOT: &str = "QHRbVs7hVA+yhGUXizoobz5s9dCgauHdNYGVK8HKMZU=";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Store {
        self.open_with(CACHE)
    }

    fn open_with(&self, cache: u64) -> Store {
        let root = RootKey::from_material(KeyMaterial::from_base64(ROOT).unwrap());
        Options::new().cache_bytes(cache).open(self.0.path().join("data"), root).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from).min_depth(1) {
        let entry = entry.unwrap();
        let to = to.join(entry.path().strip_prefix(from).unwrap());
        match entry.file_type().is_dir() {
            true => fs::create_dir(to).unwrap(),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

/// Resident memory, MiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let records = number("BYOKV_SCALE_RECORDS");
    let retired = number("BYOKV_SCALE_ORGS").unwrap_or(ORGS);
    let asked: Vec<_> = std::env::args().skip(1).filter(|asked| !asked.starts_with('-')).collect();
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|asked| name.contains(&**asked));
    let parts: [(&str, &dyn Fn()); 5] = [
        ("orgs", &orgs),
        ("retire", &|| retirements(retired)),
        ("records", &|| many_records(records.unwrap_or(RECORDS))),
        ("caches", &caches),
        ("sizes", &sizes),
    ];
    parts.iter().filter(|(name, _)| wanted(name)).for_each(|(_, part)| part());
}

/// One operation on each org in turn costs what it costs on one org. What belongs to an org lies
/// together; so do the names of the one that begin alike, as many as there are orgs on the other
/// side: both sides go to as many pages of sled's, and differ in orgs alone.
fn orgs() {
    const EACH: usize = 20;
    let (one, many) = (Place::new(), Place::new());
    let single = one.open();
    let only = [single.create_org("org", OrgPolicy::platform_only()).unwrap()];
    let store = many.open();
    let names: Vec<String> = (0..ORGS).map(|i| format!("org{i:05}")).collect();
    let wanted: Vec<_> = names.iter().map(|n| (&**n, OrgPolicy::platform_only())).collect();
    let (made, all) = timed(|| store.create_orgs(&wanted).unwrap());
    let value = [7; VALUE];
    let name = |orgs: &[Org], round: usize, i: usize| {
        let group = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let beginning = if orgs.len() == 1 { group } else { 0 };
        format!("{beginning:016x}/{round:02}")
    };
    let put = |orgs: &[Org], round: usize| {
        (0..ORGS).for_each(|i| orgs[i % orgs.len()].put(name(orgs, round, i), value).unwrap());
    };
    let get = |orgs: &[Org], round: usize| {
        for i in (0..ORGS).map(|i| i * 7919 % ORGS) {
            black_box(orgs[i % orgs.len()].get(name(orgs, round, i)).unwrap().unwrap());
        }
    };
    let mut times = [Duration::ZERO; 4];
    for round in 0..EACH {
        times[0] += timed(|| put(&only, round)).0;
        times[1] += timed(|| put(&all, round)).0;
    }
    for round in 0..EACH {
        times[2] += timed(|| get(&only, round)).0;
        times[3] += timed(|| get(&all, round)).0;
    }
    drop((only, all));
    store.close().unwrap();
    let before = resident();
    let (opened, store) = timed(|| many.open());
    println!("### {ORGS} orgs\n\n| | |\n|---|---|");
    println!("| made at once | {:.2} s |", made.as_secs_f64());
    println!(
        "| opened | {:.2} s, {} MiB |",
        opened.as_secs_f64(),
        resident().saturating_sub(before)
    );
    let cost = |time: Duration| time.as_secs_f64() * 1e6 / (ORGS * EACH) as f64;
    for (what, at) in [("put", 0), ("get", 2)] {
        let (one, many) = (cost(times[at]), cost(times[at + 1]));
        println!(
            "| {what}, one org / all in turn | {one:.2} / {many:.2} µs, {:.2} × |",
            many / one
        );
    }
    drop((store, single));
}

/// The keys of all orgs retired one after the other: what is read for each is the org's alone. Each
/// change of the keyring writes all of it, which is as large at the end as at the beginning; it is
/// measured too, by changes that retire nothing.
fn retirements(orgs: usize) {
    const EACH: usize = 10;
    let place = Place::new();
    let store = place.open();
    let names: Vec<String> = (0..orgs).map(|i| format!("org{i:05}")).collect();
    let wanted: Vec<_> = names.iter().map(|n| (&**n, OrgPolicy::platform_only())).collect();
    for org in store.create_orgs(&wanted).unwrap() {
        (0..EACH).for_each(|i| org.put(format!("record/{i}"), [7; VALUE]).unwrap());
    }
    store.sync().unwrap();
    println!("\n### The keys of {orgs} orgs of {EACH} records, retired one after the other\n");
    println!("| orgs | ms for each | of these, changes of the keyring alone | verify_org, ms |");
    println!("|---|---|---|---|");
    let mean = |time: Duration, times: usize| time.as_secs_f64() * 1e3 / times as f64;
    for (tenth, names) in names.chunks(orgs / 10).enumerate() {
        let (retired, ()) = timed(|| {
            for name in names {
                store.keys().rotate_platform_key(name).unwrap().wait().unwrap();
            }
        });
        // Installing a key and retiring one are two changes.
        const CHANGES: usize = 50;
        let policy = |i| OrgPolicy::platform_only().with_rotation_after_records(1000 + i);
        let (changed, ()) = timed(|| {
            (0..CHANGES as u64).for_each(|i| drop(store.keys().set_policy(&names[0], policy(i))));
        });
        let (verified, ()) = timed(|| names.iter().for_each(|n| store.verify_org(n).unwrap()));
        println!(
            "| {} to {} | {:.1} | {:.1} | {:.2} |",
            tenth * names.len() + 1,
            (tenth + 1) * names.len(),
            mean(retired, names.len()),
            2.0 * mean(changed, CHANGES),
            mean(verified, names.len())
        );
    }
}

fn many_records(records: usize) {
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("org", OrgPolicy::platform_only()).unwrap();
    let stored = (records * VALUE) as f64;
    let space = |store: &Store| {
        store.sync().unwrap();
        store.metrics().unwrap().bytes_on_disk as f64 / stored
    };
    println!("\n### {records} records of {VALUE} B, cache {} MiB\n", CACHE >> 20);
    println!("| | per second | seconds | resident MiB | bytes on disk per byte stored |");
    println!("|---|---|---|---|---|");
    let row = |what: &str, time: Duration, space: f64| {
        let seconds = time.as_secs_f64();
        let rate = records as f64 / seconds;
        println!("| {what} | {rate:.0} | {seconds:.2} | {} | {space:.2} |", resident());
    };
    let (time, ()) = timed(|| {
        for i in 0..records {
            // In no order.
            org.put(format!("clusters/{:08}", i * 7919 % records), [7; VALUE]).unwrap();
        }
    });
    row("load", time, space(&store));
    drop(org);
    // What a kill leaves, without one: what a copy holds was not closed.
    let killed = Place::new();
    copy(place.0.path(), killed.0.path());
    store.close().unwrap();
    let (time, store) = timed(|| killed.open());
    row("open after a kill", time, space(&store));
    drop((store, killed));
    let (time, store) = timed(|| place.open());
    row("open", time, space(&store));
    let rotate = || store.keys().rotate_platform_key("org").unwrap().wait().unwrap();
    let (time, _) = timed(rotate);
    row("rotate", time, space(&store));
    let (time, _) = timed(|| store.erase_residue().unwrap());
    row("erase residue", time, space(&store));
}

/// What of the records stays in memory: sled counts a page with the writes since it was last
/// written whole, and that rounded up to a power of two.
fn caches() {
    const RECORDS: usize = 100_000;
    const VALUE: usize = 1024;
    println!("\n### {RECORDS} records of {VALUE} B, by cache\n");
    println!("| cache to bytes of values | gets per second | after each was updated |");
    println!("|---|---|---|");
    for tenths in [5, 10, 15, 20, 25, 30, 40] {
        let place = Place::new();
        let store = place.open_with((RECORDS * VALUE * tenths / 10) as u64);
        let org = store.create_org("org", OrgPolicy::platform_only()).unwrap();
        let name = |i: usize| format!("clusters/{:08}", i * 7919 % RECORDS);
        let all = || 0..RECORDS;
        let put = |with| all().for_each(|i| org.put(name(i), [with; VALUE]).unwrap());
        let get = || all().for_each(|i| drop(black_box(org.get(name(i * 31)).unwrap().unwrap())));
        let rate = || {
            get();
            RECORDS as f64 / timed(get).0.as_secs_f64()
        };
        put(1);
        let before = rate();
        put(2);
        println!("| {:.1} | {before:.0} | {:.0} |", tenths as f64 / 10.0, rate());
    }
}

fn sizes() {
    const BYTES: usize = 64 << 20;
    println!(
        "\n### Sizes of values\n\n| bytes | put MB/s | get MB/s | bytes on disk per byte stored |"
    );
    println!("|---|---|---|---|");
    for size in [16, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20] {
        let place = Place::new();
        let store = place.open();
        let org = store.create_org("org", OrgPolicy::platform_only()).unwrap();
        let count = (BYTES / size).clamp(2, 100_000);
        let value = vec![7; size];
        let (put, ()) =
            timed(|| (0..count).for_each(|i| org.put(format!("{i:06}"), &value).unwrap()));
        store.sync().unwrap();
        let (get, ()) = timed(|| {
            (0..count).for_each(|i| drop(black_box(org.get(format!("{i:06}")).unwrap().unwrap())));
        });
        let stored = (count * size) as f64;
        let rate = |time: Duration| stored / 1e6 / time.as_secs_f64();
        let disk = store.metrics().unwrap().bytes_on_disk as f64 / stored;
        println!("| {size} | {:.0} | {:.0} | {disk:.2} |", rate(put), rate(get));
    }
}
