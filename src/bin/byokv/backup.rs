//! `byokv backup`: made, and looked at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use byokv::{BackupContents, Error, LeftOut, Store};
use clap::{Args, Subcommand};

use super::Context;
use super::failure::{Failure, Result};
use super::register;
use super::restore::{Counted, open};
use super::secret::{self, Output};
use super::ui::{self, Ui};

const BACKUP: &str = "\
A backup shows one moment; the store works on meanwhile. It holds values, but no key of any org: who
has the backup key can read all of it, whatever becomes of the orgs' keys. Make that key once, keep
it elsewhere than the backups, and look what a backup holds without a store:

  (umask 077; byokv keygen > backup.key)
  byokv backup --key-file backup.key --out monday.backup
  byokv backup show --key-file backup.key monday.backup

The store keeps a register of them: `byokv backup list` lists all, `byokv backup list acme` those
that hold an org. Erasing an org does not reach them, and its certificate names them.";

#[derive(Args)]
#[command(after_help = BACKUP, args_conflicts_with_subcommands = true)]
pub(super) struct Backup {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    make: Make,
}

#[derive(Subcommand)]
enum Command {
    /// List the backups that were made, as far as the store knows, or those that hold an org
    List(register::List),
    /// Check every byte of a backup, and say what it holds; needs no store
    Show {
        #[command(flatten)]
        key: Key,
        /// The backup; `-` is stdin
        file: PathBuf,
    },
}

#[derive(Args)]
pub(super) struct Key {
    /// File of the backup key in base64, mode 0600
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Args)]
struct Make {
    /// Only these orgs; the default is all
    orgs: Vec<String>,
    #[command(flatten)]
    key: Key,
    /// A file that does not exist yet; the default is stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Leave out records that do not open, and name them
    #[arg(long)]
    skip_unreadable: bool,
}

impl Key {
    pub(super) fn read(&self, ui: Ui) -> Result<byokv::KeyMaterial> {
        let missing = || Failure::Usage("give the backup key with --key-file FILE".to_owned());
        secret::key(ui, Some(self.key_file.as_deref().ok_or_else(missing)?))
    }
}

impl Backup {
    pub(super) fn run(self, context: &Context) -> Result {
        match self.command {
            Some(Command::List(list)) => context.with_store(|store| list.run(context.ui, store)),
            Some(Command::Show { key, file }) => show(context.ui, &key.read(context.ui)?, &file),
            None => self.make.run(context),
        }
    }
}

impl Make {
    fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        let key = self.key.read(ui)?;
        if self.out.is_none() && io::stdout().is_terminal() {
            let how = "a backup is no text for a terminal; give --out FILE, or redirect stdout";
            return Err(Failure::Usage(how.to_owned()));
        }
        let contents = context.with_store(|store| match &self.out {
            Some(path) => {
                let mut file = NewFile::create(path)?;
                let contents = self.write(ui, store, &key, &mut file.file)?;
                file.keep()?;
                Ok(contents)
            }
            None => {
                let mut out = Output::new()?;
                let contents = self.write(ui, store, &key, &mut out)?;
                out.finish()?;
                Ok(contents)
            }
        })?;
        match &self.out {
            Some(path) => {
                let made = format!("{} in {}", summary(&contents), path.display());
                ui.done(&contents, made)?;
            }
            None => ui.note(summary(&contents)),
        }
        complete(ui, &contents)
    }

    fn write(
        &self,
        ui: Ui,
        store: &Store,
        key: &byokv::KeyMaterial,
        to: impl Write,
    ) -> Result<BackupContents> {
        let bar = ui.bar();
        let total = |org: &str| match bar.is_shown() {
            true => store.keys().census(org).map_or(0, |census| census.total()),
            false => 0,
        };
        let mut of = (String::new(), 0);
        let mut backup = store.backup(key).on_progress(|org, done| {
            if of.0 != org {
                of = (org.to_owned(), total(org));
            }
            bar.count(org, done, of.1.max(done));
        });
        for org in &self.orgs {
            backup = backup.only(org);
        }
        if self.skip_unreadable {
            backup = backup.skip_unreadable();
        }
        backup.write_to(to).map_err(|error| {
            if matches!(error, Error::RecordDamaged { .. } | Error::KeyRetired { .. }) {
                let how = "`byokv verify --deep` names every such record; --skip-unreadable \
                           leaves them out";
                ui.note(how);
            }
            error.into()
        })
    }
}

/// A file that is there under its name whole, or not at all.
struct NewFile {
    file: File,
    name: PathBuf,
    part: PathBuf,
}

impl NewFile {
    fn create(name: &Path) -> Result<Self> {
        let mut part = name.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let taken = |path: &Path| {
            Failure::Failed(format!(
                "the file {} exists already; nothing was changed",
                path.display()
            ))
        };
        if name.symlink_metadata().is_ok() {
            return Err(taken(name));
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&part) {
            Ok(file) => Ok(Self { file, name: name.to_owned(), part }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Failed(format!(
                "{} is there: another backup is being made, or one was cut off, and what is in it is \
                 useless; remove it if none is running; nothing was changed",
                part.display()
            ))),
            Err(e) => Err(Failure::Failed(format!("creating {}: {e}", part.display()))),
        }
    }

    /// Durably, and only if nobody has taken the name meanwhile.
    fn keep(self) -> Result {
        let failed = |e: io::Error| {
            Failure::Failed(format!(
                "writing {}: {e}; what was written was removed again",
                self.name.display()
            ))
        };
        self.file.sync_all().map_err(failed)?;
        let linked = fs::hard_link(&self.part, &self.name);
        // Not every file system has links; then somebody might take the name just now.
        let kept = linked.or_else(|e| match self.name.symlink_metadata() {
            Ok(_) => Err(e),
            Err(_) => fs::rename(&self.part, &self.name),
        });
        kept.map_err(failed)?;
        let folder = self.name.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Kept, it has its other name; else nobody can use what is there of it.
        let _ = fs::remove_file(&self.part);
    }
}

fn show(ui: Ui, key: &byokv::KeyMaterial, file: &Path) -> Result {
    let contents = if file == Path::new("-") {
        BackupContents::read(key, io::stdin().lock())?
    } else {
        let (file, len) = open(file)?;
        BackupContents::read(key, Counted::new(file, ui.bar(), "checking", len))?
    };
    if ui.json {
        ui::object(&contents)?;
    } else {
        ui::line(format_args!(
            "{}\nmade {}, store {}, key {}",
            summary(&contents),
            ui::time(contents.at_unix_ms),
            contents.store,
            contents.key
        ))?;
        ui.rows(["org", "id", "newest key", "entries", "bytes"], &contents.orgs, |org| {
            let (entries, bytes) = (org.entries.to_string(), org.bytes.to_string());
            [org.name.clone(), org.id.to_string(), org.newest_key.to_string(), entries, bytes]
        })?;
    }
    complete(ui, &contents)
}

fn summary(contents: &BackupContents) -> String {
    let all = if contents.whole_store { "all orgs" } else { "chosen orgs" };
    let entries = contents.orgs.iter().map(|org| org.entries).sum();
    format!(
        "backup {} of {all}: {}, {}",
        contents.id,
        orgs(contents.orgs.len()),
        ui::records(entries)
    )
}

fn orgs(count: usize) -> String {
    format!("{count} org{}", if count == 1 { "" } else { "s" })
}

/// Names what is not in it.
fn complete(ui: Ui, contents: &BackupContents) -> Result {
    for org in &contents.left_out {
        let text = format!("org \"{}\" is not in the backup: {}", org.name, org.why);
        match org.why {
            LeftOut::RefusedByPolicy => ui.note(text),
            _ => ui.warn(text),
        }
    }
    for record in &contents.unreadable {
        ui.warn(format_args!(
            "record \"{}\" of org \"{}\" is not in the backup: {}",
            record.name, record.org, record.why
        ));
    }
    match contents.is_complete() {
        true => Ok(()),
        false => Err(Failure::Fault("the backup is not complete".to_owned())),
    }
}
