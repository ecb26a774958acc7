//! dotenv files: read by dotenvy, by line and without surprises, and written to be read back.

use std::cell::Cell;
use std::io::{self, Read};

use zeroize::Zeroizing;

use super::failure::{Failure, Result};
use super::secret::Secret;
use super::transfer::{Records, checked, refused};
use super::ui;

/// What dotenvy has read since its last record.
#[derive(Clone, Copy, Default)]
struct Seen {
    lines: u64,
    /// The first line that is of a record.
    first: Option<u64>,
    text: Text,
}

/// Where the text of a record stands: as dotenvy reads it, `$` is replaced outside of single quotes
/// and comments.
#[derive(Clone, Copy, Default)]
struct Text {
    quote: Option<u8>,
    is_escaped: bool,
    is_comment: bool,
    after_space: bool,
    substitutes: bool,
}

impl Text {
    fn read(&mut self, byte: u8) {
        match (self.quote, byte) {
            _ if self.is_comment => self.is_comment = byte != b'\n',
            (Some(b'\''), _) => self.quote = self.quote.filter(|_| byte != b'\''),
            _ if self.is_escaped => self.is_escaped = false,
            (_, b'\\') => self.is_escaped = true,
            (_, b'$') => self.substitutes = true,
            (None, b'"' | b'\'') => self.quote = Some(byte),
            (Some(_), b'"') => self.quote = None,
            (None, b'#') => self.is_comment = self.after_space,
            _ => {}
        }
        self.after_space = byte.is_ascii_whitespace();
    }
}

/// Hands out one line at each read, so that it is known which line is read.
struct ByLine<'a> {
    rest: &'a [u8],
    seen: &'a Cell<Seen>,
}

impl Read for ByLine<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let line = &self.rest[..end.map_or(self.rest.len(), |end| end + 1)];
        let read = (&line[..]).read(into)?;
        let mut seen = self.seen.get();
        let text = line.trim_ascii_start();
        if seen.first.is_some() || !(text.is_empty() || text.starts_with(b"#")) {
            seen.first = seen.first.or(Some(seen.lines + 1));
            into[..read].iter().for_each(|byte| seen.text.read(*byte));
        }
        seen.lines += u64::from(read == line.len() && read > 0);
        self.seen.set(seen);
        self.rest = &self.rest[read..];
        Ok(read)
    }
}

/// The records of a file, or the first line that is none.
pub(super) fn read(content: &[u8], prefix: &[u8]) -> Result<Records> {
    let seen = Cell::new(Seen::default());
    let mut records = Vec::new();
    for pair in dotenvy::from_read_iter(ByLine { rest: content, seen: &seen }) {
        let Seen { lines, first, text } = seen.get();
        seen.set(Seen { lines, ..Seen::default() });
        let line = first.unwrap_or(lines);
        // dotenvy's own message quotes the value.
        let (name, value) = pair.map_err(|_| refused(line, "not a line of a dotenv file"))?;
        let value = Zeroizing::new(value.into_bytes());
        // A secret must not depend on what is in our environment, nor lose its second half.
        if text.substitutes {
            let why = r"a `$` would be replaced; write `\$`, or use single quotes";
            return Err(refused(line, why));
        }
        records.push(checked(line, prefix, name.as_bytes(), value)?);
    }
    Ok(records)
}

/// One line, if it reads back as it is.
pub(super) fn line(name: &[u8], value: &[u8]) -> Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(name.len() + 2 * value.len() + 4));
    line.extend_from_slice(name);
    line.extend_from_slice(b"=\"");
    for &byte in value {
        match byte {
            b'\\' | b'"' | b'$' => line.extend_from_slice(&[b'\\', byte]),
            b'\n' => line.extend_from_slice(b"\\n"),
            _ => line.push(byte),
        }
    }
    line.extend_from_slice(b"\"\n");
    match read(&line, b"").as_deref() {
        Ok([(read, back)]) if read == name && **back == *value => Ok(line),
        _ => Err(Failure::Failed(format!(
            "the record \"{}\" cannot be a line of a dotenv file: the name must be letters, \
             digits, `_` and `.`, the value UTF-8; use --format jsonl, or --prefix with \
             --strip-prefix",
            ui::visible(name)
        ))),
    }
}
