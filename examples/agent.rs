//! The crate inside a tokio process: cluster credentials that are read and refreshed, a rotation
//! on SIGHUP, metrics printed, a clean end on SIGINT or SIGTERM.
//!
//! `--init` makes the store, once. Without it the agent opens the one that is there and never makes
//! another: if its directory is missing or is another store's, it must not begin anew with nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use byokv::{Error, KeyAdmin, KeyMaterial, Options, Org, OrgId, OrgPolicy, RootKey, Store};
use clap::Parser;
use rand::TryRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::interval;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CLUSTERS: usize = 50;

/// An agent that keeps cluster credentials sealed, and rotates their key on SIGHUP.
#[derive(Parser)]
struct Args {
    /// Make the store and its root key, print the store's id, and end.
    #[arg(long)]
    init: bool,
    /// Open the store with this id only.
    #[arg(long)]
    expect_store: Option<OrgId>,
    /// The store's folder.
    #[arg(long, default_value = "agent-data")]
    data: PathBuf,
    /// File with the root key (mode 0600). Keep it elsewhere than the data.
    #[arg(long, default_value = "agent-root-key")]
    root_key_file: PathBuf,
    /// Stop after this many seconds; 0 runs until a signal.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    if args.init {
        return init(&args);
    }
    let root = RootKey::from_file(&args.root_key_file)?;
    let options = Options::new().create(false);
    let options = match args.expect_store {
        Some(store) => options.expect_store(store),
        None => options,
    };
    let store = Arc::new(options.open(&args.data, root)?);
    let acme = store.org("acme")?;
    // Before anybody is told the process's number: until then a signal ends it.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let pid = std::process::id();
    println!("agent {pid}: `kill -HUP {pid}` rotates the key, `kill {pid}` stops");

    let mut refresh = interval(Duration::from_millis(200));
    let mut report = interval(Duration::from_secs(5));
    let lifetime = match args.seconds {
        0 => Duration::from_secs(u64::from(u32::MAX)),
        seconds => Duration::from_secs(seconds),
    };
    let end = tokio::time::sleep(lifetime);
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = refresh.tick() => {
                let acme = acme.clone();
                spawn_blocking(move || refresh_credentials(&acme)).await??;
            }
            _ = report.tick() => {
                let store = Arc::clone(&store);
                println!("{}", spawn_blocking(move || metrics(&store)).await??);
            }
            _ = hangup.recv() => {
                let keys = store.keys();
                // Not awaited: reads and writes go on meanwhile. It does not hold the store, so
                // the agent can close it while the rotation is under way, and that ends the wait.
                spawn_blocking(move || rotate(&keys));
            }
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
            () = &mut end => break,
        }
    }
    drop(acme);
    // Nobody else holds the store: what borrows it was awaited above.
    if let Some(store) = Arc::into_inner(store) {
        spawn_blocking(move || store.close()).await??;
    }
    println!("agent {pid}: stopped, everything is durable");
    Ok(())
}

/// What is done once, before any agent runs.
fn init(args: &Args) -> Result<()> {
    make_root_key(&args.root_key_file)?;
    let store = Store::open(&args.data, RootKey::from_file(&args.root_key_file)?)?;
    store.create_org("acme", OrgPolicy::byok())?;
    println!("made the store {}; start the agent with --expect-store {0}", store.id());
    Ok(store.close()?)
}

/// What an agent does all day: reads every credential, and stores a fresh one where it is due.
fn refresh_credentials(acme: &Org) -> Result<()> {
    for cluster in 0..CLUSTERS {
        let name = format!("clusters/{cluster:03}/token");
        let due = acme.get(&name)?.is_none_or(|token| token.first().is_none_or(|b| b % 16 == 0));
        if due {
            let mut token = [0; 48];
            rand::rngs::SysRng.try_fill_bytes(&mut token)?;
            acme.put(&name, token)?;
        }
    }
    Ok(())
}

fn rotate(keys: &KeyAdmin) {
    let rotated = keys.rotate_platform_key("acme").and_then(|rotation| {
        println!("{}", rotation.progress());
        rotation.wait()
    });
    match rotated {
        Ok(certificate) => println!("{certificate}"),
        Err(Error::Closed) => println!("the rotation goes on when the agent starts again"),
        Err(error) => eprintln!("rotation: {error}"),
    }
}

fn metrics(store: &Store) -> Result<String> {
    Ok(serde_json::to_string(&store.metrics()?)?)
}

fn make_root_key(path: &std::path::Path) -> Result<()> {
    use base64::Engine as _;
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut bytes = [0; KeyMaterial::LEN];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes)?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    println!("made a root key in {}; without it the data is lost", path.display());
    Ok(())
}
