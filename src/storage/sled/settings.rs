//! The settings that sled 0.34.7 keeps in the file `conf` (`config.rs`): text ‖ its crc32,
//! little-endian.
//!
//! sled writes that file without a sync: a power cut may leave torn settings beside a log that holds
//! something, and what it cannot read of them it refuses. So we write them, durably and before there
//! is a log. Beside a log that holds something, settings that are damaged or missing are damage:
//! with another size of segments we would cut it off anywhere.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::disk::access;

/// Bytes of a segment of the log in `dir`: what its database was made with, and `fresh` where it
/// holds nothing, which then is durably noted. `None` if that file is damaged or missing. Comes
/// before anything that reads the log.
pub(super) fn segment_size(dir: &Path, fresh: usize) -> io::Result<Option<usize>> {
    let path = dir.join("conf");
    if let Some(size) = noted_size(dir)? {
        return Ok(Some(size));
    }
    if holds_something(&dir.join("db"))? {
        return Ok(None);
    }
    access::make_dir(dir)?;
    let new = dir.join("conf.new");
    let mut file = access::private_options().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(&settings(fresh))?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(dir)?.sync_all()?;
    Ok(Some(fresh))
}

/// Likewise, where nothing is to be made.
pub(super) fn noted_size(dir: &Path) -> io::Result<Option<usize>> {
    match fs::read(dir.join("conf")) {
        Ok(bytes) => Ok(noted(&bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn settings(segment_size: usize) -> Vec<u8> {
    let text = format!("segment_size: {segment_size}\nuse_compression: false\nversion: 0.34\n")
        .into_bytes();
    let crc = crc32fast::hash(&text).to_le_bytes();
    [&text[..], &crc].concat()
}

fn noted(bytes: &[u8]) -> Option<usize> {
    let (text, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(text).to_le_bytes() != *crc {
        return None;
    }
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    let size: usize = lines.find_map(|line| line.strip_prefix("segment_size: "))?.parse().ok()?;
    // The limits of sled's.
    (size.is_power_of_two() && (256..=1 << 24).contains(&size)).then_some(size)
}

fn holds_something(log: &Path) -> io::Result<bool> {
    /// What is longer holds something.
    const LONG: u64 = 1 << 20;

    match fs::metadata(log) {
        Ok(metadata) if metadata.len() > LONG => Ok(true),
        Ok(_) => Ok(fs::read(log)?.iter().any(|&byte| byte != 0)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_those_that_sled_writes() {
        for size in [512 << 10, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let (by_sled, by_us) = (dir.path().join("sled"), dir.path().join("us"));
            drop(sled::Config::new().path(&by_sled).segment_size(size).open().unwrap());
            assert_eq!(segment_size(&by_us, size).unwrap(), Some(size));
            let read = |dir: &Path| fs::read(dir.join("conf")).unwrap();
            assert_eq!(read(&by_us), read(&by_sled));
            assert_eq!(segment_size(&by_sled, 64 << 10).unwrap(), Some(size));
        }
    }

    #[test]
    fn sizes_that_no_log_has_are_damage() {
        for size in [0, 1, 100, 128, 500, 1 << 25, usize::MAX] {
            assert_eq!(noted(&settings(size)), None, "{size}");
        }
        assert_eq!(noted(&settings(256)), Some(256));
        assert_eq!(noted(&settings(1 << 24)), Some(1 << 24));
    }

    /// Found by 20,000 power cuts within the making of a database.
    #[test]
    fn settings_are_made_anew_only_where_nothing_is_stored() {
        const SIZE: usize = 64 << 10;

        let dir = tempfile::tempdir().unwrap();
        let (conf, log) = (dir.path().join("conf"), dir.path().join("db"));
        let whole = settings(SIZE);
        let mut flipped = whole.clone();
        flipped[3] ^= 1;
        for log_bytes in [None, Some(vec![0; 300]), Some([vec![0; 300], vec![1]].concat())] {
            let holds = log_bytes.as_ref().is_some_and(|bytes| bytes.contains(&1));
            if let Some(bytes) = log_bytes {
                fs::write(&log, bytes).unwrap();
            }
            for torn in [Some(&whole[..20]), Some(&flipped), Some(&[]), None] {
                match torn {
                    Some(bytes) => fs::write(&conf, bytes).unwrap(),
                    None => fs::remove_file(&conf).unwrap(),
                }
                let size = segment_size(dir.path(), SIZE).unwrap();
                assert_eq!(size, (!holds).then_some(SIZE), "{torn:?}");
                if holds {
                    assert_eq!(fs::read(&conf).ok().as_deref(), torn);
                } else {
                    assert_eq!(fs::read(&conf).unwrap(), whole);
                }
                fs::write(&conf, &whole).unwrap();
            }
        }
    }
}
