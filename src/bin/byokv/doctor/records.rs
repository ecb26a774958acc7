//! Whether any record is missing.

use byokv::Store;

use super::{Level, Report};

/// Reads them all. Names each org of which one is missing or older than it was.
pub(super) fn records(report: &mut Report, store: &Store) {
    match store.verify() {
        Ok(()) => report.fine("records", "none is missing or older than it was"),
        Err(error) => {
            let advice = "keep a copy of the directory, then put back the newest one, or restore a \
                          backup; `byokv verify ORG --accept-loss` accepts the loss in one org";
            report.add(Level::Fault, "records", error.to_string(), advice);
        }
    }
}
