//! FIPS mode, with aws-lc's FIPS module (`tests/fips/run`) and without it.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use byokv::{Error, KeyMaterial, Options, OrgPolicy, RootKey, Store, Suite};

fn has_module() -> bool {
    #[cfg(feature = "fips")]
    return aws_lc_rs::try_fips_mode().is_ok();
    #[cfg(not(feature = "fips"))]
    false
}

fn open(data: &Path) -> Result<Store, Error> {
    Options::new().fips_mode(true).open(data, root())
}

fn root() -> RootKey {
    let text = "8mXk2pQ0cVb7sLz1TnR4uYw9eHj3gAf5dBi6oKqMx+E=";
    RootKey::from_material(KeyMaterial::from_base64(text).unwrap())
}

#[test]
fn no_store_opens_in_fips_mode_without_the_module() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let opened = open(&data);
    if has_module() {
        opened.unwrap();
    } else {
        assert!(matches!(opened, Err(Error::FipsModuleMissing)), "{opened:?}");
        assert!(!data.exists(), "something was written");
    }
}

#[test]
fn with_the_module_the_approved_suite_works_and_the_other_is_refused() {
    if !has_module() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let store = open(&data).unwrap();
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
    let store = open(&data).unwrap();
    assert!(store.org("acme").unwrap().get("db").unwrap().unwrap() == b"before"[..]);
    assert!(store.org("globex").is_err());
}

/// Features add up: one crate of a build that asks for `fips` must not keep others from opening.
#[test]
fn the_feature_alone_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("data"), root()).unwrap();
    for suite in Suite::ALL.into_iter().filter(|suite| suite.is_available()) {
        let policy = OrgPolicy::byok().with_suite(suite);
        let org = store.create_org(&suite.to_string(), policy).unwrap();
        org.put("db", "value").unwrap();
        assert!(org.get("db").unwrap().unwrap() == b"value"[..]);
    }
}
