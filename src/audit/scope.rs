//! What a certificate of erasure does not reach.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json;
use crate::text::escape;

/// Something that the claim of a certificate of erasure does not reach: ciphertext may still lie
/// there. Each certificate lists its own, authenticated with all else that it says.
///
/// In JSON an object whose first field is `kind`, followed by the fields of the variant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErasureLimit {
    /// Files of large pages that sled gave up while it wrote them, as where two writes met in one
    /// page: it removes such a file at once, without overwriting it.
    AbortedPages,
    /// Blocks at the end of sled's log that the file system took back when sled shortened the file.
    ShortenedLog,
    /// Files of large pages that could not be kept until they were overwritten: the file system
    /// refused a hard link, or had no space for the overwriting.
    PagesNotKept,
    /// The file system writes what replaces other bytes elsewhere; the old blocks keep them.
    NotInPlace {
        /// Its name, such as `btrfs`.
        file_system: String,
    },
    /// It is not known whether the file system writes in place, as of one that lies on another
    /// machine or above another file system.
    UnknownFileSystem {
        /// Its name, or its number.
        file_system: String,
    },
    /// Old ciphertext in the database's files, of which this certificate says nothing: erasing
    /// residue removes it.
    Residue,
    /// Whatever lies below or beside the file system: spare blocks of flash drives, journals that
    /// take contents, swap, snapshots, copies (also those that share blocks) and backups.
    BesideFiles,
}
json::tagged!(ErasureLimit);

/// One sentence.
impl fmt::Display for ErasureLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbortedPages => f.write_str(
                "Files of large pages that sled gave up while it wrote them, and removed at once.",
            ),
            Self::ShortenedLog => {
                f.write_str("Blocks that the file system took back when sled shortened its log.")
            }
            Self::PagesNotKept => f.write_str(
                "Files of large pages that sled removed where no hard link to them could be kept.",
            ),
            Self::NotInPlace { file_system } => write!(
                f,
                "Old blocks of the files: {} does not write in place, so overwriting misses them.",
                escape(file_system.as_bytes())
            ),
            Self::UnknownFileSystem { file_system } => write!(
                f,
                "Old blocks of the files, if {} does not write in place, which is not known.",
                escape(file_system.as_bytes())
            ),
            Self::Residue => {
                f.write_str("Old ciphertext in the database's files, until residue is erased.")
            }
            Self::BesideFiles => f.write_str(
                "Spare blocks of flash drives, journals, swap, snapshots, copies and backups.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_word_for_programs_and_a_sentence_for_people() {
        let named = |of: fn(String) -> ErasureLimit| of("btrfs".to_owned());
        let all = [
            (ErasureLimit::AbortedPages, "{\"kind\":\"aborted_pages\"}"),
            (ErasureLimit::ShortenedLog, "{\"kind\":\"shortened_log\"}"),
            (ErasureLimit::PagesNotKept, "{\"kind\":\"pages_not_kept\"}"),
            (
                named(|file_system| ErasureLimit::NotInPlace { file_system }),
                "{\"kind\":\"not_in_place\",\"file_system\":\"btrfs\"}",
            ),
            (
                named(|file_system| ErasureLimit::UnknownFileSystem { file_system }),
                "{\"kind\":\"unknown_file_system\",\"file_system\":\"btrfs\"}",
            ),
            (ErasureLimit::Residue, "{\"kind\":\"residue\"}"),
            (ErasureLimit::BesideFiles, "{\"kind\":\"beside_files\"}"),
        ];
        for (limit, json) in all {
            assert_eq!(serde_json::to_string(&limit).unwrap(), json);
            assert_eq!(serde_json::from_str::<ErasureLimit>(json).unwrap(), limit);
            let text = limit.to_string();
            assert!(text.ends_with('.') && !text.contains('\n'), "{text}");
            assert_eq!(json.contains("btrfs"), text.contains("btrfs"), "{text}");
        }
    }
}
