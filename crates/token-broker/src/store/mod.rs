//! SQL: one file a table.

pub(crate) mod access_tokens;
pub(crate) mod authorizations;
pub(crate) mod connections;
pub(crate) mod offline_grants;
pub(crate) mod person_locks;
pub(crate) mod rotations;

use gatehouse_db::Sql;

/// Every statement of this service.
pub(crate) fn all() -> Vec<Sql> {
    [
        access_tokens::ALL,
        authorizations::ALL,
        connections::ALL,
        offline_grants::ALL,
        person_locks::ALL,
        rotations::ALL,
    ]
    .concat()
}
