//! Why a sealed import was refused.

use super::KeyMaterialError;
use crate::id::{Fingerprint, OrgId, TokenId};
use crate::text::escape;
use crate::time::rfc3339;

/// Why an import token or a sealed key was refused. Unless it says otherwise, the token can
/// still be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The text was mistyped, cut, or is something else.
    #[error("this is no {what}: {why}; nothing was changed; copy the whole line again")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token was made for another org.
    #[error(
        "this key was sealed for another org, not for \"{given}\"; nothing was changed; name the \
         org that the token was made for, or make a token for \"{given}\"",
        given = escape(.given.as_bytes())
    )]
    OtherOrg {
        /// The org that was to get the key.
        given: String,
    },
    /// The token was made by another store.
    #[error(
        "this key was sealed for the store {made_by}, this is {store}; nothing was changed; bring \
         it to that store, or make a token here"
    )]
    OtherStore {
        /// The store that the sealed key names.
        made_by: OrgId,
        /// This store.
        store: OrgId,
    },
    /// The token expired before it was used.
    #[error(
        "the import token {token} expired at {}; nothing was changed; make a new token and have \
         the key sealed again", rfc3339(*.expired_unix_ms)
    )]
    Expired {
        /// The token.
        token: TokenId,
        /// When it expired, milliseconds since 1970-01-01 UTC.
        expired_unix_ms: u64,
    },
    /// The token was used before.
    #[error(
        "the import token {token} was used already, at {}; nothing was changed; make a new token \
         and have a new key sealed", rfc3339(*.used_unix_ms)
    )]
    Used {
        /// The token.
        token: TokenId,
        /// When it was used, milliseconds since 1970-01-01 UTC.
        used_unix_ms: u64,
    },
    /// The token was ended unused, because a root key had leaked: a copy of the store may hold what
    /// opens the key that was sealed.
    #[error(
        "the import token {token} was withdrawn at {}, when the store was given another root key \
         because the one before had leaked: whoever has a copy of the store could read the key that \
         was sealed under it; nothing was changed; make a new token and have a new key sealed",
        rfc3339(*.withdrawn_unix_ms)
    )]
    Withdrawn {
        /// The token.
        token: TokenId,
        /// When it was withdrawn, milliseconds since 1970-01-01 UTC.
        withdrawn_unix_ms: u64,
    },
    /// This store knows no such token.
    #[error(
        "this store knows no import token {token}: it was altered on its way, or ended so long ago \
         that it is forgotten; nothing was changed; make a new token, and compare its id when the \
         key is sealed"
    )]
    Unknown {
        /// The token.
        token: TokenId,
    },
    /// The sealed key does not open under its token.
    #[error(
        "the sealed key was altered after it was sealed under the token {token}, or was not sealed \
         under it; nothing was changed; have it sealed and sent again, the token can still be used"
    )]
    Altered {
        /// The token.
        token: TokenId,
    },
    /// The sealed key opened, and is or was in use. The token is used up.
    #[error(
        "the sealed key (fingerprint {fingerprint}) is already in use or was used before; no key \
         was changed, but the token is used up; make a new token, and have new random bytes sealed"
    )]
    Reused {
        /// Fingerprint of the refused material.
        fingerprint: Fingerprint,
    },
    /// The sealed key opened, and is no acceptable key. The token is used up.
    #[error(
        "the sealed key is not acceptable: {0}; no key was changed, but the token is used up; make \
         a new token, and have new random bytes sealed"
    )]
    NotRandom(KeyMaterialError),
}
