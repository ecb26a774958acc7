//! What the parent knows: every operation that was started, and which were done, in the order in
//! which they were said.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::common::material;

/// What one operation makes of one name: the value that it writes, or none.
#[derive(Clone, Copy, Debug)]
struct Write {
    /// When it was started and when it was done, as places in what was said.
    start: usize,
    done: Option<usize>,
    durable: bool,
    value: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) durable: u64,
    pub(crate) buffered: u64,
    pub(crate) dropped: u64,
    pub(crate) keys: u64,
}

/// What is known of one org's keys; changes are made one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    /// Fingerprints of the keys that it brought; `None` for a platform key.
    versions: Vec<Option<String>>,
    suspended: bool,
    erased: bool,
}

#[derive(Default)]
pub(crate) struct Model {
    /// What was found at the last check, by org and name.
    found: BTreeMap<(String, String), u64>,
    writes: HashMap<(String, String), Vec<Write>>,
    /// Everything that was done before this place is durable.
    synced: usize,
    keys: BTreeMap<String, Keys>,
    /// The change that was started and not done, as the keys would be after it.
    pending: Option<(String, Keys)>,
    brought: BTreeMap<String, Vec<String>>,
    orgs: u64,
    changes: u64,
}

impl Model {
    /// For the next process: how many orgs there were, and every key that was brought.
    pub(crate) fn tell(&self) -> String {
        let mut told = self.orgs.to_string();
        for (org, keys) in &self.brought {
            told.push_str(&format!(" {org} {}", keys.join(",")));
        }
        told
    }

    /// Takes in what a process said before it was killed.
    pub(crate) fn hear(&mut self, lines: &[String]) {
        self.writes.clear();
        (self.synced, self.changes) = (0, 0);
        let mut open: HashMap<u64, (usize, Vec<String>)> = HashMap::new();
        for (place, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["start", id, ref what @ ..] => {
                    let id = id.parse().unwrap();
                    let what: Vec<_> = what.iter().map(|word| (*word).to_owned()).collect();
                    self.started(id, place, &what);
                    open.insert(id, (place, what));
                }
                [end @ ("done" | "refused"), id] => {
                    // The last line may have been cut.
                    let Some((start, what)) = open.remove(&id.parse().unwrap()) else { continue };
                    self.ended(&what, start, (end == "done").then_some(place));
                }
                _ => {}
            }
        }
    }

    fn started(&mut self, id: u64, start: usize, what: &[String]) {
        let words: Vec<&str> = what.iter().map(String::as_str).collect();
        let mut write = |org: &str, name: &str, durable: bool, value| {
            let write = Write { start, done: None, durable, value };
            let under = (org.to_owned(), name.to_owned());
            self.writes.entry(under).or_default().push(write);
        };
        match words[..] {
            [how, "put", org, name] => write(org, name, how == "durable", Some(id)),
            [how, "delete", org, name] => write(org, name, how == "durable", None),
            [how, "batch", org, one, two, three] => {
                write(org, one, how == "durable", Some(id));
                write(org, two, how == "durable", Some(id));
                write(org, three, how == "durable", None);
            }
            ["key", verb, org, ref rest @ ..] => {
                let mut keys = self.keys.get(org).cloned().unwrap_or_default();
                match (verb, rest) {
                    ("create", _) => {
                        self.orgs += 1;
                        keys.versions.push(None);
                        self.brought.entry(org.to_owned()).or_default();
                    }
                    ("rotate", _) => keys.versions.push(None),
                    ("provision", [key]) => {
                        self.brought.entry(org.to_owned()).or_default().push((*key).to_owned());
                        keys.versions.push(Some(material(key).fingerprint().to_string()));
                    }
                    ("suspend", _) => keys.suspended = true,
                    // Perhaps of one of two: then the other is still suspended.
                    ("resume", _) => keys.suspended = false,
                    ("erase", _) => keys.erased = true,
                    other => panic!("{other:?}"),
                }
                self.pending = Some((org.to_owned(), keys));
            }
            _ => {}
        }
    }

    fn ended(&mut self, what: &[String], start: usize, done: Option<usize>) {
        let words: Vec<&str> = what.iter().map(String::as_str).collect();
        let (how, names) = match words[..] {
            ["durable" | "buffered", _, org, ref names @ ..] => (words[0], (org, names)),
            ["key", ..] => {
                let (org, keys) = self.pending.take().unwrap();
                if done.is_some() {
                    self.keys.insert(org, keys);
                    self.changes += 1;
                }
                return;
            }
            // Everything that was done before these started is durable once they are done.
            ["synced" | "sync"] => {
                self.synced = self.synced.max(start);
                return;
            }
            _ => return,
        };
        for name in names.1 {
            let under = (names.0.to_owned(), (*name).to_owned());
            let writes = self.writes.get_mut(&under).unwrap();
            let index = writes.iter().position(|write| write.start == start).unwrap();
            match done {
                Some(_) => writes[index].done = done,
                None => drop(writes.remove(index)),
            }
        }
        if how == "durable" && done.is_some() {
            self.synced = self.synced.max(start);
        }
    }

    /// What a checking process found, against what must be and what may be. The losses.
    pub(crate) fn compare(&mut self, found: &str, totals: &mut Totals) -> Vec<String> {
        let mut lost = Vec::new();
        let mut records = BTreeMap::new();
        let mut versions: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        let mut certified = HashSet::new();
        for line in found.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["record", org, name, id] => {
                    records.insert((org.to_owned(), name.to_owned()), id.parse().unwrap());
                }
                ["key", org, _, print, state] => {
                    let keys = versions.entry(org.to_owned()).or_default();
                    keys.push((print.to_owned(), state.to_owned()));
                }
                ["certificate", org, version, _] => {
                    certified.insert((org.to_owned(), version.parse::<usize>().unwrap()));
                }
                _ => {}
            }
        }
        assert!(found.lines().any(|line| line == "end"), "{found}");
        self.compare_keys(&versions, &certified, &mut lost);
        self.compare_records(&records, &versions, &mut lost, totals);
        totals.keys += self.changes;
        self.found = records;
        lost
    }

    fn compare_keys(
        &mut self,
        versions: &BTreeMap<String, Vec<(String, String)>>,
        certified: &HashSet<(String, usize)>,
        lost: &mut Vec<String>,
    ) {
        let pending = self.pending.take();
        let mut orgs = self.keys.clone();
        if let Some((org, keys)) = &pending
            && versions.contains_key(org)
        {
            // It may have been made just before the kill.
            orgs.entry(org.clone()).or_insert_with(|| keys.clone());
        }
        for (org, expected) in orgs {
            let after = pending.as_ref().filter(|(name, _)| *name == org).map(|(_, keys)| keys);
            let choices: Vec<&Keys> = [Some(&expected), after].into_iter().flatten().collect();
            let seen = versions.get(&org);
            let fits = |keys: &&&Keys| match seen {
                None => keys.erased,
                Some(seen) => {
                    let suspended = seen.iter().any(|(_, state)| state == "suspended");
                    let same = seen.len() == keys.versions.len()
                        && seen.iter().zip(&keys.versions).all(|((seen, _), known)| {
                            known.as_ref().is_none_or(|known| known == seen)
                        });
                    // Several may be suspended, and are resumed one by one.
                    !keys.erased && same && (suspended || !keys.suspended)
                }
            };
            let Some(fitting) = choices.iter().find(fits) else {
                lost.push(format!("keys of {org}: {seen:?}, expected one of {choices:?}"));
                continue;
            };
            for (index, (_, state)) in seen.into_iter().flatten().enumerate() {
                if state == "retired" && !certified.contains(&(org.clone(), index + 1)) {
                    lost.push(format!("{org} v{}: retired without a certificate", index + 1));
                }
            }
            // The checker resumed what was suspended.
            let keys = Keys { suspended: false, ..(*fitting).clone() };
            self.keys.insert(org, keys);
        }
    }

    fn compare_records(
        &self,
        records: &BTreeMap<(String, String), u64>,
        versions: &BTreeMap<String, Vec<(String, String)>>,
        lost: &mut Vec<String>,
        totals: &mut Totals,
    ) {
        // What survives is a prefix: before a write that is there, all that were done are.
        let survived = self.writes.iter().filter_map(|(under, writes)| {
            let id = records.get(under)?;
            writes.iter().rfind(|write| write.value == Some(*id)).map(|write| write.start)
        });
        let prefix = survived.max().unwrap_or(0).max(self.synced);
        let untouched = self.found.keys().filter(|under| !self.writes.contains_key(under));
        for under in self.writes.keys().chain(untouched) {
            if !versions.contains_key(&under.0) {
                continue;
            }
            let writes = self.writes.get(under).map(Vec::as_slice).unwrap_or_default();
            let is_sure =
                |write: &Write| write.done.is_some_and(|done| write.durable || done < prefix);
            let sure = writes.iter().rposition(is_sure);
            let before = self.found.get(under).copied();
            let first = sure.map_or(before, |index| writes[index].value);
            let later = writes.iter().skip(sure.map_or(0, |index| index + 1));
            let seen = records.get(under).copied();
            let mut allowed = vec![first];
            allowed.extend(later.clone().map(|write| write.value));
            if !allowed.contains(&seen) {
                lost.push(format!("{under:?}: {seen:?}, expected one of {allowed:?}: {writes:?}"));
            }
            totals.durable +=
                writes.iter().filter(|w| w.durable && w.done.is_some()).count() as u64;
            totals.buffered += writes.iter().filter(|w| !w.durable && is_sure(w)).count() as u64;
            let done_last = later.clone().rfind(|write| write.done.is_some());
            totals.dropped += u64::from(done_last.is_some_and(|write| {
                seen != write.value && later.clone().all(|w| w.start <= write.start)
            }));
        }
        for under in records.keys() {
            if !self.writes.contains_key(under) && !self.found.contains_key(under) {
                lost.push(format!("{under:?} was never written"));
            }
        }
    }
}
