//! A moment at which nobody writes.

use super::{Engine, OrgState};
use crate::error::Result;
use crate::keyring::Keyring;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

impl Engine {
    /// Runs `look` while no write of the orgs (of those named, or of all) is under way, none
    /// can begin, and the keyring cannot change. Every write that returned before has told the
    /// org's watches. `look` must be quick: everybody waits for it.
    ///
    /// The keyring's lock is taken first, then the gates: nobody waits for it inside a gate.
    pub(crate) fn at_standstill<T>(
        &self,
        only: &HashSet<String>,
        look: impl FnOnce(&Keyring, &[Arc<OrgState>]) -> Result<T>,
    ) -> Result<T> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut orgs = self.orgs();
        orgs.retain(|org| only.is_empty() || only.contains(&*org.name));
        let _held: Vec<_> = orgs.iter().map(|org| org.gate.hold()).collect();
        look(&ring.keyring, &orgs)
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::tests::engine;
    use crate::keyring::OrgPolicy;

    #[test]
    fn nobody_writes_meanwhile_into_the_orgs_that_are_meant() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let orgs = ["acme", "umbra"].map(|org| engine.create_org(org, OrgPolicy::byok()).unwrap());
        let held = |only: &[&str]| {
            let only = only.iter().map(|only| (*only).to_owned()).collect();
            engine
                .at_standstill(&only, |_, _| Ok(orgs.each_ref().map(|org| org.gate.is_held())))
                .unwrap()
        };
        assert_eq!(held(&[]), [true, true]);
        assert_eq!(held(&["umbra"]), [false, true]);
        assert!(orgs.iter().all(|org| !org.gate.is_held()));
    }
}
