//! Writing: one key at a time is read and written, so that the digest knows what was replaced.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::database::Database;
use super::digest::{Digest, POSITION_KEY, plain};
use super::keys::escape;
use super::{Shared, Space, Write};
use crate::error::{Error, Result};

type Key = (Space, Vec<u8>);

impl Shared {
    /// Writes, and notes what was written for a copy that is under way: after the write, so
    /// that who reads the note reads the new value. Whether there is a copy is asked once writes
    /// are let in: a copy that is begun later waits for this write before it looks at any key.
    fn write<T>(&self, write: impl FnOnce(&Database, &mut Vec<Key>) -> Result<T>) -> Result<T> {
        let _allowed = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let database = self.current();
        database.check_writable()?;
        let copying = self.copying.load(Ordering::Acquire);
        let mut keys = Vec::new();
        let outcome = write(&database, &mut keys);
        if copying {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        }
        outcome
    }

    /// Writes one key, if it has the value that is expected, where one is.
    pub(super) fn replace(
        &self,
        space: Space,
        key: &[u8],
        new: Option<Vec<u8>>,
        expected: Option<Option<&[u8]>>,
    ) -> Result<bool> {
        let key = escape(key).into_owned();
        self.write(|database, keys| {
            let digest = &self.digest;
            let index = Digest::stripe_of(space, &key);
            let mut stripe = digest.lock(index);
            let old = database.get_raw(space, &key)?;
            if expected.is_some_and(|expected| old.as_deref().map(plain) != expected) {
                return Ok(false);
            }
            let new = new.map(|new| digest.dress(new, old.as_deref()));
            let written = match (&new, &old) {
                (None, None) => return Ok(true),
                (Some(new), _) => database.put_raw(space, &key, new),
                (None, Some(old)) => {
                    keys.push((Space::System, Digest::deleted_key(index)));
                    let olds = std::slice::from_ref(old);
                    digest
                        .note_deletion(database, index, &mut stripe, olds)
                        .and_then(|()| database.remove_raw(space, &key))
                }
            };
            match &written {
                Ok(()) => digest.changed((space, &key), old.as_deref(), new.as_deref()),
                Err(error) if may_be_there(database, error) => digest.doubt(),
                Err(_) => {}
            }
            keys.push((space, key));
            written.map(|()| true)
        })
    }

    /// All writes or none. Of two to one key the later counts.
    pub(super) fn replace_all(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        let writes: BTreeMap<Vec<u8>, _> =
            writes.into_iter().map(|w| (escape(&w.key).into_owned(), w.value)).collect();
        self.write(|database, keys| {
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
                keys.push((Space::System, Digest::deleted_key(*index)));
                written = digest.note_deletion(database, *index, stripe, &deleted);
            }
            let written = written.and_then(|()| database.apply_raw(space, batch, bytes));
            if written.as_ref().is_err_and(|error| may_be_there(database, error)) {
                digest.doubt();
            }
            for (key, old, new) in changes {
                if written.is_ok() {
                    digest.changed((space, &key), old.as_deref(), new.as_deref());
                }
                keys.push((space, key));
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
