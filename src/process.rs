//! Keeping keys and values out of what outlives a process: swap and core dumps.
//!
//! Both concern the process as a whole, so they are its owner's to call, first thing in `main`: the
//! store does neither by itself. What is locked is all memory and not only the pages of keys, for
//! keys also lie expanded inside of the ciphers, on stacks and in registers that are saved there.

use crate::error::{Error, Result};

/// Locks all memory of this process, what it has and what it will have, so that none of it is
/// swapped ([`mlockall(2)`], each page once it is touched; Linux 4.4). Hibernation writes it to disk
/// all the same.
///
/// It needs `CAP_IPC_LOCK`, or a limit (`ulimit -l`, `LimitMEMLOCK` of a service) above all address
/// space that the process will ever take: where it meets the limit later, the process gets no
/// more memory, and ends. So let it have the capability, or `unlimited`.
///
/// ```no_run
/// byokv::process::lock_memory()?;
/// byokv::process::forbid_core_dumps()?;
/// # Ok::<(), byokv::Error>(())
/// ```
///
/// [`mlockall(2)`]: https://man7.org/linux/man-pages/man2/mlockall.2.html
///
/// # Errors
/// [`Error::MemoryNotLocked`]: the limit is too low, or the system is not Linux.
pub fn lock_memory() -> Result<()> {
    lock_all().map_err(|e| Error::MemoryNotLocked { why: e.to_string() })
}

/// Lets this process and those that it starts leave no core dumps, for good: neither in a file
/// nor, on Linux, with a program that the system pipes them to (`systemd-coredump`, `apport`). A dump
/// that a crash handler of the process's own makes is not kept back.
///
/// By a limit (`RLIMIT_CORE`) of 1 byte, by which Linux makes none at all, where with 0 it would
/// still pipe one ([`core(5)`]; `fs/coredump.c` in the kernel); elsewhere of 0. Who has a hard limit
/// of 0 may not raise it to 1: then the process is made one that cannot be dumped
/// ([`PR_SET_DUMPABLE(2const)`]), which holds for itself and not for what it starts; debuggers of
/// the same user are kept out too, and its `/proc/self/fd` belongs to root.
///
/// [`core(5)`]: https://man7.org/linux/man-pages/man5/core.5.html
/// [`PR_SET_DUMPABLE(2const)`]: https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html
///
/// # Errors
/// [`Error::Io`]: the system is no Unix.
pub fn forbid_core_dumps() -> Result<()> {
    no_dumps().map_err(|e| Error::io("forbidding core dumps", e))
}

#[cfg(target_os = "linux")]
fn lock_all() -> std::io::Result<()> {
    use rustix::mm::{MlockAllFlags, mlockall};
    // On fault: else all that allocators have reserved would be filled with zeros at once.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(mlockall(all)?)
}

#[cfg(not(target_os = "linux"))]
fn lock_all() -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn limit_dumps(bytes: u64) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = Some(bytes);
    Ok(setrlimit(Resource::Core, Rlimit { current: limit, maximum: limit })?)
}

#[cfg(target_os = "linux")]
fn no_dumps() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if limit_dumps(1).is_err() {
        limit_dumps(0)?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

#[cfg(all(unix, not(target_os = "linux")))]
fn no_dumps() -> std::io::Result<()> {
    limit_dumps(0)
}

#[cfg(not(unix))]
fn no_dumps() -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
