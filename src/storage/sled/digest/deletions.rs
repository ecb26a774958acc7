//! Notes of deletions: what a deletion since the last sync took away is in no value any more.

use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::super::super::{Group, Space};
use super::super::database::Database;
use super::super::keys::{escape, unescape};
use super::groups::Sum;
use super::prints::{self, Place};
use super::{Digest, number};
use crate::error::Result;
use crate::sealed;

/// Notes of one group, at most. A second one is made only while the first is being written.
pub(super) const STRIPES: usize = 8;
const PREFIX: &[u8] = b"deleted/";
const LABEL: &[u8] = b"byokv digest note v1";
/// What a note seals: four numbers.
const NOTE: usize = 32;

/// Deletions of one epoch that are noted in one place: the prints that they took away.
#[derive(Default)]
pub(in super::super) struct Stripe {
    epoch: u64,
    deleted: u64,
}

/// A deletion that is being made. Held until it is: the stripe's next note says that it was.
pub(in super::super) struct Deletion<'a> {
    /// Where it is noted.
    key: Vec<u8>,
    state: MutexGuard<'a, Stripe>,
    /// What was noted that it takes away.
    amount: u64,
}

impl Deletion<'_> {
    pub(in super::super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Takes over that it was made: the next note says so.
    pub(in super::super) fn made(&mut self) {
        self.state.deleted = self.state.deleted.wrapping_add(self.amount);
    }
}

/// What a note says.
pub(super) struct Note {
    pub(super) group: Group,
    pub(super) epoch: u64,
    /// What the stripe's deletions of that epoch took away before.
    pub(super) before: u64,
    /// What the last one takes away, which was made if the value of this identity is gone.
    pub(super) amount: u64,
    pub(super) identity: u64,
}

/// Whether a key of the store's own is one of a note.
pub(super) fn is_note(key: &[u8]) -> bool {
    key.starts_with(PREFIX)
}

/// The notes lie between these.
pub(super) fn prefix() -> &'static [u8] {
    PREFIX
}

/// Where the deletions of a stripe are noted.
pub(super) fn key(group: Group, stripe: usize) -> Vec<u8> {
    let start = match &group {
        Group::Records(start) => &start[..],
        Group::System => &[],
    };
    let stripe = u8::try_from(stripe).unwrap_or(u8::MAX);
    escape(&[PREFIX, start, &[stripe]].concat()).into_owned()
}

/// The group of a note with this key; `None` for one that we never write.
pub(super) fn group_of(key: &[u8]) -> Option<Group> {
    let key = unescape(key)?;
    let (stripe, start) = key.strip_prefix(PREFIX)?.split_last()?;
    if usize::from(*stripe) >= STRIPES {
        return None;
    }
    match start.len() {
        0 => Some(Group::System),
        _ => start.try_into().ok().map(Group::Records),
    }
}

impl Sum {
    /// For who has locked a key of the group, and deletes its value. Of several groups at once they
    /// are asked in order.
    pub(in super::super) fn delete(&self, group: Group) -> Deletion<'_> {
        let stripes = self.stripes();
        let free = stripes.iter().enumerate().find_map(|(i, stripe)| match stripe.try_lock() {
            Ok(state) => Some((i, state)),
            Err(TryLockError::Poisoned(state)) => Some((i, state.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        });
        let (stripe, state) = free.unwrap_or_else(|| {
            let last = stripes.len() - 1;
            (last, stripes[last].lock().unwrap_or_else(PoisonError::into_inner))
        });
        Deletion { key: key(group, stripe), state, amount: 0 }
    }
}

impl Digest {
    /// Notes a deletion before it is made: of one key, or of all that a batch deletes in the group,
    /// which are there or gone together, so that one of them stands for all. Without its key, which
    /// would stay as long as the note.
    pub(in super::super) fn note_deletion(
        &self,
        database: &Database,
        deletion: &mut Deletion<'_>,
        olds: &[(Place, &[u8])],
    ) -> Result<()> {
        let state = &mut *deletion.state;
        let epoch = self.epoch();
        if state.epoch != epoch {
            *state = Stripe { epoch, deleted: 0 };
        }
        let amounts = olds.iter().map(|(place, old)| self.prints().as_of(*place, epoch - 1, old));
        let amount = amounts.fold(0, u64::wrapping_add);
        let identity = olds
            .first()
            .map_or(0, |(place, old)| prints::identity(self.now(*place, Some(old)), old));
        let note = [epoch, state.deleted, amount, identity].map(u64::to_be_bytes).concat();
        let ad = [LABEL, &deletion.key].concat();
        let sealed = sealed::seal_bytes(self.seals(), &ad, &note)?;
        database.put_raw(Space::System, &deletion.key, &sealed)?;
        deletion.amount = amount;
        Ok(())
    }

    /// What a note says; `None` for one that is none of ours.
    pub(super) fn read_note(&self, key: &[u8], sealed: &[u8]) -> Option<Note> {
        let group = group_of(key)?;
        let note = sealed::open_bytes(self.seals(), &[LABEL, key].concat(), sealed)?;
        let [epoch, before, amount, identity] = [0, 8, 16, 24].map(|at| number(&note, at));
        (note.len() == NOTE).then_some(Note { group, epoch, before, amount, identity })
    }

    /// Removes the notes of a group that are older than the last seal, which say nothing any more.
    /// Returns their keys.
    pub(in super::super) fn forget_deletions(
        &self,
        database: &Database,
        group: Group,
    ) -> Result<Vec<Vec<u8>>> {
        let (sum, mut keys) = (self.sum(group), Vec::new());
        for (i, stripe) in sum.stripes().iter().enumerate() {
            let key = key(group, i);
            database.admit(key.len(), true)?;
            // Held until it is removed: the next deletion notes itself there.
            let state = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            if state.epoch < self.epoch() && database.get_raw(Space::System, &key)?.is_some() {
                database.remove_raw(Space::System, &key)?;
                keys.push(key);
            }
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_note_names_its_group() {
        for group in [Group::System, Group::Records([0xff; 16]), Group::Records([7; 16])] {
            for stripe in 0..STRIPES {
                assert_eq!(group_of(&key(group, stripe)), Some(group));
            }
            assert_eq!(group_of(&key(group, STRIPES)), None);
        }
        for none in [&b"deleted/"[..], b"deleted/short\0", b"other/\0"] {
            assert_eq!(group_of(none), None);
        }
    }
}
