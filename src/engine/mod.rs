//! The shared state behind the handles. Every operation reads the keys once, from one
//! immutable snapshot (invariant 2).

mod backups;
mod certify;
mod change;
mod clock;
mod directory;
mod durability;
mod files;
mod import;
mod inspection;
mod latency;
mod lock;
mod nameless;
mod names;
mod opening;
mod orgs;
mod own;
mod residue;
mod restore;
mod secret;
#[cfg(feature = "backup")]
mod standstill;
mod usage;
mod vouched;
mod watch;
mod whole;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crossbeam::sync::ShardedLock;

use crate::audit::{self, AuditEntry, Head, Link, Notary};
use crate::envelope::{self, Header, Value};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::OrgId;
use crate::keyring::root::{KeyringFile, RootKey};
use crate::keyring::{Erasure, Keyring, OrgEntry};
use crate::storage::{Space, Storage, Stored};
use crate::text::printable;

#[cfg(feature = "backup")]
pub(crate) use backups::BackupMade;
pub(crate) use backups::Copies;
pub(crate) use certify::Claim;
pub(crate) use clock::Clock;
use durability::Durability;
pub use inspection::Inspection;
pub(crate) use latency::{Counts, Latency};
use lock::DirLock;
pub(crate) use names::{Moved, place_version, split_at_places_of};
pub(crate) use opening::{EngineOptions, Expected};
pub(crate) use orgs::{OrgKeys, OrgState, Slot};
pub use residue::{Residue, ResidueErased};
#[cfg(feature = "backup")]
pub(crate) use restore::{Earlier, Provenance};
pub(crate) use secret::compromised;
pub use secret::{CompromisedKey, SecretReplaced};
pub(crate) use vouched::Vouched;
pub(crate) use watch::Watchers;
pub use watch::{Change, Watch};

/// Longest name of a record, bytes.
pub const MAX_NAME_LEN: usize = 4 << 10;
/// Longest value, bytes.
pub const MAX_VALUE_LEN: usize = 64 << 20;

pub(crate) struct Engine {
    pub(crate) storage: Box<dyn Storage>,
    notary: RwLock<Notary>,
    dir: PathBuf,
    orgs: ShardedLock<HashMap<String, Arc<OrgState>>>,
    ring: Mutex<Ring>,
    /// Held while the database is replaced.
    moving: Mutex<()>,
    durability: Durability,
    pub(crate) latency: Latency,
    pub(crate) clock: Clock,
    closed: AtomicBool,
    /// Locked for this process as long as the engine lives; must be the last field, so that
    /// the database is closed before the lock is let go.
    _lock: DirLock,
}

/// The keyring in memory, always the one that the file holds.
pub(crate) struct Ring {
    pub(crate) keyring: Keyring,
    root: RootKey,
    file: KeyringFile,
}

impl Engine {
    pub(crate) fn org(&self, name: &str) -> Result<Arc<OrgState>> {
        let orgs = self.orgs.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || Error::OrgUnknown { org: name.to_owned() };
        orgs.get(name).cloned().ok_or_else(unknown)
    }

    /// Orgs whose rotation is unfinished, by name.
    pub(crate) fn rotating(&self) -> Vec<Arc<OrgState>> {
        let names: Vec<String> = self.with_keyring(|keyring| {
            let orgs = keyring.orgs.iter().filter(|entry| entry.is_rotating());
            orgs.map(|entry| entry.name.clone()).collect()
        });
        names.iter().filter_map(|name| self.org(name).ok()).collect()
    }

    /// Erased orgs of which records may be left.
    pub(crate) fn half_erased(&self) -> Vec<Arc<OrgState>> {
        self.with_keyring(|keyring| {
            let half = |entry: &&OrgEntry| entry.erasure == Some(Erasure::KeysDestroyed);
            keyring.orgs.iter().filter(half).map(|entry| Arc::new(OrgState::new(entry))).collect()
        })
    }

    /// Returns the org with this id, erased or not.
    pub(crate) fn org_of(&self, id: OrgId) -> Option<Arc<OrgState>> {
        let named = self.with_keyring(|keyring| Some(keyring.entry(id)?.name.clone()))?;
        let alive = self.org(&named).ok().filter(|org| org.id == id);
        alive.or_else(|| {
            self.with_keyring(|keyring| Some(Arc::new(OrgState::new(keyring.entry(id)?))))
        })
    }

    /// By name.
    pub(crate) fn orgs(&self) -> Vec<Arc<OrgState>> {
        let orgs = self.orgs.read().unwrap_or_else(PoisonError::into_inner);
        let mut orgs: Vec<_> = orgs.values().cloned().collect();
        orgs.sort_by(|a, b| a.name.cmp(&b.name));
        orgs
    }

    /// Looks at the keyring under its lock; keep it short.
    pub(crate) fn with_keyring<T>(&self, look: impl FnOnce(&Keyring) -> T) -> T {
        look(&self.ring.lock().unwrap_or_else(PoisonError::into_inner).keyring)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses further operations through handles, and makes what was written durable.
    pub(crate) fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        for org in self.orgs() {
            org.watchers.close();
        }
        if let Err(error) = self.note_clock_at_close(self.is_dirty()) {
            tracing::warn!(%error, "the time observed is not noted; it counts as a gap");
        }
        self.sync_if_dirty()
    }

    /// After the last write of all.
    pub(crate) fn end(&self) -> Result<()> {
        self.storage.check_writable()?;
        self.storage.end()
    }

    /// Reads and opens one record. The snapshot is taken before the bytes are read (invariant 6).
    pub(crate) fn read(&self, org: &OrgState, name: &[u8]) -> Result<Option<Value>> {
        org.read(|keys| {
            failpoint::reach("get.started", &org.name);
            let stored = self.find(org, keys, name)?;
            failpoint::reach("get.fetched", &org.name);
            stored.map(|stored| keys.open(name, &stored)).transpose()
        })
    }

    /// Opens bytes that were read earlier, without a snapshot; if they do not open, the record
    /// is read afresh.
    pub(crate) fn open_or_reread(
        &self,
        org: &OrgState,
        name: &[u8],
        stored: &Stored,
    ) -> Result<Option<Value>> {
        match org.gate.look().open(name, stored) {
            Ok(value) => Ok(Some(value)),
            Err(_) => self.read(org, name),
        }
    }

    /// The audit entry after `at`; `end` is where the keyring says that the log ends.
    pub(crate) fn read_audit_entry(&self, at: Link, end: Head) -> Result<(AuditEntry, Head)> {
        let notary = self.notary();
        let stored = self.storage.get(Space::System, &audit::entry_key(at.0 + 1))?;
        let (entry, head) = notary.read(at, stored.as_deref())?;
        if head.0 == end.0 && head.1 != end.1 {
            let why = "it is not the last entry that the keyring knows";
            return Err(Error::AuditBroken { entry: head.0, why });
        }
        Ok((entry, head))
    }

    /// Seals and writes, or deletes, one record inside the org's gate.
    pub(crate) fn write(&self, org: &OrgState, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let keys = org.gate.enter();
        self.check_not_withheld(org, &keys, name)?;
        let places = org.hidden_places(&keys, name)?;
        let envelope = value.map(|value| self.seal(&keys, name, value)).transpose()?;
        failpoint::reach("put.sealed", &org.name);
        self.replace(org, name, places, envelope)?;
        // Inside the gate: at a standstill every write that returned has told the watches.
        org.watchers.changed(name);
        drop(keys);
        self.written();
        Ok(())
    }
}

impl OrgKeys {
    /// Seals under the active version.
    pub(crate) fn seal(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        let (key, counters) = self.sealing_key()?;
        let envelope = envelope::seal(key, &self.sealing_header(), name, value)?;
        counters.sealed();
        Ok(envelope)
    }

    fn sealing_header(&self) -> Header {
        Header { suite: self.suite, org: self.org, version: self.active }
    }

    /// Opens under what the header names and seals under the active version. The inner error is
    /// one of [`open`](Self::open): the record's.
    pub(crate) fn reseal(&self, name: &[u8], stored: &[u8]) -> Result<Result<Vec<u8>>> {
        let header = self.header(stored).map_err(|fault| self.damaged(name, fault));
        let opening = header.and_then(|header| {
            let (key, counters) = self.opening(&header, name)?;
            Ok((key, counters))
        });
        let (from, counters) = match opening {
            Ok(opening) => opening,
            Err(error) => return Ok(Err(error)),
        };
        let (to, sealed) = self.sealing_key()?;
        let to = (to, &self.sealing_header());
        Ok(match envelope::reseal((from, stored), to, name)? {
            Ok(envelope) => {
                counters.opened();
                sealed.sealed();
                Ok(envelope)
            }
            Err(fault) => {
                counters.failed();
                Err(self.damaged(name, fault))
            }
        })
    }

    /// Opens under exactly the version and suite that the envelope's header names.
    pub(crate) fn open(&self, name: &[u8], stored: &[u8]) -> Result<Value> {
        let header = self.header(stored).map_err(|fault| self.damaged(name, fault))?;
        let (key, counters) = self.opening(&header, name)?;
        match envelope::open(key, name, stored) {
            Ok(value) => {
                counters.opened();
                Ok(value)
            }
            Err(fault) => {
                counters.failed();
                Err(self.damaged(name, fault))
            }
        }
    }

    /// The header, if it is one of this org.
    pub(crate) fn header(&self, stored: &[u8]) -> Result<Header, envelope::Fault> {
        let header = Header::decode(stored)?;
        if header.org == self.org { Ok(header) } else { Err(envelope::Fault::Org) }
    }

    /// Whether a rotation leaves this record as it is.
    pub(crate) fn is_current(&self, header: &Header) -> bool {
        header.version == self.active && header.suite == self.suite
    }

    pub(super) fn damaged(&self, name: &[u8], why: impl ToString) -> Error {
        Error::RecordDamaged {
            org: self.name.to_string(),
            name: printable(name),
            why: why.to_string(),
        }
    }
}

pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(Error::NameLength { len: name.len(), limit: MAX_NAME_LEN });
    }
    Ok(())
}

pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > MAX_VALUE_LEN {
        return Err(Error::ValueTooLarge { len: value.len(), limit: MAX_VALUE_LEN });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::keyring::root::RootKey;
    use crate::material::KeyMaterial;
    use crate::storage::SledOptions;

    /// Opens, or makes, under always the same root key.
    pub(crate) fn engine(dir: &Path) -> Arc<Engine> {
        let sled = SledOptions {
            cache_bytes: 1 << 24,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_secs(1),
        };
        let options = EngineOptions {
            sled,
            create: true,
            accept_rollback: false,
            fips_mode: false,
            expected: Expected::default(),
        };
        let root = RootKey::from_material(KeyMaterial::take(&mut [1; 32]));
        Engine::open(dir, root, &options).unwrap()
    }
}
