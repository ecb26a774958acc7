//! Named points in the code at which a test may look, wait or kill the process, and clocks that a
//! test sets.
//!
//! Compiled in only with the feature `failpoints` *and* debug assertions; in any
//! other build `reach` is an empty inline function. A child process is killed
//! at a point by `BYOKV_FAILPOINT=name` in its environment (`name:n` for the
//! n-th time it is reached). It appends the name of each point that it reaches
//! to the file that `BYOKV_FAILPOINT_TRACE` names.

#[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
mod clock;

#[cfg(any(test, all(feature = "failpoints", debug_assertions)))]
pub use clock::Clock;
#[cfg(all(feature = "failpoints", debug_assertions))]
pub use enabled::*;

/// All lists.
pub const LISTS: &[&[&str]] =
    &[DUE, ALL, ERASURE, RESIDUE, SECRET, RESTORE, OPENING, BLINDED, LARGE];

/// The points that opening a store passes besides those of the keyring and of syncs.
pub const OPENING: &[&str] =
    &["keyring.leftover_synced", "open.discarded", "open.begun", "open.marked", "open.paid"];

/// The point at which a key that is due has been found, and nothing was done yet.
pub const DUE: &[&str] = &["due.found"];

/// The points that the erasure of an org passes besides those of the keyring and of syncs.
pub const ERASURE: &[&str] = &["erase.keys_gone", "erase.deleted", "erase.counted"];

/// The points that the removal of residue passes besides those.
pub const RESIDUE: &[&str] = &[
    "residue.copied",
    "residue.frozen",
    "residue.switched",
    "residue.overwritten",
    "residue.removed",
    "residue.counted",
];

/// The points that a change of a compromised root key passes besides those of the keyring.
pub const SECRET: &[&str] =
    &["secret.copied", "secret.frozen", "secret.marked", "secret.switched", "secret.removed"];

/// The points that a backup and a restore pass besides those.
pub const RESTORE: &[&str] = &[
    "backup.begun",
    "backup.caught_up",
    "backup.sealed",
    "backup.ended",
    "backup.given_up",
    "restore.begun",
    "restore.written",
    "restore.synced",
    "restore.finished",
    "restore.discarded",
];

/// The points that large pages pass when sled drops them.
pub const LARGE: &[&str] =
    &["pages.linked", "pages.unlinked", "pages.overwritten", "pages.removed"];

/// The points that only an org with blinded names passes.
pub const BLINDED: &[&str] = &["names.looked", "names.moved"];

/// The points of a rotation, in the order in which a key's life passes them.
pub const ALL: &[&str] = &[
    "put.sealed",
    "own.sealed",
    "get.started",
    "get.fetched",
    "keyring.begun",
    "keyring.written",
    "keyring.exchanged",
    "keyring.dir_synced",
    "keyring.overwritten",
    "keyring.saved",
    "keyring.published",
    "outbox.written",
    "rewrite.sealed",
    "rewrite.swapped",
    "rewrite.passed",
    "verify.counted",
    "retire.synced",
    "retire.done",
    "sync.summed",
    "sync.counted",
    "sync.flushed",
    "mark.written",
    "sync.marked",
];

#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline(always)]
pub(crate) fn reach(_point: &'static str, _org: &str) {}

#[cfg(all(feature = "failpoints", debug_assertions))]
mod enabled {
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, OnceLock, PoisonError, RwLock};

    type Action = Arc<dyn Fn() + Send + Sync>;

    struct Hook {
        id: u64,
        point: &'static str,
        org: String,
        action: Action,
    }

    static INSTALLED: AtomicUsize = AtomicUsize::new(0);
    static HOOKS: RwLock<Vec<Hook>> = RwLock::new(Vec::new());
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);

    fn kill_at() -> Option<&'static (String, AtomicUsize)> {
        static KILL_AT: OnceLock<Option<(String, AtomicUsize)>> = OnceLock::new();
        KILL_AT
            .get_or_init(|| {
                let text = std::env::var("BYOKV_FAILPOINT").ok()?;
                let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
                let count = count.parse().unwrap_or(1);
                Some((name.to_owned(), AtomicUsize::new(count)))
            })
            .as_ref()
    }

    fn trace() -> Option<&'static File> {
        static TRACE: OnceLock<Option<File>> = OnceLock::new();
        TRACE
            .get_or_init(|| {
                let path = std::env::var_os("BYOKV_FAILPOINT_TRACE")?;
                File::options().append(true).create(true).open(path).ok()
            })
            .as_ref()
    }

    pub(crate) fn reach(point: &'static str, org: &str) {
        if let Some(mut trace) = trace() {
            let _ = trace.write_all(format!("{point}\n").as_bytes());
        }
        if let Some((name, left)) = kill_at()
            && name == point
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            std::process::abort();
        }
        if INSTALLED.load(Ordering::Acquire) == 0 {
            return;
        }
        let actions: Vec<Action> = HOOKS
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|hook| hook.point == point && hook.org == org)
            .map(|hook| Arc::clone(&hook.action))
            .collect();
        for action in actions {
            action();
        }
    }

    /// Takes its action away when dropped.
    #[must_use = "the action is removed when this is dropped"]
    #[derive(Debug)]
    pub struct Installed(u64);

    impl Drop for Installed {
        fn drop(&mut self) {
            let mut hooks = HOOKS.write().unwrap_or_else(PoisonError::into_inner);
            hooks.retain(|hook| hook.id != self.0);
            INSTALLED.store(hooks.len(), Ordering::Release);
        }
    }

    /// Calls `action` whenever `point` is reached for `org` (`""` for points that no org has).
    pub fn on(
        point: &'static str,
        org: &str,
        action: impl Fn() + Send + Sync + 'static,
    ) -> Installed {
        let known = super::LISTS.concat().contains(&point);
        assert!(known, "no failpoint has the name {point}");
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mut hooks = HOOKS.write().unwrap_or_else(PoisonError::into_inner);
        hooks.push(Hook { id, point, org: org.to_owned(), action: Arc::new(action) });
        INSTALLED.store(hooks.len(), Ordering::Release);
        Installed(id)
    }
}
