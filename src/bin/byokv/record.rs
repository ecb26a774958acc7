//! `byokv put`, `get`, `delete`, `list`: records of an org.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use byokv::Org;
use clap::{ArgAction, Args};
use serde_json::json;

use super::Context;
use super::failure::{Failure, Result};
use super::jsonl::Line;
use super::secret::{self, Output};
use super::ui;

#[derive(Args)]
pub(super) struct Put {
    #[command(flatten)]
    record: Name,
    /// File of the value; `-` and the default are stdin
    #[arg(long)]
    file: Option<PathBuf>,
    /// Sync before the store is closed, and tell if that fails
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set
    )]
    durable: bool,
}

#[derive(Args)]
pub(super) struct Name {
    /// Name of the org
    org: String,
    /// Name of the record, 1 to 4,096 bytes
    name: OsString,
}

#[derive(Args)]
pub(super) struct List {
    /// Name of the org
    org: String,
    /// Only names that start so
    #[arg(default_value = "", hide_default_value = true)]
    prefix: OsString,
}

impl Put {
    pub(super) fn run(self, context: &Context) -> Result {
        let value = secret::value(self.file.as_deref())?;
        let name = self.record.name.as_encoded_bytes();
        context.with_store(|store| {
            let org = store.org(&self.record.org)?;
            let org = if self.durable { org.durable() } else { org };
            Ok(org.put(name, &*value)?)
        })?;
        let bytes = value.len();
        let text = format!("{} put, {bytes} bytes", ui::visible(name));
        context.ui.done(&about(&self.record.org, name, "bytes", bytes.into()), text)
    }
}

impl Name {
    pub(super) fn get(self, context: &Context) -> Result {
        let name = self.name.as_encoded_bytes();
        let value = context.with_store(|store| Ok(store.org(&self.org)?.get(name)?))?;
        let value = value.ok_or_else(|| {
            let name = ui::visible(name);
            Failure::NotFound(format!("org \"{}\" has no record \"{name}\"", self.org))
        })?;
        let mut out = Output::new()?;
        if context.ui.json {
            out.json(&Line { name, value: Some(&value) })?;
        } else {
            out.write_all(&value)?;
        }
        out.finish()
    }

    pub(super) fn delete(self, context: &Context) -> Result {
        let name = self.name.as_encoded_bytes();
        let existed = context.with_store(|store| {
            let org = store.org(&self.org)?.durable();
            let existed = org.contains(name)?;
            org.delete(name)?;
            Ok(existed)
        })?;
        let what = if existed { "deleted" } else { "was not there" };
        let text = format!("{} {what}", ui::visible(name));
        context.ui.done(&about(&self.org, name, "existed", existed.into()), text)
    }
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result {
        context.with_store(|store| {
            let org: Org = store.org(&self.org)?;
            let mut out = Output::new()?;
            for name in org.scan(self.prefix.as_encoded_bytes()).names() {
                let name = name?;
                if context.ui.json {
                    out.json(&Line { name: &name, value: None })?;
                } else {
                    writeln!(out, "{}", ui::visible(&name))?;
                }
            }
            out.finish()
        })
    }
}

fn about(org: &str, name: &[u8], field: &str, value: serde_json::Value) -> serde_json::Value {
    let mut json = json!(Line { name, value: None });
    json["org"] = org.into();
    json[field] = value;
    json
}
