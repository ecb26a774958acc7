//! What a text that is no key looks like. A key is never looked at here.

use super::KeyMaterial;
use crate::error::KeyMaterialError;

/// Symbols of the base64 of 32 bytes, without its padding.
const SYMBOLS: usize = 43;

/// Returns why `given` is not the base64 of 32 bytes on one line.
pub(super) fn diagnose(given: &[u8]) -> KeyMaterialError {
    let text = given.trim_ascii();
    if text.is_empty() {
        return KeyMaterialError::Empty;
    }
    if is_utf16(given) {
        return KeyMaterialError::Utf16;
    }
    if given.starts_with(b"\xef\xbb\xbf") {
        return KeyMaterialError::ByteOrderMark;
    }
    let Some(line) = as_text(given) else {
        // With the line end that an editor adds.
        let is_key = given.len() == KeyMaterial::LEN
            || given.len() == KeyMaterial::LEN + 1 && given.ends_with(b"\n");
        let bytes = given.len();
        return if is_key {
            KeyMaterialError::RawBytes
        } else {
            KeyMaterialError::Binary { bytes }
        };
    };
    let line = line.trim_ascii();
    if line.starts_with("-----BEGIN ") {
        KeyMaterialError::Pem
    } else if is_quoted(line) {
        KeyMaterialError::Quoted
    } else if is_assignment(line) {
        KeyMaterialError::Assignment
    } else if let Some(bytes) = hex(line) {
        KeyMaterialError::Hex { bytes }
    } else {
        let lines = line.lines().filter(|line| !line.trim_ascii().is_empty()).count();
        let is_key = |byte: &u8| !byte.is_ascii_whitespace();
        let symbols = given.iter().filter(|byte| is_key(byte)).count();
        let position = given.iter().position(|byte| !is_key(byte)).map(|at| at + 1);
        match position {
            _ if lines > 1 => KeyMaterialError::Lines { lines },
            Some(position) if symbols == SYMBOLS + 1 => KeyMaterialError::Whitespace { position },
            _ => symbol_by_symbol(given.strip_suffix(b"\n").unwrap_or(given)),
        }
    }
}

/// What base64 itself has against `line`.
fn symbol_by_symbol(line: &[u8]) -> KeyMaterialError {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let symbols = line.iter().rposition(|&b| b != b'=').map_or(0, |last| last + 1);
    let padding = line.len() - symbols;
    for (index, &symbol) in line.iter().enumerate() {
        let position = index + 1;
        match symbol {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'=' => {}
            b'-' | b'_' => return KeyMaterialError::UrlSafe { position },
            _ => return KeyMaterialError::Alphabet { position },
        }
    }
    if line[..symbols].contains(&b'=') {
        KeyMaterialError::Padding
    } else if symbols != SYMBOLS {
        KeyMaterialError::WrongLength { bytes: symbols * 3 / 4 }
    } else if padding != 1 {
        KeyMaterialError::Padding
    } else {
        KeyMaterialError::TrailingBits
    }
}

/// Returns true for the marks of UTF-16, and for ASCII in it, where each second byte is zero.
fn is_utf16(given: &[u8]) -> bool {
    let zeros = |first: usize| given.iter().skip(first).step_by(2).all(|byte| *byte == 0);
    let is_ascii = given.len() >= 8 && given.len().is_multiple_of(2) && (zeros(0) || zeros(1));
    given.starts_with(b"\xff\xfe") || given.starts_with(b"\xfe\xff") || is_ascii
}

fn as_text(given: &[u8]) -> Option<&str> {
    let is_binary = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    str::from_utf8(given).ok().filter(|text| !text.contains(is_binary))
}

fn is_quoted(line: &str) -> bool {
    const MARKS: &[(char, char)] = &[
        ('"', '"'),
        ('\'', '\''),
        ('`', '`'),
        ('\u{201c}', '\u{201d}'),
        ('\u{2018}', '\u{2019}'),
        ('\u{ab}', '\u{bb}'),
    ];
    line.chars().count() > 1
        && MARKS.iter().any(|(open, close)| line.starts_with(*open) && line.ends_with(*close))
}

/// Returns true for a name, `=` or `:`, and more than padding behind it.
fn is_assignment(line: &str) -> bool {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let Some((name, value)) = line.split_once(['=', ':']) else { return false };
    let name = name.trim_ascii();
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    // Hex may have colons.
    let is_pair = name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
    is_name && begins && !is_pair && !value.trim_matches('=').trim_ascii().is_empty()
}

/// Returns how many bytes the digits of `line` stand for, if it is hex.
fn hex(line: &str) -> Option<usize> {
    const SHORTEST: usize = 32;
    let line = line.strip_prefix("0x").or_else(|| line.strip_prefix("0X")).unwrap_or(line);
    let is_between = |byte: u8| byte.is_ascii_whitespace() || byte == b':' || byte == b'-';
    let digits = line.bytes().filter(|byte| !is_between(*byte));
    let is_hex = digits.clone().all(|byte| byte.is_ascii_hexdigit());
    let digits = digits.count();
    (is_hex && digits >= SHORTEST && digits.is_multiple_of(2)).then_some(digits / 2)
}
