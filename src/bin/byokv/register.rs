//! `byokv backup list`: which backups were made, and which hold an org.

use byokv::{BackupCopies, BackupCopy, BackupState, Store};
use clap::Args;

use super::failure::{Failure, Result};
use super::ui::{self, Ui};

#[derive(Args)]
pub(super) struct List {
    /// Only those that hold this org, or that it was restored from
    org: Option<String>,
}

impl List {
    pub(super) fn run(self, ui: Ui, store: &Store) -> Result {
        let missing = match self.org {
            Some(org) => {
                let BackupCopies { backups, missing, .. } = store.keys().backups_of(&org)?;
                ui.rows(["backup", "at", "state", "key", "store"], &backups, |copy| {
                    [
                        copy.backup.to_string(),
                        ui::time(copy.at_unix_ms),
                        copy.state.to_string(),
                        copy.key.to_string(),
                        copy.store.to_string(),
                    ]
                })?;
                missing
            }
            None => {
                let register = store.keys().backups()?;
                ui.rows(["backup", "at", "state", "key", "of"], &register.backups, |backup| {
                    let names: Vec<_> = backup.orgs.iter().map(|org| &*org.name).collect();
                    let of =
                        if backup.whole_store { "all orgs".to_owned() } else { names.join(", ") };
                    [
                        backup.backup.to_string(),
                        ui::time(backup.at_unix_ms),
                        backup.state.to_string(),
                        backup.key.to_string(),
                        of,
                    ]
                })?;
                register.missing
            }
        };
        match missing {
            0 => Ok(()),
            missing => Err(Failure::Damaged(format!(
                "{missing} entries of the register of backups are missing or damaged; nobody can say \
                 which backups those were"
            ))),
        }
    }
}

/// What the erasure of an org does not reach.
pub(super) fn still_held(backups: &[BackupCopy], missing: u64) -> String {
    let unfinished = backups.iter().filter(|copy| copy.state == BackupState::Unfinished).count();
    let mut text = match backups.len() {
        0 => "No backup that this store knows of holds it.".to_owned(),
        1 => "1 backup still holds it: destroy that backup, or its key.".to_owned(),
        held => format!("{held} backups still hold it: destroy these backups, or their keys."),
    };
    if unfinished > 0 {
        text += &format!(" Of these, {unfinished} not finished: they may hold a part of it.");
    }
    if missing > 0 {
        text += &format!(
            " There may be more: {missing} entries of the register of backups are missing."
        );
    }
    text
}

/// The newest of them, one on each line.
pub(super) fn newest(backups: &[BackupCopy]) -> String {
    const SHOWN: usize = 5;
    let shown = backups.iter().rev().take(SHOWN).map(|copy| format!("\n  {copy}"));
    let mut text: String = shown.collect();
    if backups.len() > SHOWN {
        text += &format!("\n  and {} older ones", backups.len() - SHOWN);
    }
    text
}
