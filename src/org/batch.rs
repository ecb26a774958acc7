//! Several writes as one.

use std::fmt;

use zeroize::Zeroize;

use super::Org;
use crate::engine::check_value;
use crate::error::Result;

/// Writes that [`commit`](Self::commit) makes together or not at all. Dropping it makes none.
///
/// The whole batch is sealed under one key version and held in memory. Of two writes of one
/// name the later counts.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
/// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
/// # let acme = store.create_org("acme", OrgPolicy::platform_only())?;
/// acme.batch().put("user", "admin").put("password", "s3cret").delete("old").commit()?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[must_use = "nothing is written before `commit`"]
pub struct Batch {
    org: Org,
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    pub(super) fn new(org: Org) -> Self {
        Self { org, writes: Vec::new() }
    }

    /// Adds a write. Its name and value are checked by [`commit`](Self::commit).
    pub fn put(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.writes.push((name.as_ref().to_vec(), Some(value.as_ref().to_vec())));
        self
    }

    /// Adds a deletion.
    pub fn delete(mut self, name: impl AsRef<[u8]>) -> Self {
        self.writes.push((name.as_ref().to_vec(), None));
        self
    }

    /// Makes all writes at once, durably if the handle was [`durable`](Org::durable). A reader
    /// that reads several names may see some of them before the others.
    ///
    /// # Errors
    /// Those of [`Org::put`]; nothing is written then.
    pub fn commit(self) -> Result<()> {
        let Org { engine, state, .. } = &self.org;
        let _timed = engine.latency.start();
        engine.check_writable()?;
        state.check_exists()?;
        for (name, value) in &self.writes {
            state.check_name(name)?;
            check_value(value.as_deref().unwrap_or_default())?;
        }
        if self.writes.is_empty() {
            return Ok(());
        }
        let keys = state.gate.enter();
        for (name, _) in &self.writes {
            engine.check_not_withheld(state, &keys, name)?;
        }
        let sealed = self.writes.iter().map(|(name, value)| {
            let value =
                value.as_deref().map(|value| engine.seal(&keys, name, value)).transpose()?;
            Ok((state.places(&keys, name)?.all()?, value))
        });
        let sealed = sealed.collect::<Result<Vec<_>>>()?;
        let names = self.writes.iter().map(|(name, _)| &name[..]);
        let several = sealed.iter().any(|(places, _)| !places.older.is_empty());
        let turn = if several { state.turn(names) } else { None };
        engine.replace_all(sealed)?;
        for (name, _) in &self.writes {
            state.watchers.changed(name);
        }
        drop((turn, keys));
        engine.written();
        self.org.sync_if_durable()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for (_, value) in &mut self.writes {
            value.zeroize();
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} writes to {})", self.writes.len(), self.org.name())
    }
}
