//! Times as this API writes and reads them: RFC 3339.

use gatehouse_core::{Error, Result, Timestamp};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The instant `micros` microseconds after the Unix epoch as text; `None` for 0, which the contracts use for "never".
pub(crate) fn text(micros: i64) -> Option<String> {
    (micros != 0).then(|| Timestamp::from_micros(micros).to_string())
}

/// Microseconds after the Unix epoch of an instant in a query: RFC 3339 with any offset, or that number itself. 0, which the
/// contracts use for "no bound", where there is no text. What is finer than a microsecond is cut off.
///
/// # Errors
/// `INVALID_FIELD` for anything else, and for what was before 1970.
pub(crate) fn read(field: &'static str, text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let micros = match text.parse() {
        Ok(micros) => Some(micros),
        Err(_) => OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|instant| i64::try_from(instant.unix_timestamp_nanos().div_euclid(1000)).ok()),
    };
    micros.filter(|micros| *micros >= 0).ok_or_else(|| {
        Error::invalid_field(
            field,
            "must be a time from 1970 on, such as 2026-11-23T05:00:00Z (RFC 3339; write a + as %2B), or the microseconds \
             since the Unix epoch",
        )
    })
}
