//! Where the store's files lie, and how much room there is.

use std::fs;
use std::io;
use std::path::Path;

use byokv::{ErasureLimit, Store, text};

use super::{Level, Report};

/// Whether all of the store lies in its directory, and what erasing in it reaches.
pub(super) fn borders(report: &mut Report, data: &Path) {
    let found = match Store::inspect(data) {
        Ok(found) => found,
        Err(error) => return report.add(Level::Fault, "files", error.to_string(), ""),
    };
    for error in &found.outside {
        let advice = "the store does not open before the file or directory itself lies there";
        report.add(Level::Fault, "files", error.to_string(), advice);
    }
    for path in &found.linked {
        let found = format!("{} has another name elsewhere, a hard link", text::path(path));
        let advice = "it is no copy: what the store erases is gone there too; copy files with \
                      `cp -a`, never with `cp -l`";
        report.add(Level::Notice, "files", found, advice);
    }
    let beside = |limit: &&ErasureLimit| **limit != ErasureLimit::BesideFiles;
    let mut limits = found.limits.iter().filter(beside).peekable();
    if limits.peek().is_none() {
        report.fine("file system", format!("{}, which writes in place", found.file_system));
    }
    for limit in limits {
        let advice = "keep the store on a file system that writes in place, such as ext4 or XFS, \
                      if erased ciphertext must be gone";
        report.add(Level::Notice, "file system", format!("erasing misses: {limit}"), advice);
    }
}

/// A rotation writes every record anew before sled reuses the space.
#[cfg(unix)]
pub(super) fn space(report: &mut Report, data: &Path) {
    let entries = fs::read_dir(data).into_iter().flatten().filter_map(io::Result::ok);
    // `db`, or `db.N` once residue was erased.
    let databases = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("db"));
    let files = databases
        .flat_map(|entry| [entry.path(), entry.path().join("blobs")])
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten())
        .filter_map(io::Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let used: u64 = files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
    match rustix::fs::statvfs(data) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let found = format!("{} MiB free, the database has {} MiB", free >> 20, used >> 20);
            if free < used.max(64 << 20) {
                let advice = "free some space: a rotation may need as much as the database has";
                report.add(Level::Fault, "disk", found, advice);
            } else {
                report.fine("disk", found);
            }
        }
        Err(e) => report.add(Level::Notice, "disk", e.to_string(), "look with `df`"),
    }
}

#[cfg(not(unix))]
pub(super) fn space(_: &mut Report, _: &Path) {}
