//! Looking at a database that was just opened, and going on from what was found.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::super::super::{Group, Space, prefix_range};
use super::super::database::{Database, RawRange};
use super::super::keys::unescape;
use super::{
    Digest, Left, POSITION_KEY, SUMS_LABEL, SUMS_PREFIX, Seal, deletions, group_of, groups, is_own,
    number, prints,
};
use crate::error::Result;
use crate::sealed;

/// What a database is found with.
pub(in super::super) struct Found {
    /// Whether it is what it was.
    pub(in super::super) is_whole: bool,
    /// The groups that are not, where that can be told.
    pub(in super::super) broken: Vec<Group>,
    /// What each group comes to now, and what it came to when it was sealed.
    sums: BTreeMap<Group, (u64, u64)>,
    total: u64,
    epoch: u64,
    /// What is written under keys of the digest's own and is none of ours.
    forged: Vec<Vec<u8>>,
    /// Buckets that a crash has left ahead of the position.
    ahead: Vec<usize>,
}

/// The sums of groups that were sealed with a position.
#[derive(Default)]
struct Sealed {
    sums: BTreeMap<Group, u64>,
    forged: Vec<Vec<u8>>,
    ahead: Vec<usize>,
}

fn under(prefix: &[u8]) -> RawRange {
    let (from, to) = prefix_range(prefix);
    (from.map(sled::IVec::from), to.map(sled::IVec::from))
}

impl Digest {
    /// Whether there was never a position: the database was made, and not sealed before a crash.
    fn is_new(&self, database: &Database) -> Result<bool> {
        Ok(database.get_raw(Space::System, POSITION_KEY)?.is_none())
    }

    /// The sums as of a position of this epoch. A crash may leave buckets of a later one, which
    /// hold the sums of the position before as well.
    fn sealed_sums(&self, database: &Database, seal: &Seal) -> Result<Sealed> {
        let mut found = Sealed::default();
        let mut pairs = database.range(Space::System, under(SUMS_PREFIX))?;
        while let Some((key, stored)) = database.step(|| pairs.next())? {
            let read = || {
                let bucket = match *unescape(&key)?.strip_prefix(SUMS_PREFIX)? {
                    [bucket] => usize::from(bucket),
                    _ => return None,
                };
                let ad = [SUMS_LABEL, &key].concat();
                let bytes = sealed::open_bytes(self.seals(), &ad, &stored)?;
                let (epoch, entries) = bytes.split_at_checked(8)?;
                let is_ahead = number(epoch, 0) > seal.epoch;
                Some((bucket, groups::entries(bucket, entries, !is_ahead)?, is_ahead))
            };
            match read() {
                Some((bucket, entries, is_ahead)) => {
                    found.sums.extend(entries);
                    found.ahead.extend(is_ahead.then_some(bucket));
                }
                None => found.forged.push(key.to_vec()),
            }
        }
        found.sums.insert(Group::System, seal.system);
        Ok(found)
    }

    /// Looks at a database that was just opened, without changing it. Reads all of it if it was
    /// not closed, if its sums do not fit its position, or if `thorough`.
    pub(in super::super) fn find(&self, database: &Database, thorough: bool) -> Result<Found> {
        let unsealed = self.unseal(database)?;
        let is_sealed = unsealed.is_some() || self.is_new(database)?;
        let nothing = Seal { epoch: 0, left: Left::Open, total: 0, system: 0 };
        let (position, seal) = unsealed.unwrap_or((Vec::new(), nothing));
        self.last.lock().unwrap_or_else(PoisonError::into_inner).position = position;
        let Sealed { sums: sealed, mut forged, ahead } = self.sealed_sums(database, &seal)?;
        let together = sealed.values().fold(0, |all: u64, sum| all.wrapping_add(*sum));
        let fits = is_sealed && forged.is_empty() && together == seal.total;
        if seal.left == Left::Closed && fits && !thorough {
            return Ok(Found {
                is_whole: true,
                broken: Vec::new(),
                sums: sealed.into_iter().map(|(group, sum)| (group, (sum, sum))).collect(),
                total: seal.total,
                epoch: seal.epoch,
                forged,
                ahead,
            });
        }
        let mut newest = seal.epoch;
        // Of each group, what it comes to now, and what it came to then.
        let mut sums: HashMap<Group, (u64, u64)> = HashMap::new();
        let mut broken = BTreeSet::new();
        // Of the last deletion of each stripe: it was made if the value is gone.
        let mut amounts: HashMap<(Group, u64), u64> = HashMap::new();
        let mut notes = database.range(Space::System, under(deletions::prefix()))?;
        while let Some((key, stored)) = database.step(|| notes.next())? {
            let Some(note) = self.read_note(&key, &stored) else {
                broken.extend(deletions::group_of(&key));
                forged.push(key.to_vec());
                continue;
            };
            if note.epoch > seal.epoch {
                newest = newest.max(note.epoch);
                let then = &mut sums.entry(note.group).or_default().1;
                *then = then.wrapping_add(note.before);
                let amount = amounts.entry((note.group, note.identity)).or_default();
                *amount = amount.wrapping_add(note.amount);
            }
        }
        for space in [Space::Records, Space::System] {
            let mut pairs = database.range(space, (Bound::Unbounded, Bound::Unbounded))?;
            while let Some((key, stored)) = database.step(|| pairs.next())? {
                if !is_own(space, &key) {
                    let group = group_of(space, &key);
                    let place = self.place(space, &key);
                    let (print, counted, written) = self.prints().read(place, seal.epoch, &stored);
                    if !amounts.is_empty() {
                        amounts.remove(&(group, prints::identity(print, &stored)));
                    }
                    let (now, then) = sums.entry(group).or_default();
                    *now = now.wrapping_add(print);
                    *then = then.wrapping_add(counted);
                    newest = newest.max(written);
                }
            }
        }
        for ((group, _), amount) in amounts {
            let then = &mut sums.entry(group).or_default().1;
            *then = then.wrapping_add(amount);
        }
        let groups: BTreeSet<Group> = sealed.keys().chain(sums.keys()).copied().collect();
        let of = |group: &Group| {
            let (now, then) = sums.get(group).copied().unwrap_or_default();
            (now, then, sealed.get(group).copied().unwrap_or_default())
        };
        broken.extend(groups.iter().filter(|group| {
            let (_, then, sealed) = of(group);
            then != sealed
        }));
        Ok(Found {
            is_whole: fits && forged.is_empty() && broken.is_empty(),
            broken: broken.into_iter().collect(),
            sums: groups.iter().map(|group| (*group, (of(group).0, of(group).2))).collect(),
            total: together,
            epoch: newest,
            forged,
            ahead,
        })
    }

    /// Goes on from what was found. Must come before the first write: what that is told from
    /// what a crash left by its epoch.
    pub(in super::super) fn begin(&self, database: &Database, found: &Found) -> Result<()> {
        for (group, (now, sealed)) in &found.sums {
            self.groups.set(*group, *now, *sealed);
        }
        found.ahead.iter().for_each(|bucket| self.groups.write_bucket(*bucket));
        self.epoch.store(found.epoch.saturating_add(1), Ordering::Release);
        let position = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.total = found.total;
            last.position.clone()
        };
        for key in &found.forged {
            database.remove_raw(Space::System, key)?;
        }
        self.seal(database, Some(position), &mut Vec::new())
    }

    /// Begins with what a copy is found to hold, at the position of the digest that it is a copy under.
    /// Nothing was written under this one yet, and nothing is written meanwhile.
    pub(in super::super) fn begin_copy(
        &self,
        database: &Database,
        before: &Self,
        sums: &HashMap<Group, u64>,
        position: Option<Vec<u8>>,
    ) -> Result<()> {
        for (group, sum) in sums {
            self.groups.set(*group, *sum, 0);
        }
        self.epoch.store(before.epoch(), Ordering::Release);
        let last = || before.last.lock().unwrap_or_else(PoisonError::into_inner).position.clone();
        self.seal(database, Some(position.unwrap_or_else(last)), &mut Vec::new())
    }
}
