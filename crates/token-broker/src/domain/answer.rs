//! What a token endpoint answered: as bytes that can lie in escrow, and as what they mean (RFC 6749, sections 5.1
//! and 5.2; lenient where well-known providers are).

use std::time::Duration;

use gatehouse_core::{Secret, Timestamp};
use serde_json::Value;

use super::scopes::Scopes;

/// The longest body that is read, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Where the provider does not say how long an access token lives.
const UNSTATED_LIFETIME: Duration = Duration::from_mins(5);

/// An answer before anyone has looked into it.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// The HTTP status.
    pub status: u16,
    /// When it arrived.
    pub received_at: Timestamp,
    /// The body.
    pub body: Secret<Vec<u8>>,
}

impl RawAnswer {
    /// As bytes: status (2), arrival in microseconds (8), body.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<Vec<u8>> {
        let mut bytes = Vec::with_capacity(10 + self.body.expose().len());
        bytes.extend_from_slice(&self.status.to_be_bytes());
        bytes.extend_from_slice(&self.received_at.as_micros().to_be_bytes());
        bytes.extend_from_slice(self.body.expose());
        Secret::new(bytes)
    }

    /// Reads back [`RawAnswer::to_bytes`]; `None` if it is too short to be one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (status, rest) = bytes.split_first_chunk::<2>()?;
        let (received_at, body) = rest.split_first_chunk::<8>()?;
        Some(Self {
            status: u16::from_be_bytes(*status),
            received_at: Timestamp::from_micros(i64::from_be_bytes(*received_at)),
            body: Secret::new(body.to_vec()),
        })
    }
}

/// Tokens as granted.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The access token; absent only where an answer is so odd that just the refresh token could be saved.
    pub access: Option<AccessToken>,
    /// The refresh token, if one came with it.
    pub refresh: Option<Secret<String>>,
    /// The scopes granted, if they were named.
    pub scopes: Option<Scopes>,
}

/// An access token.
#[derive(Clone, Debug)]
pub struct AccessToken {
    /// The token.
    pub token: Secret<String>,
    /// Its type, usually `Bearer`.
    pub token_type: String,
    /// Its end as the provider has it.
    pub expires_at: Timestamp,
}

/// What an answer means.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// Tokens.
    Granted(Tokens),
    /// This refresh token (or code) is worthless now: `invalid_grant`.
    InvalidGrant,
    /// The provider refuses us as a client, or what we asked for; the token may be sound. Names the error code.
    Refused(&'static str),
    /// The provider is unwell, or nobody knows what it said.
    Unclear(&'static str),
}

/// Reads an answer. Never fails, never panics: bytes from elsewhere.
#[must_use]
pub fn read(answer: &RawAnswer) -> Meaning {
    let parsed = serde_json::from_slice::<Value>(answer.body.expose());
    let Ok(mut body) = parsed else {
        return Meaning::Unclear(if answer.status == 200 {
            "answer_not_json"
        } else {
            class_of(answer.status)
        });
    };
    let meaning = read_body(answer, &body);
    shred(&mut body);
    meaning
}

fn read_body(answer: &RawAnswer, body: &Value) -> Meaning {
    if let Some(error) = body["error"].as_str() {
        return match error {
            // GitHub answers 200 with `bad_refresh_token`.
            "invalid_grant" | "bad_refresh_token" => Meaning::InvalidGrant,
            "invalid_client" => Meaning::Refused("invalid_client"),
            "unauthorized_client" => Meaning::Refused("unauthorized_client"),
            "invalid_scope" => Meaning::Refused("invalid_scope"),
            "invalid_request" => Meaning::Refused("invalid_request"),
            "unsupported_grant_type" => Meaning::Refused("unsupported_grant_type"),
            _ => Meaning::Unclear("unknown_error"),
        };
    }
    if answer.status != 200 {
        return Meaning::Unclear(class_of(answer.status));
    }
    let refresh = token(body, "refresh_token");
    let access = token(body, "access_token").map(|token| AccessToken {
        token,
        token_type: token_type(body),
        expires_at: answer.received_at.plus(lifetime(&body["expires_in"])),
    });
    if access.is_none() && refresh.is_none() {
        return Meaning::Unclear("answer_without_tokens");
    }
    Meaning::Granted(Tokens { access, refresh, scopes: body["scope"].as_str().map(Scopes::parse) })
}

fn class_of(status: u16) -> &'static str {
    match status {
        429 => "rate_limited",
        500.. => "server_error",
        300..400 => "redirect",
        _ => "unexpected_status",
    }
}

fn token(body: &Value, name: &str) -> Option<Secret<String>> {
    // Anything that fits a header: a token with a line break would be an injection into every later request.
    let text = body[name].as_str()?;
    let fits =
        !text.is_empty() && text.len() <= MAX_TOKEN_BYTES && text.bytes().all(|b| (0x21..=0x7e).contains(&b));
    fits.then(|| Secret::new(text.to_owned()))
}

fn token_type(body: &Value) -> String {
    let stated = body["token_type"].as_str().unwrap_or("Bearer");
    let fits =
        (1..=32).contains(&stated.len()) && stated.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match stated {
        text if text.eq_ignore_ascii_case("bearer") => "Bearer".to_owned(),
        text if fits => text.to_owned(),
        _ => "Bearer".to_owned(),
    }
}

/// A number, or a number in a string, of seconds.
fn lifetime(stated: &Value) -> Duration {
    let seconds = stated.as_u64().or_else(|| stated.as_str()?.parse().ok());
    seconds.map_or(UNSTATED_LIFETIME, |seconds| Duration::from_secs(seconds.min(366 * 86_400)))
}

fn shred(value: &mut Value) {
    use zeroize::Zeroize;
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(shred),
        Value::Object(fields) => fields.values_mut().for_each(shred),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> RawAnswer {
        let received_at = Timestamp::from_seconds(1000);
        RawAnswer { status, received_at, body: Secret::new(body.as_bytes().to_vec()) }
    }

    #[test]
    fn an_answer_lies_in_escrow_unchanged() {
        let back = RawAnswer::from_bytes(answer(200, "{}").to_bytes().expose()).unwrap();
        assert_eq!((back.status, back.received_at), (200, Timestamp::from_seconds(1000)));
        assert_eq!(back.body.expose(), b"{}");
        assert!(RawAnswer::from_bytes(&[0; 9]).is_none());
    }

    #[test]
    fn tokens_are_read_as_providers_write_them() {
        let text = r#"{"access_token":"a","refresh_token":"r","expires_in":"60","token_type":"bearer","scope":"y x"}"#;
        let Meaning::Granted(tokens) = read(&answer(200, text)) else { panic!("not granted") };
        let access = tokens.access.unwrap();
        assert_eq!(access.token.expose(), "a");
        assert_eq!(access.token_type, "Bearer");
        assert_eq!(access.expires_at, Timestamp::from_seconds(1060));
        assert_eq!(tokens.refresh.unwrap().expose(), "r");
        assert_eq!(tokens.scopes.unwrap().to_string(), "x y");
        // An access token that nobody can use does not cost us the refresh token.
        let Meaning::Granted(tokens) = read(&answer(200, r#"{"access_token":"a\nb","refresh_token":"r"}"#))
        else {
            panic!("not granted")
        };
        assert!(tokens.access.is_none() && tokens.refresh.is_some());
    }

    #[test]
    fn only_invalid_grant_condemns_the_token() {
        for (status, body) in [
            (400, r#"{"error":"invalid_grant"}"#),
            (403, r#"{"error":"invalid_grant"}"#),
            (200, r#"{"error":"bad_refresh_token"}"#),
        ] {
            assert!(matches!(read(&answer(status, body)), Meaning::InvalidGrant), "{status} {body}");
        }
        for (status, body) in [(401, r#"{"error":"invalid_client"}"#), (400, r#"{"error":"invalid_scope"}"#)]
        {
            assert!(matches!(read(&answer(status, body)), Meaning::Refused(_)), "{status} {body}");
        }
        for (status, body) in [
            (500, ""),
            (503, "{}"),
            (200, ""),
            (200, "{}"),
            (200, "[]"),
            (302, ""),
            (400, "{}"),
            (429, "<html>"),
        ] {
            assert!(matches!(read(&answer(status, body)), Meaning::Unclear(_)), "{status} {body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(status in 0u16..1000, body in proptest::collection::vec(0u8..=255, 0..200)) {
            let received_at = Timestamp::from_seconds(1);
            let _ = read(&RawAnswer { status, received_at, body: Secret::new(body.clone()) });
            let _ = RawAnswer::from_bytes(&body);
        }
    }
}
