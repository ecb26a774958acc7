//! The one shape of enums in JSON: an object that begins with its `kind`.
//!
//! serde's own shapes are a string for a variant without fields and an object named by the variant
//! for the others, so that a program has to tell them apart. The encoding on disk stays serde's.

use serde::de::{self, Deserializer};
use serde::ser::{self, Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

/// Name of the field that tells which variant it is.
const KIND: &str = "kind";

/// Splits serde's own shape into the name of the variant and its fields.
pub(crate) fn parts<T: Serialize>(
    external: &T,
) -> Result<(String, Map<String, Value>), serde_json::Error> {
    let fault = <serde_json::Error as ser::Error>::custom;
    match serde_json::to_value(external)? {
        Value::String(kind) => Ok((kind, Map::new())),
        Value::Object(only) if only.len() == 1 => match only.into_iter().next() {
            Some((kind, Value::Object(fields))) => Ok((kind, fields)),
            _ => Err(fault("a variant without named fields")),
        },
        _ => Err(fault("not an enum")),
    }
}

/// Writes an enum that `external` serializes in serde's own shape.
pub(crate) fn tag<T: Serialize, S: Serializer>(
    external: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let (kind, fields) = parts(external).map_err(ser::Error::custom)?;
    let mut map = serializer.serialize_map(Some(1 + fields.len()))?;
    map.serialize_entry(KIND, &kind)?;
    fields.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
    map.end()
}

/// Reads what [`tag`] wrote, and gives it back in serde's own shape.
pub(crate) fn untag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let mut fields: Map<String, Value> = serde::Deserialize::deserialize(deserializer)?;
    match fields.remove(KIND) {
        Some(kind @ Value::String(_)) if fields.is_empty() => Ok(kind),
        Some(Value::String(kind)) => Ok(Value::Object(Map::from_iter([(kind, fields.into())]))),
        _ => Err(de::Error::missing_field(KIND)),
    }
}

/// Gives an enum that derives `Serialize` and `Deserialize` with `#[serde(remote = "Self")]` the
/// shape of [`tag`] in formats for people, and serde's own elsewhere.
macro_rules! tagged {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct External<'a>(&'a $name);
                impl serde::Serialize for External<'_> {
                    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                        $name::serialize(self.0, s)
                    }
                }
                if serializer.is_human_readable() {
                    $crate::json::tag(&External(self), serializer)
                } else {
                    $name::serialize(self, serializer)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let external = $crate::json::untag(deserializer)?;
                    $name::deserialize(external).map_err(serde::de::Error::custom)
                } else {
                    $name::deserialize(deserializer)
                }
            }
        }
    };
}
pub(crate) use tagged;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::{Deserialize, Serialize};

    use crate::sealed;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self", rename_all = "snake_case")]
    enum Sample {
        Alone,
        WithFields { zebra: u32, ant: Option<String> },
        Long(Duration),
    }
    tagged!(Sample);

    #[test]
    fn every_variant_is_an_object_that_begins_with_its_kind() {
        let all = [
            (Sample::Alone, r#"{"kind":"alone"}"#),
            (
                Sample::WithFields { zebra: 1, ant: None },
                r#"{"kind":"with_fields","ant":null,"zebra":1}"#,
            ),
            (
                Sample::Long(Duration::from_millis(1500)),
                r#"{"kind":"long","nanos":500000000,"secs":1}"#,
            ),
        ];
        for (sample, json) in all {
            assert_eq!(serde_json::to_string(&sample).unwrap(), json);
            assert_eq!(serde_json::from_str::<Sample>(json).unwrap(), sample);
        }
        for no_sample in ["\"alone\"", "{}", r#"{"kind":1}"#, r#"{"kind":"other"}"#] {
            assert!(serde_json::from_str::<Sample>(no_sample).is_err(), "{no_sample}");
        }
    }

    /// The formats on disk are bincode's.
    #[test]
    fn elsewhere_the_encoding_is_serdes_own() {
        let sample = Sample::WithFields { zebra: 7, ant: None };
        assert_eq!(*sealed::encode(&sample), [0, 0, 0, 1, 0, 0, 0, 7, 0]);
        assert_eq!(sealed::decode::<Sample>(&[0, 0, 0, 1, 0, 0, 0, 7, 0]), Some(sample));
    }
}
