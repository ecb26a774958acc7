//! An embedded, encrypted key-value store in which every org's values are sealed under its own
//! key. Orgs may bring that key (BYOK); it is rotated in the background without downtime, until
//! the old key is provably gone.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # let data = dir.path().join("data");
//! # let line = "+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=\n";
//! # let root = RootKey::from_material(KeyMaterial::generate()?);
//! use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
//!
//! let store = Store::open(data, root)?; // or RootKey::from_env("BYOKV_ROOT_KEY")?
//! let acme = store.create_org("acme", OrgPolicy::byok())?; // under a platform key of its own
//! acme.put("clusters/prod/token", "s3cret")?;
//!
//! let rotation = store.keys().provision("acme", KeyMaterial::from_base64(line)?)?;
//! println!("{}", rotation.progress()); // phase, records, rate, time left
//! let certificate = rotation.wait()?; // the platform key is gone, proven
//! println!("{certificate}");
//! assert_eq!(acme.get("clusters/prod/token")?.as_deref(), Some(&b"s3cret"[..]));
//! # Ok::<(), byokv::Error>(())
//! ```
//!
//! The formats, the protocol with its crash points, and what an attacker can and cannot do are
//! in `docs/design.md`.

#![cfg_attr(not(test), forbid(unsafe_code))]

mod admin;
mod audit;
#[cfg(feature = "backup")]
mod backup;
mod disk;
mod engine;
mod envelope;
mod error;
#[doc(hidden)]
pub mod failpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod id;
#[cfg(feature = "import")]
mod import;
mod json;
mod keyring;
mod mark;
mod material;
mod observe;
mod org;
mod policy;
pub mod process;
mod rotation;
mod sealed;
mod storage;
mod store;
pub mod text;
mod time;

pub use admin::{
    AuditLog, BackupCopies, BackupRegister, ForeignKeys, KeyAdmin, KeyStatus, OrgAuditLog,
    OrgStatus, RegisteredBackup,
};
pub use audit::{
    AuditEntry, AuditEvent, AuditHead, BackupCopy, BackupState, Certificate, CertificateCheck,
    CertificateKind, CertificateMismatch, CertificateReport, ErasureLimit, FoundInstead,
    KeyRefusal, LostCertificate, OrgAuditEntry, OrgRef, Superseded, SupersededBy,
};
#[cfg(feature = "backup")]
pub use backup::{BackedUpOrg, BackupContents, LeftOut, LeftOutOrg, UnreadableRecord};
pub use engine::{
    Change, CompromisedKey, Inspection, MAX_NAME_LEN, MAX_VALUE_LEN, Residue, ResidueErased,
    SecretReplaced, Watch,
};
pub use envelope::Value;
pub use envelope::name::MAX_NAME_SEGMENTS;
pub use error::{BackupError, Error, ImportError, KeyMaterialError, Result};
pub use id::{
    BackupId, CertificateHash, Due, Fingerprint, KeyState, KeyVersion, OrgId, Origin,
    PositionError, StorePosition, Suite, TokenId,
};
#[cfg(feature = "import")]
pub use import::{ImportToken, SealedKey};
pub use keyring::root::{RootKey, RootKeyProvider};
pub use keyring::{KeyFile, NamePolicy, OrgPolicy};
pub use material::KeyMaterial;
pub use observe::{Census, ClockStatus, Metrics, OrgMetrics, VersionMetrics};
pub use org::{Batch, Names, Org, ParallelScan, Record, Scan, Swap};
pub use policy::{BackupPolicy, PolicyChange, RetirePolicy};
pub use rotation::{Erasure, Phase, Progress, Rotation, Throttle};
#[cfg(feature = "backup")]
pub use store::{Backup, RecordSelection, Restore, Restored, RestoredOrg, RestoredRecords};
pub use store::{Options, Store};
