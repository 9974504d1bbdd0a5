//! About the gateway itself: documentation and probes.

use crate::route::Route;

mod docs;
mod healthz;
mod openapi;
mod readyz;

pub(super) fn routes() -> Vec<Route> {
    vec![openapi::route(), docs::route(), healthz::route(), readyz::route()]
}
