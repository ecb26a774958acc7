//! What the marks of a record promise, and whether a store keeps it.
//!
//! A mark is `KIND STATE …`: state `b` before a call, `w` when a buffered one has returned, `d` when
//! what it did is promised to be durable, `x` when it was refused.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use byokv::{Error, KeyState, Options, Result, RootKey, Store};

use super::common::{Ended, material};
use super::recorder::Event;
use super::workload::{claims, value};

/// One name of one org: what was written to it, in order.
#[derive(Default)]
struct History {
    /// Number and length of each write that may be there; no length is a delete.
    begun: Vec<(u64, Option<usize>)>,
    /// Numbers of writes that returned, with the mark's place.
    written: Vec<(usize, u64)>,
    /// The newest that is promised.
    durable: u64,
}

#[derive(Default)]
pub(crate) struct Ledger {
    histories: BTreeMap<(String, String), History>,
    /// Changes of keys that began, and of how many it is known that they ended.
    begun: Vec<Vec<String>>,
    done: Vec<Vec<String>>,
}

impl Ledger {
    pub(crate) fn of(events: &[Event]) -> Self {
        let mut ledger = Self::default();
        let mut syncs: HashMap<&str, usize> = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            let Event::Mark(text) = event else { continue };
            let words: Vec<&str> = text.split(' ').collect();
            match words[..] {
                ["W", state, org, name, number, ..] => {
                    let len = words.get(5).and_then(|len| len.parse().ok());
                    ledger.history(org, name, state, number, len, at);
                }
                ["B", state, org, x, number, len] => {
                    let len: usize = len.parse().unwrap();
                    let y = x.replace("/x", "/y");
                    for name in [x, &y] {
                        ledger.history(org, name, state, number, Some(len / 2), at);
                    }
                }
                ["S", "b", thread] => drop(syncs.insert(thread, at)),
                ["S", "d", thread] => ledger.synced(syncs[thread]),
                // What the first life only buffered, no later sync promises.
                ["killed"] => ledger.histories.values_mut().for_each(|h| h.written.clear()),
                ["K", state, ..] => {
                    let change = words[2..].iter().map(|&word| word.to_owned()).collect();
                    if state == "b" { &mut ledger.begun } else { &mut ledger.done }.push(change);
                }
                _ => {}
            }
        }
        ledger
    }

    fn history(
        &mut self,
        org: &str,
        name: &str,
        state: &str,
        number: &str,
        len: Option<usize>,
        at: usize,
    ) {
        let history = self.histories.entry((org.to_owned(), name.to_owned())).or_default();
        let number = number.parse().unwrap();
        match state {
            "b" => history.begun.push((number, len)),
            "x" => drop(history.begun.pop()),
            "w" => history.written.push((at, number)),
            "d" => history.durable = number,
            other => panic!("{other}"),
        }
    }

    fn synced(&mut self, began: usize) {
        for history in self.histories.values_mut() {
            let covered = history.written.iter().filter(|(at, _)| *at < began).map(|(_, n)| *n);
            history.durable = covered.max().unwrap_or(0).max(history.durable);
        }
    }

    fn last(of: &[Vec<String>], what: &str) -> Option<String> {
        of.iter().rev().find(|change| change[0] == what).map(|change| change[1].clone())
    }

    fn count(of: &[Vec<String>], what: &str, org: &str) -> usize {
        of.iter().filter(|change| change[0] == what && change[1] == org).count()
    }

    /// The root key that is promised.
    pub(crate) fn root(&self) -> String {
        Self::last(&self.done, "root").unwrap_or_else(|| self.begun[0][1].clone())
    }

    /// Opens with the root key that is promised, or the one that a change may have brought.
    pub(crate) fn open(&self, data: &Path) -> Result<Store> {
        let roots = self.begun.iter().filter(|change| change[0] == "root");
        let mut roots: Vec<&str> = roots.map(|change| change[1].as_str()).collect();
        let sure = Self::last(&self.done, "root");
        if let Some(at) = roots.iter().position(|root| Some(*root) == sure.as_deref()) {
            roots.drain(..at);
        }
        let open = |root: &str| {
            let root = RootKey::from_material(material(root));
            Options::new().cache_bytes(4 << 20).open(data, root)
        };
        match (open(roots[0]), roots.get(1)) {
            (Err(Error::RootKeyWrong { .. }), Some(next)) => open(next),
            (opened, _) => opened,
        }
    }

    /// Panics with what is missing, wrong or left undone.
    pub(crate) fn check(&self, store: &Store) {
        self.check_records(store);
        let keys = store.keys();
        for org in ["acme", "umbra"] {
            let Ok(status) = keys.status(org) else {
                assert_eq!(Self::count(&self.done, "create", org), 0, "the org {org} is lost");
                continue;
            };
            let installed = status.versions.len() - 1;
            let (least, most) = (
                Self::count(&self.done, "provision", org),
                Self::count(&self.begun, "provision", org),
            );
            assert!((least..=most).contains(&installed), "{org}: {installed} keys, not {least}");
            let census = keys.census(org).unwrap();
            for version in status.versions.iter().filter(|v| v.state == KeyState::Retired) {
                let left = census.by_version.get(&version.version).copied().unwrap_or_default();
                assert_eq!(left, 0, "{org}: records under the retired {}", version.version);
            }
            if status.versions.iter().any(|v| v.state == KeyState::Suspended) {
                let (suspended, resumed) = (
                    Self::count(&self.begun, "suspend", org),
                    Self::count(&self.done, "resume", org),
                );
                assert!(suspended > resumed, "{org}: suspended again");
                let given = self.begun.iter().rev().filter(|c| c[0] == "provision" && c[1] == org);
                let mut given = given.map(|change| keys.resume(org, material(&change[2])));
                assert!(given.any(|resumed| resumed.is_ok()), "{org}: no key resumes it");
            }
        }
        if Self::count(&self.done, "erase", "gone") > 0 {
            assert!(store.org("gone").is_err(), "an erased org is back");
        }
        let certificates: Vec<_> = keys.certificates().map(Result::unwrap).collect();
        for change in self.done.iter().filter(|change| change[0] == "certified") {
            let there = certificates.iter().any(|certificate| {
                certificate.org == change[1] && certificate.version.get().to_string() == change[2]
            });
            assert!(there, "the certificate of {} {} is lost", change[1], change[2]);
        }
        let entries = keys.audit().map(Result::unwrap).count();
        let audited = Self::last(&self.done, "audited").map_or(0, |n| n.parse().unwrap());
        assert!(entries >= audited, "{entries} audit entries, {audited} were there");
    }

    fn check_records(&self, store: &Store) {
        let mut pairs: HashMap<(String, String), bool> = HashMap::new();
        for ((org_name, name), history) in &self.histories {
            let org = match store.org(org_name) {
                Ok(org) => org,
                Err(_) => {
                    assert_eq!(history.durable, 0, "{org_name} is lost with its records");
                    continue;
                }
            };
            let found = match org.get(name) {
                Ok(found) => found,
                Err(Error::KeySuspended { .. }) => continue,
                Err(error) => panic!("{org_name} {name}: {error}"),
            };
            let may_be = |number: u64, len: Option<usize>| {
                number >= history.durable && history.begun.contains(&(number, len))
            };
            match &found {
                None => {
                    let deleted =
                        history.begun.iter().any(|(n, len)| len.is_none() && *n >= history.durable);
                    let lost = history.durable;
                    assert!(lost == 0 || deleted, "{org_name} {name}: write {lost} is lost");
                }
                Some(stored) => {
                    let (of, number, len) = claims(stored).expect("a value of this test");
                    assert!(
                        of == *name && value(name, number, len)[..] == stored[..],
                        "{name}: wrong"
                    );
                    let newest = history.durable;
                    assert!(may_be(number, Some(len)), "{org_name} {name}: {number} for {newest}");
                }
            }
            if name.ends_with("/x") || name.ends_with("/y") {
                let batch = (org_name.clone(), name[..name.len() - 2].to_owned());
                let other = *pairs.entry(batch).or_insert(found.is_some());
                assert_eq!(other, found.is_some(), "{org_name} {name}: half a batch");
            }
        }
    }

    /// Rotations that were under way go on to their end.
    pub(crate) fn finish(store: &Store) {
        let keys = store.keys();
        // A version that was resumed while a pass was under way takes another one.
        loop {
            let rotations = keys.rotations().unwrap();
            for rotation in &rotations {
                rotation.ended();
            }
            if rotations.is_empty() {
                break;
            }
        }
        for org in store.orgs() {
            let (newest, older) = org.versions.split_last().unwrap();
            assert_eq!(newest.state, KeyState::Active);
            assert!(older.iter().all(|version| version.state == KeyState::Retired));
        }
    }
}
