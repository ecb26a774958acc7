//! The keys of an org, as an operator sees them.

use serde::Serialize;

use crate::engine::Engine;
use crate::id::{Due, Fingerprint, KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::keyring::{Keyring, OrgEntry, OrgPolicy, VersionEntry};
use crate::policy::RetirePolicy;
use crate::time::millis;

/// The keys of one org.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OrgStatus {
    /// Name.
    pub name: String,
    /// Id.
    pub id: OrgId,
    /// What it may do.
    pub policy: OrgPolicy,
    /// The suite that new values are sealed with.
    pub suite: Suite,
    /// Whether a rotation is under way.
    pub rotating: bool,
    /// Every version that it ever had, ascending.
    pub versions: Vec<KeyStatus>,
}

/// One key version of an org.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyStatus {
    /// The version.
    pub version: KeyVersion,
    /// Its state.
    pub state: KeyState,
    /// Who made it.
    pub origin: Origin,
    /// Public check value of its material.
    pub fingerprint: Fingerprint,
    /// When it was installed, milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// When it was retired.
    pub retired_unix_ms: Option<u64>,
    /// Of a version that was replaced and is not retired: by which policy it will be. It is the
    /// strictest that its org has had since, not the org's of now.
    pub retires: Option<RetirePolicy>,
    /// Since when it is held before its retirement.
    pub held_since_unix_ms: Option<u64>,
    /// How much observed time ([`ClockStatus::observed_ms`](crate::ClockStatus::observed_ms)) has
    /// to pass until the hold is over, if the policy's hold ends by itself.
    pub hold_left_ms: Option<u64>,
    /// When that will be at the earliest, if the store stays open and no clock is set.
    pub hold_ends_unix_ms: Option<u64>,
    /// Why it is due to be rotated, if the org's policy says so.
    pub due: Option<Due>,
    /// Whether it is in use although a copy of the store that leaked has it: it was installed before
    /// the last [change of a compromised root key](crate::Store::change_compromised_root_key).
    pub compromised: bool,
}

/// What a status is compared with: the wall clock, if it can be used, and the observed clock.
pub(crate) type Moment = (Option<u64>, u64);

pub(crate) fn moment(engine: &Engine) -> Moment {
    (engine.clock.wall().ok(), engine.clock.observed())
}

pub(crate) fn status(entry: &OrgEntry, keyring: &Keyring, (wall, observed): Moment) -> OrgStatus {
    let retires = |v: &VersionEntry| {
        let is_leaving = v.version != entry.newest().version && v.state != KeyState::Retired;
        is_leaving.then(|| entry.retire_policy(v))
    };
    let left = |v: &VersionEntry| match entry.retire_policy(v) {
        RetirePolicy::AfterHold(hold) if v.retired.is_none() => {
            let end = v.held?.observed.saturating_add(millis(hold));
            Some(end.saturating_sub(observed))
        }
        _ => None,
    };
    let key = |v: &VersionEntry| KeyStatus {
        version: v.version,
        state: v.state,
        origin: v.origin,
        fingerprint: v.fingerprint,
        created_unix_ms: v.created,
        retired_unix_ms: v.retired,
        retires: retires(v),
        held_since_unix_ms: v.held.filter(|_| v.retired.is_none()).map(|hold| hold.since),
        hold_left_ms: left(v),
        hold_ends_unix_ms: left(v).and_then(|left| Some(wall?.saturating_add(left))),
        due: v.due.map(|(_, due)| due),
        compromised: v.is_compromised(&keyring.secret),
    };
    OrgStatus {
        name: entry.name.clone(),
        id: entry.id,
        policy: entry.policy.clone(),
        suite: entry.suite,
        rotating: entry.is_rotating(),
        versions: entry.versions.iter().map(key).collect(),
    }
}
