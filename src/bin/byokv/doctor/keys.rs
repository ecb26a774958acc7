//! Keys that an operator has to do something about.

use byokv::{KeyState, OrgStatus, Origin, Store};

use super::super::failure::quoted;
use super::super::root_key::advice;
use super::{Level, Report};

pub(super) fn keys(report: &mut Report, store: &Store) {
    let orgs = store.orgs();
    overdue(report, &orgs);
    for org in &orgs {
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

/// Keys that the org's policy wants replaced, and nobody replaces.
fn overdue(report: &mut Report, orgs: &[OrgStatus]) {
    for org in orgs.iter().filter(|org| !org.rotating) {
        let Some(key) = org.versions.last().filter(|key| key.state == KeyState::Active) else {
            continue;
        };
        if let Some(why) = key.due {
            let name = quoted(&org.name);
            let found = format!("{} of org {name} is overdue by {why}", key.version);
            let advice = match key.origin {
                Origin::Customer => {
                    format!("have the org bring a new key, `byokv key provision {name}`")
                }
                _ => format!("byokv key rotate {name}"),
            };
            report.add(Level::Waits, "key", found, &advice);
        }
    }
}
