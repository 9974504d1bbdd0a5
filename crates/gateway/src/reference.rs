//! The reference pages that are generated from the routes.

use std::fmt::Write as _;

use crate::config::Config;
use crate::docs::document;
use crate::route::Access;
use crate::routes;

/// The OpenAPI 3.1 document, as `/openapi.json` gives it, laid out for people.
#[must_use]
pub fn openapi_json() -> String {
    format!("{:#}", document(&routes::table(), &Config::default()))
}

/// Every route as a Markdown table: who may call it, which gRPC methods it calls, which limits count it.
#[must_use]
pub fn routes_markdown() -> String {
    let mut text = String::from("| route | credential | calls | limits |\n| --- | --- | --- | --- |\n");
    for route in routes::table() {
        let credential = match route.access {
            Access::Probe | Access::Public => "none",
            Access::OAuthClient => "client id and secret",
            Access::Caller(_) if route.persons_only => "a person's access token",
            Access::Caller(_) => "access token or API key",
        };
        let calls =
            route.calls.iter().map(|call| format!("`{}`", call.trim_start_matches('/'))).collect::<Vec<_>>();
        let limits = if route.access == Access::Probe { "none" } else { route.class.as_str() };
        // Writing to a String can't fail.
        let _ = writeln!(text, "| `{}` | {credential} | {} | {limits} |", route.name, calls.join("<br>"));
    }
    text
}
