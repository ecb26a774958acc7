//! byokv, through its public API.

use std::path::Path;
use std::time::{Duration, Instant};

use byokv::{KeyMaterial, Options, Org, OrgPolicy, Phase, RootKey, Store};

use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session, THREADS};

pub(super) const PEER: Peer = Peer {
    name: "byokv",
    cipher: "XAES-256-GCM, a key per org",
    durable: "`org.durable().put`: sled's flush, fdatasync, the anti-rollback mark, fdatasync; threads share a sync",
    re_encryption: "`provision`: 4 workers, compare-and-swap; durable = every header counted, synced, old key destroyed, certificate",
    online: true,
    open,
};

struct Byokv {
    store: Store,
    org: Org,
}

fn open(dir: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let root = RootKey::from_material(KeyMaterial::generate()?);
    let options = Options::new().cache_bytes(cache_bytes as u64).rotation_workers(THREADS);
    let store = options.open(dir.join("data"), root)?;
    let org = store.create_org("acme", OrgPolicy::byok())?;
    Ok(Box::new(Byokv { store, org }))
}

impl Engine for Byokv {
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(if durable { self.org.durable() } else { self.org.clone() }))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        for (name, value) in data.records() {
            self.org.put(name, value)?;
        }
        Ok(self.store.sync()?)
    }

    fn re_encrypt(&mut self, _: &Data) -> Result<ReEncrypted> {
        const LOOK: Duration = Duration::from_millis(1);
        let began = Instant::now();
        let rotation = self.store.keys().provision("acme", KeyMaterial::generate()?)?;
        let mut replaced = None;
        while rotation.wait_timeout(LOOK)?.is_none() {
            let phase = rotation.progress().phase;
            if replaced.is_none() && !matches!(phase, Phase::Queued | Phase::Rewriting) {
                replaced = Some(began.elapsed());
            }
        }
        let durable = began.elapsed();
        Ok(ReEncrypted { replaced: replaced.unwrap_or(durable), durable })
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.store.sync()?)
    }

    fn clean_up(&mut self) -> Result<bool> {
        self.store.erase_residue()?;
        Ok(true)
    }
}

impl Session for Org {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        Ok(Org::put(self, name, value)?)
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        show(&Org::get(self, name)?.ok_or("no such record")?);
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for record in Org::scan(self, "") {
            let record = record?;
            show(&record.name, &record.value);
        }
        Ok(())
    }
}
