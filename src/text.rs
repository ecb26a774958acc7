//! Text from outside, as it may be shown: on a terminal, in an error, in a log.

/// Longest text that [`printable`] gives, characters, before its `…`.
const LIMIT: usize = 256;

/// Returns a name for messages: characters that a terminal obeys or that nobody sees, and bytes
/// that are not UTF-8, are escaped; cut to 256 characters. What is printable already stays as it
/// is.
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
    if !is_hidden(c) {
        shown.push(c);
        return 1;
    }
    let escaped = c.escape_debug();
    let escaped =
        if escaped.len() > 1 { escaped.collect() } else { c.escape_unicode().to_string() };
    shown.push_str(&escaped);
    escaped.len()
}

/// Returns true for a character that must not reach a terminal as it is: control characters (C0
/// and C1), marks of text direction, separators of lines and paragraphs, and whatever takes no
/// room, so that two texts that differ in it look the same.
pub(crate) fn is_hidden(c: char) -> bool {
    match c {
        c if c.is_ascii() => c.is_ascii_control(),
        // Fillers and blanks that Unicode counts among letters and symbols.
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{2800}' => true,
        // Behind another character it leaves accents (combining marks) alone.
        c => ['x', c].iter().collect::<String>().escape_debug().nth(1) != Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
