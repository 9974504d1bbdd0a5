//! Times as this API writes them: RFC 3339 in UTC.

use gatehouse_core::Timestamp;

/// The instant `micros` microseconds after the Unix epoch as text; `None` for 0, which the contracts use for "never".
pub(crate) fn text(micros: i64) -> Option<String> {
    (micros != 0).then(|| Timestamp::from_micros(micros).to_string())
}
