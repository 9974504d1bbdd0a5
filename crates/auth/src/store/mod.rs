//! SQL: one table a file, constants and functions on `&mut Tx`.

pub mod api_keys;
pub mod bootstrap;
pub mod memberships;
pub mod people;
pub mod revocations;
pub mod sessions;
pub mod signing_keys;
pub mod tenants;

use gatehouse_db::{Error, Row, Sql};

use crate::domain::keys::{KeyId, KeyedDigest};

/// Every statement of this crate.
#[must_use]
pub fn all_sql() -> Vec<Sql> {
    [
        api_keys::ALL,
        bootstrap::ALL,
        memberships::ALL,
        people::ALL,
        revocations::ALL,
        revocations::ADD_REVOCATIONS.all(),
        sessions::ALL,
        signing_keys::ALL,
        tenants::ALL,
    ]
    .concat()
}

fn key_id(column: &str, text: &str) -> Result<KeyId, Error> {
    KeyId::parse(text).ok_or_else(|| Error::decode(column, "it is no key id"))
}

fn digest(row: &Row, kid: &str, bytes: &str) -> Result<KeyedDigest, Error> {
    Ok(KeyedDigest { kid: key_id(kid, &row.get::<String>(kid)?)?, bytes: row.get(bytes)? })
}

fn optional_digest(row: &Row, kid: &str, bytes: &str) -> Result<Option<KeyedDigest>, Error> {
    if row.get::<Option<String>>(kid)?.is_none() { Ok(None) } else { digest(row, kid, bytes).map(Some) }
}
