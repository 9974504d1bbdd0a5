//! Auth: refreshes, sign-ins, verifications, exchanges.

use anyhow::{Context as _, Result};
use gatehouse_client::Channel;
use gatehouse_client::{Authorized, audience};
use gatehouse_core::Clock;
use gatehouse_proto::auth::v1::account_service_client::AccountServiceClient;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{ExchangeTokenRequest, GetJwksRequest, RefreshRequest, SignInRequest};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{KeySet, Revocations, Verifier};

use super::{held, modes};
use crate::cluster::{Cluster, Engine};
use crate::figure::{Run, Sample};
use crate::load::{Caller, drive, spin};
use crate::people::{PASSWORD, Person};
use crate::session::Session;

/// Sign-ins at once: less than the queue of the hasher takes.
const SIGNING_IN: usize = 8;

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    for (engine, key) in modes("auth.refresh", "auth.refresh@sqlite") {
        held(session, run, key, refresh(session, engine)).await?;
    }
    let person = session.people(Engine::Postgres, 1).await?.swap_remove(0);
    held(session, run, "auth.sign-in", sign_in(session)).await?;
    session.limit("raw.ed25519-sign", run).await?;
    held(session, run, "auth.verify", verify(session, &person)).await?;
    held(session, run, "auth.exchange", exchange(session, &person)).await
}

/// A chain of refreshes of one session.
pub(crate) struct Refresher {
    accounts: AccountServiceClient<Channel>,
    token: String,
}

impl Refresher {
    pub(crate) fn new(channel: Channel, person: &Person) -> Self {
        Self { accounts: AccountServiceClient::new(channel), token: person.refresh_token.clone() }
    }
}

impl Caller for Refresher {
    async fn call(&mut self) -> Result<u64> {
        let request = RefreshRequest { refresh_token: self.token.clone(), origin: None };
        let answer = self.accounts.refresh(request).await?.into_inner();
        self.token = answer.tokens.context("no tokens")?.refresh_token;
        Ok(1)
    }
}

async fn refresh(session: &Session, engine: Engine) -> Result<Sample> {
    let cluster = session.cluster(engine)?;
    let channels = (0..session.connections).map(|_| cluster.channel("auth")).collect::<Result<Vec<_>>>()?;
    let people = session.people(engine, session.callers).await?;
    let callers = people
        .iter()
        .enumerate()
        .map(|(place, person)| Refresher::new(channels[place % channels.len()].clone(), person))
        .collect();
    let (sample, callers) = drive(callers, session.times, session.processes()).await?;
    session.keep_refresh_tokens(engine, callers.into_iter().map(|caller| caller.token));
    Ok(sample)
}

/// Somebody who signs in again and again.
pub(crate) struct SignerIn {
    accounts: AccountServiceClient<Channel>,
    email: String,
}

impl SignerIn {
    pub(crate) fn new(cluster: &Cluster, person: &Person) -> Result<Self> {
        let accounts = AccountServiceClient::new(cluster.channel("auth")?);
        Ok(Self { accounts, email: person.email.clone() })
    }
}

impl Caller for SignerIn {
    async fn call(&mut self) -> Result<u64> {
        let request = SignInRequest {
            email: self.email.clone(),
            password: PASSWORD.into(),
            ..SignInRequest::default()
        };
        self.accounts.sign_in(request).await?;
        Ok(1)
    }
}

async fn sign_in(session: &Session) -> Result<Sample> {
    let cluster = session.cluster(Engine::Postgres)?;
    // Their own people: who signs in so often ends sessions that others need.
    let people = Person::several(cluster, SIGNING_IN).await?;
    let callers = people.iter().map(|person| SignerIn::new(cluster, person)).collect::<Result<_>>()?;
    Ok(drive(callers, session.times, session.processes()).await?.0)
}

/// The check at every door, on one core, without a network.
async fn verify(session: &Session, person: &Person) -> Result<Sample> {
    let cluster = session.cluster(Engine::Postgres)?;
    let token = person.token_for(cluster, audience::JOB).await?;
    let jwks = TokenServiceClient::new(cluster.channel("auth")?).get_jwks(GetJwksRequest {}).await?;
    let (keys, clock) = (KeySet::default(), Clock::system());
    keys.replace(&jwks.into_inner().jwks_json)?;
    let revocations = Revocations::new(clock.clone(), Staleness::default());
    revocations.apply(&[], 0, true);
    // The issuer that a process without another setting has.
    let issuer = "https://gatehouse.localhost/dev";
    let verifier = Verifier::new(issuer, audience::JOB, keys, revocations.clone(), clock);
    verifier.verify(&token, false).context("the token of the load is not accepted")?;
    spin(1, session.times, || {
        let (verifier, token, revocations) = (verifier.clone(), token.clone(), revocations.clone());
        move || {
            // What the watch stream does twice a second; here it costs some nanoseconds each time.
            revocations.apply(&[], 0, true);
            std::hint::black_box(verifier.verify(&token, false).is_ok());
        }
    })
    .await
}

/// The gateway's question for each new credential.
pub(crate) struct Exchanger {
    tokens: TokenServiceClient<Authorized>,
    subject: String,
}

impl Exchanger {
    pub(crate) fn new(cluster: &Cluster, person: &Person) -> Result<Self> {
        let tokens = TokenServiceClient::new(cluster.as_client("auth", audience::AUTH)?);
        Ok(Self { tokens, subject: person.access_token.clone() })
    }
}

impl Caller for Exchanger {
    async fn call(&mut self) -> Result<u64> {
        let request = ExchangeTokenRequest {
            subject_token: self.subject.clone(),
            audience: audience::JOB.into(),
            act_for_subject: true,
        };
        self.tokens.exchange_token(request).await?;
        Ok(1)
    }
}

async fn exchange(session: &Session, person: &Person) -> Result<Sample> {
    let cluster = session.cluster(Engine::Postgres)?;
    let mut shared = Vec::new();
    for _ in 0..session.connections {
        shared.push(Exchanger::new(cluster, person)?);
    }
    let callers = (0..session.callers)
        .map(|place| {
            let Exchanger { tokens, subject } = &shared[place % shared.len()];
            Exchanger { tokens: tokens.clone(), subject: subject.clone() }
        })
        .collect();
    Ok(drive(callers, session.times, session.processes()).await?.0)
}
