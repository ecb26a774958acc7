//! Nonces that were never used, whoever forks.

use crate::error::Result;
use crate::material;

/// Where a count in memory that a forked child shares can be had in safe code.
#[cfg(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod pool;
#[cfg(not(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod pool {
    pub(super) use super::draw_from_system as draw;
}

pub(crate) const NONCE_LEN: usize = 24;

/// A nonce that was never used: 192 random bits. Not `Clone`, consumed by sealing.
///
/// A process that is forked between drawing and sealing, be it by a signal handler, seals with the
/// same nonce as its child: draw where what is sealed is in its buffer already, and both seal the same.
#[derive(Debug)]
pub(crate) struct Nonce(pub(super) [u8; NONCE_LEN]);

impl Nonce {
    pub(crate) fn draw() -> Result<Self> {
        pool::draw().map(Self)
    }
}

fn draw_from_system() -> Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    material::random(&mut nonce)?;
    Ok(nonce)
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

    /// What a forked child draws, three and then so many more, and its own child in between.
    #[allow(unsafe_code)]
    fn draw_in_a_child(more: usize, generations: usize) -> Vec<[u8; NONCE_LEN]> {
        use std::io::{Read, Write};

        let (mut reader, mut writer) = std::io::pipe().unwrap();
        // SAFETY: the child only draws (no lock of another thread is involved: the pool is
        // thread-local), allocates, writes to the pipe and leaves without running destructors.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let draw = |n| (0..n).map(|_| Nonce::draw().unwrap().0).collect::<Vec<_>>();
            let outcome = std::panic::catch_unwind(|| {
                let mut drawn = draw(3);
                if generations > 1 {
                    drawn.extend(draw_in_a_child(more, generations - 1));
                }
                drawn.extend(draw(more));
                drawn
            });
            let wrote = outcome.is_ok_and(|drawn| writer.write_all(drawn.as_flattened()).is_ok());
            // SAFETY: `_exit` is async-signal-safe.
            unsafe { libc::_exit(i32::from(!wrote)) };
        }
        drop(writer);
        let mut drawn = Vec::new();
        reader.read_to_end(&mut drawn).unwrap();
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        drawn.as_chunks().0.to_vec()
    }

    /// Invariant 1, and the finding that a forked child of a warmed generator repeats it: children
    /// and their children, one after another, and the parent before, between and after, within one
    /// pool and beyond; on threads that have drawn before and that have not.
    #[test]
    fn nonces_survive_a_fork() {
        let draw_all = |first| {
            let draw = |n| (0..n).map(|_| Nonce::draw().unwrap().0).collect::<Vec<_>>();
            let mut all = draw(first);
            for more in [3, 400] {
                all.extend(draw_in_a_child(more, 2));
                all.extend(draw(3));
            }
            all
        };
        let mut seen = draw_all(1);
        seen.extend(std::thread::spawn(move || draw_all(0)).join().unwrap());
        let drawn = seen.len();
        let with = |more: usize| 3 + 3 + more + more + 3;
        assert_eq!(drawn, 1 + 2 * (with(3) + with(400)));
        assert_eq!(seen.into_iter().collect::<HashSet<_>>().len(), drawn);
    }
}
