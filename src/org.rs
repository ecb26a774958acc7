//! The agent's face: records of one org. Never sees a key.

mod batch;
mod parallel;
mod scan;

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

pub use batch::Batch;
pub use parallel::ParallelScan;
use scan::Selection;
pub use scan::{Names, Record, Scan};

use crate::engine::{Engine, OrgState, Watch, check_value};
use crate::envelope::Value;
use crate::error::Result;
use crate::id::OrgId;
use crate::storage::{Range, Space, prefix_range};

/// The records of one org. Cheap to clone, and used from many threads at once.
///
/// Names are 1 to 4,096 bytes and are stored in clear, unless the org was created with
/// [`NamePolicy::Blinded`](crate::NamePolicy); values are up to 64 MiB (67,108,864 bytes) and are
/// sealed. A handle holds its own org's prefix and keys only.
///
/// Writes are *buffered*: they are seen at once by every thread and are on disk within half a
/// second (`Options::sync_interval`). [`durable`](Self::durable) gives a handle whose writes
/// are on disk, synced, before they return.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
/// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
/// let acme = store.create_org("acme", OrgPolicy::platform_only())?;
/// acme.put("clusters/prod/token", "s3cret")?;
/// assert_eq!(acme.get("clusters/prod/token")?.as_deref(), Some(&b"s3cret"[..]));
/// acme.durable().delete("clusters/prod/token")?;
/// assert!(!acme.contains("clusters/prod/token")?);
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone)]
pub struct Org {
    pub(crate) engine: Arc<Engine>,
    pub(crate) state: Arc<OrgState>,
    durable: bool,
}

/// What [`Org::compare_and_swap`] did.
#[derive(Debug)]
#[must_use = "the swap may not have happened"]
pub enum Swap {
    /// The record had the expected value, and has the new one.
    Swapped,
    /// The record has another value, and still has it.
    Conflict {
        /// That value; `None` if there is no such record.
        current: Option<Value>,
    },
}

impl Swap {
    /// Whether it happened.
    #[must_use]
    pub fn is_swapped(&self) -> bool {
        matches!(self, Self::Swapped)
    }
}

impl Org {
    pub(crate) fn new(engine: Arc<Engine>, state: Arc<OrgState>) -> Self {
        Self { engine, state, durable: false }
    }

    /// The org's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The org's id.
    #[must_use]
    pub fn id(&self) -> OrgId {
        self.state.id
    }

    /// The same org, with writes that return once they would survive a power cut. Threads that
    /// wait at the same time share one sync.
    #[must_use]
    pub fn durable(&self) -> Self {
        Self { durable: true, ..self.clone() }
    }

    /// Seals `value` under the org's active key and stores it.
    ///
    /// # Errors
    /// [`Error::NameLength`](crate::Error::NameLength), for blinded names also
    /// [`Error::NameDepth`](crate::Error::NameDepth);
    /// [`Error::ValueTooLarge`](crate::Error::ValueTooLarge),
    /// [`Error::KeySuspended`](crate::Error::KeySuspended),
    /// [`Error::OrgErased`](crate::Error::OrgErased), [`Error::Closed`](crate::Error::Closed),
    /// [`Error::RandomUnavailable`](crate::Error::RandomUnavailable); disk errors of the machine.
    pub fn put(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let _timed = self.engine.latency.start();
        let (name, value) = (self.check_write(name.as_ref())?, value.as_ref());
        check_value(value)?;
        self.engine.write(&self.state, name, Some(value))?;
        self.sync_if_durable()
    }

    /// Opens the value of `name`.
    ///
    /// # Errors
    /// [`Error::RecordDamaged`](crate::Error::RecordDamaged),
    /// [`Error::KeySuspended`](crate::Error::KeySuspended),
    /// [`Error::KeyRetired`](crate::Error::KeyRetired),
    /// [`Error::NameLength`](crate::Error::NameLength), for blinded names also
    /// [`Error::NameDepth`](crate::Error::NameDepth);
    /// [`Error::OrgErased`](crate::Error::OrgErased), [`Error::Closed`](crate::Error::Closed);
    /// disk errors of the machine.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let _timed = self.engine.latency.start();
        self.engine.read(&self.state, self.check(name.as_ref())?)
    }

    /// Whether there is a record of this name. Opens nothing.
    ///
    /// # Errors
    /// [`Error::NameLength`](crate::Error::NameLength), for blinded names also
    /// [`Error::NameDepth`](crate::Error::NameDepth) and, where it may lie under a key that is
    /// suspended, [`Error::KeySuspended`](crate::Error::KeySuspended);
    /// [`Error::OrgErased`](crate::Error::OrgErased), [`Error::Closed`](crate::Error::Closed);
    /// disk errors of the machine.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> Result<bool> {
        self.engine.contains(&self.state, self.check(name.as_ref())?)
    }

    /// Deletes `name`, whether it was there or not, readable or not.
    ///
    /// # Errors
    /// [`Error::NameLength`](crate::Error::NameLength), for blinded names also
    /// [`Error::NameDepth`](crate::Error::NameDepth);
    /// [`Error::KeySuspended`](crate::Error::KeySuspended) while the key that new values are
    /// sealed under is suspended, for blinded names while any is;
    /// [`Error::OrgErased`](crate::Error::OrgErased), [`Error::Closed`](crate::Error::Closed);
    /// disk errors of the machine.
    pub fn delete(&self, name: impl AsRef<[u8]>) -> Result<()> {
        let _timed = self.engine.latency.start();
        self.engine.write(&self.state, self.check_write(name.as_ref())?, None)?;
        self.sync_if_durable()
    }

    /// Stores `new` (or deletes, for `None`) if the value is exactly `expected` (`None`: if
    /// there is no such record). A rotation that re-encrypts the record meanwhile does not
    /// count as a change.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// # let acme = store.create_org("acme", OrgPolicy::platform_only())?;
    /// assert!(acme.compare_and_swap("lock", None, Some(b"me"))?.is_swapped());
    /// assert!(!acme.compare_and_swap("lock", None, Some(b"you"))?.is_swapped());
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`get`](Self::get) and [`put`](Self::put).
    pub fn compare_and_swap(
        &self,
        name: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swap> {
        let _timed = self.engine.latency.start();
        let name = self.check_write(name.as_ref())?;
        check_value(new.unwrap_or_default())?;
        loop {
            let keys = self.state.gate.enter();
            keys.check_sealing()?;
            let places = self.state.places(&keys, name)?.all()?;
            let turn = if places.older.is_empty() { None } else { self.state.turn([name]) };
            let stored = self.engine.find_at(&self.state, &places)?;
            let current = stored.as_ref().map(|stored| keys.open(name, stored)).transpose()?;
            let as_expected = match (&current, expected) {
                (Some(current), Some(expected)) => *current == *expected,
                (None, None) => true,
                _ => false,
            };
            if !as_expected {
                return Ok(Swap::Conflict { current });
            }
            let envelope = new.map(|new| self.engine.seal(&keys, name, new)).transpose()?;
            let swapped = if turn.is_some() {
                self.engine.replace_all(vec![(places, envelope)])?;
                true
            } else {
                let (key, old) = (&places.newest, stored.as_ref());
                self.engine.storage.compare_and_swap(Space::Records, key, old, envelope)?
            };
            if swapped {
                self.state.watchers.changed(name);
                drop((turn, keys));
                self.engine.written();
                self.sync_if_durable()?;
                return Ok(Swap::Swapped);
            }
            // Lost to somebody, perhaps only to a rewrite of the same value: looks again.
        }
    }

    /// The records whose names start with `prefix`, lazily, in name order or backwards
    /// (`.rev()`). Not a snapshot: a record that is written ahead of the scan is seen.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// # let acme = store.create_org("acme", OrgPolicy::platform_only())?;
    /// acme.put("clusters/a", "1")?;
    /// acme.put("clusters/b", "2")?;
    /// for record in acme.scan("clusters/").rev() {
    ///     let record = record?;
    ///     println!("{} has {} bytes", String::from_utf8_lossy(&record.name), record.value.len());
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Scan {
        let within = prefix.as_ref().to_vec();
        Scan::new(self, Selection { range: prefix_range(&within), within })
    }

    /// The records whose names lie in `range`, as [`scan`](Self::scan) gives them.
    #[must_use]
    pub fn range<N: AsRef<[u8]>>(&self, range: impl RangeBounds<N>) -> Scan {
        let bound = |bound: Bound<&N>| bound.map(|name| name.as_ref().to_vec());
        let range = (bound(range.start_bound()), bound(range.end_bound()));
        Scan::new(self, Selection { within: common_start(&range), range })
    }

    /// How many records the org has, by a walk over all its names.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::OrgErased`](crate::Error::OrgErased);
    /// where names are blinded
    /// [`Error::RecordDamaged`](crate::Error::RecordDamaged),
    /// [`Error::KeyRetired`](crate::Error::KeyRetired) and
    /// [`Error::KeySuspended`](crate::Error::KeySuspended) for one that does not open; disk
    /// errors of the machine.
    pub fn count(&self) -> Result<u64> {
        self.scan("").names().try_fold(0, |count, name| name.map(|_| count + 1))
    }

    /// Several writes that happen together or not at all, also across a crash.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// The changes under `prefix`, from now on.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::OrgErased`](crate::Error::OrgErased).
    pub fn watch(&self, prefix: impl AsRef<[u8]>) -> Result<Watch> {
        self.engine.check_open()?;
        self.state.check_exists()?;
        let (engine, state) = (Arc::clone(&self.engine), Arc::clone(&self.state));
        let watch = Watch::new(engine, state, prefix.as_ref());
        // Who closes the store or erases the org may have passed before the watch was there.
        self.engine.check_open()?;
        self.state.check_exists()?;
        Ok(watch)
    }

    fn check<'n>(&self, name: &'n [u8]) -> Result<&'n [u8]> {
        self.engine.check_open()?;
        self.state.check_exists()?;
        self.state.check_name(name)?;
        Ok(name)
    }

    fn check_write<'n>(&self, name: &'n [u8]) -> Result<&'n [u8]> {
        self.engine.check_writable()?;
        self.state.check_exists()?;
        self.state.check_name(name)?;
        Ok(name)
    }

    fn sync_if_durable(&self) -> Result<()> {
        if self.durable { self.engine.sync() } else { Ok(()) }
    }
}

/// What everything between the two ends starts with.
fn common_start(range: &Range) -> Vec<u8> {
    use Bound::{Excluded, Included};
    let (Included(from) | Excluded(from), Included(to) | Excluded(to)) = range else {
        return Vec::new();
    };
    let common = from.iter().zip(to).take_while(|(a, b)| a == b);
    common.map(|(byte, _)| *byte).collect()
}

impl fmt::Debug for Org {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Org")
            .field("name", &self.state.name)
            .field("id", &self.state.id)
            .field("durable", &self.durable)
            .finish()
    }
}
