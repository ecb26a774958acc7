//! Files of `docker run --env-file`: each line is a name, `=`, and the value as it is.

use zeroize::Zeroizing;

use super::dotenv_write::LONGEST_LINE;
use super::entry::{Entry, Refusal};
use super::secret::Secret;

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.starts_with(b"#")
        && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'=')
}

/// Returns the line of a record, or why there is none.
pub(super) fn line(name: &[u8], value: &[u8]) -> Result<Secret, &'static str> {
    if !is_name(name) {
        return Err("a name has visible ASCII characters without `=`, and begins with no `#`");
    }
    if str::from_utf8(value).is_err() {
        return Err("the value is not UTF-8");
    }
    if value.iter().any(|byte| b"\n\r\0".contains(byte)) {
        return Err("a line holds no line break, no carriage return and no zero byte");
    }
    let line = Zeroizing::new([name, b"=", value, b"\n"].concat());
    if line.len() > LONGEST_LINE { Err("Docker reads at most 64 KiB in a line") } else { Ok(line) }
}

/// Returns the records of a file, or the first line that is none.
pub(super) fn read(content: &[u8]) -> Result<Vec<Entry>, Refusal> {
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
        let refused = |why: &str| Err(Refusal::new(number, why));
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let start = line.iter().position(|byte| *byte != b' ' && *byte != b'\t');
        let line = &line[start.unwrap_or(line.len())..];
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let Some(at) = line.iter().position(|byte| *byte == b'=') else {
            return refused("a name without `=`, whose value Docker takes from its environment");
        };
        let (name, value) = (&line[..at], &line[at + 1..]);
        if !is_name(name) {
            return refused("it does not begin with a name of visible ASCII characters");
        }
        if str::from_utf8(value).is_err() || value.contains(&b'\0') {
            return refused("the value is not UTF-8, or has a zero byte");
        }
        let value = Zeroizing::new(value.to_vec());
        entries.push(Entry { line: number, name: name.to_vec(), value });
    }
    Ok(entries)
}
