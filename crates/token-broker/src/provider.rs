//! Calls to an upstream's endpoints: one request each, never repeated, answers taken as bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Clock, Error, Result, Secret};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::redirect;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::config::{ClientAuthentication, Config, Upstream};
use crate::domain::answer::{MAX_BODY_BYTES, RawAnswer};
use crate::domain::scopes::Scopes;

/// What an attempt gave when it gave no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// It did not leave this machine: the token was not shown.
    NotSent(reqwest::Error),
    /// It may have been received: the token may be used up.
    Unknown(Box<dyn std::error::Error + Send + Sync>),
}

impl Silence {
    /// For logs and audit events.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NotSent(_) => "unreachable",
            Self::Unknown(_) => "answer_lost",
        }
    }

    /// What the HTTP client says, for our log: it names no token.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::NotSent(error) => format!("{error:?}"),
            Self::Unknown(error) => format!("{error:?}"),
        }
    }
}

/// The configured upstreams with their secrets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Providers(Arc<BTreeMap<String, Provider>>);

pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) settings: Upstream,
    secret: Option<Secret<String>>,
    http: reqwest::Client,
    clock: Clock,
}

impl Providers {
    /// Reads the client secrets and makes the HTTP clients.
    pub(crate) fn open(config: &Config, clock: &Clock) -> Result<Self> {
        // The process may have chosen a provider already; either will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let providers = config
            .upstreams
            .iter()
            .map(|(name, settings)| {
                let secret = settings.client_secret_file.as_ref().map(|file| {
                    std::fs::read_to_string(file).map(|text| Secret::new(text.trim().to_owned())).map_err(
                        |error| {
                            Error::failed_precondition(
                                "CLIENT_SECRET_UNREADABLE",
                                format!("token_broker.upstreams.{name}.client_secret_file can't be read."),
                            )
                            .caused_by(error)
                        },
                    )
                });
                let http = reqwest::Client::builder()
                    .timeout(settings.timeout())
                    .connect_timeout(settings.timeout() / 2)
                    // A refresh token must not follow a redirect to wherever.
                    .redirect(redirect::Policy::none())
                    .referer(false)
                    .retry(reqwest::retry::never())
                    // A kept connection that the provider closes as we send leaves open whether the token was used:
                    // each call has its own, so that a silence is the provider's and no accident of ours.
                    .pool_max_idle_per_host(0)
                    .build()
                    .map_err(Error::internal)?;
                let provider = Provider {
                    name: name.clone(),
                    settings: settings.clone(),
                    secret: secret.transpose()?,
                    http,
                    clock: clock.clone(),
                };
                Ok((name.clone(), provider))
            })
            .collect::<Result<_>>()?;
        Ok(Self(Arc::new(providers)))
    }

    /// The upstream of that name.
    pub(crate) fn get(&self, name: &str) -> Result<&Provider> {
        self.0.get(name).ok_or_else(|| {
            Error::not_found(
                "UPSTREAM_NOT_FOUND",
                "There is no such upstream. The list of upstreams names those there are.",
            )
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.0.values()
    }
}

impl Provider {
    /// Where to send the browser (RFC 6749, section 4.1.1; RFC 7636, section 4.3).
    pub(crate) fn authorization_url(
        &self,
        callback: &str,
        scopes: &Scopes,
        state: &str,
        challenge: &str,
    ) -> Result<Url> {
        let mut url = Url::parse(&self.settings.authorization_endpoint).map_err(Error::internal)?;
        url.query_pairs_mut()
            .extend_pairs(&self.settings.authorization_parameters)
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.settings.client_id)
            .append_pair("redirect_uri", callback)
            .append_pair("scope", &scopes.to_string())
            .append_pair("state", state)
            .append_pair("code_challenge", challenge)
            .append_pair("code_challenge_method", "S256");
        Ok(url)
    }

    /// Exchanges a code (RFC 6749, section 4.1.3).
    pub(crate) async fn exchange(
        &self,
        callback: &str,
        code: &str,
        verifier: &str,
    ) -> Result<RawAnswer, Silence> {
        let fields = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", callback),
            ("code_verifier", verifier),
        ];
        self.post(&self.settings.token_endpoint, &fields).await
    }

    /// Shows a refresh token once (RFC 6749, section 6). `scopes`: only where fewer than granted are wanted.
    pub(crate) async fn refresh(&self, token: &str, scopes: Option<&Scopes>) -> Result<RawAnswer, Silence> {
        let scopes = scopes.map(Scopes::to_string);
        let mut fields = vec![("grant_type", "refresh_token"), ("refresh_token", token)];
        fields.extend(scopes.as_deref().map(|scopes| ("scope", scopes)));
        self.post(&self.settings.token_endpoint, &fields).await
    }

    /// Revokes a refresh token (RFC 7009); whether the provider confirmed it.
    pub(crate) async fn revoke(&self, token: &str) -> bool {
        if self.settings.revocation_endpoint.is_empty() {
            return false;
        }
        let fields = [("token", token), ("token_type_hint", "refresh_token")];
        match self.post(&self.settings.revocation_endpoint, &fields).await {
            Ok(answer) => (200..300).contains(&answer.status),
            Err(silence) => {
                tracing::info!(
                    upstream = self.name,
                    cause = silence.cause(),
                    "the upstream did not confirm a revocation"
                );
                false
            }
        }
    }

    fn request(&self, address: &str, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let mut form = Serializer::new(String::new());
        form.extend_pairs(fields);
        let mut request = self.http.post(address).header(ACCEPT, "application/json");
        match (&self.secret, self.settings.client_authentication) {
            (Some(secret), ClientAuthentication::Basic) => {
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(&self.settings.client_id), encoded(secret.expose()));
                request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)));
            }
            (Some(secret), ClientAuthentication::Post) => {
                form.append_pair("client_id", &self.settings.client_id)
                    .append_pair("client_secret", secret.expose());
            }
            (None, _) => {
                form.append_pair("client_id", &self.settings.client_id);
            }
        }
        request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.finish())
    }

    async fn post(&self, address: &str, fields: &[(&str, &str)]) -> Result<RawAnswer, Silence> {
        let request = self.request(address, fields);
        let mut response = request.send().await.map_err(|error| {
            let error = error.without_url();
            if error.is_connect() || error.is_builder() {
                Silence::NotSent(error)
            } else {
                Silence::Unknown(Box::new(error))
            }
        })?;
        let status = response.status().as_u16();
        let mut body = Secret::new(Vec::with_capacity(4096));
        loop {
            match response.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) if body.expose().len() + chunk.len() <= MAX_BODY_BYTES => {
                    body = Secret::new([&body.expose()[..], &chunk].concat());
                }
                Ok(Some(_)) => return Err(Silence::Unknown("the answer is longer than any token".into())),
                Err(error) => return Err(Silence::Unknown(Box::new(error.without_url()))),
            }
        }
        Ok(RawAnswer { status, received_at: self.clock.now(), body })
    }

    /// How long a call may take.
    pub(crate) const fn timeout(&self) -> Duration {
        self.settings.timeout()
    }
}
