//! Why key material was refused.

/// What is wrong with key material. Never tells any of its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyMaterialError {
    /// It decodes to another length than 32 bytes.
    #[error("32 bytes are needed, {bytes} came; make one with `openssl rand -base64 32`")]
    WrongLength {
        /// How many bytes came.
        bytes: usize,
    },
    /// A symbol outside base64's alphabet (RFC 4648, section 4).
    #[error("the symbol at position {position} is not base64")]
    Alphabet {
        /// Counted from 1.
        position: usize,
    },
    /// A symbol of base64's URL-safe alphabet (RFC 4648, section 5).
    #[error(
        "the symbol at position {position} is of the URL-safe alphabet; the standard base64 \
         alphabet (with + and /) is needed"
    )]
    UrlSafe {
        /// Counted from 1.
        position: usize,
    },
    /// 43 symbols, but not followed by exactly one `=`.
    #[error("the padding is missing or wrong: 43 symbols and one `=` are needed")]
    Padding,
    /// The last symbol has bits that no 32 bytes encode to.
    #[error("the last symbol is not canonical base64; a symbol was probably mistyped")]
    TrailingBits,
    /// All bytes are alike.
    #[error("it is plainly not random: all bytes are alike")]
    AllAlike,
    /// A short run of bytes repeats.
    #[error("it is plainly not random: the same {period} bytes repeat")]
    Repeats {
        /// Length of the run, bytes.
        period: usize,
    },
    /// Each byte differs from the one before by the same amount.
    #[error("it is plainly not random: the bytes count in equal steps")]
    Sequence,
    /// All bytes are printable ASCII.
    #[error("it is plainly not random: it is printable text; encode random bytes, not a password")]
    Text,
    /// Fewer than 16 distinct byte values.
    #[error("it is plainly not random: only {distinct} distinct byte values")]
    FewDistinct {
        /// How many.
        distinct: usize,
    },
}
