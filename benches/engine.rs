//! The engine beside bare sled in one run: `cargo bench --bench engine`. Every value that is
//! written differs from the one before: sled skips a write that changes nothing.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use byokv::{KeyMaterial, Org, OrgPolicy, RootKey, Store, Suite};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 10_000;
const BATCH: usize = 16;

/// Both, with the same records.
struct Sides {
    store: Store,
    org: Org,
    sled: sled::Db,
    log: File,
    records: usize,
    size: usize,
    turn: AtomicUsize,
    written: AtomicUsize,
    _dir: TempDir,
}

impl Sides {
    fn new(size: usize, suite: Suite) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let store = Store::open(dir.path().join("byokv"), root).unwrap();
        let policy = OrgPolicy::platform_only().with_suite(suite);
        let org = store.create_org("acme", policy).unwrap();
        let config = sled::Config::new().path(dir.path().join("sled"));
        let sled = config.cache_capacity(128 << 20).open().unwrap();
        let log = File::open(dir.path().join("sled/db")).unwrap();
        let records = RECORDS.min((256 << 20) / size);
        let [turn, written] = [(); 2].map(|()| AtomicUsize::new(0));
        let sides = Self { store, org, sled, log, records, size, turn, written, _dir: dir };
        for i in 0..records {
            sides.org.put(sides.name(i), sides.value()).unwrap();
            sides.sled.insert(sides.name(i), sides.value()).unwrap();
        }
        sides
    }

    fn name(&self, i: usize) -> [u8; 16] {
        let mut name = *b"clusters/0000000";
        name[9..].copy_from_slice(format!("{:07}", i % self.records).as_bytes());
        name
    }

    fn next(&self) -> [u8; 16] {
        self.name(self.turn.fetch_add(7919, Ordering::Relaxed))
    }

    fn value(&self) -> Vec<u8> {
        let mut value = vec![7; self.size];
        let written = self.written.fetch_add(1, Ordering::Relaxed);
        value[..8].copy_from_slice(&written.to_be_bytes());
        value
    }

    fn put(&self) {
        self.org.put(self.next(), self.value()).unwrap();
    }

    fn put_to_sled(&self) {
        self.sled.insert(self.next(), self.value()).unwrap();
    }

    fn get(&self) {
        black_box(self.org.get(self.next()).unwrap());
    }

    fn get_from_sled(&self) {
        black_box(self.sled.get(self.next()).unwrap());
    }

    /// sled's own flush does not wait for the disk.
    fn put_to_sled_durably(&self) {
        self.put_to_sled();
        self.sled.flush().unwrap();
        self.log.sync_data().unwrap();
    }

    fn swap(&self) {
        let name = self.next();
        let old = self.org.get(name).unwrap().unwrap();
        let swapped = self.org.compare_and_swap(name, Some(&old), Some(&self.value())).unwrap();
        assert!(swapped.is_swapped());
    }

    fn swap_in_sled(&self, name: [u8; 16]) {
        let old = self.sled.get(name).unwrap();
        self.sled.compare_and_swap(name, old, Some(self.value())).unwrap().unwrap();
    }
}

/// So many times `work`, shared by so many threads.
fn on(threads: usize, times: u64, work: impl Fn() + Sync) -> Duration {
    let each = times.div_ceil(threads as u64);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..each).for_each(|_| work()));
        }
    });
    start.elapsed()
}

/// `ours` and `theirs` by each number of threads.
fn pair(
    c: &mut Criterion,
    name: &str,
    (threads, bytes): (&[usize], usize),
    ours: impl Fn() + Sync,
    theirs: impl Fn() + Sync,
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(20).throughput(Throughput::Bytes(bytes as u64));
    for &threads in threads {
        group.bench_function(BenchmarkId::new("byokv", threads), |b| {
            b.iter_custom(|times| on(threads, times, &ours));
        });
        group.bench_function(BenchmarkId::new("sled", threads), |b| {
            b.iter_custom(|times| on(threads, times, &theirs));
        });
    }
    group.finish();
}

fn by_size_and_suite(c: &mut Criterion) {
    for size in [128, 1024, 65536] {
        for suite in [Suite::Xaes256Gcm, Suite::XChaCha20Poly1305] {
            let sides = &Sides::new(size, suite);
            let named = |what: &str| format!("{what}, {size} B, {suite}");
            let one = (&[1][..], size);
            pair(c, &named("put"), one, || sides.put(), || sides.put_to_sled());
            pair(c, &named("get"), one, || sides.get(), || sides.get_from_sled());
        }
    }
}

fn by_threads(c: &mut Criterion) {
    let sides = &Sides::new(1024, Suite::Xaes256Gcm);
    let some = (&[1, 4][..], sides.size);
    pair(c, "put by threads", some, || sides.put(), || sides.put_to_sled());
    pair(c, "get by threads", some, || sides.get(), || sides.get_from_sled());
    let swap_in_sled = || sides.swap_in_sled(sides.next());
    pair(c, "swap", (&[1], sides.size), || sides.swap(), swap_in_sled);
    let durable = sides.org.durable();
    let put = || durable.put(sides.next(), sides.value()).unwrap();
    pair(c, "durable put by threads", (&[1, 8], sides.size), put, || sides.put_to_sled_durably());
    let scan = || assert_eq!(sides.org.scan("").count(), sides.records);
    let all = (&[1][..], sides.records * sides.size);
    pair(c, "scan of all", all, scan, || assert_eq!(sides.sled.iter().count(), sides.records));
    let rotate = || drop(sides.store.keys().rotate_platform_key("acme").unwrap().wait().unwrap());
    let rewrite = || (0..sides.records).for_each(|i| sides.swap_in_sled(sides.name(i)));
    pair(c, "rotation of all", all, rotate, rewrite);
    // Last: sled takes a lock in every operation once a process has made a batch.
    let batch = || {
        let all = (0..BATCH).fold(sides.org.batch(), |b, _| b.put(sides.next(), sides.value()));
        all.commit().unwrap();
    };
    let batch_in_sled = || {
        let mut batch = sled::Batch::default();
        (0..BATCH).for_each(|_| batch.insert(&sides.next(), sides.value()));
        sides.sled.apply_batch(batch).unwrap();
        // Else sled stands still for ever, within a minute: docs/design.md. We flush as often.
        if sides.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            sides.sled.flush().unwrap();
        }
    };
    pair(c, "batch of 16", (&[1], BATCH * sides.size), batch, batch_in_sled);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = by_size_and_suite, by_threads
}
criterion_main!(benches);
