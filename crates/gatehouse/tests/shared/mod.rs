//! What the clients of the crash test and of the fault test have in common.

use anyhow::Context as _;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

/// A session's tokens.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) session: String,
}

impl Tokens {
    pub(crate) fn read(body: &Value) -> anyhow::Result<Self> {
        let text = |name: &str| {
            body[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in the answer"))
        };
        Ok(Self {
            access: text("access_token")?,
            refresh: text("refresh_token")?,
            session: text("session_id")?,
        })
    }
}

/// The submission of a job under an idempotency key. It asks for more iterations than are allowed, so that each job is
/// told once that they were clamped.
pub(crate) fn submission(http: &Client, base: &str, token: &str, key: &str) -> RequestBuilder {
    let variable = |name: &str| json!({"name": name, "lower": -2.0, "upper": 2.0});
    let body = json!({
        "objective": "(1 - x)^2 + 100 * (y - x^2)^2", "variables": [variable("x"), variable("y")], "seed": 7,
        "max_iterations": 1_000_000,
    });
    let request = http.post(format!("{base}/optimize")).bearer_auth(token);
    request.header("Idempotency-Key", key).json(&body)
}
