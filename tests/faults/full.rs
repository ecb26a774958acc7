//! What a store does on a disk that is full to the end, and when space comes back.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use byokv::{Error, Org, OrgPolicy, Phase, RootKey, Rotation, Store};

use super::common::{Ended, key_text, material};
use super::recorder::mark;

const RECORDS: usize = 1500;

/// The rest of the disk.
struct Disk<'a> {
    dir: &'a Path,
    mounted: bool,
}

impl Disk<'_> {
    /// Takes all space but `left` bytes, of which there are not more.
    fn fill(&self, left: u64) {
        if !self.mounted {
            return;
        }
        let path = self.dir.join("filler");
        let mut filler = File::options().append(true).create(true).open(path).unwrap();
        let piece = vec![1; 64 << 10];
        let free = || {
            let free = rustix::fs::statvfs(self.dir).unwrap();
            free.f_bavail * free.f_frsize
        };
        while free() > left && filler.write_all(&piece).is_ok() {}
        if left == 0 {
            while filler.write_all(&[1; 512]).is_ok() {}
        }
    }

    fn empty(&self) {
        if self.mounted {
            fs::remove_file(self.dir.join("filler")).unwrap();
        }
        mark("space");
    }
}

/// Filled to the end, or only by the store itself, which then leaves some space.
pub(crate) fn run(dir: &Path, root: &str, mounted: bool, to_the_end: bool) {
    let disk = Disk { dir, mounted };
    let data = dir.join("data");
    let open = || Store::open(&data, RootKey::from_material(material(root))).unwrap();
    let mut store = open();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for i in 0..RECORDS {
        org.put(format!("n{i}"), vec![7; 1000]).unwrap();
    }
    store.sync().unwrap();
    mark("arm");
    disk.fill(14 << 20);

    let acknowledged = Mutex::new(Vec::new());
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    rotation.pause().unwrap();
    let first = write_until_refused(&org, &acknowledged, 0, &disk);
    let resumed = rotation.resume();
    if to_the_end {
        disk.fill(0);
    }
    let (tx, refused) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 1..3 {
            let (tx, org, acknowledged, disk) = (tx.clone(), &org, &acknowledged, &disk);
            scope.spawn(move || {
                tx.send(write_until_refused(org, acknowledged, thread, disk)).unwrap();
            });
        }
    });
    // As the recorder plays it, sled meets the full disk itself: it may not read everything then.
    // So it may with what it had not written yet when the disk was filled to its end.
    let is_met = |error: &Error| {
        matches!(error, Error::WriteFailed { why } if why.contains("disk is full"))
            && (!mounted || to_the_end)
    };
    let mut met = !mounted;
    for error in [first].into_iter().chain(refused.try_iter()) {
        assert!(is_met(&error) || matches!(error, Error::DiskFull { .. }), "{error}");
        met |= is_met(&error);
    }
    if !met {
        resumed.as_ref().unwrap();
        check(&org, &acknowledged, to_the_end);
        waits(&rotation);
    }
    if mounted && to_the_end {
        // A change of keys that cannot be written has not happened.
        let refused = store.create_org("late", OrgPolicy::byok()).map(drop).unwrap_err();
        assert!(is_met(&refused) || matches!(refused, Error::DiskFull { .. }), "{refused}");
        assert!(store.org("late").is_err());
    }
    drop((org, rotation));

    disk.empty();
    // By itself, or after it was opened again, which the error must say.
    let start = Instant::now();
    let mut reopened = false;
    // A handle that lived on would keep the store locked.
    let put = |store: &Store| store.org("acme").and_then(|org| org.durable().put("after", "1"));
    while let Err(error) = put(&store) {
        if start.elapsed() > Duration::from_secs(5) {
            assert!(to_the_end && !reopened && error.to_string().contains("open"), "{error}");
            reopened = true;
            let _ = store.close();
            store = open();
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    for rotation in store.keys().rotations().unwrap() {
        // Where even that could not be written.
        if resumed.is_err() {
            rotation.resume().unwrap();
        }
        rotation.ended();
    }
    let org = store.org("acme").unwrap();
    check(&org, &acknowledged, false);
    drop(org);
    let written = acknowledged.lock().unwrap().len();
    let again = if reopened { "after it was opened again" } else { "by itself" };
    println!(
        "\ntold {RECORDS} records and {written} durable writes, then no space; it went on {again}"
    );
    store.close().unwrap();
}

fn waits(rotation: &Rotation) {
    let waits = || {
        let progress = rotation.progress();
        let says = progress.reason.as_deref().is_some_and(|why| why.contains("disk is full"));
        progress.phase == Phase::Waiting && says
    };
    let start = Instant::now();
    while !waits() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "does not wait: {}",
            rotation.progress()
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Durable writes until one is refused.
fn write_until_refused(
    org: &Org,
    acknowledged: &Mutex<Vec<String>>,
    thread: u32,
    disk: &Disk<'_>,
) -> Error {
    let org = org.durable();
    for i in 0.. {
        if i == 200 && !disk.mounted {
            mark("full");
        }
        let name = format!("w{thread}/{i}");
        match org.put(&name, vec![3; 8000]) {
            Ok(()) => acknowledged.lock().unwrap().push(name),
            Err(error) => return error,
        }
    }
    unreachable!("the disk never fills")
}

fn check(org: &Org, acknowledged: &Mutex<Vec<String>>, full: bool) {
    for name in acknowledged.lock().unwrap().iter() {
        let found = match org.get(name) {
            // sled met the full disk before we did, and says so.
            Err(Error::DiskFull { .. }) if full => continue,
            found => found.unwrap_or_else(|error| panic!("{name}: {error}")),
        };
        assert!(found.is_some_and(|found| found[..] == [3; 8000][..]), "{name} is lost");
    }
    for i in 0..RECORDS {
        let found = match org.get(format!("n{i}")) {
            Err(Error::DiskFull { .. }) if full => continue,
            found => found.unwrap_or_else(|error| panic!("n{i}: {error}")),
        };
        assert!(found.is_some_and(|found| found[..] == [7; 1000][..]), "n{i} is lost");
    }
}
