//! `byokv import` and `export`.

use std::collections::{HashMap, hash_map};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use byokv::{MAX_NAME_LEN, MAX_NAME_SEGMENTS, MAX_VALUE_LEN, NamePolicy, Org};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Context;
use super::entry::{Entry, Refusal};
use super::failure::{Failure, Result};
use super::jsonl::{self, Line};
use super::names::{self, Nameless};
use super::secret::{self, Output, Secret};
use super::ui::{self, Bar};
use super::{docker, dotenv_read, dotenv_write};

const READERS: &str = "\
dotenv has no one format. What is written as `dotenv` bash (`set -a; . ./.env`), node (--env-file,
20.12 or newer), python-dotenv and dotenvy read alike, and what is imported they would read alike;
all else is refused. Docker's --env-file takes quotes for a part of the value: `docker` is what it
reads. Byte for byte, whatever a value holds: `jsonl`.";

#[derive(Args)]
#[command(after_help = READERS)]
pub(super) struct Import {
    /// Name of the org
    org: String,
    /// What the file is written in
    #[arg(long, value_enum)]
    format: Format,
    /// Put this before every name
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    #[command(flatten)]
    form: names::Form,
    /// Of records with the same name take the last, instead of refusing the file
    #[arg(long)]
    last_wins: bool,
    /// The file; `-` and the default are stdin
    file: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = READERS)]
pub(super) struct Export {
    /// Name of the org
    org: String,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// Only names that start so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    #[command(flatten)]
    form: names::Form,
    /// Leave the prefix out of the names
    #[arg(long)]
    strip_prefix: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// JSON Lines: {"name": …, "value": …}, or name_base64, value_base64 for what is not UTF-8
    Jsonl,
    /// NAME='value', as far as the readers of dotenv files agree
    Dotenv,
    /// NAME=value without quotes, for Docker's --env-file
    Docker,
}

type Records = Vec<(Vec<u8>, Secret)>;

impl Import {
    pub(super) fn run(self, context: &Context) -> Result {
        let prefix = self.form.read(&self.prefix)?;
        let content = secret::read(self.file.as_deref(), u64::MAX)?;
        // Some editors put a byte order mark there.
        let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
        // Everything is read before anything is written.
        let entries = match self.format {
            Format::Jsonl => jsonl::read(text).map_err(|refusal| vec![refusal]),
            Format::Dotenv => dotenv_read::read(text),
            Format::Docker => docker::read(text).map_err(|refusal| vec![refusal]),
        };
        drop(content);
        let (records, passed_over) = entries
            .and_then(|entries| self.records(entries, &prefix).map_err(|refusal| vec![refusal]))
            .map_err(|refusals| refused(&refusals))?;
        context.with_store(|store| {
            let org = store.org(&self.org)?;
            if store.keys().status(&self.org)?.policy.names() == NamePolicy::Blinded {
                let of = |(name, _): &(Vec<u8>, _)| name.split(|byte| *byte == b'/').count();
                if let Some(segments) = records.iter().map(of).find(|n| *n > MAX_NAME_SEGMENTS) {
                    let limit = MAX_NAME_SEGMENTS;
                    return Err(byokv::Error::NameDepth { segments, limit }.into());
                }
            }
            let (mut written, bar) = (0, context.ui.bar());
            write(&org, &records, &mut written, &bar).and_then(|()| store.sync()).map_err(|error| {
                let of = ui::records(records.len() as u64);
                context.ui.warn(format_args!("{written} of {of} were written before the error"));
                error.into()
            })
        })?;
        let count = records.len() as u64;
        let mut text = format!("{} imported", ui::records(count));
        if passed_over > 0 {
            text += &format!("; {passed_over} passed over, whose names came again");
        }
        let json = json!({"org": self.org, "records": count, "passed_over": passed_over});
        context.ui.done(&json, text)
    }

    /// Returns what is to be stored, each name once, and how many entries are not.
    fn records(&self, entries: Vec<Entry>, prefix: &[u8]) -> Result<(Records, u64), Refusal> {
        let mut seen: HashMap<Vec<u8>, (u64, usize)> = HashMap::new();
        let (mut records, mut passed_over): (Records, u64) = (Vec::new(), 0);
        for Entry { line, name, value } in entries {
            let name = [prefix, &name].concat();
            if name.is_empty() || name.len() > MAX_NAME_LEN {
                return Err(Refusal::new(line, format!("a name has 1 to {MAX_NAME_LEN} bytes")));
            }
            if value.len() > MAX_VALUE_LEN {
                let why = format!("a value has at most {MAX_VALUE_LEN} bytes");
                return Err(Refusal::new(line, why));
            }
            match seen.entry(name) {
                hash_map::Entry::Vacant(new) => {
                    records.push((new.key().clone(), value));
                    new.insert((line, records.len() - 1));
                }
                hash_map::Entry::Occupied(mut known) if self.last_wins => {
                    let (last, index) = known.get_mut();
                    *last = line;
                    records[*index].1 = value;
                    passed_over += 1;
                }
                hash_map::Entry::Occupied(known) => {
                    let (name, first) = (ui::visible(known.key()), known.get().0);
                    let why = format!(
                        "the record \"{name}\" stands in line {first} already; give --last-wins to \
                         store what comes last"
                    );
                    return Err(Refusal::new(line, why));
                }
            }
        }
        Ok((records, passed_over))
    }
}

/// The first line in whole, and some of the others.
fn refused(refusals: &[Refusal]) -> Failure {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for (number, Refusal { line, why }) in refusals.iter().take(SHOWN).enumerate() {
        text += &match number {
            0 => format!("line {line}: {why}; nothing was written"),
            _ => format!("\n  line {line}: {why}"),
        };
    }
    if refusals.len() > SHOWN {
        text += &format!("\n  and {} more lines", refusals.len() - SHOWN);
    }
    Failure::Failed(text)
}

/// In batches, each of which is written whole or not at all.
fn write(org: &Org, records: &Records, written: &mut u64, bar: &Bar) -> byokv::Result<()> {
    const RECORDS: usize = 1000;
    const BYTES: usize = 8 << 20;
    let mut left = &records[..];
    while !left.is_empty() {
        let (mut batch, mut count, mut bytes) = (org.batch(), 0, 0);
        while let Some((name, value)) = left.get(count)
            && count < RECORDS
            && bytes < BYTES
        {
            batch = batch.put(name, &**value);
            (count, bytes) = (count + 1, bytes + value.len());
        }
        batch.commit()?;
        *written += count as u64;
        bar.count("writing", *written, records.len() as u64);
        left = &left[count..];
    }
    Ok(())
}

impl Export {
    pub(super) fn run(self, context: &Context) -> Result {
        let prefix = self.form.read(&self.prefix)?;
        let (mut count, mut quoted) = (0, 0);
        context.with_store(|store| {
            let mut out = Output::new()?;
            // What programs shall read is written whole or not at all.
            let (mut lines, mut refused) = (Vec::new(), Refused::default());
            let mut nameless = Nameless::default();
            for record in store.org(&self.org)?.scan(&prefix) {
                let Some(record) = nameless.pass(record)? else { continue };
                let strip = if self.strip_prefix { prefix.len() } else { 0 };
                let name = record.name.get(strip..).unwrap_or_default();
                let line = match self.format {
                    Format::Jsonl => {
                        out.json(&Line { name, value: Some(&record.value) })?;
                        count += 1;
                        continue;
                    }
                    Format::Dotenv => dotenv_write::line(name, &record.value),
                    Format::Docker => docker::line(name, &record.value),
                };
                match line {
                    Ok(line) => lines.push(line),
                    Err(why) => refused.add(name, why),
                }
            }
            refused.check()?;
            if !matches!(self.format, Format::Jsonl) {
                std::mem::take(&mut nameless).end()?;
            }
            for line in &lines {
                out.write_all(line)?;
            }
            count += lines.len() as u64;
            if matches!(self.format, Format::Dotenv) {
                quoted = lines.iter().filter(|line| dotenv_write::is_quoted(line)).count();
            }
            out.finish()?;
            nameless.end()
        })?;
        context.ui.note(format_args!("{} exported", ui::records(count)));
        if quoted > 0 {
            context.ui.note(format_args!(
                "{quoted} in quotes, which Docker's --env-file would take for a part of the value; \
                 for it use --format docker"
            ));
        }
        Ok(())
    }
}

/// Records that cannot be written, the first of them with their names.
#[derive(Default)]
struct Refused {
    named: Vec<String>,
    count: usize,
}

impl Refused {
    fn add(&mut self, name: &[u8], why: &str) {
        const NAMED: usize = 20;
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("\n  \"{}\": {why}", ui::visible(name)));
        }
    }

    fn check(self) -> Result {
        let Self { mut named, count } = self;
        if count == 0 {
            return Ok(());
        }
        if count > named.len() {
            named.push(format!("\n  and {} more", count - named.len()));
        }
        Err(Failure::Failed(format!(
            "{} cannot be written so that every reader takes {} as {} stored; nothing was written; \
             use --format jsonl, or another --prefix with --strip-prefix{}",
            ui::records(count as u64),
            if count == 1 { "it" } else { "them" },
            if count == 1 { "it is" } else { "they are" },
            named.concat()
        )))
    }
}
