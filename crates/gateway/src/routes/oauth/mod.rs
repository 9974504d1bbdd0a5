//! The OAuth face: tokens for services, introspection, revocation, metadata, keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Error, Result};

use crate::context::{Context, Form};
use crate::route::Route;

mod introspect;
mod jwks;
mod metadata;
mod revoke;
mod token;

pub(super) fn routes() -> Vec<Route> {
    vec![
        token::route(),
        introspect::route(),
        revoke::route(),
        metadata::route(),
        metadata::route_with_environment(),
        jwks::route(),
    ]
}

/// A client's id and secret: HTTP Basic, or the form, not both (RFC 6749, section 2.3).
///
/// # Errors
/// `CLIENT_MISSING`, `AMBIGUOUS_CREDENTIAL`.
fn client(context: &Context, form: &Form) -> Result<(String, String)> {
    let missing = || {
        Error::unauthenticated(
            "CLIENT_MISSING",
            "Send the client's id and secret by HTTP Basic or in the form.",
        )
    };
    let in_form = form.get("client_id").zip(form.get("client_secret"));
    let mut headers = context.request.headers().get_all("authorization");
    let Some(header) = headers.next() else {
        return in_form.map(|(id, secret)| (id.to_owned(), secret.to_owned())).ok_or_else(missing);
    };
    if headers.next().is_some() || form.get("client_secret").is_some() {
        return Err(Error::invalid_argument(
            "AMBIGUOUS_CREDENTIAL",
            "Show the client's secret once, in one way.",
        ));
    }
    let text = header
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(missing)?;
    let (id, secret) = text.split_once(':').ok_or_else(missing)?;
    // Both were form-encoded first (section 2.3.1).
    let decode = |text: &str| {
        url::form_urlencoded::parse(format!("v={text}").as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    Ok((decode(&id.replace('&', "%26")), decode(&secret.replace('&', "%26"))))
}
