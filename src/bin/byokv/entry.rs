//! What one line of an imported file says, and why another one is refused.

use super::secret::Secret;

/// A record of a file.
pub(super) struct Entry {
    /// The line where it begins, from 1.
    pub(super) line: u64,
    pub(super) name: Vec<u8>,
    pub(super) value: Secret,
}

/// Why a file cannot be imported. Never holds any of a value.
pub(super) struct Refusal {
    pub(super) line: u64,
    pub(super) why: String,
}

impl Refusal {
    pub(super) fn new(line: u64, why: impl Into<String>) -> Self {
        Self { line, why: why.into() }
    }
}
