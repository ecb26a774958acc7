//! JSON as it is printed: what a terminal would obey, or nobody would see, stands as `\u…`.
//! Programs read the same strings.

use std::io::{self, Write};

use byokv::text::is_visible;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

struct Escaped(CompactFormatter);

impl Formatter for Escaped {
    /// A piece of a string without quotes, backslashes and what is below 0x20.
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, hidden)) = rest.char_indices().find(|(_, c)| !is_visible(*c)) {
            self.0.write_string_fragment(writer, &rest[..at])?;
            for unit in hidden.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + hidden.len_utf8()..];
        }
        self.0.write_string_fragment(writer, rest)
    }
}

/// Writes `json` without a line end.
pub(super) fn write(writer: impl Write, json: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(writer, Escaped(CompactFormatter));
    Ok(json.serialize(&mut serializer)?)
}

/// The same as text.
pub(super) fn text(json: &impl Serialize) -> io::Result<String> {
    let mut bytes = Vec::new();
    write(&mut bytes, json)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_escaped_and_read_as_it_was() {
        let all: String =
            "a\u{0}\n\"\\\u{7f}\u{9b}ä\u{200b}\u{202e}\u{feff}🚀\u{e0041}e\u{301}".into();
        let written = text(&all).unwrap();
        assert_eq!(
            written,
            "\"a\\u0000\\n\\\"\\\\\\u007f\\u009bä\\u200b\\u202e\\ufeff🚀\\udb40\\udc41e\u{301}\""
        );
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), all);
    }
}
