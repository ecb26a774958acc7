//! A program of operations on a store, against a `BTreeMap`.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use byokv::{KeyMaterial, Org, OrgPolicy, RootKey, Store, Suite};

#[derive(Arbitrary, Debug)]
enum Op {
    Put(bool, Vec<u8>, Vec<u8>),
    Delete(bool, Vec<u8>),
    Swap(bool, Vec<u8>, Option<Vec<u8>>),
    Batch(bool, Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Scan(bool, Vec<u8>),
    Rotate(bool),
    Provision(bool),
    ChangeSuite(bool),
    Reopen,
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
    assert!(found.iter().map(|r| (&r.name, r.value.to_vec())).eq(expected
        .iter()
        .map(|(name, value)| (*name, value.to_vec()))));
    let backwards = org.scan(prefix).names().rev().map(Result::unwrap);
    assert!(backwards.eq(expected.iter().rev().map(|(name, _)| name.to_vec())));
}

fn run(ops: Vec<Op>) {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let dir = place.path().join("data");
    let names = ["acme", "umbra"];
    let mut store = open(&dir);
    let mut orgs = names.map(|name| store.create_org(name, OrgPolicy::byok()).unwrap());
    let mut models = [Model::new(), Model::new()];
    let valid = |name: &[u8]| !name.is_empty();
    for op in ops.into_iter().take(40) {
        match op {
            Op::Put(i, name, value) => {
                let put = orgs[usize::from(i)].put(&name, &value);
                assert_eq!(put.is_ok(), valid(&name));
                if put.is_ok() {
                    models[usize::from(i)].insert(name, value);
                }
            }
            Op::Delete(i, name) => {
                let deleted = orgs[usize::from(i)].delete(&name);
                assert_eq!(deleted.is_ok(), valid(&name));
                models[usize::from(i)].remove(&name);
            }
            Op::Swap(i, name, new) if valid(&name) => {
                let model = &mut models[usize::from(i)];
                let expected = model.get(&name).cloned();
                let org = &orgs[usize::from(i)];
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
                let all_valid = writes.iter().all(|(name, _)| valid(name));
                let mut batch = orgs[usize::from(i)].batch();
                for (name, value) in &writes {
                    batch = match value {
                        Some(value) => batch.put(name, value),
                        None => batch.delete(name),
                    };
                }
                assert_eq!(batch.commit().is_ok(), all_valid);
                for (name, value) in writes.into_iter().filter(|_| all_valid) {
                    match value {
                        Some(value) => models[usize::from(i)].insert(name, value),
                        None => models[usize::from(i)].remove(&name),
                    };
                }
            }
            Op::Scan(i, prefix) => check(&orgs[usize::from(i)], &models[usize::from(i)], &prefix),
            Op::Rotate(i) => drop(store.keys().rotate_platform_key(names[usize::from(i)])),
            Op::Provision(i) => {
                let key = KeyMaterial::generate().unwrap();
                store.keys().provision(names[usize::from(i)], key).unwrap();
            }
            Op::ChangeSuite(i) => {
                for suite in Suite::ALL {
                    drop(store.keys().change_suite(names[usize::from(i)], suite));
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
    }
}

libfuzzer_sys::fuzz_target!(|ops: Vec<Op>| run(ops));
