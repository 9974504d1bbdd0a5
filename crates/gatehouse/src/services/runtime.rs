//! What every service is given: its channels, its own credential, the verifier of its callers, its database, its
//! outbox.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::tls::{Certificates, ClientTls, TlsFiles};
use gatehouse_client::{Authorized, ChannelConfig, ClientCredentials, TokenSource, audience, channel};
use gatehouse_core::{Clock, Entropy, Environment};
use gatehouse_db::{Db, MigrationState, Migrations};
use gatehouse_gateway::{StreamChannels, Upstreams};
use gatehouse_outbox::{Outbox, Relay};
use gatehouse_service::readiness::Gate;
use gatehouse_service::{
    AccessLayer, Doorbell, GrpcServer, KeySet, Lifecycle, Readiness, RedisAddress, RevocationFeed,
    Revocations, ServerTls, Verifier, grpc,
};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Service;
use crate::config::{Config, TlsConfig};
use crate::data_folder::read_secret;
use crate::process::Process;

/// How often it is asked whether the database answers, and how long that may take.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// What a service needs may be away for this long before the service says that it is not ready: restarts are shorter.
const AWAY_FOR: Duration = Duration::from_secs(10);

/// What one service of this process stands on.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) service: Service,
    pub(crate) config: Config,
    pub(crate) environment: Environment,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) readiness: Readiness,
    pub(crate) doorbell: Doorbell,
    pub(crate) redis: Option<RedisAddress>,
    pub(crate) upstreams: Upstreams,
    pub(crate) tokens: TokenSource,
}

impl Runtime {
    /// The runtime of `service` in this process.
    pub(crate) fn new(
        service: Service,
        config: Config,
        environment: Environment,
        process: &Process,
    ) -> anyhow::Result<Self> {
        let redis = if config.redis.url_file.as_os_str().is_empty() {
            None
        } else {
            let url = read_secret(&config.redis.url_file)?;
            Some(RedisAddress { url, ca_file: config.redis.ca_file() })
        };
        let doorbell = if let Some(address) = &redis {
            Doorbell::redis(address, environment, &process.lifecycle, &Entropy::system())?
        } else {
            if !environment.is_dev() {
                tracing::warn!(
                    "redis.url_file is not set: rate limits count in this process alone, and other replicas are woken \
                     by polling only"
                );
            }
            Doorbell::local()
        };
        Self::with_doorbell(service, config, environment, process, doorbell, redis)
    }

    /// As [`Runtime::new`], with a doorbell that the services of one process share.
    pub(crate) fn with_doorbell(
        service: Service,
        mut config: Config,
        environment: Environment,
        process: &Process,
        doorbell: Doorbell,
        redis: Option<RedisAddress>,
    ) -> anyhow::Result<Self> {
        let certificates = certificates(service, &config.tls, environment, &process.lifecycle)?;
        config.grpc.tls = certificates.clone().map(|certificates| ServerTls {
            certificates,
            internal_services: Arc::new(config.tls.internal_services.iter().cloned().collect()),
        });
        let peers = &config.peers;
        let peer = |config: &ChannelConfig, service: Service| match &certificates {
            Some(own) => ClientTls::to(own, service.name()).map(|tls| config.clone().with_tls(tls)),
            None => Ok(config.clone()),
        };
        let to_job = peer(&peers.job, Service::Job)?;
        let job_streams = match service {
            Service::Gateway => StreamChannels::connect(
                &to_job,
                config.gateway.sse.max_streams,
                config.grpc.max_concurrent_streams,
            )?,
            _ => StreamChannels::default(),
        };
        let upstreams = Upstreams {
            auth: channel(&peer(&peers.auth, Service::Auth)?)?,
            token_broker: channel(&peer(&peers.token_broker, Service::TokenBroker)?)?,
            job: channel(&to_job)?,
            audit: channel(&peer(&peers.audit, Service::Audit)?)?,
            job_streams,
        };
        if config.client.secret_file.as_os_str().is_empty() {
            anyhow::bail!("client.secret_file is not set: name the file with this process's secret");
        }
        let credentials = ClientCredentials {
            client_id: service.name().to_owned(),
            client_secret: read_secret(&config.client.secret_file)?,
        };
        let clock = Clock::system();
        let tokens = TokenSource::new(upstreams.auth.clone(), credentials, clock.clone());
        Ok(Self {
            service,
            config,
            environment,
            clock,
            entropy: Entropy::system(),
            lifecycle: process.lifecycle.clone(),
            readiness: process.readiness.clone(),
            doorbell,
            redis,
            upstreams,
            tokens,
        })
    }

    /// Binds the service's address.
    pub(crate) async fn bind(&self, address: &str) -> anyhow::Result<TcpListener> {
        Ok(grpc::bind(self.service.name(), address).await?)
    }

    /// The service's database, with its tables where this version wants them. In dev they are brought there; elsewhere
    /// that is `gatehouse migrate`'s, so that a start changes no schema.
    pub(crate) async fn database(
        &self,
        config: &gatehouse_db::Config,
        migrations: &Migrations,
    ) -> anyhow::Result<Db> {
        let db = Db::connect(config, self.service.name()).await?;
        if self.environment.is_dev() {
            db.migrate(migrations).await?;
        }
        let pending = db
            .migration_status(migrations)
            .await?
            .into_iter()
            .filter(|migration| matches!(migration.state, MigrationState::Pending | MigrationState::Changed))
            .filter_map(|migration| migration.name)
            .collect::<Vec<_>>();
        anyhow::ensure!(
            pending.is_empty(),
            "the database of {} lacks the migrations {}. Run `gatehouse migrate` with this version first.",
            self.service.name(),
            pending.join(", ")
        );
        self.watch_database(config).await?;
        Ok(db)
    }

    /// Has readiness tell while the database can't be reached. Asked over a connection of its own: one that waits for a
    /// place in the pool would call a service that has much to do one that can do nothing.
    async fn watch_database(&self, config: &gatehouse_db::Config) -> anyhow::Result<()> {
        if config.url.sqlite_path().is_some() {
            // A file of this process: nothing stands between.
            return Ok(());
        }
        let config = gatehouse_db::Config { max_connections: 1, ..config.clone() };
        let db = Db::connect(&config, self.service.name()).await?;
        let (answers, answered) = watch::channel(true);
        let stopping = self.lifecycle.stopping();
        self.lifecycle.spawn(async move {
            while stopping.run_until_cancelled(tokio::time::sleep(ASK_EVERY)).await.is_some() {
                let asked = tokio::time::timeout(ANSWER_WITHIN, db.ping());
                let Some(answer) = stopping.run_until_cancelled(asked).await else { return };
                answers.send_replace(answer.is_ok_and(|answer| answer.is_ok()));
            }
        });
        self.follow(self.gate("database", "it was not asked yet"), "the database does not answer", answered);
        Ok(())
    }

    /// A condition of readiness of this service, which does not hold yet because of `at_first`.
    pub(crate) fn gate(&self, name: &str, at_first: &str) -> Gate {
        self.readiness.gate(format!("{}.{name}", self.service.name()), at_first)
    }

    /// Has `gate` hold as `holds` says: not while it has been false for longer than what comes back by itself.
    pub(crate) fn follow(&self, gate: Gate, why: &'static str, holds: watch::Receiver<bool>) {
        let stopping = self.lifecycle.stopping();
        self.lifecycle.spawn(async move {
            stopping.run_until_cancelled(gate.follow(holds, AWAY_FOR, why)).await;
        });
    }

    /// The outbox over `db`, emptied to the audit service from now on.
    pub(crate) fn outbox(&self, db: &Db) -> Outbox {
        let outbox = Outbox::new(self.clock.clone(), self.entropy.clone());
        let audit = Authorized::as_client(self.upstreams.audit.clone(), self.tokens.clone(), audience::AUDIT);
        let (config, clock, entropy) = (self.config.outbox.clone(), self.clock.clone(), self.entropy.clone());
        Relay::new(self.service.name(), db.clone(), audit, &outbox, config, clock, entropy)
            .start(&self.lifecycle);
        outbox
    }

    /// A verifier for `audience`, whose keys and revocations are kept fresh from now on.
    pub(crate) fn verifier(&self, audience: &'static str) -> Verifier {
        let keys = KeySet::default();
        let revocations = Revocations::new(self.clock.clone(), self.config.revocations.staleness());
        let auth = Authorized::as_client(self.upstreams.auth.clone(), self.tokens.clone(), audience::AUTH);
        RevocationFeed::new(auth, revocations.clone(), keys.clone(), self.entropy.clone()).start(
            self.service.name(),
            &self.lifecycle,
            &self.readiness,
        );
        Verifier::new(self.issuer(), audience, keys, revocations, self.clock.clone())
    }

    /// `iss` of every token.
    pub(crate) fn issuer(&self) -> String {
        self.config.issuer_in(self.environment)
    }

    /// A server on `listener` for the methods of `package`.
    pub(crate) fn server(
        &self,
        package: &'static str,
        verifier: Verifier,
        listener: TcpListener,
    ) -> anyhow::Result<GrpcServer> {
        let access = AccessLayer::new(&[package], verifier, self.clock.clone(), self.entropy.clone())?;
        Ok(GrpcServer::new(self.config.grpc.clone(), access, listener))
    }
}

/// The certificates of `service`, where TLS is on.
fn certificates(
    service: Service,
    config: &TlsConfig,
    environment: Environment,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Option<Certificates>> {
    let Some(files) = config.files(environment) else { return Ok(None) };
    let certificates = own_certificates(service, files).map_err(anyhow::Error::msg)?;
    gatehouse_service::tls::observe(&certificates);
    let shown = certificates.clone();
    gatehouse_service::tls::warn_before_end(service.name(), lifecycle, move || shown.current().ends_at);
    Ok(Some(certificates))
}

/// The certificates in `files`, if they are those of `service`; else what is wrong.
pub(crate) fn own_certificates(service: Service, files: TlsFiles) -> Result<Certificates, String> {
    let certificates = Certificates::load(files).map_err(|error| error.message().to_owned())?;
    let id = certificates.id();
    if id.service() != service.name() {
        return Err(format!(
            "the certificate is {id}, and this is the service {}; give it its own",
            service.name()
        ));
    }
    if service.serves_grpc() && !certificates.current().is_server {
        return Err("the certificate is for clients only (extended key usage), and others call this service"
            .to_owned());
    }
    Ok(certificates)
}
