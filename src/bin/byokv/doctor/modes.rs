//! Who may use the store's files.

use std::path::Path;

#[cfg(unix)]
use super::Level;
use super::Report;

/// Looks at the data directory, at everything in it, and at those above it.
#[cfg(unix)]
pub(super) fn modes(report: &mut Report, data: &Path) {
    let of_data = match data.metadata() {
        Ok(meta) => mode(&meta),
        Err(e) => return report.add(Level::Fault, "modes", e.to_string(), "check who owns it"),
    };
    let (mut open, mut failed) = (Vec::new(), Vec::new());
    walk(data, &mut open, &mut failed);
    let advice = format!("chmod -R go-rwx {}", byokv::text::path(data));
    if of_data & 0o077 != 0 {
        let found = format!("others than the owner may use the directory, mode {of_data:03o}");
        report.add(Level::Fault, "modes", found, &advice);
    }
    let count = open.len();
    if let Some((path, mode)) = open.into_iter().next() {
        let found = format!(
            "others than the owner may use {} (mode {mode:03o}){}",
            byokv::text::path(&path),
            if count > 1 {
                format!(" and {} more in the directory", count - 1)
            } else {
                String::new()
            }
        );
        // In a directory of mode 0700 nobody comes to them; a copy may lie elsewhere.
        let is_reached = of_data & 0o011 != 0;
        let level = if is_reached { Level::Fault } else { Level::Notice };
        report.add(level, "modes", found, &format!("{advice}; opening the store does the same"));
    } else if of_data & 0o077 == 0 {
        report.fine("modes", "the owner alone may use the directory and all in it");
    }
    for why in failed {
        report.add(Level::Fault, "modes", why, "run it as the user whose store it is");
    }
    above(report, data);
}

/// What others than the owner may use below `dir`.
#[cfg(unix)]
fn walk(dir: &Path, open: &mut Vec<(std::path::PathBuf, u32)>, failed: &mut Vec<String>) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return failed.push(format!("{}: {e}", byokv::text::path(dir))),
    };
    for entry in entries.filter_map(Result::ok) {
        // Not through links.
        let Ok(meta) = entry.metadata() else { continue };
        if mode(&meta) & 0o077 != 0 && !meta.is_symlink() {
            open.push((entry.path(), mode(&meta)));
        }
        if meta.is_dir() {
            walk(&entry.path(), open, failed);
        }
    }
}

/// Whoever may write a directory above may put another one in the place of the store's.
#[cfg(unix)]
fn above(report: &mut Report, data: &Path) {
    const WORLD_WRITES: u32 = 0o002;
    const STICKY: u32 = 0o1000;

    let Ok(data) = data.canonicalize() else { return };
    for dir in data.ancestors().skip(1) {
        let mode = dir.metadata().map_or(0, |meta| mode(&meta));
        if mode & WORLD_WRITES != 0 && mode & STICKY == 0 {
            let dir = byokv::text::path(dir);
            let found = format!(
                "everybody may write {dir} (mode {mode:03o}), and so put another directory in the \
                 place of the store's"
            );
            let advice = format!("chmod o-w {dir}, and open the store with --expect-store");
            report.add(Level::Notice, "modes", found, &advice);
        }
    }
}

#[cfg(unix)]
fn mode(meta: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(meta) & 0o7777
}

#[cfg(not(unix))]
pub(super) fn modes(_: &mut Report, _: &Path) {}
