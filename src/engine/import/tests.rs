//! The life of a token by a clock of our own.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::AuditEvent;
use crate::engine::Engine;
use crate::engine::tests::engine as open;
use crate::error::{Error, ImportError};
use crate::failpoint::Clock;
use crate::id::TokenId;
use crate::import::ImportToken;
use crate::keyring::OrgPolicy;
use crate::material::KeyMaterial;

const MINUTE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

fn key() -> KeyMaterial {
    KeyMaterial::generate().unwrap()
}

/// A token for a minute.
fn made(engine: &Engine) -> ImportToken {
    let org = engine.org("acme").unwrap();
    engine.import_token(&org, MINUTE).unwrap()
}

/// A store with an org, and its clock.
fn begun(dir: &Path) -> (Arc<Engine>, Clock) {
    let clock = Clock::set_for(dir);
    let engine = open(dir);
    engine.create_org("acme", OrgPolicy::byok()).unwrap();
    (engine, clock)
}

fn refusal(engine: &Engine, token: &ImportToken) -> ImportError {
    let sealed = token.seal(&key()).unwrap();
    match engine.provision_sealed(&engine.org("acme").unwrap(), &sealed, None) {
        Err(Error::Import(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn is_live(engine: &Engine, id: TokenId) -> bool {
    engine.with_keyring(|keyring| keyring.token(id).is_ok())
}

fn expired_in_audit(engine: &Engine) -> Vec<TokenId> {
    let end = engine.with_keyring(|k| (k.audit_entries, k.audit_hash));
    let mut at = (0, Some([0; 32]));
    let mut expired = Vec::new();
    while at.0 < end.0 {
        let (entry, head) = engine.read_audit_entry(at, end).unwrap();
        at = (head.0, Some(head.1));
        if let AuditEvent::ImportTokenExpired { token } = entry.event {
            assert_eq!(entry.org.unwrap().name, "acme");
            expired.push(token);
        }
    }
    expired
}

fn expired(token: &ImportToken) -> ImportError {
    ImportError::Expired { token: token.id(), expired_unix_ms: token.expires_unix_ms() }
}

#[test]
fn the_last_millisecond_and_the_one_after() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, clock) = begun(&dir.path().join("data"));
    let token = made(&engine);
    assert_eq!(token.expires_unix_ms(), u64::try_from(clock.wall()).unwrap() + 60_000);
    clock.pass(MINUTE - MILLISECOND);
    engine.expire_tokens().unwrap();
    assert!(is_live(&engine, token.id()));
    clock.pass(MILLISECOND);
    engine.expire_tokens().unwrap();
    assert_eq!(refusal(&engine, &token), expired(&token));
    assert_eq!(expired_in_audit(&engine), [token.id()]);
}

/// Whoever sees a token can seal such a key under it: where another one is expected, they must not be
/// able to spend it.
#[test]
fn a_key_that_is_not_random_spends_the_token_only_where_none_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
    let token = made(&engine);
    let weak = token.seal(&KeyMaterial::take(&mut [1; 32])).unwrap();
    let announced = key();
    let expected = Some(announced.fingerprint());
    let refused = engine.provision_sealed(&org, &weak, expected);
    assert!(matches!(refused, Err(Error::KeyMaterial(_))), "{refused:?}");
    assert!(is_live(&engine, token.id()));
    let audited = engine.with_keyring(|k| k.audit_entries);
    engine.provision_sealed(&org, &weak, expected).unwrap_err();
    assert_eq!(engine.with_keyring(|k| k.audit_entries), audited + 1);
    engine.provision_sealed(&org, &token.seal(&announced).unwrap(), expected).unwrap();
    let token = made(&engine);
    let weak = token.seal(&KeyMaterial::take(&mut [1; 32])).unwrap();
    let refused = engine.provision_sealed(&org, &weak, None);
    assert!(matches!(refused, Err(Error::Import(ImportError::NotRandom(_)))), "{refused:?}");
    assert!(!is_live(&engine, token.id()));
}

#[test]
fn looking_changes_nothing_while_nothing_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    engine.create_org("acme", OrgPolicy::byok()).unwrap();
    made(&engine);
    let generation = engine.with_keyring(|keyring| keyring.generation);
    engine.expire_tokens().unwrap();
    assert_eq!(engine.with_keyring(|keyring| keyring.generation), generation);
}

/// Also when that change is the refusal of the very token.
#[test]
fn any_change_of_the_keyring_ends_what_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, clock) = begun(&dir.path().join("data"));
    let one = made(&engine);
    clock.pass(MINUTE);
    let two = made(&engine);
    // Making the second ended the first.
    assert!(!is_live(&engine, one.id()));
    assert!(is_live(&engine, two.id()));
    clock.pass(MINUTE);
    assert_eq!(refusal(&engine, &two), expired(&two));
    assert!(!is_live(&engine, two.id()));
    assert_eq!(expired_in_audit(&engine), [one.id(), two.id()]);
}

#[test]
fn opening_ends_what_expired_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (engine, clock) = begun(&data);
    let dead = made(&engine);
    clock.pass(MINUTE / 2);
    let live = made(&engine);
    assert!(is_live(&engine, dead.id()));
    engine.close().unwrap();
    drop(engine);
    clock.pass(MINUTE / 2);
    let engine = open(&data);
    assert!(is_live(&engine, live.id()));
    assert!(!is_live(&engine, dead.id()));
    assert_eq!(expired_in_audit(&engine), [dead.id()]);
    assert_eq!(refusal(&engine, &dead), expired(&dead));
}
