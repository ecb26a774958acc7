//! `byokv audit`: every change of a key, provably.

use byokv::{AuditEntry, AuditEvent};
use clap::Args;
use serde_json::json;

use super::Context;
use super::certificate;
use super::failure::{Failure, Result};
use super::ui::{self, Ui};

#[derive(Args)]
pub(super) struct Audit {
    /// Only entries about this org
    #[arg(long)]
    org: Option<String>,
    /// Print only whether the whole log is as it was written, and the store still keeps every
    /// certificate that it proves
    #[arg(long)]
    verify: bool,
}

/// A backup may be of several orgs.
fn is_about(entry: &AuditEntry, org: &str) -> bool {
    match &entry.event {
        AuditEvent::BackupMade { orgs, .. } => orgs.iter().any(|each| each.name == org),
        AuditEvent::BackupBegun { only, .. } => {
            only.is_empty() || only.iter().any(|each| each.name == org)
        }
        _ => entry.org.as_ref().is_some_and(|each| each.name == org),
    }
}

/// One line, or several where the terminal is narrow, indented behind number and time.
fn say(ui: Ui, entry: &AuditEntry) -> Result {
    if ui.json {
        return ui::object(entry);
    }
    let text = entry.to_string();
    let indent = 2 + text.find("Z  ").map_or(0, |at| at + 1);
    let (start, what) = text.split_at_checked(indent).unwrap_or((&text, ""));
    ui::indented(start, indent, what)
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| {
            let (mut entries, mut about) = (0_u64, 0_u64);
            for entry in store.keys().audit() {
                let entry = entry.map_err(|error| match self.verify {
                    true => Failure::Fault(error.to_string()),
                    false => error.into(),
                })?;
                entries += 1;
                if self.org.as_ref().is_none_or(|org| is_about(&entry, org)) {
                    about += 1;
                    if !self.verify {
                        say(ui, &entry)?;
                    }
                }
            }
            // The log knows erased orgs too.
            if let Some(org) = self.org.as_ref().filter(|_| about == 0) {
                store.org(org)?;
            }
            if self.verify {
                let lost = store.keys().lost_certificates()?;
                certificate::lost(ui, &lost)?;
                if !lost.is_empty() {
                    let why = format!("the log proves {} certificates that are lost", lost.len());
                    return Err(Failure::Fault(why));
                }
                let head = store.keys().audit_head();
                let json = json!({"entries": entries, "intact": true, "head": head});
                ui.done(
                    &json,
                    format_args!("{entries} entries, the log is whole; it ends with {head}"),
                )?;
            }
            Ok(())
        })
    }
}
