//! Some records of a backup, into an org that is there: by ordinary writes, under its own keys.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use serde::Serialize;

use super::{Restore, changed, reading};
use crate::audit::{AuditEvent, Draft};
use crate::backup::{BackupContents, Entry, Head, Manifest, Opener, check};
use crate::error::{BackupError, Result};
use crate::org::{Org, Swap};
use crate::text::printable;

/// Which records of an org are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordSelection<'a> {
    /// The one of this name.
    Name(&'a [u8]),
    /// Those whose names start like this.
    Prefix(&'a [u8]),
}

impl RecordSelection<'_> {
    fn holds(&self, name: &[u8]) -> bool {
        match self {
            Self::Name(wanted) => name == *wanted,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

/// What [`Restore::records_from`] did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RestoredRecords {
    /// What the backup holds.
    pub backup: BackupContents,
    /// Records that were written.
    pub records: u64,
}

impl Restore<'_> {
    /// Restores records of `org`, as the backup has them, into an org that is there, which may be
    /// another: by ordinary writes, sealed under its key. The backup is read three times: to check
    /// it, to find which records are meant, of which the names are held in memory, and to write
    /// them. Noted in the audit log.
    ///
    /// Unless it is to `overwrite`, a record that is there already ends it before anything is
    /// written; one that somebody writes meanwhile ends it where it is met. What was written
    /// before a failure stays: call it again with `overwrite`.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RecordSelection, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let acme = store.create_org("acme", OrgPolicy::byok())?;
    /// acme.put("token", "s3cret")?;
    /// let (key, mut file) = (KeyMaterial::generate()?, Vec::new());
    /// store.backup(&key).write_to(&mut file)?;
    /// acme.delete("token")?;
    /// let file = std::io::Cursor::new(file);
    /// let which = RecordSelection::Name(b"token");
    /// let restored = store.restore(&key).records_from(file, "acme", which, &acme, false)?;
    /// assert_eq!(restored.records, 1);
    /// assert_eq!(acme.get("token")?.as_deref(), Some(&b"s3cret"[..]));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backup`](crate::Error::Backup) with what is wrong with the backup,
    /// [`BackupError::OrgMissing`], [`BackupError::NoSuchRecord`] or [`BackupError::RecordExists`];
    /// those of [`Org::put`].
    pub fn records_from(
        self,
        mut from: impl Read + Seek,
        org: &str,
        which: RecordSelection<'_>,
        into: &Org,
        overwrite: bool,
    ) -> Result<RestoredRecords> {
        self.engine.check_writable()?;
        let start = from.stream_position().map_err(reading)?;
        let (head, manifest) = check(self.key, &mut from)?;
        let missing = || BackupError::OrgMissing { org: org.to_owned() };
        let place = manifest.orgs.iter().position(|part| part.history.name == org);
        let place = place.ok_or_else(missing)?;

        // Of several entries of a record the last counts.
        let mut last: HashMap<Vec<u8>, (u64, bool)> = HashMap::new();
        from.seek(SeekFrom::Start(start)).map_err(reading)?;
        self.each(&mut from, (head, &manifest), place, &mut |number, name, value| {
            if which.holds(&name) {
                last.insert(name, (number, value.is_some()));
            }
            Ok(())
        })?;
        last.retain(|_, (_, is_there)| *is_there);
        if last.is_empty() {
            return Err(BackupError::NoSuchRecord { org: org.to_owned() }.into());
        }
        let exists = |name: &[u8]| BackupError::RecordExists { name: printable(name) };
        for name in last.keys().filter(|_| !overwrite) {
            if into.contains(name)? {
                return Err(exists(name).into());
            }
        }

        let mut records = 0;
        from.seek(SeekFrom::Start(start)).map_err(reading)?;
        self.each(&mut from, (head, &manifest), place, &mut |number, name, value| {
            let Some(value) = value.filter(|_| last.get(&name).is_some_and(|(n, _)| *n == number))
            else {
                return Ok(());
            };
            if overwrite {
                into.put(&name, &*value)?;
            } else if let Swap::Conflict { .. } =
                into.compare_and_swap(&name, None, Some(&value))?
            {
                return Err(exists(&name).into());
            }
            records += 1;
            Ok(())
        })?;
        self.engine.sync()?;
        self.engine.change(None, |_, drafts| {
            let event = AuditEvent::RecordsRestored { backup: head.id, records };
            drafts.push(Draft::new(event).org(into.name(), into.id()));
            Ok(())
        })?;
        Ok(RestoredRecords { backup: BackupContents::new(head, &manifest), records })
    }

    /// Gives the entries of one org to `each`, with their numbers.
    fn each(
        &self,
        from: impl Read,
        (head, manifest): (Head, &Manifest),
        place: usize,
        each: &mut dyn FnMut(u64, Vec<u8>, Option<crate::envelope::Value>) -> Result<()>,
    ) -> Result<()> {
        let mut opener = Opener::new(from, self.key).map_err(changed)?;
        if opener.head() != head {
            return Err(BackupError::Changed.into());
        }
        for number in 0.. {
            match opener.entry().map_err(changed)? {
                Entry::Put { org, name, value } if org == place => each(number, name, Some(value))?,
                Entry::Delete { org, name } if org == place => each(number, name, None)?,
                Entry::Put { .. } | Entry::Delete { .. } => {}
                Entry::End(again) if *again == *manifest => break,
                Entry::End(_) => return Err(BackupError::Changed.into()),
            }
        }
        Ok(())
    }
}
