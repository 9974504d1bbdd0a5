//! What all workers share.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::TokenSource;
use gatehouse_core::{Clock, Entropy, Environment, Error, Result};
use gatehouse_ratelimit::RateLimits;
use gatehouse_service::{Lifecycle, Readiness, Verifier};
use ipnet::IpNet;

use crate::browser::BrowserRules;
use crate::config::Config;
use crate::docs::Documents;
use crate::door::Door;
use crate::route::{self, Route};
use crate::routes;
use crate::streams::Streams;
use crate::telemetry::HttpMetrics;
use crate::upstream::Upstreams;

/// What the gateway is given to work with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Which world this is.
    pub environment: Environment,
    /// The `iss` of access tokens, for the OAuth metadata; it ends with the environment.
    pub issuer: String,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Channels to the services.
    pub upstreams: Upstreams,
    /// The gateway's own tokens: a client with the permissions `auth.tokens.exchange`,
    /// `auth.tokens.impersonate` (people speak through it for themselves), `auth.origin.assert` and
    /// `auth.revocations.watch`.
    pub tokens: TokenSource,
    /// Verifies access tokens; keys and revocations are kept fresh by a `RevocationFeed` that the process runs.
    /// The audience does not matter: the gateway asks for its own.
    pub verifier: Verifier,
    /// Rate limits.
    pub rate_limits: RateLimits,
    /// Conditions for `/readyz`.
    pub readiness: Readiness,
    /// Stop and drain.
    pub lifecycle: Lifecycle,
}

/// The state behind every request.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) environment: Environment,
    pub(crate) issuer: String,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) upstreams: Upstreams,
    pub(crate) tokens: TokenSource,
    pub(crate) door: Door,
    pub(crate) rate_limits: RateLimits,
    pub(crate) readiness: Readiness,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) browser: BrowserRules,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) documents: Documents,
    pub(crate) metrics: HttpMetrics,
    /// The open event streams.
    pub(crate) streams: Streams,
}

impl Gateway {
    /// # Errors
    /// `INVALID_CONFIG`, or `ROUTE_DECLARATION` if a route's declaration contradicts the contracts.
    pub(crate) fn new(config: Config, deps: Deps) -> Result<Arc<Self>> {
        let problems = config.validate(deps.environment);
        if !problems.is_empty() {
            return Err(Error::invalid_argument("INVALID_CONFIG", problems.join("; ")));
        }
        let streams = Streams::new(&config.sse, deps.upstreams.job_streams.clone())
            .map_err(|problem| Error::invalid_argument("INVALID_CONFIG", problem))?;
        let table = routes::table();
        let problems = route::problems(&table);
        if !problems.is_empty() {
            return Err(Error::failed_precondition("ROUTE_DECLARATION", problems.join("; ")));
        }
        for warning in config.warnings(deps.environment) {
            tracing::warn!("{warning}");
        }
        let door = Door::new(
            &deps.verifier,
            deps.upstreams.auth.clone(),
            deps.tokens.clone(),
            deps.clock.clone(),
            Duration::from_secs(config.exchange_cache_seconds),
            config.exchange_cache_entries,
        );
        door.watch_revocations(&deps.lifecycle);
        Ok(Arc::new(Self {
            browser: BrowserRules::new(&config, deps.environment),
            trusted_proxies: config.trusted_proxies.iter().filter_map(|net| net.parse().ok()).collect(),
            streams,
            documents: Documents::new(&table, &config),
            routes: table.into_iter().map(Arc::new).collect(),
            metrics: HttpMetrics::new(),
            environment: deps.environment,
            issuer: deps.issuer,
            clock: deps.clock,
            entropy: deps.entropy,
            upstreams: deps.upstreams,
            tokens: deps.tokens,
            door,
            rate_limits: deps.rate_limits,
            readiness: deps.readiness,
            lifecycle: deps.lifecycle,
            config,
        }))
    }
}
