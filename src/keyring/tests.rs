//! The keyring's transitions.

use super::*;

const ACME: (OrgId, &str) = (OrgId::from_bytes([1; 16]), "acme");

fn org_mut(ring: &mut Keyring) -> Result<&mut OrgEntry> {
    ring.org_mut(ACME.0, ACME.1)
}

fn material(byte: u8) -> KeyMaterial {
    KeyMaterial::take(&mut [byte; 32])
}

fn ring() -> Keyring {
    let mut ring = Keyring::new(material(0).fingerprint()).unwrap();
    let id = OrgId::from_bytes([1; 16]);
    ring.create_org(id, "acme", OrgPolicy::byok(), material(1), 5).unwrap();
    ring
}

fn states(ring: &Keyring) -> Vec<KeyState> {
    ring.org("acme").unwrap().versions.iter().map(|v| v.state).collect()
}

fn version(number: u32) -> KeyVersion {
    KeyVersion::new(number).unwrap()
}

#[test]
fn a_rotation_through_its_states() {
    use KeyState::*;
    let mut ring = ring();
    let installed = ring.install(ACME, material(2), Origin::Customer, 6).unwrap();
    assert_eq!((installed.from, installed.to), (version(1), version(2)));
    assert_eq!(states(&ring), [DecryptOnly, Active]);
    let org = org_mut(&mut ring).unwrap();
    assert_eq!(org.leaving(), [version(1)]);
    org.retire(version(1), 7).unwrap();
    assert!(org.version(version(1)).unwrap().material.is_none());
    assert!(!org.is_rotating());
    assert_eq!(states(&ring), [Retired, Active]);
}

#[test]
fn the_active_version_cannot_be_retired() {
    let mut ring = ring();
    let refused = org_mut(&mut ring).unwrap().retire(version(1), 7);
    assert!(matches!(refused, Err(Error::KeyConflict { .. })));
    assert!(ring.org("acme").unwrap().newest().material.is_some());
}

/// Invariant 10.
#[test]
fn material_and_numbers_are_never_used_again() {
    let mut ring = ring();
    ring.create_org(OrgId::from_bytes([2; 16]), "umbra", OrgPolicy::byok(), material(3), 5)
        .unwrap();
    ring.install(ACME, material(2), Origin::Customer, 6).unwrap();
    org_mut(&mut ring).unwrap().retire(version(1), 7).unwrap();
    let umbra = (OrgId::from_bytes([2; 16]), "umbra");
    for (org, byte) in [(ACME, 1), (ACME, 2), (umbra, 2), (ACME, 3)] {
        let refused = ring.install(org, material(byte), Origin::Customer, 8);
        assert!(matches!(refused, Err(Error::KeyReused { .. })), "{org:?} {byte}");
    }
    let next = ring.install(ACME, material(4), Origin::Customer, 8).unwrap();
    assert_eq!(next.to, version(3));
}

#[test]
fn suspension_withholds_customer_keys_and_takes_back_only_the_same() {
    let mut ring = ring();
    assert!(org_mut(&mut ring).unwrap().suspend().is_err());
    ring.install(ACME, material(2), Origin::Customer, 6).unwrap();
    let org = org_mut(&mut ring).unwrap();
    org.note(version(2), |entry| {
        (entry.held, entry.released) = (Some(Hold { since: 7, observed: 7 }), true);
    })
    .unwrap();
    assert_eq!(org.suspend().unwrap(), [version(2)]);
    assert!(org.newest().material.is_none());
    assert_eq!((org.newest().held, org.newest().released), (None, false), "it is held anew");
    assert!(ring.install(ACME, material(4), Origin::Customer, 6).is_err());
    let org = org_mut(&mut ring).unwrap();
    assert!(matches!(org.resume(material(9)), Err(Error::WrongKey { .. })));
    assert_eq!(org.resume(material(2)).unwrap(), version(2));
    assert_eq!(states(&ring), [KeyState::DecryptOnly, KeyState::Active]);
}

#[test]
fn an_erased_org_leaves_its_name_and_nothing_else() {
    let mut ring = ring();
    ring.install(ACME, material(2), Origin::Customer, 6).unwrap();
    assert_eq!(ring.erase(ACME.0, ACME.1, 7).unwrap(), [version(1), version(2)]);
    let entry = ring.entry(ACME.0).unwrap();
    assert!(entry.versions.iter().all(|v| v.material.is_none()));
    assert!(!entry.is_rotating());
    assert!(matches!(ring.org("acme"), Err(Error::OrgUnknown { .. })));
    let again = ring.install(ACME, material(4), Origin::Customer, 8);
    assert!(matches!(again, Err(Error::OrgErased { .. })));
    assert!(matches!(ring.erase(ACME.0, ACME.1, 8), Err(Error::OrgErased { .. })));
    let id = OrgId::from_bytes([2; 16]);
    let reused = ring.create_org(id, "acme", OrgPolicy::byok(), material(2), 9);
    assert!(matches!(reused, Err(Error::KeyReused { .. })));
    ring.create_org(id, "acme", OrgPolicy::byok(), material(5), 9).unwrap();
}

#[test]
fn who_is_not_entitled_changes_nothing() {
    let mut ring = ring();
    let id = OrgId::from_bytes([2; 16]);
    ring.create_org(id, "free", OrgPolicy::platform_only(), material(3), 5).unwrap();
    let refused =
        ring.install((OrgId::from_bytes([2; 16]), "free"), material(4), Origin::Customer, 6);
    assert!(matches!(refused, Err(Error::NotEntitled { .. })));
    assert_eq!(ring.org("free").unwrap().versions.len(), 1);
    ring.install((OrgId::from_bytes([2; 16]), "free"), material(4), Origin::Platform, 6).unwrap();
}

#[test]
fn an_encoded_keyring_comes_back_whole() {
    let mut ring = ring();
    ring.install(ACME, material(2), Origin::Customer, 6).unwrap();
    let bytes = crate::sealed::encode(&ring.duplicate());
    let back: Keyring = crate::sealed::decode(&bytes).unwrap();
    assert_eq!(crate::sealed::encode(&back), bytes);
    assert_eq!(
        back.org("acme").unwrap().newest().material.as_ref().unwrap().expose_bytes(),
        &[2; 32]
    );
}

#[test]
fn in_fips_mode_no_org_has_or_gets_a_suite_that_is_not_approved() {
    fn refused<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::SuiteNotApproved { .. }))
    }
    let other = Suite::XChaCha20Poly1305;
    let mut ring = ring();
    ring.fips_mode = true;
    let policy = OrgPolicy::byok().with_suite(other);
    assert!(refused(ring.create_org(OrgId::from_bytes([2; 16]), "b", policy, material(2), 5)));
    assert!(refused(ring.check_suite("acme", other)));
    ring.check_suites().unwrap();
    // As a build without `fips` left it, in the middle of a change and after it.
    org_mut(&mut ring).unwrap().suite_before = Some(other);
    assert!(refused(ring.check_suites()));
    org_mut(&mut ring).unwrap().suite_before = None;
    org_mut(&mut ring).unwrap().suite = other;
    assert!(refused(ring.check_suites()));
}

#[test]
fn a_name_that_looks_like_a_taken_one_is_refused_until_that_is_erased() {
    let mut ring = ring();
    let id = |byte| OrgId::from_bytes([byte; 16]);
    ring.create_org(id(2), "paypal", OrgPolicy::byok(), material(2), 5).unwrap();
    let mut create = |name: &str| ring.create_org(id(9), name, OrgPolicy::byok(), material(9), 5);
    for (name, like) in [("paypaI", "paypal"), ("\u{430}cme", ""), ("acrne", "acme")] {
        match create(name) {
            Err(Error::OrgLooksAlike { org, other }) => assert_eq!((&*org, &*other), (name, like)),
            Err(Error::InvalidOrgName { .. }) => assert_eq!(like, "", "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(matches!(create("acme"), Err(Error::OrgExists { .. })));
    ring.erase(ACME.0, ACME.1, 8).unwrap();
    ring.create_org(id(9), "acrne", OrgPolicy::byok(), material(9), 5).unwrap();
    let again = ring.create_org(id(10), "acme", OrgPolicy::byok(), material(10), 5);
    assert!(matches!(again, Err(Error::OrgLooksAlike { .. })), "also one of the same change");
}
