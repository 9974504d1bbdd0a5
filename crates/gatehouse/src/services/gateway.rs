//! The edge gateway.

use std::net::TcpListener;
use std::path::Path;

use gatehouse_client::audience;
use gatehouse_core::Environment;
use gatehouse_gateway::{Deps, Listeners, RunningGateway, tls};
use gatehouse_ratelimit::{Limiter, RateLimits, SubjectKey};
use gatehouse_service::config::ConfigError;
use gatehouse_service::grpc;

use super::{Runtime, Service};
use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::data_folder::read_secret;
use crate::process;

/// The gateway's addresses, bound.
pub(crate) struct GatewayListeners {
    pub(crate) http: TcpListener,
    https: Option<TcpListener>,
}

impl GatewayListeners {
    /// Binds what the configuration says.
    pub(crate) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let gateway = &config.gateway;
        let http = into_std(grpc::bind("gateway", &gateway.address).await?)?;
        let https = match gateway.tls_address.as_str() {
            "" => None,
            address => Some(into_std(grpc::bind("gateway (HTTPS)", address).await?)?),
        };
        Ok(Self { http, https })
    }

    /// With the certificate for HTTPS; `dev_certificate` is the folder of one that is made where none is configured.
    pub(crate) fn with_certificate(
        self,
        config: &Config,
        environment: Environment,
        dev_certificate: Option<&Path>,
    ) -> anyhow::Result<Listeners> {
        let gateway = &config.gateway;
        let identity = || match dev_certificate {
            Some(folder) if gateway.tls_certificate_file.is_empty() && environment.is_dev() => {
                tls::Identity::development(folder)
            }
            _ => tls::Identity::from_files(
                gateway.tls_certificate_file.as_ref(),
                gateway.tls_key_file.as_ref(),
            ),
        };
        let https = self.https.map(|listener| Ok::<_, anyhow::Error>((listener, identity()?))).transpose()?;
        Ok(Listeners { http: self.http, https })
    }
}

fn into_std(listener: tokio::net::TcpListener) -> anyhow::Result<TcpListener> {
    Ok(listener.into_std()?)
}

/// Starts it on `listeners`. At SIGHUP it reads `args` again and takes the rate-limit rules from there.
pub(crate) async fn start(
    runtime: &Runtime,
    listeners: Listeners,
    args: &ConfigArgs,
) -> anyhow::Result<RunningGateway> {
    let limits = &runtime.config.rate_limits;
    // Every replica must count a subject under one name: the name is keyed with what they share.
    let secret = read_secret(&runtime.config.client.secret_file)?;
    let key = SubjectKey::new(secret.expose().as_bytes());
    let limiter = match &runtime.redis {
        Some(redis) => {
            let (url, ca_file) = (redis.url.expose(), redis.ca_file.clone());
            if limits.replicas.is_none() && !runtime.environment.is_dev() {
                tracing::warn!(
                    "rate_limits.replicas is not set: this counts as the only gateway, and while Redis is away each of \
                     several would let in as much as all of them may; say how many there are, even if one"
                );
            }
            let options = limits.redis_options(url, ca_file, runtime.environment);
            Limiter::redis(options, key).await?
        }
        None => Limiter::memory(runtime.clock.clone(), key),
    };
    let rate_limits =
        RateLimits::new(limiter, limits.rules.clone(), runtime.environment).map_err(ConfigError)?;
    process::at_hangup(&runtime.lifecycle, {
        let (args, environment, rate_limits) = (args.clone(), runtime.environment, rate_limits.clone());
        move || match reload_rules(&args, environment, &rate_limits) {
            Ok(()) => tracing::info!("the configuration was read again: its rate_limits.rules are in force"),
            Err(error) => {
                tracing::error!(%error, "the configuration is wrong: the old rate limits stay in force");
            }
        }
    })?;
    let deps = Deps {
        environment: runtime.environment,
        issuer: runtime.issuer(),
        clock: runtime.clock.clone(),
        entropy: runtime.entropy.clone(),
        upstreams: runtime.upstreams.clone(),
        tokens: runtime.tokens.clone(),
        verifier: runtime.verifier(audience::GATEWAY),
        rate_limits,
        readiness: runtime.readiness.clone(),
        lifecycle: runtime.lifecycle.clone(),
    };
    Ok(gatehouse_gateway::build(runtime.config.gateway.clone(), deps, listeners)?)
}

/// Puts the rules of file and environment as they are now in force, or none of them.
fn reload_rules(args: &ConfigArgs, environment: Environment, rate_limits: &RateLimits) -> anyhow::Result<()> {
    let config = args.load()?;
    let problems = config.validate(environment, &[Service::Gateway]);
    if !problems.is_empty() {
        anyhow::bail!(ConfigError(problems));
    }
    rate_limits.replace_rules(config.rate_limits.rules, environment).map_err(ConfigError)?;
    Ok(())
}
