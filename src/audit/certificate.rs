//! The authenticated record that a key version was retired with zero records left.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{Fingerprint, KeyVersion, OrgId, Origin, Suite};
use crate::material::KeyMaterial;
use crate::sealed;
use crate::time::rfc3339;

const LABEL: &[u8] = b"byokv certificate v1";

/// What a certificate is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CertificateKind {
    /// A key version was retired.
    KeyRetired,
    /// A suite was replaced; the key versions stay.
    SuiteRetired {
        /// The suite under which no record is left.
        suite: Suite,
    },
    /// A retired key's old ciphertext was erased too: in every file of the database, searched
    /// byte by byte, no envelope of it is left. File systems that write elsewhere than in place,
    /// flash drives and backups may hold copies that this does not reach.
    KeyErased,
    /// An org was erased: every key destroyed, then every record deleted.
    OrgErased,
}

/// Proof that no record was left under a key version when its material was destroyed.
///
/// Authenticated with HMAC-SHA-256 under a key that lives in the keyring and so is wrapped by
/// the root key: only this store can make one, and only with this store, by
/// [`KeyAdmin::verify_certificate`](crate::KeyAdmin::verify_certificate), can one be checked.
/// It says what the live data proves: old ciphertext may still lie in sled's files, unreadable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Certificate {
    /// What was retired.
    pub kind: CertificateKind,
    /// Identity of the store.
    pub store: OrgId,
    /// Name of the org.
    pub org: String,
    /// Id of the org.
    pub org_id: OrgId,
    /// The retired version (for a suite: the version that was active).
    pub version: KeyVersion,
    /// Fingerprint of that version's material.
    pub fingerprint: Fingerprint,
    /// Who had made it.
    pub origin: Origin,
    /// The version that was active at the end.
    pub successor: KeyVersion,
    /// Records that the rotation re-encrypted, over all restarts. A kill may lose the count of
    /// the last moment, never a record.
    pub records_rewritten: u64,
    /// Records that the last full pass opened, one by one (for an erased org: 0).
    pub records_verified: u64,
    /// For an erased org its records, for an erased key its envelopes in the database's files,
    /// of which none is left; else 0. A kill may lose the count of the
    /// last moment, never a record.
    pub records_deleted: u64,
    /// Records under the version in the independent header scan. Always 0: else there is no
    /// certificate.
    pub records_left: u64,
    /// Milliseconds since 1970-01-01 UTC, by this machine's clock.
    pub at_unix_ms: u64,
    /// Generation of the keyring that no longer holds the material.
    pub keyring_generation: u64,
    /// Generation of the store's secret, from 1, that the authenticator was made with. A change of a
    /// compromised root key makes the next one.
    pub secret_generation: u32,
    /// The HMAC.
    #[serde(with = "base64_text")]
    pub authenticator: Vec<u8>,
}

impl Certificate {
    pub(super) fn authenticate(mut self, key: &KeyMaterial) -> Self {
        self.authenticator.clear();
        self.authenticator = key.mac(LABEL, &sealed::encode(&self)).to_vec();
        self
    }

    pub(super) fn verify(&self, key: &KeyMaterial) -> Result<()> {
        let mut body = self.clone();
        body.authenticator.clear();
        if !key.mac_is(LABEL, &sealed::encode(&body), &self.authenticator) {
            let why = "its authenticator does not fit: it was altered, or another store made it";
            return Err(Error::CertificateInvalid { why });
        }
        if self.records_left != 0 {
            return Err(Error::CertificateInvalid { why: "it counts records that are left" });
        }
        Ok(())
    }

    /// Where it lies in the database.
    pub(crate) fn key(&self) -> Vec<u8> {
        let suffix = match self.kind {
            CertificateKind::KeyRetired => vec![0],
            CertificateKind::SuiteRetired { suite } => {
                [&[1, suite.byte()], &self.at_unix_ms.to_be_bytes()[..]].concat()
            }
            CertificateKind::OrgErased => vec![2],
            CertificateKind::KeyErased => vec![3],
        };
        let version = self.version.get().to_be_bytes();
        [Self::PREFIX, self.org_id.as_bytes(), &version, &suffix].concat()
    }

    pub(crate) const PREFIX: &'static [u8] = b"certificate/";

    /// As one JSON object.
    ///
    /// # Panics
    /// Never: the type has no map with other keys than text.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a certificate is plain data")
    }

    /// Reads what [`to_json`](Self::to_json) wrote. Does not verify it.
    ///
    /// # Errors
    /// [`Error::CertificateInvalid`] if it is no certificate at all.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .map_err(|_| Error::CertificateInvalid { why: "it is not the JSON of a certificate" })
    }
}

/// For people, several lines.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            CertificateKind::KeyRetired => writeln!(
                f,
                "Certificate of retirement: {} key {} of org \"{}\"",
                self.origin, self.version, self.org
            )?,
            CertificateKind::SuiteRetired { suite } => {
                writeln!(f, "Certificate of a suite's end: {suite} of org \"{}\"", self.org)?;
            }
            CertificateKind::KeyErased => writeln!(
                f,
                "Certificate of erasure: {} key {} of org \"{}\"",
                self.origin, self.version, self.org
            )?,
            CertificateKind::OrgErased => {
                writeln!(
                    f,
                    "Certificate of erasure: org \"{}\", keys up to {}",
                    self.org, self.version
                )?;
            }
        }
        writeln!(f, "  fingerprint        {}", self.fingerprint)?;
        if self.kind == CertificateKind::OrgErased {
            writeln!(f, "  records deleted    {}", self.records_deleted)?;
        } else if self.kind == CertificateKind::KeyErased {
            writeln!(f, "  replaced by        {}", self.successor)?;
            writeln!(f, "  envelopes erased   {}", self.records_deleted)?;
        } else {
            writeln!(f, "  replaced by        {}", self.successor)?;
            writeln!(f, "  records rewritten  {}", self.records_rewritten)?;
            writeln!(f, "  records verified   {}", self.records_verified)?;
        }
        writeln!(f, "  records left       {}", self.records_left)?;
        writeln!(f, "  at                 {}", rfc3339(self.at_unix_ms))?;
        writeln!(f, "  keyring generation {}", self.keyring_generation)?;
        writeln!(f, "  store, org id      {}, {}", self.store, self.org_id)?;
        write!(f, "  authenticator      {}", STANDARD.encode(&self.authenticator))
    }
}

mod base64_text {
    use super::{Engine, STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            STANDARD.encode(bytes).serialize(serializer)
        } else {
            bytes.serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            STANDARD.decode(text).map_err(|_| D::Error::custom("not base64"))
        } else {
            Vec::deserialize(d)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> KeyMaterial {
        KeyMaterial::take(&mut [byte; 32])
    }

    fn certificate() -> Certificate {
        Certificate {
            kind: CertificateKind::KeyRetired,
            store: OrgId::from_bytes([1; 16]),
            org: "acme".to_owned(),
            org_id: OrgId::from_bytes([2; 16]),
            version: KeyVersion::FIRST,
            fingerprint: Fingerprint::from_bytes([3; 16]),
            origin: Origin::Platform,
            successor: KeyVersion::new(2).unwrap(),
            records_rewritten: 10,
            records_verified: 12,
            records_deleted: 0,
            records_left: 0,
            at_unix_ms: 1_700_000_000_000,
            keyring_generation: 4,
            secret_generation: 1,
            authenticator: Vec::new(),
        }
        .authenticate(&key(1))
    }

    #[test]
    fn survives_json_and_verifies() {
        let certificate = certificate();
        let back = Certificate::from_json(&certificate.to_json()).unwrap();
        assert_eq!(back, certificate);
        back.verify(&key(1)).unwrap();
    }

    #[test]
    fn any_altered_field_and_any_other_key_is_refused() {
        let certificate = certificate();
        assert!(certificate.verify(&key(2)).is_err());
        let json: serde_json::Value = serde_json::from_str(&certificate.to_json()).unwrap();
        for (field, value) in json.as_object().unwrap() {
            let mut altered = json.clone();
            altered[field] = match (field.as_str(), value) {
                ("kind", _) => serde_json::json!({"suite_retired": {"suite": "XAES-256-GCM"}}),
                ("origin", _) => "customer".into(),
                (_, serde_json::Value::Number(n)) => (n.as_u64().unwrap() + 1).into(),
                (_, serde_json::Value::String(s)) => {
                    let first = if s.starts_with('0') { "1" } else { "0" };
                    format!("{first}{}", &s[1..]).into()
                }
                (_, other) => panic!("unexpected {other}"),
            };
            assert_ne!(altered, json, "{field}");
            let parsed = Certificate::from_json(&altered.to_string()).unwrap();
            assert!(parsed.verify(&key(1)).is_err(), "{field}");
        }
        assert!(Certificate::from_json("{}").is_err());
    }
}
