//! `byokv audit`: every change of a key, provably.

use std::fmt::Display;

use byokv::{OrgId, Store};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::Context;
use super::certificate;
use super::failure::{Failure, Result};
use super::ui::{self, Ui};

#[derive(Args)]
pub(super) struct Audit {
    /// Only what this org may see: entries about it, which name no other org
    #[arg(long)]
    org: Option<String>,
    /// Like --org, by the id: also of an org that is erased, whose name another one has now
    #[arg(long, value_name = "ID", conflicts_with = "org")]
    org_id: Option<OrgId>,
    /// Print only whether the whole log is as it was written, and the store still keeps every
    /// certificate that it proves
    #[arg(long)]
    verify: bool,
}

/// One line, or several where the terminal is narrow, indented behind number and time.
fn say(ui: Ui, entry: &(impl Serialize + Display)) -> Result {
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
            let org = org_id(ui, store, self.org.as_deref(), self.org_id)?;
            match org {
                _ if self.verify => verify(ui, store),
                Some(org) => store.keys().audit_of(org).try_for_each(|entry| say(ui, &entry?)),
                None => store.keys().audit().try_for_each(|entry| say(ui, &entry?)),
            }
        })
    }
}

fn verify(ui: Ui, store: &Store) -> Result {
    let mut entries = 0_u64;
    for entry in store.keys().audit() {
        entry.map_err(|error| Failure::Fault(error.to_string()))?;
        entries += 1;
    }
    let lost = store.keys().lost_certificates()?;
    certificate::lost(ui, &lost)?;
    if !lost.is_empty() {
        let why = format!("the log proves {} certificates that are lost", lost.len());
        return Err(Failure::Fault(why));
    }
    let head = store.keys().audit_head();
    let json = json!({"entries": entries, "intact": true, "head": head});
    ui.done(&json, format_args!("{entries} entries, the log is whole; it ends with {head}"))
}

/// Whose log or certificates are asked for: the org that has the name, or was the last to have it.
pub(super) fn org_id(
    ui: Ui,
    store: &Store,
    name: Option<&str>,
    id: Option<OrgId>,
) -> Result<Option<OrgId>> {
    let Some(name) = name else { return Ok(id) };
    let ids = store.keys().ids_of(name)?;
    if let [earlier @ .., _] = &ids[..]
        && !earlier.is_empty()
    {
        let earlier: Vec<_> = earlier.iter().map(ToString::to_string).collect();
        ui.note(format_args!(
            "orgs of this name were erased before: --org-id {}",
            earlier.join(", --org-id ")
        ));
    }
    Ok(ids.last().copied())
}
