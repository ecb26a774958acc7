//! What the engine needs of a storage engine, and nothing more.

mod group;
mod sled;

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::material::KeyMaterial;

pub(crate) use self::group::{Group, Whole};
pub(crate) use self::sled::{Key, SledOptions, SledStorage, Stored};

/// What the digest's key is derived for.
pub(crate) const DIGEST_KEY: &[u8] = b"byokv digest v1";

/// Two key spaces of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// Envelopes: org id ‖ name, clear or blinded.
    Records,
    /// What the store keeps about itself: mark, audit entries, certificates, progress.
    System,
}

/// One write of a batch; no value deletes.
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

pub(crate) type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);
pub(crate) type Pairs = Box<dyn DoubleEndedIterator<Item = Result<(Key, Stored)>> + Send>;

/// Contract: a write that returned is seen by every later call on every thread, and is on disk
/// after a later [`sync`](Storage::sync) returned. Keys are ordered as bytes. No method panics.
pub(crate) trait Storage: Send + Sync {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>>;

    /// The same for a key that was walked over.
    fn get_found(&self, space: Space, key: &Key) -> Result<Option<Stored>>;

    /// Writes one key, or deletes it.
    fn put(&self, space: Space, key: &[u8], value: Option<Vec<u8>>) -> Result<()>;

    /// Replaces `old` by `new` if the key still has exactly `old`; `None` is an absent key.
    fn compare_and_swap(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&Stored>,
        new: Option<Vec<u8>>,
    ) -> Result<bool>;

    /// All writes or none, also after a crash. A single `get`, or step of a scan, comes before
    /// all of them or after all; who reads several keys may see some of the old ones and then
    /// some of the new.
    fn apply(&self, space: Space, writes: Vec<Write>) -> Result<()>;

    /// Deletes records that were walked over and that none of the store's own writes has made, as
    /// far as can be told: each that still has the value it was met with. Returns how many it were.
    /// Where a group is not as the digest says just because of them, it is so afterwards.
    fn remove_strays(&self, strays: &[(Key, Stored)]) -> Result<u64>;

    /// Gives the pairs of `range` to `each`, in key order, until that says `false`, but never ending
    /// at a foreign key ([`Key::is_foreign`]); whether it came to the end. For some thousand pairs at a time: cheaper for each than a
    /// [`scan`](Self::scan), and not followed by a replacement of the database, of which the walk
    /// then gives what it held at that moment.
    fn walk(
        &self,
        space: Space,
        range: Range,
        each: &mut dyn FnMut(Key, Stored) -> bool,
    ) -> Result<bool>;

    /// Lazily, in key order. Keys written behind the iterator are not seen, keys ahead are.
    fn scan(&self, space: Space, range: Range) -> Pairs;

    /// Writes the store's position, at a moment when no other write is under way, together with
    /// the digest of all that is there.
    fn put_position(&self, position: Vec<u8>) -> Result<()>;

    /// The position that was last written, with other bytes behind it.
    fn position(&self) -> Result<Option<Stored>>;

    /// Goes on from what was found at opening. Comes before the first write.
    fn begin(&self) -> Result<()>;

    /// Notes that nothing is written any more: whatever comes is refused.
    fn end(&self) -> Result<()>;

    /// Checks by the digest that every value of the group is there and none is older than it was;
    /// `None` if that is not so. Reads the group's values, and holds up no write.
    fn verify(&self, group: Group) -> Result<Option<Whole>>;

    /// Checks all groups, and gives those that are not whole.
    fn broken(&self) -> Result<Vec<Group>>;

    /// Takes what the group holds now for all that it should hold.
    fn accept(&self, group: Group) -> Result<()>;

    /// Begins a count of the group's values, which goes on beside its writers.
    fn count(&self, group: Group) -> Arc<dyn Count>;

    /// Removes what is noted of deletions in a group. Nothing of it is left once nothing is in it and
    /// two positions were put since.
    fn forget(&self, group: Group) -> Result<()>;

    /// Returns when every write that returned before would survive a power cut.
    fn sync(&self) -> Result<()>;

    /// What stands against any further write, for good: a refused sync, a panic.
    fn check_writable(&self) -> Result<()>;

    /// Refuses every further write. Gives back what is refused with: the first reason.
    fn stop_writing(&self, error: Error) -> Error;

    fn bytes_on_disk(&self) -> Result<u64>;

    /// Where the files of the current database lie.
    fn dir(&self) -> PathBuf;

    /// Copies everything that lives into a fresh database in `dir`, while the storage works.
    fn copy_to(&self, dir: &Path, plan: &CopyPlan<'_>) -> Result<Box<dyn Successor + '_>>;
}

/// A count of a group's values that is under way.
pub(crate) trait Count: Send + Sync {
    /// Gives the pairs of `range` to `each` as [`Storage::walk`] does, and counts those that it gives.
    /// Several threads may walk at once. No two walks of a count come to the same key: one that ended
    /// early is gone on with behind the last key that it gave. After an error the count is worth
    /// nothing any more.
    fn walk(&self, range: Range, each: &mut dyn FnMut(Key, Stored) -> bool) -> Result<bool>;

    /// Compares what was counted with the digest, once all of the group was walked.
    fn outcome(&self) -> Result<Outcome>;
}

/// What came of a count.
pub(crate) enum Outcome {
    Whole(Whole),
    /// Something is missing, or older than it was.
    Broken,
    /// The digest was replaced during the count, which says nothing.
    Again,
}

/// What a copy of the database makes of the digest.
pub(crate) enum CopyPlan<'a> {
    /// The digest goes along. The copy takes over only if what was copied is what the digest says.
    Checked,
    /// The digest of the copy is made of what was found, whatever that is.
    Accepting,
    /// As `Checked`, and what the copy holds is under this new key of the digest. What the store
    /// keeps of itself is sealed anew.
    Under { key: &'a KeyMaterial, reseal: Reseal },
}

/// Makes of a key in the system space and its value what the copy is to have under that key.
pub(crate) type Reseal = Arc<dyn Fn(&[u8], &[u8]) -> Result<Vec<u8>> + Send + Sync>;

/// A copy that may take the place of the current database.
pub(crate) trait Successor {
    /// Copies what was written meanwhile, until that is little.
    fn catch_up(&mut self) -> Result<()>;

    /// Lets no more writes in, copies the rest and makes the copy durable. Dropping what it gives lets
    /// the writes go on, on the old database. A copy with a digest of its own is sealed with
    /// `position`, or with the current one if that is none.
    fn freeze(&self, position: Option<Vec<u8>>) -> Result<Freeze<'_>>;

    /// After the switch: waits at most `longest` until nobody uses the old database any more.
    fn close_old(self: Box<Self>, longest: Duration) -> bool;
}

/// What came of the attempt to let a copy take over.
pub(crate) enum Freeze<'a> {
    Frozen(Box<dyn Frozen + 'a>),
    /// The values of these groups are not what the digest says: the copy must not take over.
    Broken(Vec<Group>),
}

/// The storage at a standstill.
pub(crate) trait Frozen {
    /// Goes on with the copy. How long nobody could write.
    fn switch(self: Box<Self>) -> Duration;
}

/// The range of all keys that start with `prefix`.
pub(crate) fn prefix_range(prefix: &[u8]) -> Range {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bound::Included(prefix.to_vec()), Bound::Excluded(end));
        }
    }
    (Bound::Included(prefix.to_vec()), Bound::Unbounded)
}

#[cfg(test)]
impl<'a> Freeze<'a> {
    pub(crate) fn frozen(self) -> Box<dyn Frozen + 'a> {
        match self {
            Self::Frozen(frozen) => frozen,
            Self::Broken(groups) => panic!("{groups:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ranges_end_after_the_prefix() {
        let end = |prefix: &[u8]| prefix_range(prefix).1;
        assert_eq!(end(b"a"), Bound::Excluded(b"b".to_vec()));
        assert_eq!(end(b"a\xff\xff"), Bound::Excluded(b"b".to_vec()));
        assert_eq!(end(b"\xff"), Bound::Unbounded);
        assert_eq!(end(b""), Bound::Unbounded);
    }
}
