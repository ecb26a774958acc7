//! Writing: one key at a time is read and written, so that the digest knows what was replaced.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::database::Database;
use super::digest::{self, Digest, POSITION_KEY};
use super::keys::escape;
use super::{Shared, Space, Stored, Write};
use crate::error::{Error, Result};

/// What is written while a copy is made.
struct Notes {
    copying: bool,
    keys: Vec<(Space, Vec<u8>)>,
}

impl Notes {
    fn add(&mut self, space: Space, key: &[u8]) {
        if self.copying {
            self.keys.push((space, key.to_vec()));
        }
    }
}

impl Shared {
    /// Writes, and notes what was written for a copy that is under way: after the write, so
    /// that who reads the note reads the new value. Whether there is a copy is asked once writes
    /// are let in: a copy that is begun later waits for this write before it looks at any key.
    fn write<T>(&self, write: impl FnOnce(&Database, &mut Notes) -> Result<T>) -> Result<T> {
        let _allowed = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let database = self.current();
        database.check_writable()?;
        let copying = self.copying.load(Ordering::Acquire);
        let mut notes = Notes { copying, keys: Vec::new() };
        let outcome = write(&database, &mut notes);
        if copying {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(notes.keys);
        }
        outcome
    }

    /// Writes one key, if it has the value that is expected, where one is.
    pub(super) fn replace(
        &self,
        space: Space,
        key: &[u8],
        new: Option<Vec<u8>>,
        expected: Option<Option<&Stored>>,
    ) -> Result<bool> {
        let key = escape(key);
        self.write(|database, notes| {
            let digest = &self.digest;
            let index = Digest::stripe_of(space, &key);
            let mut stripe = digest.lock(index);
            let written = match (new, expected) {
                (Some(new), None) => {
                    let new = digest.dress_when_written(new);
                    let print = digest.now(Some(&new));
                    let written = database.merge_raw(space, &key, &new);
                    written.map(|()| Some((digest::replaced_by_merge(), print)))
                }
                (Some(new), Some(expected)) => {
                    let old = expected.map(Stored::raw);
                    let new = digest.dress(new, old);
                    let prints = (digest.now(old), digest.now(Some(&new)));
                    let swapped = database.swap_raw(space, &key, old, new);
                    swapped.map(|swapped| swapped.then_some(prints))
                }
                (None, expected) => {
                    let old = database.get_raw(space, &key)?;
                    let old = old.as_deref();
                    if expected.is_some_and(|expected| expected.map(Stored::raw) != old) {
                        return Ok(false);
                    }
                    let Some(old) = old else { return Ok(true) };
                    notes.add(Space::System, &Digest::deleted_key(index));
                    let prints = (digest.now(Some(old)), 0);
                    digest
                        .note_deletion(database, index, &mut stripe, &[old])
                        .and_then(|()| database.remove_raw(space, &key))
                        .map(|()| Some(prints))
                }
            };
            match &written {
                Ok(Some((old, new))) => digest.changed((space, &key), *old, *new),
                Ok(None) => return Ok(false),
                // Where not even the old value can be read, sled got no further than that.
                Err(error)
                    if may_be_there(database, error) && database.get_raw(space, &key).is_ok() =>
                {
                    digest.doubt();
                }
                Err(_) => {}
            }
            notes.add(space, &key);
            written.map(|_| true)
        })
    }

    /// All writes or none. Of two to one key the later counts.
    pub(super) fn replace_all(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        let writes: BTreeMap<Vec<u8>, _> =
            writes.into_iter().map(|w| (escape(&w.key).into_owned(), w.value)).collect();
        self.write(|database, notes| {
            let digest = &self.digest;
            // In ascending order, so that two batches never wait for each other.
            let indexes: BTreeMap<usize, ()> =
                writes.keys().map(|key| (Digest::stripe_of(space, key), ())).collect();
            let mut stripes: Vec<_> =
                indexes.keys().map(|&index| (index, digest.lock(index))).collect();
            let (mut batch, mut bytes) = (sled::Batch::default(), 0);
            let (mut changes, mut deleted) = (Vec::new(), Vec::new());
            for (key, new) in writes {
                let old = database.get_raw(space, &key)?;
                let new = new.map(|new| digest.dress(new, old.as_deref()));
                bytes += key.len() + new.as_ref().map_or(0, Vec::len);
                match (&new, &old) {
                    (None, None) => continue,
                    (Some(new), _) => batch.insert(key.as_slice(), new.as_slice()),
                    (None, Some(old)) => {
                        batch.remove(key.as_slice());
                        deleted.push(old.clone());
                    }
                }
                changes.push((key, old, new));
            }
            let mut written = Ok(());
            if let (false, Some((index, stripe))) = (deleted.is_empty(), stripes.first_mut()) {
                notes.add(Space::System, &Digest::deleted_key(*index));
                let deleted: Vec<&[u8]> = deleted.iter().map(AsRef::as_ref).collect();
                written = digest.note_deletion(database, *index, stripe, &deleted);
            }
            let written = written.and_then(|()| database.apply_raw(space, batch, bytes));
            if written.as_ref().is_err_and(|error| may_be_there(database, error)) {
                digest.doubt();
            }
            for (key, old, new) in changes {
                if written.is_ok() {
                    digest.changed(
                        (space, &key),
                        digest.now(old.as_deref()),
                        digest.now(new.as_deref()),
                    );
                }
                notes.add(space, &key);
            }
            written
        })
    }

    /// Writes the position with the digest; none for the last time. No write is under way then.
    pub(super) fn seal(&self, position: Option<Vec<u8>>) -> Result<()> {
        let _all = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return if position.is_some() { Err(Error::Closed) } else { Ok(()) };
        }
        let ends = position.is_none();
        let database = self.current();
        self.digest.seal(&database, position)?;
        if self.copying.load(Ordering::Acquire) {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.insert((Space::System, POSITION_KEY.to_vec()));
        }
        if ends {
            self.ended.store(true, Ordering::Release);
            database.sync()?;
        }
        Ok(())
    }
}

/// Whether a write that failed may have happened: not if it was refused for want of space before
/// sled was asked. What sled refuses itself is noted.
fn may_be_there(database: &Database, error: &Error) -> bool {
    !matches!(error, Error::DiskFull { .. }) || database.files().failed().is_some()
}
