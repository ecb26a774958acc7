//! Walking over records, both ways.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::vec;

use super::Org;
use super::parallel::ParallelScan;
use crate::engine::{Engine, OrgState};
use crate::envelope::Value;
use crate::error::Result;
use crate::storage::{Pairs, Range, Space, Stored, prefix_range};

/// A name and its opened value.
#[derive(Clone, Debug)]
pub struct Record {
    /// The record's name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Value,
}

/// Records in name order, opened one by one as they are taken. A record that does not open is
/// an error in its place; the scan goes on behind it.
///
/// Where names are blinded ([`NamePolicy`](crate::NamePolicy)), the first step opens and sorts
/// the names below the last whole segment of the prefix, in memory; a name that does not open is
/// an error before all others.
pub struct Scan {
    /// Before the engine, which lets go of the directory's lock: this may have the database last.
    pub(super) source: Source,
    pub(super) engine: Arc<Engine>,
    pub(super) org: Arc<OrgState>,
}

/// Names in order; no value is opened.
pub struct Names {
    /// First, as in [`Scan`].
    source: Source,
    engine: Arc<Engine>,
    org: Arc<OrgState>,
}

/// Which names a scan is over.
pub(super) struct Selection {
    /// What all of them start with.
    pub(super) within: Vec<u8>,
    pub(super) range: Range,
}

pub(super) enum Source {
    Clear(Pairs),
    /// Sorted when the first is taken.
    Blinded(Result<vec::IntoIter<Result<Vec<u8>>>, Selection>),
}

/// What a source gives: clear names come with the record's bytes.
pub(super) type Found = (Vec<u8>, Option<Stored>);

impl Source {
    fn new(org: &Org, selection: Selection) -> Self {
        if org.state.is_blinded() {
            return Self::Blinded(Err(selection));
        }
        let key = |name: Vec<u8>| org.state.key(&name);
        let all = prefix_range(org.state.id.as_bytes());
        let from = match selection.range.0 {
            Bound::Unbounded => all.0,
            from => from.map(key),
        };
        let to = match selection.range.1 {
            Bound::Unbounded => all.1,
            to => to.map(key),
        };
        Self::Clear(org.engine.storage.scan(Space::Records, (from, to)))
    }

    pub(super) fn take(
        &mut self,
        engine: &Engine,
        org: &OrgState,
        end: End,
    ) -> Option<Result<Found>> {
        match self {
            Self::Clear(pairs) => {
                let pair = if end == End::Front { pairs.next() } else { pairs.next_back() };
                pair.map(|pair| {
                    let (key, stored) = pair?;
                    Ok((org.clear_name(&key)?.to_vec(), Some(stored)))
                })
            }
            Self::Blinded(Ok(names)) => {
                let name = if end == End::Front { names.next() } else { names.next_back() };
                name.map(|name| name.map(|name| (name, None)))
            }
            Self::Blinded(Err(Selection { within, range })) => {
                let sorted = engine.blinded_names(org, within, range);
                let (names, failed) = match sorted {
                    Ok(names) => (names, None),
                    Err(error) => (Vec::new(), Some(Err(error))),
                };
                *self = Self::Blinded(Ok(names.into_iter()));
                failed.or_else(|| self.take(engine, org, end))
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

impl Scan {
    pub(super) fn new(org: &Org, selection: Selection) -> Self {
        let source = Source::new(org, selection);
        Self { engine: Arc::clone(&org.engine), org: Arc::clone(&org.state), source }
    }

    /// The names only, without opening any value.
    #[must_use]
    pub fn names(self) -> Names {
        Names { engine: self.engine, org: self.org, source: self.source }
    }

    /// The same records in the same order, opened ahead by `threads` threads, 1 to 64. Worth it
    /// where the records are many, and cores are free.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// # let acme = store.create_org("acme", OrgPolicy::platform_only())?;
    /// acme.put("clusters/a", "1")?;
    /// for record in acme.scan("clusters/").parallel(4)? {
    ///     println!("{} bytes", record?.value.len());
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for other numbers of threads; the
    /// machine has no more threads.
    pub fn parallel(self, threads: usize) -> Result<ParallelScan> {
        ParallelScan::start(self, threads)
    }

    fn take(&mut self, end: End) -> Option<Result<Record>> {
        loop {
            let found = self.source.take(&self.engine, &self.org, end)?;
            if let Some(record) = open(&self.engine, &self.org, found) {
                return Some(record);
            }
        }
    }
}

/// `None` if the record was deleted since its name was found.
pub(super) fn open(
    engine: &Engine,
    org: &OrgState,
    found: Result<Found>,
) -> Option<Result<Record>> {
    let usable = engine.check_open().and(org.check_exists());
    let opened = usable.and(found).and_then(|(name, stored)| {
        let value = match &stored {
            Some(stored) => engine.open_or_reread(org, &name, stored)?,
            None => engine.read(org, &name)?,
        };
        Ok(value.map(|value| Record { name, value }))
    });
    opened.transpose()
}

impl Iterator for Scan {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take(End::Front)
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.take(End::Back)
    }
}

impl Names {
    fn take(&mut self, end: End) -> Option<Result<Vec<u8>>> {
        let found = self.source.take(&self.engine, &self.org, end)?;
        let usable = self.engine.check_open().and(self.org.check_exists());
        Some(usable.and(found).map(|(name, _)| name))
    }
}

impl Iterator for Names {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take(End::Front)
    }
}

impl DoubleEndedIterator for Names {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.take(End::Back)
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("org", &self.org.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}
