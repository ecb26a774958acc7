//! `byokv`: a store from the command line. Uses nothing but the public API of the crate.

#![forbid(unsafe_code)]

mod audit;
mod backup;
mod certificate;
mod clock;
mod docker;
mod doctor;
mod dotenv_read;
mod dotenv_write;
mod entry;
mod erase;
mod failure;
mod foreign;
mod json;
mod jsonl;
mod key;
mod names;
mod open;
mod org;
mod record;
mod register;
mod restore;
mod root;
mod root_key;
mod rotation;
mod sealed;
mod secret;
mod setup;
mod shell;
mod status;
mod throttle;
mod transfer;
mod ui;
mod verify;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use byokv::{OrgId, RootKey, StorePosition, text};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::{Failure, Result};
use ui::Ui;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  failed, or a fault was found
  2  wrong usage
  3  another process has the store open
  4  no such store, org, record or certificate
  5  a key is wrong, refused or withheld
  6  something is damaged, or older than it must be
  7  nothing is wrong, but something waits for you: a rotation is paused, a key is held or overdue

Keys and values are read from stdin or a file, never from the arguments. A rotation that is under
way goes on whenever the store is open, so with every command.";

/// An embedded, encrypted key-value store: every org's values under its own key.
#[derive(Parser)]
#[command(version, after_long_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR", env = "BYOKV_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// File of the root key, mode 0600 or delivered by systemd, Kubernetes or Docker, or a pipe;
    /// else the key itself is read from BYOKV_ROOT_KEY
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BYOKV_ROOT_KEY_FILE",
        hide_env_values = true
    )]
    root_key_file: Option<PathBuf>,
    /// Open this store only, by the id that `byokv status` prints
    #[arg(long, global = true, value_name = "ID", env = "BYOKV_STORE_ID", hide_env_values = true)]
    expect_store: Option<OrgId>,
    /// Refuse an older copy of the store than this position, which `byokv status` prints
    #[arg(
        long,
        global = true,
        value_name = "POSITION",
        env = "BYOKV_MINIMUM_POSITION",
        hide_env_values = true
    )]
    minimum_position: Option<StorePosition>,
    /// Take a root key file that its group may read, mode 0640 or 0440, wherever it lies
    #[arg(
        long,
        global = true,
        env = "BYOKV_ALLOW_GROUP_READ",
        hide_env_values = true,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    allow_group_read: bool,
    /// How long to wait for a root key that comes through a pipe
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        default_value = "10s",
        hide_default_value = true,
        value_parser = humantime::parse_duration
    )]
    root_key_wait: Duration,
    /// Print JSON: one object, or one for each line
    #[arg(long, global = true)]
    json: bool,
    /// Print results, warnings and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Keep keys and values out of swap; needs CAP_IPC_LOCK or `ulimit -l unlimited`
    #[arg(
        long,
        global = true,
        env = "BYOKV_LOCK_MEMORY",
        hide_env_values = true,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    lock_memory: bool,
    /// Open the store in FIPS mode; needs a build with aws-lc's FIPS module
    #[arg(
        long,
        global = true,
        env = "BYOKV_FIPS",
        hide_env_values = true,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    fips: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a store
    Init(setup::Init),
    /// Print which store it is and how far it has got
    Status,
    /// Print a new key, as `openssl rand -base64 32` does
    Keygen,
    /// Orgs and what they may do
    #[command(subcommand)]
    Org(org::Command),
    /// Store a value, read from stdin or a file
    Put(record::Put),
    /// Print a value, byte for byte
    Get(record::Get),
    /// Delete a record, fine if there is none, or all whose names start alike
    Delete(record::Delete),
    /// List the names of an org's records
    List(record::List),
    /// Store records from a file: all of them, or none if one cannot be read
    Import(transfer::Import),
    /// Print records, values in clear
    Export(transfer::Export),
    /// Keys of orgs
    #[command(subcommand)]
    Key(key::Command),
    /// Rotations that are under way
    #[command(subcommand)]
    Rotation(rotation::Command),
    /// Count the records under each key and suite, and find faults
    Verify(verify::Verify),
    /// Certificates of retired and erased keys, suites and orgs
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// Print the audit log, each entry checked against the one before
    Audit(audit::Audit),
    /// What the store makes of this machine's clock, by which nothing is destroyed
    #[command(subcommand)]
    Clock(clock::Command),
    /// The key that wraps the store's keyring
    #[command(subcommand)]
    RootKey(root_key::Command),
    /// Make a sealed backup while the store can be used, or look what one holds
    Backup(backup::Backup),
    /// Restore orgs from a backup, each under a new key
    Restore(restore::Restore),
    /// Look for what is wrong with a store, and say what to do. It opens the store, and sled then
    /// mends what it can: of damaged files make a copy first
    Doctor,
    /// Print completions for a shell
    Completions(shell::Completions),
    /// Write manual pages into a directory
    Man(shell::Man),
}

/// What every command gets.
struct Context {
    global: Global,
    ui: Ui,
    root: Cell<Option<RootKey>>,
}

fn main() -> ExitCode {
    // Keys would stand in them.
    let forbidden = byokv::process::forbid_core_dumps();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let ui = Ui { json: cli.global.json, quiet: cli.global.quiet };
    if let Err(error) = forbidden {
        ui.warn(format_args!("a crash may leave keys in a core dump: {error}"));
    }
    let context = Context { global: cli.global, ui, root: Cell::new(None) };
    match run(&context, cli.command) {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            context.ui.failure(&failure);
            ExitCode::from(failure.code())
        }
    }
}

fn parse() -> Result<Cli, clap::Error> {
    let mut command = shell::without_empty_variables(Cli::command());
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Help and version are no failures; clap prints them, and in colour.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").trim_end().to_owned();
        Ui { json, quiet: false }.failure(&Failure::Usage(message));
    } else if let message = error.render().to_string()
        && text::clean(&message) != message
    {
        // It repeats an argument that a terminal would obey.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text::clean(&message).as_bytes());
    } else if error.print().is_err() {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn run(context: &Context, command: Command) -> Result {
    if context.global.lock_memory {
        byokv::process::lock_memory()?;
    }
    match command {
        Command::Init(init) => init.run(context),
        Command::Status => status::run(context),
        Command::Keygen => setup::keygen(context),
        Command::Org(command) => command.run(context),
        Command::Put(put) => put.run(context),
        Command::Get(get) => get.run(context),
        Command::Delete(delete) => delete.run(context),
        Command::List(list) => list.run(context),
        Command::Import(import) => import.run(context),
        Command::Export(export) => export.run(context),
        Command::Key(command) => command.run(context),
        Command::Rotation(command) => command.run(context),
        Command::Verify(verify) => verify.run(context),
        Command::Certificate(command) => command.run(context),
        Command::Audit(audit) => audit.run(context),
        Command::Clock(command) => command.run(context),
        Command::RootKey(command) => command.run(context),
        Command::Backup(backup) => backup.run(context),
        Command::Restore(restore) => restore.run(context),
        Command::Doctor => doctor::run(context),
        Command::Completions(completions) => completions.run(&context.ui, Cli::command()),
        Command::Man(man) => man.run(&context.ui, Cli::command()),
    }
}

impl Context {
    fn data(&self) -> Result<&Path> {
        let missing = || Failure::Usage("name the store with --data DIR or BYOKV_DATA".to_owned());
        self.global.data.as_deref().ok_or_else(missing)
    }
}
