//! Nonces that were never used, whoever forks.

use std::cell::RefCell;

use zeroize::Zeroizing;

use crate::error::Result;
use crate::material;
use drawn::Drawn;

pub(crate) const NONCE_LEN: usize = 24;

/// A nonce that was never used: 192 random bits. Not `Clone`, consumed by sealing.
#[derive(Debug)]
pub(crate) struct Nonce(pub(super) [u8; NONCE_LEN]);

impl Nonce {
    /// Draws from a pool of the operating system's random bytes that each thread keeps.
    pub(crate) fn draw() -> Result<Self> {
        POOL.with_borrow_mut(Pool::draw)
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::empty());
}

/// Places for nonces. Each draw has a number of its own, which says which place it may take. A
/// forked child has the same places in its memory, but its draws are counted with its parent's: no
/// two of them have the same number.
struct Pool {
    bytes: Zeroizing<[u8; Pool::PLACES * NONCE_LEN]>,
    drawn: Option<Drawn>,
    /// The draw that has the first place; `None` while there is nothing to draw.
    first: Option<u64>,
    /// The first place that this process has not come by: should the count ever go back, what was
    /// taken is not taken again.
    fresh: usize,
}

impl Pool {
    /// For one system call: measured 6 times cheaper than a call for each.
    const PLACES: usize = 170;

    fn empty() -> Self {
        let bytes = Zeroizing::new([0; Self::PLACES * NONCE_LEN]);
        Self { bytes, drawn: None, first: None, fresh: 0 }
    }

    fn draw(&mut self) -> Result<Nonce> {
        let drawn = match &self.drawn {
            Some(drawn) => drawn,
            None => self.drawn.insert(Drawn::new()?),
        };
        let number = drawn.next()?;
        let place = self.first.and_then(|first| usize::try_from(number.wrapping_sub(first)).ok());
        let place = match place.filter(|place| (self.fresh..Self::PLACES).contains(place)) {
            Some(place) => place,
            None => {
                self.first = None;
                material::random(self.bytes.as_mut_slice())?;
                self.first = Some(number);
                0
            }
        };
        self.fresh = place + 1;
        let bytes = &mut self.bytes[place * NONCE_LEN..][..NONCE_LEN];
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(bytes);
        bytes.fill(0);
        Ok(Nonce(nonce))
    }
}

#[cfg(unix)]
mod drawn {
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};

    use vm_memory::{MmapRegion, VolatileMemory};

    use crate::error::{Error, Result};

    /// How often a thread, and what was forked from it, has drawn: in memory that they share.
    pub(super) struct Drawn(MmapRegion);

    impl Drawn {
        pub(super) fn new() -> Result<Self> {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let region = MmapRegion::build(None, size_of::<AtomicU64>(), access, shared);
            region.map(Self).map_err(failed)
        }

        /// The number of the next draw.
        pub(super) fn next(&self) -> Result<u64> {
            let count = self.0.get_atomic_ref::<AtomicU64>(0).map_err(failed)?;
            Ok(count.fetch_add(1, Ordering::Relaxed))
        }
    }

    fn failed(why: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::io("sharing memory with forked processes", io::Error::other(why))
    }
}

/// Where nothing forks.
#[cfg(not(unix))]
mod drawn {
    use std::cell::Cell;

    use crate::error::Result;

    #[derive(Default)]
    pub(super) struct Drawn(Cell<u64>);

    impl Drawn {
        #[allow(clippy::unnecessary_wraps)]
        pub(super) fn new() -> Result<Self> {
            Ok(Self::default())
        }

        #[allow(clippy::unnecessary_wraps)]
        pub(super) fn next(&self) -> Result<u64> {
            Ok(self.0.replace(self.0.get() + 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nonces_never_repeat_across_refills_and_threads() {
        let draw = || (0..1000).map(|_| Nonce::draw().unwrap().0).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let mut seen: HashSet<_> = draw().into_iter().collect();
        for thread in threads {
            seen.extend(thread.join().unwrap());
        }
        assert_eq!(seen.len(), 5000);
    }

    /// What a forked child draws.
    #[allow(unsafe_code)]
    fn draw_in_a_child<const N: usize>() -> [[u8; NONCE_LEN]; N] {
        use std::io::{Read, Write};

        let (mut reader, mut writer) = std::io::pipe().unwrap();
        // SAFETY: the child only draws (no lock of another thread is involved: the pool is
        // thread-local), writes to the pipe and leaves without running destructors.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let wrote = (0..N).all(|_| Nonce::draw().is_ok_and(|n| writer.write_all(&n.0).is_ok()));
            // SAFETY: `_exit` is async-signal-safe.
            unsafe { libc::_exit(i32::from(!wrote)) };
        }
        drop(writer);
        let mut drawn = [[0; NONCE_LEN]; N];
        reader.read_exact(drawn.as_flattened_mut()).unwrap();
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        drawn
    }

    /// Invariant 1, and the finding that a forked child of a warmed generator repeats it: two
    /// children in a row, and the parent before, between and after, within one pool and beyond.
    #[test]
    fn nonces_survive_a_fork() {
        let mut seen = vec![Nonce::draw().unwrap().0];
        for _ in 0..2 {
            seen.extend(draw_in_a_child::<3>());
            seen.push(Nonce::draw().unwrap().0);
            seen.extend(draw_in_a_child::<{ 2 * Pool::PLACES }>());
            seen.extend((0..3).map(|_| Nonce::draw().unwrap().0));
        }
        let drawn = seen.len();
        assert_eq!(seen.into_iter().collect::<HashSet<_>>().len(), drawn);
    }

    /// As nothing but foul play could bring about.
    #[test]
    fn a_count_that_goes_back_repeats_nothing() {
        let mut pool = Pool::empty();
        let mut seen = HashSet::from([[0; NONCE_LEN]]);
        for _ in 0..5 {
            assert!((0..3).all(|_| seen.insert(pool.draw().unwrap().0)));
            pool.drawn = Some(Drawn::new().unwrap());
        }
    }
}
