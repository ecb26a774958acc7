//! Which changes of state a key may make, and what an org may do.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{OrgEntry, VersionEntry};
use crate::error::{Error, Result};
use crate::id::{Due, KeyState, Suite};
use crate::policy::{BackupPolicy, PolicyChange, RetirePolicy, plain};

/// What an org may do, and how it starts.
///
/// ```
/// use byokv::{OrgPolicy, Suite};
///
/// let standard = OrgPolicy::platform_only();
/// let paying = OrgPolicy::byok().with_suite(Suite::XChaCha20Poly1305);
/// assert!(paying.may_bring_key() && !standard.may_bring_key());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct OrgPolicy {
    may_bring_key: bool,
    suite: Suite,
    retire: RetirePolicy,
    rotate_after: RotateAfter,
    names: NamePolicy,
    backups: BackupPolicy,
}

/// An [`OrgPolicy`] as it is read, whose limits may be beyond what is allowed.
#[derive(Deserialize)]
#[serde(rename = "OrgPolicy")]
struct Unchecked {
    may_bring_key: bool,
    suite: Suite,
    retire: RetirePolicy,
    rotate_after: RotateAfter,
    names: NamePolicy,
    backups: BackupPolicy,
}

impl TryFrom<Unchecked> for OrgPolicy {
    type Error = Error;

    fn try_from(read: Unchecked) -> Result<Self> {
        let Unchecked { may_bring_key, suite, retire, rotate_after, names, backups } = read;
        let policy = Self { may_bring_key, suite, retire, rotate_after, names, backups };
        policy.check()?;
        Ok(policy)
    }
}

/// How the names of an org's records are stored, from the org's creation on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamePolicy {
    /// As they are. Whoever reads the disk reads them.
    #[default]
    Clear,
    /// Sealed, each segment (what stands between two `/`) on its own and always to the same
    /// bytes, under a key that rotates with the org's key. Whoever reads the disk still sees how
    /// many records there are, how their names branch, how long each segment is, and which
    /// segments under one parent are equal, also over time while the key stays.
    ///
    /// What it costs: names have at most 128 segments and take 18 bytes more for each. A scan
    /// opens the names below the last whole segment of its prefix and sorts them in memory
    /// before it gives the first record. While a key leaves, a name is looked for under the new
    /// and the old key, and its writers take turns. While a key is suspended, names that need it
    /// can neither be found nor written, deleted or counted.
    Blinded,
}

/// When a key is due to be rotated: whatever comes first. Nothing is destroyed because of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RotateAfter {
    pub(crate) age: Option<Duration>,
    pub(crate) records: Option<u64>,
    pub(crate) bytes: Option<u64>,
}

impl RotateAfter {
    /// Why a key of this age and use is due.
    pub(crate) fn due(&self, age: Duration, records: u64, bytes: u64) -> Option<Due> {
        if self.age.is_some_and(|limit| age >= limit) {
            Some(Due::Age)
        } else if self.records.is_some_and(|limit| records >= limit) {
            Some(Due::Records)
        } else if self.bytes.is_some_and(|limit| bytes >= limit) {
            Some(Due::Bytes)
        } else {
            None
        }
    }

    pub(crate) fn is_some(&self) -> bool {
        *self != Self::default()
    }
}

impl OrgPolicy {
    /// The org may bring its own key.
    #[must_use]
    pub fn byok() -> Self {
        Self { may_bring_key: true, ..Self::platform_only() }
    }

    /// The org has platform keys only.
    #[must_use]
    pub fn platform_only() -> Self {
        Self {
            may_bring_key: false,
            suite: Suite::default(),
            retire: RetirePolicy::default(),
            rotate_after: RotateAfter::default(),
            names: NamePolicy::default(),
            backups: BackupPolicy::default(),
        }
    }

    /// How the names of its records are stored. Chosen when the org is created: later it stays.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, NamePolicy, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let policy = OrgPolicy::byok().with_names(NamePolicy::Blinded);
    /// let acme = store.create_org("acme", policy)?;
    /// acme.put("clusters/prod/token", "s3cret")?;
    /// assert_eq!(acme.scan("clusters/").names().count(), 1);
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn with_names(mut self, names: NamePolicy) -> Self {
        self.names = names;
        self
    }

    /// How the names of its records are stored.
    #[must_use]
    pub fn names(&self) -> NamePolicy {
        self.names
    }

    /// What backups do with the org. Default: they hold it. Backups that were made before stay as
    /// they are.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{BackupPolicy, KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let policy = OrgPolicy::byok().with_backups(BackupPolicy::Refuse);
    /// store.create_org("acme", policy)?;
    /// # #[cfg(feature = "backup")] {
    /// let contents = store.backup(&KeyMaterial::generate()?).write_to(std::io::sink())?;
    /// assert_eq!((contents.orgs.len(), &contents.left_out[0].name[..]), (0, "acme"));
    /// # }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn with_backups(mut self, backups: BackupPolicy) -> Self {
        self.backups = backups;
        self
    }

    /// What backups do with the org.
    #[must_use]
    pub fn backups(&self) -> BackupPolicy {
        self.backups
    }

    /// The suite that the org starts with; later it is changed by `KeyAdmin::change_suite`.
    #[must_use]
    pub fn with_suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Whether the org may bring its own key.
    #[must_use]
    pub fn with_byok(mut self, may_bring_key: bool) -> Self {
        self.may_bring_key = may_bring_key;
        self
    }

    /// No key is ever due.
    #[must_use]
    pub fn without_rotation_limits(mut self) -> Self {
        self.rotate_after = RotateAfter::default();
        self
    }

    /// When a version under which no record is left is retired. Default immediately.
    #[must_use]
    pub fn with_retire(mut self, retire: RetirePolicy) -> Self {
        self.retire = retire;
        self
    }

    /// When a version under which no record is left is retired.
    #[must_use]
    pub fn retire(&self) -> RetirePolicy {
        self.retire
    }

    /// A key is due to be rotated once it is this old, by time that the store has observed
    /// ([`ClockStatus::observed_ms`](crate::ClockStatus::observed_ms)). A platform key
    /// then rotates by itself; for a customer's key an event is raised, and its status says so
    /// until a new one comes. The same is said of a platform key while records are still rewritten
    /// under it, or wait for that; it rotates once they are. Older keys that are only held do not
    /// keep it waiting. At least 1 second. Default never.
    #[must_use]
    pub fn with_rotation_after_age(mut self, age: Duration) -> Self {
        self.rotate_after.age = Some(age);
        self
    }

    /// A key is due once so many values were sealed under it. Counts of several thousand are
    /// set aside at a time, so that a crash never counts too few; what a rotation re-encrypts
    /// is not counted. At least 1. Default never.
    #[must_use]
    pub fn with_rotation_after_records(mut self, records: u64) -> Self {
        self.rotate_after.records = Some(records);
        self
    }

    /// Like [`with_rotation_after_records`](Self::with_rotation_after_records), in bytes of
    /// values.
    #[must_use]
    pub fn with_rotation_after_bytes(mut self, bytes: u64) -> Self {
        self.rotate_after.bytes = Some(bytes);
        self
    }

    /// Returns each setting that differs in `after`. Suite and names are not among them: a policy
    /// changes neither.
    pub(crate) fn changes(&self, after: &Self) -> Vec<PolicyChange> {
        let Self { may_bring_key, suite: _, retire, rotate_after, names: _, backups } = *self;
        let RotateAfter { age, records, bytes } = rotate_after;
        let now = after.rotate_after;
        let all = [
            (may_bring_key != after.may_bring_key).then_some(PolicyChange::Byok {
                before: may_bring_key,
                after: after.may_bring_key,
            }),
            (retire != after.retire)
                .then_some(PolicyChange::Retire { before: retire, after: after.retire }),
            (age != now.age)
                .then_some(PolicyChange::RotationAfterAge { before: age, after: now.age }),
            (records != now.records).then_some(PolicyChange::RotationAfterRecords {
                before: records,
                after: now.records,
            }),
            (bytes != now.bytes)
                .then_some(PolicyChange::RotationAfterBytes { before: bytes, after: now.bytes }),
            (backups != after.backups)
                .then_some(PolicyChange::Backups { before: backups, after: after.backups }),
        ];
        all.into_iter().flatten().collect()
    }

    /// A limit that every new key would be beyond at once.
    pub(crate) fn check(&self) -> Result<()> {
        let RotateAfter { age, records, bytes } = self.rotate_after;
        let invalid = |option, why| Err(Error::InvalidOption { option, why });
        if age.is_some_and(|age| age < Duration::from_secs(1)) {
            return invalid("rotation_after_age", "at least 1 second");
        }
        if records == Some(0) {
            return invalid("rotation_after_records", "at least 1");
        }
        if bytes == Some(0) {
            return invalid("rotation_after_bytes", "at least 1");
        }
        Ok(())
    }

    pub(crate) fn rotate_after(&self) -> RotateAfter {
        self.rotate_after
    }

    /// Whether the org may bring its own key.
    #[must_use]
    pub fn may_bring_key(&self) -> bool {
        self.may_bring_key
    }

    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }
}

/// Refuses a suite that this build does not have, and in FIPS mode every suite that FIPS 140-3 does
/// not approve.
pub(crate) fn check_suite(fips_mode: bool, org: &str, suite: Suite) -> Result<()> {
    if fips_mode && suite != Suite::Xaes256Gcm {
        return Err(Error::SuiteNotApproved { org: org.to_owned(), suite });
    }
    if !suite.is_available() {
        return Err(Error::SuiteNotBuilt { org: org.to_owned(), suite });
    }
    Ok(())
}

/// When keys rotate and retire, as a part of a sentence.
impl fmt::Display for OrgPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RotateAfter { age, records, bytes } = self.rotate_after;
        let limits = [
            age.map(plain),
            records.map(|records| format!("{records} records")),
            bytes.map(|bytes| format!("{bytes} bytes")),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        if limits.is_empty() {
            f.write_str("keys rotate by hand")?;
        } else {
            write!(f, "keys are due after {}", limits.join(" or "))?;
        }
        write!(f, ", retire {}", self.retire)?;
        match self.backups {
            BackupPolicy::Include => Ok(()),
            backups => write!(f, "; {backups}"),
        }
    }
}

/// Every pair of states: `None` if the change is allowed, else what stands against it.
pub(crate) fn refusal(from: KeyState, to: KeyState) -> Option<&'static str> {
    use KeyState::{Active, DecryptOnly, Retired, Suspended};
    match (from, to) {
        (Active, DecryptOnly | Suspended)
        | (DecryptOnly, Retired | Suspended)
        | (Suspended, Active | DecryptOnly) => None,
        (Active, Retired) => Some("its active key cannot be retired; rotate to a new one first"),
        (Suspended, Retired) => Some("a suspended key may still have records; resume it first"),
        (DecryptOnly, Active) => Some("a key that was replaced never seals again"),
        (Retired, _) => Some("a retired key is destroyed for ever"),
        (Active, Active) | (DecryptOnly, DecryptOnly) | (Suspended, Suspended) => {
            Some("the key is in this state already")
        }
    }
}

impl OrgEntry {
    /// Returns by which policy the version is retired once no record is left under it.
    pub(crate) fn retire_policy(&self, version: &VersionEntry) -> RetirePolicy {
        version.retire_by.unwrap_or(self.policy.retire())
    }

    /// Takes another policy. Versions that were replaced before keep the strictest policy since: a
    /// weakened one destroys nothing by itself.
    pub(crate) fn set_policy(&mut self, policy: OrgPolicy) {
        let (before, after) = (self.policy.retire(), policy.retire());
        let newest = self.newest().version;
        let replaced = self.versions.iter_mut().filter(|version| version.version != newest);
        for version in replaced.filter(|version| version.state != KeyState::Retired) {
            version.retire_by = Some(version.retire_by.unwrap_or(before).stricter(after));
        }
        self.policy = policy;
    }

    pub(crate) fn change_suite(&mut self, suite: Suite) -> Result<Suite> {
        if self.suite == suite {
            return Err(self.conflict("it has this suite already"));
        }
        if self.suite_before.is_some() {
            return Err(self.conflict("a change of its suite is still under way"));
        }
        let before = std::mem::replace(&mut self.suite, suite);
        self.suite_before = Some(before);
        // What `status` shows is taken back by `set_policy`.
        self.policy = self.policy.clone().with_suite(suite);
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_of_state_are_exactly_these() {
        use KeyState::*;
        let all = [Active, DecryptOnly, Retired, Suspended];
        let allowed: Vec<_> = all
            .into_iter()
            .flat_map(|from| all.map(|to| (from, to)))
            .filter(|&(from, to)| refusal(from, to).is_none())
            .collect();
        assert_eq!(
            allowed,
            [
                (Active, DecryptOnly),
                (Active, Suspended),
                (DecryptOnly, Retired),
                (DecryptOnly, Suspended),
                (Suspended, Active),
                (Suspended, DecryptOnly),
            ]
        );
    }

    #[test]
    fn a_key_is_due_at_its_limit_and_not_before() {
        let seconds = Duration::from_secs;
        let limits = RotateAfter { age: Some(seconds(9)), records: Some(8), bytes: Some(7) };
        assert_eq!(limits.due(seconds(8), 7, 6), None);
        assert_eq!(limits.due(seconds(9), 7, 6), Some(Due::Age));
        assert_eq!(limits.due(seconds(8), 8, 6), Some(Due::Records));
        assert_eq!(limits.due(seconds(8), 7, 7), Some(Due::Bytes));
        assert_eq!(RotateAfter::default().due(Duration::MAX, u64::MAX, u64::MAX), None);
    }

    #[test]
    fn a_policy_that_is_read_is_checked_like_one_that_is_set() {
        let policy = OrgPolicy::byok().with_rotation_after_records(77);
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<OrgPolicy>(&text).unwrap(), policy);
        let text = text.replace("77", "0");
        assert!(serde_json::from_str::<OrgPolicy>(&text).is_err(), "{text}");
    }

    #[test]
    fn a_policy_reads_as_a_sentence() {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let policy = OrgPolicy::byok();
        assert_eq!(policy.to_string(), "keys rotate by hand, retire at once");
        let policy = policy
            .with_rotation_after_age(days(90))
            .with_rotation_after_records(1000)
            .with_retire(RetirePolicy::AfterHold(days(1)));
        assert_eq!(
            policy.to_string(),
            "keys are due after 90 days or 1000 records, retire after a hold of 1 day"
        );
    }
}
