//! drained → clean → counted and whole → synced → certificate → destroyed. Each step hands on a proof
//! that only it can make, so no other order compiles (invariant 8).

use super::count::Counted;
use super::hold::may_go;
use super::pass::{CleanPass, Rewritten};
use crate::audit::{Certificate, CertificateKind};
use crate::engine::{Claim, Engine, OrgState};
use crate::error::Result;
use crate::failpoint;
use crate::id::{KeyVersion, Suite};

/// Proof that after a clean pass an independent scan, which missed no record, found none under these.
pub(super) struct CountedZero {
    pass: CleanPass,
    versions: Vec<KeyVersion>,
    suite: Option<Suite>,
}

/// Proof that everything counted is durable.
pub(super) struct Synced(CountedZero);

impl CountedZero {
    /// What the count clears of what was leaving when the writers had drained; `None` if that
    /// is nothing. A record whose header cannot be read may be anyone's: it clears nothing.
    pub(super) fn new(
        pass: CleanPass,
        counted: &Counted,
        suite_before: Option<Suite>,
    ) -> Option<Self> {
        let census = counted.census();
        if census.malformed > 0 {
            return None;
        }
        let leaving = &pass.leaving;
        let is_zero = |version: &KeyVersion| !census.names_version(*version);
        let versions: Vec<_> = leaving.versions.iter().copied().filter(is_zero).collect();
        let is_gone =
            |suite: &Suite| *suite != leaving.suite && !census.by_suite.contains_key(suite);
        let suite = suite_before.filter(is_gone);
        (!versions.is_empty() || suite.is_some()).then_some(Self { pass, versions, suite })
    }

    pub(super) fn versions(&self) -> &[KeyVersion] {
        &self.versions
    }

    /// Only what is also in `versions`, and the suite; `None` if nothing is left of it.
    pub(super) fn only(mut self, versions: &[KeyVersion]) -> Option<Self> {
        self.versions.retain(|version| versions.contains(version));
        (!self.versions.is_empty() || self.suite.is_some()).then_some(self)
    }

    pub(super) fn sync(self, engine: &Engine) -> Result<Synced> {
        engine.sync()?;
        Ok(Synced(self))
    }
}

/// Destroys what was proven to have no record left. Certificates and the keyring without the
/// material become true in one replacement of the keyring's file; then the material in memory
/// goes with the last operation that still uses it.
pub(super) fn retire(
    engine: &Engine,
    org: &OrgState,
    Synced(proof): Synced,
    rewritten: &Rewritten,
) -> Result<Vec<Certificate>> {
    let _span = tracing::info_span!("retire", versions = ?proof.versions).entered();
    failpoint::reach("retire.synced", &org.name);
    let CountedZero { pass, versions, suite } = proof;
    let count = |of: &dyn Fn(KeyVersion, Suite) -> bool| {
        rewritten.iter().filter(|&(&(v, s), _)| of(v, s)).map(|(_, count)| count).sum()
    };
    let certificates = engine.change(None, |keyring, drafts| {
        let successor = Some(pass.leaving.active);
        let claim = |kind, version, records_rewritten| Claim {
            records_rewritten,
            records_verified: pass.records,
            ..Claim::new(kind, org.id, version, successor)
        };
        let (now, observed) = (keyring.time.wall, keyring.time.observed);
        let entry = keyring.org_mut(org.id, &org.name)?;
        let mut claims = Vec::new();
        for &version in &versions {
            if !may_go(entry, version, observed) {
                continue;
            }
            entry.retire(version, now)?;
            let rewritten = count(&|v, _| v == version);
            claims.push(claim(CertificateKind::KeyRetired, version, rewritten));
        }
        if let Some(suite) = suite {
            entry.suite_before = None;
            let kind = CertificateKind::SuiteRetired { suite };
            let rewritten = count(&|_, s| s == suite);
            claims.push(claim(kind, entry.newest().version, rewritten));
        }
        let certified = claims.into_iter().map(|claim| engine.certify(keyring, drafts, claim));
        certified.filter_map(Result::transpose).collect::<Result<Vec<_>>>()
    })?;
    engine.publish(org);
    failpoint::reach("retire.done", &org.name);
    for Certificate { version, fingerprint, records_rewritten, .. } in &certificates {
        tracing::info!(org = %org.name, %version, %fingerprint, records_rewritten, "retired");
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::tests::engine;
    use crate::id::Origin;
    use crate::keyring::{NamePolicy, OrgPolicy};
    use crate::material::KeyMaterial;
    use crate::rotation::count::HeaderCount;
    use crate::rotation::job::Chunk;
    use crate::rotation::pass::Pass;
    use crate::storage::Space;

    fn clean_pass(engine: &Engine, org: &Arc<OrgState>) -> CleanPass {
        let mut pass = Pass::new(org);
        while !pass.is_over() {
            let chunk = Chunk { records: 10, at_once: 3 };
            let job = pass.job(engine, org, chunk, tracing::Span::none()).unwrap().unwrap();
            pass.done(job.run(engine));
        }
        pass.finish().ok().unwrap()
    }

    fn zero(
        pass: CleanPass,
        engine: &Engine,
        org: &Arc<OrgState>,
        suite_before: Option<Suite>,
    ) -> Option<CountedZero> {
        let mut count = HeaderCount::after(&pass, engine, org);
        let chunk = Chunk { records: 10, at_once: 3 };
        while let Some(job) = count.job(engine, org, chunk, tracing::Span::none()).unwrap() {
            count.done(job.run(engine));
        }
        CountedZero::new(pass, &count.finish(engine, org).unwrap().unwrap(), suite_before)
    }

    /// Invariant 8, where names are blinded: an envelope under the new key at a place of the old
    /// one keeps that alive, and so does a place that cannot be anybody's.
    #[test]
    fn a_name_that_the_pass_missed_stops_the_retirement() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let policy = OrgPolicy::byok().with_names(NamePolicy::Blinded);
        let org = engine.create_org("acme", policy).unwrap();
        engine.write(&org, b"a/b", Some(b"value")).unwrap();
        let place = |org: &OrgState| org.places(&org.gate.snapshot(), b"a/b").unwrap().newest;
        let old = place(&org);
        engine.install(&org, KeyMaterial::generate().unwrap(), Origin::Customer).unwrap();

        let pass = clean_pass(&engine, &org);
        let moved = engine.storage.get(Space::Records, &place(&org)).unwrap().unwrap();
        engine.storage.put(Space::Records, &old, Some(moved.to_vec())).unwrap();
        assert!(zero(pass, &engine, &org, None).is_none());

        // The pass finds the record at its new place, and removes the old one.
        let pass = clean_pass(&engine, &org);
        engine.storage.put(Space::Records, &old[..19], Some(moved.to_vec())).unwrap();
        assert!(zero(pass, &engine, &org, None).is_none());

        engine.storage.put(Space::Records, &old[..19], None).unwrap();
        let pass = clean_pass(&engine, &org);
        assert!(zero(pass, &engine, &org, None).is_some());
    }

    /// It may come back late, when its own pass was given up.
    #[test]
    fn a_chunk_of_another_pass_is_no_part_of_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        engine.write(&org, b"n", Some(b"value")).unwrap();
        let chunk = Chunk { records: 10, at_once: 3 };
        let job = |pass: &mut Pass| {
            pass.job(&engine, &org, chunk, tracing::Span::none()).unwrap().unwrap()
        };
        let (mut old, mut new) = (Pass::new(&org), Pass::new(&org));
        let (late, own) = (job(&mut old), job(&mut new));
        new.done(late.run(&engine));
        assert!(!new.is_over() && new.tally.scanned() == 0);
        new.done(own.run(&engine));
        assert_eq!(new.finish().ok().unwrap().records, 1);
    }

    /// Invariant 8: the count does not believe the pass.
    #[test]
    fn a_record_that_the_pass_missed_stops_the_retirement() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        for i in 0..25 {
            engine.write(&org, format!("n{i}").as_bytes(), Some(b"value")).unwrap();
        }
        let key = org.key(b"n7");
        let stale = engine.storage.get(Space::Records, &key).unwrap().unwrap();
        engine.install(&org, KeyMaterial::generate().unwrap(), Origin::Customer).unwrap();

        let pass = clean_pass(&engine, &org);
        assert_eq!(pass.records, 25);
        engine.storage.put(Space::Records, &key, Some(stale.to_vec())).unwrap();
        assert!(zero(pass, &engine, &org, None).is_none());

        let pass = clean_pass(&engine, &org);
        let mut garbled = stale.to_vec();
        garbled[0] = 0;
        engine.storage.put(Space::Records, &key, Some(garbled)).unwrap();
        assert!(zero(pass, &engine, &org, None).is_none(), "it may be anyone's");

        engine.storage.put(Space::Records, &key, None).unwrap();
        let pass = clean_pass(&engine, &org);
        let zero = zero(pass, &engine, &org, None).unwrap();
        let synced = zero.sync(&engine).unwrap();
        let certificates = retire(&engine, &org, synced, &Rewritten::new()).unwrap();
        assert_eq!(certificates[0].records_verified, 24);
    }
    /// Invariant 8, for a suite: it was left before the pass began, and the count finds none.
    #[test]
    fn a_suite_that_is_used_or_found_is_not_gone() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        engine.write(&org, b"n", Some(b"value")).unwrap();
        let key = org.key(b"n");
        let stale = engine.storage.get(Space::Records, &key).unwrap().unwrap();
        let before = clean_pass(&engine, &org);
        let suite = Some(engine.change_suite(&org, Suite::XChaCha20Poly1305).unwrap());
        engine.write(&org, b"n", None).unwrap();
        let begun_before = zero(before, &engine, &org, suite);
        assert!(begun_before.is_none(), "its writers may be inside");

        let pass = clean_pass(&engine, &org);
        engine.storage.put(Space::Records, &key, Some(stale.to_vec())).unwrap();
        assert!(zero(pass, &engine, &org, suite).is_none());

        engine.storage.put(Space::Records, &key, None).unwrap();
        let pass = clean_pass(&engine, &org);
        assert!(zero(pass, &engine, &org, suite).is_some());
    }
}
