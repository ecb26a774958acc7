//! The bars of speed: what byokv does as a share of what bare sled 0.34.7 does with the same
//! settings and values, in one process, in short slices in turn. Beside them *naive*: the same
//! sled with a call of AES-256-GCM around each value and nothing else, which says how much of a
//! bar is out of reach for whatever encrypts each value on this machine.
//!
//! `cargo bench --bench bars` runs all; `cargo bench --bench bars -- put` those with `put` in
//! their name. Exits with 1 if one is short.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::fmt::Write;
use std::fs::File;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use byokv::{KeyMaterial, Options, Org, OrgPolicy, RootKey, Store};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 100_000;
/// All fits in, so that what is compared is work and not luck with the cache.
const CACHE: u64 = 512 << 20;
const RUNS: usize = 5;
/// Slices of each side in a run.
const SLICES: usize = 24;
const SLICE: Duration = Duration::from_millis(25);
const WORKERS: usize = 4;
const GET: f64 = if cfg!(feature = "aws-lc") { 0.88 } else { 0.80 };
/// From one record to the next, so that they come in no order.
const STRIDE: usize = 7919;

struct Bar {
    name: &'static str,
    at_least: f64,
    value: usize,
    measure: fn(&Sides) -> Vec<Run>,
}

const BARS: &[Bar] = &[
    Bar { name: "put", at_least: 0.95, value: 1024, measure: |s| s.put() },
    Bar { name: "get", at_least: GET, value: 1024, measure: |s| s.get(1) },
    Bar { name: "get ×4", at_least: 0.75, value: 1024, measure: |s| s.get(4) },
    Bar { name: "put 128", at_least: 0.90, value: 128, measure: |s| s.put() },
    Bar { name: "get 128", at_least: 0.80, value: 128, measure: |s| s.get(1) },
    Bar { name: "scan", at_least: 0.50, value: 1024, measure: |s| s.scan(None) },
    Bar {
        name: "parallel scan",
        at_least: 1.0,
        value: 1024,
        measure: |s| s.scan(thread::available_parallelism().ok()),
    },
    Bar { name: "re-encrypt", at_least: 0.90, value: 1024, measure: |s| s.rewrite() },
    Bar { name: "durable put ×8", at_least: 3.0, value: 1024, measure: |s| s.durable() },
];

/// byokv and bare sled with the same records.
struct Sides {
    org: Org,
    store: Store,
    sled: sled::Db,
    naive: sled::Db,
    value: usize,
    /// Makes every value written another: sled skips a write that changes nothing.
    written: AtomicU64,
    dir: TempDir,
}

/// Operations and the time that each side took for them.
struct Run {
    operations: usize,
    ours: Duration,
    theirs: Duration,
    naive: Option<Duration>,
}

impl Run {
    fn ratio(&self) -> f64 {
        self.theirs.as_secs_f64() / self.ours.as_secs_f64()
    }

    fn of_naive(&self) -> Option<f64> {
        self.naive.map(|naive| self.theirs.as_secs_f64() / naive.as_secs_f64())
    }
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let is_wanted =
        |bar: &&Bar| wanted.is_empty() || wanted.iter().any(|w| bar.name.contains(&**w));
    let cores = thread::available_parallelism().unwrap();
    println!(
        "{RECORDS} records, cache {} MiB, {cores} cores, ciphers of {}; \
         for the durable put, the other side is one thread of ours\n",
        CACHE >> 20,
        if cfg!(feature = "aws-lc") { "aws-lc" } else { "RustCrypto" },
    );
    println!("| | value | byokv /s | sled /s | ratio | of 5, from … to | bar | | naive |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut short = 0;
    for size in [1024, 128] {
        let mut sides = None;
        for bar in BARS.iter().filter(|bar| bar.value == size).filter(is_wanted) {
            let sides = sides.get_or_insert_with(|| Sides::load(size));
            let (row, reached) = row(bar, (bar.measure)(sides));
            println!("{row}");
            short += usize::from(!reached);
        }
    }
    println!(
        "\n{}",
        if short == 0 { "all bars reached".to_owned() } else { format!("{short} short") }
    );
    ExitCode::from(u8::from(short > 0))
}

fn row(bar: &Bar, mut runs: Vec<Run>) -> (String, bool) {
    runs.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    let median = &runs[runs.len() / 2];
    let rate = |time: Duration| median.operations as f64 / time.as_secs_f64();
    let reached = median.ratio() >= bar.at_least;
    let mut naive: Vec<f64> = runs.iter().filter_map(Run::of_naive).collect();
    naive.sort_by(f64::total_cmp);
    let mut row = String::new();
    write!(
        row,
        "| {} | {} | {:.0} | {:.0} | {:.2} | {:.2} … {:.2} | {:.2} | {} |",
        bar.name,
        bar.value,
        rate(median.ours),
        rate(median.theirs),
        median.ratio(),
        runs[0].ratio(),
        runs[runs.len() - 1].ratio(),
        bar.at_least,
        if reached { "pass" } else { "short" },
    )
    .unwrap();
    match naive.get(naive.len() / 2) {
        Some(naive) => write!(row, " {naive:.2} |").unwrap(),
        None => write!(row, " – |").unwrap(),
    }
    (row, reached)
}

fn name(i: usize) -> [u8; 16] {
    let mut name = *b"clusters/0000000";
    let mut rest = i % RECORDS;
    for digit in name[9..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap();
        rest /= 10;
    }
    name
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

type Side<'a> = &'a dyn Fn(usize, usize);

/// The sides in turn, in slices of as many operations as `ours` does in the time of a slice.
fn in_turn(ours: Side, theirs: Side, naive: Option<Side>) -> Vec<Run> {
    let mut operations = 64;
    while timed(|| ours(0, operations)) < SLICE {
        operations *= 2;
    }
    let sides: Vec<Side> = [ours, theirs].into_iter().chain(naive).collect();
    sides[1..].iter().for_each(|side| side(0, operations));
    let run = |run: usize| {
        let mut times = vec![Duration::ZERO; sides.len()];
        for slice in 0..SLICES {
            let from = (run * SLICES + slice) * operations;
            for turn in 0..sides.len() {
                let side = (slice + turn) % sides.len();
                times[side] += timed(|| sides[side](from, operations));
            }
        }
        Run {
            operations: operations * SLICES,
            ours: times[0],
            theirs: times[1],
            naive: times.get(2).copied(),
        }
    };
    (0..RUNS).map(run).collect()
}

/// `work` for each of `operations` scattered over all records, on `threads`.
fn scattered(threads: usize, from: usize, operations: usize, work: impl Fn([u8; 16]) + Sync) {
    let part = |thread: usize| {
        let each = operations / threads;
        let first = from + thread * each;
        (first..first + each).for_each(|i| work(name(i * STRIDE)));
    };
    if threads == 1 {
        return part(0);
    }
    thread::scope(|scope| {
        for thread in 0..threads {
            let part = &part;
            scope.spawn(move || part(thread));
        }
    });
}

impl Sides {
    fn load(value: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let store = Options::new()
            .cache_bytes(CACHE)
            .rotation_workers(WORKERS)
            .open(dir.path().join("byokv"), root)
            .unwrap();
        let org = store.create_org("acme", OrgPolicy::platform_only()).unwrap();
        let bare = |name: &str| {
            sled::Config::new()
                .path(dir.path().join(name))
                .cache_capacity(CACHE)
                .flush_every_ms(Some(500))
                .open()
                .unwrap()
        };
        let (sled, naive) = (bare("sled"), bare("naive"));
        let sides = Self { org, store, sled, naive, value, written: AtomicU64::new(0), dir };
        for i in 0..RECORDS {
            let value = sides.next_value();
            sides.org.put(name(i), &value).unwrap();
            sides.naive.insert(name(i), naive::seal(&value)).unwrap();
            sides.sled.insert(name(i), value).unwrap();
        }
        sides.store.sync().unwrap();
        sides.sled.flush().unwrap();
        sides.naive.flush().unwrap();
        sides
    }

    fn next_value(&self) -> Vec<u8> {
        let mut value = vec![7; self.value];
        let count = self.written.fetch_add(1, Ordering::Relaxed);
        value[..8].copy_from_slice(&count.to_be_bytes());
        value
    }

    fn put(&self) -> Vec<Run> {
        let put = |from: usize, operations: usize, put: &dyn Fn([u8; 16], &[u8])| {
            let mut value = self.next_value();
            for i in from..from + operations {
                value[8..16].copy_from_slice(&(i as u64).to_be_bytes());
                put(name(i * STRIDE), &value);
            }
        };
        let naive = |name, value: &[u8]| drop(self.naive.insert(name, naive::seal(value)).unwrap());
        in_turn(
            &|from, n| put(from, n, &|name, value| self.org.put(name, value).unwrap()),
            &|from, n| put(from, n, &|name, value| drop(self.sled.insert(name, value).unwrap())),
            Some(&|from, n| put(from, n, &|name, value| naive(name, value))),
        )
    }

    fn get(&self, threads: usize) -> Vec<Run> {
        in_turn(
            &|from, n| {
                scattered(threads, from, n, |name| {
                    black_box(self.org.get(name).unwrap().unwrap());
                });
            },
            &|from, n| {
                scattered(threads, from, n, |name| {
                    black_box(self.sled.get(name).unwrap().unwrap());
                });
            },
            Some(&|from, n| {
                scattered(threads, from, n, |name| {
                    black_box(naive::open(&self.naive.get(name).unwrap().unwrap()));
                });
            }),
        )
    }

    fn scan(&self, threads: Option<NonZeroUsize>) -> Vec<Run> {
        let run = |_| Run {
            operations: RECORDS,
            ours: timed(|| match threads {
                None => self.org.scan("").for_each(|record| drop(black_box(record.unwrap()))),
                Some(threads) => {
                    let scan = self.org.scan("").parallel(threads.get()).unwrap();
                    scan.for_each(|record| drop(black_box(record.unwrap())));
                }
            }),
            theirs: timed(|| {
                for pair in self.sled.iter() {
                    black_box(pair.unwrap());
                }
            }),
            naive: threads.is_none().then(|| {
                timed(|| {
                    for pair in self.naive.iter() {
                        let (name, value) = pair.unwrap();
                        black_box((name, naive::open(&value)));
                    }
                })
            }),
        };
        (0..RUNS * 2).map(run).collect()
    }

    fn rewrite(&self) -> Vec<Run> {
        let rotate =
            || drop(self.store.keys().rotate_platform_key("acme").unwrap().wait().unwrap());
        // A rotation ends durable; sled's own flush does not wait for the disk.
        let rewrite = |sled: &sled::Db, dir: &str, new: fn(&[u8]) -> Vec<u8>| {
            thread::scope(|scope| {
                for worker in 0..WORKERS {
                    scope.spawn(move || rewrite_part(sled, worker, new));
                }
            });
            sled.flush().unwrap();
            File::open(self.dir.path().join(dir).join("db")).unwrap().sync_data().unwrap();
        };
        let other = |value: &[u8]| {
            let mut new = value.to_vec();
            new[16] ^= 1;
            new
        };
        let run = |_| Run {
            operations: RECORDS,
            ours: timed(rotate),
            theirs: timed(|| rewrite(&self.sled, "sled", other)),
            naive: Some(timed(|| {
                rewrite(&self.naive, "naive", |value| naive::seal(&naive::open(value)));
            })),
        };
        (0..RUNS).map(run).collect()
    }

    fn durable(&self) -> Vec<Run> {
        const THREADS: usize = 8;
        let durable = self.org.durable();
        let value = self.next_value();
        in_turn(
            &|from, n| {
                scattered(THREADS, from, n, |name| durable.put(name, &value).unwrap());
            },
            &|from, n| scattered(1, from, n, |name| durable.put(name, &value).unwrap()),
            None,
        )
    }
}

/// sled's share of one worker: every value replaced by another of its size.
fn rewrite_part(sled: &sled::Db, worker: usize, new: fn(&[u8]) -> Vec<u8>) {
    const PART: usize = RECORDS / WORKERS;
    let (from, to) = (worker * PART, (worker + 1) * PART - 1);
    for pair in sled.range(name(from)..=name(to)) {
        let (key, value) = pair.unwrap();
        let new = new(&value);
        sled.compare_and_swap(key, Some(value), Some(new)).unwrap().unwrap();
    }
}

/// What somebody in a hurry builds: one key, nonce ‖ ciphertext ‖ tag, no name in it.
mod naive {
    use std::cell::RefCell;
    use std::sync::LazyLock;

    use rand::TryRng;
    use rand::rngs::SysRng;

    /// 12 random bytes, from a pool of each thread's.
    fn nonce() -> [u8; 12] {
        thread_local! {
            static POOL: RefCell<(Vec<u8>, usize)> = const { RefCell::new((Vec::new(), 0)) };
        }
        POOL.with_borrow_mut(|(pool, left)| {
            if *left == 0 {
                pool.resize(4080, 0);
                SysRng.try_fill_bytes(pool).unwrap();
                *left = pool.len();
            }
            *left -= 12;
            *pool[*left..].first_chunk().unwrap()
        })
    }

    #[cfg(not(feature = "aws-lc"))]
    mod cipher {
        use super::LazyLock;
        use aes_gcm::Aes256Gcm;
        use aes_gcm::aead::{AeadInOut, KeyInit};

        static KEY: LazyLock<Aes256Gcm> = LazyLock::new(|| Aes256Gcm::new(&[7; 32].into()));

        pub(super) fn seal(nonce: [u8; 12], buffer: &mut [u8]) -> [u8; 16] {
            KEY.encrypt_inout_detached(&nonce.into(), &[], buffer.into()).unwrap().into()
        }

        pub(super) fn open(nonce: [u8; 12], buffer: &mut [u8], tag: [u8; 16]) {
            let (nonce, tag) = (nonce.into(), tag.into());
            KEY.decrypt_inout_detached(&nonce, &[], buffer.into(), &tag).unwrap();
        }
    }

    #[cfg(feature = "aws-lc")]
    mod cipher {
        use super::LazyLock;
        use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

        static KEY: LazyLock<LessSafeKey> =
            LazyLock::new(|| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap()));

        pub(super) fn seal(nonce: [u8; 12], buffer: &mut [u8]) -> [u8; 16] {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = KEY.seal_in_place_separate_tag(nonce, Aad::empty(), buffer).unwrap();
            *tag.as_ref().first_chunk().unwrap()
        }

        pub(super) fn open(nonce: [u8; 12], buffer: &mut [u8], tag: [u8; 16]) {
            let nonce = Nonce::assume_unique_for_key(nonce);
            KEY.open_in_place_separate_tag(nonce, Aad::empty(), &tag, buffer).unwrap();
        }
    }

    pub(super) fn seal(value: &[u8]) -> Vec<u8> {
        let nonce = nonce();
        let mut sealed = Vec::with_capacity(12 + value.len() + 16);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let tag = cipher::seal(nonce, &mut sealed[12..]);
        sealed.extend_from_slice(&tag);
        sealed
    }

    pub(super) fn open(sealed: &[u8]) -> Vec<u8> {
        let (nonce, rest) = sealed.split_first_chunk().unwrap();
        let (ciphertext, tag) = rest.split_last_chunk().unwrap();
        let mut value = ciphertext.to_vec();
        cipher::open(*nonce, &mut value, *tag);
        value
    }
}
