//! Which versions may go now, which are held first: the policy's word before a retirement.

use crate::audit::{AuditEvent, Draft};
use crate::engine::{Engine, OrgState};
use crate::error::Result;
use crate::id::KeyVersion;
use crate::keyring::{Hold, OrgEntry};
use crate::policy::RetirePolicy;
use crate::time::millis;

/// What the policy says of versions under which no record is left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) go: Vec<KeyVersion>,
    /// Held, until the store's observed clock shows so many milliseconds, or until an operator
    /// lets them go.
    pub(super) held: Vec<(KeyVersion, Option<u64>)>,
}

impl Verdict {
    /// The next moment at which something may go by itself.
    pub(super) fn next(&self) -> Option<u64> {
        self.held.iter().filter_map(|(_, until)| *until).min()
    }

    /// A version that goes only by hand.
    pub(super) fn by_hand(&self) -> Option<KeyVersion> {
        self.held.iter().find(|(_, until)| until.is_none()).map(|(version, _)| *version)
    }
}

/// Whether the version may be retired by `now`, if no record is left under it: whoever judged it
/// earlier may have been overtaken by a stricter policy.
pub(super) fn may_go(entry: &OrgEntry, version: KeyVersion, now: u64) -> bool {
    judge(entry, &[version], false, now).go == [version]
}

/// The rule alone, at `now` on the store's observed clock: no setting of a clock ends a hold.
/// `broken` says whether a held version was needed.
fn judge(entry: &OrgEntry, versions: &[KeyVersion], broken: bool, now: u64) -> Verdict {
    let mut verdict = Verdict::default();
    for version in versions.iter().filter_map(|version| entry.version(*version)) {
        let hold = version.held.filter(|_| !broken);
        let since = hold.map_or(now, |hold| hold.observed);
        let until = match entry.retire_policy(version) {
            RetirePolicy::Immediate => Some(now),
            RetirePolicy::AfterHold(hold) => Some(since.saturating_add(millis(hold))),
            RetirePolicy::Manual => None,
        };
        let released = version.released && !broken;
        if released || until.is_some_and(|until| until <= now) {
            verdict.go.push(version.version);
        } else {
            verdict.held.push((version.version, until));
        }
    }
    verdict
}

/// Judges, and notes durably what is newly held or has to start anew.
pub(super) fn hold(engine: &Engine, org: &OrgState, versions: &[KeyVersion]) -> Result<Verdict> {
    let keys = org.gate.snapshot();
    let slots = || versions.iter().filter_map(|version| keys.slot(*version));
    let times = slots().map(|slot| slot.counters.take_would_have_failed()).sum::<u64>();
    let broken = times > 0;
    let now = engine.clock.observed();
    let (verdict, fresh) = engine.with_keyring(|keyring| match keyring.entry(org.id) {
        Some(entry) => {
            let verdict = judge(entry, versions, broken, now);
            let is_fresh = |version: &KeyVersion| {
                broken || entry.version(*version).is_some_and(|v| v.held.is_none())
            };
            let held = verdict.held.iter().map(|(version, _)| *version);
            let fresh: Vec<_> = held.filter(is_fresh).collect();
            (verdict, fresh)
        }
        None => (Verdict::default(), Vec::new()),
    });
    if fresh.is_empty() {
        return Ok(verdict);
    }
    let noted = engine.change(None, |keyring, drafts| {
        let hold = Hold { since: keyring.time.wall, observed: keyring.time.observed };
        let entry = keyring.org_mut(org.id, &org.name)?;
        if broken {
            let event = AuditEvent::HoldBroken { times };
            drafts.push(Draft::new(event).org(&org.name, org.id));
        }
        for &version in &fresh {
            entry.note(version, |v| (v.held, v.released) = (Some(hold), false))?;
            let fingerprint = entry.version(version).map(|v| v.fingerprint);
            let draft = Draft::new(AuditEvent::KeyHeld).org(&org.name, org.id);
            drafts.push(Draft { version: Some(version), fingerprint, ..draft });
        }
        Ok(())
    });
    if let Err(error) = noted {
        // Not noted, so it still has to be.
        if let Some(slot) = slots().next() {
            slot.counters.would_have_failed_again(times);
        }
        return Err(error);
    }
    engine.publish(org);
    tracing::info!(org = %org.name, ?fresh, times, "held before retirement");
    Ok(verdict)
}

/// An operator's word that held versions may go.
pub(crate) fn release(engine: &Engine, org: &OrgState) -> Result<Vec<KeyVersion>> {
    engine.change(None, |keyring, drafts| {
        let entry = keyring.org_mut(org.id, &org.name)?;
        let held = entry.versions.iter().filter(|v| v.held.is_some() && v.retired.is_none());
        let held: Vec<_> = held.map(|v| (v.version, v.fingerprint)).collect();
        if held.is_empty() {
            return Err(entry.conflict("none of its keys is held before its retirement"));
        }
        for &(version, fingerprint) in &held {
            entry.note(version, |v| v.released = true)?;
            let draft = Draft::new(AuditEvent::KeyReleased).org(&org.name, org.id);
            drafts.push(draft.key(version, fingerprint));
        }
        Ok(held.into_iter().map(|(version, _)| version).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::{OrgId, Origin};
    use crate::keyring::{Keyring, OrgPolicy};
    use crate::material::KeyMaterial;

    const ACME: (OrgId, &str) = (OrgId::from_bytes([1; 16]), "acme");

    fn entry(retire: RetirePolicy) -> (Keyring, KeyVersion) {
        let material = |byte| KeyMaterial::take(&mut [byte; 32]);
        let mut ring = Keyring::new(material(9).fingerprint()).unwrap();
        let policy = OrgPolicy::byok().with_retire(retire);
        ring.create_org(ACME.0, ACME.1, policy, material(1), 0).unwrap();
        let installed = ring.install(ACME, material(2), Origin::Customer, 0).unwrap();
        (ring, installed.from)
    }

    #[test]
    fn the_policy_decides_what_goes_and_when() {
        let hold = Duration::from_secs(60);
        for (policy, held, released, broken, expected) in [
            (RetirePolicy::Immediate, None, false, false, Some(Ok(()))),
            (RetirePolicy::AfterHold(hold), None, false, false, Some(Err(Some(70_000)))),
            (RetirePolicy::AfterHold(hold), Some(5_000), false, false, Some(Err(Some(65_000)))),
            (RetirePolicy::AfterHold(hold), Some(5_000), true, false, Some(Ok(()))),
            (RetirePolicy::AfterHold(hold), Some(5_000), true, true, Some(Err(Some(70_000)))),
            (RetirePolicy::AfterHold(Duration::ZERO), Some(5_000), false, false, Some(Ok(()))),
            (RetirePolicy::Manual, Some(5_000), false, false, Some(Err(None))),
            (RetirePolicy::Manual, Some(5_000), true, false, Some(Ok(()))),
            (RetirePolicy::Manual, Some(5_000), true, true, Some(Err(None))),
        ] {
            let (mut ring, version) = entry(policy);
            let org = ring.org_mut(ACME.0, ACME.1).unwrap();
            // When that was by the wall clock matters nothing.
            let held = held.map(|observed| Hold { since: 0, observed });
            org.note(version, |v| (v.held, v.released) = (held, released)).unwrap();
            let verdict = judge(org, &[version], broken, 10_000);
            let found = match (&verdict.go[..], &verdict.held[..]) {
                ([_], []) => Some(Ok(())),
                ([], [(_, until)]) => Some(Err(*until)),
                _ => None,
            };
            assert_eq!(found, expected, "{policy:?} {held:?} {released} {broken}");
        }
    }
}
