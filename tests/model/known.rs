//! What the model knows of a store. Shared with `fuzz/`.

use std::collections::BTreeSet;
use std::time::Duration;

use byokv::{NamePolicy, Org, OrgPolicy, RetirePolicy, Suite};
#[cfg(not(fuzzing))]
use serde::{Deserialize, Serialize};

use super::ops::{BLINDED, Bytes, Retire, name_of};

/// What the model knows; a child process hands it back to its parent.
#[derive(Clone)]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) struct Known {
    /// How many keys were made: each is made of its number.
    pub(crate) made: u64,
    pub(crate) root: u64,
    pub(crate) orgs: Vec<KnownOrg>,
}

#[derive(Clone)]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) struct KnownOrg {
    pub(crate) id: String,
    pub(crate) records: Vec<(Bytes, Bytes)>,
    /// Its names are blinded: all that it does needs its keys.
    pub(crate) blinded: bool,
    pub(crate) may_bring_key: bool,
    pub(crate) retire: Retire,
    pub(crate) suite: u8,
    /// A change of the suite that may not have ended.
    pub(crate) suite_changing: bool,
    pub(crate) paused: bool,
    pub(crate) versions: Vec<KnownVersion>,
    /// Written or deleted since the watch was last asked.
    pub(crate) changed: BTreeSet<Vec<u8>>,
}

#[derive(Clone)]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) struct KnownVersion {
    /// The number of a key that the customer brought.
    pub(crate) brought: Option<u64>,
    pub(crate) suspended: bool,
    /// The strictest policy since it was replaced.
    pub(crate) retires: Retire,
}

impl KnownVersion {
    pub(crate) fn new(brought: Option<u64>) -> Self {
        Self { brought, suspended: false, retires: Retire::Immediate }
    }
}

impl KnownOrg {
    pub(crate) fn new(org: &Org) -> Self {
        Self {
            id: org.id().to_string(),
            records: Vec::new(),
            blinded: org.name() == name_of(BLINDED),
            may_bring_key: true,
            retire: Retire::Immediate,
            suite: 0,
            suite_changing: false,
            paused: false,
            versions: vec![KnownVersion::new(None)],
            changed: BTreeSet::new(),
        }
    }

    pub(crate) fn get(&self, name: &Bytes) -> Option<&Bytes> {
        self.records.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(crate) fn set(&mut self, name: &Bytes, value: Option<&Bytes>) {
        self.records.retain(|(known, _)| known != name);
        if let Some(value) = value {
            self.records.push((name.clone(), value.clone()));
            self.records.sort();
        }
        self.changed.insert(name.0.clone());
    }

    /// The newest key is replaced by another.
    pub(crate) fn install(&mut self, brought: Option<u64>) {
        if let Some(replaced) = self.versions.last_mut() {
            replaced.retires = self.retire;
        }
        self.versions.push(KnownVersion::new(brought));
    }

    /// What is replaced already keeps what is stricter.
    pub(crate) fn set_retire(&mut self, retire: Retire) {
        self.retire = retire;
        if let Some((_, replaced)) = self.versions.split_last_mut() {
            replaced.iter_mut().for_each(|version| version.retires = version.retires.max(retire));
        }
    }

    pub(crate) fn newest(&self) -> &KnownVersion {
        self.versions.last().unwrap()
    }

    pub(crate) fn any_suspended(&self) -> bool {
        self.versions.iter().any(|version| version.suspended)
    }

    /// Whether even names may be out of reach.
    pub(crate) fn may_be_blind(&self) -> bool {
        self.blinded && self.any_suspended()
    }

    pub(crate) fn suite(&self) -> Suite {
        Suite::ALL[usize::from(self.suite)]
    }

    /// The suite that a change goes to.
    pub(crate) fn next_suite(&self) -> u8 {
        (self.suite + 1) % 3
    }

    pub(crate) fn policy(&self) -> OrgPolicy {
        let retire = match self.retire {
            Retire::Immediate => RetirePolicy::Immediate,
            Retire::AfterAnHour => RetirePolicy::AfterHold(Duration::from_secs(3600)),
            Retire::Manual => RetirePolicy::Manual,
        };
        let policy = OrgPolicy::platform_only().with_byok(self.may_bring_key);
        let names = if self.blinded { NamePolicy::Blinded } else { NamePolicy::default() };
        policy.with_suite(self.suite()).with_retire(retire).with_names(names)
    }
}
