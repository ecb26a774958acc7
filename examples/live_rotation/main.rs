//! The main job: secrets of two orgs, one brings its key and rotates it under load, the process
//! is killed in the middle, the store finishes by itself, and every byte is checked.

mod load;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use byokv::{
    Certificate, KeyMaterial, Options, Org, OrgPolicy, RootKey, Rotation, Store, Throttle,
};
use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use load::{Figures, Model, credential, lock, name};
use rand::TryRng;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Rotates keys under load, kills the process in the middle, and checks every byte.
#[derive(Parser)]
struct Args {
    /// Folder whose files are taken as secrets.
    #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
    input: PathBuf,
    /// Records in all, generated ones included.
    #[arg(long, default_value_t = 100_000)]
    records: u64,
    /// Threads that read and write meanwhile.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// Where the store is kept; must not exist. Default: a temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
    /// Numbers of generated records; makes this the process that is killed.
    #[arg(long, hide = true)]
    child: Option<u64>,
}

#[derive(Default, Serialize)]
struct Outcome {
    records: u64,
    load_seconds: f64,
    before: Option<Figures>,
    during: Option<Figures>,
    rotation_seconds: f64,
    rotation_records_per_second: f64,
    killed_at: String,
    acknowledged_in_killed_process: u64,
    finish_seconds: f64,
    checked: u64,
    wrong: u64,
    audit_entries: u64,
    other_org_untouched: bool,
    certificates: Vec<Certificate>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.child {
        Some(numbers) => child(&args, numbers).map(|()| true),
        None => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("live_rotation: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let temporary = match args.data {
        None => Some(tempfile::tempdir()?),
        Some(_) => None,
    };
    let data = match (&args.data, &temporary) {
        (Some(data), _) if data.exists() => {
            return Err(format!("{} exists already; name a new folder", data.display()).into());
        }
        (Some(data), _) => data.clone(),
        (None, Some(dir)) => dir.path().join("data"),
        (None, None) => unreachable!("one of the two is set"),
    };
    let root = random_key()?;
    let mut outcome = Outcome::default();
    let store = open(&data, &root)?;
    let acme = store.create_org("acme", OrgPolicy::byok())?;
    let umbra = store.create_org("umbra", OrgPolicy::byok())?;

    let began = Instant::now();
    let files = files_below(&args.input)?;
    let (model, others, numbers) = fill(args, &acme, &umbra, &files)?;
    store.sync()?;
    outcome.records = (lock(&model).len() + others.len()) as u64;
    outcome.load_seconds = began.elapsed().as_secs_f64();

    let began = Instant::now();
    let until = || began.elapsed() > Duration::from_secs(2);
    outcome.before = Some(load::work(&acme, &model, numbers, args.threads, 1, until, None)?);

    let began = Instant::now();
    let rotation = store.keys().provision("acme", KeyMaterial::from_base64(&random_key()?)?)?;
    let bar = Bar::new("first rotation, under load");
    let ended = || bar.follow(&rotation);
    outcome.during = Some(load::work(&acme, &model, numbers, args.threads, 2, ended, None)?);
    let first = rotation.wait()?;
    bar.finish();
    outcome.rotation_seconds = began.elapsed().as_secs_f64();
    outcome.rotation_records_per_second = per_second(first.records_verified, began.elapsed());
    drop((rotation, acme, umbra));
    store.close()?;

    let mut uncertain = HashMap::new();
    kill_in_the_middle(args, &data, &root, numbers, &model, &mut uncertain, &mut outcome)?;

    let began = Instant::now();
    let store = open(&data, &root)?;
    if let Some(rotation) = store.keys().rotation("acme")? {
        let bar = Bar::new("going on by itself");
        while rotation.wait_timeout(Duration::from_millis(100))?.is_none() {
            bar.follow(&rotation);
        }
        bar.finish();
    }
    outcome.finish_seconds = began.elapsed().as_secs_f64();
    check(&store, &lock(&model), &others, &uncertain, &mut outcome)?;
    store.close()?;

    let errors: u64 =
        [&outcome.before, &outcome.during].into_iter().flatten().map(|f| f.errors).sum();
    let right = errors == 0
        && outcome.wrong == 0
        && outcome.other_org_untouched
        && outcome.certificates.len() == 2;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print(&outcome, errors, right);
    }
    Ok(right)
}

/// The files and the generated credentials, three quarters of them acme's.
fn fill(
    args: &Args,
    acme: &Org,
    umbra: &Org,
    files: &[(Vec<u8>, Vec<u8>)],
) -> Result<(Mutex<Model>, Model, u64)> {
    let generated = args.records.saturating_sub(2 * files.len() as u64);
    let (mut model, mut others) = (Model::new(), Model::new());
    let bar = ProgressBar::new(args.records).with_style(style()).with_message("writing");
    for (name, content) in files {
        acme.put(name, content)?;
        umbra.put(name, content)?;
        model.insert(name.clone(), content.clone());
        others.insert(name.clone(), content.clone());
        bar.inc(2);
    }
    let numbers = generated - generated / 4;
    for number in 0..generated {
        let value = credential(number, 0);
        if number < numbers {
            acme.put(name(number), &value)?;
            model.insert(name(number), value);
        } else {
            umbra.put(name(number), &value)?;
            others.insert(name(number), value);
        }
        bar.inc(1);
    }
    bar.finish();
    Ok((Mutex::new(model), others, numbers))
}

/// Runs the second rotation in a child, notes what it acknowledges, and kills it half-way.
fn kill_in_the_middle(
    args: &Args,
    data: &Path,
    root: &str,
    numbers: u64,
    model: &Mutex<Model>,
    uncertain: &mut HashMap<Vec<u8>, Option<Vec<u8>>>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--child", &numbers.to_string(), "--threads", &args.threads.to_string()])
        .arg("--data")
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("the child has no stdin")?;
    writeln!(stdin, "{root}\n{}", random_key()?)?;
    let stdout = child.stdout.take().ok_or("the child has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["progress", fraction] if outcome.killed_at.is_empty() => {
                let fraction: f64 = fraction.parse()?;
                if fraction > 0.4 {
                    outcome.killed_at = format!("{:.0} %", fraction * 100.0);
                    child.kill()?;
                }
            }
            [what @ ("start" | "ack"), number, version, put] => {
                let (number, version) = (number.parse()?, version.parse()?);
                let value = (put == "1").then(|| credential(number, version));
                if what == "start" {
                    uncertain.insert(name(number), value);
                    continue;
                }
                outcome.acknowledged_in_killed_process += 1;
                uncertain.remove(&name(number));
                match value {
                    Some(value) => lock(model).insert(name(number), value),
                    None => lock(model).remove(&name(number)),
                };
            }
            // The last line may be cut off by the kill.
            _ => {}
        }
    }
    child.wait()?;
    if outcome.killed_at.is_empty() {
        return Err("the child ended before it could be killed".into());
    }
    Ok(())
}

/// The process that is killed: rotates slowly, works durably, tells the parent everything.
fn child(args: &Args, numbers: u64) -> Result<()> {
    let data = args.data.as_deref().ok_or("the child needs --data")?;
    let mut lines = std::io::stdin().lines();
    let mut line = || {
        lines.next().ok_or("the parent sent no key")?.map_err(Box::<dyn std::error::Error>::from)
    };
    let (root, key) = (line()?, line()?);
    let store = open(data, &root)?;
    let acme = store.org("acme")?;
    let mut model = Model::new();
    for record in acme.scan("") {
        let record = record?;
        model.insert(record.name, record.value.to_vec());
    }
    let rate = u32::try_from(model.len() / 4).unwrap_or(u32::MAX).max(10);
    store.keys().set_throttle(Throttle::unlimited().with_records_per_second(rate)?)?;
    let rotation = store.keys().provision("acme", KeyMaterial::from_base64(&key)?)?;
    let out = Mutex::new(std::io::stdout());
    let until = || {
        if let Some(fraction) = rotation.progress().fraction() {
            let mut out = lock(&out);
            let _ = writeln!(out, "progress {fraction}");
            let _ = out.flush();
        }
        false
    };
    let model = Mutex::new(model);
    load::work(&acme.durable(), &model, numbers, args.threads, 3, until, Some(&out))?;
    Ok(())
}

/// Every record of both orgs, byte for byte; keys, certificates, audit log.
fn check(
    store: &Store,
    model: &Model,
    others: &Model,
    uncertain: &HashMap<Vec<u8>, Option<Vec<u8>>>,
    outcome: &mut Outcome,
) -> Result<()> {
    for (org, model) in [("acme", model), ("umbra", others)] {
        let org = store.org(org)?;
        let mut found = HashMap::new();
        for record in org.scan("") {
            let record = record?;
            found.insert(record.name, record.value);
        }
        let names = model.keys().chain(found.keys()).chain(uncertain.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        for name in names {
            let is = found.get(name).map(|value| &value[..]);
            let may = uncertain.get(name).filter(|_| org.name() == "acme");
            let right = is == model.get(name).map(Vec::as_slice)
                || may.is_some_and(|value| is == value.as_deref());
            outcome.checked += 1;
            outcome.wrong += u64::from(!right);
        }
    }
    let umbra = store.keys().status("umbra")?;
    let one_version =
        |org: &str| Ok::<_, byokv::Error>(store.keys().census(org)?.by_version.len() == 1);
    outcome.other_org_untouched = umbra.versions.len() == 1 && one_version("umbra")?;
    outcome.wrong += u64::from(!one_version("acme")?);
    outcome.certificates = store.keys().certificates().collect::<byokv::Result<_>>()?;
    outcome.audit_entries = store.keys().audit().collect::<byokv::Result<Vec<_>>>()?.len() as u64;
    Ok(())
}

fn print(outcome: &Outcome, errors: u64, right: bool) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["", "before", "during the rotation"]);
    let (Some(before), Some(during)) = (&outcome.before, &outcome.during) else { return };
    for (what, before, during) in
        [("reads", &before.reads, &during.reads), ("writes", &before.writes, &during.writes)]
    {
        let cell = |l: &load::Latency| {
            format!(
                "{} — p50 {:.1} µs, p99 {:.1} µs, max {:.1} ms",
                l.count,
                l.p50_us,
                l.p99_us,
                l.max_us / 1000.0
            )
        };
        table.add_row([what.to_owned(), cell(before), cell(during)]);
    }
    println!("{table}");
    println!("records written         {} in {:.1} s", outcome.records, outcome.load_seconds);
    println!(
        "first rotation          {:.1} s, {:.0} records/s, under load",
        outcome.rotation_seconds, outcome.rotation_records_per_second
    );
    println!(
        "second rotation         killed at {} after {} durable writes, finished by itself in {:.1} s",
        outcome.killed_at, outcome.acknowledged_in_killed_process, outcome.finish_seconds
    );
    println!("records checked         {}, wrong {}", outcome.checked, outcome.wrong);
    println!("errors                  {errors}");
    println!("other org untouched     {}", if outcome.other_org_untouched { "yes" } else { "NO" });
    println!("audit entries verified  {}", outcome.audit_entries);
    for certificate in &outcome.certificates {
        println!("\n{certificate}");
    }
    println!("\n{}", if right { "All as it must be." } else { "SOMETHING IS OFF." });
}

fn files_below(folder: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let walk = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter();
    let walk = walk.filter_entry(|e| ![".git", "target"].iter().any(|skip| e.file_name() == *skip));
    let mut files = Vec::new();
    for entry in walk {
        let entry = entry?;
        if !entry.file_type().is_file() || entry.metadata()?.len() > byokv::MAX_VALUE_LEN as u64 {
            continue;
        }
        let name = entry.path().strip_prefix(folder)?.to_string_lossy().into_owned();
        files.push((format!("files/{name}").into_bytes(), std::fs::read(entry.path())?));
    }
    Ok(files)
}

fn open(data: &Path, root: &str) -> Result<Store> {
    // Else the limit that the killed child had set would hold on.
    let options = Options::new().throttle(Throttle::unlimited());
    Ok(options.open(data, RootKey::from_material(KeyMaterial::from_base64(root)?))?)
}

/// What `openssl rand -base64 32` prints.
fn random_key() -> Result<String> {
    let mut bytes = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes)?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[allow(clippy::cast_precision_loss)]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:28} {bar:30} {pos}/{len} {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

struct Bar(ProgressBar);

impl Bar {
    fn new(message: &'static str) -> Self {
        Self(ProgressBar::new(1).with_style(style()).with_message(message))
    }

    /// Whether the rotation has ended.
    fn follow(&self, rotation: &Rotation) -> bool {
        let progress = rotation.progress();
        self.0.set_length(progress.total.unwrap_or(progress.scanned + 1));
        self.0.set_position(progress.scanned);
        rotation.wait_timeout(Duration::ZERO).is_ok_and(|done| done.is_none()).eq(&false)
    }

    fn finish(&self) {
        self.0.finish();
    }
}
