//! SQLCipher: SQLite that encrypts its pages.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use rusqlite::{CachedStatement, Connection, params};

use crate::engine::{Data, Engine, Peer, ReEncrypted, Result, Session};

pub(super) const PEER: Peer = Peer {
    name: "SQLCipher",
    cipher: "AES-256-CBC + HMAC-SHA-512 per page, raw key",
    durable: "WAL, `synchronous = FULL`; one writer at a time, who queue at a mutex",
    re_encryption: "`PRAGMA rekey`, one thread; nobody else may use the database meanwhile; durable = checkpoint",
    online: false,
    open,
};

struct SqlCipher {
    path: PathBuf,
    cache_bytes: usize,
    key: String,
    /// Connections that no session uses. Each has a cache of its own.
    idle: Mutex<Vec<Connection>>,
    writer: Mutex<()>,
}

fn random_key() -> String {
    let mut key = [0u8; 32];
    rand::rng().fill_bytes(&mut key);
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn connect(path: &Path, key: &str, cache_bytes: usize) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.set_prepared_statement_cache_capacity(8);
    connection.execute_batch(&format!(
        "PRAGMA key = \"x'{key}'\"; PRAGMA journal_mode = WAL; PRAGMA cache_size = -{};",
        cache_bytes / 1024
    ))?;
    Ok(connection)
}

fn open(dir: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let (path, key) = (dir.join("sqlcipher"), random_key());
    let first = connect(&path, &key, cache_bytes)?;
    first.execute_batch("CREATE TABLE records (name BLOB PRIMARY KEY, value BLOB)")?;
    let (idle, writer) = (Mutex::new(vec![first]), Mutex::new(()));
    Ok(Box::new(SqlCipher { path, cache_bytes, key, idle, writer }))
}

const PUT: &str = "INSERT OR REPLACE INTO records VALUES (?1, ?2)";

impl SqlCipher {
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that is left when the others are closed; no session is open.
    fn only(&mut self) -> Result<&mut Connection> {
        let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        idle.truncate(1);
        Ok(idle.first_mut().ok_or("the last connection is in use")?)
    }
}

impl Engine for SqlCipher {
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>> {
        let idle = self.idle().pop();
        let new = || -> Result<Connection> {
            let connection = connect(&self.path, &self.key, self.cache_bytes)?;
            // Fills its cache, before any clock runs.
            let sum = "SELECT sum(length(value)) FROM records";
            connection.query_row(sum, [], |_| Ok(()))?;
            Ok(connection)
        };
        let connection = idle.map_or_else(new, Ok)?;
        let synchronous = if durable { "FULL" } else { "NORMAL" };
        connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}"))?;
        Ok(Box::new(SqlSession { connection: Some(connection), of: self }))
    }

    fn load(&mut self, data: &Data) -> Result<()> {
        let all = self.only()?.transaction()?;
        let mut put = all.prepare(PUT)?;
        for (name, value) in data.records() {
            put.execute(params![name, value])?;
        }
        drop(put);
        Ok(all.commit()?)
    }

    fn re_encrypt(&mut self, _: &Data) -> Result<ReEncrypted> {
        let key = random_key();
        let began = Instant::now();
        self.only()?.execute_batch(&format!("PRAGMA rekey = \"x'{key}'\""))?;
        let replaced = began.elapsed();
        self.settle()?;
        self.key = key;
        Ok(ReEncrypted { replaced, durable: began.elapsed() })
    }

    fn settle(&mut self) -> Result<()> {
        let any = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        let any = any.first().ok_or("the last connection is in use")?;
        Ok(any.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    fn clean_up(&mut self) -> Result<bool> {
        self.only()?.execute_batch("VACUUM")?;
        self.settle()?;
        Ok(true)
    }
}

struct SqlSession<'a> {
    /// `None` while it is dropped.
    connection: Option<Connection>,
    of: &'a SqlCipher,
}

impl SqlSession<'_> {
    fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>> {
        let connection = self.connection.as_ref().ok_or("the session has ended")?;
        Ok(connection.prepare_cached(sql)?)
    }
}

impl Drop for SqlSession<'_> {
    fn drop(&mut self) {
        self.of.idle().extend(self.connection.take());
    }
}

impl Session for SqlSession<'_> {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        // SQLite's own waiting is by sleeping, ever longer.
        let _only = self.of.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.prepare(PUT)?.execute(params![name, value])?;
        Ok(())
    }

    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut get = self.prepare("SELECT value FROM records WHERE name = ?1")?;
        get.query_row([name], |row| {
            show(row.get_ref(0)?.as_blob()?);
            Ok(())
        })?;
        Ok(())
    }

    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut all = self.prepare("SELECT name, value FROM records ORDER BY name")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            show(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }
}
