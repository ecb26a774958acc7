//! What cannot be undone: letting a held key go, erasing an org, erasing old ciphertext.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use byokv::{Erasure, Residue, Store, text};
use clap::Args;

use super::failure::{Failure, Result};
use super::register::{newest, still_held};
use super::rotation;
use super::ui::{self, Ui};

#[derive(Args)]
pub(super) struct Delete {
    /// Name of the org
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct Retire {
    /// Name of the org
    org: String,
}

#[derive(Args)]
pub(super) struct Erase {
    /// Only say what would be erased
    #[arg(long)]
    dry_run: bool,
}

impl Delete {
    pub(super) fn run(self, ui: Ui, store: &Store) -> Result {
        let Self { name, yes } = self;
        let erasures = store.keys().erasures()?;
        if let Some(erasure) = erasures.iter().rfind(|erasure| erasure.org() == name)
            && store.org(&name).is_err()
        {
            return wait(ui, erasure);
        }
        let records = store.keys().census(&name)?.total();
        let held = store.keys().backups_of(&name)?;
        let what = format!(
            "Every key of org \"{name}\" is destroyed, and its {} with it. This store cannot bring \
             them back.\n{}{}",
            ui::records(records),
            still_held(&held.backups, held.missing),
            newest(&held.backups)
        );
        confirm(ui, &name, &what, yes)?;
        wait(ui, &store.keys().erase_org(&name)?)
    }
}

/// Waits for its end, with progress on stderr.
pub(super) fn wait(ui: Ui, erasure: &Erasure) -> Result {
    let mut bar = ui.bar();
    let certificate = loop {
        bar.show(&erasure.progress());
        if let Some(certificate) = erasure.wait_timeout(Duration::from_millis(100))? {
            break certificate;
        }
    };
    drop(bar);
    ui.result(&certificate, &certificate)?;
    if !certificate.backups.is_empty() || certificate.backups_missing > 0 {
        ui.warn(still_held(&certificate.backups, certificate.backups_missing));
    }
    Ok(())
}

impl Retire {
    pub(super) fn run(self, ui: Ui, store: &Store) -> Result {
        let rotation = store.keys().retire(&self.org)?;
        rotation::begun(ui, store, &rotation, false)
    }
}

impl Erase {
    pub(super) fn run(self, ui: Ui, store: &Store) -> Result {
        if self.dry_run {
            return residue(ui, &store.residue()?);
        }
        let erased = store.erase_residue()?;
        if ui.json {
            return ui::object(&erased);
        }
        let sum = |residue: &[Residue]| residue.iter().map(|found| found.envelopes).sum::<u64>();
        let found = sum(&erased.before).saturating_sub(sum(&erased.left));
        ui::line(format_args!(
            "{found} envelopes of retired keys erased; writes stood still for {:?}; the files had \
             {} bytes and have {} now",
            erased.writes_paused, erased.bytes_before, erased.bytes_after
        ))?;
        for path in elsewhere(&erased.left) {
            ui.note(format_args!(
                "{} holds envelopes of retired keys and is not a file of the store: it was left as it \
                 is, and their keys got no certificate; remove it, and erase again",
                text::path(path)
            ));
        }
        erased.certificates.iter().try_for_each(ui::line)
    }
}

fn elsewhere(residue: &[Residue]) -> BTreeSet<&Path> {
    residue.iter().flat_map(|residue| &residue.elsewhere).map(PathBuf::as_path).collect()
}

/// What is left of retired keys in the database's files.
fn residue(ui: Ui, residue: &[Residue]) -> Result {
    if residue.is_empty() && !ui.json {
        return ui::line("no envelope of a retired key is left in the database's files");
    }
    ui.rows(["org", "key", "envelopes", "bytes at most"], residue, |residue| {
        [
            residue.org.clone(),
            residue.version.to_string(),
            residue.envelopes.to_string(),
            residue.bytes_at_most.to_string(),
        ]
    })
}

/// After a rotation: its old ciphertext is still there.
pub(super) fn note_residue(ui: Ui, store: &Store, org: &str) -> Result {
    let residue = store.residue()?;
    let (envelopes, bytes) = residue
        .iter()
        .filter(|residue| residue.org == org)
        .fold((0, 0), |(n, bytes), r| (n + r.envelopes, bytes + r.bytes_at_most));
    if envelopes > 0 {
        ui.note(format_args!(
            "{org}: {envelopes} envelopes of its retired keys, at most {bytes} bytes, still lie in the \
             database's files; nobody has their keys; `byokv key erase` erases them"
        ));
    }
    Ok(())
}

/// Asks on a terminal; elsewhere wants `--yes`.
pub(super) fn confirm(ui: Ui, name: &str, what: &str, yes: bool) -> Result {
    confirm_by(ui, ("Name the org to go on", name), what, yes)
}

/// Asks on a terminal for one word; elsewhere wants `--yes`.
pub(super) fn confirm_by(ui: Ui, (ask, word): (&str, &str), what: &str, yes: bool) -> Result {
    if yes || !io::stdin().is_terminal() {
        ui.note(what);
        let how = || Failure::Usage("nothing was changed; add --yes to go on".to_owned());
        return yes.then_some(()).ok_or_else(how);
    }
    write!(io::stderr(), "{what}\n{ask}: ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::Failed(format!("reading the answer: {e}")))?;
    if answer.trim() == word {
        Ok(())
    } else {
        Err(Failure::Failed("not confirmed; nothing was changed".to_owned()))
    }
}
