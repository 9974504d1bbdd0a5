//! SQL, one file a table.

pub(crate) mod checkpoints;
pub(crate) mod events;
pub(crate) mod heads;
pub(crate) mod key_folder;
pub(crate) mod plain;
pub(crate) mod tiles;

/// Every statement of this service.
pub(crate) fn all_sql() -> Vec<gatehouse_db::Sql> {
    let (entries, rows) = (events::ADD_EVENTS, plain::ADD_ROWS);
    let heads = [heads::ALL, key_folder::ALL].concat();
    [&heads, events::ALL, entries.all(), tiles::ALL, checkpoints::ALL, plain::ALL, rows.all()].concat()
}

/// A number that the log gives out, as BIGINT holds it. Logs end at 2^53 entries.
pub(crate) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number read from a BIGINT that is never negative.
pub(crate) fn read(row: &gatehouse_db::Row, column: &str) -> gatehouse_db::Result<u64> {
    u64::try_from(row.get::<i64>(column)?).map_err(|cause| gatehouse_db::Error::decode(column, cause))
}

/// As [`read`], for what somebody else may have written: nothing where it is no such number.
pub(crate) fn find(row: &gatehouse_db::Row, column: &str) -> Option<u64> {
    read(row, column).ok()
}

/// A stored digest.
pub(crate) fn read_digest(
    row: &gatehouse_db::Row,
    column: &str,
) -> gatehouse_db::Result<crate::domain::digest::Digest> {
    row.get::<[u8; 32]>(column).map(crate::domain::digest::Digest::from_bytes)
}
