//! What went wrong, as people, programs and shells are told.

use std::io;

use byokv::{BackupError, Error, ImportError};

pub(super) type Result<T = (), E = Failure> = std::result::Result<T, E>;

#[derive(Debug)]
pub(super) enum Failure {
    /// The library refused or failed.
    Store(Error),
    /// Likewise, where other advice is needed than elsewhere.
    Advised(Error, String),
    /// The arguments do not fit together.
    Usage(String),
    NotFound(String),
    KeyRefused(String),
    Damaged(String),
    /// A check found faults; they are printed already.
    Fault(String),
    /// Nothing is wrong, but something does not go on before somebody does something.
    Waits(String),
    Failed(String),
    /// Nobody reads on.
    BrokenPipe,
}

impl Failure {
    /// The exit code. Documented in `--help`.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Fault(_) | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 4,
            Self::KeyRefused(_) => 5,
            Self::Damaged(_) => 6,
            Self::Waits(_) => 7,
            Self::Store(error) | Self::Advised(error, _) => match error {
                Error::InvalidOrgName { .. }
                | Error::OrgLooksAlike { .. }
                | Error::NameLength { .. }
                | Error::NameDepth { .. }
                | Error::SuiteNotApproved { .. }
                | Error::SuiteNotBuilt { .. }
                | Error::ValueTooLarge { .. }
                | Error::InvalidOption { .. }
                | Error::Backup(BackupError::OrgNotChosen { .. }) => 2,
                Error::StoreLocked { .. } => 3,
                Error::OrgUnknown { .. }
                | Error::OtherStore { .. }
                | Error::Backup(
                    BackupError::OrgMissing { .. }
                    | BackupError::NoSuchRecord { .. }
                    | BackupError::NothingForeign { .. },
                ) => 4,
                Error::NotEntitled { .. } | Error::Backup(BackupError::OtherKey { .. }) => 5,
                Error::FipsModuleMissing => 1,
                error if error.is_invalid_input() || error.is_key_unavailable() => 5,
                error if error.is_damage() || error.is_rollback() => 6,
                _ => 1,
            },
        }
    }

    /// A stable word for programs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::NotFound(_) => "not_found",
            Self::KeyRefused(_) => "key_refused",
            Self::Damaged(_) => "damaged",
            Self::Fault(_) => "fault",
            Self::Waits(_) => "waiting",
            Self::Failed(_) => "failed",
            Self::BrokenPipe => "broken_pipe",
            Self::Store(error) | Self::Advised(error, _) => match error {
                Error::OrgUnknown { .. } => "org_unknown",
                Error::OrgExists { .. } => "org_exists",
                Error::InvalidOrgName { .. } => "invalid_org_name",
                Error::OrgLooksAlike { .. } => "org_looks_alike",
                Error::NotEntitled { .. } => "not_entitled",
                Error::KeyMaterial(_) => "key_material",
                Error::KeyReused { .. } => "key_reused",
                Error::KeyRetired { .. } => "key_retired",
                Error::KeySuspended { .. } => "key_suspended",
                Error::WrongKey { .. } => "wrong_key",
                Error::UnexpectedKey { .. } => "unexpected_key",
                Error::Import(why) => import(why),
                Error::Backup(why) => backup(why),
                Error::KeyConflict { .. } => "key_conflict",
                Error::RecordDamaged { .. } => "record_damaged",
                Error::RecordNameless { .. } => "record_nameless",
                Error::RotationBlocked { .. } => "rotation_blocked",
                Error::RootKeyUnavailable { .. } => "root_key_unavailable",
                Error::KeyFile { .. } => "key_file",
                Error::RootKeyWrong { .. } => "root_key_wrong",
                Error::FileDamaged { .. } => "file_damaged",
                Error::OutsideStore { .. } => "outside_store",
                Error::StoreLocked { .. } => "store_locked",
                Error::RolledBack { .. } => "rolled_back",
                Error::NotPrivate { .. } => "not_private",
                Error::OtherStore { .. } => "other_store",
                Error::BeforeMinimum { .. } => "before_minimum",
                Error::DiskFull { .. } => "disk_full",
                Error::Io { .. } => "io",
                Error::StorageDamaged { .. } => "storage_damaged",
                Error::NameLength { .. } => "name_length",
                Error::NameDepth { .. } => "name_depth",
                Error::ValueTooLarge { .. } => "value_too_large",
                Error::InvalidOption { .. } => "invalid_option",
                Error::CertificateInvalid { .. } => "certificate_invalid",
                Error::AuditBroken { .. } => "audit_broken",
                Error::RandomUnavailable { .. } => "random_unavailable",
                Error::ClockBefore1970 => "clock_before_1970",
                Error::SuiteNotApproved { .. } => "suite_not_approved",
                Error::SuiteNotBuilt { .. } => "suite_not_built",
                Error::FipsModuleMissing => "fips_module_missing",
                Error::MemoryNotLocked { .. } => "memory_not_locked",
                Error::Bug { .. } => "bug",
                Error::OrgErased { .. } => "org_erased",
                Error::RetirementAwaited { .. } => "retirement_awaited",
                Error::SyncFailed { .. } => "sync_failed",
                Error::WriteFailed { .. } => "write_failed",
                Error::ResidueBusy => "residue_busy",
                Error::Closed => "closed",
                _ => "other",
            },
        }
    }

    pub(super) fn message(&self) -> String {
        match self {
            Self::Store(error) | Self::Advised(error, _) => error.to_string(),
            Self::Usage(message)
            | Self::NotFound(message)
            | Self::KeyRefused(message)
            | Self::Damaged(message)
            | Self::Fault(message)
            | Self::Waits(message)
            | Self::Failed(message) => message.clone(),
            Self::BrokenPipe => "nobody reads the output".to_owned(),
        }
    }

    /// What the library advises, in words of this tool.
    pub(super) fn hint(&self) -> Option<String> {
        let error = match self {
            Self::Store(error) => error,
            Self::Advised(_, advice) => return Some(advice.clone()),
            _ => return None,
        };
        Some(match error {
            Error::NotEntitled { org } => format!("byokv org policy {} --byok", quoted(org)),
            Error::KeySuspended { org, .. } => {
                format!("byokv key resume {} --file KEY", quoted(org))
            }
            Error::RetirementAwaited { org, .. } => format!("byokv key retire {}", quoted(org)),
            Error::OrgUnknown { .. } => "byokv org list".to_owned(),
            Error::Import(ImportError::OtherOrg { .. }) => {
                "`byokv audit` says for which org the token was made".to_owned()
            }
            Error::Import(
                ImportError::Expired { .. }
                | ImportError::Used { .. }
                | ImportError::Withdrawn { .. },
            ) => "byokv key import-token ORG".to_owned(),
            Error::RecordNameless { org, .. } => {
                format!("byokv org remove-nameless {}", quoted(org))
            }
            Error::RotationBlocked { org, .. } => format!(
                "`byokv verify --deep {0}` names every such record; the next `byokv rotation wait \
                 {0}` tries again",
                quoted(org)
            ),
            Error::Backup(BackupError::ForeignFull { .. } | BackupError::NothingForeign { .. }) => {
                "byokv key foreign list".to_owned()
            }
            Error::RolledBack { .. } => {
                "keep a copy of the directory, then put back the newest copy of all its parts \
                 together; `byokv verify ORG --accept-loss` accepts the loss in one org, and only a \
                 program that of a store that does not open"
                    .to_owned()
            }
            Error::BeforeMinimum { .. } => {
                "put back the newest copy of the whole directory; to accept the loss, leave \
                 --minimum-position and BYOKV_MINIMUM_POSITION out"
                    .to_owned()
            }
            Error::NotPrivate { .. } => {
                "see who may have been there; `byokv doctor` lists every mode, `byokv verify \
                 --deep` looks at every record"
                    .to_owned()
            }
            Error::StoreLocked { .. } => {
                "wait for that process, or stop it; `byokv doctor` works meanwhile".to_owned()
            }
            _ => return None,
        })
    }
}

fn import(why: &ImportError) -> &'static str {
    match why {
        ImportError::Malformed { .. } => "import_malformed",
        ImportError::OtherOrg { .. } => "import_other_org",
        ImportError::OtherStore { .. } => "import_other_store",
        ImportError::Expired { .. } => "import_expired",
        ImportError::Used { .. } => "import_used",
        ImportError::Withdrawn { .. } => "import_withdrawn",
        ImportError::Unknown { .. } => "import_unknown",
        ImportError::Altered { .. } => "import_altered",
        ImportError::Reused { .. } => "import_reused",
        ImportError::NotRandom(_) => "import_not_random",
        _ => "import_refused",
    }
}

fn backup(why: &BackupError) -> &'static str {
    match why {
        BackupError::NoBackup => "backup_unknown_format",
        BackupError::OtherKey { .. } => "backup_other_key",
        BackupError::CutShort { .. } => "backup_cut_short",
        BackupError::Altered { .. } => "backup_altered",
        BackupError::OutOfPlace { .. } => "backup_out_of_place",
        BackupError::OtherBackup { .. } => "backup_spliced",
        BackupError::GoesOn => "backup_goes_on",
        BackupError::Malformed { .. } => "backup_malformed",
        BackupError::TooMany { .. } => "backup_too_many",
        BackupError::ForeignFull { .. } => "foreign_keys_full",
        BackupError::NothingForeign { .. } => "foreign_keys_none",
        BackupError::Changed => "backup_changed",
        BackupError::OrgMissing { .. } => "backup_org_missing",
        BackupError::NoSuchRecord { .. } => "backup_no_such_record",
        BackupError::RecordExists { .. } => "record_exists",
        BackupError::OrgRefuses { .. } => "backup_org_refuses",
        BackupError::PolicyChanged { .. } => "backup_policy_changed",
        BackupError::OrgNotChosen { .. } => "backup_org_not_chosen",
        BackupError::Outrun => "backup_outrun",
        _ => "backup_refused",
    }
}

/// As a shell takes it.
pub(super) fn quoted(org: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if org.chars().all(plain) {
        org.to_owned()
    } else {
        format!("'{}'", org.replace('\'', r"'\''"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// For our own output; files are named in the message instead.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Failed(format!("writing the output: {error}")),
        }
    }
}
