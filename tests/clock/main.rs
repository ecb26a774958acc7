//! Time is not believed: no clock alone destroys a key or keeps one, nor does any make the audit log
//! run backwards. Stores go by clocks that the tests set, the tool by a shifted wall clock.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod shifted;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod tool;

use std::time::{Duration, Instant};

use byokv::failpoint::Clock;
use byokv::{
    AuditEntry, AuditEvent, Error, KeyState, Options, OrgPolicy, Phase, RetirePolicy, Rotation,
    Store,
};
use common::{Ended, Place, check_filled, copy_dir, filled, states};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const TEN_YEARS: Duration = Duration::from_secs(3652 * 24 * 3600);

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap()
}

fn unsigned(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

/// Somebody sets the wall clock.
fn set_ahead(clock: &Clock, by: Duration) {
    clock.set(clock.wall() + ms(by));
}

fn set_back(clock: &Clock, by: Duration) {
    clock.set(clock.wall() - ms(by));
}

fn entries(store: &Store) -> Vec<AuditEntry> {
    store.keys().audit().collect::<Result<_, _>>().unwrap()
}

/// The jumps in the audit log, from and to.
fn jumps(store: &Store) -> Vec<(u64, u64)> {
    let jumps = entries(store).into_iter().filter_map(|entry| match entry.event {
        AuditEvent::ClockJumped { from_unix_ms, to_unix_ms } => Some((from_unix_ms, to_unix_ms)),
        _ => None,
    });
    jumps.collect()
}

fn held_for(hold: Duration) -> OrgPolicy {
    OrgPolicy::byok().with_retire(RetirePolicy::AfterHold(hold))
}

/// Waits until the count after a pass has found the key to be still held.
fn still_held(store: &Store, org: &str) {
    let rotation = store.keys().rotation(org).unwrap().unwrap();
    rotation.resume().unwrap();
    until_held(&rotation);
    assert_eq!(states(store, org), [KeyState::DecryptOnly, KeyState::Active]);
}

fn until_held(rotation: &Rotation) {
    let start = Instant::now();
    while rotation.progress().phase != Phase::Held {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", rotation.progress());
        assert!(rotation.wait_timeout(Duration::from_millis(5)).unwrap().is_none());
    }
}

/// A store with an org whose old key is held for a week.
fn with_held_key() -> (Place, Clock, Store) {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let store = place.open();
    drop(filled(&store, "acme", 20));
    store.keys().set_policy("acme", held_for(WEEK)).unwrap();
    until_held(&store.keys().rotate_platform_key("acme").unwrap());
    (place, clock, store)
}

fn left(store: &Store) -> Option<Duration> {
    let key = store.keys().status("acme").unwrap().versions.remove(0);
    key.hold_left_ms.map(Duration::from_millis)
}

/// Reproduced before: with the clock set ahead by eight days, one command ended the hold.
#[test]
fn a_clock_that_is_set_ahead_ends_no_hold() {
    let (place, clock, store) = with_held_key();
    store.close().unwrap();
    for ahead in [8 * DAY, 30 * DAY, TEN_YEARS] {
        for _ in 0..3 {
            set_ahead(&clock, ahead);
            let store = place.open();
            still_held(&store, "acme");
            assert_eq!(left(&store), Some(WEEK), "nothing was observed");
            set_ahead(&clock, ahead);
            still_held(&store, "acme");
            store.close().unwrap();
            set_back(&clock, 2 * ahead);
        }
    }
    // What was observed ends it, and nothing before.
    for day in 0..7 {
        let store = place.open();
        still_held(&store, "acme");
        assert_eq!(left(&store), Some(WEEK - day * DAY));
        store.close().unwrap();
        clock.pass(DAY);
    }
    let store = place.open();
    store.keys().rotation("acme").unwrap().unwrap().ended();
    check_filled(&store.org("acme").unwrap(), 20);
}

#[test]
fn a_gap_between_two_openings_counts_a_day_at_most() {
    let (place, clock, store) = with_held_key();
    clock.pass(2 * DAY);
    still_held(&store, "acme");
    store.close().unwrap();
    clock.pass(30 * DAY);
    let store = place.open();
    still_held(&store, "acme");
    assert_eq!(left(&store), Some(WEEK - 3 * DAY));
    assert_eq!(jumps(&store), [], "the machine was on, and no clock was set");
    store.close().unwrap();
    // In another boot nothing but the wall clock tells of the gap.
    clock.reboot();
    let before = clock.wall();
    clock.pass(30 * DAY);
    let store = place.open();
    still_held(&store, "acme");
    assert_eq!(left(&store), Some(WEEK - 4 * DAY));
    let to = u64::try_from(clock.wall()).unwrap();
    assert_eq!(jumps(&store), [(u64::try_from(before).unwrap(), to)]);
    let status = store.keys().clock();
    assert_eq!(Duration::from_millis(status.uncounted_ms), 58 * DAY);
    assert_eq!((status.jumps, status.behind_log_ms), (1, 0));
    assert_eq!(store.metrics().unwrap().clock, status);
    store.close().unwrap();
    clock.reboot();
    set_back(&clock, HOUR);
    let store = place.open();
    assert_eq!(left(&store), Some(WEEK - 4 * DAY), "a clock that was set back counts nothing");
    assert_eq!(jumps(&store).len(), 2);
}

/// A machine that was really off for a month: an operator says so.
#[test]
fn an_operator_confirms_what_no_clock_can_show() {
    let (place, clock, store) = with_held_key();
    drop(filled(&store, "young", 5));
    store.close().unwrap();
    clock.reboot();
    clock.pass(30 * DAY);
    let store = place.open();
    store.keys().set_policy("young", held_for(WEEK)).unwrap();
    let begun = store.keys().rotate_platform_key("young").unwrap();
    until_held(&begun);
    still_held(&store, "acme");
    let old = store.keys().rotation("acme").unwrap().unwrap();
    assert_eq!(store.keys().confirm_clock().unwrap(), 29 * DAY);
    old.ended();
    still_held(&store, "young");
    let key = store.keys().status("young").unwrap().versions.remove(0);
    assert_eq!(key.hold_left_ms, Some(unsigned(WEEK)), "it began when the month was over");
    let ends = u64::try_from(clock.wall()).unwrap() + unsigned(WEEK);
    assert_eq!(key.hold_ends_unix_ms, Some(ends));
    assert!(begun.progress().reason.unwrap().contains("held for 7days of observed time"));
    // Once: the same time does not count again.
    assert_eq!(store.keys().confirm_clock().unwrap(), Duration::ZERO);
    assert_eq!(store.keys().clock().uncounted_ms, 0);
    let confirmed = AuditEvent::ClockConfirmed { counted_ms: unsigned(29 * DAY) };
    let noted = entries(&store).into_iter().filter(|entry| entry.event == confirmed);
    assert_eq!(noted.count(), 1);
    check_filled(&store.org("young").unwrap(), 5);
}

/// Reproduced before: what was begun in 2035 lasted until then, and later entries ran backwards.
#[test]
fn ten_years_ahead_for_one_command_poison_nothing() {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let by_age = OrgPolicy::byok().with_rotation_after_age(90 * DAY);
    let store = place.open();
    store.create_org("old", by_age.clone()).unwrap();
    drop(filled(&store, "acme", 20));
    store.keys().set_policy("acme", held_for(WEEK)).unwrap();
    store.close().unwrap();

    set_ahead(&clock, TEN_YEARS);
    let in_2035 = u64::try_from(clock.wall()).unwrap();
    let store = place.open();
    assert_eq!(store.keys().status("old").unwrap().versions.len(), 1, "nothing is due");
    store.create_org("new", by_age).unwrap();
    until_held(&store.keys().rotate_platform_key("acme").unwrap());
    assert_eq!(store.keys().status("acme").unwrap().versions[1].created_unix_ms, in_2035);
    store.close().unwrap();
    set_back(&clock, TEN_YEARS);

    let back = u64::try_from(clock.wall()).unwrap();
    let store = place.open();
    store.create_org("later", OrgPolicy::byok()).unwrap();
    assert_eq!(jumps(&store), [(back, in_2035), (in_2035, back)], "each is noted once");
    let last = entries(&store).pop().unwrap();
    assert_eq!((last.at_unix_ms, last.clock_unix_ms), (in_2035, Some(back)));
    assert!(last.to_string().contains("(the clock showed 2025-10-09T08:53:20Z) org created"));
    let status = store.keys().clock();
    assert_eq!((status.uncounted_ms, status.jumps), (0, 1));
    assert_eq!(status.behind_log_ms, unsigned(TEN_YEARS));
    // A week of observed time ends the hold that was begun in 2035, not ten years.
    assert_eq!(left(&store), Some(WEEK));
    clock.pass(WEEK);
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    rotation.resume().unwrap();
    rotation.ended();
    drop(rotation);
    // 90 days make both keys due; each opening looks for that.
    clock.pass(82 * DAY);
    store.close().unwrap();
    let versions = |org: &str| place.open().keys().status(org).unwrap().versions.len();
    assert_eq!((versions("old"), versions("new")), (1, 1));
    clock.pass(DAY);
    assert_eq!((versions("old"), versions("new")), (2, 2));
}

/// Setting the clock back after each command keeps no key from being due.
#[test]
fn a_clock_that_is_set_back_keeps_no_key_from_being_due() {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let by_age = OrgPolicy::byok().with_rotation_after_age(10 * DAY);
    place.open().create_org("acme", by_age).unwrap();
    let began = clock.wall();
    for _ in 0..10 {
        let store = place.open();
        assert_eq!(store.keys().status("acme").unwrap().versions.len(), 1);
        store.close().unwrap();
        clock.pass(DAY);
        clock.set(began);
    }
    assert_eq!(place.open().keys().status("acme").unwrap().versions.len(), 2);
}

#[test]
fn entries_of_the_audit_log_never_run_backwards() {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let store = place.open();
    for (org, back) in
        [("a", Duration::ZERO), ("b", HOUR), ("c", Duration::from_secs(5)), ("d", 3 * DAY)]
    {
        set_back(&clock, back);
        store.create_org(org, OrgPolicy::byok()).unwrap();
    }
    let entries = entries(&store);
    assert!(entries.is_sorted_by_key(|entry| entry.at_unix_ms));
    let lag = |entry: &AuditEntry| entry.clock_unix_ms.map(|clock| entry.at_unix_ms - clock);
    let lags: Vec<_> = entries.iter().map(lag).collect();
    let (hour, all) = (unsigned(HOUR), unsigned(HOUR + 3 * DAY) + 5000);
    // A jump is noted before what was done by the new time; five seconds are none.
    let expected = [None, None, Some(hour), Some(hour), Some(hour + 5000), Some(all), Some(all)];
    assert_eq!(lags, expected);
    assert_eq!(jumps(&store).len(), 2);
    // It has caught up.
    clock.pass(4 * DAY);
    store.create_org("e", OrgPolicy::byok()).unwrap();
    let last = store.keys().audit().last().unwrap().unwrap();
    assert_eq!((last.at_unix_ms, last.clock_unix_ms), (u64::try_from(clock.wall()).unwrap(), None));
    assert_eq!(store.keys().clock().behind_log_ms, 0);
}

/// What a kill takes is told apart from time that was watched, and counted as a gap.
#[test]
fn a_kill_loses_no_time() {
    let (place, clock, store) = with_held_key();
    clock.pass(3 * DAY);
    // Any change of the keyring notes what was observed.
    store.create_org("other", OrgPolicy::byok()).unwrap();
    clock.pass(10 * HOUR);
    let copy = Place { dir: tempfile::tempdir().unwrap(), root: place.root.clone() };
    copy_dir(&place.data(), &copy.data());
    clock.share(&copy.data());
    clock.pass(HOUR);
    let killed = copy.open();
    assert_eq!(left(&killed), Some(WEEK - 3 * DAY - 11 * HOUR));
    assert_eq!(left(&store), left(&killed));
}

/// Reproduced before: sled panicked, or the time was 0 in silence.
#[test]
fn a_clock_before_1970_is_an_error() {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let today = clock.wall();
    clock.set(-1);
    assert!(matches!(place.try_open(), Err(Error::ClockBefore1970)));
    assert!(!place.data().exists(), "nothing was made");
    clock.set(today);
    let store = place.open();
    let org = filled(&store, "acme", 5);
    store.keys().set_policy("acme", held_for(HOUR)).unwrap();
    until_held(&store.keys().rotate_platform_key("acme").unwrap());
    clock.set(-1);
    let audited = entries(&store).len();
    let keys = store.keys();
    for refused in [
        store.create_org("other", OrgPolicy::byok()).err(),
        keys.set_policy("acme", OrgPolicy::byok()).err(),
        keys.confirm_clock().err(),
        keys.erase_org("acme").err(),
        store.backup(&common::new_key()).write_to(Vec::new()).err(),
    ] {
        assert!(matches!(refused, Some(Error::ClockBefore1970)), "{refused:?}");
    }
    assert_eq!(entries(&store).len(), audited);
    assert_eq!(keys.clock().unix_ms, None);
    // Records need no date.
    org.put("n00000", "v0").unwrap();
    check_filled(&org, 5);
    drop((org, keys));
    store.close().unwrap();
    assert!(matches!(place.try_open(), Err(Error::ClockBefore1970)));
    clock.set(today);
    let store = place.open();
    check_filled(&store.org("acme").unwrap(), 5);
    still_held(&store, "acme");
}

/// The store looks at the clock by itself, and notes by itself what it observed.
#[test]
fn a_jump_is_noted_although_nobody_changes_a_key() {
    let place = Place::new();
    let clock = Clock::set_for(&place.data());
    let open = || {
        let options = Options::new().sync_interval(Duration::from_millis(20));
        options.open(place.data(), place.root_key()).unwrap()
    };
    drop(open());
    set_ahead(&clock, 2 * HOUR);
    let store = open();
    assert_eq!(jumps(&store).len(), 1);
    store.close().unwrap();
    let generation = |store: &Store| store.metrics().unwrap().keyring_generation;
    let store = open();
    let before = generation(&store);
    // Noted at close, where an hour has passed, without a change of the keyring.
    clock.pass(30 * DAY);
    store.close().unwrap();
    clock.reboot();
    let store = open();
    assert_eq!(Duration::from_millis(store.keys().clock().observed_ms), 30 * DAY);
    assert_eq!((generation(&store), jumps(&store).len()), (before, 1));
}

#[cfg(feature = "import")]
mod tokens {
    use byokv::{ImportError, ImportToken, KeyMaterial};

    use super::*;

    fn import(store: &Store, token: &ImportToken) -> Result<(), Error> {
        let sealed = token.seal(&KeyMaterial::generate().unwrap()).unwrap();
        store.keys().provision_sealed("acme", &sealed, None).map(drop)
    }

    fn is_expired(outcome: Result<(), Error>) -> bool {
        matches!(outcome, Err(Error::Import(ImportError::Expired { .. })))
    }

    #[test]
    fn setting_the_clock_back_extends_no_token() {
        let place = Place::new();
        let clock = Clock::set_for(&place.data());
        let store = place.open();
        drop(filled(&store, "acme", 5));
        let token = store.keys().import_token("acme", HOUR).unwrap();
        clock.pass(HOUR / 2);
        set_back(&clock, 10 * DAY);
        clock.pass(HOUR / 2);
        assert!(is_expired(import(&store, &token)));
        let ended = entries(&store).into_iter().any(
            |entry| matches!(entry.event, AuditEvent::ImportTokenExpired { token: id } if id == token.id()),
        );
        assert!(ended, "its private half is destroyed");
    }

    #[test]
    fn setting_the_clock_ahead_destroys_no_token_and_makes_none_that_lasts() {
        let place = Place::new();
        let clock = Clock::set_for(&place.data());
        let store = place.open();
        drop(filled(&store, "acme", 5));
        let token = store.keys().import_token("acme", HOUR).unwrap();
        set_ahead(&clock, TEN_YEARS);
        assert!(is_expired(import(&store, &token)));
        let late = store.keys().import_token("acme", HOUR).unwrap();
        set_back(&clock, TEN_YEARS);
        import(&store, &token).unwrap();
        clock.pass(HOUR);
        assert!(is_expired(import(&store, &late)), "it says 2035, and lasts an hour");
    }
}
