//! Vault and OpenBao: documents in KV version 2, swapped by its check-and-set; sealing by Transit.
//!
//! KV's own versions can't tell pending from current, so one KV entry holds the whole document and is swapped
//! with `options.cas`. `max_versions = 1` makes each swap destroy the text it replaced: a version deleted from
//! the document is gone.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Environment, Secret, Timestamp, shown_path};
use reqwest::{Method, StatusCode, redirect};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use crate::backend::SealingKey;
use crate::config::VaultConfig;
use crate::document::{Document, Mutation};
use crate::{Error, Result, SecretKey};

/// A writer that loses the swap reads again and decides anew; one that loses this often gives up.
const SWAPS: usize = 16;
/// More than any document: 8 versions of 32 KiB in base64, with room.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

pub(crate) struct Vault {
    http: reqwest::Client,
    address: String,
    namespace: String,
    token_file: PathBuf,
    kv_mount: String,
    path: String,
    transit: String,
    transit_key: String,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("address", &self.address)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What the server said, as far as the contract cares.
enum Answer {
    Yes(Value),
    Missing,
    /// 400, with the server's words.
    Refused(String),
}

#[derive(Deserialize)]
struct Stored {
    format: u32,
    document: String,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.document.zeroize();
    }
}

impl Vault {
    pub(crate) async fn open(config: &VaultConfig, environment: Environment) -> Result<Self> {
        // The process may have chosen a provider already; either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .timeout(Duration::from_millis(config.timeout_ms))
            .redirect(redirect::Policy::none())
            .no_proxy();
        if let Some(file) = &config.ca_file {
            let pem = tokio::fs::read(file).await.map_err(|error| {
                Error::Setup(format!("secrets.vault.ca_file {}: {error}", shown_path(file)))
            })?;
            let authority = reqwest::Certificate::from_pem(&pem).map_err(|_| {
                Error::Setup(format!("secrets.vault.ca_file {}: no certificate in it", shown_path(file)))
            })?;
            builder = builder.add_root_certificate(authority);
        }
        let vault = Self {
            http: builder.build().map_err(Error::unavailable)?,
            address: config.address.trim_end_matches('/').to_owned(),
            namespace: config.namespace.clone(),
            token_file: config.token_file.clone(),
            kv_mount: config.kv_mount.clone(),
            path: format!("{}/{environment}", config.prefix),
            transit: config.transit_mount.clone(),
            transit_key: config.transit_key.clone(),
        };
        vault.see_to_transit_key(environment).await?;
        Ok(vault)
    }

    async fn see_to_transit_key(&self, environment: Environment) -> Result<()> {
        let path = format!("{}/keys/{}", self.transit, self.transit_key);
        match self.call(Method::GET, &path, None).await? {
            Answer::Yes(_) => Ok(()),
            Answer::Missing if environment.is_dev() => {
                let made = self.call(Method::POST, &path, Some(json!({ "type": "aes256-gcm96" }))).await?;
                match made {
                    Answer::Yes(_) => Ok(()),
                    Answer::Missing => Err(Error::Setup(format!(
                        "there is no Transit engine at {}; enable one (`bao secrets enable -path={0} transit`)",
                        self.transit
                    ))),
                    Answer::Refused(words) => Err(Error::Setup(format!("making the Transit key: {words}"))),
                }
            }
            Answer::Missing => Err(Error::Setup(format!(
                "there is no Transit key {path}; make it (`bao write -f {path} type=aes256-gcm96`)"
            ))),
            Answer::Refused(words) => Err(Error::Setup(format!("reading the Transit key {path}: {words}"))),
        }
    }

    pub(crate) async fn load(&self, key: &SecretKey) -> Result<Option<Document>> {
        Ok(self.load_at(key).await?.map(|(document, _)| document))
    }

    async fn load_at(&self, key: &SecretKey) -> Result<Option<(Document, u64)>> {
        let place = format!("{}/data/{}/{key}", self.kv_mount, self.path);
        let corrupt = |problem: &str| Error::Corrupt { place: place.clone(), problem: problem.to_owned() };
        let mut answer = match self.call(Method::GET, &place, None).await? {
            Answer::Yes(answer) => answer,
            Answer::Missing => return Ok(None),
            Answer::Refused(words) => return Err(Error::Denied(words)),
        };
        let version =
            answer["data"]["metadata"]["version"].as_u64().ok_or_else(|| corrupt("it has no version"))?;
        let stored = serde_json::from_value::<Stored>(answer["data"]["data"].take())
            .map_err(|_| corrupt("it was not written by this program"))?;
        if stored.format != 1 {
            return Err(corrupt("its format is of a later release"));
        }
        Ok(Some((Document::from_json(stored.document.as_bytes(), &place)?, version)))
    }

    pub(crate) async fn update(&self, key: &SecretKey, mutation: &Mutation) -> Result<()> {
        for _ in 0..SWAPS {
            let (mut document, version) = self.load_at(key).await?.unwrap_or_default();
            if !document.apply(mutation)? {
                return Ok(());
            }
            if version == 0 {
                // Before the first text is written, so that none ever stays behind.
                let path = format!("{}/metadata/{}/{key}", self.kv_mount, self.path);
                match self.call(Method::POST, &path, Some(json!({ "max_versions": 1 }))).await? {
                    Answer::Yes(_) => {}
                    Answer::Missing => return Err(self.no_kv()),
                    Answer::Refused(words) => return Err(Error::Denied(words)),
                }
            }
            let text = document.to_json()?;
            let text = std::str::from_utf8(&text).map_err(Error::unavailable)?;
            let body = json!({ "data": { "format": 1, "document": text }, "options": { "cas": version } });
            let path = format!("{}/data/{}/{key}", self.kv_mount, self.path);
            match self.call(Method::POST, &path, Some(body)).await? {
                Answer::Yes(_) => return Ok(()),
                Answer::Missing => return Err(self.no_kv()),
                // Another writer came between; decide again on what it left.
                Answer::Refused(words) if words.contains("check-and-set") => {}
                Answer::Refused(words) => return Err(Error::Denied(words)),
            }
        }
        Err(Error::unavailable("lost the swap to other writers again and again"))
    }

    pub(crate) async fn delete(&self, key: &SecretKey) -> Result<()> {
        let path = format!("{}/metadata/{}/{key}", self.kv_mount, self.path);
        match self.call(Method::DELETE, &path, None).await? {
            Answer::Yes(_) | Answer::Missing => Ok(()),
            Answer::Refused(words) => Err(Error::Denied(words)),
        }
    }

    pub(crate) async fn seal(&self, aad: &[u8], plaintext: &Secret<Vec<u8>>) -> Result<Vec<u8>> {
        let body = json!({
            "plaintext": STANDARD.encode(plaintext.expose()),
            "associated_data": STANDARD.encode(aad),
        });
        let path = format!("{}/encrypt/{}", self.transit, self.transit_key);
        match self.call(Method::POST, &path, Some(body)).await? {
            Answer::Yes(answer) => answer["data"]["ciphertext"]
                .as_str()
                .map(|text| text.as_bytes().to_vec())
                .ok_or_else(|| Error::unavailable("Transit answered without a ciphertext")),
            Answer::Missing => Err(Error::Denied("there is no Transit engine".into())),
            Answer::Refused(words) => Err(Error::Denied(words)),
        }
    }

    pub(crate) async fn unseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>> {
        // Shape first: what is no ciphertext of Transit's need not travel.
        let text = std::str::from_utf8(sealed).ok().filter(|text| text.starts_with("vault:v"));
        let body =
            json!({ "ciphertext": text.ok_or(Error::DoesNotOpen)?, "associated_data": STANDARD.encode(aad) });
        let path = format!("{}/decrypt/{}", self.transit, self.transit_key);
        match self.call(Method::POST, &path, Some(body)).await? {
            Answer::Yes(mut answer) => {
                let Value::String(text) = answer["data"]["plaintext"].take() else {
                    return Err(Error::DoesNotOpen);
                };
                let text = Zeroizing::new(text);
                STANDARD.decode(text.as_bytes()).map(Secret::new).map_err(|_| Error::DoesNotOpen)
            }
            // Transit says 400 to an altered text, a wrong key version and wrong associated data alike.
            Answer::Refused(_) => Err(Error::DoesNotOpen),
            Answer::Missing => Err(Error::Denied("there is no Transit engine".into())),
        }
    }

    pub(crate) async fn rotate(&self) -> Result<SealingKey> {
        let path = format!("{}/keys/{}/rotate", self.transit, self.transit_key);
        match self.call(Method::POST, &path, Some(json!({}))).await? {
            Answer::Yes(_) => self.health().await,
            Answer::Missing => Err(Error::Denied("there is no Transit key to rotate".into())),
            Answer::Refused(words) => Err(Error::Denied(words)),
        }
    }

    pub(crate) async fn health(&self) -> Result<SealingKey> {
        let path = format!("{}/keys/{}", self.transit, self.transit_key);
        let Answer::Yes(answer) = self.call(Method::GET, &path, None).await? else {
            return Err(Error::Denied(format!("the Transit key {path} can't be read")));
        };
        let version = answer["data"]["latest_version"].as_u64().unwrap_or(0);
        let made = answer["data"]["keys"][version.to_string()].as_i64().unwrap_or(0);
        Ok(SealingKey { id: format!("v{version}"), created_at: Timestamp::from_seconds(made) })
    }

    fn no_kv(&self) -> Error {
        Error::Setup(format!("there is no KV version 2 engine at {}; enable one", self.kv_mount))
    }

    /// One request, never repeated: the caller decides whether its meaning allows that.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map(Zeroizing::new)
            .map_err(|error| Error::io("reading the token file", &self.token_file, &error))?;
        let mut request = self
            .http
            .request(method, format!("{}/v1/{path}", self.address))
            .header("X-Vault-Token", token.trim())
            .header("X-Vault-Request", "true");
        if !self.namespace.is_empty() {
            request = request.header("X-Vault-Namespace", &self.namespace);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        // `without_url`: the address is ours, but a key names a person's connection.
        let mut response = request.send().await.map_err(|error| Error::unavailable(error.without_url()))?;
        let status = response.status();
        let mut text = Zeroizing::new(Vec::with_capacity(16 * 1024));
        while let Some(chunk) =
            response.chunk().await.map_err(|error| Error::unavailable(error.without_url()))?
        {
            if text.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Error::unavailable("the answer is longer than any secret"));
            }
            text.extend_from_slice(&chunk);
        }
        let words = || {
            let parsed: Value = serde_json::from_slice(&text).unwrap_or_default();
            let errors = parsed["errors"].as_array().cloned().unwrap_or_default();
            let joined = errors.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ");
            gatehouse_core::redact(&joined).chars().take(300).collect::<String>()
        };
        match status {
            StatusCode::NO_CONTENT => Ok(Answer::Yes(Value::Null)),
            status if status.is_success() => {
                let value =
                    serde_json::from_slice(&text).map_err(|_| Error::unavailable("the answer is no JSON"))?;
                Ok(Answer::Yes(value))
            }
            StatusCode::NOT_FOUND => Ok(Answer::Missing),
            StatusCode::BAD_REQUEST => Ok(Answer::Refused(words())),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(Error::Denied(words())),
            status => Err(Error::unavailable(format!("status {status}: {}", words()))),
        }
    }
}
