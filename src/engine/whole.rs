//! Whether all records are there, in words of orgs: the digest knows only groups of keys.

use std::path::Path;

use super::{Engine, OrgState};
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

    /// What is said of groups that are not whole.
    pub(crate) fn not_whole(&self, broken: &[Group]) -> Error {
        self.with_keyring(|keyring| not_whole(&self.storage.dir(), keyring, broken))
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
