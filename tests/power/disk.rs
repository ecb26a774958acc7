//! What a power cut may leave of recorded changes.
//!
//! Of a file: what its last finished sync covered is there. Of what came after, each sector of 512
//! bytes holds any of the contents that it had since, and the length is any of those that the file
//! had since; sectors that never reached the disk read as zeros. Of a directory: what its last
//! finished sync covered; see [`Names`] for the rest. `sync_file_range` makes nothing durable.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::recorder::Event;

const SECTOR: u64 = 512;

/// What becomes of names that were changed and whose directory was not synced since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// The changes up to some moment are there, as with journaled metadata (ext4, XFS, btrfs).
    Ordered,
    /// Any of them is there or not.
    Any,
}

/// What becomes of bytes that were written and not synced since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Lost,
    Kept,
    /// Each write as a whole, or up to a sector in it.
    Writes,
    /// Each sector by itself.
    Sectors,
}

/// A small generator, the same on every machine.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A file as a power cut may find it.
#[derive(Clone, Default)]
struct File {
    /// Index of the event from which on nothing is known to be durable.
    synced_before: usize,
    changes: Vec<usize>,
}

/// A change of names: each path with what stands there afterwards.
struct Renaming {
    at: usize,
    effects: Vec<(PathBuf, Option<Node>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir,
}

pub(crate) struct Disk<'a> {
    events: &'a [Event],
    files: Vec<File>,
    renamings: Vec<Renaming>,
    /// Index of the event before which the names of a directory are durable.
    synced_dirs: HashMap<PathBuf, usize>,
}

impl<'a> Disk<'a> {
    /// The disk after the first `cut` events.
    pub(crate) fn at(events: &'a [Event], cut: usize) -> Self {
        let mut disk =
            Self { events, files: Vec::new(), renamings: Vec::new(), synced_dirs: HashMap::new() };
        let mut inodes: HashMap<u64, usize> = HashMap::new();
        let mut names: HashMap<PathBuf, Node> = HashMap::new();
        let mut syncing: HashMap<u64, (usize, u64, PathBuf)> = HashMap::new();
        for (at, event) in events[..cut].iter().enumerate() {
            let mut effects = Vec::new();
            match event {
                Event::Create { inode, path } => {
                    let id = disk.files.len();
                    disk.files.push(File::default());
                    inodes.insert(*inode, id);
                    effects = vec![(path.clone(), Some(Node::File(id)))];
                }
                Event::Write { inode, .. } | Event::Truncate { inode, .. } => {
                    let id = inodes.get(inode).expect("a file that was there before the record");
                    disk.files[*id].changes.push(at);
                }
                Event::SyncBegins { inode, id, path } => {
                    syncing.insert(*id, (at, *inode, path.clone()));
                }
                Event::SyncEnded { id } => {
                    let (began, inode, path) = syncing.remove(id).unwrap();
                    match inodes.get(&inode) {
                        Some(file) => {
                            let before = &mut disk.files[*file].synced_before;
                            *before = began.max(*before);
                        }
                        None => {
                            let before = disk.synced_dirs.entry(path).or_default();
                            *before = began.max(*before);
                        }
                    }
                }
                Event::Rename { from, to } => {
                    let node = names.get(from).copied();
                    effects = vec![(from.clone(), None), (to.clone(), node)];
                }
                Event::Exchange { from, to } => {
                    let (a, b) = (names.get(from).copied(), names.get(to).copied());
                    effects = vec![(from.clone(), b), (to.clone(), a)];
                }
                Event::Link { from, to } => {
                    effects.push((to.clone(), names.get(from).copied()));
                }
                Event::Unlink { path } | Event::Rmdir { path } => {
                    effects.push((path.clone(), None));
                }
                Event::Mkdir { path } => effects.push((path.clone(), Some(Node::Dir))),
                Event::Mark(_) | Event::Range => {}
            }
            for (path, node) in &effects {
                match node {
                    Some(node) => drop(names.insert(path.clone(), *node)),
                    None => drop(names.remove(path)),
                }
            }
            if !effects.is_empty() {
                disk.renamings.push(Renaming { at, effects });
            }
        }
        disk
    }

    /// Changes that a power cut may undo: of bytes and of names.
    pub(crate) fn unsynced(&self) -> (usize, usize) {
        let late =
            |file: &File| file.changes.iter().filter(|at| **at >= file.synced_before).count();
        let names = self.renamings.iter().filter(|renaming| !self.is_durable(renaming)).count();
        (self.files.iter().map(late).sum(), names)
    }

    /// Files that are still there with changes before that event which a power cut may undo, by the
    /// names that they were created under.
    pub(crate) fn unsynced_files(&self, before: usize) -> Vec<&'a Path> {
        let created = self.events.iter().filter_map(|event| match event {
            Event::Create { path, .. } => Some(path.as_path()),
            _ => None,
        });
        let is_late =
            |file: &File| file.changes.iter().any(|at| (file.synced_before..before).contains(at));
        let is_gone = |path: &Path| {
            let mut effects = self.renamings.iter().rev().flat_map(|renaming| &renaming.effects);
            effects.find(|(of, _)| of == path).is_some_and(|(_, node)| node.is_none())
        };
        let late = created.zip(&self.files).filter(|(path, file)| is_late(file) && !is_gone(path));
        late.map(|(path, _)| path).collect()
    }

    fn is_durable(&self, renaming: &Renaming) -> bool {
        renaming.effects.iter().all(|(path, _)| {
            let synced = path.parent().and_then(|dir| self.synced_dirs.get(dir));
            synced.is_some_and(|before| renaming.at < *before)
        })
    }

    fn names(&self, mode: Names, rng: &mut Rng) -> BTreeMap<PathBuf, Node> {
        let durable = self.renamings.iter().rposition(|renaming| self.is_durable(renaming));
        let least = durable.map_or(0, |last| last + 1);
        let kept =
            least + usize::try_from(rng.below((self.renamings.len() - least + 1) as u64)).unwrap();
        let mut names = BTreeMap::new();
        for (at, renaming) in self.renamings.iter().enumerate() {
            let stays = match mode {
                Names::Ordered => at < kept,
                Names::Any => self.is_durable(renaming) || rng.one_in(2),
            };
            for (path, node) in renaming.effects.iter().filter(|_| stays) {
                match node {
                    Some(node) => drop(names.insert(path.clone(), *node)),
                    None => drop(names.remove(path)),
                }
            }
        }
        names
    }

    fn content(&self, file: &File, mode: Bytes, rng: &mut Rng) -> Vec<u8> {
        let split = file.changes.partition_point(|at| *at < file.synced_before);
        let (durable, late) = file.changes.split_at(split);
        let mut content = Vec::new();
        durable.iter().for_each(|at| self.apply(*at, &mut content));
        let kept = match mode {
            Bytes::Lost => return content,
            Bytes::Kept => late.len() as u64,
            Bytes::Writes | Bytes::Sectors => rng.below(late.len() as u64 + 1),
        };
        // The contents that each sector had, one after the other.
        let mut now = content.clone();
        let mut len = content.len();
        let mut sectors: HashMap<u64, Vec<u8>> = HashMap::new();
        for (nth, at) in late.iter().enumerate() {
            self.apply(*at, &mut now);
            if nth as u64 + 1 == kept {
                len = now.len();
            }
            let (from, to) = match &self.events[*at] {
                Event::Write { at, data, .. } => (*at, *at + data.len() as u64),
                _ => (now.len() as u64, now.len() as u64 + SECTOR),
            };
            let touched = from / SECTOR..to.div_ceil(SECTOR);
            let reached = match mode {
                Bytes::Kept => touched.end,
                Bytes::Writes if rng.one_in(2) => touched.end,
                Bytes::Writes if rng.one_in(4) => {
                    touched.start + rng.below(touched.end - touched.start + 1)
                }
                Bytes::Writes => touched.start,
                Bytes::Sectors | Bytes::Lost => touched.end,
            };
            for sector in touched.start..reached {
                if mode == Bytes::Sectors && rng.one_in(2) {
                    continue;
                }
                let start = usize::try_from(sector * SECTOR).unwrap().min(now.len());
                let end = (start + 512).min(now.len());
                sectors.insert(sector, now[start..end].to_vec());
            }
        }
        // Half of the time the file is as long as the newest length said.
        if matches!(mode, Bytes::Writes | Bytes::Sectors) && rng.one_in(2) {
            len = now.len();
        }
        content.resize(len, 0);
        for (sector, bytes) in sectors {
            let start = usize::try_from(sector * SECTOR).unwrap();
            let end = (start + bytes.len()).min(content.len());
            if start < end {
                content[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
        content
    }

    fn apply(&self, at: usize, content: &mut Vec<u8>) {
        match &self.events[at] {
            Event::Write { at, data, .. } => {
                let start = usize::try_from(*at).unwrap();
                if content.len() < start + data.len() {
                    content.resize(start + data.len(), 0);
                }
                content[start..start + data.len()].copy_from_slice(data);
            }
            Event::Truncate { len, .. } => content.resize(usize::try_from(*len).unwrap(), 0),
            other => unreachable!("{other:?}"),
        }
    }

    /// Lays down in `to` what a power cut may leave of `data`.
    pub(crate) fn lay_down(
        &self,
        data: &Path,
        to: &Path,
        names: Names,
        bytes: Bytes,
        rng: &mut Rng,
    ) {
        let _ = fs::remove_dir_all(to);
        let mut laid_down = HashMap::new();
        for (path, node) in self.names(names, rng) {
            let target = to.join(path.strip_prefix(data).unwrap());
            match node {
                Node::Dir => {
                    if target == to || target.parent().is_some_and(Path::exists) {
                        fs::create_dir(&target).unwrap();
                    }
                }
                // Below a directory that is not there, it cannot be reached.
                Node::File(id) if target.parent().is_some_and(Path::exists) => {
                    match laid_down.get(&id) {
                        Some(other) => fs::hard_link(other, target).unwrap(),
                        None => {
                            fs::write(&target, self.content(&self.files[id], bytes, rng)).unwrap();
                            laid_down.insert(id, target);
                        }
                    }
                }
                Node::File(_) => {}
            }
        }
    }
}
