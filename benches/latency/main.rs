//! What readers and writers notice of a rotation: `cargo bench --bench latency`.
//!
//! Four threads offer half reads, half updates at a fixed rate, before, during and after the
//! rotation of every record.

#![allow(missing_docs, clippy::unwrap_used)]
// Load that comes at its time sleeps until then.
#![allow(clippy::disallowed_methods)]

mod load;
mod plot;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use byokv::{KeyMaterial, Options, Org, OrgPolicy, Phase, RootKey, Store, Throttle};
use clap::Parser;
use hdrhistogram::Histogram;
use load::{Load, Seen};
use plot::spoken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Latency before, during and after a rotation.
#[derive(Parser)]
struct Args {
    /// Records that are rotated.
    #[arg(long, default_value_t = 100_000)]
    records: u64,
    /// Bytes of a value, at least 16.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Operations offered, as a share of what the machine does when it does nothing else.
    #[arg(long, default_value_t = 0.2)]
    load: f64,
    /// Seconds before each rotation, and after it.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often everything is done; the round with the median ratio is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How far the rotation's threads stand back.
    #[arg(long, default_value_t = 10)]
    niceness: u8,
    /// Only the rotations that have this in their name.
    #[arg(default_value = "")]
    only: String,
    /// Folder of `performance.md`, whose table is replaced, and of the plot.
    #[arg(long)]
    write: Option<PathBuf>,
    /// `cargo bench` says this.
    #[arg(long, hide = true)]
    bench: bool,
}

pub(crate) struct Outcome {
    name: String,
    seen: Seen,
    /// Seconds since the start of the load.
    rotation: (f64, f64),
    /// Share of the records, by second.
    rewritten: Vec<(f64, f64)>,
}

impl Outcome {
    /// How many times as long the slowest hundredth takes, from when it was due.
    fn p99_ratio(&self) -> f64 {
        p99_ratio(&self.seen.phases)
    }

    /// The same from when it was begun.
    fn served_ratio(&self) -> f64 {
        p99_ratio(&self.seen.served)
    }

    fn throughput_loss(&self, seconds: f64) -> f64 {
        let before = as_f64(self.seen.answered[0]) / seconds;
        let during = as_f64(self.seen.answered[1]) / (self.rotation.1 - self.rotation.0);
        1.0 - during / before
    }
}

fn p99_ratio(phases: &[Histogram<u64>; 3]) -> f64 {
    let p99 = |phase: usize| as_f64(phases[phase].value_at_quantile(0.99));
    p99(1) / p99(0)
}

/// What a rotation is held to.
enum Held {
    To(Throttle),
    /// So many times what 99 of 100 operations take right before it.
    ToP99(f64),
}

fn main() {
    let args = Args::parse();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = RootKey::from_material(KeyMaterial::generate().unwrap());
    // Everything fits in: sled counts a page with the updates since it was last written whole, up
    // to nine, and rounds that up to a power of two.
    let cache = args.records * (args.size as u64 + 200) * 4 + (64 << 20);
    let options = Options::new().cache_bytes(cache).rotation_niceness(args.niceness);
    let store = options.open(dir.path().join("data"), root).unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for number in 0..args.records {
        org.put(load::name(number), load::value(number, 0, args.size)).unwrap();
    }
    store.sync().unwrap();
    let alone = capacity(&args, &org);
    let rate = alone * args.load;
    eprintln!("alone {alone:.0} operations/s; offered {rate:.0}/s");

    let unlimited = Throttle::unlimited;
    let mut ways = vec![
        ("not limited", Held::To(unlimited())),
        ("a quarter of a core", Held::To(unlimited().with_share_of_core(0.25).unwrap())),
        ("99 of 100 within 1.25 × of before", Held::ToP99(1.25)),
    ];
    ways.retain(|(name, _)| name.contains(&args.only));
    let mut outcomes: Vec<Vec<Outcome>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        for ((name, held), outcomes) in ways.iter().zip(&mut outcomes) {
            eprintln!("round {round} of {}, {name}", args.rounds);
            let outcome = rotate(&args, &store, &org, (name, held), rate);
            eprintln!(
                "99 of 100 operations take {:.2} × as long, {:.2} × from when they begin",
                outcome.p99_ratio(),
                outcome.served_ratio()
            );
            outcomes.push(outcome);
        }
    }
    store.close().unwrap();
    report(&args, alone, rate, &mut outcomes);
}

/// Operations per second of the same threads when each follows on the last.
fn capacity(args: &Args, org: &Org) -> f64 {
    const LONG: Duration = Duration::from_secs(4);
    let load = Load::new(org.clone(), args.records, args.size);
    let (seen, ()) = load.run(None, || std::thread::sleep(LONG));
    as_f64(seen.answered[0]) / LONG.as_secs_f64()
}

fn rotate(
    args: &Args,
    store: &Store,
    org: &Org,
    (name, held): (&str, &Held),
    rate: f64,
) -> Outcome {
    const LOOK: Duration = Duration::from_millis(100);
    let around = Duration::from_secs(args.seconds);
    store.sync().unwrap();
    let load = Load::new(org.clone(), args.records, args.size);
    let (seen, (name, rewritten)) = load.run(Some(rate), || {
        std::thread::sleep(around.saturating_sub(load.since_start()));
        let (name, throttle) = match held {
            Held::To(throttle) => (name.to_owned(), throttle.clone()),
            Held::ToP99(times) => {
                let p99 = load.p99_before().mul_f64(*times);
                let name = format!("{name} ({})", spoken(p99.as_secs_f64() * 1e6));
                (name, Throttle::unlimited().with_foreground_p99(p99).unwrap())
            }
        };
        store.keys().set_throttle(throttle).unwrap();
        load.rotation_begins();
        let key = KeyMaterial::generate().unwrap();
        let rotation = store.keys().provision("acme", key).unwrap();
        let mut rewritten = vec![(load.since_start().as_secs_f64(), 0.0)];
        while rotation.wait_timeout(LOOK).unwrap().is_none() {
            let progress = rotation.progress();
            let share = match progress.phase {
                Phase::Rewriting => progress.fraction(),
                Phase::Queued => None,
                _ => Some(1.0),
            };
            let at = load.since_start().as_secs_f64();
            rewritten.extend(share.map(|share| (at, share)));
        }
        load.rotation_ended();
        let end = load.since_start();
        rewritten.push((end.as_secs_f64(), 1.0));
        std::thread::sleep(around);
        rewritten.push((load.since_start().as_secs_f64(), 1.0));
        (name, rewritten)
    });
    let (began, ended) = load.rotation();
    let rotation = (as_f64(began) / 1e9, as_f64(ended) / 1e9);
    Outcome { name, seen, rotation, rewritten }
}

fn report(args: &Args, alone: f64, rate: f64, outcomes: &mut [Vec<Outcome>]) {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut text = format!(
        "{}, {} cores of {}. {} records of {} bytes; {} threads, half reads, half updates. Alone they \
         do {alone:.0} operations/s; {rate:.0}/s ({:.0} %) were offered. Of {} rounds the one with \
         the median ratio.\n\n\
         | rotation | time | records/s | | p50 | p99 | p99.9 | max | p99 to before | from its begin | throughput lost | errors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        &date[..10],
        std::thread::available_parallelism().unwrap(),
        cpu.trim_start_matches([' ', '\t', ':']),
        args.records,
        args.size,
        load::THREADS,
        args.load * 100.0,
        args.rounds,
    );
    let mut shown = Vec::new();
    for rounds in outcomes.iter_mut() {
        let errors: u64 = rounds.iter().map(|outcome| outcome.seen.errors).sum();
        rounds.sort_by(|a, b| a.p99_ratio().total_cmp(&b.p99_ratio()));
        let outcome = &rounds[rounds.len() / 2];
        let took = outcome.rotation.1 - outcome.rotation.0;
        let rewritten = as_f64(args.records) / took;
        for (i, phase) in ["before", "during", "after"].into_iter().enumerate() {
            let of = &outcome.seen.phases[i];
            let micros = |nanos: u64| spoken(as_f64(nanos) / 1e3);
            let at = |quantile| micros(of.value_at_quantile(quantile));
            // The rotation and its ratios stand beside what happened during it.
            let (first, last) = match phase {
                "during" => (
                    format!("{} | {took:.1} s | {rewritten:.0}", outcome.name),
                    format!(
                        "{:.2} | {:.2} | {:.1} % | {errors}",
                        outcome.p99_ratio(),
                        outcome.served_ratio(),
                        outcome.throughput_loss(as_f64(args.seconds)) * 100.0
                    ),
                ),
                _ => (" | | ".to_owned(), " | | | ".to_owned()),
            };
            let _ = writeln!(
                text,
                "| {first} | {phase} | {} | {} | {} | {} | {last} |",
                at(0.5),
                at(0.99),
                at(0.999),
                micros(of.max())
            );
        }
        shown.push(outcome);
    }
    println!("{text}");
    if let Some(docs) = &args.write {
        let title = format!(
            "Latency by second while {} records are rotated (between the lines; grey: share rewritten)",
            args.records
        );
        plot::draw(&docs.join("latency.svg"), &shown, &title).unwrap();
        put_into(&docs.join("performance.md"), &text);
    }
    let errors: u64 = outcomes.iter().flatten().map(|outcome| outcome.seen.errors).sum();
    assert_eq!(errors, 0, "reads or writes failed");
}

/// Replaces what stands between the two marks.
fn put_into(path: &std::path::Path, text: &str) {
    const MARKS: (&str, &str) = ("<!-- latency: begin -->\n", "<!-- latency: end -->");
    let old = std::fs::read_to_string(path).unwrap();
    let (before, rest) = old.split_once(MARKS.0).unwrap();
    let (_, after) = rest.split_once(MARKS.1).unwrap();
    std::fs::write(path, format!("{before}{}{text}{}{after}", MARKS.0, MARKS.1)).unwrap();
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
