//! Sealed import through the public API: a key never travels in plain, and comes in once.

#![cfg(feature = "import")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use byokv::{
    AuditEvent, Error, Fingerprint, ImportError, ImportToken, KeyMaterial, KeyRefusal, OrgPolicy,
    Origin, SealedKey, Store,
};
use common::{Ended, Place, check_filled, contents, filled, key_text, material};
use proptest::prelude::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn new_key() -> KeyMaterial {
    KeyMaterial::generate().unwrap()
}

/// As it comes to the customer, who seals a key and sends it back.
fn sealed(token: &ImportToken, key: &KeyMaterial) -> SealedKey {
    let token: ImportToken = token.to_string().parse().unwrap();
    token.seal(key).unwrap().to_string().parse().unwrap()
}

fn import(store: &Store, org: &str, sealed: &SealedKey) -> Result<(), Error> {
    store.keys().provision_sealed(org, sealed, None).map(drop)
}

fn refusal(result: Result<(), Error>) -> ImportError {
    match result {
        Err(Error::Import(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn versions(store: &Store, org: &str) -> usize {
    store.keys().status(org).unwrap().versions.len()
}

fn active(store: &Store, org: &str) -> (Fingerprint, Origin) {
    let active = store.keys().status(org).unwrap().versions.pop().unwrap();
    (active.fingerprint, active.origin)
}

fn events(store: &Store) -> Vec<AuditEvent> {
    store.keys().audit().map(|entry| entry.unwrap().event).collect()
}

#[test]
fn a_key_comes_in_sealed_and_the_old_one_is_retired() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 50);
    let token = store.keys().import_token("acme", DAY).unwrap();
    assert_eq!((token.org_name(), token.org_id()), ("acme", org.id()));
    assert_eq!(token.store_id(), store.id());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let left = Duration::from_millis(token.expires_unix_ms()).checked_sub(now).unwrap();
    assert!(left <= DAY && left > DAY - Duration::from_secs(60), "{left:?}");

    let text = key_text();
    let key = material(&text);
    let fingerprint = key.fingerprint();
    let sealed = sealed(&token, &key);
    assert_eq!(sealed.token_id(), token.id());
    let rotation = store.keys().provision_sealed("acme", &sealed, Some(fingerprint)).unwrap();
    assert_eq!(rotation.ended().version.get(), 1);
    assert_eq!(active(&store, "acme"), (fingerprint, Origin::Customer));
    check_filled(&org, 50);
    let id = token.id();
    let events = events(&store);
    let made = AuditEvent::ImportTokenMade { token: id, expires_unix_ms: token.expires_unix_ms() };
    let at = |event: &AuditEvent| events.iter().position(|other| other == event).unwrap();
    let used = at(&AuditEvent::ImportTokenUsed { token: id });
    assert!(at(&made) < used);
    assert_eq!(events[used + 1], AuditEvent::KeyProvisioned);
    for entry in store.keys().audit() {
        assert!(entry.unwrap().to_string().len() > 20);
    }
    store.close().unwrap();
    drop(org);
    let raw = base64::engine::general_purpose::STANDARD.decode(text.trim()).unwrap();
    for (path, bytes) in contents(&place.data()) {
        assert!(!bytes.windows(32).any(|window| window == raw), "{}", path.display());
    }
}

#[test]
fn a_token_is_used_once_also_after_a_reopening() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let token = store.keys().import_token("acme", DAY).unwrap();
    let unused = store.keys().import_token("acme", DAY).unwrap();
    store.close().unwrap();
    let store = place.open();
    import(&store, "acme", &sealed(&token, &new_key())).unwrap();
    for _ in 0..2 {
        let refused = refusal(import(&store, "acme", &sealed(&token, &new_key())));
        assert!(matches!(refused, ImportError::Used { token: id, .. } if id == token.id()));
        assert_eq!(versions(&store, "acme"), 2);
    }
    store.close().unwrap();
    let store = place.open();
    let refused = refusal(import(&store, "acme", &sealed(&token, &new_key())));
    import(&store, "acme", &sealed(&unused, &new_key())).unwrap();
    let ImportError::Used { used_unix_ms, .. } = refused else { panic!("{refused}") };
    let why = KeyRefusal::TokenUsed { used_unix_ms };
    let refused = AuditEvent::SealedKeyRefused { token: token.id(), why };
    assert_eq!(events(&store).iter().filter(|event| **event == refused).count(), 3);
}

/// Each says another thing, what was changed, and what to do; none uses the token up.
#[test]
fn wrong_org_other_store_unknown_and_altered_are_told_apart() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let (store, other) = (place.open(), elsewhere.open());
    for store in [&store, &other] {
        store.create_org("acme", OrgPolicy::byok()).unwrap();
        store.create_org("umbra", OrgPolicy::byok()).unwrap();
    }
    let token = store.keys().import_token("acme", DAY).unwrap();
    let key = sealed(&token, &new_key());

    let wrong_org = refusal(import(&store, "umbra", &key));
    assert_eq!(wrong_org, ImportError::OtherOrg { given: "umbra".to_owned() });
    assert!(!wrong_org.to_string().contains("acme"), "it names the other org");
    let other_store = refusal(import(&other, "acme", &key));
    let expected = ImportError::OtherStore { made_by: store.id(), store: other.id() };
    assert_eq!(other_store, expected);
    // Back to before the token was made, as the store sees it: one of an older copy.
    let mut bytes = decoded(&key);
    bytes[17] ^= 1;
    let unknown = refusal(import(&store, "acme", &encoded(&bytes)));
    assert!(matches!(unknown, ImportError::Unknown { token: id } if id != token.id()));
    let mut bytes = decoded(&key);
    bytes[70] ^= 1;
    let altered = refusal(import(&store, "acme", &encoded(&bytes)));
    assert_eq!(altered, ImportError::Altered { token: token.id() });
    let malformed = key.to_string().replacen("1.", "2.", 1).parse::<SealedKey>().unwrap_err();
    assert!(matches!(malformed, Error::Import(ImportError::Malformed { .. })));

    let mut messages = Vec::new();
    for error in [wrong_org, other_store, unknown, altered] {
        let error = Error::Import(error);
        assert!(error.is_refused_key() && error.is_invalid_input());
        assert!(error.to_string().contains("nothing was changed"), "{error}");
        messages.push(error.to_string());
    }
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), 4);
    assert_eq!((versions(&store, "acme"), versions(&store, "umbra")), (1, 1));
    import(&store, "acme", &key).unwrap();
}

/// A token that was altered on its way to the customer is another token.
#[test]
fn a_key_sealed_under_an_altered_token_is_refused() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let token = store.keys().import_token("acme", DAY).unwrap();
    let line = token.to_string();
    let encoded = line.strip_prefix("byokv-import-1.").unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let body = &bytes[..bytes.len() - 4];
    for at in 0..body.len() {
        let mut altered = body.to_vec();
        altered[at] ^= 1;
        let altered = with_sum("byokv-import-1.", b"import token", &altered);
        let Ok(altered) = altered.parse::<ImportToken>() else { continue };
        let Ok(sealed) = altered.seal(&new_key()) else { continue };
        let refused = refusal(import(&store, "acme", &sealed));
        let fits = match refused {
            ImportError::Unknown { token: id } => id == altered.id(),
            ImportError::OtherStore { .. } => (1..17).contains(&at),
            _ => false,
        };
        assert!(fits, "byte {at}: {refused}");
    }
    assert_eq!(versions(&store, "acme"), 1);
}

#[test]
fn what_is_refused_before_the_key_is_opened_leaves_the_token() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let keys = store.keys();
    let (one, two) =
        (keys.import_token("acme", DAY).unwrap(), keys.import_token("acme", DAY).unwrap());
    let (key, text) = (sealed(&one, &new_key()), key_text());

    keys.set_policy("acme", OrgPolicy::platform_only()).unwrap();
    assert!(matches!(import(&store, "acme", &key), Err(Error::NotEntitled { .. })));
    assert!(matches!(keys.import_token("acme", DAY), Err(Error::NotEntitled { .. })));
    keys.set_policy("acme", OrgPolicy::byok()).unwrap();

    let (expected, given) = (new_key().fingerprint(), new_key());
    let refused = keys.provision_sealed("acme", &sealed(&one, &given), Some(expected));
    let given = given.fingerprint();
    assert!(matches!(
        refused.map(drop),
        Err(Error::UnexpectedKey { expected: e, given: g }) if e == expected && g == given
    ));
    assert!(matches!(import(&store, "nobody", &key), Err(Error::OrgUnknown { .. })));
    assert_eq!(versions(&store, "acme"), 1);
    import(&store, "acme", &key).unwrap();

    let key = sealed(&two, &material(&text));
    keys.suspend("acme").unwrap();
    assert!(matches!(import(&store, "acme", &key), Err(Error::KeyConflict { .. })));
    let refused =
        events(&store).iter().filter(|e| matches!(e, AuditEvent::SealedKeyRefused { .. })).count();
    assert_eq!(refused, 3, "not entitled, unexpected, suspended");
}

#[test]
fn a_key_that_opens_and_is_reused_uses_the_token_up() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    store.create_org("umbra", OrgPolicy::byok()).unwrap();
    let keys = store.keys();
    let text = key_text();
    keys.provision("umbra", material(&text)).unwrap().ended();
    for reused in [&text, &place.root] {
        let token = keys.import_token("acme", DAY).unwrap();
        let fingerprint = material(reused).fingerprint();
        let refused = refusal(import(&store, "acme", &sealed(&token, &material(reused))));
        assert_eq!(refused, ImportError::Reused { fingerprint });
        assert!(refused.to_string().contains("the token is used up"));
        let again = refusal(import(&store, "acme", &sealed(&token, &new_key())));
        assert!(matches!(again, ImportError::Used { .. }), "{again}");
        let events = events(&store);
        assert!(events.contains(&AuditEvent::ImportTokenUsed { token: token.id() }));
        let why = KeyRefusal::Reused;
        assert!(events.contains(&AuditEvent::SealedKeyRefused { token: token.id(), why }));
    }
    assert_eq!(versions(&store, "acme"), 1);
}

#[test]
fn of_two_imports_under_one_token_exactly_one_wins() {
    const THREADS: usize = 4;
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    for round in 1..=5 {
        let token = store.keys().import_token("acme", DAY).unwrap();
        let start = Barrier::new(THREADS);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let import = || {
                let key = sealed(&token, &new_key());
                start.wait();
                import(&store, "acme", &key)
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(import)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let lost = outcomes.into_iter().filter(Result::is_err).map(refusal);
        let used = |why: &ImportError| matches!(why, ImportError::Used { .. });
        assert_eq!(lost.filter(used).count(), THREADS - 1);
        assert_eq!(versions(&store, "acme"), 1 + round);
    }
}

#[test]
fn a_token_lives_a_minute_to_thirty_days() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let second = Duration::from_secs(1);
    for bad in [Duration::ZERO, 59 * second, 30 * DAY + second, Duration::MAX] {
        let refused = store.keys().import_token("acme", bad);
        assert!(matches!(refused, Err(Error::InvalidOption { option: "valid_for", .. })));
    }
    for good in [60 * second, 30 * DAY] {
        store.keys().import_token("acme", good).unwrap();
    }
    assert!(matches!(store.keys().import_token("nobody", DAY), Err(Error::OrgUnknown { .. })));
}

#[test]
fn an_announced_fingerprint_refuses_every_other_key() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let (one, two) = (key_text(), key_text());
    let expected = material(&one).fingerprint();
    let refused = store.keys().provision_expecting("acme", material(&two), expected);
    assert!(matches!(refused.map(drop), Err(Error::UnexpectedKey { .. })));
    assert_eq!(versions(&store, "acme"), 1);
    let audited = store.keys().audit().last().unwrap().unwrap();
    assert_eq!(audited.fingerprint, Some(material(&two).fingerprint()));
    assert!(matches!(audited.event, AuditEvent::KeyRefused { .. }));
    let nobody = store.keys().provision_expecting("nobody", material(&two), expected);
    assert!(matches!(nobody.map(drop), Err(Error::OrgUnknown { .. })));
    store.keys().provision_expecting("acme", material(&one), expected).unwrap().ended();
    assert_eq!(active(&store, "acme").0, expected);
}

#[test]
fn nothing_that_prints_shows_a_key() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let token = store.keys().import_token("acme", DAY).unwrap();
    let sealed = sealed(&token, &new_key());
    assert_eq!(format!("{token:?}"), format!("ImportToken({})", token.id()));
    assert_eq!(format!("{sealed:?}"), format!("SealedKey({})", token.id()));
}

fn decoded(sealed: &SealedKey) -> Vec<u8> {
    let line = sealed.to_string();
    let mut bytes = URL_SAFE_NO_PAD.decode(line.strip_prefix("byokv-sealed-1.").unwrap()).unwrap();
    bytes.truncate(bytes.len() - 4);
    bytes
}

fn encoded(bytes: &[u8]) -> SealedKey {
    with_sum("byokv-sealed-1.", b"sealed key", bytes).parse().unwrap()
}

/// What an attacker does who mends the checksum, see `docs/design.md`.
fn with_sum(prefix: &str, what: &[u8], bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let sum = Sha256::digest([b"byokv import v1 ", what, bytes].concat());
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode([bytes, &sum[..4]].concat()))
}

/// One store for all cases: each refusal is a change of the keyring.
#[test]
fn any_altered_byte_of_the_sealed_text_is_refused() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let token = store.keys().import_token("acme", DAY).unwrap();
    let key = sealed(&token, &new_key());
    let line = key.to_string();
    let refused = |text: &str| match text.parse() {
        Ok(sealed) => import(&store, "acme", &sealed).is_err(),
        Err(error) => matches!(error, Error::Import(ImportError::Malformed { .. })),
    };
    proptest!(|(at in 0..line.len(), byte in 0..128u8)| {
        let mut text = line.clone().into_bytes();
        prop_assume!(text[at] != byte);
        text[at] = byte;
        prop_assert!(refused(str::from_utf8(&text).unwrap()));
    });
    // Each bit behind the checksum, too.
    let bytes = decoded(&key);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        let text = with_sum("byokv-sealed-1.", b"sealed key", &altered);
        assert!(refused(&text), "byte {at}");
    }
    assert_eq!(versions(&store, "acme"), 1);
    import(&store, "acme", &key).unwrap();
}
