//! Keys that are due by their org's policy: platform keys rotate by themselves, for a customer's
//! key an event is raised.

use std::sync::Arc;
use std::time::Duration;

use super::Rotations;
use crate::audit::{AuditEvent, Draft};
use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{Due, KeyState, KeyVersion, Origin};
use crate::keyring::OrgEntry;
use crate::material::KeyMaterial;

/// What was found due, to be acted on only while it is still the newest.
#[derive(Clone, Copy)]
struct Found {
    version: KeyVersion,
    /// A new key is made for it now.
    rotates: bool,
    why: Due,
}

impl Rotations {
    /// Looks at every org whose policy sets a limit. Short if nothing is due. One org's failure
    /// keeps no other from its turn; gives the first.
    ///
    /// What is due while records are rewritten, or wait for that (a pause, a suspended key), is
    /// noted, and rotates once they are: else keys would pile up as long as that lasts.
    pub(crate) fn rotate_due(self: &Rotations) -> Result<()> {
        let limited: Vec<String> = self.engine.with_keyring(|keyring| {
            let limited = |org: &&OrgEntry| {
                let newest = org.newest();
                org.policy.rotate_after().is_some()
                    && org.erasure.is_none()
                    && newest.state == KeyState::Active
                    && (newest.due.is_none() || rotates(org))
            };
            keyring.orgs.iter().filter(limited).map(|org| org.name.clone()).collect()
        });
        let mut outcome = Ok(());
        for name in limited {
            let Ok(org) = self.engine.org(&name) else { continue };
            let Some(found) = due(&self.engine, &org) else { continue };
            tracing::warn!(org = name, why = %found.why, "key due for rotation");
            failpoint::reach("due.found", &name);
            match self.act(&org, found) {
                // Another key came meanwhile.
                Err(Error::KeyConflict { .. }) => {}
                acted => outcome = outcome.and(acted),
            }
        }
        outcome
    }

    fn act(&self, org: &Arc<OrgState>, found: Found) -> Result<()> {
        match found.rotates {
            true => {
                let material = KeyMaterial::generate()?;
                let now = self.engine.clock.wall()?;
                let note = |entry: &mut OrgEntry, drafts: &mut Vec<Draft>| {
                    note(org, (found, now), entry, drafts)
                };
                self.engine.install_if(org, material, Origin::Platform, note)?;
                self.wake(org);
                Ok(())
            }
            false => self.engine.change(None, |keyring, drafts| {
                let now = keyring.time.wall;
                note(org, (found, now), keyring.org_mut(org.id, &org.name)?, drafts)
            }),
        }
    }
}

fn due(engine: &Engine, org: &OrgState) -> Option<Found> {
    let (rotate_after, observed, version, rotates) = engine.with_keyring(|keyring| {
        let entry = keyring.entry(org.id)?;
        let newest = entry.newest();
        Some((entry.policy.rotate_after(), newest.observed, newest.version, rotates(entry)))
    })?;
    let (records, bytes) = org.gate.snapshot().slot(version)?.counters.usage.read();
    let age = Duration::from_millis(engine.clock.observed().saturating_sub(observed));
    Some(Found { version, rotates, why: rotate_after.due(age, records, bytes)? })
}

/// Whether its newest key gives way by itself.
fn rotates(org: &OrgEntry) -> bool {
    org.newest().origin == Origin::Platform && !org.is_rewriting()
}

/// Once for each key: in the audit log, and in its status until a new key comes.
fn note(
    org: &OrgState,
    (found, now): (Found, u64),
    entry: &mut OrgEntry,
    drafts: &mut Vec<Draft>,
) -> Result<()> {
    let Found { version, why, .. } = found;
    if entry.newest().version != version {
        return Err(entry.conflict("another key was installed meanwhile"));
    }
    if entry.newest().due.is_some() {
        return Ok(());
    }
    let fingerprint = entry.newest().fingerprint;
    entry.note(version, |v| v.due = Some((now, why)))?;
    let draft = Draft::new(AuditEvent::RotationDue { why }).org(&org.name, org.id);
    drafts.push(draft.key(version, fingerprint));
    Ok(())
}
