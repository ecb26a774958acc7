//! A program of operations on a store, against a `BTreeMap`.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use byokv::{KeyMaterial, NamePolicy, Org, OrgPolicy, RootKey, Store, Suite};

#[derive(Arbitrary, Debug)]
enum Op {
    Put(Of, Vec<u8>, Vec<u8>),
    Delete(Of, Vec<u8>),
    Swap(Of, Vec<u8>, Option<Vec<u8>>),
    Batch(Of, Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Scan(Of, Vec<u8>),
    Rotate(Of),
    Provision(Of),
    ChangeSuite(Of),
    Reopen,
}

/// Whose records: of two orgs with clear names and one with blinded ones.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Of {
    Acme,
    Umbra,
    Blinded,
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(dir: &std::path::Path) -> Store {
    let mut root = *b"\x01\x92root key of the fuzzing harness";
    let root = KeyMaterial::from_bytes((&mut root[..32]).try_into().unwrap()).unwrap();
    Store::open(dir, RootKey::from_material(root)).unwrap()
}

fn check(org: &Org, model: &Model, prefix: &[u8]) {
    let expected: Vec<_> = model.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    let found: Vec<_> = org.scan(prefix).map(Result::unwrap).collect();
    assert!(
        found
            .iter()
            .map(|r| (&r.name, r.value.to_vec()))
            .eq(expected.iter().map(|(name, value)| (*name, value.to_vec())))
    );
    let backwards = org.scan(prefix).names().rev().map(Result::unwrap);
    assert!(backwards.eq(expected.iter().rev().map(|(name, _)| name.to_vec())));
}

fn run(ops: Vec<Op>) {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let dir = place.path().join("data");
    let names = ["acme", "umbra", "blinded"];
    let mut store = open(&dir);
    let mut orgs = names.map(|name| {
        let stored = if name == "blinded" { NamePolicy::Blinded } else { NamePolicy::Clear };
        store.create_org(name, OrgPolicy::byok().with_names(stored)).unwrap()
    });
    let mut models = [Model::new(), Model::new(), Model::new()];
    let valid = |i: Of, name: &[u8]| {
        let segments = name.split(|byte| *byte == b'/').count();
        !name.is_empty() && (!matches!(i, Of::Blinded) || segments <= 128)
    };
    for op in ops.into_iter().take(40) {
        match op {
            Op::Put(i, name, value) => {
                let put = orgs[i as usize].put(&name, &value);
                assert_eq!(put.is_ok(), valid(i, &name));
                if put.is_ok() {
                    models[i as usize].insert(name, value);
                }
            }
            Op::Delete(i, name) => {
                let deleted = orgs[i as usize].delete(&name);
                assert_eq!(deleted.is_ok(), valid(i, &name));
                models[i as usize].remove(&name);
            }
            Op::Swap(i, name, new) if valid(i, &name) => {
                let model = &mut models[i as usize];
                let expected = model.get(&name).cloned();
                let org = &orgs[i as usize];
                assert!(
                    !org.compare_and_swap(&name, Some(b"never stored"), None).unwrap().is_swapped()
                );
                let swap = org.compare_and_swap(&name, expected.as_deref(), new.as_deref());
                assert!(swap.unwrap().is_swapped());
                match new {
                    Some(new) => model.insert(name, new),
                    None => model.remove(&name),
                };
            }
            Op::Swap(..) => {}
            Op::Batch(i, writes) => {
                let all_valid = writes.iter().all(|(name, _)| valid(i, name));
                let mut batch = orgs[i as usize].batch();
                for (name, value) in &writes {
                    batch = match value {
                        Some(value) => batch.put(name, value),
                        None => batch.delete(name),
                    };
                }
                assert_eq!(batch.commit().is_ok(), all_valid);
                for (name, value) in writes.into_iter().filter(|_| all_valid) {
                    match value {
                        Some(value) => models[i as usize].insert(name, value),
                        None => models[i as usize].remove(&name),
                    };
                }
            }
            Op::Scan(i, prefix) => check(&orgs[i as usize], &models[i as usize], &prefix),
            Op::Rotate(i) => drop(store.keys().rotate_platform_key(names[i as usize])),
            Op::Provision(i) => {
                let key = KeyMaterial::generate().unwrap();
                store.keys().provision(names[i as usize], key).unwrap();
            }
            Op::ChangeSuite(i) => {
                for suite in Suite::ALL {
                    drop(store.keys().change_suite(names[i as usize], suite));
                }
            }
            Op::Reopen => {
                drop(orgs);
                store.close().unwrap();
                store = open(&dir);
                orgs = names.map(|name| store.org(name).unwrap());
            }
        }
    }
    for (org, model) in orgs.iter().zip(&models) {
        check(org, model, b"");
    }
    for rotation in store.keys().rotations().unwrap() {
        rotation.wait().unwrap();
    }
    for (org, model) in orgs.iter().zip(&models) {
        check(org, model, b"");
        let census = store.keys().census(org.name()).unwrap();
        assert!(census.by_version.len() <= 1 && census.malformed == 0);
        assert!(census.by_name_version.is_empty() || census.by_name_version == census.by_version);
    }
}

libfuzzer_sys::fuzz_target!(|ops: Vec<Op>| run(ops));
