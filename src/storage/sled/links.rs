//! A second name for the file of each large page, by which it is overwritten once sled has removed it.
//!
//! sled puts a page above a quarter of a segment into a file of its own, `blobs/PLACE`, and unlinks
//! it when another has taken its place: the blocks go back to the file system with all that they
//! hold. So each such file gets a hard link, `links/NUMBER`, before sled may unlink it:
//!
//! 1. before sled opens its files, for its recovery removes those that it has no use for;
//! 2. at each sync; must come before the keeper lets go of its pin (`pins.rs`), because only then
//!    may sled remove what was there. What is made later waits for a later pin.
//!
//! A link whose file is not in `blobs/` any more is one that sled has dropped. Every reader that was
//! pinned has let go by then, and recovery does without it, as the log that replaced it was synced
//! before the pin was let go. It is overwritten and removed:
//!
//! 3. `blobs/` is synced; must come before 4, or a power cut brings the file back under the name by
//!    which sled's recovery reads it, overwritten;
//! 4. the file is overwritten, durably; must come before 5, or nothing leads to it any more;
//! 5. the link is removed.
//!
//! A kill leaves links behind; the next opening goes on with them. It overwrites nothing before the
//! digest has found the database whole: what damage has taken out of `blobs/` is left in `links/`.
//!
//! Files whose writing sled gives up, as where two writes meet in one page, it unlinks at once, so that
//! they may be gone before they are seen here. Where the file system makes no hard links, or an
//! overwriting finds no space, `pages-not-kept` says so, and certificates of erasure do.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::disk::{self, access};
use crate::failpoint;

/// The links of a database.
pub(super) struct Links {
    /// The database's directory.
    database: PathBuf,
    /// Numbers of the links of files that sled has, by inode.
    held: HashMap<u64, u64>,
    /// Numbers of the links of files that sled has removed, durably; their inodes.
    dropped: BTreeMap<u64, u64>,
    /// Inodes of files that no link could be made for.
    refused: HashSet<u64>,
    next: u64,
    /// Whether there are links that are not durable yet.
    is_new: bool,
}

/// Where it is noted that a large page may have been removed without being overwritten.
fn note(database: &Path) -> PathBuf {
    database.join("pages-not-kept")
}

/// Returns true if large pages of the database may have been removed without being overwritten.
pub(super) fn lost_pages(database: &Path) -> bool {
    fs::symlink_metadata(note(database)).is_ok()
}

/// Notes that, durably, for good.
pub(super) fn note_lost(database: &Path) -> io::Result<()> {
    if lost_pages(database) {
        return Ok(());
    }
    tracing::warn!(
        database = %database.display(),
        "large pages are removed without being overwritten; certificates of erasure say so"
    );
    access::private(&note(database))?.sync_all()?;
    File::open(database)?.sync_all()
}

/// What a file system says that makes no hard links, or no more of them.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)
    )
}

impl Links {
    /// Finds the links that are there, and links every large page, durably. Comes before sled opens
    /// the database.
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let mut links = Self {
            database: database.to_owned(),
            held: HashMap::new(),
            dropped: BTreeMap::new(),
            refused: HashSet::new(),
            next: 0,
            is_new: false,
        };
        if !links.dir().exists() {
            access::make_dir(&links.dir())?;
            File::open(database)?.sync_all()?;
        }
        for entry in fs::read_dir(links.dir())? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            let Some(number) = number else { continue };
            links.next = links.next.max(number + 1);
            match links.held.entry(entry.metadata()?.ino()) {
                Entry::Vacant(vacant) => drop(vacant.insert(number)),
                // One is enough.
                Entry::Occupied(_) => fs::remove_file(entry.path())?,
            }
        }
        let blobs = links.blobs();
        let entries = match fs::read_dir(&blobs) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(links),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            links.hold(fs::symlink_metadata(&path)?.ino(), &path)?;
        }
        links.sync()?;
        Ok(links)
    }

    fn dir(&self) -> PathBuf {
        self.database.join("links")
    }

    fn blobs(&self) -> PathBuf {
        self.database.join("blobs")
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir().join(number.to_string())
    }

    /// Links the file of a large page, if it has no link yet. Not durable before
    /// [`sync`](Self::sync).
    pub(super) fn hold(&mut self, inode: u64, blob: &Path) -> io::Result<()> {
        if self.held.contains_key(&inode) || self.refused.contains(&inode) {
            return Ok(());
        }
        let number = self.next;
        match fs::hard_link(blob, self.path(number)) {
            Ok(()) => {
                self.next += 1;
                self.is_new = true;
                self.held.insert(inode, number);
            }
            Err(error) if is_refusal(&error) => {
                note_lost(&self.database)?;
                self.refused.insert(inode);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes the links durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_new {
            File::open(self.dir())?.sync_all()?;
            self.is_new = false;
            failpoint::reach("pages.linked", "");
        }
        Ok(())
    }

    /// Returns true if a file is held that is not among those that `blobs/` has.
    pub(super) fn miss_any(&self, present: &HashSet<u64>) -> bool {
        self.held.keys().any(|inode| !present.contains(inode))
    }

    /// Takes the files that `blobs/` no longer has for dropped. It was synced since it was listed.
    pub(super) fn drop_missing(&mut self, present: &HashSet<u64>) {
        let dropped = self.held.extract_if(|inode, _| !present.contains(inode));
        self.dropped.extend(dropped.map(|(inode, number)| (number, inode)));
        self.refused.retain(|inode| present.contains(inode));
        failpoint::reach("pages.unlinked", "");
    }

    /// The first dropped file that is to be overwritten, by [`wipe`].
    pub(super) fn next_dropped(&mut self) -> Option<Dropped> {
        let (number, inode) = self.dropped.pop_first()?;
        Some(Dropped { path: self.path(number), blobs: self.blobs(), inode })
    }

    pub(super) fn dropped(&self) -> usize {
        self.dropped.len()
    }
}

/// A file that sled has removed.
pub(super) struct Dropped {
    path: PathBuf,
    blobs: PathBuf,
    inode: u64,
}

impl Dropped {
    /// Overwrites it durably, and removes its link.
    pub(super) fn wipe(&self) -> io::Result<()> {
        let mut file = match disk::to_overwrite(&self.path) {
            // Whoever erases the database was here.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let found = file.metadata()?;
        if found.ino() != self.inode || found.nlink() > 1 && self.is_live()? {
            return Err(io::Error::other("it is a file that sled has; it was left as it is"));
        }
        match disk::overwrite_open(&mut file) {
            // A file system that writes elsewhere needs space for it.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                if let Some(database) = self.blobs.parent() {
                    note_lost(database)?;
                }
            }
            overwritten => overwritten?,
        }
        failpoint::reach("pages.overwritten", "");
        fs::remove_file(&self.path)?;
        failpoint::reach("pages.removed", "");
        Ok(())
    }

    /// Returns true if the file has a name in `blobs/`: its other names are somebody else's links.
    fn is_live(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.blobs)? {
            match fs::symlink_metadata(entry?.path()) {
                Ok(found) if found.ino() == self.inode => return Ok(true),
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(false)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read;

    use super::super::files::Files;
    use super::*;

    /// A file that stays open, whatever becomes of its names.
    fn made(path: &Path, byte: u8) -> File {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![byte; 100_000]).unwrap();
        File::open(path).unwrap()
    }

    fn bytes(file: &File) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 100_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes.dedup();
        bytes
    }

    fn links(dir: &Path) -> usize {
        fs::read_dir(dir.join("links")).unwrap().count()
    }

    fn nothing_else() -> bool {
        true
    }

    #[test]
    fn what_sled_drops_is_overwritten_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let files = Files::open(dir).unwrap();
        let paths = ["1", "2", "3"].map(|name| dir.join("blobs").join(name));
        let kept = [1, 2, 3].map(|i| made(&paths[i - 1], u8::try_from(i).unwrap()));
        files.sync().unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!(links(dir), 3);
        fs::remove_file(&paths[1]).unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!(bytes(&kept[1]), [2], "not before a look that found it gone");
        files.sync().unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!([&kept[0], &kept[1], &kept[2]].map(bytes), [[1], [0], [3]]);
        assert_eq!(links(dir), 2);
        // Somebody else's name for it does not keep what it holds.
        fs::hard_link(&paths[2], dir.join("elsewhere")).unwrap();
        fs::remove_file(&paths[2]).unwrap();
        files.sync().unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!([&kept[0], &kept[2]].map(bytes), [[1], [0]]);
        assert!(!lost_pages(dir));
    }

    /// What damage takes out of `blobs/` is still there until the digest has told.
    #[test]
    fn an_opening_overwrites_nothing_before_what_is_there_is_found_whole() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (gone, there) = (dir.join("blobs/1"), dir.join("blobs/2"));
        let kept = [made(&gone, 1), made(&there, 2)];
        let mut log = OpenOptions::new().create(true).append(true).open(dir.join("db")).unwrap();
        io::Write::write_all(&mut log, b"log").unwrap();
        drop(Files::open(dir).unwrap());
        assert_eq!(links(dir), 2, "before anything is removed");
        fs::remove_file(&gone).unwrap();
        let files = Files::open(dir).unwrap();
        files.sync().unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!(kept.each_ref().map(bytes), [[1], [2]]);
        files.begin_wiping();
        files.wipe_dropped(nothing_else);
        assert_eq!(kept.each_ref().map(bytes), [[0], [2]]);
        assert_eq!(links(dir), 1);
    }

    /// A copy that is made file by file has other files in `links/`, under the same names.
    #[test]
    fn links_of_a_copied_directory_are_found_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let blob = dir.join("blobs/1");
        let kept = made(&blob, 1);
        drop(Files::open(dir).unwrap());
        let path = fs::read_dir(dir.join("links")).unwrap().next().unwrap().unwrap().path();
        fs::remove_file(&path).unwrap();
        let copy = made(&path, 1);
        fs::hard_link(&path, dir.join("links/77")).unwrap();
        fs::write(dir.join("links/no number"), "x").unwrap();
        let files = Files::open(dir).unwrap();
        files.begin_wiping();
        files.sync().unwrap();
        files.wipe_dropped(nothing_else);
        assert_eq!([&kept, &copy].map(bytes), [[1], [0]]);
        assert_eq!(links(dir), 2, "the page's own, and what is no link");
        let mut read = Vec::new();
        File::open(blob).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 100_000);
    }

    /// No file is overwritten that `blobs/` has, however it came to be taken for dropped.
    #[test]
    fn a_file_that_sled_has_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let blob = dir.join("blobs/1");
        let kept = made(&blob, 1);
        let mut links = Links::open(dir).unwrap();
        links.drop_missing(&HashSet::new());
        let dropped = links.next_dropped().unwrap();
        assert!(dropped.wipe().is_err());
        assert_eq!(bytes(&kept), [1]);
        fs::remove_file(blob).unwrap();
        fs::remove_file(dropped.path()).unwrap();
        fs::write(dropped.path(), "another").unwrap();
        assert!(dropped.wipe().is_err());
        assert_eq!(fs::read(dropped.path()).unwrap(), b"another");
        fs::remove_file(dropped.path()).unwrap();
        dropped.wipe().unwrap();
    }

    /// A refused link is noted for good, an error is not passed over.
    #[test]
    fn what_cannot_be_linked_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut links = Links::open(dir).unwrap();
        fs::create_dir_all(dir.join("blobs/folder")).unwrap();
        // The system refuses to link a directory as it refuses to link on some file systems.
        links.hold(1, &dir.join("blobs/folder")).unwrap();
        assert!(lost_pages(dir));
        assert!(links.hold(2, &dir.join("blobs/none")).is_err());
    }
}
