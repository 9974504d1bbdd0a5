//! The token broker: tokens from the cache, and tokens that need a refresh at the provider.

use anyhow::{Context as _, Result, ensure};
use gatehouse_client::{Authorized, audience};
use gatehouse_core::Secret;
use gatehouse_proto::token_broker::v1::token_broker_service_client::TokenBrokerServiceClient;
use gatehouse_proto::token_broker::v1::{
    BeginConnectionRequest, CompleteConnectionRequest, GetAccessTokenRequest,
};
use reqwest::Url;
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;

use super::{held, modes};
use crate::cluster::{Cluster, Engine, UPSTREAM};
use crate::figure::{Run, Sample};
use crate::load::{Caller, drive};
use crate::people::Person;
use crate::session::Session;

/// People with a connection each.
const PEOPLE: usize = 16;
/// More than the provider's tokens ever live: as the broker is configured here, each call then needs a new one.
const NEVER_ENOUGH: i32 = 600;

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    for (engine, key) in modes("broker.token", "broker.token@sqlite") {
        held(session, run, key, tokens(session, engine, 0, session.callers)).await?;
    }
    // One for each connection: a second would only wait for the first.
    held(session, run, "broker.rotation", tokens(session, Engine::Postgres, NEVER_ENOUGH, PEOPLE)).await
}

/// Somebody who needs a token of the upstream.
#[derive(Clone)]
pub(crate) struct Asker {
    broker: TokenBrokerServiceClient<Authorized>,
    remaining: i32,
}

impl Asker {
    /// A person connected with the upstream, by a browser's round trip.
    pub(crate) async fn connected(cluster: &Cluster, remaining: i32) -> Result<Self> {
        let person = Person::new(cluster).await?;
        let token = Secret::new(person.token_for(cluster, audience::TOKEN_BROKER).await?);
        let channel = Authorized::with_token(cluster.channel("token-broker")?, token);
        let mut broker = TokenBrokerServiceClient::new(channel);
        let request = BeginConnectionRequest { upstream: UPSTREAM.into(), scopes: Vec::new() };
        let begun = broker.begin_connection(request).await?.into_inner();
        let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build()?;
        let consented = http.get(&begun.authorization_url).send().await?;
        let location = consented.headers().get(LOCATION).context("the provider did not consent")?;
        let callback = Url::parse(location.to_str()?)?;
        let answer = |name: &str| {
            callback.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        let request = CompleteConnectionRequest {
            state: answer("state").context("no state")?,
            code: answer("code").context("no code")?,
            issuer: answer("iss").unwrap_or_default(),
            ..CompleteConnectionRequest::default()
        };
        broker.complete_connection(request).await?;
        Ok(Self { broker, remaining })
    }
}

impl Caller for Asker {
    async fn call(&mut self) -> Result<u64> {
        let request = GetAccessTokenRequest {
            upstream: UPSTREAM.into(),
            min_remaining_seconds: self.remaining,
            ..GetAccessTokenRequest::default()
        };
        let answer = self.broker.get_access_token(request).await?.into_inner();
        ensure!(!answer.access_token.is_empty(), "an empty token");
        Ok(1)
    }
}

async fn tokens(session: &Session, engine: Engine, remaining: i32, callers: usize) -> Result<Sample> {
    let cluster = session.cluster(engine)?;
    let mut people = Vec::new();
    for _ in 0..PEOPLE {
        people.push(Asker::connected(cluster, remaining).await?);
    }
    let callers = (0..callers).map(|place| people[place % PEOPLE].clone()).collect();
    Ok(drive(callers, session.times, session.processes()).await?.0)
}
