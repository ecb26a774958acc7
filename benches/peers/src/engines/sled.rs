//! sled as it is, and sled with an AEAD call around each value.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::aead::Sealer;
use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session};

const DURABLE: &str = "`insert`, `flush()`, then fdatasync of the log, which `flush()` leaves out: without it a power cut may take the write";

pub(super) const BARE: Peer = Peer {
    name: "bare sled",
    cipher: "none",
    durable: DURABLE,
    re_encryption: "encrypts nothing: 4 threads rewrite each value with one bit changed (sled skips a write of the same bytes), compare-and-swap; durable = flush, fdatasync",
    online: true,
    open: |dir, cache| open(dir, cache, None),
};

pub(super) const NAIVE: Peer = Peer {
    name: "naive sled + AEAD",
    cipher: "AES-256-GCM around each value",
    durable: DURABLE,
    re_encryption: "4 threads: scan, open, seal, compare-and-swap; durable = flush, fdatasync",
    online: true,
    open: |dir, cache| open(dir, cache, Some(Sealer::new())),
};

struct Sled {
    db: sled::Db,
    log: File,
    sealer: Option<Sealer>,
}

fn open(dir: &Path, cache_bytes: usize, sealer: Option<Sealer>) -> Result<Box<dyn Engine>> {
    let db = sled::Config::new().path(dir).cache_capacity(cache_bytes as u64).open()?;
    Ok(Box::new(Sled { db, log: File::open(dir.join("db"))?, sealer }))
}

impl Sled {
    fn put(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match &self.sealer {
            Some(sealer) => self.db.insert(name, sealer.seal(name, value)?)?,
            None => self.db.insert(name, value)?,
        };
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.db.flush()?;
        Ok(self.log.sync_data()?)
    }

    fn rewrite(&self, from: &[u8], to: &[u8]) -> Result<()> {
        for pair in self.db.range(from..to) {
            let (name, old) = pair?;
            let mut old = Some(old);
            // A record that somebody changed meanwhile is looked at again.
            while let Some(now) = old.take() {
                let new: sled::IVec = match &self.sealer {
                    Some(sealer) => sealer.re_seal(&name, &now)?.into(),
                    None => {
                        let mut new = now.to_vec();
                        new[0] ^= 1;
                        new.into()
                    }
                };
                if let Err(lost) = self.db.compare_and_swap(&name, Some(now), Some(new))? {
                    old = lost.current;
                }
            }
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(SledSession { sled: self, durable }))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        for (name, value) in data.records() {
            self.put(&name, value)?;
        }
        self.sync()
    }

    fn re_encrypt(&mut self, data: &Data) -> Result<ReEncrypted> {
        let began = Instant::now();
        if let Some(sealer) = &self.sealer {
            sealer.rotate();
        }
        let this = &*self;
        std::thread::scope(|scope| {
            let threads =
                data.ranges().map(|(from, to)| scope.spawn(move || this.rewrite(&from, &to)));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        })?;
        let replaced = began.elapsed();
        self.sync()?;
        Ok(ReEncrypted { replaced, durable: began.elapsed() })
    }

    fn settle(&mut self) -> Result<()> {
        self.sync()
    }
}

struct SledSession<'a> {
    sled: &'a Sled,
    durable: bool,
}

impl Session for SledSession<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        self.sled.put(name, value)?;
        if self.durable {
            self.sled.sync()?;
        }
        Ok(())
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let stored = self.sled.db.get(name)?.ok_or("no such record")?;
        match &self.sled.sealer {
            Some(sealer) => show(&sealer.open(name, &stored)?),
            None => show(&stored),
        }
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for pair in self.sled.db.iter() {
            let (name, stored) = pair?;
            match &self.sled.sealer {
                Some(sealer) => show(&name, &sealer.open(&name, &stored)?),
                None => show(&name, &stored),
            }
        }
        Ok(())
    }
}
