//! What goes on while the secret is replaced, and what is left to do afterwards.

use super::*;

/// The copy has their private halves.
#[cfg(feature = "import")]
#[test]
fn import_tokens_from_before_are_withdrawn() {
    let mut leak = Leak::new();
    let store = leak.place.open();
    let day = Duration::from_secs(86_400);
    let token = store.keys().import_token("acme", day).unwrap();
    let sealed = token.seal(&material(&key_text())).unwrap();
    store.close().unwrap();
    let store = leak.changed();
    let check = |store: &Store| {
        let refused = store.keys().provision_sealed("acme", &sealed, None);
        let Err(Error::Import(ImportError::Withdrawn { token: named, .. })) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(named, token.id());
        assert_eq!(states(store, "acme"), [KeyState::Active]);
        let event = AuditEvent::ImportTokenWithdrawn { token: token.id() };
        let noted = store.keys().audit().map(Result::unwrap);
        let noted: Vec<_> = noted.filter(|entry| entry.event == event).collect();
        assert_eq!(noted.len(), 1);
        assert_eq!(noted[0].org.as_ref().unwrap().name, "acme");
    };
    check(&store);
    let again = store.keys().import_token("acme", day).unwrap();
    store.close().unwrap();
    let store = leak.place.open();
    check(&store);
    let sealed = again.seal(&material(&key_text())).unwrap();
    store.keys().provision_sealed("acme", &sealed, None).unwrap().ended();
}

/// The copy has every key of then: they are listed until they are retired.
#[test]
fn keys_that_the_copy_has_are_listed_until_they_are_retired() {
    let place = Place::new();
    let store = place.open();
    for org in ["acme", "brought", "suspended", "erased"] {
        filled(&store, org, 5);
    }
    let keys = store.keys();
    keys.provision("brought", material(&key_text())).unwrap().ended();
    let withheld = key_text();
    keys.provision("suspended", material(&withheld)).unwrap().ended();
    keys.suspend("suspended").unwrap();
    keys.erase_org("erased").unwrap().wait_timeout(Duration::from_secs(60)).unwrap().unwrap();
    drop((store, keys));
    let mut leak = Leak::of(place);
    let store = leak.changed();
    filled(&store, "later", 5);
    let keys = store.keys();
    let listed = |store: &Store| {
        let listed = store.keys().compromised_keys().into_iter();
        listed.map(|key| (key.org, key.version.get(), key.origin, key.seals)).collect::<Vec<_>>()
    };
    let all = [
        ("acme".to_owned(), 1, Origin::Platform, true),
        ("brought".to_owned(), 2, Origin::Customer, true),
        ("suspended".to_owned(), 2, Origin::Customer, true),
    ];
    assert_eq!(listed(&store), all);
    for status in store.orgs() {
        let compromised: Vec<_> = status.versions.iter().filter(|key| key.compromised).collect();
        assert_eq!(compromised.len(), usize::from(status.name != "later"), "{status:?}");
    }
    let rotations = keys.rotate_compromised_keys().unwrap();
    assert_eq!(rotations.iter().map(byokv::Rotation::org).collect::<Vec<_>>(), ["acme"]);
    let newest = rotations[0].ended().successor.unwrap();
    drop(rotations);
    let census = keys.census("acme").unwrap();
    assert_eq!(census.by_version.into_iter().collect::<Vec<_>>(), [(newest, 5)]);
    assert_eq!(listed(&store), all[1..]);
    assert!(keys.rotate_compromised_keys().unwrap().is_empty());
    // A key that comes back is the one that the copy has.
    keys.resume("suspended", material(&withheld)).unwrap();
    assert_eq!(listed(&store), all[1..]);
    keys.provision("suspended", material(&key_text())).unwrap().ended();
    keys.provision("brought", material(&key_text())).unwrap().ended();
    assert_eq!(listed(&store), []);
    drop((store, keys));
    assert_eq!(listed(&leak.place.open()), []);
}

/// A change beside everything else that a store does.
#[test]
fn writers_rotations_and_settings_go_on_meanwhile() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 500);
    let umbra = filled_blinded(&store, "umbra", 200);
    drop((org, umbra));
    store.close().unwrap();
    let mut leak = Leak::of(place);
    let store = leak.place.open();
    let stop = AtomicBool::new(false);
    let limit = |n: u32| Throttle::unlimited().with_records_per_second(100_000 + n).unwrap();
    let rounds = std::thread::scope(|scope| {
        let writers: Vec<_> = ["acme", "umbra"]
            .map(|org| {
                let (org, stop) = (store.org(org).unwrap(), &stop);
                scope.spawn(move || {
                    let mut round = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        for record in 0..40 {
                            org.put(format!("w{record}"), format!("{round}/{record}")).unwrap();
                        }
                        org.durable().put("durable", round.to_string()).unwrap();
                    }
                    round
                })
            })
            .into();
        let settings = scope.spawn(|| {
            let mut set = 0u32;
            while !stop.load(Ordering::Relaxed) {
                set += 1;
                store.keys().set_throttle(limit(set)).unwrap();
            }
            set
        });
        let rotations = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.keys().rotate_platform_key("acme").unwrap().ended();
            }
        });
        for _ in 0..3 {
            let after = key_text();
            store.change_compromised_root_key(RootKey::from_material(material(&after))).unwrap();
            leak.place.root = after;
        }
        stop.store(true, Ordering::Relaxed);
        rotations.join().unwrap();
        let set = settings.join().unwrap();
        let rounds: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (rounds, set)
    });
    let check = |store: &Store| {
        for (org, round) in ["acme", "umbra"].iter().zip(&rounds.0) {
            let org = store.org(org).unwrap();
            let get = |name: &str| org.get(name).unwrap().map(|value| value.to_vec());
            for record in 0..40 {
                let value = format!("{round}/{record}");
                assert_eq!(get(&format!("w{record}")), Some(value.into_bytes()));
            }
            assert_eq!(get("durable"), Some(round.to_string().into_bytes()));
        }
        store.verify().unwrap();
        store.keys().audit().for_each(|entry| drop(entry.unwrap()));
        store.keys().certificates().for_each(|certificate| drop(certificate.unwrap()));
        assert!(store.keys().throttle() == limit(rounds.1), "{:?}", store.keys().throttle());
    };
    check(&store);
    store.close().unwrap();
    check(&leak.place.open());
}

/// A genuine certificate in the database that names another generation than its entry's. It cannot
/// be made without the keyring, and would tell a wrong story of the log.
#[test]
fn a_certificate_of_one_generation_is_none_of_another() {
    let mut leak = Leak::new();
    let store = leak.changed();
    let second = store.keys().rotate_platform_key("acme").unwrap().ended();
    assert_eq!(second.secret_generation, 2);
    store.close().unwrap();
    leak.after = key_text();
    let store = leak.changed();
    assert!(is_authentic(&store, &second));
    for generation in [0, 1, 3, 4, u32::MAX] {
        let mut json: serde_json::Value = serde_json::from_str(&second.to_json()).unwrap();
        json["secret_generation"] = generation.into();
        let renamed = Certificate::from_json(&json.to_string()).unwrap();
        assert!(!is_authentic(&store, &renamed), "{generation}");
    }
}

/// Somebody with the old secret can make the log anew up to an entry, and take that entry away:
/// what comes before a gap is vouched for by nobody.
#[test]
fn a_log_with_a_gap_vouches_for_nothing_before_it() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 5);
    let before = store.keys().rotate_platform_key("acme").unwrap().ended();
    filled(&store, "gap", 1);
    let gap = store.keys().audit().count() as u64;
    let after = store.keys().rotate_platform_key("acme").unwrap().ended();
    drop(store);
    let mut leak = Leak::of(place);
    let store = leak.changed();
    assert!([&before, &after].iter().all(|certificate| is_authentic(&store, certificate)));
    store.close().unwrap();
    let key = escape(&[b"audit/", &gap.to_be_bytes()[..]].concat());
    tamper_in(&leak.database(), "system", |system| drop(system.remove(&key).unwrap().unwrap()));
    let store = leak.place.open();
    assert!(!is_authentic(&store, &before));
    assert!(is_authentic(&store, &after));
    let listed: Vec<_> = store.keys().certificates().collect();
    assert!(matches!(listed[..], [Err(Error::CertificateInvalid { .. }), Ok(_)]), "{listed:?}");
    let check = store.keys().verify_certificate(&before).unwrap();
    let broken = |mismatch: &Mismatch| matches!(mismatch, Mismatch::AuditLogBroken { .. });
    assert!(check.mismatches.iter().any(broken), "{check}");
}

/// A thread has sealed something with the old secret and has not written it yet. It would be written
/// into the new database, where nobody can open it.
#[test]
fn what_was_sealed_is_written_before_the_secret_is_replaced() {
    let mut leak = Leak::new();
    let store = leak.place.open();
    let throttle = Throttle::unlimited().with_records_per_second(4_321).unwrap();
    let (say_sealed, sealed) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let (say_changed, changed) = mpsc::channel();
    let root = RootKey::from_material(material(&leak.after));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let go = Mutex::new(go);
            let _held = here("own.sealed", move || {
                say_sealed.send(()).unwrap();
                go.lock().unwrap().recv().unwrap();
            });
            store.keys().set_throttle(throttle.clone()).unwrap();
        });
        sealed.recv_timeout(Duration::from_secs(20)).unwrap();
        scope.spawn(|| {
            store.change_compromised_root_key(root).unwrap();
            say_changed.send(()).unwrap();
        });
        // Without the lock the change would be through by then.
        let early = changed.recv_timeout(Duration::from_millis(700));
        let_go.send(()).unwrap();
        assert!(early.is_err(), "the change did not wait");
    });
    store.close().unwrap();
    leak.place.root.clone_from(&leak.after);
    assert!(leak.place.open().keys().throttle() == throttle);
}

/// Another change of the keyring has not synced yet, so the keyring still owes what it noted, sealed
/// with the old secret.
#[test]
fn what_another_change_owes_is_sealed_anew() {
    let mut leak = Leak::new();
    let store = leak.place.open();
    let (say_written, written) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let go = Mutex::new(go);
            let _held = here("outbox.written", move || {
                say_written.send(()).unwrap();
                go.lock().unwrap().recv().unwrap();
            });
            store.create_org("late", byokv::OrgPolicy::byok()).unwrap();
        });
        written.recv_timeout(Duration::from_secs(20)).unwrap();
        let root = RootKey::from_material(material(&leak.after));
        store.change_compromised_root_key(root).unwrap();
        let_go.send(()).unwrap();
    });
    let whole = |store: &Store| store.keys().audit().for_each(|entry| drop(entry.unwrap()));
    whole(&store);
    store.close().unwrap();
    leak.place.root.clone_from(&leak.after);
    whole(&leak.place.open());
}

/// The limit of a plain change, as `Store::change_root_key` documents it: the secret stays, so the
/// copy goes on to make what the original takes for its own.
#[test]
fn a_plain_change_keeps_the_secret() {
    let leak = Leak::new();
    let store = leak.place.open();
    store.change_root_key(RootKey::from_material(material(&leak.after))).unwrap();
    assert!(store.keys().compromised_keys().is_empty());
    let changed = store.keys().audit().last().unwrap().unwrap().event;
    let plain = AuditEvent::RootKeyChanged { compromised: false, secret_before: 1, secret: 1 };
    assert_eq!(changed, plain);
    store.close().unwrap();
    let copy = leak.copy.open();
    let takes_it_for_its_own = (0..4).any(|_| {
        copy.sync().unwrap();
        let touched = Place { root: leak.after.clone(), ..Place::new() };
        copy_dir(&leak.place.data(), &touched.data());
        std::fs::copy(leak.copy.data().join("mark"), touched.data().join("mark")).unwrap();
        touched.try_open().is_ok()
    });
    assert!(takes_it_for_its_own);
    let forged = copy.keys().rotate_platform_key("acme").unwrap().ended();
    let store = Store::open(leak.place.data(), RootKey::from_material(material(&leak.after)));
    let check = store.unwrap().keys().verify_certificate(&forged).unwrap();
    assert!(check.is_authentic() && !check.is_true(), "{check}");
}
