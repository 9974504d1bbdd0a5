//! What a statement gives.

use std::fmt;
use std::str::FromStr;

use gatehouse_core::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::{Error, Result};

/// One row of a result.
pub struct Row(pub(crate) Inner);

pub(crate) enum Inner {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    /// The value of `column` as `T`: `i64`, `bool`, `String`, `Uuid`, `Vec<u8>`, [`Timestamp`], an id, `u32`, or
    /// `Option` of these.
    ///
    /// Fails if the row has no such column, the value has another type, or it is NULL and `T` is not an `Option`.
    pub fn get<T: ReadColumn>(&self, column: &str) -> Result<T> {
        T::read(self, column)
    }

    /// The text of `column` parsed, for enums and other types that are stored as text.
    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        self.get::<String>(column)?.parse().map_err(|cause| Error::decode(column, cause))
    }

    fn value<'r, T>(&'r self, column: &str) -> Result<Option<T>>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        use sqlx::Row as _;
        match &self.0 {
            Inner::Postgres(row) => row.try_get(column),
            Inner::Sqlite(row) => row.try_get(column),
        }
        .map_err(|cause| Error::decode(column, cause))
    }
}

impl fmt::Debug for Row {
    /// Names nothing of the content: rows hold personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Row(…)")
    }
}

/// A type that a column can be read as.
pub trait FromColumn: Sized {
    /// The value of `column`, `None` where it is NULL.
    fn from_column(row: &Row, column: &str) -> Result<Option<Self>>;
}

macro_rules! columns {
    ($($type:ty),+) => {$(
        impl FromColumn for $type {
            fn from_column(row: &Row, column: &str) -> Result<Option<Self>> {
                row.value(column)
            }
        }
    )+};
}

columns!(i64, bool, String, Uuid, Vec<u8>);

impl FromColumn for Timestamp {
    fn from_column(row: &Row, column: &str) -> Result<Option<Self>> {
        Ok(i64::from_column(row, column)?.map(Self::from_micros))
    }
}

impl FromColumn for u32 {
    fn from_column(row: &Row, column: &str) -> Result<Option<Self>> {
        i64::from_column(row, column)?
            .map(Self::try_from)
            .transpose()
            .map_err(|cause| Error::decode(column, cause))
    }
}

impl<const N: usize> FromColumn for [u8; N] {
    fn from_column(row: &Row, column: &str) -> Result<Option<Self>> {
        let bytes = Vec::<u8>::from_column(row, column)?;
        bytes
            .map(|bytes| Self::try_from(bytes.as_slice()))
            .transpose()
            .map_err(|cause| Error::decode(column, cause))
    }
}

/// [`FromColumn`] types and `Option` of them. Implement [`FromColumn`], not this.
pub trait ReadColumn: Sized {
    /// The value of `column`.
    fn read(row: &Row, column: &str) -> Result<Self>;
}

impl<T: FromColumn> ReadColumn for T {
    fn read(row: &Row, column: &str) -> Result<Self> {
        T::from_column(row, column)?.ok_or_else(|| Error::decode(column, "it is NULL"))
    }
}

impl<T: FromColumn> ReadColumn for Option<T> {
    fn read(row: &Row, column: &str) -> Result<Self> {
        T::from_column(row, column)
    }
}
