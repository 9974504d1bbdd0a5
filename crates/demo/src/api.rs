//! A client of the gateway's HTTP API, as anyone would write one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// Talks to one gateway, with a token once there is one.
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Api {
    /// A client of the gateway at `base`; the PEM files of `authorities` are believed beside those of the machine.
    pub(crate) fn new(base: &str, authorities: &[PathBuf]) -> anyhow::Result<Self> {
        let mut certificates = Vec::new();
        for file in authorities {
            let pem = std::fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
            certificates.extend(
                reqwest::Certificate::from_pem_bundle(&pem)
                    .with_context(|| format!("{} holds no certificate", file.display()))?,
            );
        }
        let http = reqwest::Client::builder()
            .tls_certs_merge(certificates)
            .connect_timeout(Duration::from_secs(5))
            // The demo plays the browser itself and must see each redirect.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token: None })
    }

    /// Shows `token` from now on.
    pub(crate) fn sign_in(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    /// The HTTP client, for requests to others than the gateway.
    pub(crate) const fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// A request to the gateway.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// GETs `path` as JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path).timeout(Duration::from_secs(15)), path).await
    }

    /// POSTs `body` to `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::POST, path).timeout(Duration::from_secs(15)).json(body), path).await
    }

    /// The status of a POST, whatever it is.
    pub(crate) async fn post_status(&self, path: &str, body: &Value) -> anyhow::Result<(StatusCode, Value)> {
        let response =
            self.request(Method::POST, path).timeout(Duration::from_secs(15)).json(body).send().await?;
        let status = response.status();
        Ok((status, response.json().await.unwrap_or(Value::Null)))
    }

    async fn send(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        let response = request.send().await.with_context(|| format!("{path} could not be reached"))?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{path} answered {status}: {text}");
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{path} answered something that is no JSON"))
    }
}

/// The text at `pointer` (RFC 6901).
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .with_context(|| format!("the answer has no text at {pointer}: {value}"))
}
