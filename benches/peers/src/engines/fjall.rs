//! fjall with an AEAD call around each value.

use std::path::Path;
use std::time::{Duration, Instant};

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::aead::Sealer;
use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session};

pub(super) const PEER: Peer = Peer {
    name: "fjall + AEAD",
    cipher: "AES-256-GCM around each value",
    durable: "`insert`, `persist(SyncData)` (fdatasync of the journal)",
    re_encryption: "4 threads: scan, open, seal, insert; it has no compare-and-swap outside of transactions, so a write meanwhile may be overwritten; durable = persist",
    online: false,
    open,
};

struct Fjall {
    db: Database,
    records: Keyspace,
    sealer: Sealer,
}

/// Ciphertext does not compress.
fn options() -> KeyspaceCreateOptions {
    let none = CompressionPolicy::all(CompressionType::None);
    KeyspaceCreateOptions::default().data_block_compression_policy(none)
}

fn open(dir: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let db = Database::builder(dir)
        .cache_size(cache_bytes as u64)
        .journal_compression(CompressionType::None)
        .open()?;
    let records = db.keyspace("records", options)?;
    Ok(Box::new(Fjall { db, records, sealer: Sealer::new() }))
}

impl Fjall {
    fn put(&self, name: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.records.insert(name, self.sealer.seal(name, value)?)?)
    }

    fn rewrite(&self, from: &[u8], to: &[u8]) -> Result<()> {
        for pair in self.records.range(from..to) {
            let (name, stored) = pair.into_inner()?;
            let new = self.sealer.re_seal(&name, &stored)?;
            self.records.insert(name, new)?;
        }
        Ok(())
    }
}

impl Engine for Fjall {
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(FjallSession { fjall: self, durable }))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        for (name, value) in data.records() {
            self.put(&name, value)?;
        }
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    fn re_encrypt(&mut self, data: &Data) -> Result<ReEncrypted> {
        let began = Instant::now();
        self.sealer.rotate();
        let this = &*self;
        std::thread::scope(|scope| {
            let threads =
                data.ranges().map(|(from, to)| scope.spawn(move || this.rewrite(&from, &to)));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })?;
        let replaced = began.elapsed();
        self.db.persist(PersistMode::SyncData)?;
        Ok(ReEncrypted { replaced, durable: began.elapsed() })
    }

    fn settle(&mut self) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_secs(20);
        self.db.persist(PersistMode::SyncData)?;
        let began = Instant::now();
        let busy = || self.db.outstanding_flushes() > 0 || self.db.active_compactions() > 0;
        while busy() && began.elapsed() < LONGEST {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn clean_up(&mut self) -> Result<bool> {
        self.records.rotate_memtable_and_wait()?;
        self.records.major_compact()?;
        Ok(true)
    }
}

struct FjallSession<'a> {
    fjall: &'a Fjall,
    durable: bool,
}

impl Session for FjallSession<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        self.fjall.put(name, value)?;
        if self.durable {
            self.fjall.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let stored = self.fjall.records.get(name)?.ok_or("no such record")?;
        show(&self.fjall.sealer.open(name, &stored)?);
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for pair in self.fjall.records.iter() {
            let (name, stored) = pair.into_inner()?;
            show(&name, &self.fjall.sealer.open(&name, &stored)?);
        }
        Ok(())
    }
}
