//! A backup of a store that is open, as callers ask for it.

mod making;

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use crate::backup::{BackupContents, Head, LeftOut, Sealer};
use crate::engine::{Engine, OrgState};
use crate::error::Result;
use crate::keyring::OrgEntry;
use crate::material::KeyMaterial;
use crate::store::Store;
use making::{Made, Making};

#[cfg(doc)]
use crate::error::{BackupError, Error};

type Tell<'a> = dyn FnMut(&str, u64) + 'a;

/// A backup that is to be made. From [`Store::backup`](crate::Store::backup).
#[must_use = "nothing is written before `write_to`"]
pub struct Backup<'a> {
    engine: &'a Arc<Engine>,
    key: &'a KeyMaterial,
    /// All, if it is empty.
    only: HashSet<String>,
    skip_unreadable: bool,
    on_progress: Option<Box<Tell<'a>>>,
    limits: Limits,
}

/// What ends the race with those who write.
#[derive(Clone, Copy)]
struct Limits {
    /// Times that what changed meanwhile is read again.
    rounds: usize,
    /// Names that may be left for the standstill, but in the last round.
    few: usize,
    /// Bytes of values that are held in memory then, and one value more.
    held: usize,
}

const LIMITS: Limits = Limits { rounds: 50, few: 100, held: 64 << 20 };

impl Store {
    /// A backup, sealed under `key`: of all orgs, or of one. It shows one moment between the call
    /// and its return: every write that had returned before that moment is in it, none that began
    /// later, and no batch in part. Streamed; the store works on meanwhile.
    ///
    /// A backup holds names and values, policies, and which key versions each org had, but no key
    /// of any org: who has the backup key can read all of it, whatever becomes of the orgs' keys
    /// later. Keep that key as you keep root keys, elsewhere than the backups. It must be new
    /// random bytes, and may seal many backups.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let root = || KeyMaterial::generate().map(RootKey::from_material);
    /// let store = Store::open(dir.path().join("data"), root()?)?;
    /// store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// let key = KeyMaterial::generate()?;
    /// let file = std::fs::File::create_new(dir.path().join("backup"))?;
    /// let made = store.backup(&key).write_to(&file)?;
    /// assert!(made.is_complete());
    /// file.sync_all()?;
    ///
    /// let mut file = std::fs::File::open(dir.path().join("backup"))?;
    /// let other = Store::open(dir.path().join("other"), root()?)?;
    /// let restored = other.restore(&key).read_from(&mut file)?;
    /// assert_eq!((restored.orgs[0].records, restored.orgs[0].key.get()), (1, 2));
    /// assert_eq!(other.org("acme")?.get("token")?.as_deref(), Some(&b"s3cret"[..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn backup<'a>(&'a self, key: &'a KeyMaterial) -> Backup<'a> {
        Backup::new(&self.engine, key)
    }
}

impl<'a> Backup<'a> {
    pub(super) fn new(engine: &'a Arc<Engine>, key: &'a KeyMaterial) -> Self {
        Self {
            engine,
            key,
            only: HashSet::new(),
            skip_unreadable: false,
            on_progress: None,
            limits: LIMITS,
        }
    }

    /// Of this org alone; called again, of several. Such a backup tells nothing of other orgs, not
    /// even that there are any.
    pub fn only(mut self, org: &str) -> Self {
        self.only.insert(org.to_owned());
        self
    }

    /// Leaves records out that do not open, and names them in the contents. Without this, the
    /// first one ends the backup with its error.
    pub fn skip_unreadable(mut self) -> Self {
        self.skip_unreadable = true;
        self
    }

    /// Is told now and then which org is being read, and how many of its records are written.
    pub fn on_progress(mut self, tell: impl FnMut(&str, u64) + 'a) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    fn is_of(&self, org: &OrgState) -> bool {
        self.only.is_empty() || self.only.contains(&*org.name)
    }

    /// Writes the backup. Believe in what is written only if this returns `Ok`; whether it is
    /// durable is up to `to`. Writes to the store go on, and never wait for `to`. That it was begun is
    /// audited, and noted in the register of backups, before anything is written, and that it was
    /// made when all is: if that fails, or the process is killed before it, what was written can
    /// be restored all the same, and the register has it as not finished.
    ///
    /// # Errors
    /// [`Error::KeyReused`] if the backup key is or was an org's key or a root key;
    /// [`Error::OrgUnknown`]; [`Error::KeySuspended`] for an org asked for by name, or for any that
    /// is suspended while it is read; [`BackupError::OrgRefuses`] for an org asked for by name,
    /// [`BackupError::PolicyChanged`] for any whose policy comes to refuse backups while it is read;
    /// [`Error::OrgErased`] if one is erased meanwhile; [`Error::RecordDamaged`],
    /// [`BackupError::Outrun`]; errors of `to`.
    pub fn write_to(self, to: impl Write) -> Result<BackupContents> {
        let head = Head::new(self.key)?;
        for org in &self.only {
            self.engine.org(org)?;
        }
        let mut only: Vec<_> = self.only.iter().cloned().collect();
        only.sort_unstable();
        let engine = self.engine;
        let refusal = |org: &OrgEntry| LeftOut::of(org).map(|why| why.error(&org.name));
        engine.begin_backup(head.id, head.key, &only, refusal)?;
        let made = Sealer::new(to, self.key, head).and_then(|to| Making::new(self, to).run(head));
        let Made { contents, moment } = match made {
            Ok(made) => made,
            Err(error) => {
                if let Err(unnoted) = engine.end_backup(head.id, None) {
                    tracing::warn!(error = %unnoted, "the next open notes that a backup failed");
                }
                return Err(error);
            }
        };
        engine.end_backup(head.id, Some(moment))?;
        let left_out = contents.left_out.len();
        tracing::info!(backup = %head.id, orgs = contents.orgs.len(), left_out, "backup made");
        Ok(contents)
    }
}

impl fmt::Debug for Backup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("key", &self.key.fingerprint())
            .field("only", &self.only)
            .field("skip_unreadable", &self.skip_unreadable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{BackupError, Error};
    use crate::keyring::OrgPolicy;
    use crate::keyring::root::RootKey;
    use crate::org::Org;
    use crate::store::Store;

    /// Writes more than may be held, whenever a piece of the backup is written.
    struct Restless<'a>(&'a Org, u64);

    impl Write for Restless<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 += 1;
            for name in 0..200 {
                let value = [self.1.to_be_bytes(); 128].concat();
                self.0.put(format!("{name}"), value).map_err(std::io::Error::other)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_backup_that_cannot_catch_up_fails_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let store = Store::open(dir.path().join("data"), root).unwrap();
        let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
        let key = KeyMaterial::generate().unwrap();
        let made = |limits| {
            let backup = Backup { limits, ..store.backup(&key) };
            backup.write_to(Restless(&org, 0))
        };
        let refused = made(Limits { rounds: 3, few: 100, held: 100_000 });
        assert!(matches!(refused, Err(Error::Backup(BackupError::Outrun))));
        made(Limits { rounds: 3, few: 100, held: 300_000 }).unwrap();
    }
}
