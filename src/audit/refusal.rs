//! Why a key was refused, as the audit log keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ImportError};
use crate::id::{Fingerprint, KeyVersion, OrgId};
use crate::time::rfc3339;

/// Why a key that was offered was refused.
///
/// It tells nothing of other orgs: the entry stands in the log of the org to which the key was
/// offered. In JSON an object with `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeyRefusal {
    /// The org's policy does not let it bring a key.
    NotEntitled,
    /// The key is in use or was used before. The log does not say by whom.
    Reused,
    /// It is not the key that was suspended.
    NotTheSuspended {
        /// The suspended version.
        version: KeyVersion,
        /// Fingerprint of the suspended key.
        expected: Fingerprint,
    },
    /// It is not the key whose fingerprint was announced.
    NotTheAnnounced {
        /// The fingerprint that was announced. `None` in what the org sees of the log, if that key
        /// has another use in this store.
        announced: Option<Fingerprint>,
    },
    /// The state of the org's keys stands against it.
    Conflict {
        /// What stands against it.
        why: String,
    },
    /// It is no acceptable key material.
    NotRandom {
        /// What is wrong with it.
        why: String,
    },
    /// What came is no sealed key.
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// It was sealed under an import token of another org.
    OtherOrg,
    /// It was sealed under an import token of another store.
    OtherStore {
        /// The store that the sealed key names.
        made_by: OrgId,
    },
    /// Its import token expired before.
    TokenExpired {
        /// When, milliseconds since 1970-01-01 UTC.
        expired_unix_ms: u64,
    },
    /// Its import token was used before.
    TokenUsed {
        /// When, milliseconds since 1970-01-01 UTC.
        used_unix_ms: u64,
    },
    /// Its import token was withdrawn before, because a copy of the store has its private half.
    TokenWithdrawn {
        /// When, milliseconds since 1970-01-01 UTC.
        withdrawn_unix_ms: u64,
    },
    /// The store knows no such import token.
    TokenUnknown,
    /// It does not open under its import token.
    Altered,
}
crate::json::tagged!(KeyRefusal);

impl KeyRefusal {
    /// Returns why `error` refuses a key, or `None` for an error that refuses none.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        Some(match error {
            Error::NotEntitled { .. } => Self::NotEntitled,
            Error::KeyReused { .. } => Self::Reused,
            &Error::WrongKey { version, expected, .. } => {
                Self::NotTheSuspended { version, expected }
            }
            &Error::UnexpectedKey { expected, .. } => {
                Self::NotTheAnnounced { announced: Some(expected) }
            }
            Error::KeyConflict { why, .. } => Self::Conflict { why: (*why).to_owned() },
            Error::KeyMaterial(why) => Self::NotRandom { why: why.to_string() },
            Error::Import(why) => Self::of_import(why),
            _ => return None,
        })
    }

    pub(crate) fn of_import(why: &ImportError) -> Self {
        match why {
            ImportError::Malformed { why, .. } => Self::Malformed { why: (*why).to_owned() },
            ImportError::OtherOrg { .. } => Self::OtherOrg,
            &ImportError::OtherStore { made_by, .. } => Self::OtherStore { made_by },
            &ImportError::Expired { expired_unix_ms, .. } => Self::TokenExpired { expired_unix_ms },
            &ImportError::Used { used_unix_ms, .. } => Self::TokenUsed { used_unix_ms },
            &ImportError::Withdrawn { withdrawn_unix_ms, .. } => {
                Self::TokenWithdrawn { withdrawn_unix_ms }
            }
            ImportError::Unknown { .. } => Self::TokenUnknown,
            ImportError::Altered { .. } => Self::Altered,
            ImportError::Reused { .. } => Self::Reused,
            ImportError::NotRandom(why) => Self::NotRandom { why: why.to_string() },
        }
    }
}

/// As a part of a sentence, such as `it is in use or was used before`.
impl fmt::Display for KeyRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEntitled => f.write_str("the org may not bring its own key"),
            Self::Reused => f.write_str("it is in use or was used before"),
            Self::NotTheSuspended { version, expected } => {
                write!(f, "the suspended {version} has the fingerprint {expected}")
            }
            Self::NotTheAnnounced { announced: Some(announced) } => {
                write!(f, "the fingerprint {announced} was announced")
            }
            Self::NotTheAnnounced { announced: None } => f.write_str("another key was announced"),
            Self::Conflict { why } | Self::NotRandom { why } => f.write_str(why),
            Self::Malformed { why } => write!(f, "it is no sealed key: {why}"),
            Self::OtherOrg => f.write_str("it was sealed for another org"),
            Self::OtherStore { made_by } => write!(f, "it was sealed for the store {made_by}"),
            Self::TokenExpired { expired_unix_ms } => {
                write!(f, "its token expired at {}", rfc3339(*expired_unix_ms))
            }
            Self::TokenUsed { used_unix_ms } => {
                write!(f, "its token was used already, at {}", rfc3339(*used_unix_ms))
            }
            Self::TokenWithdrawn { withdrawn_unix_ms } => {
                write!(f, "its token was withdrawn at {}", rfc3339(*withdrawn_unix_ms))
            }
            Self::TokenUnknown => f.write_str("this store knows no such token"),
            Self::Altered => f.write_str("it was altered, or not sealed under its token"),
        }
    }
}
