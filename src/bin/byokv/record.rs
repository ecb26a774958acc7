//! `byokv put`, `get`, `delete`, `list`: records of an org.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byokv::text::is_visible;
use byokv::{Error, Org};
use clap::{ArgAction, Args};
use serde_json::json;

use super::failure::{Failure, Result};
use super::jsonl::Line;
use super::names::Nameless;
use super::secret::{self, Output};
use super::{Context, erase, names, ui};

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
    #[command(flatten)]
    form: names::Form,
}

#[derive(Args)]
pub(super) struct Get {
    #[command(flatten)]
    record: Name,
    /// Print the value on a terminal too where that would obey some of it
    #[arg(long)]
    raw: bool,
}

#[derive(Args)]
pub(super) struct Delete {
    /// Name of the org
    org: String,
    /// Name of the record, 1 to 4,096 bytes
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    name: Option<OsString>,
    /// Delete every record whose name starts so
    #[arg(long)]
    prefix: Option<OsString>,
    #[command(flatten)]
    form: names::Form,
    /// Do not ask
    #[arg(long, conflicts_with = "name")]
    yes: bool,
}

const LISTED: &str = "\
Each name is one line of visible text: backslashes, control and invisible characters and bytes that are
not UTF-8 are escaped. What is printed can be given back with --escaped, behind `--` also where it
begins with `-`:

  byokv list acme > names
  while read -r name; do byokv get acme --escaped -- \"$name\"; done < names";

#[derive(Args)]
#[command(after_help = LISTED)]
pub(super) struct List {
    /// Name of the org
    org: String,
    /// Only names that start so
    #[arg(default_value = "", hide_default_value = true)]
    prefix: OsString,
    #[command(flatten)]
    form: names::Form,
    /// Print each name as it is, and a zero byte after it instead of a line end
    #[arg(long, short = '0', conflicts_with = "json")]
    raw: bool,
}

impl Put {
    pub(super) fn run(self, context: &Context) -> Result {
        let value = secret::value(self.file.as_deref())?;
        let name = &self.record.form.read(&self.record.name)?;
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

impl Get {
    pub(super) fn run(self, context: &Context) -> Result {
        let Name { org, name, form } = self.record;
        let name = &form.read(&name)?;
        let value = context.with_store(|store| Ok(store.org(&org)?.get(name)?))?;
        let value = value.ok_or_else(|| {
            let (name, org) = (ui::visible(name), ui::visible(org.as_bytes()));
            Failure::NotFound(format!("org \"{org}\" has no record \"{name}\""))
        })?;
        let mut out = Output::new()?;
        if context.ui.json {
            out.json(&Line { name, value: Some(&value) })?;
        } else {
            if !self.raw {
                refuse_on_terminal(&value)?;
            }
            out.write_all(&value)?;
        }
        out.finish()
    }
}

/// What a program reads is given byte for byte; a terminal would obey some bytes.
fn refuse_on_terminal(value: &[u8]) -> Result {
    let is_shown = |c: char| is_visible(c) || c == '\n' || c == '\t';
    let is_text =
        str::from_utf8(value).is_ok_and(|text| text.replace("\r\n", "\n").chars().all(is_shown));
    if is_text || !io::stdout().is_terminal() {
        return Ok(());
    }
    let why = "the value is not plain text: a terminal would obey some of it; nothing was printed; \
               redirect stdout to a file or a program, print JSON with --json, or add --raw";
    Err(Failure::Usage(why.to_owned()))
}

impl Delete {
    pub(super) fn run(self, context: &Context) -> Result {
        let Self { org, name, prefix, form, yes } = self;
        if let Some(prefix) = prefix {
            return delete_all(context, &org, &form.read(&prefix)?, yes);
        }
        let name = form.read(&name.unwrap_or_default())?;
        let existed = context.with_store(|store| {
            let org = store.org(&org)?.durable();
            let existed = org.contains(&name)?;
            org.delete(&name)?;
            Ok(existed)
        })?;
        let what = if existed { "deleted" } else { "was not there" };
        let text = format!("{} {what}", ui::visible(&name));
        context.ui.done(&about(&org, &name, "existed", existed.into()), text)
    }
}

/// Deletes every record whose name starts with `prefix`, once somebody has agreed to their number.
fn delete_all(context: &Context, name: &str, prefix: &[u8], yes: bool) -> Result {
    let deleted = context.with_store(|store| {
        let org = store.org(name)?.durable();
        let mut count = 0_u64;
        for name in org.scan(prefix).names() {
            count += u64::from(named(name)?.is_some());
        }
        if count > 0 {
            let shown = ui::visible(prefix);
            let what = format!(
                "{} of org \"{name}\", whose names start with \"{shown}\", {} deleted. Nobody can bring \
                 {} back.",
                ui::records(count),
                if count == 1 { "is" } else { "are" },
                if count == 1 { "it" } else { "them" },
            );
            erase::confirm(context.ui, name, &what, yes)?;
        }
        let (mut deleted, bar) = (0, context.ui.bar());
        in_batches(&org, prefix, |batch| {
            deleted += batch;
            bar.count("deleting", deleted, count);
        })
        .inspect_err(|_| {
            let of = ui::records(count);
            context.ui.warn(format_args!("{deleted} of {of} were deleted before the error"));
        })?;
        Ok(deleted)
    })?;
    let prefix = match str::from_utf8(prefix) {
        Ok(prefix) => json!({"prefix": prefix}),
        Err(_) => json!({"prefix_base64": STANDARD.encode(prefix)}),
    };
    let mut json = json!({"org": name, "deleted": deleted});
    for (field, value) in prefix.as_object().into_iter().flatten() {
        json[field] = value.clone();
    }
    context.ui.done(&json, format_args!("{} deleted", ui::records(deleted)))
}

fn in_batches(org: &Org, prefix: &[u8], mut deleted: impl FnMut(u64)) -> Result {
    const RECORDS: u64 = 1000;
    let mut names = org.scan(prefix).names();
    loop {
        let (mut batch, mut len) = (org.batch(), 0);
        while len < RECORDS
            && let Some(name) = names.next()
        {
            if let Some(name) = named(name)? {
                batch = batch.delete(name);
                len += 1;
            }
        }
        if len == 0 {
            return Ok(());
        }
        batch.commit()?;
        deleted(len);
    }
}

/// The name; `None` for a record without one, which `org remove-nameless` deletes.
fn named(name: byokv::Result<Vec<u8>>) -> byokv::Result<Option<Vec<u8>>> {
    match name {
        Err(Error::RecordNameless { .. }) => Ok(None),
        name => name.map(Some),
    }
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result {
        let prefix = self.form.read(&self.prefix)?;
        context.with_store(|store| {
            let org: Org = store.org(&self.org)?;
            let (mut out, mut nameless) = (Output::new()?, Nameless::default());
            for name in org.scan(prefix).names() {
                let Some(name) = nameless.pass(name)? else { continue };
                if context.ui.json {
                    out.json(&Line { name: &name, value: None })?;
                } else if !self.raw {
                    writeln!(out, "{}", ui::visible(&name))?;
                } else if name.contains(&b'\0') {
                    out.flush()?;
                    return Err(Failure::Failed(format!(
                        "the name \"{}\" has a zero byte, which --raw cannot tell from its end; list \
                         without --raw, or with --json",
                        ui::visible(&name)
                    )));
                } else {
                    out.write_all(&name)?;
                    out.write_all(b"\0")?;
                }
            }
            out.finish()?;
            nameless.end()
        })
    }
}

fn about(org: &str, name: &[u8], field: &str, value: serde_json::Value) -> serde_json::Value {
    let mut json = json!(Line { name, value: None });
    json["org"] = org.into();
    json[field] = value;
    json
}
