//! The audit service on real sockets and databases, and callers with tokens that it accepts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use gatehouse_audit::keys::SubjectKeys;
use gatehouse_audit::verify_log::{Trust, verify_database};
use gatehouse_audit::{Config, Deps, build};
use gatehouse_client::{Authorized, Channel, ChannelConfig, channel};
use gatehouse_core::ids::{EventId, PersonId, TenantId};
use gatehouse_core::{Clock, Entropy, Environment, Result, Secret};
use gatehouse_db::Db;
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::audit::v1::{
    AppendEventsRequest, AppendedEvent, GetCheckpointRequest, NewEvent, Outcome,
};
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::identity::Actor;
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{Claims, KeySet, Lifecycle, Readiness, Revocations, Verifier};
use gatehouse_testkit::TestDb;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub type AuditClient = AuditServiceClient<Authorized>;

const ISSUER: &str = "https://gatehouse.test/dev";

/// A database, a key folder and an issuer of tokens; replicas are started on them.
pub struct World {
    pub db: Arc<TestDb>,
    pub clock: Clock,
    pub entropy: Entropy,
    pub config: Config,
    issuer: SigningKey,
    folder: Arc<TempDir>,
}

/// One running replica.
pub struct Replica {
    pub address: SocketAddr,
    pub lifecycle: Lifecycle,
    pub readiness: Readiness,
}

impl World {
    pub fn new(db: TestDb) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            origin: "gatehouse.test".into(),
            subject_keys_dir: folder.path().join("keys"),
            checkpoint_key_file: folder.path().join("checkpoint.key"),
            // Nothing happens on its own: tests ask.
            checkpoint_interval_ms: 86_400_000,
            prune_interval_ms: 86_400_000,
            ..Config::default()
        };
        Self {
            db: Arc::new(db),
            clock: Clock::system(),
            entropy: Entropy::system(),
            config,
            issuer: SigningKey::from_bytes(&[7; 32]),
            folder: Arc::new(folder),
        }
    }

    /// A replica on a connection of its own.
    pub async fn replica(&self) -> Replica {
        self.replica_on(self.db.another_replica().await, ([127, 0, 0, 1], 0).into()).await
    }

    pub async fn replica_on(&self, db: Db, address: SocketAddr) -> Replica {
        self.try_replica_on(db, address).await.unwrap()
    }

    /// A replica, or why it did not start.
    pub async fn try_replica(&self) -> Result<Replica> {
        self.try_replica_on(self.db.another_replica().await, ([127, 0, 0, 1], 0).into()).await
    }

    async fn try_replica_on(&self, db: Db, address: SocketAddr) -> Result<Replica> {
        let keys = KeySet::default();
        let x = URL_SAFE_NO_PAD.encode(self.issuer.verifying_key().as_bytes());
        keys.replace(&format!(
            r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","alg":"EdDSA","use":"sig","x":"{x}"}}]}}"#
        ))
        .unwrap();
        let long = Duration::from_secs(1_000_000_000);
        let revocations = Revocations::new(self.clock.clone(), Staleness { privileged: long, all: long });
        revocations.apply(&[], 0, true);
        let audience = gatehouse_client::audience::AUDIT;
        let (lifecycle, readiness) = (Lifecycle::new(), Readiness::new());
        let deps = Deps {
            db,
            verifier: Verifier::new(ISSUER, audience, keys, revocations, self.clock.clone()),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            environment: Environment::Dev,
            lifecycle: lifecycle.clone(),
            readiness: readiness.clone(),
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        build(&self.config, GrpcConfig::default(), deps, listener).await?;
        Ok(Replica { address, lifecycle, readiness })
    }

    /// A replica in another runtime, which can be torn down with all its tasks and connections, as a crash does.
    pub async fn replica_in(&self, runtime: &tokio::runtime::Runtime) -> Replica {
        let recipe = Self {
            db: self.db.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            config: self.config.clone(),
            issuer: self.issuer.clone(),
            folder: self.folder.clone(),
        };
        runtime.spawn(async move { recipe.replica().await }).await.unwrap()
    }

    /// A token for the audit service.
    pub fn token(&self, sub: &str, tenant: Option<TenantId>, permissions: &[&str]) -> Secret<String> {
        let now = self.clock.now();
        let claims = Claims {
            iss: ISSUER.into(),
            sub: sub.into(),
            aud: gatehouse_client::audience::AUDIT.into(),
            exp: now.as_seconds() + 1_000_000_000,
            iat: now.as_seconds(),
            iat_us: now.as_micros(),
            nbf: now.as_seconds(),
            jti: "j".into(),
            auth_time: None,
            token_use: "access".into(),
            scope: String::new(),
            username: None,
            email: None,
            email_verified: None,
            tid: tenant,
            sid: None,
            cid: None,
            client_id: None,
            client_iat_us: None,
            act: None::<Actor>,
            roles: Vec::new(),
            permissions: permissions.iter().map(|&permission| permission.to_owned()).collect(),
        };
        let part = |json: String| URL_SAFE_NO_PAD.encode(json);
        let header = part(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#.to_owned());
        let signed = format!("{header}.{}", part(serde_json::to_string(&claims).unwrap()));
        let signature = self.issuer.sign(signed.as_bytes());
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes())))
    }

    /// The service `name` as a client that may append.
    pub fn emitter(&self, replica: &Replica, name: &str) -> AuditClient {
        AuditServiceClient::new(self.emitter_channel(replica.address, name))
    }

    pub fn emitter_channel(&self, address: SocketAddr, name: &str) -> Authorized {
        let token = self.token(&format!("client:{name}"), None, &["audit.events.append"]);
        Authorized::with_token(channel_to(address), token)
    }

    /// A person who may read the events of `tenant`.
    pub fn reader(&self, replica: &Replica, tenant: TenantId) -> AuditClient {
        let person = PersonId::new(&self.clock, &self.entropy).to_string();
        self.client(replica, &person, Some(tenant), &["audit.events.read", "audit.checkpoints.read"])
    }

    /// An internal service that may do everything.
    pub fn operator(&self, replica: &Replica) -> AuditClient {
        let all = [
            "audit.events.append",
            "audit.events.read",
            "audit.checkpoints.read",
            "audit.log.export",
            "audit.subjects.erase",
        ];
        self.client(replica, "client:ops", None, &all)
    }

    pub fn client(
        &self,
        replica: &Replica,
        sub: &str,
        tenant: Option<TenantId>,
        permissions: &[&str],
    ) -> AuditClient {
        let token = self.token(sub, tenant, permissions);
        AuditServiceClient::new(Authorized::with_token(channel_to(replica.address), token))
    }

    pub fn event(&self, action: &str) -> NewEvent {
        NewEvent {
            event_id: EventId::new(&self.clock, &self.entropy).to_string(),
            occurred_at: self.clock.now().as_micros(),
            action: action.into(),
            outcome: Outcome::Success.into(),
            payload_json: r#"{"ip":"192.0.2.1"}"#.into(),
            ..NewEvent::default()
        }
    }

    pub fn tenant(&self) -> TenantId {
        TenantId::new(&self.clock, &self.entropy)
    }

    pub fn person(&self) -> PersonId {
        PersonId::new(&self.clock, &self.entropy)
    }

    pub async fn verify(&self, trust: &Trust) -> gatehouse_audit::domain::verify::Report {
        verify_database(&self.db, "default", trust).await.unwrap()
    }

    /// `trust`, with the keys that the replicas seal with.
    pub fn with_subjects(&self, trust: &Trust) -> Trust {
        let keys = SubjectKeys::existing(&self.config.subject_keys_dir).unwrap();
        Trust { subjects: Some(keys), ..trust.clone() }
    }

    /// A fresh checkpoint and the key, as somebody elsewhere keeps them.
    pub async fn keep_checkpoint(&self, replica: &Replica) -> Trust {
        let request = GetCheckpointRequest { log: String::new(), fresh: true };
        let answer = self.operator(replica).get_checkpoint(request).await.unwrap().into_inner();
        let keys = vec![answer.verifier_key.parse().unwrap()];
        Trust { checkpoints: vec![answer.checkpoint], keys, configured: true, ..Trust::default() }
    }
}

impl Replica {
    pub async fn stop(self) {
        assert!(self.lifecycle.drain(Duration::from_secs(20)).await, "the replica did not drain");
    }
}

pub async fn append(client: &mut AuditClient, events: Vec<NewEvent>) -> Vec<AppendedEvent> {
    client.append_events(AppendEventsRequest { events }).await.unwrap().into_inner().events
}

fn channel_to(address: SocketAddr) -> Channel {
    let config = ChannelConfig {
        // A machine that stands still for a moment must not look like a server that died.
        keep_alive_timeout_ms: 60_000,
        request_timeout_ms: 60_000,
        ..ChannelConfig::to(format!("http://{address}"))
    };
    channel(&config).unwrap()
}
