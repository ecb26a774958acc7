//! Invariant 1 where people look: logs, Debug, errors, panics. And the ways a root key comes in.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use byokv::{Error, KeyMaterial, OrgPolicy, RootKey, Store};
use common::{Place, filled, key_text, material};

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
    for open in [0o644, 0o640, 0o604, 0o620] {
        mode(open);
        let refused = RootKey::from_file(&path).unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, Error::RootKeyUnavailable { .. }) && said.contains("chmod 600"));
    }
    mode(0o600);
    let root = RootKey::from_file(&path).unwrap();
    assert_eq!(root.fingerprint(), material(&text).fingerprint());
    for (content, said) in [("", "0 came"), ("AAAA\n", "3 came"), (&"x".repeat(9000), "one key")] {
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
