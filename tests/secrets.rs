//! Invariant 1 where people look: logs, Debug, errors, panics. And the ways a root key comes in.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use byokv::{
    Error, Fingerprint, KeyMaterial, KeyMaterialError, KeyVersion, OrgPolicy, RootKey,
    RootKeyProvider, Store,
};
use common::{Place, check_filled, filled, key_text, material};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that the store says of itself, at the most talkative level, over a whole life of
/// keys, with errors and a panic: no value, no key, in no encoding.
#[test]
fn nothing_that_is_said_holds_a_secret() {
    const VALUE: &str = "the-secret-value-of-acme";
    let said = Captured::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut also = said.clone();
    let say = |what: &dyn std::fmt::Debug| write!(said.clone(), "{what:?} {what:#?}").unwrap();

    let place = Place::new();
    let root = place.root_key();
    say(&root);
    let store = Store::open(place.data(), root).unwrap();
    let org = filled(&store, "acme", 20);
    org.put("name", VALUE).unwrap();
    let keys = [key_text(), key_text(), key_text()];
    let key = material(&keys[0]);
    say(&key);
    let rotation = store.keys().provision("acme", key).unwrap();
    say(&rotation);
    say(&rotation.wait());
    for refused in [
        store.keys().provision("acme", material(&keys[0])).err(),
        store.keys().resume("acme", material(&keys[1])).err(),
        KeyMaterial::from_base64(&keys[1][1..]).err(),
        KeyMaterial::from_base64(&format!("{}!", keys[1])).err(),
        Store::open(place.data(), RootKey::from_material(material(&keys[2]))).err(),
        org.put("", VALUE).err(),
    ] {
        write!(also, "{}", refused.as_ref().unwrap()).unwrap();
        say(&refused.unwrap());
    }
    say(&org.get("name"));
    say(&org.scan("name").next());
    say(&org.batch().put("name", VALUE));
    say(&org.compare_and_swap("name", None, Some(b"x")));
    let watch = org.watch("").unwrap();
    org.put("name", VALUE).unwrap();
    say(&watch.recv_timeout(std::time::Duration::from_secs(5)));
    say(&(watch, org.clone(), store.keys(), store.metrics(), store.orgs()));
    say(&store.keys().audit().collect::<Vec<_>>());
    store.keys().suspend("acme").unwrap();
    say(&org.get("name"));
    store.keys().resume("acme", material(&keys[0])).unwrap();
    let backup_key = material(&keys[1]);
    say(&(store.backup(&backup_key), store.restore(&backup_key)));
    let mut file = Vec::new();
    say(&store.backup(&backup_key).write_to(&mut file));
    say(&store.restore(&backup_key).read_from(std::io::Cursor::new(&file)));
    store.change_root_key(RootKey::from_material(material(&keys[2]))).unwrap();
    say(&store);
    store.close().unwrap();

    let said = said.0.lock().unwrap();
    let text = String::from_utf8_lossy(&said);
    for told in [
        "install{org=acme origin=customer fingerprint=",
        "rotation{org=acme}:retire{versions=[KeyVersion(1)]}",
        "suspend{org=acme}",
        "resume{org=acme",
        "change_root_key{fingerprint=",
    ] {
        assert!(text.contains(told), "no span {told}");
    }
    assert!(!text.contains("the-secret-value"), "a value was said");
    for key in keys.iter().chain([&place.root]) {
        let bytes =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).unwrap();
        let hex: String = bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{}, {}, {}, {}", bytes[0], bytes[1], bytes[2], bytes[3]);
        let needles = [key[1..9].to_owned(), key[20..30].to_owned(), hex, list];
        for needle in needles {
            assert!(!text.contains(&needle), "part of a key was said");
        }
    }
}

#[test]
fn a_root_key_file_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    let text = key_text();
    fs::write(&path, format!("{text}\n")).unwrap();
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    // Where others may write: `tests/keyfiles.rs` has where they may not.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for open in [0o644, 0o640, 0o604, 0o620] {
        mode(open);
        let refused = RootKey::from_file(&path).unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, Error::RootKeyUnavailable { .. }) && said.contains("chmod 600"));
    }
    mode(0o600);
    let root = RootKey::from_file(&path).unwrap();
    assert_eq!(root.fingerprint(), material(&text).fingerprint());
    for (content, said) in
        [("", "it is empty"), ("AAAA\n", "3 came"), (&"x".repeat(9000), "one key")]
    {
        fs::write(&path, content).unwrap();
        let refused = RootKey::from_file(&path).unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
    let missing = RootKey::from_file(dir.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

#[test]
fn a_root_key_comes_from_the_environment() {
    let refused = RootKey::from_env("BYOKV_TEST_NOT_SET").unwrap_err();
    assert!(refused.to_string().contains("openssl rand -base64 32"), "{refused}");
    // `cargo test` sets this one, and it is no key.
    let refused = RootKey::from_env("CARGO_MANIFEST_DIR").unwrap_err();
    assert!(
        matches!(&refused, Error::RootKeyUnavailable { why } if why.contains("CARGO_MANIFEST_DIR"))
    );
}

/// A provider as somebody outside writes one: it wraps by what is public.
struct Elsewhere {
    key: KeyMaterial,
}

impl Elsewhere {
    const LABEL: &[u8] = b"wrapped elsewhere";

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose_bytes().into())
    }
}

impl RootKeyProvider for Elsewhere {
    fn fingerprint(&self) -> Fingerprint {
        self.key.fingerprint()
    }

    fn wrap(&self, key: &KeyMaterial) -> byokv::Result<Vec<u8>> {
        let nonce = *KeyMaterial::generate()?.expose_bytes().first_chunk::<12>().unwrap();
        let payload = Payload { msg: key.expose_bytes(), aad: Self::LABEL };
        let sealed = self.cipher().encrypt(&nonce.into(), payload).unwrap();
        Ok([&nonce[..], &sealed].concat())
    }

    fn unwrap(&self, wrapped: &[u8]) -> byokv::Result<Option<KeyMaterial>> {
        let Some((nonce, sealed)) = wrapped.split_first_chunk::<12>() else { return Ok(None) };
        let payload = Payload { msg: sealed, aad: Self::LABEL };
        let Ok(bytes) = self.cipher().decrypt(nonce.into(), payload) else { return Ok(None) };
        let Ok(mut bytes) = <[u8; 32]>::try_from(bytes) else { return Ok(None) };
        KeyMaterial::from_bytes(&mut bytes).map(Some)
    }
}

/// What a provider needs is a named call, not a serialization of the key.
#[test]
fn a_provider_wraps_with_the_public_calls_alone() {
    let place = Place::new();
    let key = key_text();
    let root = || RootKey::from_provider(Elsewhere { key: material(&key) });
    let store = Store::open(place.data(), root()).unwrap();
    drop(filled(&store, "acme", 20));
    store.close().unwrap();
    let store = Store::open(place.data(), root()).unwrap();
    check_filled(&store.org("acme").unwrap(), 20);
    store.close().unwrap();
    let keyring = fs::read(place.data().join("keyring")).unwrap();
    assert!(!keyring.windows(32).any(|bytes| bytes == material(&key).expose_bytes()));
}

/// Reproduced before: JSON of 32 zeros was taken for key material and could be provisioned. That
/// there is no serde any more is shown by the doctests of `KeyMaterial`.
#[test]
fn bytes_that_are_plainly_not_random_come_in_by_no_door() {
    let refused = |outcome: byokv::Result<KeyMaterial>| match outcome {
        Err(Error::KeyMaterial(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(KeyMaterial::from_bytes(&mut [0; 32])), KeyMaterialError::AllAlike);
    let zeros = format!("{}=", "A".repeat(43));
    assert_eq!(refused(KeyMaterial::from_base64(&zeros)), KeyMaterialError::AllAlike);
}

/// What is read from JSON is held to the rules that hold for what is set.
#[test]
fn what_is_read_as_json_is_checked() {
    let policy = OrgPolicy::byok().with_rotation_after_records(77);
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<OrgPolicy>(&text).unwrap(), policy);
    assert!(serde_json::from_str::<OrgPolicy>(&text.replace("77", "0")).is_err());
    assert_eq!(serde_json::from_str::<KeyVersion>("2").unwrap().get(), 2);
    assert!(serde_json::from_str::<KeyVersion>("0").is_err());
}

/// The data directory and what lies in it are for its owner alone.
#[test]
fn files_are_private() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    store.close().unwrap();
    let mode = |name: &str| {
        let meta = fs::metadata(place.data().join(name)).unwrap();
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode(""), 0o700);
    for file in ["keyring", "mark"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}
