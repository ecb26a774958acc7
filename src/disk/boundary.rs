//! The border of a store's directory: what lies below it lies on the same mount, and is a plain file
//! or a directory.
//!
//! Whoever follows a symbolic link, or enters a mount point, leaves the directory: what is written
//! there stays there when the directory is searched, overwritten or replaced. So nothing is
//! followed or passed over: it is an error that names the path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a directory and everything below it have in common. The directory itself may be reached by a
/// link, and may be a mount point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boundary {
    device: u64,
    /// `None` where the system does not number its mounts.
    mount: Option<u64>,
}

/// A file or directory below the boundary.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
    /// Device and number of the inode: the same for all names of one file.
    pub(crate) inode: (u64, u64),
    /// How many names it has (hard links).
    pub(crate) names: u64,
}

/// What the system tells of a path.
struct Found {
    kind: Kind,
    device: u64,
    mount: Option<u64>,
    inode: u64,
    names: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Dir,
    Link,
    Other,
}

impl Boundary {
    /// The boundary of the directory that `dir` leads to.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let found =
            find(dir, true).map_err(|e| Error::io(format!("looking at {}", dir.display()), e))?;
        Ok(Self { device: found.device, mount: found.mount })
    }

    /// Looks at one path; `None` if nothing is there.
    ///
    /// # Errors
    /// [`Error::OutsideStore`] if it is no plain file or directory on this mount.
    pub(crate) fn look(&self, path: &Path) -> Result<Option<Entry>> {
        let found = match find(path, false) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
        };
        let outside = |what| Error::OutsideStore { path: path.to_owned(), what };
        let is_dir = match found.kind {
            Kind::Dir => true,
            Kind::File => false,
            Kind::Link => return Err(outside("a symbolic link")),
            Kind::Other => return Err(outside("neither a file nor a directory")),
        };
        if let (Some(own), Some(mount)) = (self.mount, found.mount)
            && own != mount
        {
            return Err(outside("a mount point"));
        }
        // Where mounts are numbered, a file may tell another device than its directory (overlayfs).
        if found.device != self.device && (is_dir || found.mount.is_none()) {
            return Err(outside("on another device than the data directory"));
        }
        let inode = (found.device, found.inode);
        Ok(Some(Entry { path: path.to_owned(), is_dir, inode, names: found.names }))
    }

    /// Gives each file below `dir` to `each`, and each [`Error::OutsideStore`] of what is no file
    /// or directory of this mount, until it returns an error. What is removed meanwhile is left out.
    pub(crate) fn walk(
        &self,
        dir: &Path,
        each: &mut dyn FnMut(Result<Entry>) -> Result<()>,
    ) -> Result<()> {
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            let during = |e| Error::io(format!("listing {}", folder.display()), e);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(during(e)),
            };
            for entry in entries {
                match self.look(&entry.map_err(during)?.path()) {
                    Ok(Some(entry)) if entry.is_dir => folders.push(entry.path),
                    Ok(Some(entry)) => each(Ok(entry))?,
                    Ok(None) => {}
                    Err(error @ Error::OutsideStore { .. }) => each(Err(error))?,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// All files below `dir`.
    pub(crate) fn files_below(&self, dir: &Path) -> Result<Vec<Entry>> {
        let mut files = Vec::new();
        self.walk(dir, &mut |entry| {
            files.push(entry?);
            Ok(())
        })?;
        Ok(files)
    }
}

/// By one system call that also numbers mounts, where there is one.
#[cfg(target_os = "linux")]
fn find(path: &Path, follows: bool) -> io::Result<Found> {
    use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, makedev, statx};
    use rustix::io::Errno;

    let mut flags = AtFlags::NO_AUTOMOUNT;
    flags.set(AtFlags::SYMLINK_NOFOLLOW, !follows);
    let found = match statx(CWD, path, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID) {
        Ok(found) => found,
        // Kernels before 4.11, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => return find_plainly(path, follows),
        Err(e) => return Err(e.into()),
    };
    let kind = match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    };
    let knows_mounts = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    Ok(Found {
        kind,
        device: makedev(found.stx_dev_major, found.stx_dev_minor),
        mount: knows_mounts.then_some(found.stx_mnt_id),
        inode: found.stx_ino,
        names: found.stx_nlink.into(),
    })
}

#[cfg(not(target_os = "linux"))]
fn find(path: &Path, follows: bool) -> io::Result<Found> {
    find_plainly(path, follows)
}

fn find_plainly(path: &Path, follows: bool) -> io::Result<Found> {
    use std::os::unix::fs::MetadataExt;

    let found = if follows { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    let kind = match found.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Dir,
        kind if kind.is_symlink() => Kind::Link,
        _ => Kind::Other,
    };
    let (device, inode, names) = (found.dev(), found.ino(), found.nlink());
    Ok(Found { kind, device, mount: None, inode, names })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn outside(found: Result<Option<Entry>>) -> &'static str {
        match found {
            Err(Error::OutsideStore { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn links_and_special_files_are_outside_and_the_directory_may_be_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let boundary = Boundary::of(&link).unwrap();
        fs::create_dir(real.join("below")).unwrap();
        fs::write(real.join("below/file"), "x").unwrap();
        assert_eq!(boundary.files_below(&link).unwrap().len(), 1);
        assert!(boundary.look(&link.join("none")).unwrap().is_none());
        for (name, target) in [("to_file", "below/file"), ("to_dir", "below"), ("dangling", "none")]
        {
            symlink(target, real.join(name)).unwrap();
            assert_eq!(outside(boundary.look(&link.join(name))), "a symbolic link");
            assert!(matches!(boundary.files_below(&link), Err(Error::OutsideStore { .. })));
            fs::remove_file(real.join(name)).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(real.join("below/socket")).unwrap());
        let mut met = Vec::new();
        boundary
            .walk(&link, &mut |entry| {
                met.push(entry.is_ok());
                Ok(())
            })
            .unwrap();
        met.sort_unstable();
        assert_eq!(met, [false, true], "the rest is walked");
    }

    #[test]
    fn all_names_of_a_file_have_one_inode() {
        let dir = tempfile::tempdir().unwrap();
        let boundary = Boundary::of(dir.path()).unwrap();
        fs::write(dir.path().join("a"), "x").unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let files = boundary.files_below(dir.path()).unwrap();
        assert_eq!(files.iter().map(|file| file.names).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(files[0].inode, files[1].inode);
    }

    /// The system's own mounts do, wherever a test runs.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_mount_point_is_outside() {
        let boundary = Boundary::of(Path::new("/")).unwrap();
        assert_eq!(outside(boundary.look(Path::new("/proc"))), "a mount point");
        let without = Boundary { mount: None, ..boundary };
        assert!(outside(without.look(Path::new("/proc"))).contains("another device"));
        assert!(Boundary::of(Path::new("/proc")).unwrap().look(Path::new("/proc/version")).is_ok());
    }
}
