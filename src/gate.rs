//! Writers enter and drain; readers are never held up.
//!
//! A writer holds its org's gate from reading the active version until its write is in the
//! tree. Replacing what the gate gives out waits for the writers inside, so that afterwards no
//! write under the old version can still arrive (invariant 4).

use std::ops::Deref;
use std::sync::{Arc, PoisonError};

mod sync {
    //! The lock, which loom can replace: crossbeam has no `ShardedLock` under loom.
    #[cfg(not(loom))]
    pub(super) use crossbeam::sync::{ShardedLock as Lock, ShardedLockReadGuard as ReadGuard};
    #[cfg(loom)]
    pub(super) use loom::sync::{RwLock as Lock, RwLockReadGuard as ReadGuard};
}
use sync::{Lock, ReadGuard};

/// Gives out snapshots of `T`.
pub(crate) struct Gate<T> {
    /// Held shared by each writer for the whole of its write.
    writers: Lock<Arc<T>>,
    /// Held shared only while the pointer is copied.
    readers: Lock<Arc<T>>,
}

/// A writer inside the gate, with the one snapshot it may use. Dropping it leaves.
#[must_use = "a writer that does not stay inside is not waited for"]
pub(crate) struct Entered<'a, T>(ReadGuard<'a, Arc<T>>);

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Proof that no writer is inside who entered before this snapshot was current.
pub(crate) struct Drained<T>(Arc<T>);

impl<T> Drained<T> {
    /// What every writer inside or to come uses, until it is replaced again.
    pub(crate) fn snapshot(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> Gate<T> {
    pub(crate) fn new(first: T) -> Self {
        let first = Arc::new(first);
        Self { writers: Lock::new(Arc::clone(&first)), readers: Lock::new(first) }
    }

    /// For an operation that writes. May wait for a replacement that is under way, never for
    /// other writers.
    pub(crate) fn enter(&self) -> Entered<'_, T> {
        Entered(self.writers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For an operation that reads; never waits for a writer.
    pub(crate) fn snapshot(&self) -> Arc<T> {
        Arc::clone(&self.readers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether `snapshot` is what readers get now.
    pub(crate) fn is_current(&self, snapshot: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.readers.read().unwrap_or_else(PoisonError::into_inner), snapshot)
    }

    /// Replaces the snapshot and waits until every writer that used an older one has left.
    ///
    /// 1. For readers; must come before 2, or a reader meets a value whose version its snapshot
    ///    does not have while that snapshot still counts as current.
    /// 2. For writers, once those inside have left.
    pub(crate) fn replace(&self, next: T) -> Drained<T> {
        let next = Arc::new(next);
        *self.readers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        Drained(next)
    }

    /// Waits until every writer inside has left, without replacing anything.
    pub(crate) fn drain(&self) -> Drained<T> {
        let exclusive = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        Drained(Arc::clone(&exclusive))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Invariant 4.
    #[test]
    fn replacing_waits_for_the_writer_inside_and_holds_up_no_reader() {
        let gate = Gate::new(1);
        let inside = gate.enter();
        let (done, replaced) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| done.send(*gate.replace(2).snapshot().as_ref()));
            assert!(replaced.recv_timeout(Duration::from_millis(50)).is_err());
            while *gate.snapshot() != 2 {
                std::thread::yield_now();
            }
            assert_eq!(*inside, 1);
            drop(inside);
            assert_eq!(replaced.recv().unwrap(), 2);
        });
        assert_eq!(*gate.enter(), 2);
        assert_eq!(**gate.drain().snapshot(), 2);
    }

    #[test]
    fn a_snapshot_outlives_its_replacement_and_knows_it() {
        let gate = Gate::new(1);
        let old = gate.snapshot();
        assert!(gate.is_current(&old));
        drop(gate.replace(2));
        assert_eq!(*old, 1);
        assert!(!gate.is_current(&old));
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;

    use super::*;

    /// Two writers store the version they chose; one thread replaces 1 by 2. Once the
    /// replacement has returned, no store of 1 may follow.
    #[test]
    fn no_write_under_the_old_version_arrives_after_the_replacement() {
        loom::model(|| {
            let gate = Arc::new(Gate::new(1u32));
            let replaced = Arc::new(AtomicU32::new(0));
            let writers: Vec<_> = (0..2)
                .map(|_| {
                    let (gate, replaced) = (Arc::clone(&gate), Arc::clone(&replaced));
                    thread::spawn(move || {
                        let inside = gate.enter();
                        let version = *inside;
                        let seen = replaced.load(Ordering::SeqCst);
                        assert!(version == 2 || seen == 0, "a late write under version 1");
                        drop(inside);
                    })
                })
                .collect();
            drop(gate.replace(2));
            replaced.store(1, Ordering::SeqCst);
            for writer in writers {
                writer.join().unwrap();
            }
        });
    }
}
