//! What is asked of every engine, and the records that each of them gets.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Makes or opens the database of one engine in an empty directory.
pub(crate) type Open = fn(&Path, cache_bytes: usize) -> Result<Box<dyn Engine>>;

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) cipher: &'static str,
    /// What `durable put` is made of.
    pub(crate) durable: &'static str,
    /// How everything is re-encrypted, and with how many threads.
    pub(crate) re_encryption: &'static str,
    /// Whether reads and writes may go on meanwhile, and none is lost.
    pub(crate) online: bool,
    pub(crate) open: Open,
}

/// A database.
pub(crate) trait Engine: Sync {
    /// What one thread works with. Its writes survive a power cut when they return if `durable`.
    fn session(&self, durable: bool) -> Result<Box<dyn Session + '_>>;

    /// Writes every record, in the order of [`Data::shuffled`], in the way that suits the engine
    /// best, and makes them durable.
    fn load(&mut self, data: &Data) -> Result<()>;

    /// Puts every record under another key (bare sled: only rewrites it).
    fn re_encrypt(&mut self, data: &Data) -> Result<ReEncrypted>;

    /// Returns when nothing is left to do behind the scenes.
    fn settle(&mut self) -> Result<()>;

    /// The engine's own way to give space back; `false` if it has none.
    fn clean_up(&mut self) -> Result<bool> {
        Ok(false)
    }
}

pub(crate) trait Session {
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()>;

    /// Shows the value in clear; an error if there is none.
    fn get(&mut self, name: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Shows names and values of all records, in order.
    fn scan(&mut self, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;
}

pub(crate) struct ReEncrypted {
    /// Until the last record was replaced.
    pub(crate) replaced: Duration,
    /// Until that was durable, and with byokv proven and certified.
    pub(crate) durable: Duration,
}

pub(crate) const THREADS: usize = 4;
pub(crate) const STAMP: usize = 8;

/// Seeded records: the same for every engine and run.
pub(crate) struct Data {
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) shuffled: Vec<usize>,
    pool: Vec<u8>,
}

impl Data {
    pub(crate) fn new(count: usize, size: usize) -> Self {
        const POOL: usize = 1 << 20;
        let mut random = StdRng::seed_from_u64(5);
        let mut pool = vec![0; POOL + size];
        random.fill_bytes(&mut pool);
        let mut shuffled: Vec<_> = (0..count).collect();
        shuffled.shuffle(&mut random);
        Self { count, size, shuffled, pool }
    }

    pub(crate) fn name(&self, number: usize) -> [u8; 22] {
        let mut name = *b"clusters/0000000/token";
        let mut left = number;
        for digit in name[9..16].iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or_default();
            left /= 10;
        }
        name
    }

    /// Random bytes, nothing in them to compress. The first [`STAMP`] of a stored value differ
    /// from write to write: sled skips a write that changes nothing.
    pub(crate) fn value(&self, number: usize) -> &[u8] {
        let at = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (self.pool.len() - self.size);
        &self.pool[at..at + self.size]
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = ([u8; 22], &[u8])> {
        self.shuffled.iter().map(|&number| (self.name(number), self.value(number)))
    }

    /// As many ranges of names as threads, together all records: `from` is in, `to` is not.
    pub(crate) fn ranges(&self) -> [([u8; 22], [u8; 22]); THREADS] {
        let bound = |part: usize| self.name(self.count * part / THREADS);
        std::array::from_fn(|part| (bound(part), bound(part + 1)))
    }

    /// An error unless the engine holds exactly these records.
    pub(crate) fn check(&self, session: &mut dyn Session) -> Result<()> {
        let (mut number, mut wrong) = (0, 0);
        session.scan(&mut |name, value| {
            let right = value.len() == self.size && value[STAMP..] == self.value(number)[STAMP..];
            wrong += usize::from(!right || name != self.name(number));
            number += 1;
        })?;
        if wrong > 0 || number != self.count {
            return Err(format!("{wrong} wrong values, {number} of {} records", self.count).into());
        }
        Ok(())
    }
}
