//! A gateway on real sockets before fakes of the four services: real gRPC servers of the generated traits.
#![expect(dead_code, reason = "each test file uses its part")]

mod audit;
mod auth;
mod broker;
pub(crate) mod http2;
mod job;

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use futures_util::StreamExt as _;
use gatehouse_client::{
    ChannelConfig, ClientCredentials, TokenSource, audience, channel, stream_channel, to_status,
};
use gatehouse_core::ids::{CredentialId, PersonId, SessionId, TenantId};
use gatehouse_core::{Clock, Entropy, Environment, Error, Secret};
use gatehouse_gateway::{Config, Deps, Listeners, RunningGateway, StreamChannels, Upstreams, build};
use gatehouse_proto::audit::v1::audit_service_server::AuditServiceServer;
use gatehouse_proto::auth::v1::account_service_server::AccountServiceServer;
use gatehouse_proto::auth::v1::api_key_service_server::ApiKeyServiceServer;
use gatehouse_proto::auth::v1::tenant_service_server::TenantServiceServer;
use gatehouse_proto::auth::v1::token_service_server::TokenServiceServer;
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, IssueTokenRequest, IssueTokenResponse, Origin, Revocation,
    RevocationKind, TokenPair,
};
use gatehouse_proto::job::v1::job_service_server::JobServiceServer;
use gatehouse_proto::job::v1::{
    JobEvent, JobEventType, SubmitJobRequest, WatchJobEventsRequest, WatchJobEventsResponse,
};
use gatehouse_proto::token_broker::v1::token_broker_service_server::TokenBrokerServiceServer;
use gatehouse_ratelimit::{Limiter, RateLimits, Rules, SubjectKey};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{Claims, KeySet, Lifecycle, Readiness, Revocations, Verifier};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use tokio::sync::{Notify, watch};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub(crate) const JOB: &str = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e";
pub(crate) const ISSUER: &str = "https://gatehouse.test/dev";
const KEY_ID: &str = "k1";

/// What the services saw and what they are to do.
#[derive(Default)]
pub(crate) struct Script {
    /// Calls by name, in order.
    pub(crate) calls: Vec<String>,
    /// `authorization`, `x-request-id` and `traceparent` of every call, with its path.
    pub(crate) seen: Vec<(String, HashMap<String, String>)>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) submitted: Vec<SubmitJobRequest>,
    pub(crate) listed_events: Vec<gatehouse_proto::audit::v1::ListEventsRequest>,
    /// Failures to come, by call.
    pub(crate) failures: HashMap<&'static str, VecDeque<Status>>,
    /// Calls that wait until the notify, by name.
    pub(crate) held: HashMap<&'static str, Arc<Notify>>,
    /// Credentials that auth knows.
    known: HashMap<String, Claims>,
    /// The job's log.
    pub(crate) events: Vec<JobEvent>,
    /// What a job's result is, as JSON; empty for a short one.
    pub(crate) result: String,
    /// How watch streams are to end: after so many events, with this status.
    pub(crate) breaks: VecDeque<(usize, Option<Status>)>,
    /// Whether watch streams begin from the first event whatever the cursor says.
    pub(crate) repeats: bool,
    /// How many events, from the first, are of lives of the job before a retry.
    pub(crate) retried: usize,
    /// Cursors that watch streams were opened with.
    pub(crate) cursors: Vec<i64>,
}

#[derive(Clone)]
pub(crate) struct Fake(pub(crate) Shared);

#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Script>>, watch::Sender<usize>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Watch streams that are open now.
    pub(crate) fn watchers(&self) -> usize {
        self.1.receiver_count()
    }
}

impl Fake {
    async fn enter(&self, call: &'static str) -> Result<(), Status> {
        let held = {
            let mut script = self.0.lock();
            script.calls.push(call.to_owned());
            if let Some(status) = script.failures.get_mut(call).and_then(VecDeque::pop_front) {
                return Err(status);
            }
            script.held.get(call).cloned()
        };
        if let Some(held) = held {
            held.notified().await;
        }
        Ok(())
    }

    fn pair() -> TokenPair {
        TokenPair {
            access_token: "access".into(),
            access_token_expires_at: Clock::system().now().plus(Duration::from_secs(300)).as_micros(),
            refresh_token: "refresh".into(),
            ..TokenPair::default()
        }
    }

    fn issue(request: &IssueTokenRequest) -> Result<Response<IssueTokenResponse>, Status> {
        if request.client_secret == "wrong" {
            return Err(to_status(&Error::unauthenticated("INVALID_CLIENT", "No such client.")));
        }
        if request.client_id == "narrow" && !request.scope.is_empty() {
            return Err(to_status(&Error::invalid_argument("INVALID_SCOPE", "It does not hold that there.")));
        }
        let claims = claims(&format!("client:{}", request.client_id), &request.audience, 300);
        let expires_at = claims.exp * 1_000_000;
        Ok(Response::new(IssueTokenResponse {
            access_token: sign(&claims),
            expires_at,
            scope: request.scope.clone(),
        }))
    }

    fn exchange(&self, request: &ExchangeTokenRequest) -> Result<Response<ExchangeTokenResponse>, Status> {
        let Some(mut claims) = self.0.lock().known.get(&request.subject_token).cloned() else {
            return Err(to_status(&Error::unauthenticated("SUBJECT_TOKEN_INVALID", "Unknown.")));
        };
        let subject_expires_at = if claims.cid.is_some() { 0 } else { claims.exp * 1_000_000 };
        let now = Clock::system().now();
        claims.aud.clone_from(&request.audience);
        claims.exp = now.as_seconds() + 60;
        if claims.cid.is_some() {
            claims.iat_us = now.as_micros();
        }
        Ok(Response::new(ExchangeTokenResponse {
            access_token: sign(&claims),
            expires_at: claims.exp * 1_000_000,
            subject_expires_at,
            ..ExchangeTokenResponse::default()
        }))
    }

    #[expect(clippy::unnecessary_wraps, reason = "the answer of a method")]
    fn watch(
        &self,
        request: Request<WatchJobEventsRequest>,
    ) -> Result<
        Response<<Self as gatehouse_proto::job::v1::job_service_server::JobService>::WatchJobEventsStream>,
        Status,
    > {
        let request = request.into_inner();
        let (mut cursor, mut ending) = {
            let mut script = self.0.lock();
            script.cursors.push(request.after_sequence);
            let cursor = if script.repeats { 0 } else { request.after_sequence };
            (usize::try_from(cursor).unwrap_or(0), script.breaks.pop_front())
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (shared, mut changed) = (self.0.clone(), self.0.1.subscribe());
        tokio::spawn(async move {
            let mut sent = 0;
            loop {
                changed.borrow_and_update();
                let next = shared.lock().events.get(cursor).cloned();
                if let Some((after, status)) = &ending
                    && sent >= *after
                {
                    if let Some(status) = status.clone() {
                        let _ = sender.send(Err(status)).await;
                    }
                    return;
                }
                let Some(event) = next else {
                    tokio::select! {
                        news = changed.changed() => if news.is_err() { return },
                        () = sender.closed() => return,
                    }
                    continue;
                };
                let is_end = event.r#type == JobEventType::End as i32;
                let last = is_end && cursor >= shared.lock().retried;
                let breaks_now = ending.as_ref().is_some_and(|(after, _)| *after == sent + 1);
                let sent_now = sender.send(Ok(WatchJobEventsResponse { events: vec![event] })).await;
                if sent_now.is_err() || last && !breaks_now {
                    return;
                }
                cursor += 1;
                sent += 1;
                if ending.as_ref().is_some_and(|(after, _)| *after == usize::MAX) {
                    ending = None;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed()))
    }
}

/// Claims of a live token.
pub(crate) fn claims(sub: &str, aud: &str, seconds: i64) -> Claims {
    let now = Clock::system().now();
    Claims {
        iss: ISSUER.into(),
        sub: sub.into(),
        aud: aud.into(),
        exp: now.as_seconds() + seconds,
        iat: now.as_seconds(),
        iat_us: now.as_micros(),
        nbf: now.as_seconds(),
        jti: "t".into(),
        auth_time: None,
        token_use: "access".into(),
        scope: String::new(),
        username: None,
        email: None,
        email_verified: None,
        tid: None,
        sid: None,
        cid: None,
        client_id: None,
        client_iat_us: None,
        act: None,
        roles: vec![],
        permissions: vec![],
    }
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn jwks() -> String {
    let x = URL_SAFE_NO_PAD.encode(signing_key().verifying_key().as_bytes());
    format!(
        r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","use":"sig","alg":"EdDSA","kid":"{KEY_ID}","x":"{x}"}}]}}"#
    )
}

pub(crate) fn sign(claims: &Claims) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some("at+jwt".into());
    header.kid = Some(KEY_ID.into());
    let der = signing_key().to_pkcs8_der().expect("a key");
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).expect("a token")
}

/// A running gateway and what stands behind it.
pub(crate) struct World {
    pub(crate) services: Shared,
    pub(crate) gateway: RunningGateway,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) revocations: Revocations,
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) job_address: SocketAddr,
    behind: Lifecycle,
    sequence: std::sync::atomic::AtomicI64,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_listening(change, |_| {}, None, None).await
    }

    /// Before services that take `streams` streams at a time on each connection, although the gateway expects more.
    pub(crate) async fn start_crowded(streams: u32) -> Self {
        Self::start_listening(|config| config.sse.keep_alive_s = 1, |_| {}, None, Some(streams)).await
    }

    pub(crate) async fn start_limited(limit: impl FnOnce(&mut Rules)) -> Self {
        Self::start_listening(|_| {}, limit, None, None).await
    }

    pub(crate) async fn start_https(folder: &std::path::Path) -> Self {
        Self::start_https_with(folder, |_| {}).await
    }

    pub(crate) async fn start_https_with(folder: &std::path::Path, change: impl FnOnce(&mut Config)) -> Self {
        let identity = gatehouse_gateway::tls::Identity::development(folder).expect("a certificate");
        Self::start_listening(change, |_| {}, Some(identity), None).await
    }

    /// Without limits on requests.
    pub(crate) async fn start_https_unlimited(folder: &std::path::Path) -> Self {
        Self::start_https_unlimited_with(folder, |_| {}).await
    }

    /// The same, where the tests are a proxy that others come through.
    pub(crate) async fn start_https_behind_a_proxy(folder: &std::path::Path) -> Self {
        Self::start_https_behind_a_proxy_with(folder, |_| {}).await
    }

    pub(crate) async fn start_https_behind_a_proxy_with(
        folder: &std::path::Path,
        more: impl FnOnce(&mut Config),
    ) -> Self {
        let change = |config: &mut Config| {
            config.trusted_proxies = vec!["127.0.0.0/8".into()];
            more(config);
        };
        Self::start_https_unlimited_with(folder, change).await
    }

    async fn start_https_unlimited_with(folder: &std::path::Path, more: impl FnOnce(&mut Config)) -> Self {
        let identity = gatehouse_gateway::tls::Identity::development(folder).expect("a certificate");
        let limit = |rules: &mut Rules| {
            rules.classes.clear();
            rules.ip.capacity = 1_000_000;
            rules.person.capacity = 1_000_000;
        };
        let change = |config: &mut Config| {
            // A client that asks faster than it reads may have more of them open than it is allowed by default, and is not
            // cut off for it while a busy machine is slow to ask.
            config.max_requests_per_connection = 4096;
            config.sse.backpressure_fail_timeout_s = 300;
            config.keep_alive_s = 3600;
            more(config);
        };
        Self::start_listening(change, limit, Some(identity), None).await
    }

    async fn start_listening(
        change: impl FnOnce(&mut Config),
        limit: impl FnOnce(&mut Rules),
        identity: Option<gatehouse_gateway::tls::Identity>,
        streams: Option<u32>,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let services = Shared(Arc::default(), watch::Sender::new(0));
        let behind = Lifecycle::new();
        let mut addresses = Vec::new();
        for _ in 0..4 {
            addresses.push(serve(&services, &behind, streams).await);
        }
        let config = |index: usize| ChannelConfig {
            // A machine that stands still for a moment must not look like a service that died.
            keep_alive_timeout_ms: 60_000,
            ..ChannelConfig::to(format!("http://{}", addresses[index]))
        };
        let to = |index: usize| channel(&config(index)).expect("a channel");
        let streams_to_job = stream_channel(&config(2), 4096);
        let job_streams = StreamChannels::new(vec![streams_to_job.expect("a channel")], 4096);
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let keys = KeySet::default();
        keys.replace(&jwks()).expect("keys");
        let revocations = Revocations::new(
            clock.clone(),
            Staleness { all: Duration::from_secs(600), ..Staleness::default() },
        );
        revocations.apply(&[], 0, true);
        let mut config = Config { address: "127.0.0.1:0".into(), workers: 2, ..Config::default() };
        change(&mut config);
        let mut rules = Rules::default();
        limit(&mut rules);
        let limiter = Limiter::memory(clock.clone(), SubjectKey::new([1; 32]));
        let lifecycle = Lifecycle::new();
        let credentials =
            ClientCredentials { client_id: "gateway".into(), client_secret: Secret::new("s".into()) };
        let deps = Deps {
            environment: Environment::Dev,
            issuer: ISSUER.into(),
            clock: clock.clone(),
            entropy,
            upstreams: Upstreams { auth: to(0), token_broker: to(1), job: to(2), audit: to(3), job_streams },
            tokens: TokenSource::new(to(0), credentials, clock.clone()),
            verifier: Verifier::new(ISSUER, audience::GATEWAY, keys, revocations.clone(), clock),
            rate_limits: RateLimits::new(limiter, rules, Environment::Dev).expect("rules"),
            readiness: Readiness::new(),
            lifecycle: lifecycle.clone(),
        };
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let listeners = Listeners { http: bind(), https: identity.map(|identity| (bind(), identity)) };
        let gateway = build(config, deps, listeners).expect("a gateway");
        Self {
            base: format!("http://{}", gateway.address()),
            services,
            gateway,
            lifecycle,
            revocations,
            http: reqwest::Client::builder().no_proxy().build().expect("a client"),
            job_address: addresses[2],
            behind,
            sequence: 1.into(),
        }
    }

    /// An access token of a person in a tenant, living for `seconds`, and its claims.
    pub(crate) fn person(&self, seconds: i64) -> (String, Claims) {
        self.person_in(TenantId::new(&Clock::system(), &Entropy::system()), seconds)
    }

    /// The same in `tenant`.
    pub(crate) fn person_in(&self, tenant: TenantId, seconds: i64) -> (String, Claims) {
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let mut claims = claims(&PersonId::new(&clock, &entropy).to_string(), audience::GATEWAY, seconds);
        claims.tid = Some(tenant);
        claims.sid = Some(SessionId::new(&clock, &entropy));
        let token = sign(&claims);
        self.services.lock().known.insert(token.clone(), claims.clone());
        (token, claims)
    }

    /// An API key and its claims.
    pub(crate) fn api_key(&self) -> (String, Claims) {
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let id = CredentialId::new(&clock, &entropy);
        let mut claims = claims(&format!("api_key:{id}"), audience::GATEWAY, 3600);
        claims.tid = Some(TenantId::new(&clock, &entropy));
        claims.cid = Some(id);
        let text = format!("gh_dev_ak_{}", id.to_string().replace('-', ""));
        self.services.lock().known.insert(text.clone(), claims.clone());
        (text, claims)
    }

    pub(crate) fn revoke(&self, kind: RevocationKind, id: &str) {
        let now = Clock::system().now();
        let sequence = self.sequence.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let revocation = Revocation {
            sequence,
            kind: kind as i32,
            id: id.into(),
            not_before: now.plus(Duration::from_millis(1)).as_micros(),
            expires_at: now.plus(Duration::from_secs(600)).as_micros(),
        };
        self.revocations.apply(&[revocation], sequence, true);
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    /// Appends to the job's log.
    pub(crate) fn event(&self, kind: JobEventType, data: &str) {
        let mut script = self.services.lock();
        let sequence = i64::try_from(script.events.len()).expect("few") + 1;
        script.events.push(JobEvent {
            sequence,
            r#type: kind as i32,
            occurred_at: 1,
            attempt: 1,
            data_json: data.into(),
        });
        drop(script);
        self.services.1.send_modify(|count| *count += 1);
    }

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.services.lock().calls.iter().filter(|call| *call == name).count()
    }

    pub(crate) fn fail(&self, call: &'static str, status: Status) {
        self.services.lock().failures.entry(call).or_default().push_back(status);
    }
}

async fn serve(services: &Shared, lifecycle: &Lifecycle, streams: Option<u32>) -> SocketAddr {
    let fake = Fake(services.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let routes = Routes::new(AccountServiceServer::new(fake.clone()))
        .add_service(TokenServiceServer::new(fake.clone()))
        .add_service(TenantServiceServer::new(fake.clone()))
        .add_service(ApiKeyServiceServer::new(fake.clone()))
        .add_service(TokenBrokerServiceServer::new(fake.clone()))
        .add_service(JobServiceServer::new(fake.clone()))
        .add_service(AuditServiceServer::new(fake.clone()));
    let services = services.clone();
    let record = tower::util::MapRequestLayer::new(move |request: http::Request<tonic::body::Body>| {
        let text = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let headers =
            ["authorization", "x-request-id", "traceparent"].map(|name| (name.to_owned(), text(name)));
        services.lock().seen.push((request.uri().path().to_owned(), HashMap::from(headers)));
        request
    });
    let stopping = lifecycle.stopping();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(streams)
        .layer(record)
        .add_routes(routes)
        .serve_with_incoming_shutdown(tokio_stream::wrappers::TcpListenerStream::new(listener), async move {
            stopping.cancelled().await;
        });
    lifecycle.spawn(async move {
        let _ = server.await;
    });
    address
}
