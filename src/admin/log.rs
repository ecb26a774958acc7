//! The audit log: all of it, for the operator, and what one org sees of it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::KeyAdmin;
use crate::audit::{AuditEntry, AuditEvent, AuditHead, Certificate, Head, Link, OrgAuditEntry};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::{BackupId, Fingerprint, OrgId};

impl KeyAdmin {
    /// The audit log from its first entry, each checked against the one before and the last
    /// against the keyring: it ends with an error if anything was changed, removed or cut off, and
    /// has one where a time is before that of the entry before.
    #[must_use]
    pub fn audit(&self) -> AuditLog {
        let end = self.engine.with_keyring(|k| (k.audit_entries, k.audit_hash));
        AuditLog { engine: Arc::clone(&self.engine), at: (0, Some([0; 32])), last: 0, end }
    }

    /// Returns the end of the audit log, as the keyring knows it.
    #[must_use]
    pub fn audit_head(&self) -> AuditHead {
        self.engine.with_keyring(|k| AuditHead { number: k.audit_entries, sha256: k.audit_hash })
    }

    /// Returns the ids of all orgs that have or had this name, in the order in which they were
    /// made. A name is free again once its org is erased, so the last one is the org that has it
    /// now, if one has.
    ///
    /// # Errors
    /// [`Error::OrgUnknown`] if no org ever had it.
    pub fn ids_of(&self, org: &str) -> Result<Vec<OrgId>> {
        let ids: Vec<_> = self.engine.with_keyring(|keyring| {
            let named =
                keyring.orgs.iter().filter(|entry| entry.name == org && !entry.is_restoring);
            named.map(|entry| entry.id).collect()
        });
        match ids.is_empty() {
            false => Ok(ids),
            true => Err(Error::OrgUnknown { org: org.to_owned() }),
        }
    }

    /// Returns what one org sees of the audit log: the entries about it, and of backups of several
    /// orgs those that it is in. They name no other org; a refused key that has another use in this
    /// store has no fingerprint in them. The org may be erased: see [`ids_of`](Self::ids_of).
    ///
    /// The whole log is read and checked, as by [`audit`](Self::audit), which alone proves that it
    /// is whole.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let acme = store.create_org("acme", OrgPolicy::byok())?;
    /// store.create_org("globex", OrgPolicy::byok())?;
    /// for entry in store.keys().audit_of(acme.id()) {
    ///     println!("{}", entry?); // nothing of globex
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn audit_of(&self, org: OrgId) -> OrgAuditLog {
        let others = self.engine.with_keyring(|keyring| {
            let own = keyring.entry(org).into_iter().flat_map(|entry| &entry.versions);
            let own: HashSet<_> = own.map(|version| version.fingerprint).collect();
            keyring.own_keys().filter(|key| !own.contains(key)).collect()
        });
        OrgAuditLog { log: self.audit(), org, others, lives: false, begun: HashSet::new() }
    }

    /// Returns the certificates of one org, which may be erased, by version.
    ///
    /// # Errors
    /// [`Error::CertificateInvalid`] if one does not open; disk errors of the machine.
    pub fn certificates_of(&self, org: OrgId) -> Result<Vec<Certificate>> {
        let all = self.certificates_below(&[Certificate::PREFIX, org.as_bytes()].concat());
        all.collect()
    }
}

/// Entries of the audit log, in order. An entry that is missing or does not fit is an error in
/// its place; the log goes on behind it. From [`KeyAdmin::audit`].
pub struct AuditLog {
    engine: Arc<Engine>,
    at: Link,
    /// Time of the entry before.
    last: u64,
    end: Head,
}

impl Iterator for AuditLog {
    type Item = Result<AuditEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at.0 == self.end.0 {
            return None;
        }
        Some(match self.engine.read_audit_entry(self.at, self.end) {
            Ok((entry, head)) => {
                self.at = (head.0, Some(head.1));
                let last = std::mem::replace(&mut self.last, entry.at_unix_ms);
                if entry.at_unix_ms < last {
                    let why = "its time is before that of the entry before it";
                    return Some(Err(Error::AuditBroken { entry: entry.number, why }));
                }
                Ok(entry)
            }
            Err(error) => {
                self.at = (self.at.0 + 1, None);
                Err(error)
            }
        })
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditLog(entry {} of {})", self.at.0, self.end.0)
    }
}

/// The entries of the audit log that one org sees, in order. One that is missing or does not fit is
/// an error in its place, whomever it was about. From [`KeyAdmin::audit_of`].
pub struct OrgAuditLog {
    log: AuditLog,
    org: OrgId,
    /// Keys that others in this store have or had, and those of the store.
    others: HashSet<Fingerprint>,
    /// Whether the org was there already, and was not erased yet, as far as the log is read.
    lives: bool,
    /// Backups that were begun, of which the org was told.
    begun: HashSet<BackupId>,
}

impl Iterator for OrgAuditLog {
    type Item = Result<OrgAuditEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.log.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let seen = OrgAuditEntry::new(entry, self.org, |key| self.others.contains(&key));
            let Some(seen) = seen else { continue };
            match (&seen.org, &seen.event) {
                (Some(_), AuditEvent::KeyErased) => self.lives = false,
                (Some(_), AuditEvent::OrgCreated | AuditEvent::RestoreBegun { .. }) => {
                    self.lives = true;
                }
                (None, AuditEvent::BackupBegun { .. }) if !self.lives => continue,
                (None, AuditEvent::BackupBegun { backup, .. }) => drop(self.begun.insert(*backup)),
                (None, AuditEvent::BackupNotFinished { backup })
                    if !self.begun.contains(backup) =>
                {
                    continue;
                }
                _ => {}
            }
            return Some(Ok(seen));
        }
    }
}

impl fmt::Debug for OrgAuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrgAuditLog({} in {:?})", self.org, self.log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Draft;
    use crate::engine::tests::engine;
    use crate::failpoint::Clock;

    /// No store writes such a log: one that does is not whole.
    #[test]
    fn an_audit_log_that_runs_backwards_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let clock = Clock::set_for(&data);
        let engine = engine(&data);
        clock.set(clock.wall() - 1);
        engine
            .change(None, |keyring, drafts| {
                keyring.audit_at = 0;
                drafts.push(Draft::new(AuditEvent::DatabaseRewritten));
                Ok(())
            })
            .unwrap();
        let end = engine.with_keyring(|k| (k.audit_entries, k.audit_hash));
        let mut log = AuditLog { engine, at: (0, Some([0; 32])), last: 0, end };
        assert!(log.next().is_some_and(|entry| entry.is_ok()));
        let backwards = log.next().unwrap().unwrap_err();
        assert!(matches!(
            backwards,
            Error::AuditBroken { entry: 2, why } if why.contains("before that of the entry before")
        ));
        assert!(log.next().is_none());
    }
}
