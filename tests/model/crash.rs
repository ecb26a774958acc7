//! What a crash left, found out.

use byokv::{KeyState, RetirePolicy};

use super::known::KnownOrg;
use super::ops::{Bytes, ORGS, Op, Retire, name_of};
use super::world::{World, create, material};

impl World {
    /// After a crash in the middle of `op`: what it may have done is looked up.
    pub(crate) fn find_out(&mut self, op: Option<&Op>) {
        self.known.made += 2;
        for i in 0..ORGS {
            if self.orgs.get(i).is_none_or(|org| org.name() != name_of(i)) {
                // Its erasure had begun, and its name is free.
                assert!(matches!(op, Some(Op::EraseOrg(who)) if who.index() == i));
                let org = create(&self.store, i);
                self.watches.insert(i, org.watch("").unwrap());
                self.orgs.insert(i, org);
            }
            if self.orgs[i].id().to_string() != self.known.orgs[i].id {
                assert!(matches!(op, Some(Op::EraseOrg(who)) if who.index() == i));
                self.known.orgs[i] = KnownOrg::new(&self.orgs[i]);
            }
            let status = self.store.keys().status(&name_of(i)).unwrap();
            let known = &mut self.known.orgs[i];
            known.changed.clear();
            known.may_bring_key = status.policy.may_bring_key();
            known.set_retire(match status.policy.retire() {
                RetirePolicy::Immediate => Retire::Immediate,
                RetirePolicy::AfterHold(_) => Retire::AfterAnHour,
                RetirePolicy::Manual => Retire::Manual,
            });
            if status.suite != known.suite() {
                assert!(matches!(op, Some(Op::ChangeSuite(who)) if who.index() == i));
                (known.suite, known.suite_changing) = (known.next_suite(), true);
            }
            if status.versions.len() > known.versions.len() {
                assert_eq!(status.versions.len(), known.versions.len() + 1);
                let newest = status.versions.last().unwrap().fingerprint;
                let brought = (0..=self.known.made).find(|n| material(*n).fingerprint() == newest);
                known.install(brought);
            }
            for (known, status) in known.versions.iter_mut().zip(&status.versions) {
                known.suspended = status.state == KeyState::Suspended;
            }
            while self.known.orgs[i].any_suspended() {
                self.resume(i);
            }
            let known = &mut self.known.orgs[i];
            if let Some(rotation) = self.store.keys().rotation(&name_of(i)).unwrap() {
                rotation.resume().unwrap();
                known.paused = false;
            }
        }
        let writes: Vec<(&Bytes, Option<&Bytes>)> = match op {
            Some(Op::PutDurably(_, name, value) | Op::Put(_, name, value)) => {
                vec![(name, Some(value))]
            }
            Some(Op::Delete(_, name)) => vec![(name, None)],
            Some(Op::Swap(_, name, new)) => vec![(name, new.as_ref())],
            Some(Op::Batch(_, writes)) => {
                writes.iter().map(|(name, value)| (name, value.as_ref())).collect()
            }
            _ => return,
        };
        let Some(
            Op::PutDurably(who, ..)
            | Op::Put(who, ..)
            | Op::Delete(who, _)
            | Op::Swap(who, ..)
            | Op::Batch(who, _),
        ) = op
        else {
            return;
        };
        let i = who.index();
        let mut after = self.known.orgs[i].clone();
        writes.iter().for_each(|(name, value)| after.set(name, *value));
        let names: Vec<_> = self.orgs[i].scan("").names().map(Result::unwrap).collect();
        let happened = writes.iter().all(|(name, _)| {
            let found = names.contains(&name.0).then(|| self.orgs[i].get(&name.0));
            match (found, after.get(name)) {
                (Some(Ok(found)), Some(new)) => found.as_deref() == Some(&new.0[..]),
                // Also where a later write of the batch deletes what this one put.
                (found, new) => found.is_none() && new.is_none(),
            }
        });
        // All or nothing: if it did not happen whole, the model stays as it was.
        if happened {
            self.known.orgs[i] = after;
        }
        self.known.orgs[i].changed.clear();
    }
}
