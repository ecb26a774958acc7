//! The one public error. Each message says what happened, what was left
//! untouched where that is in doubt, and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::{Fingerprint, KeyVersion, OrgId, StorePosition, Suite};
use crate::text::{self, clean, escape};

mod backup;
mod import;
mod kinds;
mod material;

pub use backup::BackupError;
pub use import::ImportError;
pub use material::KeyMaterialError;

/// Result of every call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. The `is_…` questions group the variants for callers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No org has this name.
    #[error(
        "no org is named \"{org}\"; create it first, or check the spelling",
        org = escape(.org.as_bytes())
    )]
    OrgUnknown {
        /// The name asked for.
        org: String,
    },
    /// The org was erased while a handle was still in use.
    #[error(
        "the org \"{org}\" was erased: its keys are destroyed, its records are being deleted",
        org = escape(.org.as_bytes())
    )]
    OrgErased {
        /// Its name.
        org: String,
    },
    /// A version under which no record is left waits for an operator's word.
    #[error(
        "org \"{org}\": nothing is left under {version}, which is to be retired by hand only; \
         it is held until `KeyAdmin::retire` is called",
        org = escape(.org.as_bytes())
    )]
    RetirementAwaited {
        /// The org.
        org: String,
        /// The version.
        version: KeyVersion,
    },
    /// The name is taken.
    #[error(
        "an org named \"{org}\" exists already; nothing was changed",
        org = escape(.org.as_bytes())
    )]
    OrgExists {
        /// The name asked for.
        org: String,
    },
    /// The name can be taken for that of another org.
    #[error(
        "the name \"{org}\" looks like that of the org \"{other}\"; nothing was changed; choose \
         one that people can tell apart",
        org = escape(.org.as_bytes()),
        other = escape(.other.as_bytes())
    )]
    OrgLooksAlike {
        /// The name asked for.
        org: String,
        /// The org that has a name that looks the same, by the skeletons of Unicode TR39.
        other: String,
    },
    /// An org's name must be 1 to 128 bytes of visible text, see
    /// [`Store::create_org`](crate::Store::create_org).
    #[error("not a name for an org: {why}; nothing was changed")]
    InvalidOrgName {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The org's policy does not include bringing a key.
    #[error(
        "org \"{org}\" may not bring its own key; nothing was changed; set a policy with BYOK first",
        org = escape(.org.as_bytes())
    )]
    NotEntitled {
        /// The org.
        org: String,
    },
    /// The text or bytes are no acceptable key material.
    #[error("not acceptable as key material: {0}; nothing was changed")]
    KeyMaterial(#[from] KeyMaterialError),
    /// In FIPS mode: the suite is not approved by FIPS 140-3.
    #[error(
        "org \"{org}\": the store is open in FIPS mode, and {suite} is not approved by FIPS 140-3; \
         nothing was changed; use XAES-256-GCM: change the suite of an org that has another one \
         without FIPS mode first",
        org = escape(.org.as_bytes())
    )]
    SuiteNotApproved {
        /// The org.
        org: String,
        /// The suite that it has, or was to have.
        suite: Suite,
    },
    /// The suite belongs to a feature that this build does not have.
    #[error(
        "org \"{org}\": this build cannot seal or open with {suite}; nothing was changed; use a \
         build with the feature `aegis`, or change the org's suite in such a build first",
        org = escape(.org.as_bytes())
    )]
    SuiteNotBuilt {
        /// The org.
        org: String,
        /// The suite that it has, or was to have.
        suite: Suite,
    },
    /// FIPS mode was asked for, and the ciphers are not those of aws-lc's FIPS module.
    #[error(
        "FIPS mode was asked for, and this build does not have aws-lc's FIPS module; the data \
         directory was not touched; build with the feature `fips` and depend on aws-lc-rs with its \
         feature `fips`"
    )]
    FipsModuleMissing,
    /// What [`process::lock_memory`](crate::process::lock_memory) was refused.
    #[error(
        "memory could not be locked ({why}); nothing was changed; give the process CAP_IPC_LOCK, or \
         raise its limit: `ulimit -l unlimited`, for a service of systemd `LimitMEMLOCK=infinity`",
        why = clean(.why)
    )]
    MemoryNotLocked {
        /// What the system says.
        why: String,
    },
    /// The material is or was in use: by an org, for backups or as the root key, here or in a store
    /// whose backup was restored here.
    #[error(
        "this key (fingerprint {fingerprint}) is already in use or was used before; nothing was \
         changed; every key version needs new random bytes"
    )]
    KeyReused {
        /// Fingerprint of the refused material.
        fingerprint: Fingerprint,
    },
    /// The record's key version was retired.
    #[error(
        "{version} of org \"{org}\" is retired: its material was destroyed after no record was \
         left under it, so this record comes from an older copy of the data",
        org = escape(.org.as_bytes())
    )]
    KeyRetired {
        /// The org.
        org: String,
        /// The version that the record names.
        version: KeyVersion,
    },
    /// The record's key version is suspended.
    #[error(
        "{version} of org \"{org}\" is suspended; its records are intact but unreadable until the \
         same key is given back with `keys().resume(…)`",
        org = escape(.org.as_bytes())
    )]
    KeySuspended {
        /// The org.
        org: String,
        /// The suspended version.
        version: KeyVersion,
    },
    /// Material given to resume a key is another key than the one suspended.
    #[error(
        "wrong key: its fingerprint is {given}, the suspended {version} of org \"{org}\" has \
         {expected}; nothing was changed",
        org = escape(.org.as_bytes())
    )]
    WrongKey {
        /// The org.
        org: String,
        /// The suspended version.
        version: KeyVersion,
        /// Fingerprint of the suspended material.
        expected: Fingerprint,
        /// Fingerprint of the material given.
        given: Fingerprint,
    },
    /// The key is another one than the fingerprint that was announced for it.
    #[error("wrong key: its fingerprint is {given}, {expected} was expected; nothing was changed")]
    UnexpectedKey {
        /// The fingerprint that was announced.
        expected: Fingerprint,
        /// Fingerprint of the material given.
        given: Fingerprint,
    },
    /// A sealed key, or the token for it, was refused.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A backup was refused, or could not be made.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The requested change does not fit the state that the org's keys are in.
    #[error(
        "org \"{org}\": {why}; nothing was changed",
        org = escape(.org.as_bytes())
    )]
    KeyConflict {
        /// The org.
        org: String,
        /// What stands against it.
        why: &'static str,
    },
    /// A record's bytes do not open under the key version its own header names.
    #[error(
        "the record \"{name}\" of org \"{org}\" is damaged: {why}; other records are not \
         concerned; write it again, or delete it",
        org = escape(.org.as_bytes()),
        name = clean(.name),
        why = clean(.why)
    )]
    RecordDamaged {
        /// The org.
        org: String,
        /// The record's name, escaped and cut to 256 characters.
        name: String,
        /// What the header and the tag prove.
        why: String,
    },
    /// A record has no name that any call could take: its storage key was damaged, or put there by
    /// somebody else.
    #[error(
        "a record of org \"{org}\" has no name that anybody can ask for: {why} (storage key {key}); \
         other records are not concerned; `KeyAdmin::remove_nameless` deletes such records",
        org = escape(.org.as_bytes()),
        key = clean(.key),
        why = clean(.why)
    )]
    RecordNameless {
        /// The org.
        org: String,
        /// The first 40 bytes of its storage key behind the org's id, in hex.
        key: String,
        /// What is wrong with its name.
        why: String,
    },
    /// A rotation cannot end because records do not open.
    #[error(
        "the rotation of org \"{org}\" is blocked: {unreadable} records do not open, first \
         {first}; the old key is kept; mend or delete them, then resume the rotation",
        org = escape(.org.as_bytes()),
        first = clean(.first)
    )]
    RotationBlocked {
        /// The org.
        org: String,
        /// How many records do not open.
        unreadable: u64,
        /// Name and fault of the first.
        first: String,
    },
    /// The root key cannot be had.
    #[error(
        "the root key is unavailable: {why}; the data directory was not touched",
        why = clean(.why)
    )]
    RootKeyUnavailable {
        /// Why, and what to do.
        why: String,
    },
    /// A file or pipe that a key was to come from.
    #[error("{}: {}; nothing was changed", text::path(.file), clean(.why))]
    KeyFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The root key is not the one that wraps this keyring.
    #[error(
        "wrong root key: this store is wrapped by {expected}, the key given is {given}; the data \
         directory was not touched; give the key with the fingerprint {expected}"
    )]
    RootKeyWrong {
        /// Fingerprint of the root key that wraps the keyring.
        expected: Fingerprint,
        /// Fingerprint of the key given.
        given: Fingerprint,
    },
    /// A file of the store (not of sled) is missing, damaged or not of this store.
    #[error(
        "{}: {why}", text::path(path),
        why = clean(.why)
    )]
    FileDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A link, a mount point or a special file lies where the store keeps files of its own.
    #[error(
        "{} is {what}; it was left as it is; all files of a store lie in its own directory, on one \
         file system, or what is erased would stay elsewhere; put the file or directory itself \
         there (the data directory as a whole may be a link or a mount point)",
        text::path(path)
    )]
    OutsideStore {
        /// Where it lies.
        path: PathBuf,
        /// What it is, such as `a symbolic link`.
        what: &'static str,
    },
    /// Others than its owner may use the directory, or a file in it.
    #[error(
        "others than its owner may write {} (mode {mode:03o}), {why}; nothing was changed",
        text::path(path),
        why = clean(.why)
    )]
    NotPrivate {
        /// The directory or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Why it was not made private, and what to do.
        why: String,
    },
    /// The store is not the one that [`Options::expect_store`](crate::Options::expect_store) or
    /// [`Options::minimum_position`](crate::Options::minimum_position) names.
    #[error(
        "the store in {} is {found}, {expected} was expected; nothing was changed; check the path, \
         and whether directories were exchanged",
        text::path(path)
    )]
    OtherStore {
        /// The data directory.
        path: PathBuf,
        /// The id that was expected.
        expected: OrgId,
        /// The id of the store that is there.
        found: OrgId,
    },
    /// The whole directory is older than the position that the caller knows of.
    #[error(
        "the store in {} is older than it was: it is at {found}, and had reached {minimum}; nothing \
         was changed; bring back the newest copy, or accept the loss by opening it without a \
         minimum position",
        text::path(path)
    )]
    BeforeMinimum {
        /// The data directory.
        path: PathBuf,
        /// What the store had reached.
        minimum: StorePosition,
        /// What the directory has reached.
        found: StorePosition,
    },
    /// Another process, or another `Store` of this process, has the directory open.
    #[error(
        "the store in {} is in use{}; one process at a time may open it",
        text::path(path),
        pid.map_or_else(String::new, |pid| format!(" by the process {pid}"))
    )]
    StoreLocked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, where known.
        pid: Option<u32>,
    },
    /// A part of the store is older than the rest proves it must be.
    #[error(
        "the store went back in time: {what}; bring back the newest copy, or \
         accept the loss with `Store::danger_accept_loss` or `Options::danger_accept_rollback`, which \
         is audited",
        what = clean(.what)
    )]
    RolledBack {
        /// Which part is behind, by how much, and how that is known.
        what: String,
        /// Durable syncs that are missing, where the evidence counts them.
        syncs: Option<u64>,
    },
    /// No space left.
    #[error(
        "the disk is full while {during}; what was acknowledged as durable is safe; free some \
         space and try again, or reopen the store if the error stays",
        during = clean(.during)
    )]
    DiskFull {
        /// What was being done.
        during: String,
    },
    /// The disk refused a sync. An operating system forgets what it could not write, so a later
    /// sync that succeeds would prove nothing: the store takes no more writes.
    #[error(
        "the disk refused a sync ({why}); what was acknowledged as durable before is safe, later \
         writes may be lost, also a change of keys that just failed may have happened: keep both \
         keys; the store can be read but takes no more writes; see to the disk, then close the \
         store and open it again",
        why = clean(.why)
    )]
    SyncFailed {
        /// The first failure.
        why: String,
    },
    /// The disk refused a write of the database's. Its buffers may wait for that for ever: the
    /// store takes no more writes, and may stay locked until its process has ended.
    #[error(
        "the disk refused a write ({why}); what was acknowledged as durable before is safe, later \
         writes may be lost; the store can be read but takes no more writes; see to the disk, \
         then close the store and open it again, in a new process if it stays locked",
        why = clean(.why)
    )]
    WriteFailed {
        /// The first failure.
        why: String,
    },
    /// An operation of the operating system failed.
    #[error(
        "{during}: {source}",
        during = clean(.during)
    )]
    Io {
        /// What was being done.
        during: String,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// sled reports, or its panic shows, that its files are damaged.
    #[error(
        "the database files in {} are damaged ({why}); put back the newest copy of the whole data \
         directory, or restore a backup into a new store",
        text::path(path),
        why = clean(.why)
    )]
    StorageDamaged {
        /// The directory of sled's files.
        path: PathBuf,
        /// sled's own words.
        why: String,
    },
    /// A name is empty or longer than the limit.
    #[error("a name has 1 to {limit} bytes, this one has {len}; nothing was written")]
    NameLength {
        /// Length of the name, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// A name has too many segments to be blinded.
    #[error(
        "in an org with blinded names a name has at most {limit} segments (what stands between \
         two `/`), this one has {segments}; nothing was written"
    )]
    NameDepth {
        /// How many it has.
        segments: usize,
        /// The limit.
        limit: usize,
    },
    /// A value is longer than the limit.
    #[error("a value has at most {limit} bytes, this one has {len}; nothing was written")]
    ValueTooLarge {
        /// Length of the value, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// An option is out of its range.
    #[error("{option}: {why}; the data directory was not touched")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What its range is.
        why: &'static str,
    },
    /// A certificate was not made by this store, or was altered.
    #[error("the certificate is not authentic: {why}")]
    CertificateInvalid {
        /// What does not fit.
        why: &'static str,
    },
    /// The audit log has a gap, a changed entry or a missing end.
    #[error("the audit log is broken at entry {entry}: {why}")]
    AuditBroken {
        /// Number of the first entry that does not fit.
        entry: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// Residue is being erased already.
    #[error("residue is being erased already; nothing was changed; wait for that to end")]
    ResidueBusy,
    /// The operating system gave no random bytes.
    #[error(
        "the operating system's random source failed: {why}; nothing was written",
        why = clean(.why)
    )]
    RandomUnavailable {
        /// Its message.
        why: String,
    },
    /// This machine's wall clock shows a time before 1970.
    #[error(
        "this machine's clock shows a time before 1970; nothing was changed; set the clock, then \
         try again"
    )]
    ClockBefore1970,
    /// byokv itself failed. The old key is kept.
    #[error(
        "a bug in byokv stopped the rotation of org \"{org}\"; nothing was lost, the old key is \
         kept, other orgs go on; please report it with the log or panic message",
        org = escape(.org.as_bytes())
    )]
    Bug {
        /// The org.
        org: String,
    },
    /// The store was closed while a handle was still in use.
    #[error("the store is closed; open it again to go on")]
    Closed,
}

impl From<crate::time::Before1970> for Error {
    fn from(crate::time::Before1970: crate::time::Before1970) -> Self {
        Self::ClockBefore1970
    }
}

impl Error {
    pub(crate) fn io(during: impl Into<String>, source: io::Error) -> Self {
        let during = during.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { during },
            _ => Self::Io { during, source: Arc::new(source) },
        }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::FileDamaged { path: path.to_owned(), why: why.into() }
    }
}
