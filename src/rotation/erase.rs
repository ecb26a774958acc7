//! Deleting what an erased org has left: its keys are destroyed already, so what is deleted is
//! bytes that nobody can open.

use super::count::{Counted, HeaderCount};
use super::pass::Cursor;
use crate::audit::{CertificateKind, ErasureLimit};
use crate::engine::{Claim, Engine, OrgState};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::OrgId;
use crate::keyring::Erasure;
use crate::storage::{Key, Space, Write};

/// The deletion of one org's records, under way.
pub(super) struct Deletion {
    cursor: Cursor,
    /// Over all restarts, once it is read how many there were before.
    deleted: Option<u64>,
}

impl Deletion {
    /// Records deleted in one step.
    const STEP: usize = 512;

    pub(super) fn new(org: &OrgState) -> Self {
        Self { cursor: Cursor::new(org.id), deleted: None }
    }

    pub(super) fn deleted(&self) -> u64 {
        self.deleted.unwrap_or_default()
    }

    /// Deletes the next records; `false` once none is left and that is certified.
    pub(super) fn step(&mut self, engine: &Engine, org: &OrgState) -> Result<bool> {
        let counted = deleted_key(org.id);
        let mut deleted = match self.deleted {
            Some(deleted) => deleted,
            None => engine.kept(&counted)?.unwrap_or_default(),
        };
        self.deleted = Some(deleted);
        let records = self.cursor.chunk(engine, Self::STEP)?;
        if !records.is_empty() {
            let count = records.len() as u64;
            let delete = |(key, _): (Key, _)| Write { key: key.to_vec(), value: None };
            let (foreign, own): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|(key, _)| key.is_foreign());
            engine.storage.remove_strays(&foreign)?;
            engine.storage.apply(Space::Records, own.into_iter().map(delete).collect())?;
            engine.written();
            deleted += count;
            self.deleted = Some(deleted);
            // Only a figure for the certificate hangs on it.
            if let Err(error) = engine.keep(&counted, &deleted) {
                tracing::warn!(org = %org.name, %error, "progress not noted");
            }
            failpoint::reach("erase.deleted", &org.name);
            return Ok(true);
        }
        // The digest too must have come to nothing: what is missing would not be deleted.
        let left = HeaderCount::run_whole(engine, org)?;
        if left.census().total() > 0 {
            self.cursor = Cursor::new(org.id);
            return Ok(true);
        }
        failpoint::reach("erase.counted", &org.name);
        engine.sync()?;
        self.certify(engine, org, &left)?;
        let forget = || {
            engine.storage.put(Space::System, &counted, None)?;
            engine.storage.forget(org.group())
        };
        if let Err(error) = forget() {
            tracing::warn!(org = %org.name, %error, "notes that nobody needs stay");
        }
        engine.written();
        Ok(false)
    }

    fn certify(&self, engine: &Engine, org: &OrgState, left: &Counted) -> Result<()> {
        if !left.is_of(org) || left.census().total() > 0 {
            return Err(Error::Bug { org: org.name.to_string() });
        }
        // The org is in no backup that begins now.
        let copies = engine.copies_of(org.id)?;
        engine.change(None, |keyring, drafts| {
            let Some(entry) = keyring.orgs.iter_mut().find(|entry| entry.id == org.id) else {
                return Ok(());
            };
            entry.erasure = Some(Erasure::RecordsDeleted);
            let version = entry.newest().version;
            let mut scope = vec![ErasureLimit::Residue];
            scope.extend(engine.limits());
            let claim = Claim::new(CertificateKind::OrgErased, org.id, version, None);
            let claim = Claim { records_deleted: self.deleted(), scope, copies, ..claim };
            engine.certify(keyring, drafts, claim)?;
            Ok(())
        })?;
        tracing::info!(org = %org.name, records = self.deleted(), "org erased");
        Ok(())
    }
}

fn deleted_key(org: OrgId) -> Vec<u8> {
    [b"erasure/", &org.as_bytes()[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::engine;
    use crate::keyring::OrgPolicy;

    /// What somebody wrote who had the keys from before they were destroyed.
    #[test]
    fn a_record_that_came_late_is_deleted_before_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        let write = |name: &[u8]| engine.write(&org, name, Some(b"value")).unwrap();
        write(b"a");
        write(b"b");
        let mut deletion = Deletion::new(&org);
        assert!(deletion.step(&engine, &org).unwrap());
        write(b"a");
        let erasure = || engine.with_keyring(|keyring| keyring.entry(org.id).unwrap().erasure);
        for _ in 0..2 {
            assert_eq!(erasure(), None, "certified before the count found none");
            assert!(deletion.step(&engine, &org).unwrap());
        }
        assert_eq!(HeaderCount::run(&engine, &org).unwrap().total(), 0);
        assert!(!deletion.step(&engine, &org).unwrap());
        assert_eq!(erasure(), Some(Erasure::RecordsDeleted));
        assert_eq!(deletion.deleted(), 3);
    }
}
