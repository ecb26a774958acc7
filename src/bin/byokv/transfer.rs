//! `byokv import` and `export`, and their JSON Lines.

use std::io::Write;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byokv::{MAX_NAME_LEN, MAX_NAME_SEGMENTS, MAX_VALUE_LEN, NamePolicy, Org};
use clap::{Args, ValueEnum};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use zeroize::Zeroizing;

use super::Context;
use super::dotenv;
use super::failure::{Failure, Result};
use super::secret::{self, Output, Secret};
use super::ui::{self, Bar};

#[derive(Args)]
pub(super) struct Import {
    /// Name of the org
    org: String,
    /// What the file is written in
    #[arg(long, value_enum)]
    format: Format,
    /// Put this before every name
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// The file; `-` and the default are stdin
    file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Export {
    /// Name of the org
    org: String,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// Only names that start so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Leave the prefix out of the names
    #[arg(long)]
    strip_prefix: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// JSON Lines: {"name": …, "value": …}, or name_base64, value_base64 for what is not UTF-8
    Jsonl,
    /// NAME="value", as dotenv files have it; `$` must be escaped or in single quotes
    Dotenv,
}

/// A record of JSON Lines.
pub(super) struct Line<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut entry = |text, base64, bytes| match str::from_utf8(bytes) {
            Ok(plain) => map.serialize_entry(text, plain),
            Err(_) => map.serialize_entry(base64, &*Zeroizing::new(STANDARD.encode(bytes))),
        };
        entry("name", "name_base64", self.name)?;
        if let Some(value) = self.value {
            entry("value", "value_base64", value)?;
        }
        map.end()
    }
}

/// The same, read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: Option<Text>,
    name_base64: Option<Text>,
    value: Option<Text>,
    value_base64: Option<Text>,
}

/// Wiped when dropped.
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(Zeroizing::new(text)))
    }
}

pub(super) type Records = Vec<(Vec<u8>, Secret)>;

impl Import {
    pub(super) fn run(self, context: &Context) -> Result {
        let content = secret::read(self.file.as_deref(), u64::MAX)?;
        // Some editors put a byte order mark there.
        let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
        let prefix = self.prefix.as_bytes();
        // Everything is read before anything is written.
        let records = match self.format {
            Format::Jsonl => from_lines(text, prefix)?,
            Format::Dotenv => dotenv::read(text, prefix)?,
        };
        drop(content);
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
        context.ui.done(
            &json!({"org": self.org, "records": count}),
            format_args!("{} imported", ui::records(count)),
        )
    }
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

pub(super) fn refused(line: u64, why: &str) -> Failure {
    Failure::Failed(format!("line {line}: {why}; nothing was written"))
}

/// A record of `line`, within the limits.
pub(super) fn checked(
    line: u64,
    prefix: &[u8],
    name: &[u8],
    value: Secret,
) -> Result<(Vec<u8>, Secret)> {
    let name = [prefix, name].concat();
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(refused(line, &format!("a name has 1 to {MAX_NAME_LEN} bytes")));
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(refused(line, &format!("a value has at most {MAX_VALUE_LEN} bytes")));
    }
    Ok((name, value))
}

fn from_lines(content: &[u8], prefix: &[u8]) -> Result<Records> {
    let mut records = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        // serde_json's own message may quote a value.
        let fields: Fields = serde_json::from_slice(line).map_err(|error| {
            let why = if error.is_data() {
                "not an object of strings: name or name_base64, and value or value_base64"
                    .to_owned()
            } else {
                format!("not JSON from column {}", error.column())
            };
            refused(number, &why)
        })?;
        let name = bytes(number, "name", fields.name, fields.name_base64)?;
        let value = bytes(number, "value", fields.value, fields.value_base64)?;
        records.push(checked(number, prefix, &name, value)?);
    }
    Ok(records)
}

fn bytes(line: u64, field: &str, text: Option<Text>, base64: Option<Text>) -> Result<Secret> {
    match (text, base64) {
        (Some(text), None) => Ok(Zeroizing::new(text.0.as_bytes().to_vec())),
        (None, Some(text)) => STANDARD
            .decode(text.0.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| refused(line, &format!("{field}_base64 is not base64"))),
        _ => Err(refused(line, &format!("one of {field} and {field}_base64 is needed"))),
    }
}

impl Export {
    pub(super) fn run(self, context: &Context) -> Result {
        let mut count = 0;
        context.with_store(|store| {
            let mut out = Output::new()?;
            for record in store.org(&self.org)?.scan(&self.prefix) {
                let record = record?;
                let strip = if self.strip_prefix { self.prefix.len() } else { 0 };
                let name = record.name.get(strip..).unwrap_or_default();
                match self.format {
                    Format::Jsonl => out.json(&Line { name, value: Some(&record.value) })?,
                    Format::Dotenv => out.write_all(&dotenv::line(name, &record.value)?)?,
                }
                count += 1;
            }
            out.finish()
        })?;
        context.ui.note(format_args!("{} exported", ui::records(count)));
        Ok(())
    }
}
