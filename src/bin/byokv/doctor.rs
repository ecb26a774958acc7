//! `byokv doctor`: what is wrong with a store, and what to do.

mod clock;
mod disk;
mod keys;
mod modes;
mod records;
mod report;
mod rotations;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use byokv::Store;

use super::Context;
use super::failure::Result;
use report::{Level, Report};

pub(super) fn run(context: &Context) -> Result {
    let data = context.data()?;
    let mut report = Report::default();
    let there = outside(&mut report, data);
    let key = root_key(&mut report, context);
    if there && free(&mut report, data) && key {
        match context.open() {
            Ok(store) => inside(&mut report, store),
            Err(failure) => {
                let advice = failure.hint().unwrap_or_default();
                report.add(Level::Fault, "opening", failure.message(), &advice);
            }
        }
    }
    report.print(context.ui)
}

/// Files and the disk. Returns whether there is a store to open.
fn outside(report: &mut Report, data: &Path) -> bool {
    if !data.is_dir() {
        let found = format!("{} is not a directory", data.display());
        report.add(Level::Fault, "directory", found, "check the path, or run `byokv init`");
        return false;
    }
    modes::modes(report, data);
    for (what, name) in [("keyring", "keyring"), ("mark", "mark")] {
        let path = data.join(name);
        match path.try_exists() {
            Ok(true) => report.fine(what, "there"),
            Ok(false) => {
                let advice = "keep a copy of the directory; then put back a copy of all its parts together, \
                              or make a new store and `byokv restore` a backup into it";
                report.add(Level::Fault, what, format!("{} is missing", path.display()), advice);
            }
            Err(e) => {
                let advice = "run it as the user whose store it is";
                report.add(Level::Fault, what, format!("{}: {e}", path.display()), advice);
            }
        }
    }
    if data.join("keyring.new").exists() {
        let found = "keyring.new is left over from a change that was cut off";
        report.add(Level::Notice, "leftover", found, "nothing; the next open removes it");
    }
    disk::space(report, data);
    disk::borders(report, data);
    data.join("keyring").exists()
}

fn root_key(report: &mut Report, context: &Context) -> bool {
    let key = context.root_fingerprint();
    match &key {
        Ok(key) => {
            let fingerprint = format!("fingerprint {key}");
            match &context.global.root_key_file {
                Some(file) => {
                    report.fine("root key", format!("{fingerprint}, from {}", file.display()));
                }
                None => report.add(
                    Level::Notice,
                    "root key",
                    format!("{fingerprint}, from the environment"),
                    "prefer --root-key-file: child processes inherit the environment",
                ),
            }
        }
        Err(failure) => report.add(Level::Fault, "root key", failure.message(), ""),
    }
    key.is_ok()
}

/// Whether nobody has the store open. Takes the lock for a moment.
fn free(report: &mut Report, data: &Path) -> bool {
    let path = data.join("LOCK");
    let held = File::open(&path).map(|file| file.try_lock_shared());
    if let Err(e) = held.as_ref().map_err(io::Error::kind)
        && e != io::ErrorKind::NotFound
    {
        let found = format!("{} cannot be opened: {e}", path.display());
        report.add(Level::Fault, "lock", found, "run it as the user whose store it is");
        return false;
    }
    let Ok(Err(TryLockError::WouldBlock)) = held else {
        report.fine("lock", "no process has the store open");
        return true;
    };
    let pid = fs::read_to_string(&path).unwrap_or_default();
    let pid = match pid.trim() {
        "" => "a process",
        pid => &format!("the process {pid}"),
    };
    let advice = "nothing, if it is meant to run; stop it to have the inside looked at too";
    report.add(Level::Notice, "lock", format!("{pid} has the store open"), advice);
    false
}

fn inside(report: &mut Report, store: Store) {
    match store.metrics() {
        Ok(metrics) => report.fine(
            "store",
            format!(
                "{}, keyring generation {}, {} syncs, {} orgs",
                store.id(),
                metrics.keyring_generation,
                metrics.syncs,
                metrics.orgs.len()
            ),
        ),
        Err(error) => report.add(Level::Fault, "store", error.to_string(), ""),
    }
    records::records(report, &store);
    keys::keys(report, &store);
    clock::clock(report, store.keys().clock());
    rotations::rotations(report, &store);
    rotations::erasures(report, &store);
    let mut entries = 0_u64;
    match store.keys().audit().try_for_each(|entry| entry.map(|_| entries += 1)) {
        Ok(()) => report.fine("audit log", format!("{entries} entries, whole")),
        Err(error) => {
            let advice = "somebody or something changed the database: keep a copy, and restore it";
            report.add(Level::Fault, "audit log", error.to_string(), advice);
        }
    }
    certificates(report, &store);
    if let Err(error) = store.close() {
        report.add(Level::Fault, "closing", error.to_string(), "");
    }
}

fn certificates(report: &mut Report, store: &Store) {
    let found = match store.keys().verify_certificates() {
        Ok(found) => found,
        Err(error) => return report.add(Level::Fault, "certificates", error.to_string(), ""),
    };
    let advice = "`byokv certificate verify` looks at each";
    for check in found.checks.iter().filter(|check| !check.is_sound()) {
        report.add(Level::Fault, "certificate", check.to_string().replace('\n', ";"), advice);
    }
    for lost in &found.lost {
        let advice = "somebody or something changed the database: whoever has its JSON can still \
                      compare that with the audit log";
        report.add(Level::Fault, "certificate", lost.to_string(), advice);
    }
    if found.unreadable > 0 {
        let found = format!("{} do not open", found.unreadable);
        report.add(Level::Fault, "certificates", found, advice);
    }
    if found.is_sound() {
        let superseded = found.checks.iter().filter(|check| check.is_superseded()).count();
        let untrue = found.checks.iter().filter(|check| !check.is_true()).count();
        let all = match untrue {
            0 => format!("{}, all true", found.checks.len()),
            _ => format!("{}, {untrue} no longer true", found.checks.len()),
        };
        let superseded = (superseded > 0).then(|| format!(", {superseded} superseded"));
        report.fine("certificates", all + &superseded.unwrap_or_default());
    }
}
