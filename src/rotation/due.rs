//! Keys that are due by their org's policy: platform keys rotate by themselves, for a customer's
//! key an event is raised.

use std::time::Duration;

use super::Rotations;
use crate::audit::{AuditEvent, Draft, now_unix_ms};
use crate::engine::{Engine, OrgState};
use crate::error::Result;
use crate::id::{Due, KeyState, Origin};
use crate::keyring::OrgEntry;
use crate::material::KeyMaterial;

impl Rotations {
    /// Looks at every org whose policy sets a limit. Short if nothing is due.
    pub(crate) fn rotate_due(self: &Rotations) -> Result<()> {
        let limited: Vec<String> = self.engine.with_keyring(|keyring| {
            let limited = |org: &&OrgEntry| {
                let newest = org.newest();
                // A platform key that is noted as due was to be replaced, when a crash or the
                // disk came between.
                let open = newest.due.is_none() || newest.origin == Origin::Platform;
                org.policy.rotate_after().is_some()
                    && org.erasure.is_none()
                    && newest.state == KeyState::Active
                    && open
                    && !org.is_rotating()
            };
            keyring.orgs.iter().filter(limited).map(|org| org.name.clone()).collect()
        });
        for name in limited {
            let Ok(org) = self.engine.org(&name) else { continue };
            if let Some((due, origin)) = due(&self.engine, &org) {
                tracing::warn!(org = name, why = %due, "key due for rotation");
                match origin {
                    Origin::Platform => {
                        let material = KeyMaterial::generate()?;
                        note(&self.engine, &org, due)?;
                        self.engine.install(&org, material, Origin::Platform)?;
                        self.wake(&org);
                    }
                    Origin::Customer => note(&self.engine, &org, due)?,
                }
            }
        }
        Ok(())
    }
}

fn due(engine: &Engine, org: &OrgState) -> Option<(Due, Origin)> {
    let (rotate_after, created, origin) = engine.with_keyring(|keyring| {
        let entry = keyring.entry(org.id)?;
        let newest = entry.newest();
        Some((entry.policy.rotate_after(), newest.created, newest.origin))
    })?;
    let keys = org.gate.snapshot();
    let (records, bytes) = keys.slot(keys.active)?.counters.usage.read();
    let age = Duration::from_millis(now_unix_ms().saturating_sub(created));
    Some((rotate_after.due(age, records, bytes)?, origin))
}

/// Once for each key: in the audit log, and in its status until a new key comes.
fn note(engine: &Engine, org: &OrgState, due: Due) -> Result<()> {
    let noted = |entry: &OrgEntry| entry.newest().due.is_some();
    if engine.with_keyring(|keyring| keyring.entry(org.id).is_some_and(noted)) {
        return Ok(());
    }
    engine.change(None, |keyring, drafts| {
        let entry = keyring.org_mut(org.id, &org.name)?;
        let (version, fingerprint) = (entry.newest().version, entry.newest().fingerprint);
        entry.note(version, |v| v.due = Some((now_unix_ms(), due)))?;
        let draft = Draft::new(AuditEvent::RotationDue { why: due }).org(&org.name, org.id);
        drafts.push(draft.key(version, fingerprint));
        Ok(())
    })
}
