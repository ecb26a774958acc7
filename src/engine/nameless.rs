//! Records that nobody can ask for: without a name that a call could take, or of no org. They are read
//! around and counted wherever records are, block what must not pass over them, and an operator can
//! remove them.

use std::ops::Bound;

use super::{Engine, OrgState};
use crate::audit::{AuditEvent, Draft};
use crate::error::{Error, Result};
use crate::id::OrgId;
use crate::keyring::{Erasure, OrgEntry};
use crate::storage::{Group, Key, Space, Stored, prefix_range};

impl Engine {
    /// Deletes the records of an org that have no name. Those whose name may open under a suspended
    /// key stay, and so do those that have a name and do not open.
    pub(crate) fn remove_nameless(&self, org: &OrgState) -> Result<u64> {
        self.check_writable()?;
        org.check_exists()?;
        let mut found = Vec::new();
        for pair in self.storage.scan(Space::Records, prefix_range(org.id.as_bytes())) {
            let (key, stored) = pair?;
            // With a snapshot from before the key became active its name would not open.
            let name = org.gate.read(|keys| keys.name(org, &key).map(drop));
            if matches!(name, Err(Error::RecordNameless { .. })) {
                found.push((key, stored));
            }
        }
        let records = self.storage.remove_strays(&found)?;
        self.written();
        if records > 0 {
            self.change(None, |_, drafts| {
                let event = AuditEvent::NamelessRemoved { records };
                drafts.push(Draft::new(event).org(&org.name, org.id));
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// Counts the records that belong to no org.
    pub(crate) fn count_ownerless(&self) -> Result<u64> {
        self.ownerless().map(|found| found.len() as u64)
    }

    /// Deletes the records that belong to no org.
    pub(crate) fn remove_ownerless(&self) -> Result<u64> {
        self.check_writable()?;
        let records = self.storage.remove_strays(&self.ownerless()?)?;
        self.written();
        if records > 0 {
            self.change(None, |_, drafts| {
                drafts.push(Draft::new(AuditEvent::OwnerlessRemoved { records }));
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// An org is in the keyring before its first record is written, and leaves it never: its
    /// erasure has ended only once it has none. Ids do not come again.
    fn ownerless(&self) -> Result<Vec<(Key, Stored)>> {
        let mut found = Vec::new();
        let mut from = Bound::Unbounded;
        'orgs: loop {
            for pair in self.storage.scan(Space::Records, (from.clone(), Bound::Unbounded)) {
                let (key, stored) = pair?;
                let group = key.group(Space::Records);
                if !self.has_owner(group) {
                    found.push((key, stored));
                    continue;
                }
                match group.range().1.1 {
                    Bound::Excluded(end) => from = Bound::Included(end),
                    _ => break 'orgs,
                }
                continue 'orgs;
            }
            break;
        }
        Ok(found)
    }

    /// Whether records of this group may be an org's.
    fn has_owner(&self, group: Group) -> bool {
        let Group::Records(id) = group else { return true };
        let may_have = |org: &OrgEntry| org.erasure != Some(Erasure::RecordsDeleted);
        self.with_keyring(|keyring| keyring.entry(OrgId::from_bytes(id)).is_some_and(may_have))
    }
}
