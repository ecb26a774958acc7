//! The digest: whether every value that was written is there, and none is older than it was.
//!
//! sled's recovery after a kill passes over what is damaged in the middle of its log, and over
//! large pages whose file is gone: values vanish, or older ones come back, and nothing says so.
//! So one secret-keyed number is summed over all values of each [`Group`] that live, and written
//! with each position of the store. A sync is a moment at which no write is under way, so the sums
//! are exact there. What was written behind the last sync that a crash left is told apart by the
//! *epoch* in each value, and is taken out of the sum by what it replaced: each value says that
//! too, and each deletion is noted. Layout and argument: `docs/design.md`.

mod count;
mod deletions;
mod found;
mod groups;
mod prints;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::{Group, Space};
use super::database::{Database, OPENED_KEY};
use super::keys::escape;
use crate::envelope::suite::{NONCE_LEN, SuiteKey, TAG_LEN};
use crate::error::Result;
use crate::failpoint;
use crate::material::KeyMaterial;
use crate::sealed;

pub(super) use count::{Chunk, GroupCount};
pub(super) use deletions::Deletion;
pub(super) use found::Found;
pub(super) use groups::{Sum, group_of};
pub(super) use prints::{Place, Prints, merging, plain};

/// What is sealed behind the position: epoch (8) ‖ state (1) ‖ sum of all (8) ‖ sum of the store's
/// own (8).
const SEALED: usize = 25;
const SEAL: usize = NONCE_LEN + SEALED + TAG_LEN;
const LABEL: &[u8] = b"byokv digest v1";
const POSITION_LABEL: &[u8] = b"byokv digest position v1";
const SUMS_LABEL: &[u8] = b"byokv digest sums v1";
pub(super) const POSITION_KEY: &[u8] = b"position";
const SUMS_PREFIX: &[u8] = b"sum/";
/// Locks of keys. A writer that loses the processor while it holds one keeps all who write its keys
/// waiting: with 64 locks, writers waited for little else during a rotation.
const LOCKS: usize = 4096;

/// How the store was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// In use: what was written later may be there too.
    Open,
    /// Closed: nothing was written later.
    Closed,
}

/// What stands behind the position.
#[derive(Clone, Copy)]
struct Seal {
    epoch: u64,
    left: Left,
    /// The sums of all groups together.
    total: u64,
    system: u64,
}

/// What was sealed last.
#[derive(Default)]
struct Last {
    position: Vec<u8>,
    total: u64,
}

/// What the digest's key is used for.
struct Keys {
    prints: Arc<Prints>,
    seals: SuiteKey,
}

pub(super) struct Digest {
    keys: Arc<Keys>,
    /// Each held while one of its keys is read and written.
    locks: Box<[Mutex<()>; LOCKS]>,
    groups: groups::Groups,
    /// Of writes that are made now.
    epoch: AtomicU64,
    last: Mutex<Last>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Whether the position is `sealed`. Where that cannot be told no more writes are taken.
fn holds(database: &Database, sealed: &[u8]) -> Result<bool> {
    let held = database.get_raw(Space::System, POSITION_KEY);
    let held = held.map_err(|error| database.stop_writing(error))?;
    Ok(held.is_some_and(|held| *held == *sealed))
}

/// Whether something lies there that is not counted.
pub(super) fn is_own(space: Space, key: &[u8]) -> bool {
    let own = key == POSITION_KEY
        || key == OPENED_KEY
        || deletions::is_note(key)
        || key.starts_with(SUMS_PREFIX);
    space == Space::System && own
}

/// Where a bucket of sums lies.
fn sums_key(bucket: usize) -> Vec<u8> {
    let bucket = u8::try_from(bucket).unwrap_or(u8::MAX);
    escape(&[SUMS_PREFIX, &[bucket]].concat()).into_owned()
}

impl Digest {
    pub(super) fn new(key: &KeyMaterial) -> Self {
        let seals = key.derive(&[LABEL, b" seals"]);
        Self::under(Arc::new(Keys {
            prints: Arc::new(Prints::new(key, LABEL)),
            seals: SuiteKey::xaes(&seals),
        }))
    }

    /// One with the same keys that has summed nothing yet.
    pub(super) fn fresh(&self) -> Self {
        Self::under(Arc::clone(&self.keys))
    }

    fn under(keys: Arc<Keys>) -> Self {
        Self {
            keys,
            locks: Box::new([const { Mutex::new(()) }; LOCKS]),
            groups: groups::Groups::new(),
            epoch: AtomicU64::new(1),
            last: Mutex::default(),
        }
    }

    pub(super) fn place(&self, space: Space, key: &[u8]) -> Place {
        self.prints().place(space, key)
    }

    /// For the databases that write what [`dress_when_written`](Self::dress_when_written) gives.
    pub(super) fn prints(&self) -> &Arc<Prints> {
        &self.keys.prints
    }

    fn seals(&self) -> &SuiteKey {
        &self.keys.seals
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What a value counts for now.
    pub(super) fn now(&self, place: Place, stored: Option<&[u8]>) -> u64 {
        stored.map_or(0, |stored| self.prints().of(place, plain(stored)))
    }

    /// The number of the lock of a key.
    pub(super) fn lock_of(space: Space, key: &[u8]) -> usize {
        let mut hasher = crc32fast::Hasher::new_with_initial(space as u32);
        hasher.update(key);
        hasher.finalize() as usize % LOCKS
    }

    pub(super) fn lock(&self, number: usize) -> MutexGuard<'_, ()> {
        self.locks[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once every write that had its key locked when this was called has told its sum. Keeps
    /// no lock longer than it takes to find it free.
    pub(super) fn settle(&self) {
        (0..LOCKS).for_each(|number| drop(self.lock(number)));
    }

    /// The groups of which there is a sum.
    pub(super) fn groups(&self) -> Vec<Group> {
        self.groups.all()
    }

    /// The sum of a group, for who deletes in it.
    pub(super) fn sum(&self, group: Group) -> Arc<Sum> {
        self.groups.with(group, Arc::clone)
    }

    /// `value` as it is to be stored in place of `old`. The key is locked.
    pub(super) fn dress(&self, place: Place, value: Vec<u8>, old: Option<&[u8]>) -> Vec<u8> {
        let epoch = self.epoch();
        let replaced = old.map_or(0, |old| self.prints().as_of(place, epoch - 1, old));
        self.prints().dress(place, value, epoch, replaced)
    }

    /// Likewise, where what is replaced is not known before sled writes: see [`Prints::merge`].
    pub(super) fn dress_when_written(&self, value: Vec<u8>) -> Vec<u8> {
        prints::to_be_merged(value, self.epoch())
    }

    /// A value that stands in the database of another digest, as it stands in one of this, where it
    /// was there when that was begun.
    pub(super) fn dress_anew(
        &self,
        space: Space,
        key: &[u8],
        stored: &sled::IVec,
        other: &Self,
    ) -> sled::IVec {
        if Arc::ptr_eq(&self.keys, &other.keys) {
            return stored.clone();
        }
        self.dress_new(space, key, plain(stored).to_vec())
    }

    /// A value as it stands in a database where it was there when that was begun.
    pub(super) fn dress_new(&self, space: Space, key: &[u8], value: Vec<u8>) -> sled::IVec {
        self.prints().dress(self.place(space, key), value, 0, 0).into()
    }

    /// What a group comes to. Nothing is written meanwhile.
    pub(super) fn sum_of(&self, group: Group) -> u64 {
        self.groups.now(group)
    }

    /// Takes over that the key's value counts for `new` instead of `old`. The key is still
    /// locked.
    pub(super) fn changed(&self, (space, key): (Space, &[u8]), old: u64, new: u64) {
        self.groups.change(group_of(space, key), key, old, new);
    }

    /// Tells the counts that are under way of a value that is gone and that no sum has. The key is
    /// still locked.
    pub(super) fn uncounted_is_gone(&self, (space, key): (Space, &[u8]), stored: &[u8]) {
        let old = self.now(self.place(space, key), Some(stored));
        self.groups.with(group_of(space, key), |sum| sum.counts().change(|| 0, key, old, 0));
    }

    /// Writes the sums that have changed, and then the position with the sum of all: it must come
    /// last, or a crash leaves one that vouches for sums that are not there. Where it leaves sums
    /// without their position, they hold those of the position before as well. No write is under way.
    /// Notes the keys that it writes in `written`.
    pub(super) fn seal(
        &self,
        database: &Database,
        position: Option<Vec<u8>>,
        written: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let left = if position.is_some() { Left::Open } else { Left::Closed };
        if let Some(position) = position {
            last.position = position;
        }
        let epoch = self.epoch();
        let (buckets, change) = self.groups.to_seal();
        let total = last.total.wrapping_add(change);
        let mut sums = Vec::with_capacity(buckets.len());
        for groups::Written { bucket, entries } in &buckets {
            let key = sums_key(*bucket);
            let sealed = match entries {
                Some(entries) => Some(self.seal_sums(&key, epoch, entries)?),
                None => None,
            };
            sums.push((key, sealed));
        }
        let system = self.groups.now(Group::System);
        let seal =
            [&epoch.to_be_bytes()[..], &[left as u8], &total.to_be_bytes(), &system.to_be_bytes()];
        let ad = [POSITION_LABEL, &last.position].concat();
        let seal = sealed::seal_bytes(self.seals(), &ad, &seal.concat())?;
        let sealed = [&*last.position, &seal].concat();
        let length = |(key, sums): &(Vec<u8>, Option<Vec<u8>>)| {
            key.len() + sums.as_ref().map_or(0, Vec::len)
        };
        let bytes: usize = sums.iter().map(length).sum();
        database.admit(bytes + POSITION_KEY.len() + sealed.len(), true)?;
        for (key, sums) in sums {
            written.push(key.clone());
            match sums {
                Some(sums) => database.put_raw(Space::System, &key, &sums)?,
                None => database.remove_raw(Space::System, &key)?,
            }
        }
        failpoint::reach("sync.summed", "");
        written.push(POSITION_KEY.to_vec());
        let done = database.put_raw(Space::System, POSITION_KEY, &sealed);
        // One that failed may be there all the same, and what comes later must not seem older.
        if done.is_ok() || holds(database, &sealed)? {
            self.epoch.store(epoch.saturating_add(1), Ordering::Release);
            last.total = total;
            self.groups.sealed(&buckets);
        }
        done
    }

    fn seal_sums(&self, key: &[u8], epoch: u64, entries: &[u8]) -> Result<Vec<u8>> {
        let plain = [&epoch.to_be_bytes()[..], entries].concat();
        sealed::seal_bytes(self.seals(), &[SUMS_LABEL, key].concat(), &plain)
    }

    /// The position that the database holds, and the seal behind it, if it is one of ours.
    fn unseal(&self, database: &Database) -> Result<Option<(Vec<u8>, Seal)>> {
        let Some(stored) = database.get_raw(Space::System, POSITION_KEY)? else {
            return Ok(None);
        };
        let Some(at) = stored.len().checked_sub(SEAL) else { return Ok(None) };
        let (position, seal) = stored.split_at(at);
        let ad = [POSITION_LABEL, position].concat();
        Ok(sealed::open_bytes(self.seals(), &ad, seal).map(|seal| {
            let left = if seal[8] == Left::Closed as u8 { Left::Closed } else { Left::Open };
            let [epoch, total, system] = [0, 9, 17].map(|at| number(&seal, at));
            (position.to_vec(), Seal { epoch, left, total, system })
        }))
    }
}

#[cfg(test)]
mod tests;
