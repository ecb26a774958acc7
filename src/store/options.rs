//! How a store is opened.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Store, Syncer};
use crate::engine::{Engine, EngineOptions, Expected};
use crate::error::{Error, Result};
use crate::id::{OrgId, StorePosition};
use crate::keyring::root::RootKey;
use crate::rotation::{NICEST, Rotations, Throttle};
use crate::storage::SledOptions;

/// How a store is opened.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let data = dir.path().join("data");
/// use byokv::{KeyMaterial, Options, RootKey};
///
/// let root = RootKey::from_material(KeyMaterial::generate()?);
/// let store = Options::new().cache_bytes(256 << 20).rotation_workers(2).open(data, root)?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    cache_bytes: u64,
    segment_bytes: usize,
    sync_interval: Duration,
    rotation_workers: usize,
    rotation_niceness: u8,
    throttle: Option<Throttle>,
    create: bool,
    accept_rollback: bool,
    expected: Expected,
    fips_mode: bool,
}

impl Options {
    /// The defaults that each method names.
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            cache_bytes: 128 << 20,
            segment_bytes: 512 << 10,
            sync_interval: Duration::from_millis(500),
            rotation_workers: (cores / 2).clamp(1, 4),
            rotation_niceness: 10,
            throttle: None,
            create: true,
            accept_rollback: false,
            expected: Expected::default(),
            fips_mode: false,
        }
    }

    /// sled's page cache, bytes. Default 128 MiB, at least 1 MiB. What is read often fits in if it
    /// is two and a half to three times as much as that: sled counts a page with its updates since it
    /// was last written whole, and rounds that up to a power of two. Resident memory is about one and a
    /// half times the cache, and beside it sled's table of pages, which stays in memory whole: with
    /// 10 million records of 128 bytes 60 to 180 bytes for each.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Bytes of a segment of sled's log, for a database that is made: a store has the size that
    /// it was made with until [`Store::erase_residue`] makes it a fresh database. Default
    /// 512 KiB; a power of two from 64 KiB to 8 MiB. A page (up to 16 records) that is larger
    /// than a quarter of a segment gets a file of its own.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: usize) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Longest time that a buffered write waits to be made durable, not counting the sync
    /// itself. Default 500 ms, 10 ms to 1 hour.
    #[must_use]
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// Threads that re-encrypt during a rotation. Default: half as many as cores, at least 1 and at
    /// most 4, so that others find a core whatever a rotation does; 1 to 64.
    #[must_use]
    pub fn rotation_workers(mut self, workers: usize) -> Self {
        self.rotation_workers = workers;
        self
    }

    /// How far the threads that rewrite records stand back from all others that want the processor: what is
    /// added to the nice value ([`setpriority(2)`]) of the thread that opens the store, which ends
    /// at 19. Default 10; 0 to 19. With 10, a rotation gets about a tenth of a core for which a
    /// thread of yours competes, and all of an idle one. 0 if the rotation is what you wait for.
    /// The value is Linux's only. Everywhere the threads also yield the processor after each eight
    /// records, unless it is 0.
    ///
    /// [`setpriority(2)`]: https://man7.org/linux/man-pages/man2/setpriority.2.html
    #[must_use]
    pub fn rotation_niceness(mut self, niceness: u8) -> Self {
        self.rotation_niceness = niceness;
        self
    }

    /// What rotations may use from this open on, until [`KeyAdmin::set_throttle`] says otherwise.
    /// It is not stored. Default what that last set, else no limit.
    ///
    /// [`KeyAdmin::set_throttle`]: crate::KeyAdmin::set_throttle
    #[must_use]
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Whether to make a store where there is none. Default yes; if not, [`open`](Self::open)
    /// gives [`Error::FileDamaged`] there and creates nothing.
    ///
    /// What works with a store that is there, as an agent does, should not make one: where its
    /// directory is missing because something else went wrong, it would begin anew with nothing.
    /// Make the store once, by `byokv init` or a call of its own, and open it from then on with
    /// `create(false)`, or with [`expect_store`](Self::expect_store), which creates nothing either.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens this store and no other: two stores under one root key look alike until something is
    /// missing. Where there is none, none is made. The id is [`Store::id`], which `byokv init` and
    /// `byokv status` print.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let data = dir.path().join("data");
    /// # let root = || byokv::KeyMaterial::from_base64("+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=").map(byokv::RootKey::from_material);
    /// use byokv::{Error, Options, Store};
    ///
    /// let id = Store::open(&data, root()?)?.id();
    /// Options::new().expect_store(id).open(&data, root()?)?.close()?;
    ///
    /// let other = Store::open(dir.path().join("other"), root()?)?.id();
    /// let refused = Options::new().expect_store(other).open(&data, root()?);
    /// assert!(matches!(refused, Err(Error::OtherStore { .. })));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn expect_store(mut self, store: OrgId) -> Self {
        self.expected.store = Some(store);
        self
    }

    /// Refuses an older copy of the whole directory, and another store: one that has not reached
    /// what [`Store::position`] gave at some time. A store notices by itself when parts of it go
    /// back in time, and never when all of it does; so keep its position elsewhere now and then.
    ///
    /// What was written after the position was asked for may be missing all the same, and so may
    /// what was not durable then. It holds also with
    /// [`danger_accept_rollback`](Self::danger_accept_rollback). An older copy that is used on
    /// passes the position at some time: ask for it at once. Where there is no store, none is made.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let data = dir.path().join("data");
    /// # let root = || byokv::KeyMaterial::from_base64("+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=").map(byokv::RootKey::from_material);
    /// use byokv::{Options, OrgPolicy, Store};
    ///
    /// let store = Store::open(&data, root()?)?;
    /// store.create_org("acme", OrgPolicy::byok())?.durable().put("token", "s3cret")?;
    /// let position = store.position();
    /// store.close()?;
    /// Options::new().minimum_position(position).open(&data, root()?)?.close()?;
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn minimum_position(mut self, minimum: StorePosition) -> Self {
        self.expected.minimum = Some(minimum);
        self
    }

    /// Opens a store although a part of it is older than the rest proves it must be, and notes
    /// that in the audit log. What the missing syncs had written is lost; records whose key the
    /// older keyring does not know stay unreadable. Keep a copy of the directory first. Where
    /// records are missing or went back, the database is copied to a fresh one and its old files
    /// are overwritten, which takes as long, and as much free space, as [`Store::erase_residue`],
    /// and fails as that does. Default no.
    #[must_use]
    pub fn danger_accept_rollback(mut self, accept: bool) -> Self {
        self.accept_rollback = accept;
        self
    }

    /// Seals and opens values by aws-lc's FIPS module only, and only under the suite that FIPS 140-3
    /// approves. The store does not open if this build does not have the module, or if an org has
    /// another suite. The mode holds for this opening; it is not stored. Default no.
    ///
    /// The module is part of a build with the features `fips` of byokv and `fips` of aws-lc-rs.
    /// `SECURITY.md` says what this certifies and what not.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let data = dir.path().join("data");
    /// # use byokv::{Error, KeyMaterial, Options, RootKey};
    /// let root = RootKey::from_material(KeyMaterial::generate()?);
    /// match Options::new().fips_mode(true).open(data, root) {
    ///     Ok(store) => println!("every value is sealed by the module: {}", store.id()),
    ///     Err(Error::FipsModuleMissing) => println!("this build does not have the module"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn fips_mode(mut self, fips_mode: bool) -> Self {
        self.fips_mode = fips_mode;
        self
    }

    /// Opens the store in `dir`, or makes it (mode 0700) with `root` as its root key. What was
    /// under way when it was last open goes on by itself.
    ///
    /// The directory is its owner's alone. One that others may only read is made so, with the files
    /// in it; so is an empty one of ours in which the store is to be made. A store that others may
    /// write is refused, because they may have changed it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]; [`Error::RootKeyWrong`], [`Error::StoreLocked`] (nothing was
    /// written but an empty `LOCK`, where there was none); [`Error::RolledBack`];
    /// [`Error::NotPrivate`]; [`Error::OtherStore`], [`Error::BeforeMinimum`];
    /// [`Error::FileDamaged`], also where other files lie in `dir`; [`Error::StorageDamaged`],
    /// [`Error::RootKeyUnavailable`], [`Error::RandomUnavailable`]; [`Error::SuiteNotBuilt`]; in FIPS mode
    /// [`Error::FipsModuleMissing`], [`Error::SuiteNotApproved`]; disk errors of the machine.
    pub fn open(self, dir: impl AsRef<Path>, root: RootKey) -> Result<Store> {
        self.check()?;
        let options = EngineOptions {
            sled: SledOptions {
                cache_bytes: self.cache_bytes,
                segment_bytes: self.segment_bytes,
                flush_interval: self.sync_interval,
            },
            create: self.create && !self.expected.is_some(),
            accept_rollback: self.accept_rollback,
            expected: self.expected,
            fips_mode: self.fips_mode,
        };
        let engine = Engine::open(dir.as_ref(), root, &options)?;
        let (rotations, worker) = Rotations::start(
            Arc::clone(&engine),
            self.rotation_workers,
            self.rotation_niceness,
            self.throttle,
        )?;
        // Who opens it for a moment only, as the tool does, has what is due begun too.
        if let Err(error) = rotations.rotate_due() {
            tracing::warn!(%error, "what is due could not be rotated, trying again");
        }
        let syncer = Syncer::start(Arc::clone(&rotations), self.sync_interval)?;
        Ok(Store { engine, rotations, worker, syncer })
    }

    fn check(&self) -> Result<()> {
        let invalid = |option, why| Err(Error::InvalidOption { option, why });
        if self.cache_bytes < 1 << 20 {
            return invalid("cache_bytes", "at least 1 MiB");
        }
        // sled counts the bytes of a segment in 24 bits, and one of 16 MiB may be full to the last.
        let segments = (64 << 10)..=(8 << 20);
        if !self.segment_bytes.is_power_of_two() || !segments.contains(&self.segment_bytes) {
            return invalid("segment_bytes", "a power of two, 64 KiB to 8 MiB");
        }
        let interval = Duration::from_millis(10)..=Duration::from_secs(3600);
        if !interval.contains(&self.sync_interval) {
            return invalid("sync_interval", "10 ms to 1 hour");
        }
        if !(1..=64).contains(&self.rotation_workers) {
            return invalid("rotation_workers", "1 to 64");
        }
        if self.rotation_niceness > NICEST {
            return invalid("rotation_niceness", "0 to 19");
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}
