//! Which file system a directory lies on, and whether it writes in place.

use std::path::Path;

/// Where a file system puts the bytes that replace others of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Into the blocks of those that they replace.
    InPlace,
    /// Into other blocks; the old ones keep their content until they are used again.
    Elsewhere,
    /// That depends on what lies below, or is not known.
    Unknown,
}

/// The file system of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Medium {
    /// Its name, or its magic number where the name is not known.
    pub(crate) name: String,
    pub(crate) writes: Writes,
}

/// By the magic numbers of Linux (`statfs(2)`, and the `magic.h` and sources of its kernel).
const KNOWN: &[(u32, &str, Writes)] = &[
    (0xef53, "ext4", Writes::InPlace),
    (0x5846_5342, "xfs", Writes::InPlace),
    (0x3153_464a, "jfs", Writes::InPlace),
    (0x4d44, "vfat", Writes::InPlace),
    (0x2011_bab0, "exfat", Writes::InPlace),
    (0x7366_746e, "ntfs3", Writes::InPlace),
    (0x9123_683e, "btrfs", Writes::Elsewhere),
    (0x2fc1_2fc1, "zfs", Writes::Elsewhere),
    (0xca45_1a4e, "bcachefs", Writes::Elsewhere),
    (0xf2f5_2010, "f2fs", Writes::Elsewhere),
    (0x3434, "nilfs2", Writes::Elsewhere),
    (0x2405_1905, "ubifs", Writes::Elsewhere),
    (0x72b6, "jffs2", Writes::Elsewhere),
    (0x794c_7630, "overlayfs", Writes::Unknown),
    (0xf15f, "ecryptfs", Writes::Unknown),
    (0x0102_1994, "tmpfs", Writes::Unknown),
    (0x8584_58f6, "ramfs", Writes::Unknown),
    (0x6969, "nfs", Writes::Unknown),
    (0xff53_4d42, "cifs", Writes::Unknown),
    (0xfe53_4d42, "smb2", Writes::Unknown),
    (0x517b, "smb", Writes::Unknown),
    (0x6573_5546, "fuse", Writes::Unknown),
    (0x0102_1997, "9p", Writes::Unknown),
    (0x00c3_6400, "ceph", Writes::Unknown),
    (0x786f_4256, "vboxsf", Writes::Unknown),
];

impl Medium {
    /// The file system of `dir`. One that the system does not tell is unknown.
    pub(crate) fn of(dir: &Path) -> Self {
        magic(dir).map_or_else(
            || Self { name: "this file system".to_owned(), writes: Writes::Unknown },
            Self::by_magic,
        )
    }

    fn by_magic(magic: u32) -> Self {
        let known = KNOWN.iter().find(|(known, ..)| *known == magic);
        known.map_or_else(
            || Self { name: format!("file system 0x{magic:x}"), writes: Writes::Unknown },
            |&(_, name, writes)| Self { name: name.to_owned(), writes },
        )
    }
}

#[cfg(target_os = "linux")]
fn magic(dir: &Path) -> Option<u32> {
    // The kernel's numbers have 32 bits; some architectures give them as a negative word.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, trivial_numeric_casts)]
    rustix::fs::statfs(dir).ok().map(|disk| disk.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn magic(_: &Path) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_numbers_are_told_apart() {
        for (at, (magic, name, writes)) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..at].iter().all(|(other, ..)| other != magic), "{name}");
            assert_eq!(
                Medium::by_magic(*magic),
                Medium { name: (*name).to_owned(), writes: *writes }
            );
        }
        let unknown = Medium::by_magic(0xdead_beef);
        assert_eq!(
            (unknown.name.as_str(), unknown.writes),
            ("file system 0xdeadbeef", Writes::Unknown)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernels_own_file_systems_are_named_or_numbered() {
        assert_eq!(Medium::of(Path::new("/proc")).name, "file system 0x9fa0");
        assert_eq!(Medium::of(Path::new("/proc/none")).writes, Writes::Unknown);
    }
}
