//! People with connections to upstreams, who ask for tokens in every way there is, and connect again when they are told to.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use gatehouse_client::{
    Authorized, Channel, ChannelConfig, ClientCredentials, TokenSource, audience, channel, from_status,
};
use gatehouse_core::{Clock, Entropy, Secret};
use gatehouse_proto::auth::v1::ExchangeTokenRequest;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::token_broker::v1::GetAccessTokenRequest;
use gatehouse_proto::token_broker::v1::token_broker_service_client::TokenBrokerServiceClient;
use gatehouse_testkit::{Cluster, OAuthProvider};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The internal service that acts for people.
pub(super) const ASSISTANT: &str = "assistant";
/// More than the providers' tokens ever live: as these brokers are configured, each call then needs a new one.
const NEVER_ENOUGH: i32 = 600;
const PASSWORD: &str = "nine purple teapots in a row";

/// How someone asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The person, through the balancer and a gateway.
    Gateway,
    /// The assistant by gRPC, with a token that says for whom it acts.
    Acting,
    /// The assistant by gRPC, with an offline grant.
    Offline,
}

/// What they were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Token(String),
    /// Connect again.
    NeedsConsent,
    /// Try again later.
    PutOff(String),
    /// No whole answer.
    Lost(String),
    /// The time ran out: as it may where a broker was frozen meanwhile.
    Late(String),
    Wrong(String),
}

/// A call and what came of it.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "a failed test shows all of it")]
pub(super) struct Call {
    pub(super) connection: usize,
    pub(super) way: Way,
    pub(super) forced: bool,
    pub(super) began: Instant,
    pub(super) took: Duration,
    pub(super) told: Told,
}

/// A person's connection to an upstream. Every person has a tenant and one connection.
pub(super) struct Connection {
    pub(super) access: String,
    pub(super) upstream: &'static str,
    pub(super) id: String,
    grant: String,
    /// The codes that the provider gave for this person's consents.
    pub(super) codes: Mutex<Vec<String>>,
    consent: tokio::sync::Mutex<()>,
}

/// The way in, from outside and from inside.
pub(super) struct Doors {
    base: String,
    http: Client,
    auth: TokenServiceClient<Authorized>,
    broker: Channel,
    tokens: TokenSource,
}

impl Doors {
    pub(super) fn of(cluster: &Cluster, secret: &str) -> Self {
        let to = |service: &str| {
            let replicas = cluster.replicas(service);
            let endpoints =
                replicas.iter().map(|name| format!("http://{}", cluster.node(name).address)).collect();
            let config = ChannelConfig { endpoints, request_timeout_ms: 20_000, ..ChannelConfig::default() };
            channel(&config).unwrap()
        };
        let credentials =
            ClientCredentials { client_id: ASSISTANT.into(), client_secret: Secret::new(secret.into()) };
        let tokens = TokenSource::new(to("auth"), credentials, Clock::system());
        let auth = Authorized::as_client(to("auth"), tokens.clone(), audience::AUTH);
        let http = Client::builder()
            .timeout(Duration::from_secs(20))
            .pool_idle_timeout(Duration::from_millis(250))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        let broker = to("token-broker");
        Self { base: cluster.url(), http, auth: TokenServiceClient::new(auth), broker, tokens }
    }

    /// Status and body, or why there are none.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        access: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), String> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !access.is_empty() {
            request = request.bearer_auth(access);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Somebody new, connected to `upstream`, who lets the assistant act for them. Nothing fails meanwhile.
    pub(super) async fn person(
        &self,
        name: &str,
        upstream: &'static str,
        provider: &OAuthProvider,
    ) -> Connection {
        let mut body = json!({"email": format!("{name}@example.org"), "password": PASSWORD});
        let session = body.clone();
        body["tenant_name"] = json!(name);
        let (status, made) = self.call(Method::POST, "/v1/auth/register", "", Some(&body)).await.unwrap();
        assert_eq!(status, 201, "{made}");
        let (status, tokens) = self.call(Method::POST, "/v1/auth/sign-in", "", Some(&session)).await.unwrap();
        assert_eq!(status, 200, "{tokens}");
        let access = tokens["access_token"].as_str().unwrap().to_owned();
        let mut connection = Connection {
            access,
            upstream,
            id: String::new(),
            grant: String::new(),
            codes: Mutex::default(),
            consent: tokio::sync::Mutex::default(),
        };
        connection.id = self.connect(&connection, provider).await.unwrap();
        let body = json!({"connection_id": connection.id, "client_id": ASSISTANT});
        let made = self.call(Method::POST, "/v1/offline-grants", &connection.access, Some(&body));
        let (status, grant) = made.await.unwrap();
        assert_eq!(status, 201, "{grant}");
        connection.grant = grant["offline_grant_id"].as_str().unwrap().into();
        connection
    }

    /// A consent from its begin to its end; the connection's id.
    pub(super) async fn connect(
        &self,
        connection: &Connection,
        provider: &OAuthProvider,
    ) -> Result<String, String> {
        let body = json!({"upstream": connection.upstream});
        let begun = self.call(Method::POST, "/v1/connections", &connection.access, Some(&body)).await?;
        if begun.0 != 201 {
            return Err(begun.1.to_string());
        }
        let url = begun.1["authorization_url"].as_str().unwrap();
        assert!(url.starts_with(provider.base_url()), "{url}");
        let consented = self.http.get(url).send().await.map_err(|error| format!("{error:?}"))?;
        let location = consented.headers()["location"].to_str().unwrap().to_owned();
        let query = location.split_once('?').unwrap().1;
        let code = query.split('&').find_map(|pair| pair.strip_prefix("code=")).unwrap();
        connection.codes.lock().unwrap().push(code.to_owned());
        let path = format!("/v1/connections/callback?{query}");
        let (status, connected) = self.call(Method::GET, &path, &connection.access, None).await?;
        match connected["connection_id"].as_str() {
            Some(id) if status == 200 => Ok(id.to_owned()),
            _ => Err(connected.to_string()),
        }
    }

    /// Asks for a token of the connection.
    pub(super) async fn ask(&self, connection: &Connection, way: Way, forced: bool) -> Told {
        let remaining = if forced { NEVER_ENOUGH } else { 0 };
        match way {
            Way::Gateway => self.ask_gateway(connection, remaining).await,
            Way::Acting => {
                let request = ExchangeTokenRequest {
                    subject_token: connection.access.clone(),
                    audience: audience::TOKEN_BROKER.into(),
                    act_for_subject: true,
                };
                // Auth is always well here.
                match self.auth.clone().exchange_token(request).await {
                    Ok(token) => {
                        let token = Secret::new(token.into_inner().access_token);
                        let channel = Authorized::with_token(self.broker.clone(), token);
                        ask_broker(channel, connection, remaining, "").await
                    }
                    Err(status) => Told::Wrong(format!("exchange: {status:?}")),
                }
            }
            Way::Offline => {
                let channel =
                    Authorized::as_client(self.broker.clone(), self.tokens.clone(), audience::TOKEN_BROKER);
                ask_broker(channel, connection, remaining, &connection.grant).await
            }
        }
    }

    async fn ask_gateway(&self, connection: &Connection, remaining: i32) -> Told {
        let path = format!("/v1/connections/{}/token", connection.upstream);
        let body = json!({"min_remaining_seconds": remaining});
        match self.call(Method::POST, &path, &connection.access, Some(&body)).await {
            Ok((StatusCode::OK, token)) => Told::Token(token["access_token"].as_str().unwrap().to_owned()),
            Ok((_, problem)) if problem["reason"] == "NEEDS_REAUTHORIZATION" => Told::NeedsConsent,
            Ok((StatusCode::SERVICE_UNAVAILABLE, problem)) => Told::PutOff(problem.to_string()),
            Ok((StatusCode::GATEWAY_TIMEOUT, problem)) => Told::Late(problem.to_string()),
            Ok((status, problem)) => Told::Wrong(format!("{status}: {problem}")),
            Err(error) => Told::Lost(error),
        }
    }

    /// Asks until stopped, in one way, sometimes for a token that must be fresh; connects again when told to.
    pub(super) async fn keep_asking(
        &self,
        place: usize,
        connection: &Connection,
        provider: &OAuthProvider,
        (way, random): (Way, Entropy),
        book: &Mutex<Vec<Call>>,
        stop: &CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let ask = async |forced| {
                let began = Instant::now();
                let told = self.ask(connection, way, forced).await;
                let needs_consent = told == Told::NeedsConsent;
                let call = Call { connection: place, way, forced, began, took: began.elapsed(), told };
                book.lock().unwrap().push(call);
                needs_consent
            };
            if ask(random.below(3) > 0).await {
                // One at a time: two who consent at once are two consents, and the first may have done.
                let _one = connection.consent.lock().await;
                if ask(false).await {
                    // It may fail as anything does here; they are told again then.
                    let _ = self.connect(connection, provider).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(20 + random.below(130))).await;
        }
    }
}

async fn ask_broker(channel: Authorized, connection: &Connection, remaining: i32, grant: &str) -> Told {
    let request = GetAccessTokenRequest {
        upstream: connection.upstream.into(),
        min_remaining_seconds: remaining,
        offline_grant_id: grant.into(),
        ..GetAccessTokenRequest::default()
    };
    match TokenBrokerServiceClient::new(channel).get_access_token(request).await {
        Ok(token) => Told::Token(token.into_inner().access_token),
        Err(status) => {
            let unavailable = status.code() == tonic::Code::Unavailable;
            let error = from_status(status);
            match error.reason() {
                "NEEDS_REAUTHORIZATION" => Told::NeedsConsent,
                "CONNECTION_LOST" => Told::Lost(format!("{error:?}")),
                "DEADLINE_EXCEEDED" => Told::Late(format!("{error:?}")),
                _ if unavailable => Told::PutOff(format!("{error:?}")),
                _ => Told::Wrong(format!("{error:?}")),
            }
        }
    }
}
