//! LMDB (mdb.master3) that encrypts its pages, through heed3.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aes_gcm_for_heed::Aes256Gcm;
use heed3::types::Bytes;
use heed3::{
    CommitOrAbort, EncryptedDatabase, EncryptedEnv, EnvFlags, EnvOpenOptions, FlagSetMode, PutFlags,
};
use rand::Rng;

use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session};

pub(super) const PEER: Peer = Peer {
    name: "encrypted LMDB",
    cipher: "AES-256-GCM per page",
    durable: "a transaction without `NO_SYNC` (fdatasync); one operation at a time",
    re_encryption: "its key is fixed, so one thread copies all to a new environment in order; a write meanwhile is lost; durable = commit with a sync",
    online: false,
    open,
};

type Records = EncryptedDatabase<'static, Bytes, Bytes>;

struct Lmdb {
    dir: PathBuf,
    number: u32,
    env: EncryptedEnv,
    records: Records,
    /// Held for each operation. With several threads inside at once this LMDB fails (pages that do
    /// not decrypt or are not found, a full stack of cursors, wrong values); one by one it does not.
    one_by_one: Mutex<()>,
}

impl Lmdb {
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(dir: &Path, _cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let (env, records) = environment(&dir.join("0"))?;
    let one_by_one = Mutex::new(());
    Ok(Box::new(Lmdb { dir: dir.to_owned(), number: 0, env, records, one_by_one }))
}

#[allow(unsafe_code)]
fn environment(dir: &Path) -> Result<(EncryptedEnv, Records)> {
    const MAP: usize = 16 << 30;
    fs::create_dir(dir)?;
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    let mut options = EnvOpenOptions::new();
    // SAFETY: nobody else knows of the directory, so nobody changes the mapped file.
    let env = unsafe { options.map_size(MAP).open_encrypted::<Aes256Gcm, _>(key.into(), dir)? };
    let records = env
        .create_databases_and_commit::<_, _, (), heed3::Error>(env.write_txn()?, |open, txn| {
            open.create_database(txn, None).map(CommitOrAbort::Commit)
        })?
        .unwrap_commit();
    Ok((env, records))
}

impl Engine for Lmdb {
    #[allow(unsafe_code)]
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        let _alone = self.alone();
        let mode = if durable { FlagSetMode::Disable } else { FlagSetMode::Enable };
        // SAFETY: one thread at a time, by the mutex; a crash may cost the database, as it should.
        unsafe { self.env.set_flags(EnvFlags::NO_SYNC, mode)? };
        Ok(Box::new(LmdbSession(self)))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for (name, value) in data.records() {
            self.records.put(&mut txn, &name, value)?;
        }
        txn.commit()?;
        Ok(self.env.force_sync()?)
    }

    fn re_encrypt(&mut self, _: &Data) -> Result<ReEncrypted> {
        let began = Instant::now();
        let (env, records) = environment(&self.dir.join((self.number + 1).to_string()))?;
        let mut read = self.env.read_txn()?;
        let mut write = env.write_txn()?;
        for pair in self.records.iter(&mut read)? {
            let (name, value) = pair?;
            records.put_with_flags(&mut write, PutFlags::APPEND, name, value)?;
        }
        drop(read);
        // Pages are encrypted by the commit, which also syncs them.
        write.commit()?;
        let durable = began.elapsed();
        let old = std::mem::replace(&mut self.env, env);
        self.records = records;
        old.prepare_for_closing().wait();
        fs::remove_dir_all(self.dir.join(self.number.to_string()))?;
        self.number += 1;
        Ok(ReEncrypted { replaced: durable, durable })
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }
}

struct LmdbSession<'a>(&'a Lmdb);

impl Session for LmdbSession<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let _alone = self.0.alone();
        let mut txn = self.0.env.write_txn()?;
        self.0.records.put(&mut txn, name, value)?;
        Ok(txn.commit()?)
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let _alone = self.0.alone();
        let mut txn = self.0.env.read_txn()?;
        show(self.0.records.get(&mut txn, name)?.ok_or("no such record")?);
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let _alone = self.0.alone();
        let mut txn = self.0.env.read_txn()?;
        for pair in self.0.records.iter(&mut txn)? {
            let (name, value) = pair?;
            show(name, value);
        }
        Ok(())
    }
}
