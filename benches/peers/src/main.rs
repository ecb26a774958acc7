//! byokv beside other engines: `just peers`, or `cargo run --release` in this folder. Same
//! records, same questions, one process, in slices that take turns; figures are medians.

// The rules of byokv's own code: nothing here is forked, and a bench may wait for a clock.
#![allow(clippy::disallowed_methods)]

mod aead;
mod engine;
mod engines;
mod report;
mod run;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use engine::{Data, Peer, Result};
use report::{Report, grouped};
use run::{Figures, Settings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures byokv beside other engines.
#[derive(Parser)]
struct Args {
    /// Records.
    #[arg(long, default_value_t = 100_000)]
    records: usize,
    /// Bytes of a value; one run each.
    #[arg(long, default_values_t = [1024, 128], value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Rounds, each with fresh databases; figures are their median.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long an engine works before the next has its turn, milliseconds; at durable writes four
    /// times as long, at load, scan and re-encryption until it is done.
    #[arg(long, default_value_t = 40)]
    slice_ms: u64,
    /// Cache of each engine, MiB.
    #[arg(long, default_value_t = 256)]
    cache_mib: usize,
    /// Only engines whose name contains one of these, and bare sled.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder of `performance.md`, whose tables are replaced, and of the plots.
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let wanted =
        |peer: &Peer| args.only.is_empty() || args.only.iter().any(|o| peer.name.contains(o));
    let peers: Vec<&Peer> = engines::ALL
        .iter()
        .enumerate()
        .filter(|(i, peer)| *i == 0 || wanted(peer))
        .map(|(_, peer)| peer)
        .collect();
    let settings =
        Settings { slice: Duration::from_millis(args.slice_ms), cache_bytes: args.cache_mib << 20 };
    let mut text = conditions(args)?;
    for &size in &args.sizes {
        let data = Data::new(args.records, size);
        let mut figures = vec![Figures::default(); peers.len()];
        for number in 0..args.rounds {
            eprintln!("{size} bytes, round {} of {}", number + 1, args.rounds);
            run::round(number, &peers, &data, &settings, &mut figures)?;
        }
        let report = Report { peers: &peers, figures: &figures, data: &data };
        let _ = writeln!(text, "\n### {} records of {size} bytes\n", grouped(args.records));
        if let Some(docs) = &args.write {
            let plot = format!("peers-{size}.svg");
            fs::write(docs.join(&plot), report.svg())?;
            let _ = writeln!(text, "![Bars: byokv beside other engines, {size} bytes]({plot})\n");
        }
        text.push_str(&report.markdown());
    }
    text.push_str(&meanings(&peers));
    println!("{text}");
    args.write.as_ref().map_or(Ok(()), |docs| put_into(docs.join("performance.md"), &text))
}

/// When and where.
fn conditions(args: &Args) -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let cpu =
        cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    Ok(format!(
        "{}, {cores} cores of {}, Linux {}; {} MiB of cache for each engine, mimalloc, `lto = \"fat\"`; \
         median of {} rounds, each with fresh databases, in turns of {} ms.\n",
        &date[..10],
        cpu.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        args.cache_mib,
        args.rounds,
        args.slice_ms,
    ))
}

fn meanings(peers: &[&Peer]) -> String {
    let mut text = "\n### What each engine does\n\n| | encryption | durable put | re-encrypt all | online |\n|---|---|---|---|---|\n".to_owned();
    for Peer { name, cipher, durable, re_encryption, online, .. } in peers {
        let online = if *online { "yes" } else { "no" };
        let _ = writeln!(text, "| {name} | {cipher} | {durable} | {re_encryption} | {online} |");
    }
    text
}

/// Replaces what stands between the two marks.
fn put_into(path: PathBuf, text: &str) -> Result<()> {
    const MARKS: (&str, &str) = ("<!-- peers: begin -->\n", "<!-- peers: end -->");
    let old = fs::read_to_string(&path)?;
    let parts = old
        .split_once(MARKS.0)
        .and_then(|(before, rest)| rest.split_once(MARKS.1).map(|(_, after)| (before, after)));
    let (before, after) = parts.ok_or_else(|| format!("{} has no marks", path.display()))?;
    Ok(fs::write(&path, format!("{before}{}{text}{}{after}", MARKS.0, MARKS.1))?)
}
