//! `byokv key foreign`: keys of other stores that restored orgs may not have.

use byokv::{BackupId, Fingerprint, ForeignKeys};
use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::failure::Result;
use super::key::fingerprint;
use super::ui;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the backups that such keys came with
    List {
        /// Only those that came with this key, by its fingerprint
        #[arg(long, value_name = "HEX", value_parser = fingerprint)]
        fingerprint: Option<Fingerprint>,
    },
    /// Forget what came with a backup: the orgs that came with it may have those keys then
    Drop {
        /// Id of the backup, 32 hex digits
        #[arg(value_parser = backup)]
        backup: BackupId,
    },
}

pub(super) fn backup(text: &str) -> std::result::Result<BackupId, &'static str> {
    text.parse().map_err(|_| "the id of a backup has 32 hex digits")
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| match self {
            Self::List { fingerprint } => {
                let mut all = store.keys().foreign_keys();
                all.retain(|foreign| {
                    fingerprint.is_none_or(|key| foreign.keys.binary_search(&key).is_ok())
                });
                if ui.json {
                    return all.iter().try_for_each(|foreign| ui::object(&json(foreign)));
                }
                ui.rows(["backup", "restored", "keys", "orgs"], &all, |foreign| {
                    let names: Vec<_> = foreign.orgs.iter().map(|(name, _)| &**name).collect();
                    [
                        foreign.backup.to_string(),
                        ui::time(foreign.restored_unix_ms),
                        foreign.keys.len().to_string(),
                        ui::visible(names.join(", ").as_bytes()),
                    ]
                })
            }
            Self::Drop { backup } => {
                let keys = store.keys().drop_foreign_keys(backup)?;
                let text = format!("{keys} fingerprints dropped, which came with backup {backup}");
                ui.done(&json!({"backup": backup, "dropped": keys}), text)
            }
        })
    }
}

fn json(foreign: &ForeignKeys) -> serde_json::Value {
    let orgs = foreign.orgs.iter().map(|(name, id)| json!({"name": name, "id": id}));
    json!({
        "backup": foreign.backup,
        "restored_unix_ms": foreign.restored_unix_ms,
        "keys": foreign.keys.len(),
        "orgs": orgs.collect::<Vec<_>>(),
    })
}
