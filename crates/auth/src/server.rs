//! The service as it runs: its parts put together, and what goes on beside requests.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::audience;
use gatehouse_core::{Clock, Entropy, Environment, Error, Result, Timestamp};
use gatehouse_db::{Db, Migrations, migrations, run_tx};
use gatehouse_outbox::Outbox;
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{
    AccessLayer, Doorbell, GrpcServer, KeySet, Lifecycle, Readiness, Revocations, Verifier,
};
use tokio::net::TcpListener;

use crate::app::{App, Parts};
use crate::clients::Clients;
use crate::config::Config;
use crate::grpc;
use crate::hashing::Hasher;
use crate::key_file::Keys;
use crate::revocation_log::RevocationLog;
use crate::signing_keys::SigningKeys;
use crate::store::{api_keys, revocations, sessions};

/// The tables of this service.
pub const MIGRATIONS: Migrations = migrations![
    "0001_init" => include_str!("../../../migrations/auth/0001_init.sql"),
    "0002_key_holders" => include_str!("../../../migrations/auth/0002_key_holders.sql"),
    "0003_live_sessions" => include_str!("../../../migrations/auth/0003_live_sessions.sql"),
    "0004_overlaps" => include_str!("../../../migrations/auth/0004_overlaps.sql"),
];

/// How often keys are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two readings of key file and signing keys that others may have changed.
const TICKS_BETWEEN_READINGS: u32 = 10;
/// How long the clock goes on between two purges.
const PURGE_EVERY: Duration = Duration::from_mins(10);
/// From what age on a master key is warned of (requirement P11).
const OLD_KEY: Duration = Duration::from_hours(90 * 24);
/// How long what is over is kept, for those who ask what happened.
const KEEP_ENDED: Duration = Duration::from_hours(24);
/// How long revocations that concern no live token stay: by how much a clock may be ahead for a while without taking some
/// away that do.
const KEEP_REVOCATIONS: Duration = Duration::from_hours(2);

/// What the service is given.
#[derive(Clone, Debug)]
pub struct Deps {
    /// `dev`, `staging` or `prod`.
    pub environment: Environment,
    /// `iss` of tokens: `https://{host}/{environment}`.
    pub issuer: String,
    /// The service's database, migrated.
    pub db: Db,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Start and stop.
    pub lifecycle: Lifecycle,
    /// Whether to be sent work.
    pub readiness: Readiness,
    /// Wakes other replicas.
    pub doorbell: Doorbell,
    /// Where audit events go. Whoever builds the service runs the relay over the same database.
    pub outbox: Outbox,
    /// How late the news of revocations may be.
    pub staleness: Staleness,
    /// Bounds of the gRPC server.
    pub grpc: GrpcConfig,
}

/// A running service.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its use cases, for what the binary does itself, such as the first tenant.
    pub app: App,
}

/// Starts the service on `listener`.
///
/// # Errors
/// Whatever forbids a start, each with what to do: a wrong key file or client secret, a database that is away, an issuer
/// that does not name the environment.
pub async fn build(config: Config, deps: Deps, listener: TcpListener) -> Result<Server> {
    if !deps.issuer.ends_with(&format!("/{}", deps.environment)) {
        let message = format!("The issuer {} must end with /{}.", deps.issuer, deps.environment);
        return Err(Error::failed_precondition("ISSUER_INVALID", message));
    }
    let gate = deps.readiness.gate("auth", "the signing keys are not read yet");
    let Deps {
        environment,
        issuer,
        db,
        clock,
        entropy,
        lifecycle,
        readiness,
        doorbell,
        outbox,
        staleness,
        grpc: server_config,
    } = deps;
    let keys = Keys::open(&config.key_file, &db, environment, &clock, &entropy).await?;
    let clients = Clients::load(&config.clients, &entropy)?;
    let hasher =
        Hasher::new(&config.hashing, config.hash_cost(), keys.clone(), clock.clone(), entropy.clone());
    let own_keys = KeySet::default();
    let own_revocations = Revocations::new(clock.clone(), staleness);
    let signing = SigningKeys::open(
        db.clone(),
        keys.clone(),
        config.schedule(),
        clock.clone(),
        entropy.clone(),
        own_keys.clone(),
    )
    .await?;
    let log = RevocationLog::open(db.clone(), clock.clone(), own_revocations.clone()).await?;
    let verifier = Verifier::new(issuer.clone(), audience::AUTH, own_keys, own_revocations, clock.clone());
    let access = AccessLayer::new(&[grpc::PACKAGE], verifier.clone(), clock.clone(), entropy.clone())?;
    let app = App(Arc::new(Parts {
        config,
        environment,
        issuer,
        db,
        clock,
        entropy,
        keys,
        signing,
        hasher,
        clients,
        revocations: log.clone(),
        verifier,
        doorbell: doorbell.clone(),
        outbox,
    }));
    log.follow(&doorbell, &lifecycle);
    lifecycle.spawn(maintain(app.clone(), lifecycle.stopping()));
    lifecycle.spawn(app.clone().end_overlaps_in_time(lifecycle.stopping()));
    let routes = grpc::routes(&app, &lifecycle);
    GrpcServer::new(server_config, access, listener).start(routes, &lifecycle, &readiness)?;
    gate.ready();
    Ok(Server { app })
}

async fn maintain(app: App, stopping: tokio_util::sync::CancellationToken) {
    let age = opentelemetry::global::meter("gatehouse")
        .f64_gauge("gatehouse.auth.key.age")
        .with_unit("s")
        .with_description("Time since the key now in use was first used, by kind.")
        .build();
    let (mut purged_at, mut warned_at) = (None::<Timestamp>, None::<Timestamp>);
    let mut ticks = 0;
    loop {
        let parts = &app.0;
        ticks += 1;
        if ticks % TICKS_BETWEEN_READINGS == 0
            && let Err(error) = parts.keys.reload()
        {
            tracing::warn!(?error, "the key file can't be read; going on with the keys as last read");
        }
        if (ticks % TICKS_BETWEEN_READINGS == 0 || parts.signing.is_due())
            && let Err(error) = parts.signing.refresh().await
        {
            tracing::warn!(?error, "signing keys can't be read or rotated");
        }
        if ticks % TICKS_BETWEEN_READINGS == 0 {
            parts.hasher.release_idle();
        }
        let now = parts.clock.now();
        let kind = |kind: &'static str| [opentelemetry::KeyValue::new("kind", kind)];
        if let Some(since) = parts.signing.signing_since() {
            age.record(now.since(since).as_secs_f64(), &kind("signing"));
        }
        age.record(now.since(parts.keys.ring().current(now).created_at).as_secs_f64(), &kind("master"));
        if purged_at.is_none_or(|before| now.since(before) >= PURGE_EVERY) {
            match purge(&app, now).await {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(rows, "forgot what is over"),
                Err(error) => tracing::warn!(?error, "what is over can't be purged"),
            }
            purged_at = Some(now);
            let master = parts.keys.ring().current(now).clone();
            if now.since(master.created_at) > OLD_KEY
                && warned_at.is_none_or(|before| now.since(before) > KEEP_ENDED)
            {
                warned_at = Some(now);
                tracing::warn!(kid = %master.id, made_at = %master.created_at, "the key file's key is older than 90 days: rotate it");
            }
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn purge(app: &App, now: Timestamp) -> Result<u64> {
    let before = now.minus(KEEP_ENDED);
    Ok(run_tx!(app.0.db, "auth.purge", |tx| {
        Ok(sessions::purge(tx, before).await?
            + api_keys::purge(tx, before).await?
            + revocations::purge(tx, now.minus(KEEP_REVOCATIONS)).await?)
    })?)
}
