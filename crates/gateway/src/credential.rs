//! What a request shows to prove who sends it.

use actix_web::http::header::HeaderMap;
use gatehouse_core::{Environment, Error, Result, Secret};

const MAX_BYTES: usize = 8192;

/// A credential as shown, unverified.
#[derive(Clone, Debug)]
pub(crate) enum Presented {
    /// An access token of ours (RFC 6750).
    AccessToken(Secret<String>),
    /// An API key.
    ApiKey(Secret<String>),
}

impl Presented {
    /// The text that was shown.
    pub(crate) fn text(&self) -> &Secret<String> {
        match self {
            Self::AccessToken(text) | Self::ApiKey(text) => text,
        }
    }
}

/// The one credential that the headers show, if any.
///
/// # Errors
/// `AMBIGUOUS_CREDENTIAL` if there are several; `CREDENTIAL_MALFORMED` if it can't be one of ours.
pub(crate) fn extract(headers: &HeaderMap, environment: Environment) -> Result<Option<Presented>> {
    let mut authorization = headers.get_all("authorization");
    let mut api_key = headers.get_all("x-api-key");
    let (first, key) = (authorization.next(), api_key.next());
    if authorization.next().is_some() || api_key.next().is_some() || (first.is_some() && key.is_some()) {
        return Err(Error::invalid_argument(
            "AMBIGUOUS_CREDENTIAL",
            "Show one credential: either one Authorization header or one X-API-Key header.",
        ));
    }
    if let Some(key) = key {
        return key.to_str().map_err(|_| malformed()).and_then(|key| parse_key(key, environment)).map(Some);
    }
    let Some(value) = first else { return Ok(None) };
    let value = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Error::unauthenticated(
            "UNSUPPORTED_SCHEME",
            "Show the credential as `Authorization: Bearer …` or `X-API-Key: …`.",
        ));
    }
    let token = token.trim_matches(' ');
    if token.starts_with("gh_") {
        return parse_key(token, environment).map(Some);
    }
    let is_token = (1..=MAX_BYTES).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte));
    if is_token { Ok(Some(Presented::AccessToken(Secret::new(token.to_owned())))) } else { Err(malformed()) }
}

fn parse_key(key: &str, environment: Environment) -> Result<Presented> {
    let safe =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if key.len() > 512 || !safe(key) {
        return Err(malformed());
    }
    match key.strip_prefix(&format!("gh_{environment}_ak_")) {
        Some(rest) if !rest.is_empty() => Ok(Presented::ApiKey(Secret::new(key.to_owned()))),
        None if ["dev", "staging", "prod"].iter().any(|name| key.starts_with(&format!("gh_{name}_ak_"))) => {
            Err(Error::unauthenticated(
                "WRONG_ENVIRONMENT",
                format!("This API key is not of the environment {environment}."),
            ))
        }
        _ => Err(malformed()),
    }
}

fn malformed() -> Error {
    Error::unauthenticated(
        "CREDENTIAL_MALFORMED",
        "The credential is neither an access token nor an API key. Sign in again, or check how the key was copied.",
    )
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn found(headers: &[(&str, &[u8])]) -> Result<Option<Presented>, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_bytes(value).expect("a value"),
            );
        }
        extract(&map, Environment::Dev).map_err(|error| error.reason().to_owned())
    }

    #[test]
    fn each_form_is_recognised() {
        assert!(found(&[]).expect("fine").is_none());
        assert!(matches!(found(&[("authorization", b"Bearer a.b.c")]), Ok(Some(Presented::AccessToken(_)))));
        assert!(matches!(
            found(&[("authorization", b"bEARER  a.b.c ")]),
            Ok(Some(Presented::AccessToken(_)))
        ));
        assert!(matches!(
            found(&[("authorization", b"Bearer gh_dev_ak_abc")]),
            Ok(Some(Presented::ApiKey(_)))
        ));
        assert!(matches!(found(&[("x-api-key", b"gh_dev_ak_abc")]), Ok(Some(Presented::ApiKey(_)))));
    }

    #[test]
    fn each_wrong_form_is_refused() {
        let long = [b"Bearer ".to_vec(), vec![b'a'; 8193]].concat();
        for (headers, reason) in [
            (vec![("authorization", &b"Basic YTpi"[..])], "UNSUPPORTED_SCHEME"),
            (vec![("authorization", b"Bearer")], "CREDENTIAL_MALFORMED"),
            (vec![("authorization", b"Bearer ")], "CREDENTIAL_MALFORMED"),
            (vec![("authorization", b"Bearer a b")], "CREDENTIAL_MALFORMED"),
            (vec![("authorization", b"Bearer \xff")], "CREDENTIAL_MALFORMED"),
            (vec![("authorization", &long)], "CREDENTIAL_MALFORMED"),
            (vec![("x-api-key", b"a.b.c")], "CREDENTIAL_MALFORMED"),
            (vec![("x-api-key", b"gh_dev_rt_abc")], "CREDENTIAL_MALFORMED"),
            (vec![("x-api-key", b"gh_prod_ak_abc")], "WRONG_ENVIRONMENT"),
            (vec![("authorization", b"Bearer a"), ("x-api-key", b"gh_dev_ak_a")], "AMBIGUOUS_CREDENTIAL"),
            (vec![("authorization", b"Bearer a"), ("authorization", b"Bearer b")], "AMBIGUOUS_CREDENTIAL"),
        ] {
            assert_eq!(found(&headers).expect_err("refused"), reason, "{headers:?}");
        }
    }
}
