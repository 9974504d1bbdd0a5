//! Every route, one file each. [`table`] is the only way into the server.

use gatehouse_core::{Error, Result};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::route::Route;

mod api_keys;
mod audit;
mod auth;
mod connections;
mod jobs;
mod meta;
mod oauth;
mod tenants;

/// All routes. Within one path length, fixed paths stand before templates that would match them too.
pub(crate) fn table() -> Vec<Route> {
    [
        auth::routes(),
        tenants::routes(),
        api_keys::routes(),
        jobs::routes(),
        connections::routes(),
        audit::routes(),
        oauth::routes(),
        meta::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A choice out of many, of which absent means the usual one. An empty list is the clearest way to ask for nothing, which
/// must not be taken for everything; and there is nothing to be had with nothing.
///
/// # Errors
/// `INVALID_FIELD` if it is empty.
fn chosen(field: &'static str, choice: Option<Vec<String>>) -> Result<Vec<String>> {
    match choice {
        Some(none) if none.is_empty() => {
            Err(Error::invalid_field(field, "name at least one, or leave the field out"))
        }
        some => Ok(some.unwrap_or_default()),
    }
}

/// A lifetime in seconds, of which absent means the usual one.
///
/// # Errors
/// `INVALID_FIELD` if it is not positive.
fn lifetime(seconds: Option<i64>) -> Result<i64> {
    match seconds {
        Some(..=0) => Err(Error::invalid_field("lifetime_seconds", "it must be positive, or left out")),
        some => Ok(some.unwrap_or_default()),
    }
}

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// 1 to 200; absent takes 50.
    #[serde(default)]
    page_size: i32,
    /// From the page before.
    #[serde(default)]
    page_token: String,
}
