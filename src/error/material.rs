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
    /// Nothing, or only white space.
    #[error("it is empty; a key is one line of 44 characters")]
    Empty,
    /// Digits of hex.
    #[error(
        "it looks like {bytes} bytes in hex; 32 bytes in base64 are needed: `xxd -r -p FILE | base64`"
    )]
    Hex {
        /// How many bytes the digits stand for.
        bytes: usize,
    },
    /// A key or certificate in PEM.
    #[error(
        "it looks like PEM, which holds a key of another kind; a key is 32 random bytes in base64"
    )]
    Pem,
    /// A line of a settings file.
    #[error(
        "it looks like NAME=KEY or NAME: KEY; the key must stand alone in its file or variable"
    )]
    Assignment,
    /// UTF-16, with or without a byte order mark.
    #[error(
        "it looks like UTF-16, which `>` writes in Windows PowerShell; write it as ASCII: \
         `Set-Content -Encoding ascii FILE`"
    )]
    Utf16,
    /// A byte order mark of UTF-8 before the key.
    #[error("it begins with a byte order mark; save it as UTF-8 without one, or as ASCII")]
    ByteOrderMark,
    /// Quotation marks around the key.
    #[error("it is in quotation marks; the key must stand without them")]
    Quoted,
    /// The bytes themselves.
    #[error("it looks like 32 raw bytes; base64 is needed: `base64 < FILE`")]
    RawBytes,
    /// Other bytes that are no text.
    #[error("it is no text, but {bytes} other bytes; a key is one line of 44 characters")]
    Binary {
        /// How many.
        bytes: usize,
    },
    /// Several lines.
    #[error(
        "it has {lines} lines, and a key has one; if it was wrapped, join them: \
         `tr -d '\\r\\n' < FILE`"
    )]
    Lines {
        /// How many.
        lines: usize,
    },
    /// White space before, in or after the key.
    #[error(
        "there is white space at position {position}; only one line end may follow the key: \
         `tr -d '[:space:]' < FILE`"
    )]
    Whitespace {
        /// Counted from 1.
        position: usize,
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
         alphabet (with + and /) is needed: `tr -- '-_' '+/' < FILE`, and one `=` at the end"
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
