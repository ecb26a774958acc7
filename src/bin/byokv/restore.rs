//! `byokv restore`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use byokv::{Error, Origin, RecordSelection, Restored};
use clap::Args;

use super::Context;
use super::backup::Key;
use super::failure::{Failure, Result, quoted};
use super::secret;
use super::ui::{self, Bar, Ui};

#[derive(Args)]
pub(super) struct Restore {
    #[command(flatten)]
    key: Key,
    /// The backup, a file
    file: PathBuf,
    /// Only this org; may be given several times
    #[arg(long, value_name = "ORG")]
    org: Vec<String>,
    /// Restore that org under another name, also beside the one that is there
    #[arg(long = "as", value_name = "NAME", requires = "org")]
    rename: Option<String>,
    /// Only this record of that org, into an org that is there
    #[arg(long, value_name = "NAME", requires = "org", conflicts_with_all = ["prefix", "rename", "with_key"])]
    record: Option<String>,
    /// Only the records of that org whose names start like this, into an org that is there
    #[arg(long, requires = "org", conflicts_with_all = ["rename", "with_key"])]
    prefix: Option<String>,
    /// The org that such records go into; the default is the one of the same name
    #[arg(long, value_name = "ORG", requires = "org")]
    into: Option<String>,
    /// Overwrite records that are there
    #[arg(long, requires = "org")]
    overwrite: bool,
    /// Put this org directly under a key that it brings, of which FILE holds the base64; may be
    /// given for several orgs
    #[arg(long, value_name = "ORG=FILE", value_parser = org_and_file)]
    with_key: Vec<(String, PathBuf)>,
}

fn org_and_file(text: &str) -> std::result::Result<(String, PathBuf), &'static str> {
    let (org, file) = text.rsplit_once('=').ok_or("an org and a file, such as acme=acme.key")?;
    Ok((org.to_owned(), file.into()))
}

impl Restore {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        let key = self.key.read(ui)?;
        let (file, len) = open(&self.file)?;
        let which = match (&self.record, &self.prefix) {
            (Some(name), _) => Some(RecordSelection::Name(name.as_bytes())),
            (None, Some(prefix)) => Some(RecordSelection::Prefix(prefix.as_bytes())),
            (None, None) => None,
        };
        if which.is_none() && (self.into.is_some() || self.overwrite) {
            let how = "--into and --overwrite go with --record or --prefix";
            return Err(Failure::Usage(how.to_owned()));
        }
        if (which.is_some() || self.rename.is_some()) && self.org.len() != 1 {
            let how = "--as, --record and --prefix are about one org: give --org once";
            return Err(Failure::Usage(how.to_owned()));
        }
        if let (Some(which), [org]) = (which, &self.org[..]) {
            let from = Counted::new(file, ui.bar(), "checking", len);
            return context.with_store(|store| {
                let into = store.org(self.into.as_deref().unwrap_or(org))?;
                let restore = store.restore(&key);
                let restored = restore.records_from(from, org, which, &into, self.overwrite)?;
                let records = ui::records(restored.records);
                ui.done(&restored, format!("{records} restored into {}", into.name()))
            });
        }
        let restored = context.with_store(|store| {
            let mut restore = store.restore(&key);
            for org in &self.org {
                restore = restore.only(org);
            }
            for (org, name) in self.org.iter().zip(&self.rename) {
                restore = restore.rename(org, name);
            }
            for (org, file) in &self.with_key {
                restore = restore.with_key(org, secret::key(ui, Some(file))?);
            }
            restore.read_from(Counted::new(file, ui.bar(), "checking", len)).map_err(advised)
        })?;
        print(ui, &restored, &self.org)
    }
}

/// What the tool advises elsewhere is of orgs that are there.
fn advised(error: Error) -> Failure {
    let advice = match &error {
        Error::NotEntitled { org } => format!(
            "restore it without --with-key, then `byokv org policy {0} --byok` and `byokv key \
             provision {0}`",
            quoted(org)
        ),
        Error::OrgExists { org } => format!(
            "restore it under another name (`--org {0} --as NAME`), or into a new store (`byokv --data \
             NEW init`), choose other orgs with --org, or first delete the one that is here: `byokv org delete {0}`",
            quoted(org)
        ),
        _ => return error.into(),
    };
    Failure::Advised(error, advice)
}

fn print(ui: Ui, restored: &Restored, chosen: &[String]) -> Result {
    for org in &restored.orgs {
        let text = format!(
            "{} restored, {} under {} key {}",
            org.name,
            ui::records(org.records),
            org.origin,
            org.key
        );
        ui.done(org, text)?;
        if (org.was_origin, org.origin) == (Origin::Customer, Origin::Platform) {
            ui.note(format_args!(
                "{} had brought a key of its own: it has to bring another, with `byokv key provision {}`",
                org.name, org.name
            ));
        }
    }
    // Whoever asks for some orgs is told nothing of others.
    let asked = |name: &str| chosen.is_empty() || chosen.iter().any(|each| each == name);
    for org in restored.backup.left_out.iter().filter(|org| asked(&org.name)) {
        ui.warn(format_args!("org \"{}\" is not in the backup: {}", org.name, org.why));
    }
    Ok(())
}

pub(super) fn open(path: &Path) -> Result<(BufReader<File>, u64)> {
    if path == Path::new("-") {
        let why = "a backup is read twice, so it cannot come from a pipe: save it to a file first";
        return Err(Failure::Usage(why.to_owned()));
    }
    let failed = |e: io::Error| Failure::Failed(format!("reading {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        let why = format!("{} is not a file, which can be read twice", path.display());
        return Err(Failure::Usage(why));
    }
    Ok((BufReader::with_capacity(128 << 10, file), meta.len()))
}

/// Shows how much was read.
pub(super) struct Counted<R> {
    from: R,
    bar: Bar,
    what: &'static str,
    read: u64,
    of: u64,
}

impl<R> Counted<R> {
    pub(super) fn new(from: R, bar: Bar, what: &'static str, of: u64) -> Self {
        Self { from, bar, what, read: 0, of }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes)?;
        self.read += read as u64;
        self.bar.count(self.what, self.read, self.of);
        Ok(read)
    }
}

impl<R: Seek> Seek for Counted<R> {
    /// The second time it is read to be restored.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        if self.read > 0 && to == SeekFrom::Start(0) {
            (self.what, self.read) = ("restoring", 0);
        }
        self.from.seek(to)
    }
}
