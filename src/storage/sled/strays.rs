//! Removing what none of our own writes has made.
//!
//! Whoever writes sled's own format can put a pair there. The digest never counted it, so the sum
//! of its group is not what is there, and a deletion that takes it from the sum would leave the sum
//! wrong for good: after a kill it would keep the store from opening. So it is found out first
//! whether the strays are just what is too much, and if so they go without the digest. Until they
//! are gone nothing is worse than it was.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::digest::group_of;
use super::scan::raw;
use super::verify::PAIRS;
use super::{Group, Key, Shared, Space, Stored};
use crate::error::Result;

impl Shared {
    /// See [`Storage::remove_strays`](super::Storage::remove_strays).
    pub(super) fn remove_strays(&self, strays: &[(Key, Stored)]) -> Result<u64> {
        let mut groups: BTreeMap<Group, Vec<&(Key, Stored)>> = BTreeMap::new();
        for stray in strays {
            groups.entry(group_of(Space::Records, &stray.0.raw())).or_default().push(stray);
        }
        let mut removed = 0;
        for (group, strays) in groups {
            let is_counted = !self.are_too_much(group, &strays)?;
            for (key, stored) in strays {
                let key = key.raw();
                let is_gone = if is_counted {
                    self.replace_raw(Space::Records, &key, None, Some(Some(stored)))?
                } else {
                    self.remove_uncounted(&key, stored)?
                };
                removed += u64::from(is_gone);
            }
        }
        Ok(removed)
    }

    /// By how much more than the digest says the values of a group come to.
    fn surplus(&self, group: Group) -> Result<u64> {
        loop {
            let count = self.count_all(group, PAIRS)?;
            if Arc::ptr_eq(self.current().digest(), count.digest()) {
                return Ok(count.surplus());
            }
        }
    }

    /// Whether the group is not as the digest says, and would be without these.
    fn are_too_much(&self, group: Group, strays: &[&(Key, Stored)]) -> Result<bool> {
        let (from, to) = raw(group.range().1);
        let range = (from.as_ref().map(|key| &**key), to.as_ref().map(|key| &**key));
        let (mut all, mut beside) = (0_u64, 0_u64);
        let database = self.current();
        let digest = database.digest();
        for (key, stored) in strays {
            let key = key.raw();
            let print = digest.now(digest.place(Space::Records, &key), Some(stored.raw()));
            all = all.wrapping_add(print);
            // Keys that we never write may lie where no count of their group comes.
            if !RangeBounds::<[u8]>::contains(&range as &(Bound<&[u8]>, Bound<&[u8]>), &*key) {
                beside = beside.wrapping_add(print);
            }
        }
        Ok(self.surplus(group)?.wrapping_add(beside) == all && all != 0)
    }
}
