//! Whether all records are there, in words of orgs: the digest knows only groups of keys.

use std::path::Path;

use super::{Engine, OrgState};
use crate::audit::{AuditEvent, Draft};
use crate::error::{Error, Result};
use crate::id::OrgId;
use crate::keyring::Keyring;
use crate::storage::{Group, Whole};

/// Orgs that are named in one message.
const NAMED: usize = 10;

impl OrgState {
    /// What the digest has of its records.
    pub(crate) fn group(&self) -> Group {
        Group::Records(*self.id.as_bytes())
    }
}

impl Engine {
    /// Checks every org, and what the store keeps of itself.
    pub(crate) fn verify(&self) -> Result<()> {
        let broken = self.storage.broken()?;
        if broken.is_empty() { Ok(()) } else { Err(self.not_whole(&broken)) }
    }

    /// Checks that no record of the org is missing or older than it was. Reads them all.
    pub(crate) fn verify_org(&self, org: &OrgState) -> Result<Whole> {
        self.storage.verify(org.group())?.ok_or_else(|| self.not_whole(&[org.group()]))
    }

    /// Accepts that records of the org are missing or older than they were, audited: from then on
    /// nothing more may be missing than is now. Returns false if nothing is.
    pub(crate) fn accept_loss(&self, org: &OrgState) -> Result<bool> {
        self.check_writable()?;
        if self.storage.verify(org.group())?.is_some() {
            return Ok(false);
        }
        let what = format!("records of org \"{}\" are missing or older than they were", org.name);
        // First of all: one that is not known of must not be accepted.
        self.change(None, |_, drafts| {
            let event = AuditEvent::RollbackAccepted { what };
            drafts.push(Draft::new(event).org(&org.name, org.id));
            Ok(())
        })?;
        self.storage.accept(org.group())?;
        tracing::warn!(org = %org.name, "loss of records accepted");
        self.written();
        self.sync()?;
        Ok(true)
    }

    /// Why nothing of an org is destroyed.
    pub(crate) fn nothing_destroyed(&self, org: &OrgState) -> Error {
        with(self.not_whole(&[org.group()]), "no key was destroyed")
    }

    /// What is said of groups that are not whole.
    pub(crate) fn not_whole(&self, broken: &[Group]) -> Error {
        self.with_keyring(|keyring| not_whole(&self.storage.dir(), keyring, broken))
    }
}

/// Such an error, with what was left untouched.
pub(super) fn with(error: Error, untouched: &str) -> Error {
    match error {
        Error::RolledBack { what, syncs } => {
            Error::RolledBack { what: format!("{what}; {untouched}"), syncs }
        }
        other => other,
    }
}

/// Likewise, of those of a database.
pub(super) fn not_whole(database: &Path, keyring: &Keyring, broken: &[Group]) -> Error {
    let mut orgs = Vec::new();
    let mut own = false;
    for group in broken {
        match group {
            Group::System => own = true,
            Group::Records(id) => {
                let id = OrgId::from_bytes(*id);
                orgs.push(match keyring.entry(id) {
                    Some(entry) => format!("\"{}\"", entry.name),
                    None => format!("{id}, which the keyring does not know"),
                });
            }
        }
    }
    let more = orgs.len().saturating_sub(NAMED);
    orgs.truncate(NAMED);
    let named = orgs.join(", ");
    let whose = match (orgs.len(), more) {
        (0, _) => String::new(),
        (1, _) => format!("records of org {named}"),
        (_, 0) => format!("records of the orgs {named}"),
        (_, more) => format!("records of the orgs {named} and {more} more"),
    };
    let what = match (whose.as_str(), own) {
        ("", true) => "entries that the store keeps of itself".to_owned(),
        ("", false) => "records".to_owned(),
        (_, true) => format!("{whose}, and entries that the store keeps of itself,"),
        (_, false) => whose,
    };
    let what = format!(
        "{what} in {} are missing or older than they were: its files were damaged, or older records \
         were put back",
        database.display()
    );
    Error::RolledBack { what, syncs: None }
}
