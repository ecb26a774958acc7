//! What somebody does who writes to the database behind the store, and what a kill leaves.

use std::path::Path;
use std::time::Duration;

use super::super::super::{CopyPlan, Freeze, Reseal, Write};
use std::ops::Bound;

use super::super::{SledOptions, SledStorage, Storage};
use super::*;

const FIRST: &[u8] = b"first";
const GONE: &[u8] = b"gone";

fn open_under(dir: &Path, name: &str, key: u8) -> SledStorage {
    let options = SledOptions {
        cache_bytes: 16 << 20,
        segment_bytes: 512 << 10,
        flush_interval: Duration::from_millis(500),
    };
    let key = KeyMaterial::take(&mut [key; 32]);
    SledStorage::open(&dir.join(name), &options, &key, false).unwrap()
}

fn open(dir: &Path) -> SledStorage {
    open_under(dir, "db", 1)
}

fn begun(dir: &Path) -> SledStorage {
    let storage = open(dir);
    assert!(storage.was_whole());
    storage.begin().unwrap();
    storage
}

/// Whether a store that was killed is whole, once `forge` has been at its bytes, with the three
/// values that the first key had, as they are stored; the last came after the last sync.
fn is_whole(forge: impl FnOnce(&Database, [&[u8]; 3])) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let storage = begun(dir.path());
    let put = |key: &[u8], value| storage.put(Space::Records, key, value).unwrap();
    put(GONE, Some(vec![9; 40]));
    let values = [1, 2, 3].map(|i| {
        put(FIRST, Some(vec![i; 40]));
        if i < 3 {
            storage.put_position(vec![i]).unwrap();
        }
        storage.0.current().get_raw(Space::Records, FIRST).unwrap().unwrap()
    });
    put(GONE, None);
    forge(&storage.0.current(), values.each_ref().map(|value| &**value));
    storage.sync().unwrap();
    drop(storage);
    open(dir.path()).was_whole()
}

fn write(database: &Database, value: &[u8]) {
    database.put_raw(Space::Records, FIRST, value).unwrap();
}

/// Where the note of the deletion lies.
fn note() -> Vec<u8> {
    deletions::key(group_of(Space::Records, GONE), 0)
}

#[test]
fn what_was_not_durable_may_be_missing() {
    assert!(is_whole(|_, _| ()));
    assert!(is_whole(|database, [_, second, _]| write(database, second)));
}

#[test]
fn a_trailer_that_says_what_an_old_value_replaces_cannot_be_forged() {
    assert!(!is_whole(|database, [first, ..]| write(database, first)));
    // What is said of the newest value: that it replaces the second, which is summed.
    assert!(!is_whole(|database, [first, _, third]| {
        write(database, &[plain(first), &third[plain(third).len()..]].concat());
    }));
    for trailer in [[0; 16], [0xff; 16]] {
        assert!(!is_whole(|database, [first, ..]| {
            write(database, &[plain(first), &trailer].concat());
        }));
    }
}

#[test]
fn a_value_under_a_key_that_nobody_reads_does_not_count_for_its_own() {
    assert!(!is_whole(|database, [_, _, third]| {
        database.put_raw(Space::System, b"junk", third).unwrap();
        database.remove_raw(Space::Records, FIRST).unwrap();
    }));
}

/// It would be a sum of nothing, and each value would count for what it replaced.
#[test]
fn a_seal_that_does_not_open_is_no_seal_of_an_empty_database() {
    assert!(!is_whole(|database, [_, _, _]| {
        let held = database.get_raw(Space::System, POSITION_KEY).unwrap().unwrap();
        let mut forged = held.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        database.put_raw(Space::System, POSITION_KEY, &forged).unwrap();
        database.remove_raw(Space::System, &note()).unwrap();
        // What has nothing behind it counts for nothing then.
        database.remove_raw(Space::Records, FIRST).unwrap();
    }));
}

#[test]
fn a_note_of_a_deletion_cannot_be_forged_or_moved() {
    assert!(!is_whole(|database, _| database.remove_raw(Space::System, &note()).unwrap()));
    for byte in [0, 30, 71] {
        assert!(!is_whole(|database, _| {
            let held = database.get_raw(Space::System, &note()).unwrap().unwrap();
            let mut forged = held.to_vec();
            forged[byte] ^= 1;
            database.put_raw(Space::System, &note(), &forged).unwrap();
        }));
    }
    for (group, stripe) in [(GONE, 1), (FIRST, 0)] {
        let another = deletions::key(group_of(Space::Records, group), stripe);
        assert!(!is_whole(|database, _| {
            let moved = database.get_raw(Space::System, &note()).unwrap().unwrap();
            database.put_raw(Space::System, &another, &moved).unwrap();
        }));
    }
}

#[test]
fn a_forged_note_that_was_accepted_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let storage = begun(dir.path());
    storage.0.current().put_raw(Space::System, &note(), &[0xff; 32]).unwrap();
    drop(storage);
    let storage = open(dir.path());
    assert!(!storage.was_whole());
    storage.begin().unwrap();
    drop(storage);
    assert!(open(dir.path()).was_whole());
}

/// What the same bytes replace when they come again is not what they replaced before.
#[test]
fn a_value_that_is_deleted_and_comes_again_as_it_was_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let storage = begun(dir.path());
    storage.put(Space::Records, GONE, Some(vec![9; 40])).unwrap();
    storage.put_position(vec![1]).unwrap();
    storage.put(Space::Records, GONE, None).unwrap();
    storage.put(Space::Records, GONE, Some(vec![9; 40])).unwrap();
    storage.sync().unwrap();
    drop(storage);
    assert!(open(dir.path()).was_whole());
}

const ORGS: [[u8; 16]; 3] = [[1; 16], [2; 16], [0xff; 16]];

fn key(org: [u8; 16], name: &[u8]) -> Vec<u8> {
    [&org[..], name].concat()
}

/// A store with two records in each of three orgs, of which the first is of the other bucket than the
/// others; with what the bucket of the first was after one sync, and after another.
fn with_orgs(dir: &Path) -> (SledStorage, [Vec<u8>; 2]) {
    let storage = begun(dir);
    let buckets = [1, 2].map(|round| {
        for org in ORGS {
            for name in [b"a", b"b"] {
                storage.put(Space::Records, &key(org, name), Some(vec![round; 40])).unwrap();
            }
        }
        storage.put_position(vec![round]).unwrap();
        bucket(&storage, 1).unwrap()
    });
    (storage, buckets)
}

fn bucket(storage: &SledStorage, number: usize) -> Option<Vec<u8>> {
    let held = storage.0.current().get_raw(Space::System, &sums_key(number)).unwrap();
    held.map(|held| held.to_vec())
}

fn put_bucket(storage: &SledStorage, number: usize, bytes: &[u8]) {
    storage.0.current().put_raw(Space::System, &sums_key(number), bytes).unwrap();
}

/// Closed or killed, as it is found the next time.
fn reopened(storage: SledStorage, dir: &Path, closes: bool) -> SledStorage {
    if closes {
        storage.end().unwrap();
    }
    storage.sync().unwrap();
    drop(storage);
    open(dir)
}

#[test]
fn a_mismatch_names_its_groups_and_no_others() {
    for closes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = with_orgs(dir.path());
        if closes {
            storage.end().unwrap();
        }
        for org in [0, 2] {
            let key = escape(&key(ORGS[org], b"a")).into_owned();
            storage.0.current().remove_raw(Space::Records, &key).unwrap();
        }
        let storage = reopened(storage, dir.path(), false);
        let broken = [Group::Records(ORGS[0]), Group::Records(ORGS[2])];
        if closes {
            assert!(storage.was_whole(), "nobody has read it yet");
            storage.begin().unwrap();
            assert_eq!(storage.broken().unwrap(), broken);
            for org in ORGS {
                let is_whole = storage.verify(Group::Records(org)).unwrap().is_some();
                assert_eq!(is_whole, org == ORGS[1]);
            }
            assert!(storage.verify(Group::System).unwrap().is_some());
        } else {
            assert_eq!((storage.was_whole(), storage.was_broken()), (false, &broken[..]));
        }
    }
}

/// The sum in the position is of all groups together.
#[test]
fn a_bucket_of_before_or_of_elsewhere_or_none_is_noticed() {
    type Forge = fn(&SledStorage, &[Vec<u8>; 2]);
    let forges: [Forge; 6] = [
        |storage, [old, _]| put_bucket(storage, 1, old),
        |storage, [_, new]| put_bucket(storage, 2, new),
        |storage, [_, new]| put_bucket(storage, 1, &[&new[..new.len() - 1], &[0]].concat()),
        |storage, _| put_bucket(storage, 1, b"short"),
        |storage, _| storage.0.current().remove_raw(Space::System, &sums_key(1)).unwrap(),
        |storage, _| put_bucket(storage, 7, &bucket(storage, 1).unwrap()),
    ];
    for (i, forge) in forges.into_iter().enumerate() {
        for closes in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (storage, buckets) = with_orgs(dir.path());
            if closes {
                storage.end().unwrap();
            }
            forge(&storage, &buckets);
            let storage = reopened(storage, dir.path(), false);
            assert!(!storage.was_whole(), "{i} {closes}");
            if i == 0 {
                assert_eq!(storage.was_broken(), [Group::Records(ORGS[0])], "{closes}");
            }
            // Accepted, it is gone.
            storage.begin().unwrap();
            assert_eq!(storage.broken().unwrap(), []);
            let storage = reopened(storage, dir.path(), closes);
            assert!(storage.was_whole(), "{i} {closes}");
        }
    }
}

/// Rolled back with the records that it is a sum of, it would hold.
#[test]
fn an_org_that_is_rolled_back_with_its_bucket_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = begun(dir.path());
    let database = Arc::clone(&storage.0.current());
    let kept = [1, 2].map(|round| {
        storage.put(Space::Records, &key(ORGS[0], b"a"), Some(vec![round; 40])).unwrap();
        storage.put_position(vec![round]).unwrap();
        let held = database.get_raw(Space::Records, &key(ORGS[0], b"a")).unwrap().unwrap();
        (bucket(&storage, 1).unwrap(), held)
    });
    storage.end().unwrap();
    database.put_raw(Space::Records, &key(ORGS[0], b"a"), &kept[0].1).unwrap();
    put_bucket(&storage, 1, &kept[0].0);
    drop(database);
    assert!(!reopened(storage, dir.path(), false).was_whole());
}

/// A kill may leave any of the buckets of a sync without its position.
#[test]
fn what_a_kill_leaves_of_a_sync_is_whole() {
    for ahead in 0..8 {
        for is_begun_again in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (storage, _) = with_orgs(dir.path());
            let numbers = ORGS.map(|org| usize::from(org[0]));
            let position = storage.0.current().get_raw(Space::System, POSITION_KEY).unwrap();
            let before = numbers.map(|number| bucket(&storage, number).unwrap());
            storage.put(Space::Records, &key(ORGS[0], b"a"), Some(vec![3; 40])).unwrap();
            storage.put(Space::Records, &key(ORGS[1], b"a"), None).unwrap();
            storage.put(Space::Records, &key(ORGS[2], b"c"), Some(vec![3; 40])).unwrap();
            storage.put_position(vec![3]).unwrap();
            for (i, number) in numbers.into_iter().enumerate() {
                if ahead & 1 << i == 0 {
                    put_bucket(&storage, number, &before[i]);
                }
            }
            let database = storage.0.current();
            database.put_raw(Space::System, POSITION_KEY, &position.unwrap()).unwrap();
            drop(database);
            let mut storage = reopened(storage, dir.path(), false);
            assert!(storage.was_whole(), "{ahead}");
            if is_begun_again {
                storage.begin().unwrap();
                assert_eq!(storage.broken().unwrap(), []);
                storage = reopened(storage, dir.path(), false);
                assert!(storage.was_whole(), "{ahead}");
            }
        }
    }
}

/// A write that is lost leaves a bucket ahead that is of nothing: the next position must not vouch
/// for it.
#[test]
fn a_bucket_that_is_ahead_is_written_anew_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = with_orgs(dir.path());
    let position = storage.0.current().get_raw(Space::System, POSITION_KEY).unwrap().unwrap();
    let name = key(ORGS[0], b"a");
    let record = storage.0.current().get_raw(Space::Records, &name).unwrap().unwrap();
    storage.put(Space::Records, &name, Some(vec![3; 40])).unwrap();
    storage.put_position(vec![3]).unwrap();
    let database = storage.0.current();
    database.put_raw(Space::System, POSITION_KEY, &position).unwrap();
    database.put_raw(Space::Records, &name, &record).unwrap();
    drop(database);
    let storage = reopened(storage, dir.path(), false);
    assert!(storage.was_whole());
    storage.begin().unwrap();
    storage.put_position(vec![4]).unwrap();
    let storage = reopened(storage, dir.path(), true);
    assert!(storage.was_whole());
}

#[test]
fn a_batch_that_deletes_in_several_groups_notes_it_in_each() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = with_orgs(dir.path());
    let delete = |org| Write { key: key(org, b"a"), value: None };
    storage.apply(Space::Records, ORGS.map(delete).into()).unwrap();
    assert_eq!(storage.broken().unwrap(), []);
    for org in ORGS {
        let note = deletions::key(Group::Records(org), 0);
        assert!(storage.0.current().get_raw(Space::System, &note).unwrap().is_some());
    }
    assert!(reopened(storage, dir.path(), false).was_whole());
}

#[test]
fn a_group_that_is_gone_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = with_orgs(dir.path());
    let group = Group::Records(ORGS[0]);
    for name in [b"a", b"b"] {
        storage.put(Space::Records, &key(ORGS[0], name), None).unwrap();
    }
    let own = || {
        let pairs = storage.0.current().range(Space::System, (Bound::Unbounded, Bound::Unbounded));
        let keys: Vec<_> = pairs.unwrap().map(|pair| pair.unwrap().0.to_vec()).collect();
        keys.iter().filter(|key| key.starts_with(b"deleted/") || **key == sums_key(1)).count()
    };
    storage.forget(group).unwrap();
    assert_eq!(own(), 2, "the note is needed until the next sync");
    storage.put_position(vec![3]).unwrap();
    storage.forget(group).unwrap();
    assert_eq!(own(), 1, "the bucket says what the sum was before");
    storage.put_position(vec![4]).unwrap();
    assert_eq!(own(), 0);
    assert!(reopened(storage, dir.path(), false).was_whole());
}

/// What was written while the copy was made is in its sums as well.
fn copied(storage: &SledStorage, dir: &Path, plan: &CopyPlan<'_>) -> Vec<Group> {
    let mut copy = storage.copy_to(&dir.join("db.1"), plan).unwrap();
    storage.put(Space::Records, &key(ORGS[1], b"a"), None).unwrap();
    storage.put(Space::Records, &key(ORGS[1], b"c"), Some(vec![4; 40])).unwrap();
    copy.catch_up().unwrap();
    storage.put(Space::Records, &key(ORGS[1], b"c"), Some(vec![5; 40])).unwrap();
    storage.put(Space::System, b"s", Some(vec![5; 40])).unwrap();
    storage.put_position(vec![7]).unwrap();
    match copy.freeze(None).unwrap() {
        Freeze::Frozen(frozen) => {
            frozen.switch();
            Vec::new()
        }
        Freeze::Broken(groups) => groups,
    }
}

#[test]
fn a_copy_takes_over_only_if_it_is_what_was_there() {
    for takes_away in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = with_orgs(dir.path());
        if takes_away {
            storage.0.current().remove_raw(Space::Records, &key(ORGS[0], b"a")).unwrap();
        }
        let broken = Vec::from_iter(takes_away.then_some(Group::Records(ORGS[0])));
        assert_eq!(copied(&storage, dir.path(), &CopyPlan::Checked), broken);
        assert_eq!(storage.broken().unwrap(), broken);
        assert_eq!(storage.dir() == dir.path().join("db.1"), !takes_away);
        // It is what it was, if it is a copy.
        assert_eq!(copied_whole(storage, dir.path(), 1), !takes_away);
    }
}

/// Whether the database that a store was on last is whole when the store was killed.
fn copied_whole(storage: SledStorage, dir: &Path, key: u8) -> bool {
    let name = storage.dir().file_name().unwrap().to_str().unwrap().to_owned();
    storage.put(Space::Records, b"later", Some(vec![6; 40])).unwrap();
    storage.put(Space::Records, FIRST, None).unwrap();
    storage.sync().unwrap();
    drop(storage);
    open_under(dir, &name, key).was_whole()
}

#[test]
fn a_copy_that_accepts_what_it_finds_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = with_orgs(dir.path());
    storage.0.current().remove_raw(Space::Records, &key(ORGS[0], b"a")).unwrap();
    assert_eq!(copied(&storage, dir.path(), &CopyPlan::Accepting), []);
    assert_eq!(storage.broken().unwrap(), []);
    assert_eq!(storage.position().unwrap().unwrap()[0], 7);
    assert!(copied_whole(storage, dir.path(), 1));
}

#[test]
fn a_copy_under_another_key_is_whole_and_opens_under_that_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = with_orgs(dir.path());
    let other = KeyMaterial::take(&mut [2; 32]);
    let reseal: Reseal = Arc::new(|key, value| Ok([key, value].concat()));
    storage.put(Space::System, b"s", Some(vec![4; 40])).unwrap();
    storage.put(Space::System, b"t\xff", Some(vec![4; 40])).unwrap();
    assert_eq!(copied(&storage, dir.path(), &CopyPlan::Under { key: &other, reseal }), []);
    assert_eq!(storage.broken().unwrap(), []);
    let get = |space, key: &[u8]| storage.get(space, key).unwrap().unwrap().to_vec();
    assert_eq!(get(Space::Records, &key(ORGS[1], b"c")), [5; 40]);
    assert_eq!(get(Space::System, b"s"), [&b"s"[..], &[5; 40]].concat());
    assert_eq!(get(Space::System, b"t\xff"), [&b"t\xff"[..], &[4; 40]].concat());
    assert!(copied_whole(storage, dir.path(), 2));
    assert!(!open_under(dir.path(), "db.1", 1).was_whole());
}
