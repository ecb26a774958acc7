//! JSON Lines: one record in each line, byte for byte whatever it holds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::entry::{Entry, Refusal};
use super::secret::Secret;

/// A record as it is written.
pub(super) struct Line<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
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

/// A record as it is read.
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
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(Zeroizing::new(text)))
    }
}

/// Returns the records of a file, or the first line that is none.
pub(super) fn read(content: &[u8]) -> Result<Vec<Entry>, Refusal> {
    let mut entries = Vec::new();
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
            Refusal::new(number, why)
        })?;
        let name = bytes(number, "name", fields.name, fields.name_base64)?.to_vec();
        let value = bytes(number, "value", fields.value, fields.value_base64)?;
        entries.push(Entry { line: number, name, value });
    }
    Ok(entries)
}

fn bytes(
    line: u64,
    field: &str,
    text: Option<Text>,
    base64: Option<Text>,
) -> Result<Secret, Refusal> {
    match (text, base64) {
        (Some(text), None) => Ok(Zeroizing::new(text.0.as_bytes().to_vec())),
        (None, Some(text)) => STANDARD
            .decode(text.0.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| Refusal::new(line, format!("{field}_base64 is not base64"))),
        _ => Err(Refusal::new(line, format!("one of {field} and {field}_base64 is needed"))),
    }
}
