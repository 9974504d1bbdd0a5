//! The broker on a socket, a provider beside it, and people and services with tokens of their own.

#![expect(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod stops;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use gatehouse_client::{Authorized, Channel, ChannelConfig, audience, channel, from_status};
use gatehouse_core::ids::{PersonId, SessionId, TenantId};
use gatehouse_core::{Clock, Entropy, Environment, Error, Secret, Timestamp};
use gatehouse_db::{read_tx, sql};
use gatehouse_outbox::Outbox;
use gatehouse_proto::audit::v1::NewEvent;
use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_proto::token_broker::v1::token_broker_service_client::TokenBrokerServiceClient;
use gatehouse_secrets::{SecretKey, Secrets};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{AccessLayer, GrpcServer, KeySet, Lifecycle, Readiness, Revocations, Verifier};
use gatehouse_testkit::TestDb;
use gatehouse_testkit::oauth_provider::{OAuthProvider, Options, Rotation};
use gatehouse_token_broker::config::{Config, Upstream};
use gatehouse_token_broker::domain::policy::Rule;
use gatehouse_token_broker::{Broker, Deps, PACKAGE, Steps};
use prost::Message as _;
use serde_json::{Value, json};

/// The callback of every test.
pub(crate) const CALLBACK: &str = "http://127.0.0.1:9/v1/connections/callback";
/// The upstream's name.
pub(crate) const UPSTREAM: &str = "example";
const ISSUER: &str = "https://gatehouse.test/dev";
/// Access tokens of the provider live so long.
pub(crate) const LIFE: Duration = Duration::from_secs(300);

pub(crate) type Client = TokenBrokerServiceClient<Authorized>;

/// What outlives a process: database, secrets, provider, time.
pub(crate) struct World {
    pub(crate) db: TestDb,
    pub(crate) secrets: Secrets,
    pub(crate) provider: OAuthProvider,
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    pub(crate) revocations: Revocations,
    key: SigningKey,
    keys: KeySet,
    _folder: tempfile::TempDir,
}

/// One process of the broker.
pub(crate) struct Replica {
    pub(crate) broker: Broker,
    pub(crate) lifecycle: Lifecycle,
    channel: Channel,
}

impl Replica {
    /// A client that shows `token`.
    pub(crate) fn client(&self, token: &str) -> Client {
        let token = Secret::new(token.to_owned());
        TokenBrokerServiceClient::new(Authorized::with_token(self.channel.clone(), token))
    }

    pub(crate) async fn stop(&self) {
        assert!(self.lifecycle.drain(Duration::from_secs(20)).await, "the broker did not drain");
    }
}

/// A person with a token for the broker.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: PersonId,
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
}

impl Person {
    pub(crate) fn new() -> Self {
        let (clock, entropy) = (Clock::system(), Entropy::system());
        Self {
            id: PersonId::new(&clock, &entropy),
            tenant: TenantId::new(&clock, &entropy),
            session: SessionId::new(&clock, &entropy),
        }
    }
}

pub(crate) fn class_of(rotation: Rotation) -> String {
    match rotation {
        Rotation::NoRotate => "norotate".into(),
        Rotation::KeepOld => "keepold".into(),
        Rotation::Grace(millis) => format!("grace({})", millis / 1000),
        Rotation::UntilUsed => "until_used".into(),
        Rotation::Strict => "strict".into(),
        Rotation::StrictFamily => "strict_family".into(),
    }
}

impl World {
    pub(crate) async fn new(db: TestDb, rotation: Rotation) -> Self {
        let clock = Clock::settable(Clock::system().now());
        let secrets = Secrets::in_memory(Environment::Dev, clock.clone(), Entropy::system());
        Self::with_secrets(db, rotation, clock, secrets).await
    }

    pub(crate) async fn with_secrets(db: TestDb, rotation: Rotation, clock: Clock, secrets: Secrets) -> Self {
        let options = Options {
            rotation,
            clock: clock.clone(),
            access_token_lifetime: LIFE,
            redirect_uris: vec![CALLBACK.to_owned()],
            ..Options::default()
        };
        let provider = OAuthProvider::start(options.clone()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let secret_file = folder.path().join("client-secret");
        std::fs::write(&secret_file, format!("{}\n", options.client_secret)).unwrap();
        let everything = |client: &str| Rule { client: client.into(), scopes: vec!["*".into()] };
        let upstream = Upstream {
            issuer: provider.base_url().to_owned(),
            authorization_endpoint: provider.authorization_endpoint(),
            token_endpoint: provider.token_endpoint(),
            revocation_endpoint: provider.revocation_endpoint(),
            client_id: options.client_id,
            client_secret_file: Some(secret_file),
            scopes: vec!["offline_access".into(), "read".into()],
            rotation: class_of(rotation).parse().unwrap(),
            allow: vec![
                everything("person"),
                everything("reporter"),
                Rule { client: "reader".into(), scopes: vec!["read".into()] },
            ],
            timeout_ms: 5_000,
            ..Upstream::default()
        };
        let config = Config {
            callback_url: CALLBACK.into(),
            upstreams: [(UPSTREAM.to_owned(), upstream)].into(),
            lease_ms: 10_000,
            // Tests wait for the dead rarely, but then in real time; a renewal itself may take a while on a busy machine.
            wait_ms: 2_000,
            // Sweeps are called by the tests.
            sweep_ms: 60_000,
            ..Config::default()
        };
        assert_eq!(config.validate(Environment::Dev), Vec::<String>::new());
        let key = SigningKey::from_bytes(&Entropy::system().bytes());
        let keys = KeySet::default();
        keys.replace(&jwks(&key)).unwrap();
        let revocations = no_revocations(&clock);
        Self { db, secrets, provider, clock, config, revocations, key, keys, _folder: folder }
    }

    /// Starts a process that is alone.
    pub(crate) async fn start(&self) -> Replica {
        self.start_with(Steps::default(), true).await
    }

    pub(crate) async fn start_with(&self, steps: Steps, sole_replica: bool) -> Replica {
        let (clock, lifecycle) = (self.clock.clone(), Lifecycle::new());
        let deps = Deps {
            db: self.db.db().clone(),
            secrets: self.secrets.clone(),
            outbox: Outbox::new(clock.clone(), Entropy::system()),
            clock: clock.clone(),
            entropy: Entropy::system(),
            revocations: self.revocations.clone(),
            lifecycle: lifecycle.clone(),
            sole_replica,
            steps,
        };
        let verifier = Verifier::new(
            ISSUER,
            audience::TOKEN_BROKER,
            self.keys.clone(),
            self.revocations.clone(),
            clock.clone(),
        );
        let access = AccessLayer::new(&[PACKAGE], verifier, clock, Entropy::system()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = GrpcServer::new(gatehouse_service::grpc::GrpcConfig::default(), access, listener);
        let broker = gatehouse_token_broker::build(self.config.clone(), deps, server, &Readiness::new())
            .await
            .unwrap();
        let config = ChannelConfig {
            // A machine that stands still for a moment must not look like a server that died.
            keep_alive_timeout_ms: 60_000,
            request_timeout_ms: 60_000,
            ..ChannelConfig::to(address)
        };
        Replica { broker, lifecycle, channel: channel(&config).unwrap() }
    }

    /// A token that auth would have signed for the broker.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let now = self.clock.now();
        let mut all = json!({
            "iss": ISSUER, "aud": audience::TOKEN_BROKER, "token_use": "access", "jti": "j",
            "iat": now.as_seconds(), "iat_us": now.as_micros(), "nbf": now.as_seconds() - 1,
            "exp": now.as_seconds() + 100_000_000,
            "permissions": [
                "token-broker.connections.read", "token-broker.connections.manage", "token-broker.tokens.get",
            ],
        });
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(all.to_string()));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    pub(crate) fn person_token(&self, person: &Person) -> String {
        self.token(&json!({ "sub": person.id.to_string(), "tid": person.tenant, "sid": person.session }))
    }

    /// A service that acts for a person.
    pub(crate) fn acting_token(&self, person: &Person, client: &str) -> String {
        self.token(&json!({
            "sub": person.id.to_string(), "tid": person.tenant, "sid": person.session,
            "act": { "sub": format!("client:{client}") },
        }))
    }

    /// A token that a service obtained for a person without being named as the one who acts.
    pub(crate) fn unnamed_token(&self, person: &Person, client: &str) -> String {
        self.token(&json!({
            "sub": person.id.to_string(), "tid": person.tenant, "sid": person.session, "client_id": client,
        }))
    }

    pub(crate) fn client_token(&self, client: &str) -> String {
        self.token(&json!({ "sub": format!("client:{client}") }))
    }

    /// Connects `person`, consent included.
    pub(crate) async fn connect(&self, replica: &Replica, person: &Person) -> Result<pb::Connection, Error> {
        let mut client = replica.client(&self.person_token(person));
        let request = pb::BeginConnectionRequest { upstream: UPSTREAM.into(), scopes: vec![] };
        let begun = client.begin_connection(request).await.map_err(from_status)?.into_inner();
        let callback = consent(&begun.authorization_url).await;
        let completed = client.complete_connection(callback).await.map_err(from_status)?.into_inner();
        Ok(completed.connection.unwrap())
    }

    /// Makes every cached access token end.
    pub(crate) fn expire_access_tokens(&self) {
        self.clock.advance(LIFE + Duration::from_secs(1));
    }

    /// The refresh token that the broker would show next.
    pub(crate) async fn current(&self, person: &Person, connection: &str) -> Option<String> {
        let key = Self::secret_key(person, connection);
        let current = self.secrets.get_current(&key).await.unwrap()?;
        Some(String::from_utf8(current.value.expose().clone()).unwrap())
    }

    pub(crate) fn secret_key(person: &Person, connection: &str) -> SecretKey {
        SecretKey::new(format!("token-broker/connections/{}/{connection}", person.tenant)).unwrap()
    }

    /// What the outbox holds, in order: action, outcome, reason.
    pub(crate) async fn events(&self) -> Vec<NewEvent> {
        let rows = read_tx!(self.db, "test.events", |tx| { tx.fetch_all(&EVENTS, vec![]).await }).unwrap();
        rows.iter().map(|row| NewEvent::decode(&*row.get::<Vec<u8>>("event").unwrap()).unwrap()).collect()
    }

    /// All attempts on all connections, in order: state and failure.
    pub(crate) async fn rotation_states(&self) -> Vec<String> {
        let rows =
            read_tx!(self.db, "test.rotations", |tx| { tx.fetch_all(&ROTATIONS, vec![]).await }).unwrap();
        rows.iter()
            .map(|row| {
                let failure = row.get::<Option<String>>("failure").unwrap().unwrap_or_default();
                format!("{} {failure}", row.get::<String>("state").unwrap()).trim().to_owned()
            })
            .collect()
    }

    pub(crate) async fn actions(&self) -> Vec<String> {
        self.events()
            .await
            .into_iter()
            .map(|event| match event.reason.as_str() {
                "" => event.action,
                reason => format!("{} {reason}", event.action),
            })
            .collect()
    }
}

/// None, and never stale.
pub(crate) fn no_revocations(clock: &Clock) -> Revocations {
    let staleness = Staleness { privileged: Duration::from_hours(1000), all: Duration::from_hours(1000) };
    let revocations = Revocations::new(clock.clone(), staleness);
    revocations.apply(&[], 1, true);
    revocations
}

sql! {
    ROTATIONS = "SELECT state, failure FROM rotations ORDER BY started_at, generation";
    EVENTS = "SELECT event FROM audit_outbox ORDER BY position, event_id";
}

/// Follows the authorization URL as a browser does, as far as the redirect back.
pub(crate) async fn consent(authorization_url: &str) -> pb::CompleteConnectionRequest {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = http.get(authorization_url).send().await.unwrap();
    let location = answer.headers().get("location").expect("a redirect").to_str().unwrap();
    assert!(location.starts_with(CALLBACK), "{location}");
    let url = url::Url::parse(location).unwrap();
    let parameter = |name: &str| {
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    pb::CompleteConnectionRequest {
        state: parameter("state"),
        code: parameter("code"),
        error: parameter("error"),
        issuer: parameter("iss"),
    }
}

pub(crate) async fn get(client: &mut Client) -> Result<pb::GetAccessTokenResponse, Error> {
    let request = pb::GetAccessTokenRequest { upstream: UPSTREAM.into(), ..Default::default() };
    client.get_access_token(request).await.map(tonic::Response::into_inner).map_err(from_status)
}

/// Whether the provider's API lets the token in.
pub(crate) async fn works(provider: &OAuthProvider, token: &str) -> bool {
    let answer = reqwest::Client::new().get(provider.api_url()).bearer_auth(token).send().await.unwrap();
    answer.status().is_success()
}

pub(crate) fn reason<T>(result: Result<T, Error>) -> String {
    result.err().map(|error| error.reason().to_owned()).unwrap_or_default()
}

pub(crate) fn far_from_now(timestamp: i64, now: Timestamp) -> bool {
    Timestamp::from_micros(timestamp).since(now) > Duration::from_hours(1)
}

fn jwks(key: &SigningKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": x}]})
        .to_string()
}
