//! Names and messages as text that is safe to show: what cannot be seen, and what a terminal would
//! obey, is escaped.
//!
//! Names of records are any bytes. [`escape`] writes them on one line of visible text, and
//! [`unescape`] reads that back:
//!
//! ```
//! use byokv::text::{escape, unescape};
//!
//! let name = b"a\\b\x1b[31m\xff \xe2\x80\xae";
//! let shown = escape(name);
//! assert_eq!(shown, r"a\\b\u{1b}[31m\xff \u{202e}");
//! assert_eq!(unescape(&shown)?, name);
//! # Ok::<(), byokv::text::UnescapeError>(())
//! ```

use std::borrow::Cow;
use std::path::Path;

use unicode_security::GeneralSecurityProfile;
use unicode_security::general_security_profile::IdentifierType;

/// Writes `bytes` as visible text on one line, from which [`unescape`] gives them back.
///
/// | in the text | stands for |
/// |---|---|
/// | `\\` | a backslash |
/// | `\n`, `\r`, `\t` | line feed, carriage return, tab |
/// | `\u{202e}` | the character with this number: a control character, one that is invisible or changes the order of what is shown, one that no Unicode version has, or a combining mark with nothing to combine with |
/// | `\xff` | a byte that is not part of any UTF-8 |
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        // A mark that combines must not change what stands before the name.
        let mut has_base = false;
        for c in chunk.valid().chars() {
            let is_shown = is_visible(c) && c != '\\' && (has_base || !is_mark(c));
            if is_shown {
                text.push(c);
            } else {
                text.extend(c.escape_default());
            }
            has_base = is_shown && c != ' ';
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// What is wrong with a text that [`unescape`] was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    r"the backslash at byte {at} begins no escape: \\, \n, \r, \t, \xff and \u{{202e}} are known; write a backslash as \\"
)]
pub struct UnescapeError {
    /// Where the backslash stands, counted from 0.
    pub at: usize,
}

/// Gives back the bytes that [`escape`] wrote as text.
///
/// # Errors
/// A backslash that begins none of the escapes in the table of [`escape`].
pub fn unescape(text: &str) -> Result<Vec<u8>, UnescapeError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let begun = text.len() - rest.len() + at;
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let used = unescape_one(&rest[at + 1..], &mut bytes);
        rest = &rest[at + 1 + used.ok_or(UnescapeError { at: begun })?..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Reads one escape behind its backslash. Returns its length, `None` if it is none.
fn unescape_one(text: &str, bytes: &mut Vec<u8>) -> Option<usize> {
    let hex = |digits: &str| {
        let only = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| only)
    };
    match text.as_bytes().first()? {
        b'\\' => bytes.push(b'\\'),
        b'n' => bytes.push(b'\n'),
        b'r' => bytes.push(b'\r'),
        b't' => bytes.push(b'\t'),
        b'x' => {
            bytes.push(u8::try_from(hex(text.get(1..3)?)?).ok()?);
            return Some(3);
        }
        b'u' => {
            let digits = text.get(1..)?.strip_prefix('{')?.split_once('}')?.0;
            let c = hex(digits).filter(|_| digits.len() <= 6).and_then(char::from_u32)?;
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(digits.len() + 3);
        }
        _ => return None,
    }
    Some(1)
}

/// Escapes in a message what cannot be seen and what a terminal would obey. Unlike [`escape`] it
/// leaves backslashes, line breaks and tabs as they are, so it may be applied to text that has
/// escapes already, and cannot be reversed.
///
/// ```
/// use byokv::text::clean;
///
/// assert_eq!(clean("a\\b\n\u{9b}2J"), "a\\b\n\\u{9b}2J");
/// ```
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    let is_clean = |c: char| is_visible(c) || c == '\n' || c == '\t';
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_clean(c) {
            cleaned.push(c);
        } else {
            cleaned.extend(c.escape_default());
        }
    }
    Cow::Owned(cleaned)
}

/// Longest text that [`printable`] gives, characters, before its `…`.
const LIMIT: usize = 256;

/// Returns a name for messages: what [`escape`] escapes, but for backslashes, is escaped, and it is
/// cut to 256 characters. What is printable already stays as it is.
pub(crate) fn printable(name: &[u8]) -> String {
    cut(name, LIMIT)
}

/// Like [`printable`], cut to `limit` characters.
pub(crate) fn cut(text: &[u8], limit: usize) -> String {
    let mut shown = String::new();
    let mut room = limit + 1;
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            room = room.saturating_sub(push(&mut shown, c));
            if room == 0 {
                break;
            }
        }
        for byte in chunk.invalid().iter().take(room) {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
        room = room.saturating_sub(4 * chunk.invalid().len());
        if room == 0 {
            break;
        }
    }
    if let Some((end, _)) = shown.char_indices().nth(limit) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// Returns how many characters `c` became.
fn push(shown: &mut String, c: char) -> usize {
    if is_visible(c) {
        shown.push(c);
        return 1;
    }
    let escaped = c.escape_default();
    shown.extend(escaped.clone());
    escaped.len()
}

/// A path for messages, on one line.
#[must_use]
pub fn path(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Returns true for a character that is seen where it stands and changes nothing else: neither a
/// control character nor one that is invisible, or reorders text, or is not assigned.
///
/// ```
/// use byokv::text::is_visible;
///
/// assert!(['a', ' ', 'ä', '社', '🚀'].into_iter().all(is_visible));
/// assert!(!['\n', '\u{7f}', '\u{9b}', '\u{200b}', '\u{202e}', '\u{feff}', '\u{3164}'].into_iter().any(is_visible));
/// ```
#[must_use]
pub fn is_visible(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // The standard library tells what is printable only by what it escapes, and escapes marks
    // that combine only where nothing stands before them.
    let mut buffer = [b'x'; 5];
    let len = 1 + c.encode_utf8(&mut buffer[1..]).len();
    let is_printable =
        str::from_utf8(&buffer[..len]).is_ok_and(|text| text.escape_debug().nth(2).is_none());
    // A blank that Unicode counts among the symbols.
    const BLANK: char = '\u{2800}';
    is_printable && c.identifier_type() != Some(IdentifierType::Default_Ignorable) && c != BLANK
}

/// Whether it changes the character before it.
fn is_mark(c: char) -> bool {
    !c.is_ascii() && c.escape_debug().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_invisible_or_obeyed_is_escaped() {
        assert_eq!(escape(b"a/\xc3\xa4 \"b\" 'c'"), "a/ä \"b\" 'c'");
        assert_eq!(escape(b"a\n\xff\\"), r"a\n\xff\\");
        for hidden in "\0\u{7f}\u{80}\u{9b}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{200b}\u{200d}\
                       \u{200e}\u{2028}\u{202e}\u{2066}\u{3164}\u{e000}\u{fe0f}\u{feff}\u{e0001}\
                       \u{e0100}\u{a0}\u{378}"
            .chars()
        {
            let expected = format!("\\u{{{:x}}}", u32::from(hidden));
            assert_eq!(escape(hidden.to_string().as_bytes()), expected);
            assert_eq!(clean(&hidden.to_string()), expected);
        }
    }

    #[test]
    fn a_mark_is_shown_only_on_a_letter() {
        assert_eq!(escape("e\u{301}\u{302}".as_bytes()), "e\u{301}\u{302}");
        assert_eq!(escape("\u{301}e".as_bytes()), "\\u{301}e");
        assert_eq!(escape(" \u{301}".as_bytes()), " \\u{301}");
        assert_eq!(escape("हिन्दी".as_bytes()), "हिन्दी");
    }

    #[test]
    fn what_is_no_escape_is_refused_where_it_stands() {
        let wrong = [r"\", r"a\q", r"\x", r"\xf", r"\xzz", r"\x+1", r"\u", r"\u{", r"\u{}"];
        for text in wrong.into_iter().chain([r"\u{110000}", r"\u{d800}", r"\u{0000061}", r"\u61"]) {
            let at = text.find('\\').unwrap();
            assert_eq!(unescape(text), Err(UnescapeError { at }), "{text}");
        }
        assert_eq!(unescape(r"a\\b\q").unwrap_err().at, 4);
        assert_eq!(unescape(r"\u{e4}\xc3\xa4\t").unwrap(), "ää\t".as_bytes());
    }

    #[test]
    fn names_print_escaped_and_cut() {
        assert_eq!(printable(b"a/\xc3\xa4"), "a/ä");
        assert_eq!(printable(b"a\n\xff"), "a\\n\\xff");
        assert_eq!(printable(&[b'x'; 300]).chars().count(), 257);
        assert_eq!(printable(&[0xff; 300]).chars().count(), 257);
        assert_eq!(printable(&[b'x'; 256]).chars().count(), 256);
        assert_eq!(
            printable("it's \"a\\b\" e\u{301} 名 🦀".as_bytes()),
            "it's \"a\\b\" e\u{301} 名 🦀"
        );
    }

    #[test]
    fn nothing_that_a_terminal_obeys_or_nobody_sees_is_left() {
        let bad = (0..0x20)
            .chain(0x7f..=0x9f)
            .chain([0xad, 0x61c, 0x180e, 0xfeff, 0x3164, 0xe0041])
            .chain(0x200b..=0x200f)
            .chain(0x2028..=0x202e)
            .chain(0x2060..=0x2064)
            .chain(0x2066..=0x2069);
        for c in bad.filter_map(char::from_u32) {
            let shown = printable(format!("a{c}b").as_bytes());
            assert!(!shown.contains(c) && shown.len() > 3, "{c:?} gives {shown}");
            assert_eq!(printable(shown.as_bytes()), shown, "what is printable stays");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back_and_is_visible(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                any::<String>().prop_map(String::into_bytes),
            ],
        ) {
            let text = escape(&bytes);
            prop_assert!(text.chars().all(is_visible));
            prop_assert_eq!(clean(&text), &text[..]);
            prop_assert_eq!(unescape(&text).unwrap(), bytes);
        }
    }
}
