//! Overwriting files with zeros.
//!
//! It reaches the blocks of a file on file systems that write in place. It does not on
//! copy-on-write and log-structured ones (btrfs, ZFS, F2FS), nor does it reach a flash drive's spare
//! blocks, journals or snapshots: [`Medium`](super::Medium) tells the first apart.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Overwrites a file with zeros, durably. Never what a symbolic link points to.
pub(crate) fn overwrite(path: &Path) -> Result<()> {
    let overwritten = to_overwrite(path).and_then(|mut file| overwrite_open(&mut file));
    overwritten.map_err(|e| Error::io(format!("overwriting {}", path.display()), e))
}

/// Opens a file for [`overwrite_open`], through no symbolic link.
pub(crate) fn to_overwrite(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NOFOLLOW.bits().cast_signed(),
    );
    options.open(path)
}

/// Overwrites all of an open file with zeros, durably, whatever names it still has.
pub(crate) fn overwrite_open(file: &mut File) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

    let len = file.metadata()?.len();
    file.rewind()?;
    let mut left = len;
    while left > 0 {
        let piece = left.min(ZEROS.len() as u64);
        file.write_all(&ZEROS[..usize::try_from(piece).unwrap_or(ZEROS.len())])?;
        left -= piece;
    }
    file.sync_data()
}
