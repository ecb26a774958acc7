//! Opening a store: whose it is, whether all its parts are of one age, what is still owed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use crossbeam::sync::ShardedLock;

use super::clock::{Clock, read_first};
use super::durability::Durability;
use super::latency::Latency;
use super::lock::DirLock;
use super::whole::not_whole;
use super::{Engine, OrgState, Ring, directory, files};
use crate::audit::{AuditEvent, Draft};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{OrgId, StorePosition};
use crate::keyring::Keyring;
use crate::keyring::root::{KeyringFile, RootKey};
use crate::mark::{self, Mark, Position};
use crate::storage::{self, SledOptions, SledStorage, Storage};
use crate::time::observed::Seen;

/// What the caller knows of the store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) store: Option<OrgId>,
    pub(crate) minimum: Option<StorePosition>,
}

#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) sled: SledOptions,
    /// Make a store where there is none.
    pub(crate) create: bool,
    /// Open although a part went back in time.
    pub(crate) accept_rollback: bool,
    /// Values are sealed by the FIPS module only, under approved suites only.
    pub(crate) fips_mode: bool,
    pub(crate) expected: Expected,
}

impl Engine {
    /// The root key is tried before anything is written, so a wrong one leaves the directory
    /// untouched.
    pub(crate) fn open(dir: &Path, root: RootKey, options: &EngineOptions) -> Result<Arc<Self>> {
        let (clocks, now) = read_first(dir)?;
        if options.fips_mode && !has_fips_module() {
            return Err(Error::FipsModuleMissing);
        }
        if dir.is_dir() {
            files::check(dir)?;
        }
        let file = KeyringFile::new(dir.join("keyring"));
        if !file.path().exists() && !options.create && !files::any_database(dir) {
            return Err(Error::damaged(dir, "there is no store here; nothing was created"));
        }
        directory::prepare(dir, file.path())?;
        let mut lock = DirLock::take(dir)?;
        let found = file.load(&root)?;
        let is_new = found.is_none();
        let keyring = match found {
            Some(keyring) => keyring,
            None => {
                directory::check_free(dir)?;
                Keyring { time: Seen::first(now), ..Keyring::new(root.fingerprint())? }
            }
        };
        let keyring = Keyring { fips_mode: options.fips_mode, ..keyring };
        keyring.check_suites()?;
        let database = dir.join(Keyring::database_name(keyring.database));
        let mark_key = keyring.secret.derive(mark::KEY);
        let marked = Mark::load(dir, keyring.store, &mark_key)?;
        if keyring.syncs > 0 && !SledStorage::exists(&database) {
            let why = "it is missing, but the keyring knows of data in it; nothing was changed; \
                       put back the newest copy of the whole data directory";
            return Err(Error::damaged(&database, why));
        }
        options.expected.check(dir, &keyring, marked)?;
        directory::make_private(dir)?;
        lock.note_process()?;
        // Nothing that is only to be tidied up keeps a store from opening.
        if let Err(error) = file.discard_leftovers() {
            tracing::warn!(%error, "what a change of the keyring left is still there");
        }
        failpoint::reach("open.discarded", "");
        if is_new {
            file.save(&root, &keyring)?;
        }
        let digest_key = keyring.secret.derive(storage::DIGEST_KEY);
        let accept = options.accept_rollback;
        let storage = SledStorage::open(&database, &options.sled, &digest_key, accept)?;
        let held = storage
            .position()?
            .and_then(|stored| Position::decode_first(&stored, keyring.store, &mark_key));
        let was_whole = storage.was_whole();
        let behind = gone_back(&keyring, held, marked)
            .or_else(|| (!was_whole).then(|| not_whole(&database, &keyring, storage.was_broken())));
        if let Some(error) = &behind
            && !accept
        {
            return Err(error.clone());
        }
        storage.begin()?;
        failpoint::reach("open.begun", "");
        if let Err(error) = Self::erase_leftovers(dir, &database) {
            tracing::warn!(%error, "old files of the database are still there");
        }
        // What the keyring owes is paid up to the generation that a position names, not further.
        let known = held.unwrap_or_default().generation.max(marked.unwrap_or_default().generation);
        let syncs = newest_syncs(&keyring, held, marked);
        let position = Position { syncs, generation: known };
        let keyring = Keyring { generation: keyring.generation.max(known), ..keyring };
        let notary = super::own::notary_of(&keyring.secret);
        let mut mark = Mark::open(dir, keyring.store, mark_key)?;
        // A crash left the mark one behind. Unless it catches up before the next sync, a crash in
        // that one leaves it two behind, which looks like an older copy. What was accepted stays
        // behind until that is audited.
        if behind.is_none() && held.unwrap_or_default().syncs > marked.unwrap_or_default().syncs {
            storage.sync()?;
            mark.advance(position)?;
            failpoint::reach("open.marked", "");
        }
        let orgs = keyring
            .orgs
            .iter()
            .filter(|entry| entry.is_seen())
            .map(|entry| (entry.name.clone(), Arc::new(OrgState::new(entry))))
            .collect::<HashMap<_, _>>();
        let clock = Clock::open((clocks, now), &keyring.time, &storage, &notary)?;
        let engine = Self {
            storage: Box::new(storage),
            notary: RwLock::new(notary),
            dir: dir.to_owned(),
            orgs: ShardedLock::new(orgs),
            // A database that has lost something may have lost that.
            durability: Durability::new(mark, position, if behind.is_none() { known } else { 0 }),
            latency: Latency::new(),
            clock,
            ring: Mutex::new(Ring { keyring, root, file }),
            moving: Mutex::new(()),
            closed: AtomicBool::new(false),
            _lock: lock,
        };
        engine.pay_what_is_owed()?;
        failpoint::reach("open.paid", "");
        for org in engine.orgs() {
            engine.load_usage(&org)?;
        }
        let is_unborn = engine.with_keyring(|keyring| keyring.audit_entries == 0);
        if is_unborn {
            engine.change(None, |_, drafts| {
                drafts.push(Draft::new(AuditEvent::StoreCreated));
                Ok(())
            })?;
        }
        if let Some(error) = behind {
            tracing::warn!(%error, "rollback accepted");
            engine.change(None, |_, drafts| {
                let what = error.to_string();
                drafts.push(Draft::new(AuditEvent::RollbackAccepted { what }));
                Ok(())
            })?;
        }
        // A kill came between a change of the keyring and its sync: until there is one, nobody
        // would notice the keyring of before.
        if engine.with_keyring(|keyring| keyring.generation) > known
            && let Err(error) = engine.sync_if_dirty()
        {
            tracing::warn!(%error, "an older keyring would not be noticed yet, trying again");
        }
        if let Err(error) = engine.discard_unfinished_restores() {
            tracing::warn!(%error, "an unfinished restore is still there; nobody sees it");
        }
        if let Err(error) = engine.end_cut_off_backups() {
            tracing::warn!(%error, "a backup that was cut off is noted as being made, trying again");
        }
        if !was_whole {
            // Pages of different ages overlap: what is read of them now would change with the
            // next writes. A fresh copy of it does not, and its digest is of what it holds.
            engine.take_what_is_there()?;
        }
        if let Err(error) = engine.expire_tokens() {
            tracing::warn!(%error, "expired import tokens are still there, trying again");
        }
        if let Err(error) = engine.look_at_clock() {
            tracing::warn!(%error, "what was seen of the clock is not noted, trying again");
        }
        tracing::info!(dir = %engine.dir.display(), orgs = engine.orgs().len(), "store opened");
        Ok(Arc::new(engine))
    }

    /// How far the store has got, durably.
    pub(crate) fn position(&self) -> StorePosition {
        // The mark's first: it never says more than what is durable.
        let syncs = self.syncs();
        self.with_keyring(|keyring| StorePosition {
            store: keyring.store,
            keyring_generation: keyring.generation,
            syncs,
        })
    }

    /// Writes what the keyring owes into the database, unless that is known to be durable there.
    fn pay_what_is_owed(&self) -> Result<()> {
        let ring = self.ring();
        let generation = ring.keyring.generation;
        if !self.is_settled(generation) {
            self.pay_outbox(&ring.keyring)?;
            self.note_generation(generation);
        }
        Ok(())
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Returns true if the ciphers are those of aws-lc's FIPS module.
fn has_fips_module() -> bool {
    #[cfg(feature = "fips")]
    return aws_lc_rs::try_fips_mode().is_ok();
    #[cfg(not(feature = "fips"))]
    false
}

impl Expected {
    /// Whether there is something that only a store that is there can be.
    pub(crate) fn is_some(self) -> bool {
        self.store.is_some() || self.minimum.is_some()
    }

    /// Refuses another store, and an older copy of this one, from what is known before the
    /// database is opened: the keyring and the mark are durable before a position is given out
    /// that names them.
    fn check(self, dir: &Path, keyring: &Keyring, marked: Option<Position>) -> Result<()> {
        let of_minimum = self.minimum.map(|minimum| minimum.store);
        for expected in self.store.into_iter().chain(of_minimum) {
            if expected != keyring.store {
                let path = dir.to_owned();
                return Err(Error::OtherStore { path, expected, found: keyring.store });
            }
        }
        let found = StorePosition {
            store: keyring.store,
            keyring_generation: keyring.generation,
            syncs: keyring.syncs.max(marked.unwrap_or_default().syncs),
        };
        match self.minimum {
            Some(minimum) if !found.has_reached(minimum) => {
                Err(Error::BeforeMinimum { path: dir.to_owned(), minimum, found })
            }
            _ => Ok(()),
        }
    }
}

/// Compares what keyring, database and mark say of each other. Each can only be as old as the
/// protocol of `Engine::sync` and `Engine::change` leaves it after a crash.
fn gone_back(keyring: &Keyring, held: Option<Position>, marked: Option<Position>) -> Option<Error> {
    let database = held.unwrap_or_default();
    let mark = marked.unwrap_or_default();
    let rolled_back = |what: String, syncs: Option<u64>| Some(Error::RolledBack { what, syncs });

    let known = mark.syncs.max(keyring.syncs);
    if database.syncs < known {
        let behind = known - database.syncs;
        let what = format!(
            "the database (db/) is {behind} durable syncs behind the {}: it was damaged or an \
             older copy was put back",
            if mark.syncs == known { "mark" } else { "keyring" }
        );
        return rolled_back(what, Some(behind));
    }
    // A crash between the two writes of a sync leaves the database one ahead.
    if database.syncs > mark.syncs + 1 {
        let behind = database.syncs - mark.syncs;
        let what = if marked.is_none() {
            "the mark is missing".to_owned()
        } else {
            format!("the mark is {behind} durable syncs behind the database: it is an older copy")
        };
        return rolled_back(what, None);
    }
    let generation = database.generation.max(mark.generation);
    if keyring.generation < generation {
        let what = format!(
            "the keyring is of generation {}, the database knows of {generation}: an older \
             keyring was put back",
            keyring.generation
        );
        return rolled_back(what, None);
    }
    None
}

fn newest_syncs(keyring: &Keyring, held: Option<Position>, marked: Option<Position>) -> u64 {
    keyring.syncs.max(held.unwrap_or_default().syncs).max(marked.unwrap_or_default().syncs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Fingerprint;

    fn at(syncs: u64, generation: u64) -> Option<Position> {
        Some(Position { syncs, generation })
    }

    fn verdict(keyring: (u64, u64), held: Option<Position>, marked: Option<Position>) -> String {
        let mut ring = Keyring::new(Fingerprint::from_bytes([0; 16])).unwrap();
        (ring.syncs, ring.generation) = keyring;
        gone_back(&ring, held, marked).map_or_else(String::new, |error| match error {
            Error::RolledBack { what, .. } => what,
            other => panic!("{other}"),
        })
    }

    /// Invariants 10 and 11: every state that a crash may leave opens, every older copy of one
    /// part does not.
    #[test]
    fn what_counts_as_gone_back() {
        for fine in [
            verdict((0, 0), None, None),
            verdict((0, 1), at(1, 0), None),
            verdict((5, 3), at(9, 3), at(9, 3)),
            verdict((5, 3), at(10, 3), at(9, 3)),
            verdict((9, 4), at(9, 3), at(9, 3)),
        ] {
            assert_eq!(fine, "");
        }
        assert!(verdict((5, 3), at(7, 3), at(9, 3)).contains("2 durable syncs behind the mark"));
        assert!(verdict((5, 3), None, at(9, 3)).contains("9 durable syncs"));
        assert!(verdict((9, 3), at(7, 3), at(7, 3)).contains("2 durable syncs behind the keyring"));
        assert!(verdict((5, 3), at(11, 3), at(9, 3)).contains("the mark is 2"));
        assert!(verdict((5, 3), at(9, 3), None).contains("mark is missing"));
        assert!(verdict((5, 2), at(9, 3), at(9, 3)).contains("older keyring"));
        assert!(verdict((5, 2), at(9, 2), at(9, 3)).contains("older keyring"));
    }
}
