//! What can be said of a data directory without a root key: what keeps it from being opened, and what
//! no erasure in it would reach.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::certify::limits;
use super::files;
use crate::audit::ErasureLimit;
use crate::disk::Medium;
use crate::error::{Error, Result};

/// What [`Store::inspect`](crate::Store::inspect) finds in a data directory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// Each link, mount point or special file in the place of one of the store's files, as an
    /// [`Error::OutsideStore`]. With one of them the store does not open.
    pub outside: Vec<Error>,
    /// Files of the store that have a name elsewhere too (a hard link, as `cp -l` makes them). That is
    /// no copy: what the store writes, overwrites or erases there shows under both names.
    pub linked: Vec<PathBuf>,
    /// The file system, such as `ext4`.
    pub file_system: String,
    /// What no erasure in this directory reaches, whatever it erases.
    pub limits: Vec<ErasureLimit>,
}

impl Inspection {
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let mut outside = Vec::new();
        let mut met: HashMap<(u64, u64), (u64, PathBuf, u64)> = HashMap::new();
        files::each_own(dir, &mut |entry| {
            match entry {
                Ok(entry) => {
                    let seen = (0, entry.path, entry.names);
                    met.entry(entry.inode).or_insert(seen).0 += 1;
                }
                Err(error) => outside.push(error),
            }
            Ok(())
        })?;
        let linked = met.into_values().filter(|(seen, _, names)| names > seen);
        let mut linked: Vec<_> = linked.map(|(_, path, _)| path).collect();
        linked.sort_unstable();
        Ok(Self { outside, linked, file_system: Medium::of(dir).name, limits: limits(dir) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_are_named_each_and_names_within_the_store_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("db/blobs")).unwrap();
        fs::create_dir(data.join("db/links")).unwrap();
        fs::write(data.join("db/blobs/7"), "page").unwrap();
        fs::hard_link(data.join("db/blobs/7"), data.join("db/links/1")).unwrap();
        fs::write(data.join("keyring"), "keys").unwrap();
        fs::hard_link(data.join("keyring"), dir.path().join("copy")).unwrap();
        for name in ["mark", "db/conf"] {
            std::os::unix::fs::symlink("elsewhere", data.join(name)).unwrap();
        }
        let found = Inspection::of(&data).unwrap();
        assert_eq!(found.linked, [data.join("keyring")]);
        let mut outside: Vec<_> = found.outside.iter().map(ToString::to_string).collect();
        outside.sort_unstable();
        assert_eq!(outside.len(), 2);
        assert!(
            outside[0].starts_with(&format!("{} is a symbolic", data.join("db/conf").display()))
        );
        assert!(outside[1].starts_with(&format!("{} is a symbolic", data.join("mark").display())));
        assert_eq!(found.limits.last(), Some(&ErasureLimit::BesideFiles));
    }
}
