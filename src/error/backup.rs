//! Why a backup or a restore was refused.

use crate::id::{BackupId, Fingerprint};
use crate::text::{clean, escape};

/// What is wrong with a backup. Before a restore writes anything, the whole of it is read and
/// checked: unless it says otherwise, nothing was restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// It does not begin as one does.
    #[error("this is no backup of a format that this version knows; nothing was restored")]
    NoBackup,
    /// It was sealed under another key.
    #[error(
        "wrong backup key: this backup was sealed under {expected}, the key given is {given}; \
         nothing was restored; give the key with the fingerprint {expected}"
    )]
    OtherKey {
        /// Fingerprint of the key that it names.
        expected: Fingerprint,
        /// Fingerprint of the key given.
        given: Fingerprint,
    },
    /// Its end is missing.
    #[error(
        "the backup is cut short after {chunks} whole chunks; nothing was restored; copy the file \
         again, or take another backup"
    )]
    CutShort {
        /// Chunks of 64 KiB that are whole.
        chunks: u32,
    },
    /// A tag does not fit.
    #[error(
        "the backup was altered or damaged: chunk {chunk} does not open; nothing was restored; \
         copy the file again, or take another backup"
    )]
    Altered {
        /// Number of the first such chunk, from 0.
        chunk: u32,
    },
    /// A chunk stands where another belongs.
    #[error(
        "the backup was altered: chunk {found} stands where chunk {chunk} belongs; nothing was \
         restored; take another backup"
    )]
    OutOfPlace {
        /// The chunk that belongs there.
        chunk: u32,
        /// The number of the one that does stand there.
        found: u32,
    },
    /// A chunk is of another backup.
    #[error(
        "the backup was altered: chunk {chunk} is of another backup, or damaged; nothing was \
         restored; take another backup"
    )]
    OtherBackup {
        /// Number of the first such chunk, from 0.
        chunk: u32,
    },
    /// There are bytes behind its end.
    #[error("the backup was altered: it goes on behind its end; nothing was restored")]
    GoesOn,
    /// It is authentic and cannot be understood.
    #[error(
        "the backup is authentic but cannot be read: {why}; nothing was restored; it was made by \
         another version of this program"
    )]
    Malformed {
        /// What does not fit.
        why: &'static str,
    },
    /// Its list of contents has more of something than any store.
    #[error(
        "the backup is authentic, but its list of contents has {found} {what}, and at most {limit} are \
         taken; nothing was restored, and no such backup is made: back up some orgs at a time"
    )]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are taken.
        limit: usize,
    },
    /// The keyring has no room for what the backup says of keys of other stores.
    #[error(
        "this store keeps {kept} fingerprints of other stores' keys already, which came with \
         backups that were restored before, and {limit} at most; nothing was restored; drop what \
         came with one of those backups (`KeyAdmin::drop_foreign_keys`)"
    )]
    ForeignFull {
        /// How many are kept.
        kept: usize,
        /// How many may be.
        limit: usize,
    },
    /// Nothing is kept of what this backup says of other stores' keys.
    #[error(
        "no fingerprints of other stores' keys came with the backup {backup}; nothing was changed; \
         look which did with `KeyAdmin::foreign_keys`"
    )]
    NothingForeign {
        /// The backup.
        backup: BackupId,
    },
    /// Between the check and the restore it became another.
    #[error(
        "the backup changed while it was restored; what had been restored of it is erased again; \
         see who writes to it, then restore it again"
    )]
    Changed,
    /// The backup does not hold the org.
    #[error(
        "the backup holds no org named \"{org}\"; nothing was restored; look what it holds",
        org = escape(.org.as_bytes())
    )]
    OrgMissing {
        /// The name asked for.
        org: String,
    },
    /// The backup holds none of the records that were asked for.
    #[error(
        "the backup holds no such record of the org \"{}\"; nothing was restored; look for another \
         name, or in another backup", escape(org.as_bytes())
    )]
    NoSuchRecord {
        /// The org.
        org: String,
    },
    /// A record that was to be restored is there already.
    #[error(
        "the record \"{name}\" is there already; it was left as it is, and so was every record that is \
         not restored yet; restore it into another org, or overwrite what is there",
        name = clean(.name)
    )]
    RecordExists {
        /// Its name, escaped and cut to 256 characters.
        name: String,
    },
    /// A key was given for an org that is not to be restored.
    #[error(
        "a key or another name was given for the org \"{org}\", which is not among those to be restored; nothing was \
         restored; choose that org too, or give no key for it",
        org = escape(.org.as_bytes())
    )]
    OrgNotChosen {
        /// The org.
        org: String,
    },
    /// The policy of an org that was asked for by name does not let backups hold it.
    #[error(
        "the policy of the org \"{}\" refuses backups; none was begun; change the policy, or back up \
         other orgs", escape(org.as_bytes())
    )]
    OrgRefuses {
        /// The org.
        org: String,
    },
    /// The policy of an org was changed while a backup was made.
    #[error(
        "the policy of the org \"{}\" about backups was changed while one was made; what was written \
         of it cannot be restored, throw it away; make another", escape(org.as_bytes())
    )]
    PolicyChanged {
        /// The org.
        org: String,
    },
    /// Records change faster than the backup can be written.
    #[error(
        "records change faster than the backup can be written; what was written of it cannot be \
         restored, throw it away; write it to something faster, or at a quieter time"
    )]
    Outrun,
    /// More than the format holds: 256 TiB.
    #[error("the backup would be larger than 256 TiB; throw away what was written of it")]
    TooLarge,
}

impl BackupError {
    /// The file is not what was written.
    pub(super) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NoBackup
                | Self::CutShort { .. }
                | Self::Altered { .. }
                | Self::OutOfPlace { .. }
                | Self::OtherBackup { .. }
                | Self::GoesOn
                | Self::Malformed { .. }
                | Self::TooMany { .. }
                | Self::Changed
        )
    }
}
