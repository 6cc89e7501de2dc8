//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use orchestrator_queue::Millis;

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A point in time as RFC 3339 with milliseconds, as every page shows it.
pub fn rfc3339(at: Millis) -> String {
    let at = i64::try_from(at).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(at).map_or_else(|_| at.to_string(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc_3339_with_milliseconds() {
        assert_eq!(rfc3339(1_700_000_000_005), "2023-11-14T22:13:20.005Z");
    }
}
