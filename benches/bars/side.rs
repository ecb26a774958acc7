//! One side in a process of its own, which does what its standard input says: sled's garbage is
//! collected for the whole process, so two databases in one would pay for each other's.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use byokv::{KeyMaterial, Options, Org, OrgPolicy, RootKey, Store};
use tempfile::TempDir;

use crate::{CACHE, RECORDS, WORKERS, naive};

/// From one record to the next, so that they come in no order.
const STRIDE: usize = 7919;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Byokv,
    Sled,
    Naive,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Byokv, Self::Sled, Self::Naive];

    fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|side| format!("{side:?}") == name).unwrap()
    }
}

/// What a side does for a bar, `from … from + operations` where records are taken one by one.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Put,
    /// By so many threads.
    Get(usize),
    /// By so many threads ahead of the loop; with 1 by the loop itself.
    Scan(usize),
    Rewrite,
    /// By so many threads.
    DurablePut(usize),
}

impl Work {
    fn parse(name: &str, threads: usize) -> Self {
        match name {
            "put" => Self::Put,
            "get" => Self::Get(threads),
            "scan" => Self::Scan(threads),
            "rewrite" => Self::Rewrite,
            "durable" => Self::DurablePut(threads),
            other => panic!("{other}"),
        }
    }

    fn spelled(self) -> (&'static str, usize) {
        match self {
            Self::Put => ("put", 1),
            Self::Get(threads) => ("get", threads),
            Self::Scan(threads) => ("scan", threads),
            Self::Rewrite => ("rewrite", WORKERS),
            Self::DurablePut(threads) => ("durable", threads),
        }
    }
}

/// A side, seen from the process that measures.
pub(crate) struct Remote {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Remote {
    /// Starts the side and fills it with records of `value` bytes.
    pub(crate) fn start(side: Side, value: usize) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--side", &format!("{side:?}"), &value.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut remote = Self { process, orders, answers };
        remote.answer();
        remote
    }

    pub(crate) fn timed(&mut self, work: Work, from: usize, operations: usize) -> Duration {
        let (name, threads) = work.spelled();
        writeln!(self.orders.as_ref().unwrap(), "{name} {threads} {from} {operations}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> Duration {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        Duration::from_nanos(line.trim_end().parse().unwrap())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.orders = None;
        assert!(self.process.wait().unwrap().success());
    }
}

/// What the side's own process does, until its standard input ends.
pub(crate) fn run(side: &str, value: usize) {
    let filled = Filled::load(Side::named(side), value);
    println!("0");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let [threads, from, operations] = [(); 3].map(|()| words.next().unwrap().parse().unwrap());
        let start = Instant::now();
        filled.work(Work::parse(name, threads), from, operations);
        println!("{}", start.elapsed().as_nanos());
    }
}

enum Database {
    Byokv(Box<(Org, Store)>),
    Sled(sled::Db),
    Naive(sled::Db),
}

struct Filled {
    database: Database,
    value: usize,
    /// Makes every value written another: sled skips a write that changes nothing.
    written: AtomicU64,
    dir: TempDir,
}

impl Filled {
    fn load(side: Side, value: usize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bare = || {
            sled::Config::new()
                .path(dir.path().join("sled"))
                .cache_capacity(CACHE)
                .flush_every_ms(Some(500))
                .open()
                .unwrap()
        };
        let database = match side {
            Side::Byokv => {
                let root = RootKey::from_material(KeyMaterial::generate().unwrap());
                let store = Options::new()
                    .cache_bytes(CACHE)
                    .rotation_workers(WORKERS)
                    .open(dir.path().join("byokv"), root)
                    .unwrap();
                let org = store.create_org("acme", OrgPolicy::platform_only()).unwrap();
                Database::Byokv(Box::new((org, store)))
            }
            Side::Sled => Database::Sled(bare()),
            Side::Naive => Database::Naive(bare()),
        };
        let filled = Self { database, value, written: AtomicU64::new(0), dir };
        for i in 0..RECORDS {
            filled.put(i, &filled.next_value());
        }
        match &filled.database {
            Database::Byokv(byokv) => byokv.1.sync().unwrap(),
            Database::Sled(sled) | Database::Naive(sled) => drop(sled.flush().unwrap()),
        }
        filled
    }

    fn work(&self, work: Work, from: usize, operations: usize) {
        match work {
            Work::Put => {
                let mut value = self.next_value();
                for i in from..from + operations {
                    value[8..16].copy_from_slice(&(i as u64).to_be_bytes());
                    self.put(i * STRIDE, &value);
                }
            }
            Work::Get(threads) => scattered(threads, from, operations, |i| self.get(i)),
            Work::Scan(threads) => self.scan(threads),
            Work::Rewrite => self.rewrite(),
            Work::DurablePut(threads) => {
                let Database::Byokv(byokv) = &self.database else { panic!("only ours") };
                let (durable, value) = (byokv.0.durable(), self.next_value());
                scattered(threads, from, operations, |i| durable.put(name(i), &value).unwrap());
            }
        }
    }

    fn put(&self, i: usize, value: &[u8]) {
        match &self.database {
            Database::Byokv(byokv) => byokv.0.put(name(i), value).unwrap(),
            Database::Sled(sled) => drop(sled.insert(name(i), value).unwrap()),
            Database::Naive(sled) => drop(sled.insert(name(i), naive::seal(value)).unwrap()),
        }
    }

    fn get(&self, i: usize) {
        match &self.database {
            Database::Byokv(byokv) => drop(black_box(byokv.0.get(name(i)).unwrap().unwrap())),
            Database::Sled(sled) => drop(black_box(sled.get(name(i)).unwrap().unwrap())),
            Database::Naive(sled) => {
                drop(black_box(naive::open(&sled.get(name(i)).unwrap().unwrap())));
            }
        }
    }

    fn scan(&self, threads: usize) {
        match &self.database {
            Database::Byokv(byokv) if threads == 1 => {
                byokv.0.scan("").for_each(|record| drop(black_box(record.unwrap())));
            }
            Database::Byokv(byokv) => {
                let scan = byokv.0.scan("").parallel(threads).unwrap();
                scan.for_each(|record| drop(black_box(record.unwrap())));
            }
            Database::Sled(sled) => sled.iter().for_each(|pair| drop(black_box(pair.unwrap()))),
            Database::Naive(sled) => sled.iter().for_each(|pair| {
                let (name, value) = pair.unwrap();
                black_box((name, naive::open(&value)));
            }),
        }
    }

    /// Each record anew, and durable.
    fn rewrite(&self) {
        let changed = |value: &[u8]| {
            let mut new = value.to_vec();
            new[16] ^= 1;
            new
        };
        match &self.database {
            Database::Byokv(byokv) => {
                byokv.1.keys().rotate_platform_key("acme").unwrap().wait().unwrap();
            }
            Database::Sled(sled) => self.swap_each(sled, changed),
            Database::Naive(sled) => self.swap_each(sled, |value| naive::seal(&naive::open(value))),
        }
    }

    fn swap_each(&self, sled: &sled::Db, new: impl Fn(&[u8]) -> Vec<u8> + Sync) {
        const PART: usize = RECORDS / WORKERS;
        thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (from, to) = (worker * PART, (worker + 1) * PART - 1);
                let new = &new;
                scope.spawn(move || {
                    for pair in sled.range(name(from)..=name(to)) {
                        let (key, value) = pair.unwrap();
                        let new = new(&value);
                        sled.compare_and_swap(key, Some(value), Some(new)).unwrap().unwrap();
                    }
                });
            }
        });
        sled.flush().unwrap();
        // sled's own flush does not wait for the disk.
        File::open(self.dir.path().join("sled/db")).unwrap().sync_data().unwrap();
    }

    fn next_value(&self) -> Vec<u8> {
        let mut value = vec![7; self.value];
        let count = self.written.fetch_add(1, Ordering::Relaxed);
        value[..8].copy_from_slice(&count.to_be_bytes());
        value
    }
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

/// `work` for each of `operations` scattered over all records, on `threads`.
fn scattered(threads: usize, from: usize, operations: usize, work: impl Fn(usize) + Sync) {
    let part = |thread: usize| {
        let each = operations / threads;
        let first = from + thread * each;
        (first..first + each).for_each(|i| work(i * STRIDE));
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
