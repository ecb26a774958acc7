//! The clock that the store reads, and times as text.

use std::time::{Duration, SystemTime};

/// Returns the milliseconds since 1970-01-01 UTC by this machine's clock.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Formats milliseconds since 1970-01-01 UTC as RFC 3339 with whole seconds.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    /// The last second of the year 9999, where the format ends.
    const LAST_MS: u64 = 253_402_300_799_000;
    let since = Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
