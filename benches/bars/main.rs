//! The bars of speed: what byokv does as a share of what bare sled 0.34.7 does with the same
//! settings and values, each in a process of its own, in short slices in turn. Beside them
//! *naive*: sled with a call of AES-256-GCM around each value and nothing else, which says how
//! much of a bar is out of reach for whatever encrypts each value on this machine.
//!
//! `cargo bench --bench bars` runs all; `cargo bench --bench bars -- put` those with `put` in
//! their name. Exits with 1 if one is short.

#![allow(missing_docs, clippy::panic, clippy::unwrap_used, clippy::cast_precision_loss)]

mod naive;
mod side;

use std::fmt::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use side::{Remote, Side, Work};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) const RECORDS: usize = 100_000;
/// All fits in, so that what is compared is work and not luck with the cache.
pub(crate) const CACHE: u64 = 512 << 20;
pub(crate) const WORKERS: usize = 4;
const RUNS: usize = 5;
/// Slices of each side in a run.
const SLICES: usize = 24;
const SLICE: Duration = Duration::from_millis(25);
const GET: f64 = if cfg!(feature = "aws-lc") { 0.88 } else { 0.80 };

struct Bar {
    name: &'static str,
    at_least: f64,
    value: usize,
    measure: fn(&mut Sides) -> Vec<Run>,
}

const BARS: &[Bar] = &[
    Bar { name: "put", at_least: 0.95, value: 1024, measure: |s| s.in_turn(Work::Put) },
    Bar { name: "get", at_least: GET, value: 1024, measure: |s| s.in_turn(Work::Get(1)) },
    Bar { name: "get ×4", at_least: 0.75, value: 1024, measure: |s| s.in_turn(Work::Get(4)) },
    Bar { name: "put 128", at_least: 0.90, value: 128, measure: |s| s.in_turn(Work::Put) },
    Bar { name: "get 128", at_least: 0.80, value: 128, measure: |s| s.in_turn(Work::Get(1)) },
    Bar { name: "scan", at_least: 0.50, value: 1024, measure: |s| s.all_of(Work::Scan(1), 10) },
    Bar { name: "parallel scan", at_least: 1.0, value: 1024, measure: Sides::parallel_scan },
    Bar {
        name: "re-encrypt",
        at_least: 0.90,
        value: 1024,
        measure: |s| s.all_of(Work::Rewrite, 5),
    },
    Bar { name: "durable put ×8", at_least: 3.0, value: 1024, measure: Sides::durable },
];

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, side, value] = arguments.as_slice()
        && flag == "--side"
    {
        side::run(side, value.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<_> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let is_wanted =
        |bar: &&Bar| wanted.is_empty() || wanted.iter().any(|w| bar.name.contains(&***w));
    let cores = thread::available_parallelism().unwrap();
    println!(
        "{RECORDS} records, cache {} MiB, {cores} cores, ciphers of {}; \
         for the durable put, the other side is one thread of ours\n",
        CACHE >> 20,
        if cfg!(feature = "aws-lc") { "aws-lc" } else { "RustCrypto" },
    );
    println!("| | value | byokv /s | sled /s | ratio | of all, from … to | bar | | naive |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut short = 0;
    for size in [1024, 128] {
        let mut sides = None;
        for bar in BARS.iter().filter(|bar| bar.value == size).filter(is_wanted) {
            let sides = sides.get_or_insert_with(|| Sides::start(size));
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

/// byokv, bare sled and naive, with the same records.
struct Sides([Remote; 3]);

impl Sides {
    fn start(value: usize) -> Self {
        Self(Side::ALL.map(|side| Remote::start(side, value)))
    }

    /// The sides in turn, in slices of as many operations as ours does in the time of a slice.
    fn in_turn(&mut self, work: Work) -> Vec<Run> {
        let operations = self.in_a_slice(work);
        for side in &mut self.0[1..] {
            side.timed(work, 0, operations);
        }
        let run = |run: usize| {
            let mut times = [Duration::ZERO; 3];
            for slice in 0..SLICES {
                let from = (run * SLICES + slice) * operations;
                for turn in 0..times.len() {
                    let side = (slice + turn) % times.len();
                    times[side] += self.0[side].timed(work, from, operations);
                }
            }
            let [ours, theirs, naive] = times;
            Run { operations: operations * SLICES, ours, theirs, naive: Some(naive) }
        };
        (0..RUNS).map(run).collect()
    }

    fn in_a_slice(&mut self, work: Work) -> usize {
        let mut operations = 64;
        while self.0[0].timed(work, 0, operations) < SLICE {
            operations *= 2;
        }
        operations
    }

    /// What takes in every record.
    fn all_of(&mut self, work: Work, runs: usize) -> Vec<Run> {
        let run = |_| {
            let [ours, theirs, naive] = self.0.each_mut().map(|side| side.timed(work, 0, RECORDS));
            Run { operations: RECORDS, ours, theirs, naive: Some(naive) }
        };
        (0..runs).map(run).collect()
    }

    fn parallel_scan(&mut self) -> Vec<Run> {
        let threads = thread::available_parallelism().unwrap().get();
        let run = |_| Run {
            operations: RECORDS,
            ours: self.0[0].timed(Work::Scan(threads), 0, RECORDS),
            theirs: self.0[1].timed(Work::Scan(1), 0, RECORDS),
            naive: None,
        };
        (0..RUNS * 2).map(run).collect()
    }

    fn durable(&mut self) -> Vec<Run> {
        const THREADS: usize = 8;
        let operations = self.in_a_slice(Work::DurablePut(THREADS));
        let ours = &mut self.0[0];
        let run = |run: usize| {
            let mut times = [Duration::ZERO; 2];
            for slice in 0..SLICES {
                let from = (run * SLICES + slice) * operations;
                for turn in 0..times.len() {
                    let side = (slice + turn) % times.len();
                    let threads = [THREADS, 1][side];
                    times[side] += ours.timed(Work::DurablePut(threads), from, operations);
                }
            }
            let [ours, theirs] = times;
            Run { operations: operations * SLICES, ours, theirs, naive: None }
        };
        (0..RUNS).map(run).collect()
    }
}
