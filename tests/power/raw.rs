//! Everything that a store ever wrote, after the certificate of erasure: on the raw device of a file
//! system of its own, where that can be mounted, and in every file that it ever made, by the record.
//!
//! Runs of large pages, writes that meet in one page, and kills; 2, with `BYOKV_TORTURE=n` 20 × n. Of the
//! erased key's envelopes there is nothing but what the certificate's scope names.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use byokv::{
    Certificate, CertificateKind, ErasureLimit, Options, Org, OrgPolicy, RootKey, Store, failpoint,
};

use super::common::{self, Ended, key_text, material};
use super::disk::Rng;
use super::recorder::{self, Event, mark};

const NAMES: u64 = 40;
const THREADS: u64 = 3;

/// Where processes are killed: in writing, and in erasing. `end` is between two changes.
const WRITING: [&str; 6] = [
    "pages.unlinked:2",
    "pages.overwritten:5",
    "pages.linked:9",
    "pages.removed:3",
    "end",
    "pages.overwritten:1",
];
const ERASING: [&str; 6] = [
    "residue.switched",
    "residue.copied",
    "pages.overwritten:2",
    "residue.overwritten",
    "none",
    "residue.removed",
];

fn text(name: &str) -> String {
    std::env::var(name).unwrap()
}

/// Not a test of its own: one life of a store, which may be killed in it.
#[test]
fn child_raw() {
    let Some(data) = std::env::var_os("BYOKV_RAW") else { return };
    let (seed, life): (u64, u64) =
        (text("BYOKV_RAW_SEED").parse().unwrap(), text("BYOKV_RAW_LIFE").parse().unwrap());
    mark(&format!("life {life}"));
    let root = RootKey::from_material(material(&text("BYOKV_RAW_ROOT")));
    let options = Options::new().cache_bytes(2 << 20).segment_bytes(64 << 10);
    let store = options.sync_interval(Duration::from_millis(20)).open(&data, root).unwrap();
    if life < 2 {
        let org = match store.org("acme") {
            Ok(org) => org,
            Err(_) => store.create_org("acme", OrgPolicy::byok()).unwrap(),
        };
        let start = Instant::now();
        for round in 0.. {
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (org, store) = (&org, &store);
                    let rng = Rng::new(seed * 10_000 + life * 1000 + round * 10 + thread);
                    scope.spawn(move || write(store, org, thread, rng));
                }
            });
            if common::has_dropped_pages(Path::new(&data)) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "sled drops nothing");
        }
        if text("BYOKV_RAW_KILLED") == "end" {
            mark("end");
        }
    } else {
        if store.keys().status("acme").unwrap().versions.len() == 1 {
            store.keys().rotate_platform_key("acme").unwrap();
        }
        store.keys().rotations().unwrap().iter().for_each(|rotation| drop(rotation.ended()));
        store.erase_residue().unwrap();
        check(&store);
    }
    store.close().unwrap();
}

/// Values of neighbours in one page: the writes of the threads meet.
fn write(store: &Store, org: &Org, thread: u64, mut rng: Rng) {
    for i in 0..100 {
        let name = format!("{:03}/{thread}", rng.below(NAMES));
        let len = match rng.below(3) {
            0 => 100 + rng.below(3000),
            _ => 17_000 + rng.below(40_000),
        };
        let value = format!("{name} {len}").into_bytes();
        let len = usize::try_from(len).unwrap();
        org.put(&name, value.into_iter().cycle().take(len).collect::<Vec<_>>()).unwrap();
        if i % 50 == 49 {
            store.sync().unwrap();
        }
    }
}

/// Every value is what its name says.
fn check(store: &Store) {
    for record in store.org("acme").unwrap().scan("") {
        let record = record.unwrap();
        let name = String::from_utf8(record.name.to_vec()).unwrap();
        let begins = format!("{name} {}", record.value.len());
        assert!(record.value.starts_with(begins.as_bytes()), "{name}");
    }
}

/// The nonces of all envelopes of the version that stand anywhere in the bytes: random, so each marks
/// its envelope.
fn nonces(bytes: &[u8], header: &[u8]) -> HashSet<[u8; 24]> {
    let places = common::places_of(bytes, header).into_iter().map(|at| at + header.len());
    places.filter_map(|at| bytes.get(at..at + 24)?.try_into().ok()).collect()
}

/// A file as the record tells of it.
#[derive(Default)]
struct Recorded {
    content: Vec<u8>,
    names: HashSet<PathBuf>,
    /// Its place in the log, for a large page; the event that made it.
    blob: Option<(i64, usize)>,
    is_log: bool,
    /// Of a log: every envelope that was ever written to it, and where it ended.
    written: Vec<(usize, [u8; 24])>,
}

/// What of the key's envelopes was left in blocks without being overwritten.
#[derive(Debug, Default)]
struct Left {
    /// At the end of a log that was shortened.
    shortened: HashSet<[u8; 24]>,
    /// In large pages that sled gave up.
    aborted: HashSet<[u8; 24]>,
    /// Anywhere else, and where.
    elsewhere: Vec<(PathBuf, usize)>,
    /// Files of large pages that were overwritten after sled had removed them.
    overwritten: usize,
    ever: HashSet<[u8; 24]>,
}

impl Left {
    fn of(events: &[Event], header: &[u8]) -> Self {
        let mut left = Self::default();
        let mut files: Vec<Recorded> = Vec::new();
        let (mut inodes, mut names) = (HashMap::new(), HashMap::<PathBuf, usize>::new());
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Create { inode, path } => {
                    let parent = path.parent().unwrap().file_name().unwrap();
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let blob = (parent == "blobs").then(|| (name.parse().unwrap(), at));
                    let names_of = HashSet::from([path.clone()]);
                    inodes.insert(*inode, files.len());
                    names.insert(path.clone(), files.len());
                    let is_log = name == "db";
                    files.push(Recorded { names: names_of, blob, is_log, ..Recorded::default() });
                }
                Event::Write { inode, at, data } => {
                    let file = &mut files[inodes[inode]];
                    let start = usize::try_from(*at).unwrap();
                    if file.content.len() < start + data.len() {
                        file.content.resize(start + data.len(), 0);
                    }
                    file.content[start..start + data.len()].copy_from_slice(data);
                    let written = nonces(data, header);
                    if file.is_log {
                        let end = start + data.len();
                        file.written.extend(written.iter().map(|nonce| (end, *nonce)));
                    }
                    left.ever.extend(written);
                }
                Event::Truncate { inode, len } => {
                    let file = &mut files[inodes[inode]];
                    let len = usize::try_from(*len).unwrap();
                    let lost = nonces(file.content.get(len..).unwrap_or_default(), header);
                    match file.is_log {
                        // Also what was overwritten there: that may not have come to the disk before
                        // the blocks were freed.
                        true => {
                            let behind = file.written.iter().filter(|(end, _)| *end > len);
                            left.shortened.extend(behind.map(|(_, nonce)| *nonce));
                        }
                        false => left.note_elsewhere(file, lost.len()),
                    }
                    file.content.resize(len, 0);
                }
                Event::Link { from, to } => {
                    let id = names[from];
                    files[id].names.insert(to.clone());
                    names.insert(to.clone(), id);
                }
                Event::Rename { from, to } => {
                    if let Some(id) = names.remove(from) {
                        left.unname(&mut files, &mut names, to, (events, at), header);
                        files[id].names.remove(from);
                        files[id].names.insert(to.clone());
                        names.insert(to.clone(), id);
                    }
                }
                Event::Exchange { from, to } => {
                    let (a, b) = (names[from], names[to]);
                    for (id, old, new) in [(a, from, to), (b, to, from)] {
                        files[id].names.remove(old);
                        files[id].names.insert(new.clone());
                        names.insert(new.clone(), id);
                    }
                }
                Event::Unlink { path } => {
                    left.unname(&mut files, &mut names, path, (events, at), header);
                }
                _ => {}
            }
        }
        for file in files.iter().filter(|file| !file.names.is_empty()) {
            left.note_elsewhere(file, nonces(&file.content, header).len());
        }
        left
    }

    fn note_elsewhere(&mut self, file: &Recorded, envelopes: usize) {
        let name = file.names.iter().next().cloned().unwrap_or_default();
        self.elsewhere.extend((envelopes > 0).then_some((name, envelopes)));
    }

    /// Takes a name away. With its last one, what a file holds is left in its blocks.
    fn unname(
        &mut self,
        files: &mut [Recorded],
        names: &mut HashMap<PathBuf, usize>,
        path: &Path,
        (events, at): (&[Event], usize),
        header: &[u8],
    ) {
        let Some(id) = names.remove(path) else { return };
        if files[id].names.len() > 1 {
            files[id].names.remove(path);
            return;
        }
        let file = &files[id];
        let lost = nonces(&file.content, header);
        let is_dropped = path.parent().unwrap().ends_with("links");
        self.overwritten += usize::from(is_dropped && file.content.iter().all(|&byte| byte == 0));
        match file.blob {
            Some((place, made)) if !lost.is_empty() && is_aborted(place, events, made..at) => {
                self.aborted.extend(lost);
            }
            _ => self.note_elsewhere(file, lost.len()),
        }
        files[id].names.clear();
    }
}

/// Whether the log says that the large page at `place` was given up, or says nothing of it because the
/// process was killed: no message of it counts. See `src/storage/sled/log.rs`.
fn is_aborted(place: i64, events: &[Event], lived: std::ops::Range<usize>) -> bool {
    const CANCELED: u8 = 1;

    // A message may be written after its file was removed, and recovery may give a place out again.
    let is_next = |event: &Event| matches!(event, Event::Mark(text) if text.starts_with("life"));
    let ends = events[lived.end..].iter().position(is_next).map_or(events.len(), |n| lived.end + n);
    let id = place.to_le_bytes();
    events[lived.start..ends].iter().all(|event| {
        let Event::Write { data, .. } = event else { return true };
        common::places_of(data, &id).into_iter().all(|body| {
            // crc32 ‖ kind ‖ length of the body, 8 ‖ segment and page, 1 to 9 bytes each ‖ body.
            (8..=24.min(body)).all(|header| {
                let (begin, end) = (body - header, body + id.len());
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&data[body..end]);
                hasher.update(&data[begin + 4..body]);
                let crc = (!hasher.finalize()).to_le_bytes();
                data[begin..begin + 4] != crc || data[begin + 4] == CANCELED
            })
        })
    })
}

/// A file system of its own, in a file; or none, where that cannot be mounted.
struct Device {
    image: PathBuf,
    mounted: PathBuf,
}

impl Device {
    const BYTES: u64 = 192 << 20;

    fn mount(dir: &Path) -> Self {
        let (image, mounted) = (dir.join("image"), dir.join("mounted"));
        File::create(&image).unwrap().set_len(Self::BYTES).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let run = |program: &str, args: &[&Path]| {
            assert!(Command::new(program).args(args).status().unwrap().success(), "{program}");
        };
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image]);
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &mounted]);
        Self { image, mounted }
    }

    /// Every byte, once the file system has let go of it.
    fn read(self) -> Vec<u8> {
        assert!(Command::new("umount").arg(&self.mounted).status().unwrap().success());
        let mut bytes = Vec::new();
        File::open(self.image).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// What there is to say, and how many dropped pages were overwritten.
fn run(seed: u64, mounts: bool) -> (String, usize) {
    let dir = super::in_memory();
    let base = dir.path().canonicalize().unwrap();
    let device = mounts.then(|| Device::mount(&base));
    let place = device.as_ref().map_or_else(|| base.join("place"), |device| device.mounted.clone());
    std::fs::create_dir_all(&place).unwrap();
    let (data, log, root) = (place.join("data"), base.join("log"), key_text());
    let nth = usize::try_from(seed).unwrap();
    let killed = [WRITING[nth % 6], WRITING[(nth + nth / 6 + 1) % 6], ERASING[nth % 6], "none"];
    let mut kills = 0;
    for (life, killed) in killed.into_iter().enumerate() {
        let point = if killed == "end" { "none" } else { killed };
        let ended = recorder::child("raw::child_raw", &place)
            .env("BYOKV_RECORD_LOG", &log)
            .env("BYOKV_RECORD_SYNCS", "1")
            .env("BYOKV_RAW", &data)
            .env("BYOKV_RAW_ROOT", &root)
            .env("BYOKV_RAW_SEED", seed.to_string())
            .env("BYOKV_RAW_LIFE", life.to_string())
            .env("BYOKV_RAW_KILLED", killed)
            .env("BYOKV_FAILPOINT", point)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        let was_killed = ended.status.code().is_none();
        assert!(was_killed || ended.status.success(), "run {seed}, life {life}: {said}");
        assert!(killed != "none" || !was_killed, "run {seed}, life {life}: {said}");
        kills += usize::from(was_killed);
    }
    let store = Store::open(&data, RootKey::from_material(material(&root))).unwrap();
    check(&store);
    let org = store.org("acme").unwrap().id();
    let certificates = store.keys().certificates().map(Result::unwrap);
    let erased: Vec<Certificate> =
        certificates.filter(|certificate| certificate.kind == CertificateKind::KeyErased).collect();
    assert_eq!(erased.len(), 1);
    let scope = &erased[0].scope;
    assert!(
        scope.contains(&ErasureLimit::AbortedPages) && scope.contains(&ErasureLimit::ShortenedLog)
    );
    store.close().unwrap();
    let version = erased[0].version.get().to_be_bytes();
    let header = [&[1, 1][..], org.as_bytes(), &version].concat();
    let events = recorder::read(&log);
    let left = Left::of(&events, &header);
    assert!(left.elsewhere.is_empty(), "run {seed}: {:?}", left.elsewhere);
    let named = left.shortened.len() + left.aborted.len();
    let mut told = format!(
        "run {seed}: {} envelopes written, {kills} kills, {} dropped pages overwritten, {} left in a \
         shortened log, {} in aborted pages",
        left.ever.len(),
        left.overwritten,
        left.shortened.len(),
        left.aborted.len(),
    );
    if let Some(device) = device {
        let found = nonces(&device.read(), &header);
        let unnamed = found
            .iter()
            .filter(|nonce| !left.shortened.contains(*nonce) && !left.aborted.contains(*nonce));
        assert_eq!(unnamed.count(), 0, "{told}; the device holds more");
        told += &format!("; on the raw device {} of these {named}", found.len());
    }
    assert!(!left.ever.is_empty(), "{told}");
    (told, left.overwritten)
}

/// Not a test of its own: all runs, in a mount namespace that ends with the process.
#[test]
fn child_runs() {
    let Ok(mounts) = std::env::var("BYOKV_RAW_MOUNTS") else { return };
    let runs = std::env::var("BYOKV_TORTURE").map_or(2, |n| 20 * n.parse::<u64>().unwrap());
    let mut overwritten = 0;
    for seed in 0..runs {
        let (told, here) = run(seed, mounts == "yes");
        println!("{told}");
        overwritten += here;
    }
    // A run that is killed early has few.
    assert!(overwritten as u64 >= runs, "{overwritten}: nothing to show");
    println!("torture: raw scan: {runs} runs, 0 envelopes beyond the scope");
}

#[test]
fn a_raw_scan_finds_nothing_but_what_the_scope_names() {
    let can = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let mounts = can("unshare", &["--mount", "losetup", "--find"]) && can("mkfs.ext4", &["-V"]);
    let exe = std::env::current_exe().unwrap();
    let mut child = match mounts {
        true => Command::new("unshare"),
        false => Command::new(&exe),
    };
    if mounts {
        child.args(["--mount", "--propagation", "private"]).arg(&exe);
    } else {
        eprintln!(
            "\n*** no loop device can be mounted here (root, mkfs.ext4 and losetup are needed): the RAW \
             DEVICE was NOT scanned, every file that the store made was ***\n"
        );
    }
    let output = child
        .args(["--exact", "raw::child_runs", "--nocapture"])
        .env("BYOKV_RAW_MOUNTS", if mounts { "yes" } else { "no" })
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.lines().filter(|line| line.contains("run")).for_each(|line| println!("{line}"));
    assert!(failpoint::LARGE.iter().all(|point| WRITING.iter().any(|at| at.starts_with(point))));
}
