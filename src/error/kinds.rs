//! Questions that group the errors for callers.

use super::Error;

impl Error {
    /// The caller gave something that will never be accepted as it is.
    #[must_use]
    pub fn is_invalid_input(&self) -> bool {
        matches!(
            self,
            Self::InvalidOrgName { .. }
                | Self::OrgLooksAlike { .. }
                | Self::KeyMaterial(_)
                | Self::KeyReused { .. }
                | Self::WrongKey { .. }
                | Self::UnexpectedKey { .. }
                | Self::Import(_)
                | Self::NameLength { .. }
                | Self::NameDepth { .. }
                | Self::ValueTooLarge { .. }
                | Self::InvalidOption { .. }
                | Self::SuiteNotApproved { .. }
                | Self::SuiteNotBuilt { .. }
                | Self::FipsModuleMissing
        )
    }

    /// A key was offered and refused for what it is or for whom it is.
    #[must_use]
    pub fn is_refused_key(&self) -> bool {
        matches!(
            self,
            Self::KeyReused { .. }
                | Self::WrongKey { .. }
                | Self::UnexpectedKey { .. }
                | Self::Import(_)
                | Self::NotEntitled { .. }
                | Self::KeyConflict { .. }
        )
    }

    /// Bytes on disk are damaged, missing or forged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::RecordDamaged { .. }
                | Self::RecordNameless { .. }
                | Self::RotationBlocked { .. }
                | Self::FileDamaged { .. }
                | Self::StorageDamaged { .. }
                | Self::CertificateInvalid { .. }
                | Self::AuditBroken { .. }
        ) || matches!(self, Self::Backup(why) if why.is_damage())
    }

    /// A key exists but may not be used now.
    #[must_use]
    pub fn is_key_unavailable(&self) -> bool {
        matches!(
            self,
            Self::KeyRetired { .. }
                | Self::KeySuspended { .. }
                | Self::RootKeyUnavailable { .. }
                | Self::KeyFile { .. }
                | Self::RootKeyWrong { .. }
        )
    }

    /// The store, or one of its files, is older than the rest proves it must be.
    #[must_use]
    pub fn is_rollback(&self) -> bool {
        matches!(self, Self::RolledBack { .. } | Self::BeforeMinimum { .. })
    }

    /// The machine failed. The same call may succeed later; after [`SyncFailed`](Self::SyncFailed) and
    /// [`WriteFailed`](Self::WriteFailed) only once the store was opened again.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. }
                | Self::SyncFailed { .. }
                | Self::WriteFailed { .. }
                | Self::Io { .. }
                | Self::StoreLocked { .. }
                | Self::RandomUnavailable { .. }
                | Self::ClockBefore1970
                | Self::MemoryNotLocked { .. }
        )
    }
}
