//! The feature `fips`, with aws-lc's FIPS module (`--features fips,aws-lc-rs/fips`) and
//! without it.

#![cfg(feature = "fips")]
#![allow(clippy::unwrap_used)]

use byokv::{Error, KeyMaterial, OrgPolicy, RootKey, Store, Suite};

fn root() -> RootKey {
    let text = "8mXk2pQ0cVb7sLz1TnR4uYw9eHj3gAf5dBi6oKqMx+E=";
    RootKey::from_material(KeyMaterial::from_base64(text).unwrap())
}

#[test]
fn no_store_opens_without_the_fips_module() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let opened = Store::open(&data, root());
    if aws_lc_rs::try_fips_mode().is_ok() {
        opened.unwrap();
    } else {
        assert!(matches!(opened, Err(Error::FipsModuleMissing)), "{opened:?}");
        assert!(!data.exists(), "something was written");
    }
}

#[test]
fn with_the_module_the_approved_suite_works_and_the_other_is_refused() {
    if aws_lc_rs::try_fips_mode().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let store = Store::open(&data, root()).unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    org.durable().put("db", "before").unwrap();
    let rotation = store.keys().provision("acme", KeyMaterial::generate().unwrap()).unwrap();
    rotation.wait().unwrap();
    assert!(org.get("db").unwrap().unwrap() == b"before"[..]);

    let refused = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::SuiteNotApproved { .. })), "{result:?}");
    };
    let other = Suite::XChaCha20Poly1305;
    refused(store.create_org("globex", OrgPolicy::byok().with_suite(other)).map(drop));
    refused(store.keys().change_suite("acme", other).map(drop));
    drop((rotation, org, store));
    let store = Store::open(&data, root()).unwrap();
    assert!(store.org("acme").unwrap().get("db").unwrap().unwrap() == b"before"[..]);
    assert!(store.org("globex").is_err());
}
