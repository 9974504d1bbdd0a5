//! A cluster of auth servers on one database, and callers of every kind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gatehouse_auth::config::{ClientConfig, HashingConfig};
use gatehouse_auth::{Config, Deps, Server, build, key_file};
use gatehouse_client::{Authorized, Channel, ChannelConfig, audience, channel, from_status};
use gatehouse_core::{Clock, Entropy, Environment, Error, Secret, Timestamp};
use gatehouse_outbox::Outbox;
use gatehouse_proto::auth::v1::account_service_client::AccountServiceClient;
use gatehouse_proto::auth::v1::api_key_service_client::ApiKeyServiceClient;
use gatehouse_proto::auth::v1::tenant_service_client::TenantServiceClient;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, IssueTokenRequest, RefreshRequest, RegisterRequest,
    SignInRequest, TokenPair,
};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{Doorbell, Lifecycle, Readiness};
use gatehouse_testkit::TestDb;
use tokio::net::TcpListener;

pub(crate) const ISSUER: &str = "https://gatehouse.test/dev";
pub(crate) const PASSWORD: &str = "an owl reads at noon";
pub(crate) const CLIENT_SECRET: &str = "0123456789abcdef0123456789abcdef";
/// What tests wait for at most; they end as soon as it is there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One replica.
pub(crate) struct Replica {
    pub(crate) server: Server,
    pub(crate) channel: Channel,
    address: SocketAddr,
    lifecycle: Lifecycle,
}

/// Replicas on one database with one clock and one key file.
pub(crate) struct Cluster {
    pub(crate) clock: Clock,
    pub(crate) config: Config,
    environment: Environment,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) outbox: Outbox,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for replica in &self.replicas {
            replica.lifecycle.stop();
        }
    }
}

impl Cluster {
    pub(crate) async fn start(db: &TestDb, replicas: usize) -> Self {
        Self::start_with(db, replicas, |_| {}).await
    }

    pub(crate) async fn start_with(db: &TestDb, replicas: usize, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(Environment::Dev, db, replicas, change).await
    }

    pub(crate) async fn start_in(
        environment: Environment,
        db: &TestDb,
        replicas: usize,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret_file = folder.path().join("secret");
        std::fs::write(&secret_file, CLIENT_SECRET).unwrap();
        let mut config = Config {
            key_file: folder.path().join("keys.json"),
            // As cheap as Argon2 takes: these tests are about something else.
            hashing: HashingConfig { memory_kib: 8, passes: 1, permits: 4, queue: 1_000, pepper: true },
            clients: clients(&secret_file),
            ..Config::default()
        };
        change(&mut config);
        let clock = Clock::settable(Timestamp::from_seconds(1_800_000_000));
        if !environment.is_dev() {
            key_file::create(&config.key_file, environment, &clock, &Entropy::system()).unwrap();
        }
        let outbox = Outbox::new(clock.clone(), Entropy::system());
        let mut cluster = Self { clock, config, environment, replicas: Vec::new(), folder, outbox };
        for _ in 0..replicas {
            let replica = cluster.add_replica(db).await.unwrap();
            cluster.replicas.push(replica);
        }
        cluster
    }

    pub(crate) async fn add_replica(&self, db: &TestDb) -> Result<Replica, Error> {
        self.add_replica_on(db, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    /// A replica where those who called another one find it.
    pub(crate) async fn add_replica_on(&self, db: &TestDb, listener: TcpListener) -> Result<Replica, Error> {
        let address = listener.local_addr().unwrap();
        let lifecycle = Lifecycle::new();
        let deps = Deps {
            environment: self.environment,
            issuer: ISSUER.replace("/dev", &format!("/{}", self.environment)),
            db: db.another_replica().await,
            clock: self.clock.clone(),
            entropy: Entropy::system(),
            lifecycle: lifecycle.clone(),
            readiness: Readiness::new(),
            doorbell: Doorbell::local(),
            outbox: self.outbox.clone(),
            grpc: gatehouse_service::grpc::GrpcConfig::default(),
            // The clock of these tests jumps by days.
            staleness: Staleness {
                privileged: Duration::from_hours(24 * 365),
                all: Duration::from_hours(24 * 365),
            },
        };
        let server = build(self.config.clone(), deps, listener).await?;
        let config = ChannelConfig {
            // A machine that stands still for a moment must not look like a server that died.
            keep_alive_timeout_ms: 60_000,
            request_timeout_ms: 60_000,
            ..ChannelConfig::to(format!("http://{address}"))
        };
        Ok(Replica { server, channel: channel(&config)?, address, lifecycle })
    }

    /// A replica.
    pub(crate) fn at(&self, place: usize) -> &Replica {
        &self.replicas[place % self.replicas.len()]
    }
}

fn clients(secret_file: &std::path::Path) -> Vec<ClientConfig> {
    let client = |name: &str, permissions: &[&str]| ClientConfig {
        name: name.into(),
        secret_file: PathBuf::from(secret_file),
        permissions: permissions.iter().map(|&permission| permission.into()).collect(),
    };
    vec![
        client(
            "gateway",
            &[
                "auth.tokens.exchange",
                "auth.tokens.impersonate",
                "auth.revocations.watch",
                "auth.origin.assert",
                "auth.tokens.introspect",
            ],
        ),
        client("reporter", &["auth.tokens.exchange"]),
        client("worker", &["job.jobs.work:optimize:*", "job.jobs.read", "auth.revocations.watch"]),
    ]
}

pub(crate) fn reason<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> String {
    from_status(result.expect_err("it was refused")).reason().to_owned()
}

impl Replica {
    /// Ends it; the address that it had.
    pub(crate) async fn stop(&self) -> SocketAddr {
        assert!(self.lifecycle.drain(PATIENCE).await);
        self.address
    }

    pub(crate) fn accounts(&self) -> AccountServiceClient<Authorized> {
        AccountServiceClient::new(Authorized::anonymous(self.channel.clone()))
    }

    pub(crate) fn tokens(&self) -> TokenServiceClient<Authorized> {
        TokenServiceClient::new(Authorized::anonymous(self.channel.clone()))
    }

    pub(crate) async fn register(&self, email: &str, tenant: &str) -> (String, String) {
        let request = RegisterRequest {
            email: email.into(),
            password: PASSWORD.into(),
            tenant_name: tenant.into(),
            ..RegisterRequest::default()
        };
        let made = self.accounts().register(request).await.unwrap().into_inner();
        (made.person_id, made.tenant_id)
    }

    pub(crate) async fn sign_in(&self, email: &str) -> TokenPair {
        self.try_sign_in(email, PASSWORD, "").await.unwrap()
    }

    pub(crate) async fn try_sign_in(
        &self,
        email: &str,
        password: &str,
        tenant: &str,
    ) -> Result<TokenPair, tonic::Status> {
        let request = SignInRequest {
            email: email.into(),
            password: password.into(),
            tenant_id: tenant.into(),
            ..SignInRequest::default()
        };
        Ok(self.accounts().sign_in(request).await?.into_inner().tokens.unwrap())
    }

    pub(crate) async fn refresh(&self, token: &str) -> Result<TokenPair, tonic::Status> {
        let request = RefreshRequest { refresh_token: token.into(), ..RefreshRequest::default() };
        Ok(self.accounts().refresh(request).await?.into_inner().tokens.unwrap())
    }

    pub(crate) async fn client_token(&self, client: &str, audience: &str) -> String {
        let request = IssueTokenRequest {
            client_id: client.into(),
            client_secret: CLIENT_SECRET.into(),
            audience: audience.into(),
            ..IssueTokenRequest::default()
        };
        self.tokens().issue_token(request).await.unwrap().into_inner().access_token
    }

    pub(crate) fn with(&self, token: &str) -> Authorized {
        Authorized::with_token(self.channel.clone(), Secret::new(token.into()))
    }

    /// The token service as the gateway calls it.
    pub(crate) async fn as_gateway(&self) -> TokenServiceClient<Authorized> {
        let token = self.client_token("gateway", audience::AUTH).await;
        TokenServiceClient::new(self.with(&token))
    }

    pub(crate) async fn exchange(
        &self,
        subject: &str,
        audience: &str,
    ) -> Result<ExchangeTokenResponse, tonic::Status> {
        let request = ExchangeTokenRequest {
            subject_token: subject.into(),
            audience: audience.into(),
            act_for_subject: false,
        };
        Ok(self.as_gateway().await.exchange_token(request).await?.into_inner())
    }

    /// Whatever a person or key does at auth goes through an exchange, as the gateway does it.
    pub(crate) async fn as_subject(&self, subject: &str) -> Subject {
        let token = self.exchange(subject, audience::AUTH).await.unwrap().access_token;
        Subject {
            accounts: AccountServiceClient::new(self.with(&token)),
            tenants: TenantServiceClient::new(self.with(&token)),
            api_keys: ApiKeyServiceClient::new(self.with(&token)),
        }
    }
}

/// The services as one subject calls them.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) accounts: AccountServiceClient<Authorized>,
    pub(crate) tenants: TenantServiceClient<Authorized>,
    pub(crate) api_keys: ApiKeyServiceClient<Authorized>,
}

/// The claims of a token, unchecked.
pub(crate) fn claims(token: &str) -> serde_json::Value {
    use base64::Engine as _;
    let body = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}
