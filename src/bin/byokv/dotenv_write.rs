//! dotenv files, written as far as their readers agree.

use zeroize::Zeroizing;

use super::dotenv_read::{in_single_quotes, read};
use super::secret::Secret;

/// Docker reads no longer line, with its end; Linux takes no string of an environment that is twice
/// as long.
pub(super) const LONGEST_LINE: usize = 64 << 10;

/// What all readers, Docker's too, take as it is without quotes.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./:@%+,-=^".contains(c)
}

/// Names to which bash or node give a meaning or a value of their own.
const TAKEN: &[&str] = &[
    "COMP_WORDBREAKS",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "HISTCMD",
    "LINENO",
    "NODE_CHANNEL_FD",
    "NODE_V8_COVERAGE",
    "OPTIND",
    "PIPESTATUS",
    "PPID",
    "RANDOM",
    "SECONDS",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
    "UID",
    "_",
];

/// Returns the line of a record, or why its readers would not agree about it.
pub(super) fn line(name: &[u8], value: &[u8]) -> Result<Secret, &'static str> {
    let variable = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let name = str::from_utf8(name).ok().filter(|name| variable(name)).ok_or(
        "a variable's name has only ASCII letters, digits and `_`, and begins with no digit",
    )?;
    if TAKEN.contains(&name) || name.starts_with("BASH") {
        return Err("bash or node give the variable of this name a value of their own");
    }
    let value = str::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    let quote = quote(value)?;
    let mut line = Zeroizing::new(Vec::with_capacity(name.len() + value.len() + 4));
    for part in [name, "=", quote, value, quote, "\n"] {
        line.extend_from_slice(part.as_bytes());
    }
    if line.len() > LONGEST_LINE {
        return Err("it is longer than the 64 KiB that all readers take");
    }
    match read(&line).as_deref() {
        Ok([entry]) if entry.name == name.as_bytes() && **entry.value == *value.as_bytes() => {
            Ok(line)
        }
        _ => Err("it would not be read back as it is"),
    }
}

/// Returns true if a line that [`line`] made has quotes, which Docker takes for a part of the value.
pub(super) fn is_quoted(line: &[u8]) -> bool {
    line.ends_with(b"'\n") || line.ends_with(b"\"\n")
}

/// Returns the quotes that `value` needs; none is the empty string.
fn quote(value: &str) -> Result<&'static str, &'static str> {
    if value.chars().all(is_plain) {
        return Ok("");
    }
    if value.contains('\0') {
        return Err("no environment variable can hold a zero byte");
    }
    if value.contains('\r') {
        return Err("node drops carriage returns, and python-dotenv makes line breaks of them");
    }
    if !value.contains('\'') {
        return in_single_quotes(value).map(|()| "'");
    }
    if value.contains(['"', '\\', '$', '`']) {
        return Err("no quotes fit: the value has a single quote, and one of \" \\ $ `");
    }
    Ok("\"")
}
