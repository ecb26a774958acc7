//! What one org sees of the audit log: nothing that names another.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::{AuditEntry, AuditEvent, KeyRefusal, OrgRef, write_entry};
use crate::id::{Fingerprint, KeyVersion, OrgId};
use crate::time::rfc3339;

/// An entry of the audit log as one org sees it. From [`KeyAdmin::audit_of`](crate::KeyAdmin::audit_of).
///
/// It names no other org, and has no hash of the entry before, which may be about another: what
/// proves the chain is the operator's whole log, in which the entry has the same number. In JSON it has the
/// fields of an [`AuditEntry`] but `previous`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrgAuditEntry {
    /// Number in the whole log. Those between are about other orgs, or the store.
    pub number: u64,
    /// Milliseconds since 1970-01-01 UTC, by this machine's clock; never less than the entry
    /// before has.
    pub at_unix_ms: u64,
    /// What the clock really showed, if that was less than the entry before has.
    pub clock_unix_ms: Option<u64>,
    /// What happened; of a backup of several orgs what concerns this one.
    pub event: AuditEvent,
    /// The org; `None` where the entry is about a backup of several.
    pub org: Option<OrgRef>,
    /// The key version, if it is about one.
    pub version: Option<KeyVersion>,
    /// The key's fingerprint. `None` for a refused key that has another use in this store.
    pub fingerprint: Option<Fingerprint>,
}

impl OrgAuditEntry {
    /// Returns what the org sees of an entry, `None` if that is nothing. `is_of_others` tells the
    /// fingerprints of keys that others in this store have or had.
    pub(crate) fn new(
        entry: AuditEntry,
        org: OrgId,
        is_of_others: impl Fn(Fingerprint) -> bool,
    ) -> Option<Self> {
        let AuditEntry { number, at_unix_ms, clock_unix_ms, event, org: about, version, .. } =
            entry;
        let is_about = about.as_ref().is_some_and(|about| about.id == org);
        let event = seen(event, org, is_about, &is_of_others)?;
        let is_refusal =
            matches!(event, AuditEvent::KeyRefused { .. } | AuditEvent::SealedKeyRefused { .. });
        let fingerprint = entry.fingerprint.filter(|key| !(is_refusal && is_of_others(*key)));
        Some(Self { number, at_unix_ms, clock_unix_ms, event, org: about, version, fingerprint })
    }
}

/// Every event is named here, so that a new one is thought about: whoever sees an org's log may be
/// told of that org alone.
fn seen(
    event: AuditEvent,
    org: OrgId,
    is_about: bool,
    is_of_others: &impl Fn(Fingerprint) -> bool,
) -> Option<AuditEvent> {
    use AuditEvent as Event;
    let own =
        |orgs: Vec<OrgRef>| orgs.into_iter().filter(|each| each.id == org).collect::<Vec<_>>();
    match event {
        Event::BackupMade { backup, whole_store, orgs, left_out: _, unreadable: _ } => {
            let orgs = own(orgs);
            let made =
                Event::BackupMade { backup, whole_store, orgs, left_out: None, unreadable: None };
            matches!(&made, Event::BackupMade { orgs, .. } if !orgs.is_empty()).then_some(made)
        }
        // Of all orgs: nobody knows before its end whether this one is in it.
        Event::BackupBegun { backup, only } if only.is_empty() => {
            Some(Event::BackupBegun { backup, only })
        }
        Event::BackupBegun { backup, only } => {
            let only = own(only);
            (!only.is_empty()).then_some(Event::BackupBegun { backup, only })
        }
        Event::KeyRefused { why } if is_about => {
            Some(Event::KeyRefused { why: told(why, is_of_others) })
        }
        // The token is another org's.
        Event::SealedKeyRefused { why: KeyRefusal::OtherOrg, .. } if is_about => {
            Some(Event::KeyRefused { why: KeyRefusal::OtherOrg })
        }
        Event::SealedKeyRefused { token, why } if is_about => {
            Some(Event::SealedKeyRefused { token, why: told(why, is_of_others) })
        }
        Event::OrgCreated
        | Event::PolicyChanged { .. }
        | Event::KeyProvisioned
        | Event::PlatformKeyRotated
        | Event::SuiteChanged { .. }
        | Event::KeyRetired { .. }
        | Event::SuiteRetired { .. }
        | Event::KeyHeld
        | Event::HoldBroken { .. }
        | Event::KeyReleased
        | Event::KeyErased
        | Event::OrgErased { .. }
        | Event::ResidueErased { .. }
        | Event::RotationDue { .. }
        | Event::KeySuspended
        | Event::KeyResumed
        | Event::KeyRefused { .. }
        | Event::RestoreBegun { .. }
        | Event::OrgRestored { .. }
        | Event::RestoreDiscarded
        | Event::ImportTokenMade { .. }
        | Event::ImportTokenUsed { .. }
        | Event::ImportTokenExpired { .. }
        | Event::SealedKeyRefused { .. }
        | Event::RecordsRestored { .. }
        | Event::ImportTokenWithdrawn { .. }
        | Event::NamelessRemoved { .. }
        | Event::RollbackAccepted { .. } => is_about.then_some(event),
        // Whoever reads the log knows which backups the org was told of.
        Event::BackupNotFinished { .. } => Some(event),
        // The store's own.
        Event::StoreCreated
        | Event::DatabaseRewritten
        | Event::RootKeyChanged { .. }
        | Event::ForeignKeysDropped { .. }
        | Event::ClockJumped { .. }
        | Event::ClockConfirmed { .. }
        | Event::OwnerlessRemoved { .. } => None,
    }
}

/// A fingerprint that was announced may be one of another org's, by mistake.
fn told(why: KeyRefusal, is_of_others: &impl Fn(Fingerprint) -> bool) -> KeyRefusal {
    match why {
        KeyRefusal::NotTheAnnounced { announced: Some(announced) } => KeyRefusal::NotTheAnnounced {
            announced: Some(announced).filter(|key| !is_of_others(*key)),
        },
        why => why,
    }
}

impl Serialize for OrgAuditEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { number, at_unix_ms, clock_unix_ms, event, org, version, fingerprint } = self;
        let mut entry = serializer.serialize_struct("OrgAuditEntry", 9)?;
        entry.serialize_field("number", number)?;
        entry.serialize_field("at", &rfc3339(*at_unix_ms))?;
        entry.serialize_field("at_unix_ms", at_unix_ms)?;
        entry.serialize_field("clock", &clock_unix_ms.map(rfc3339))?;
        entry.serialize_field("clock_unix_ms", clock_unix_ms)?;
        entry.serialize_field("event", event)?;
        entry.serialize_field("org", org)?;
        entry.serialize_field("version", version)?;
        entry.serialize_field("fingerprint", fingerprint)?;
        entry.end()
    }
}

impl fmt::Display for OrgAuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_entry(
            f,
            (self.number, self.at_unix_ms, self.clock_unix_ms),
            &self.event,
            (self.org.as_ref(), self.version, self.fingerprint),
        )
    }
}
