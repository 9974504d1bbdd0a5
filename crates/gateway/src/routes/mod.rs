//! Every route, one file each. [`table`] is the only way into the server.

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
