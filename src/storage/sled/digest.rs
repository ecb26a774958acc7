//! The digest: whether every value that was written is there, and none is older than it was.
//!
//! sled's recovery after a kill passes over what is damaged in the middle of its log, and over
//! large pages whose file is gone: values vanish, or older ones come back, and nothing says so.
//! So one secret-keyed number is summed over all values that live, and written with each
//! position of the store. A sync is a moment at which no write is under way, so the sum is exact
//! there. What was written behind the last sync that a crash left is told apart by the *epoch* in
//! each value, and is taken out of the sum by what it replaced: each value says that too, and
//! each deletion is noted. Layout and argument: `docs/design.md`.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::Space;
use super::database::{Database, OPENED_KEY};
use super::prints::{self, Place, Prints};
use crate::envelope::suite::{NONCE_LEN, SuiteKey, TAG_LEN};
use crate::error::Result;
use crate::material::KeyMaterial;
use crate::sealed;

/// Behind the position, sealed: epoch (8) ‖ state (1) ‖ sum (8).
const SEAL: usize = NONCE_LEN + 17 + TAG_LEN;
/// What a deletion notes, sealed: four numbers.
const NOTE: usize = 32;
const LABEL: &[u8] = b"byokv digest v1";
const POSITION_LABEL: &[u8] = b"byokv digest position v1";
const NOTE_LABEL: &[u8] = b"byokv digest note v1";
pub(super) const POSITION_KEY: &[u8] = b"position";
const DELETED_PREFIX: &[u8] = b"deleted/";
/// Notes of deletions.
const STRIPES: usize = 64;
/// Locks of keys, a multiple of that. A writer that loses the processor while it holds one keeps
/// all who write its keys waiting: with 64 locks, writers waited for little else during a rotation.
const LOCKS: usize = 64 * STRIPES;
/// Pairs that are read while writes wait.
const STEP: usize = 256;

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
    sum: u64,
}

/// Deletions of one epoch, of the keys of one stripe: the prints that they took away.
#[derive(Default)]
struct Stripe {
    epoch: u64,
    deleted: u64,
}

/// A deletion that is being made. Held until it is: the stripe's next note says that it was.
pub(super) struct Deletion<'a> {
    stripe: usize,
    state: MutexGuard<'a, Stripe>,
    /// What was noted that it takes away.
    amount: u64,
}

impl Deletion<'_> {
    /// Where it is noted.
    pub(super) fn key(&self) -> Vec<u8> {
        deleted_key(self.stripe)
    }

    /// It was made: the next note says so.
    pub(super) fn made(&mut self) {
        self.state.deleted = self.state.deleted.wrapping_add(self.amount);
    }
}

/// A count that goes on while there are writes: up to where, and what it has found.
struct Count {
    at: Option<(Space, Vec<u8>)>,
    sum: u64,
}

pub(super) struct Digest {
    prints: Arc<Prints>,
    seals: SuiteKey,
    /// Each held while one of its keys is read and written.
    locks: Box<[Mutex<()>; LOCKS]>,
    /// Taken after the locks of keys, and only one.
    stripes: [Mutex<Stripe>; STRIPES],
    sum: AtomicU64,
    /// Of writes that are made now.
    epoch: AtomicU64,
    counting: AtomicBool,
    count: Mutex<Count>,
    position: Mutex<Vec<u8>>,
}

/// What a database is found with.
pub(super) struct Found {
    /// Whether it is what it was.
    pub(super) is_whole: bool,
    sum: u64,
    epoch: u64,
    /// Notes of deletions that are none of ours.
    forged: Vec<Vec<u8>>,
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
fn is_own(space: Space, key: &[u8]) -> bool {
    let own = key == POSITION_KEY || key == OPENED_KEY || key.starts_with(DELETED_PREFIX);
    space == Space::System && own
}

/// Where the deletions of a stripe are noted.
fn deleted_key(stripe: usize) -> Vec<u8> {
    [DELETED_PREFIX, stripe.to_string().as_bytes()].concat()
}

impl Digest {
    pub(super) fn new(key: &KeyMaterial) -> Self {
        let seals = key.derive(&[LABEL, b" seals"]);
        Self {
            prints: Arc::new(Prints::new(key, LABEL)),
            seals: SuiteKey::xaes(&seals),
            locks: Box::new([const { Mutex::new(()) }; LOCKS]),
            stripes: std::array::from_fn(|_| Mutex::default()),
            sum: AtomicU64::new(0),
            epoch: AtomicU64::new(1),
            counting: AtomicBool::new(false),
            count: Mutex::new(Count { at: None, sum: 0 }),
            position: Mutex::default(),
        }
    }

    pub(super) fn place(&self, space: Space, key: &[u8]) -> Place {
        self.prints.place(space, key)
    }

    /// For the databases that write what [`dress_when_written`](Self::dress_when_written) gives.
    pub(super) fn prints(&self) -> &Arc<Prints> {
        &self.prints
    }

    /// What a value counts for now.
    pub(super) fn now(&self, place: Place, stored: Option<&[u8]>) -> u64 {
        stored.map_or(0, |stored| self.prints.of(place, prints::plain(stored)))
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

    /// For who has the lock of that number, and deletes one of its keys.
    pub(super) fn delete(&self, number: usize) -> Deletion<'_> {
        let stripe = number % STRIPES;
        let state = self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        Deletion { stripe, state, amount: 0 }
    }

    /// `value` as it is to be stored in place of `old`. The key is locked.
    pub(super) fn dress(&self, place: Place, value: Vec<u8>, old: Option<&[u8]>) -> Vec<u8> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let replaced = old.map_or(0, |old| self.prints.as_of(place, epoch - 1, old));
        self.prints.dress(place, value, epoch, replaced)
    }

    /// Likewise, where what is replaced is not known before sled writes: see [`Prints::merge`].
    pub(super) fn dress_when_written(&self, value: Vec<u8>) -> Vec<u8> {
        prints::to_be_merged(value, self.epoch.load(Ordering::Acquire))
    }

    /// Notes a deletion before it is made: of one key, or of all that a batch deletes, which are
    /// there or gone together, so that one of them stands for all. Without its key, which would
    /// stay as long as the note.
    pub(super) fn note_deletion(
        &self,
        database: &Database,
        deletion: &mut Deletion<'_>,
        olds: &[(Place, &[u8])],
    ) -> Result<()> {
        let key = deletion.key();
        let state = &mut *deletion.state;
        let epoch = self.epoch.load(Ordering::Acquire);
        if state.epoch != epoch {
            *state = Stripe { epoch, deleted: 0 };
        }
        let amounts = olds.iter().map(|(place, old)| self.prints.as_of(*place, epoch - 1, old));
        let amount = amounts.fold(0, u64::wrapping_add);
        let print = olds.first().map_or(0, |(place, old)| self.now(*place, Some(old)));
        let note = [epoch, state.deleted, amount, print].map(u64::to_be_bytes).concat();
        let sealed = sealed::seal_bytes(&self.seals, &[NOTE_LABEL, &key].concat(), &note)?;
        database.put_raw(Space::System, &key, &sealed)?;
        deletion.amount = amount;
        Ok(())
    }

    /// Takes over that the key's value counts for `new` instead of `old`. The key is still
    /// locked.
    pub(super) fn changed(&self, (space, key): (Space, &[u8]), old: u64, new: u64) {
        let change = new.wrapping_sub(old);
        self.sum.fetch_add(change, Ordering::AcqRel);
        if self.counting.load(Ordering::Acquire) {
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            let is_counted = |(at_space, at): &(Space, Vec<u8>)| {
                (space as u8, key) <= (*at_space as u8, at.as_slice())
            };
            if count.at.as_ref().is_some_and(is_counted) {
                count.sum = count.sum.wrapping_add(change);
            }
        }
    }

    /// Writes the position with the sum. No write is under way.
    pub(super) fn seal(&self, database: &Database, position: Option<Vec<u8>>) -> Result<()> {
        let mut last = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let left = if position.is_some() { Left::Open } else { Left::Closed };
        if let Some(position) = position {
            *last = position;
        }
        let sum = self.sum.load(Ordering::Acquire);
        let epoch = self.epoch.load(Ordering::Acquire);
        let seal = [&epoch.to_be_bytes()[..], &[left as u8], &sum.to_be_bytes()].concat();
        let seal = sealed::seal_bytes(&self.seals, &[POSITION_LABEL, &last].concat(), &seal)?;
        let sealed = [&**last, &seal].concat();
        database.admit(POSITION_KEY.len() + sealed.len(), true)?;
        let written = database.put_raw(Space::System, POSITION_KEY, &sealed);
        // One that failed may be there all the same, and what comes later must not seem older.
        if written.is_ok() || holds(database, &sealed)? {
            self.epoch.store(epoch.saturating_add(1), Ordering::Release);
        }
        written
    }

    /// The position that the database holds, and the seal behind it, if it is one of ours.
    fn unseal(&self, database: &Database) -> Result<Option<(Vec<u8>, Seal)>> {
        let Some(stored) = database.get_raw(Space::System, POSITION_KEY)? else {
            return Ok(None);
        };
        let Some(at) = stored.len().checked_sub(SEAL) else { return Ok(None) };
        let (position, seal) = stored.split_at(at);
        let ad = [POSITION_LABEL, position].concat();
        Ok(sealed::open_bytes(&self.seals, &ad, seal).map(|seal| {
            let left = if seal[8] == Left::Closed as u8 { Left::Closed } else { Left::Open };
            let seal = Seal { epoch: number(&seal, 0), left, sum: number(&seal, 9) };
            (position.to_vec(), seal)
        }))
    }

    /// Whether there was never a position: the database was made, and not sealed before a crash.
    fn is_new(&self, database: &Database) -> Result<bool> {
        Ok(database.get_raw(Space::System, POSITION_KEY)?.is_none())
    }

    /// Looks at a database that was just opened, without changing it. Reads all of it if it was
    /// not closed, or if `thorough`.
    pub(super) fn find(&self, database: &Database, thorough: bool) -> Result<Found> {
        let sealed = self.unseal(database)?;
        let is_sealed = sealed.is_some() || self.is_new(database)?;
        let nothing = Seal { epoch: 0, left: Left::Open, sum: 0 };
        let (position, seal) = sealed.unwrap_or((Vec::new(), nothing));
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        if seal.left == Left::Closed && !thorough {
            let (sum, epoch) = (seal.sum, seal.epoch);
            return Ok(Found { is_whole: true, sum, epoch, forged: Vec::new() });
        }
        let (mut sum, mut then, mut newest) = (0u64, 0u64, seal.epoch);
        let mut forged = Vec::new();
        // Of the last deletion of each stripe: it was made if the value is gone.
        let mut amounts = HashMap::new();
        for stripe in 0..STRIPES {
            let key = deleted_key(stripe);
            let Some(note) = database.get_raw(Space::System, &key)? else { continue };
            let ad = [NOTE_LABEL, &key].concat();
            let note = sealed::open_bytes(&self.seals, &ad, &note);
            let Some(note) = note.filter(|note| note.len() == NOTE) else {
                forged.push(key);
                continue;
            };
            let [epoch, before, amount, print] = [0, 8, 16, 24].map(|at| number(&note, at));
            if epoch > seal.epoch {
                newest = newest.max(epoch);
                then = then.wrapping_add(before);
                amounts.insert(print, amount);
            }
        }
        for space in [Space::Records, Space::System] {
            let mut pairs = database.range(space, (Bound::Unbounded, Bound::Unbounded))?;
            while let Some((key, stored)) = database.step(|| pairs.next())? {
                if !is_own(space, &key) {
                    let place = self.prints.place(space, &key);
                    let (print, counted, written) = self.prints.read(place, seal.epoch, &stored);
                    amounts.remove(&print);
                    sum = sum.wrapping_add(print);
                    then = then.wrapping_add(counted);
                    newest = newest.max(written);
                }
            }
        }
        then = amounts.into_values().fold(then, u64::wrapping_add);
        let is_whole = is_sealed && forged.is_empty() && then == seal.sum;
        Ok(Found { is_whole, sum, epoch: newest, forged })
    }

    /// Goes on from what was found. Must come before the first write: what that is told from
    /// what a crash left by its epoch.
    pub(super) fn begin(&self, database: &Database, found: &Found) -> Result<()> {
        self.sum.store(found.sum, Ordering::Release);
        self.epoch.store(found.epoch.saturating_add(1), Ordering::Release);
        let position = self.position.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for note in &found.forged {
            database.remove_raw(Space::System, note)?;
        }
        self.seal(database, Some(position))
    }

    /// Begins a count beside the writes.
    pub(super) fn begin_count(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = Count { at: None, sum: 0 };
        self.counting.store(true, Ordering::Release);
    }

    /// Counts a little further while no write is under way. Whether the sum is right, once all
    /// is counted.
    pub(super) fn step_count(&self, database: &Database) -> Result<Option<bool>> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let spaces = [Space::Records, Space::System];
        let (space, from) = match count.at.take() {
            Some((space, at)) => (space, Bound::Excluded(sled::IVec::from(at))),
            None => (spaces[0], Bound::Unbounded),
        };
        let mut pairs = database.range(space, (from, Bound::Unbounded))?;
        for _ in 0..STEP {
            let Some((key, stored)) = database.step(|| pairs.next())? else {
                if space == spaces[0] {
                    count.at = Some((spaces[1], Vec::new()));
                    return Ok(None);
                }
                self.counting.store(false, Ordering::Release);
                let sum = self.sum.load(Ordering::Acquire);
                return Ok(Some(count.sum == sum));
            };
            if !is_own(space, &key) {
                let print = self.now(self.prints.place(space, &key), Some(&stored));
                count.sum = count.sum.wrapping_add(print);
            }
            count.at = Some((space, key.to_vec()));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;

    const FIRST: &[u8] = b"first";
    const GONE: &[u8] = b"gone";

    fn open(dir: &Path) -> SledStorage {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        SledStorage::open(&dir.join("db"), &options, &key, false).unwrap()
    }

    /// Whether a store that was killed is whole, once `forge` has been at its bytes, with the three
    /// values that the first key had, as they are stored; the last came after the last sync.
    fn is_whole(forge: impl FnOnce(&Database, [&[u8]; 3])) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        storage.begin().unwrap();
        let put = |key: &[u8], value| storage.put(Space::Records, key, value).unwrap();
        put(GONE, Some(vec![9; 40]));
        let values = [1, 2, 3].map(|i| {
            put(FIRST, Some(vec![i; 40]));
            if i < 3 {
                storage.put_position(vec![i]).unwrap();
            }
            storage.0.current().get_raw(Space::Records, FIRST).unwrap().unwrap()
        });
        put(GONE, None);
        forge(&storage.0.current(), values.each_ref().map(|value| &**value));
        storage.sync().unwrap();
        drop(storage);
        open(dir.path()).was_whole()
    }

    fn write(database: &Database, value: &[u8]) {
        database.put_raw(Space::Records, FIRST, value).unwrap();
    }

    /// Where the note of the deletion lies.
    fn note() -> Vec<u8> {
        deleted_key(Digest::lock_of(Space::Records, GONE) % STRIPES)
    }

    #[test]
    fn what_was_not_durable_may_be_missing() {
        assert!(is_whole(|_, _| ()));
        assert!(is_whole(|database, [_, second, _]| write(database, second)));
    }

    #[test]
    fn a_trailer_that_says_what_an_old_value_replaces_cannot_be_forged() {
        assert!(!is_whole(|database, [first, ..]| write(database, first)));
        // What is said of the newest value: that it replaces the second, which is summed.
        assert!(!is_whole(|database, [first, _, third]| {
            write(database, &[prints::plain(first), &third[prints::plain(third).len()..]].concat());
        }));
        for trailer in [[0; 16], [0xff; 16]] {
            assert!(!is_whole(|database, [first, ..]| {
                write(database, &[prints::plain(first), &trailer].concat());
            }));
        }
    }

    #[test]
    fn a_value_under_a_key_that_nobody_reads_does_not_count_for_its_own() {
        assert!(!is_whole(|database, [_, _, third]| {
            database.put_raw(Space::System, b"junk", third).unwrap();
            database.remove_raw(Space::Records, FIRST).unwrap();
        }));
    }

    /// It would be a sum of nothing, and each value would count for what it replaced.
    #[test]
    fn a_seal_that_does_not_open_is_no_seal_of_an_empty_database() {
        assert!(!is_whole(|database, [_, _, _]| {
            let held = database.get_raw(Space::System, POSITION_KEY).unwrap().unwrap();
            let mut forged = held.to_vec();
            *forged.last_mut().unwrap() ^= 1;
            database.put_raw(Space::System, POSITION_KEY, &forged).unwrap();
            database.remove_raw(Space::System, &note()).unwrap();
            // What has nothing behind it counts for nothing then.
            database.remove_raw(Space::Records, FIRST).unwrap();
        }));
    }

    #[test]
    fn a_note_of_a_deletion_cannot_be_forged_or_moved() {
        assert!(!is_whole(|database, _| database.remove_raw(Space::System, &note()).unwrap()));
        for byte in [0, 30, 71] {
            assert!(!is_whole(|database, _| {
                let held = database.get_raw(Space::System, &note()).unwrap().unwrap();
                let mut forged = held.to_vec();
                forged[byte] ^= 1;
                database.put_raw(Space::System, &note(), &forged).unwrap();
            }));
        }
        let another = deleted_key((Digest::lock_of(Space::Records, GONE) + 1) % STRIPES);
        assert!(!is_whole(|database, _| {
            let moved = database.get_raw(Space::System, &note()).unwrap().unwrap();
            database.put_raw(Space::System, &another, &moved).unwrap();
        }));
    }

    #[test]
    fn a_forged_note_that_was_accepted_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        storage.begin().unwrap();
        storage.0.current().put_raw(Space::System, &note(), &[0xff; NOTE]).unwrap();
        drop(storage);
        let storage = open(dir.path());
        assert!(!storage.was_whole());
        storage.begin().unwrap();
        drop(storage);
        assert!(open(dir.path()).was_whole());
    }
}
