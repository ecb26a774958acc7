//! redb with an AEAD call around each value.

use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::aead::Sealer;
use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session};

pub(super) const PEER: Peer = Peer {
    name: "redb + AEAD",
    cipher: "AES-256-GCM around each value",
    durable: "a transaction with `Durability::Immediate` (fsync); one writer at a time",
    re_encryption: "4 threads open and seal, one writes in transactions of 1,024 records; a write meanwhile may be overwritten; durable = a commit with `Immediate`",
    online: false,
    open,
};

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
const BATCH: usize = 1024;

struct Redb {
    db: Database,
    sealer: Sealer,
}

fn open(dir: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let db = Database::builder().set_cache_size(cache_bytes).create(dir.join("redb"))?;
    Ok(Box::new(Redb { db, sealer: Sealer::new() }))
}

type Sealed = (Vec<u8>, Vec<u8>);

impl Redb {
    fn write<'a>(
        &self,
        durable: bool,
        records: impl Iterator<Item = (&'a [u8], Vec<u8>)>,
    ) -> Result<()> {
        let mut write = self.db.begin_write()?;
        write.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        let mut table = write.open_table(RECORDS)?;
        for (name, sealed) in records {
            table.insert(name, &sealed[..])?;
        }
        drop(table);
        Ok(write.commit()?)
    }

    fn re_seal(
        &self,
        from: &[u8],
        to: &[u8],
        sealed: &mpsc::SyncSender<Vec<Sealed>>,
    ) -> Result<()> {
        let table = self.db.begin_read()?.open_table(RECORDS)?;
        let mut batch = Vec::with_capacity(BATCH);
        for pair in table.range(from..to)? {
            let (name, stored) = pair?;
            let name = name.value();
            batch.push((name.to_vec(), self.sealer.re_seal(name, stored.value())?));
            if batch.len() == BATCH {
                sealed.send(std::mem::take(&mut batch))?;
            }
        }
        Ok(sealed.send(batch)?)
    }
}

impl Engine for Redb {
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(RedbSession { redb: self, durable }))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        let mut table = write.open_table(RECORDS)?;
        for (name, value) in data.records() {
            table.insert(&name[..], &self.sealer.seal(&name, value)?[..])?;
        }
        drop(table);
        Ok(write.commit()?)
    }

    fn re_encrypt(&mut self, data: &Data) -> Result<ReEncrypted> {
        let began = Instant::now();
        self.sealer.rotate();
        let this = &*self;
        std::thread::scope(|scope| {
            let (sealed, batches) = mpsc::sync_channel(8);
            let threads = data.ranges().map(|(from, to)| {
                let sealed = sealed.clone();
                scope.spawn(move || this.re_seal(&from, &to, &sealed))
            });
            drop(sealed);
            for batch in batches {
                this.write(false, batch.iter().map(|(name, new)| (&name[..], new.clone())))?;
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })?;
        let replaced = began.elapsed();
        self.settle()?;
        Ok(ReEncrypted { replaced, durable: began.elapsed() })
    }

    fn settle(&mut self) -> Result<()> {
        self.write(true, std::iter::empty())
    }

    fn clean_up(&mut self) -> Result<bool> {
        self.db.compact()?;
        Ok(true)
    }
}

struct RedbSession<'a> {
    redb: &'a Redb,
    durable: bool,
}

impl Session for RedbSession<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let sealed = self.redb.sealer.seal(name, value)?;
        self.redb.write(self.durable, std::iter::once((name, sealed)))
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let table = self.redb.db.begin_read()?.open_table(RECORDS)?;
        let stored = table.get(name)?.ok_or("no such record")?;
        show(&self.redb.sealer.open(name, stored.value())?);
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let table = self.redb.db.begin_read()?.open_table(RECORDS)?;
        for pair in table.iter()? {
            let (name, stored) = pair?;
            show(name.value(), &self.redb.sealer.open(name.value(), stored.value())?);
        }
        Ok(())
    }
}
