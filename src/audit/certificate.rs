//! The authenticated record that a key version was retired with zero records left.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::ErasureLimit;
use super::copies::{self, BackupCopy};
use crate::error::{Error, Result};
use crate::id::{CertificateHash, Fingerprint, KeyVersion, OrgId, Origin, Suite};
use crate::json;
use crate::material::KeyMaterial;
use crate::sealed;
use crate::time::rfc3339;

const LABEL: &[u8] = b"byokv certificate v1";

/// What a certificate is about. In JSON an object with `kind` and, for a suite, `suite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CertificateKind {
    /// A key version was retired.
    KeyRetired,
    /// A suite was replaced; the key versions stay.
    SuiteRetired {
        /// The suite under which no record is left.
        suite: Suite,
    },
    /// A retired key's old ciphertext was erased too: in every file that the store ever made in its
    /// directory, also those of large pages that sled has removed since, no envelope of it is left.
    /// What that does not reach, [`Certificate::scope`] lists.
    KeyErased,
    /// An org was erased: every key destroyed, then every record deleted.
    /// [`Certificate::scope`] lists what that does not reach.
    OrgErased,
}
json::tagged!(CertificateKind);

/// Such as `key retired`.
impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyRetired => f.write_str("key retired"),
            Self::SuiteRetired { suite } => write!(f, "suite {suite} retired"),
            Self::KeyErased => f.write_str("key erased"),
            Self::OrgErased => f.write_str("org erased"),
        }
    }
}

/// Proof that no record was left under a key version when its material was destroyed.
///
/// Authenticated with HMAC-SHA-256 under a key that lives in the keyring and so is wrapped by
/// the root key: only this store can make one, and only with this store, by
/// [`KeyAdmin::verify_certificate`](crate::KeyAdmin::verify_certificate), can one be checked.
/// It says what the live data proves: old ciphertext may still lie in sled's files, unreadable.
///
/// In JSON an object with the fields in their order; `kind` is followed by `suite` for a suite, and
/// `at_unix_ms` is preceded by `at`, the same time as RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
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
    /// The version that was active at the end; `None` where none was, because the org is erased.
    pub successor: Option<KeyVersion>,
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
    /// Of a certificate of erasure: what its claim does not reach. Empty for others.
    pub scope: Vec<ErasureLimit>,
    /// Of an erased org: every backup that holds it, or may hold records of it, as far as the
    /// store knows. Nothing that was erased reaches them. Empty for others, and not in their JSON.
    #[serde(default)]
    pub backups: Vec<BackupCopy>,
    /// Of an erased org: entries of the register of backups that are missing or do not open, so
    /// that `backups` may not be whole. 0 for others, and not in their JSON.
    #[serde(default)]
    pub backups_missing: u64,
    /// The HMAC.
    #[serde(with = "base64_text")]
    pub authenticator: Vec<u8>,
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let Self {
            kind,
            store,
            org,
            org_id,
            version,
            fingerprint,
            origin,
            successor,
            records_rewritten,
            records_verified,
            records_deleted,
            records_left,
            at_unix_ms,
            keyring_generation,
            secret_generation,
            scope,
            backups,
            backups_missing,
            authenticator,
        } = self;
        let names_backups = *kind == CertificateKind::OrgErased;
        let mut map = serializer.serialize_map(None)?;
        // The kind, and the suite beside it.
        let kind = serde_json::to_value(kind).map_err(S::Error::custom)?;
        for field in ["kind", "suite"] {
            if let Some(value) = kind.get(field) {
                map.serialize_entry(field, value)?;
            }
        }
        map.serialize_entry("store", store)?;
        map.serialize_entry("org", org)?;
        map.serialize_entry("org_id", org_id)?;
        map.serialize_entry("version", version)?;
        map.serialize_entry("fingerprint", fingerprint)?;
        map.serialize_entry("origin", origin)?;
        map.serialize_entry("successor", successor)?;
        map.serialize_entry("records_rewritten", records_rewritten)?;
        map.serialize_entry("records_verified", records_verified)?;
        map.serialize_entry("records_deleted", records_deleted)?;
        map.serialize_entry("records_left", records_left)?;
        map.serialize_entry("at", &rfc3339(*at_unix_ms))?;
        map.serialize_entry("at_unix_ms", at_unix_ms)?;
        map.serialize_entry("keyring_generation", keyring_generation)?;
        map.serialize_entry("secret_generation", secret_generation)?;
        map.serialize_entry("scope", scope)?;
        if names_backups {
            map.serialize_entry("backups", backups)?;
            map.serialize_entry("backups_missing", backups_missing)?;
        }
        map.serialize_entry("authenticator", &STANDARD.encode(authenticator))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        let mut fields: Map<String, Value> = Deserialize::deserialize(deserializer)?;
        if let (Some(kind @ Value::String(_)), suite) =
            (fields.get("kind").cloned(), fields.remove("suite"))
        {
            let suite = suite.map(|suite| ("suite".to_owned(), suite));
            let kind = [("kind".to_owned(), kind)].into_iter().chain(suite);
            fields.insert("kind".to_owned(), Value::Object(kind.collect()));
        }
        let at = fields.remove("at");
        let certificate = Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)?;
        // The authenticator covers the number. A reader sees the text.
        if at.is_some_and(|at| at != rfc3339(certificate.at_unix_ms)) {
            return Err(D::Error::custom("`at` is another time than `at_unix_ms`"));
        }
        Ok(certificate)
    }
}

impl Certificate {
    /// Returns the SHA-256 of the certificate as the store encodes it. The entry of the audit log
    /// that belongs to the certificate holds the same.
    #[must_use]
    pub fn sha256(&self) -> CertificateHash {
        CertificateHash::from_bytes(Sha256::digest(&sealed::encode(self)[..]).into())
    }

    /// Returns what it is about, without the org, such as `platform key v1 retired`.
    #[must_use]
    pub fn about(&self) -> String {
        match self.kind {
            CertificateKind::KeyRetired => format!("{} key {} retired", self.origin, self.version),
            CertificateKind::SuiteRetired { suite } => format!("suite {suite} retired"),
            CertificateKind::KeyErased => format!("{} key {} erased", self.origin, self.version),
            CertificateKind::OrgErased => "org erased".to_owned(),
        }
    }

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
        self.check_claim()
    }

    /// Refuses one that no store makes, whoever vouches for it.
    pub(crate) fn check_claim(&self) -> Result<()> {
        if self.records_left != 0 {
            return Err(Error::CertificateInvalid { why: "it counts records that are left" });
        }
        Ok(())
    }

    /// Returns the key under which the database keeps it.
    pub(crate) fn key(&self) -> Vec<u8> {
        let mut key = Self::key_of(self.org_id, self.version, self.kind);
        if matches!(self.kind, CertificateKind::SuiteRetired { .. }) {
            // An org may leave a suite more than once under one key.
            key.extend(self.at_unix_ms.to_be_bytes());
        }
        key
    }

    /// Returns what the keys of all certificates of this begin with.
    pub(crate) fn key_of(org: OrgId, version: KeyVersion, kind: CertificateKind) -> Vec<u8> {
        let suffix = match kind {
            CertificateKind::KeyRetired => vec![0],
            CertificateKind::SuiteRetired { suite } => vec![1, suite.byte()],
            CertificateKind::OrgErased => vec![2],
            CertificateKind::KeyErased => vec![3],
        };
        [Self::PREFIX, org.as_bytes(), &version.get().to_be_bytes(), &suffix].concat()
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
        if let Some(successor) = self.successor {
            writeln!(f, "  replaced by        {successor}")?;
        }
        match self.kind {
            CertificateKind::OrgErased => {
                writeln!(f, "  records deleted    {}", self.records_deleted)?;
            }
            CertificateKind::KeyErased => {
                writeln!(f, "  envelopes erased   {}", self.records_deleted)?;
            }
            CertificateKind::KeyRetired | CertificateKind::SuiteRetired { .. } => {
                writeln!(f, "  records rewritten  {}", self.records_rewritten)?;
                writeln!(f, "  records verified   {}", self.records_verified)?;
            }
        }
        writeln!(f, "  records left       {}", self.records_left)?;
        writeln!(f, "  at                 {}", rfc3339(self.at_unix_ms))?;
        writeln!(f, "  keyring generation {}", self.keyring_generation)?;
        writeln!(f, "  store, org id      {}, {}", self.store, self.org_id)?;
        writeln!(f, "  SHA-256            {}", self.sha256())?;
        if !self.scope.is_empty() {
            writeln!(f, "  not reached")?;
            self.scope.iter().try_for_each(|limit| writeln!(f, "    - {limit}"))?;
        }
        if self.kind == CertificateKind::OrgErased {
            copies::list(f, &self.backups, self.backups_missing)?;
        }
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
    use crate::audit::BackupState;
    use crate::id::BackupId;

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
            successor: KeyVersion::new(2),
            records_rewritten: 10,
            records_verified: 12,
            records_deleted: 0,
            records_left: 0,
            at_unix_ms: 1_700_000_000_000,
            keyring_generation: 4,
            secret_generation: 1,
            scope: vec![ErasureLimit::AbortedPages],
            backups: Vec::new(),
            backups_missing: 0,
            authenticator: Vec::new(),
        }
        .authenticate(&key(1))
    }

    #[test]
    fn survives_json_and_verifies() {
        let certificate = certificate();
        let json = certificate.to_json();
        assert!(json.contains("\"at\": \"2023-11-14T22:13:20Z\""), "{json}");
        let back = Certificate::from_json(&json).unwrap();
        assert_eq!(back, certificate);
        back.verify(&key(1)).unwrap();
        let of_suite = Certificate {
            kind: CertificateKind::SuiteRetired { suite: Suite::XChaCha20Poly1305 },
            ..certificate
        };
        let json = of_suite.to_json();
        assert!(json.starts_with("{\n  \"kind\": \"suite_retired\",\n  \"suite\""), "{json}");
        assert_eq!(Certificate::from_json(&json).unwrap(), of_suite);
    }

    #[test]
    fn any_altered_field_and_any_other_key_is_refused() {
        let certificate = certificate();
        assert!(certificate.verify(&key(2)).is_err());
        let json: Value = serde_json::from_str(&certificate.to_json()).unwrap();
        for (field, value) in json.as_object().unwrap() {
            let mut altered = json.clone();
            altered[field] = match (field.as_str(), value) {
                ("kind", _) => "key_erased".into(),
                ("origin", _) => "customer".into(),
                (_, Value::Number(n)) => (n.as_u64().unwrap() + 1).into(),
                (_, Value::String(s)) => {
                    let first = if s.starts_with('0') { "1" } else { "0" };
                    format!("{first}{}", &s[1..]).into()
                }
                ("scope", _) => serde_json::json!([{"kind": "shortened_log"}]),
                (_, other) => panic!("unexpected {other}"),
            };
            assert_ne!(altered, json, "{field}");
            let parsed = Certificate::from_json(&altered.to_string());
            assert_eq!(parsed.is_err(), field == "at", "{field}");
            assert!(parsed.is_err() || parsed.unwrap().verify(&key(1)).is_err(), "{field}");
        }
        assert!(Certificate::from_json("{}").is_err());
    }

    /// Leaving a backup out of the list, or changing what is said of it, is noticed.
    #[test]
    fn the_list_of_backups_is_authenticated() {
        let copy = BackupCopy {
            backup: BackupId::from_bytes([5; 16]),
            key: Fingerprint::from_bytes([6; 16]),
            at_unix_ms: 1_700_000_000_000,
            state: BackupState::Made,
            store: OrgId::from_bytes([1; 16]),
            org_id: OrgId::from_bytes([2; 16]),
        };
        let erased = Certificate {
            kind: CertificateKind::OrgErased,
            backups: vec![copy.clone(), BackupCopy { state: BackupState::Unfinished, ..copy }],
            backups_missing: 1,
            ..certificate()
        };
        let erased = erased.authenticate(&key(1));
        let text = erased.to_string();
        assert!(text.contains("made 2023-11-14T22:13:20Z, key 0606"), "{text}");
        assert!(text.contains("not finished") && text.contains("1 entry"), "{text}");
        let json: Value = serde_json::from_str(&erased.to_json()).unwrap();
        let read = |json: &Value| Certificate::from_json(&json.to_string());
        assert_eq!(read(&json).unwrap(), erased);
        read(&json).unwrap().verify(&key(1)).unwrap();
        let altered = |alter: &dyn Fn(&mut Value)| {
            let mut altered = json.clone();
            alter(&mut altered);
            read(&altered)
        };
        for alter in [
            &(|json: &mut Value| drop(json["backups"].as_array_mut().unwrap().pop()))
                as &dyn Fn(&mut Value),
            &|json| drop(json.as_object_mut().unwrap().remove("backups")),
            &|json| json["backups_missing"] = 0.into(),
            &|json| json["backups"][0]["key"] = json["backups"][0]["backup"].clone(),
            &|json| json["backups"][1]["state"] = "made".into(),
        ] {
            assert!(altered(alter).unwrap().verify(&key(1)).is_err());
        }
        assert!(altered(&|json| json["backups"][0]["at"] = "2024-01-01T00:00:00Z".into()).is_err());
    }
}
