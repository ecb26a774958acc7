//! Where records lie in the storage.
//!
//! A clear name is its own place. A blinded name has one under each key version that lives, and
//! its record lies at one of them:
//! - a write puts it under the active version and takes it away from the others in one step;
//! - the rotation moves it there the same way;
//! - both take turns by name while there is more than one place. With a single place there is
//!   nothing to take turns for, and every writer inside the gate has the same snapshot.
//!
//! So a record is never at two places, and only ever moves to newer ones.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Bound, RangeBounds};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Engine, OrgKeys, OrgState, Slot, check_name};
use crate::envelope::name;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::gate::Entered;
use crate::id::{KeyState, KeyVersion, OrgId};
use crate::storage::{Key, Range, Space, Stored, Write, prefix_range};

const FOREIGN: &str = "its storage key is none that this program writes";
const TOO_LONG_OR_SHORT: &str = "its name is empty or longer than names may be";

/// Locks for writers of blinded names, by a hash of the name.
pub(crate) struct Stripes {
    locks: [Mutex<()>; 64],
    hasher: RandomState,
}

impl Default for Stripes {
    fn default() -> Self {
        Self { locks: [const { Mutex::new(()) }; 64], hasher: RandomState::new() }
    }
}

/// A writer's turn for some names.
#[must_use = "others write meanwhile"]
pub(crate) struct Turn<'a> {
    _held: Vec<MutexGuard<'a, ()>>,
}

/// The storage keys at which a record may lie.
pub(crate) struct Places {
    /// Under the active version, where every write goes; if that is suspended, the newest that
    /// is not.
    pub(crate) newest: Vec<u8>,
    /// Newest first.
    pub(crate) older: Vec<Vec<u8>>,
    /// A suspended version under which it may lie too; nobody can say where.
    withheld: Option<Error>,
}

impl Places {
    /// For who has to know all of them.
    pub(crate) fn all(self) -> Result<Self> {
        match self.withheld {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// What [`Engine::move_record`] found.
pub(crate) enum Moved {
    Yes,
    /// Somebody newer was there.
    Lost,
    /// The record lies at a newer place already: what was found was put back by somebody, and
    /// is removed.
    Superseded,
}

impl OrgState {
    pub(crate) fn is_blinded(&self) -> bool {
        self.stripes.is_some()
    }

    pub(crate) fn check_name(&self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        if self.is_blinded() {
            let segments = name::segments(name);
            if segments > name::MAX_NAME_SEGMENTS {
                return Err(Error::NameDepth { segments, limit: name::MAX_NAME_SEGMENTS });
            }
        }
        Ok(())
    }

    /// The name of the record with this storage key, where names are clear.
    pub(crate) fn clear_name<'k>(&self, key: &'k Key) -> Result<&'k [u8]> {
        let name = key.get(OrgId::LEN..).filter(|_| !key.is_foreign());
        let Some(name) = name else { return Err(self.nameless(key, &FOREIGN)) };
        match check_name(name) {
            Ok(()) => Ok(name),
            Err(_) => Err(self.nameless(key, &TOO_LONG_OR_SHORT)),
        }
    }

    /// What is said of a record that nobody can ask for.
    fn nameless(&self, key: &Key, why: &dyn fmt::Display) -> Error {
        const SHOWN: usize = 40;

        let rest = key.strip_prefix(self.id.as_bytes()).unwrap_or(key);
        let mut hex = base16ct::lower::encode_string(&rest[..rest.len().min(SHOWN)]);
        if rest.len() > SHOWN {
            hex.push('…');
        }
        Error::RecordNameless { org: self.name.to_string(), key: hex, why: why.to_string() }
    }

    /// Where the record may lie, by one snapshot of the org's keys.
    pub(crate) fn places(&self, keys: &OrgKeys, name: &[u8]) -> Result<Places> {
        if !self.is_blinded() {
            return Ok(Places { newest: self.key(name), older: Vec::new(), withheld: None });
        }
        let mut withheld = None;
        let mut places = Vec::new();
        for slot in keys.slots.iter().rev().filter(|slot| slot.state != KeyState::Retired) {
            match &slot.name_key {
                Some(key) => places.push(key.seal(name)),
                None => withheld = withheld.or_else(|| Some(keys.suspended(slot.version))),
            }
        }
        let mut places = places.into_iter();
        match (places.next(), withheld) {
            (Some(newest), withheld) => Ok(Places { newest, older: places.collect(), withheld }),
            (None, Some(suspended)) => Err(suspended),
            (None, None) => Err(Error::OrgErased { org: self.name.to_string() }),
        }
    }

    /// Likewise for who writes, if the name is blinded: a clear one has one place.
    pub(super) fn hidden_places(&self, keys: &OrgKeys, name: &[u8]) -> Result<Option<Places>> {
        if self.is_blinded() { self.places(keys, name)?.all().map(Some) } else { Ok(None) }
    }

    /// Looks for a record with one snapshot taken before. A blinded one that is not found may
    /// have moved to a place that the snapshot does not know, if that was replaced meanwhile:
    /// then it is looked for again (invariant 6).
    pub(super) fn read<T>(
        &self,
        look: impl FnMut(&OrgKeys) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if self.is_blinded() {
            self.gate.read_until(look, |found| matches!(found, Ok(Some(_))))
        } else {
            self.gate.read(look)
        }
    }

    /// A turn for names that have more than one place. Never taken twice by one thread.
    pub(crate) fn turn<'n>(&self, names: impl IntoIterator<Item = &'n [u8]>) -> Option<Turn<'_>> {
        let stripes = self.stripes.as_ref()?;
        let stripe = |name| {
            let count = stripes.locks.len() as u64;
            usize::try_from(stripes.hasher.hash_one::<&[u8]>(name) % count).unwrap_or(0)
        };
        let mut wanted: Vec<_> = names.into_iter().map(stripe).collect();
        // Ascending, so that no two batches wait for each other.
        wanted.sort_unstable();
        wanted.dedup();
        let lock = |index: usize| stripes.locks[index].lock();
        let held =
            wanted.into_iter().map(lock).map(|held| held.unwrap_or_else(PoisonError::into_inner));
        Some(Turn { _held: held.collect() })
    }
}

impl OrgKeys {
    /// The name of the record with this storage key.
    ///
    /// # Errors
    /// [`Error::RecordNameless`] for one that no call can ask for, [`Error::KeySuspended`].
    pub(crate) fn name<'k>(&self, org: &OrgState, key: &'k Key) -> Result<Cow<'k, [u8]>> {
        if !org.is_blinded() {
            return org.clear_name(key).map(Cow::Borrowed);
        }
        let nameless = |why: &dyn fmt::Display| Err(org.nameless(key, why));
        if key.is_foreign() {
            return nameless(&FOREIGN);
        }
        let Some(version) = name::version(key) else {
            return nameless(&"its blinded name has no key version");
        };
        match self.slot(version) {
            Some(slot) => match &slot.name_key {
                Some(names) => match names.open(key) {
                    Ok(name) => match org.check_name(&name) {
                        Ok(()) => Ok(Cow::Owned(name)),
                        Err(_) => nameless(&TOO_LONG_OR_SHORT),
                    },
                    Err(why) => nameless(&why),
                },
                None if slot.state == KeyState::Retired => nameless(&format!(
                    "it is blinded under {version}, which is retired: it comes from an older copy of \
                     the data"
                )),
                None => Err(self.suspended(version)),
            },
            None => {
                nameless(&format!("it is blinded under {version}, which this keyring never had"))
            }
        }
    }

    /// The parts of the storage to walk for the names that start with `within`, in this order, or
    /// the suspended version under which they cannot be found; only versions newer than `walked`.
    fn parts(&self, within: &[u8], walked: Option<KeyVersion>) -> Vec<Result<Range>> {
        if walked.is_none() && !within.contains(&b'/') {
            // Also what lies under no version that the org has: it becomes an error.
            return vec![Ok(prefix_range(self.org.as_bytes()))];
        }
        let lives = |slot: &&Slot| slot.state != KeyState::Retired && Some(slot.version) > walked;
        let part = |slot: &Slot| match &slot.name_key {
            Some(names) => Ok(prefix_range(&names.seal_parent(within))),
            None => Err(self.suspended(slot.version)),
        };
        self.slots.iter().filter(lives).map(part).collect()
    }

    /// Whether a write would put the record there.
    pub(crate) fn is_newest_place(&self, org: &OrgState, key: &[u8]) -> bool {
        !org.is_blinded() || name::version(key) == Some(self.active)
    }
}

impl Engine {
    /// The bytes of a record, for a reader or for a writer whose turn it is.
    pub(crate) fn find(
        &self,
        org: &OrgState,
        keys: &OrgKeys,
        name: &[u8],
    ) -> Result<Option<Stored>> {
        if !org.is_blinded() {
            return org.with_key(name, |key| self.storage.get(Space::Records, key));
        }
        let places = org.places(keys, name)?;
        match self.find_at(org, &places)? {
            None => places.all().map(|_| None),
            found => Ok(found),
        }
    }

    /// 1. The newest place: most records lie there.
    /// 2. From the oldest to the newest: a record only ever moves that way, in one step, so it
    ///    cannot slip past. Walked the other way, it may move from a place that is yet to be
    ///    looked at to one that was looked at already.
    pub(crate) fn find_at(&self, org: &OrgState, places: &Places) -> Result<Option<Stored>> {
        let look = |place: &[u8]| self.storage.get(Space::Records, place);
        if let Some(stored) = look(&places.newest)? {
            return Ok(Some(stored));
        }
        for place in places.older.iter().rev() {
            failpoint::reach("names.looked", &org.name);
            if let Some(stored) = look(place)? {
                return Ok(Some(stored));
            }
        }
        if places.older.is_empty() { Ok(None) } else { look(&places.newest) }
    }

    /// The names in `range` that start with `within`, in order; before them, what kept others
    /// from being opened.
    ///
    /// Records only ever move to newer versions, so the oldest is walked first, and what became
    /// active meanwhile at the end: a record that moves is met at least once.
    pub(crate) fn blinded_names(
        &self,
        org: &OrgState,
        within: &[u8],
        range: &Range,
    ) -> Result<Vec<Result<Vec<u8>>>> {
        let (mut names, mut faults) = (Vec::new(), Vec::new());
        let mut walked = None;
        loop {
            let keys = org.gate.snapshot();
            for part in keys.parts(within, walked) {
                let part = match part {
                    Ok(part) => part,
                    Err(suspended) => {
                        faults.push(suspended);
                        continue;
                    }
                };
                for pair in self.storage.scan(Space::Records, part) {
                    let (key, _) = pair?;
                    if !org.gate.is_current(&keys) {
                        let version = name::version(&key);
                        if version > Some(keys.active) {
                            // It became active meanwhile, and is walked next.
                            break;
                        }
                        let now = org.gate.look();
                        if let Some(suspended) = version.and_then(|version| now.withheld(version)) {
                            faults.push(suspended);
                            break;
                        }
                    }
                    match keys.name(org, &key) {
                        Ok(name) => names.push(name.into_owned()),
                        Err(error) => faults.push(error),
                    }
                }
            }
            walked = Some(keys.active);
            if org.gate.is_current(&keys) {
                break;
            }
        }
        names.retain(|name| name.starts_with(within) && range.contains(name));
        names.sort_unstable();
        names.dedup();
        Ok(faults.into_iter().map(Err).chain(names.into_iter().map(Ok)).collect())
    }

    /// Refuses what replaces or deletes a record under a suspended key, whichever it is. The caller
    /// is inside the gate: no record comes under a suspended key meanwhile, and none leaves it.
    pub(crate) fn check_not_withheld(
        &self,
        org: &OrgState,
        keys: &OrgKeys,
        name: &[u8],
    ) -> Result<()> {
        keys.check_sealing()?;
        // For blinded names the places say so.
        if !keys.any_suspended || org.is_blinded() {
            return Ok(());
        }
        let stored = self.find(org, keys, name)?;
        let header = stored.and_then(|stored| keys.header(&stored).ok());
        header.and_then(|header| keys.withheld(header.version)).map_or(Ok(()), Err)
    }

    /// Whether there is a record of this name.
    pub(crate) fn contains(&self, org: &OrgState, name: &[u8]) -> Result<bool> {
        org.read(|keys| self.find(org, keys, name)).map(|found| found.is_some())
    }

    /// Puts an envelope to the newest place, or nothing, and takes away what lies at others. No
    /// places for a clear name.
    pub(super) fn replace(
        &self,
        org: &OrgState,
        name: &[u8],
        places: Option<Places>,
        envelope: Option<Vec<u8>>,
    ) -> Result<()> {
        let Some(places) = places else {
            return org.with_key(name, |key| self.storage.put(Space::Records, key, envelope));
        };
        if places.older.is_empty() {
            return self.storage.put(Space::Records, &places.newest, envelope);
        }
        let _turn = org.turn([name]);
        self.replace_all(vec![(places, envelope)])
    }

    /// Likewise for many records in one step, which have one place each, or whose turn it is.
    pub(crate) fn replace_all(&self, records: Vec<(Places, Option<Vec<u8>>)>) -> Result<()> {
        let mut writes = Vec::with_capacity(records.len());
        for (places, value) in records {
            writes.push(Write { key: places.newest, value });
            for key in places.older {
                if self.storage.get(Space::Records, &key)?.is_some() {
                    writes.push(Write { key, value: None });
                }
            }
        }
        self.storage.apply(Space::Records, writes)
    }

    /// Replaces a record by its envelope under the active version, at the place of that version,
    /// if the record is still exactly what was read.
    pub(crate) fn move_record(
        &self,
        org: &OrgState,
        keys: &Entered<'_, OrgKeys>,
        (name, key): (&[u8], &Key),
        old: &Stored,
        envelope: Vec<u8>,
    ) -> Result<Moved> {
        if keys.is_newest_place(org, key) {
            let swapped =
                self.storage.compare_and_swap(Space::Records, key, Some(old), Some(envelope))?;
            return Ok(if swapped { Moved::Yes } else { Moved::Lost });
        }
        let places = org.places(keys, name)?.all()?;
        let _turn = org.turn([name]);
        if self.storage.get(Space::Records, key)?.as_ref() != Some(old) {
            return Ok(Moved::Lost);
        }
        let remove = Write { key: key.to_vec(), value: None };
        let newer = std::iter::once(&places.newest)
            .chain(places.older.iter().take_while(|place| place.as_slice() != &**key));
        for place in newer {
            if self.storage.get(Space::Records, place)?.is_some() {
                self.storage.apply(Space::Records, vec![remove])?;
                return Ok(Moved::Superseded);
            }
        }
        let put = Write { key: places.newest, value: Some(envelope) };
        self.storage.apply(Space::Records, vec![put, remove])?;
        failpoint::reach("names.moved", &org.name);
        Ok(Moved::Yes)
    }
}

/// The key version of a record's place, where names are blinded.
pub(crate) fn place_version(key: &[u8]) -> Option<KeyVersion> {
    name::version(key)
}

/// Where in an org's range the places of this version and newer ones begin, as the start of
/// what is there and the end of what is before.
pub(crate) fn split_at_places_of(
    org: OrgId,
    version: KeyVersion,
) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let start = name::start(org, version).to_vec();
    (Bound::Included(start.clone()), Bound::Excluded(start))
}
