//! A fresh copy of what lives in a database, made while it is written to.

use std::collections::{HashMap, HashSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::RecvTimeoutError;
use crossbeam::sync::ShardedLockWriteGuard;

use super::super::{Freeze, Frozen, Reseal};
use super::digest::{Digest, Place, group_of, is_own, plain};
use super::keys::unescape;
use super::{CopyPlan, Database, Group, Shared, Space, Successor};
use crate::error::Result;

const SPACES: [Space; 2] = [Space::System, Space::Records];
/// Bytes copied at once.
const PIECE: usize = 1 << 20;
/// What each noted key counts for by itself: a batch holds up every store of the process.
const EACH: usize = 1 << 10;

pub(super) struct Copy<'a> {
    shared: &'a Shared,
    old: Arc<Database>,
    new: Arc<Database>,
    /// Whether what was copied must be what the digest says.
    is_checked: bool,
    reseal: Option<Reseal>,
    copied: Mutex<Copied>,
}

/// What the copy holds of each group: sums under the old digest, and under its own if it has one.
#[derive(Default)]
struct Copied {
    old: HashMap<Group, u64>,
    new: HashMap<Group, u64>,
    /// Of what was sealed anew, the print of what it was made of, under the old digest.
    resealed: HashMap<Place, u64>,
}

fn count(sums: &mut HashMap<Group, u64>, group: Group, before: u64, now: u64) {
    let sum = sums.entry(group).or_default();
    *sum = sum.wrapping_add(now).wrapping_sub(before);
}

impl<'a> Copy<'a> {
    /// Copies everything once. What is written meanwhile is noted.
    ///
    /// 1. from now on writes note their keys;
    /// 2. writers that did not see that have left; must come before 3, or the scan passes a key
    ///    that is then written without a note;
    /// 3. the scan.
    pub(super) fn start(shared: &'a Shared, dir: &Path, plan: &CopyPlan<'_>) -> Result<Self> {
        let old = Arc::clone(&shared.current());
        let digest = match plan {
            CopyPlan::Checked => Arc::clone(old.digest()),
            CopyPlan::Accepting => Arc::new(old.digest().fresh()),
            CopyPlan::Under { key, .. } => Arc::new(Digest::new(key)),
        };
        let (new, _) = Database::open(dir, &shared.options, digest, false)?;
        let new = Arc::new(new);
        shared.copying.store(true, Ordering::Release);
        drop(shared.writes.write().unwrap_or_else(PoisonError::into_inner));
        let is_checked = !matches!(plan, CopyPlan::Accepting);
        let reseal = match plan {
            CopyPlan::Under { reseal, .. } => Some(Arc::clone(reseal)),
            CopyPlan::Checked | CopyPlan::Accepting => None,
        };
        let copy = Self { shared, old, new, is_checked, reseal, copied: Mutex::default() };
        for space in SPACES {
            copy.copy_all(space)?;
        }
        Ok(copy)
    }

    /// Whether the copy has a digest of its own, which it is sealed with when it is complete.
    fn has_own_digest(&self) -> bool {
        !Arc::ptr_eq(self.old.digest(), self.new.digest())
    }

    fn copy_all(&self, space: Space) -> Result<()> {
        let mut iter = self.old.range(space, (Bound::Unbounded, Bound::Unbounded))?;
        let (mut batch, mut bytes) = (sled::Batch::default(), 0);
        while let Some((key, value)) = self.old.step(|| iter.next())? {
            let Some(value) = self.take(space, &key, None, Some(value))? else { continue };
            bytes += key.len() + value.len();
            batch.insert(key, value);
            if bytes >= PIECE {
                self.put(space, std::mem::take(&mut batch), bytes)?;
                bytes = 0;
            }
        }
        self.put(space, batch, bytes)
    }

    /// Takes over in the sums that the copy is to hold a value of the old database's in place of one
    /// of its own. Returns the value as the copy is to have it; none if it is to have none.
    fn take(
        &self,
        space: Space,
        key: &[u8],
        replaced: Option<&[u8]>,
        value: Option<sled::IVec>,
    ) -> Result<Option<sled::IVec>> {
        if is_own(space, key) {
            return Ok(value.filter(|_| !self.has_own_digest()));
        }
        let group = group_of(space, key);
        let reseal = self.reseal.as_ref().filter(|_| space == Space::System);
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = self.old.digest();
        let place = digest.place(space, key);
        let before = match reseal {
            Some(_) => copied.resealed.remove(&place).unwrap_or_default(),
            None => digest.now(place, replaced),
        };
        let now = digest.now(place, value.as_deref());
        count(&mut copied.old, group, before, now);
        if !self.has_own_digest() {
            return Ok(value);
        }
        let taken = match (value, reseal) {
            (Some(value), Some(reseal)) => {
                copied.resealed.insert(place, now);
                let name = unescape(key).unwrap_or_default();
                Some(self.new.digest().dress_new(space, key, reseal(&name, plain(&value))?))
            }
            (value, _) => value
                .map(|value| self.new.digest().dress_anew(space, key, &value, self.old.digest())),
        };
        let digest = self.new.digest();
        let place = digest.place(space, key);
        let [before, now] = [replaced, taken.as_deref()].map(|value| digest.now(place, value));
        count(&mut copied.new, group, before, now);
        Ok(taken)
    }

    fn put(&self, space: Space, batch: sled::Batch, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _one_at_a_time = self.new.admit_batch(bytes, false)?;
        self.new.apply_raw(space, batch, &self.new.begin_batch()?)
    }

    fn copy_noted(&self) -> Result<usize> {
        let noted: HashSet<_> = {
            let mut noted = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *noted)
        };
        for space in SPACES {
            let (mut batch, mut bytes) = (sled::Batch::default(), 0);
            for (_, key) in noted.iter().filter(|(noted_in, _)| *noted_in == space) {
                let replaced = self.new.get_raw(space, key)?;
                let value = self.old.get_raw(space, key)?;
                let value = self.take(space, key, replaced.as_deref(), value)?;
                bytes += EACH + key.len() + value.as_ref().map_or(0, |value| value.len());
                match value {
                    Some(value) => batch.insert(key.clone(), value),
                    None => batch.remove(key.clone()),
                }
                if bytes >= PIECE {
                    self.put(space, std::mem::take(&mut batch), bytes)?;
                    bytes = 0;
                }
            }
            self.put(space, batch, bytes)?;
        }
        Ok(noted.len())
    }

    /// The groups of which something else was copied than the digest says. Nothing is written.
    fn broken(&self) -> Vec<Group> {
        let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        let mut groups: Vec<Group> = copied.old.keys().copied().collect();
        groups.extend(self.old.digest().groups());
        groups.sort_unstable();
        groups.dedup();
        let of = |group: &Group| copied.old.get(group).copied().unwrap_or_default();
        groups.retain(|group| of(group) != self.old.digest().sum_of(*group));
        groups
    }
}

impl Successor for Copy<'_> {
    /// The last round must be short: it is made while nobody may write.
    fn catch_up(&mut self) -> Result<()> {
        const FEW: usize = 100;
        const ROUNDS: usize = 20;
        for _ in 0..ROUNDS {
            let copied = self.copy_noted()?;
            self.new.sync()?;
            if copied <= FEW {
                break;
            }
        }
        Ok(())
    }

    fn freeze(&self, position: Option<Vec<u8>>) -> Result<Freeze<'_>> {
        let since = Instant::now();
        let writes = self.shared.writes.write().unwrap_or_else(PoisonError::into_inner);
        self.copy_noted()?;
        // What it holds by half must not come into the new one.
        self.old.check_writable()?;
        let broken = if self.is_checked { self.broken() } else { Vec::new() };
        if !broken.is_empty() {
            return Ok(Freeze::Broken(broken));
        }
        if self.has_own_digest() {
            let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
            let digest = self.new.digest();
            digest.begin_copy(&self.new, self.old.digest(), &copied.new, position)?;
        }
        self.new.sync()?;
        Ok(Freeze::Frozen(Box::new(Standstill { copy: self, _writes: writes, since })))
    }

    /// Not only until nobody has it: until what closes it, in the thread of whoever had it last, is
    /// through with its files.
    fn close_old(self: Box<Self>, longest: Duration) -> bool {
        let closed = self.old.closed();
        drop(self);
        closed.recv_timeout(longest) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.shared.copying.store(false, Ordering::Release);
        self.shared.written.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// No write is under way, none may begin, and the copy is complete and durable.
struct Standstill<'a> {
    copy: &'a Copy<'a>,
    _writes: ShardedLockWriteGuard<'a, ()>,
    since: Instant,
}

impl Frozen for Standstill<'_> {
    fn switch(self: Box<Self>) -> Duration {
        let shared = self.copy.shared;
        // A sync that was refused meanwhile stays refused.
        if let Err(error) = self.copy.old.check_writable() {
            self.copy.new.stop_writing(error);
        }
        shared.current.store(Arc::clone(&self.copy.new));
        shared.copying.store(false, Ordering::Release);
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tail::{Durable, Noted};
    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;
    use crate::material::KeyMaterial;

    /// Its files are overwritten and removed then, and what closes it writes to them.
    #[test]
    fn the_old_database_is_closed_when_that_is_said() {
        const LONGEST: Duration = Duration::from_secs(20);

        let dir = tempfile::tempdir().unwrap();
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        let old = dir.path().join("db");
        let storage = SledStorage::open(&old, &options, &key, false).unwrap();
        storage.begin().unwrap();
        storage.put(Space::Records, b"k", Some(vec![1; 50])).unwrap();
        let copy = storage.copy_to(&dir.path().join("db.1"), &CopyPlan::Checked).unwrap();
        let held = Arc::clone(&storage.0.current());
        std::thread::scope(|scope| {
            copy.freeze(None).unwrap().frozen().switch();
            scope.spawn(move || {
                while Arc::strong_count(&held) > 1 {
                    std::thread::yield_now();
                }
                drop(held);
            });
            assert!(copy.close_old(LONGEST));
            assert!(matches!(Durable::read(&old).unwrap(), Noted::Closed(_)));
        });
    }
}
