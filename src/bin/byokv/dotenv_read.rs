//! dotenv files, which have no one format: only what their readers agree about is read.
//!
//! The readers are bash (`set -a; . ./.env`), node (`--env-file`, 20.12 or newer), python-dotenv and
//! dotenvy; Docker's `--env-file` too where a value needs no quotes. `tests/dotenv.rs` compares the
//! real ones with what is read and written.

use std::io::Read;

use zeroize::Zeroizing;

use super::entry::{Entry, Refusal};

/// Returns the records of a file, or the lines about which readers do not agree.
pub(super) fn read(content: &[u8]) -> Result<Vec<Entry>, Vec<Refusal>> {
    let text = text(content).map_err(|refusal| vec![refusal])?;
    let mut cursor = Cursor { rest: text, line: 1 };
    let (mut entries, mut refusals) = (Vec::new(), Vec::new());
    while !cursor.rest.is_empty() {
        let (start, line) = (cursor.rest, cursor.line);
        let text = start.trim_start_matches([' ', '\t']);
        if text.is_empty() || text.starts_with(['#', '\n', '\r']) {
            cursor.end_line();
            continue;
        }
        let record = cursor.record();
        let source = &start[..start.len() - cursor.rest.len()];
        if !source.ends_with('\n') && record.is_err() {
            cursor.end_line();
        }
        let seen = record.and_then(|(name, value)| {
            witness(source, name, value).map_err(|why| about(name, why))?;
            Ok((name, value))
        });
        match seen {
            Ok((name, value)) => entries.push(Entry {
                line,
                name: name.as_bytes().to_vec(),
                value: Zeroizing::new(value.as_bytes().to_vec()),
            }),
            Err(why) => refusals.push(Refusal::new(line, why)),
        }
    }
    if refusals.is_empty() { Ok(entries) } else { Err(refusals) }
}

/// Checks what is wrong wherever it stands in a file.
fn text(content: &[u8]) -> Result<&str, Refusal> {
    let line = |at: usize| {
        let breaks = content[..at].iter().filter(|byte| **byte == b'\n').count();
        breaks as u64 + 1
    };
    let text = str::from_utf8(content)
        .map_err(|error| Refusal::new(line(error.valid_up_to()), "it is not UTF-8"))?;
    if let Some(at) = text.find('\0') {
        return Err(Refusal::new(line(at), "a zero byte is in it"));
    }
    // python-dotenv ends a line there.
    let is_bare = |at: &usize| !text[at + 1..].starts_with('\n');
    if let Some(at) = text.match_indices('\r').map(|(at, _)| at).find(is_bare) {
        return Err(Refusal::new(line(at), "a carriage return is in it that ends no line"));
    }
    Ok(text)
}

fn about(name: &str, why: impl std::fmt::Display) -> String {
    format!("{name}: {why}")
}

const OR_JSON: &str = "or use JSON Lines, --format jsonl";

struct Cursor<'a> {
    rest: &'a str,
    line: u64,
}

impl<'a> Cursor<'a> {
    /// Takes `len` bytes.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u64;
        self.rest = rest;
        taken
    }

    /// Takes what is left of the line, without its end.
    fn end_line(&mut self) -> &'a str {
        let line = self.take(self.rest.find('\n').map_or(self.rest.len(), |at| at + 1));
        let line = line.strip_suffix('\n').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line)
    }

    fn spaces(&mut self) {
        self.take(self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len());
    }

    /// Takes a record as it is written: what stands in quotes, or up to the end of the line.
    fn record(&mut self) -> Result<(&'a str, &'a str), String> {
        self.spaces();
        if self.rest.strip_prefix("export").is_some_and(|rest| rest.starts_with([' ', '\t'])) {
            self.take("export".len());
            self.spaces();
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let name = self.take(self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len()));
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(
                "it does not begin with a name, which has letters, digits, `_` and `.`".to_owned()
            );
        }
        if !self.rest.starts_with('=') {
            return Err(about(name, "no `=` follows the name"));
        }
        self.take(1);
        let value = match self.rest.chars().next() {
            Some('\'') => self.quoted('\''),
            Some('"') => self.quoted('"'),
            _ => self.bare(),
        };
        value.map(|value| (name, value)).map_err(|why| about(name, why))
    }

    fn quoted(&mut self, quote: char) -> Result<&'a str, String> {
        self.take(1);
        let Some(end) = self.rest.find(quote) else {
            // Nothing behind it says where a record begins.
            self.take(self.rest.len());
            return Err(format!("the quote that is opened with {quote} is not closed"));
        };
        let value = self.take(end);
        self.take(1);
        if value.contains('\r') {
            return Err(format!(
                "readers disagree about a carriage return in quotes; leave it out, {OR_JSON}"
            ));
        }
        if quote == '\'' {
            in_single_quotes(value)
                .map_err(|why| format!("{why}; use JSON Lines, --format jsonl"))?;
        } else if value.contains('`') {
            return Err(disagreement("a backtick", quote));
        }
        let behind = self.end_line();
        let comment = behind.trim_start_matches([' ', '\t']);
        let is_comment = comment.starts_with('#') && comment.len() < behind.len();
        if !(comment.is_empty() || is_comment) {
            return Err(format!("something follows the closing quote; quote all of it, {OR_JSON}"));
        }
        Ok(value)
    }

    fn bare(&mut self) -> Result<&'a str, String> {
        let line = self.end_line();
        let end = line.find(" #").unwrap_or(line.len());
        let value = line[..end].trim_end_matches(' ');
        // node 20 keeps a tab; node 22 takes the next line for the value.
        if value.is_empty() && !line.is_empty() {
            return Err(format!("readers disagree about space behind `=`; write '', {OR_JSON}"));
        }
        let disagreed = |c: char| {
            c.is_ascii_control()
                || " #&;()<>|~`".contains(c)
                || !(c.is_ascii() || c.is_alphanumeric())
        };
        match value.chars().find(|c| disagreed(*c)) {
            Some(c) => Err(disagreement(&called(c), ' ')),
            None => Ok(value),
        }
    }
}

/// Checks that dotenvy, too, reads `value`.
fn witness(source: &str, name: &str, value: &str) -> Result<(), String> {
    // It refuses space at the end of a file whose last line has no end.
    let mut read = dotenvy::from_read_iter(source.as_bytes().chain(&b"\n"[..]))
        .map(|pair| pair.map(|(name, value)| (name, Zeroizing::new(value))));
    // Its own message quotes the value.
    if let (Some(Ok((read_name, read_value))), None) = (read.next(), read.next())
        && read_name == name
        && *read_value == *value
    {
        return Ok(());
    }
    let quote = if source.contains(&format!("{name}=\"")) { '"' } else { ' ' };
    let c = value.chars().find(|c| "\\$'\"".contains(*c));
    Err(disagreement(&c.map_or("it".to_owned(), called), quote))
}

fn disagreement(what: &str, quote: char) -> String {
    let place = if quote == '"' { "in double quotes" } else { "outside of quotes" };
    format!("readers disagree about {what} {place}; put the value into single quotes, {OR_JSON}")
}

fn called(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        '\t' => "a tab".to_owned(),
        '\\' => "a backslash".to_owned(),
        '`' => "a backtick".to_owned(),
        '\'' | '"' => "a quotation mark".to_owned(),
        c if c.is_ascii_graphic() => format!("`{c}`"),
        _ => "a character that may count as space".to_owned(),
    }
}

/// Checks that readers agree about `value` in single quotes.
pub(super) fn in_single_quotes(value: &str) -> Result<(), &'static str> {
    if value.contains("${") {
        return Err("python-dotenv replaces `${`, even in single quotes");
    }
    if value.contains("\\\\") || value.ends_with('\\') {
        return Err("python-dotenv reads two backslashes as one, and one at the end as an escape");
    }
    Ok(())
}
