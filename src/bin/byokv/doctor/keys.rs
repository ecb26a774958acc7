//! Keys that an operator has to do something about.

use byokv::{KeyState, Store};

use super::super::root_key::advice;
use super::{Level, Report};

pub(super) fn keys(report: &mut Report, store: &Store) {
    for org in &store.orgs() {
        for key in org.versions.iter().filter(|key| key.state == KeyState::Suspended) {
            let found = format!(
                "{} of org {} is suspended, fingerprint {}",
                key.version, org.name, key.fingerprint
            );
            report.add(Level::Notice, "key", found, "`byokv key resume` takes the same key back");
        }
    }
    for key in store.keys().compromised_keys() {
        let found = format!(
            "{} of org {} is in a copy of the store that leaked, fingerprint {}",
            key.version, key.org, key.fingerprint
        );
        report.add(Level::Notice, "key", found, &advice(&key));
    }
}
