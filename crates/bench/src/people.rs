//! People of the load: each the owner of a tenant of their own, signed in.

use anyhow::{Context as _, Result};
use gatehouse_client::audience;
use gatehouse_proto::auth::v1::account_service_client::AccountServiceClient;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{ExchangeTokenRequest, RegisterRequest, SignInRequest};

use gatehouse_core::{Clock, Entropy};
use uuid::Uuid;

use crate::cluster::Cluster;

/// Everybody's password.
pub(crate) const PASSWORD: &str = "nine purple teapots in a row";

/// Somebody who signed in.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) email: String,
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
}

impl Person {
    /// Registers somebody new and signs them in.
    ///
    /// # Errors
    /// What auth answered.
    pub(crate) async fn new(cluster: &Cluster) -> Result<Self> {
        let mut accounts = AccountServiceClient::new(cluster.channel("auth")?);
        let email = format!("{}@example.org", fresh_id().simple());
        accounts
            .register(RegisterRequest {
                email: email.clone(),
                password: PASSWORD.into(),
                tenant_name: "Bench".into(),
                ..RegisterRequest::default()
            })
            .await?;
        let request =
            SignInRequest { email: email.clone(), password: PASSWORD.into(), ..SignInRequest::default() };
        let tokens = accounts.sign_in(request).await?.into_inner().tokens.context("no tokens")?;
        Ok(Self {
            id: tokens.person_id,
            tenant: tokens.tenant_id,
            email,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
        })
    }

    /// So many people.
    ///
    /// # Errors
    /// As [`Person::new`].
    pub(crate) async fn several(cluster: &Cluster, count: usize) -> Result<Vec<Self>> {
        let mut people = Vec::new();
        for _ in 0..count {
            people.push(Self::new(cluster).await?);
        }
        Ok(people)
    }

    /// A token of theirs for one service, obtained as the gateway obtains them but for naming the load.
    ///
    /// # Errors
    /// What auth answered.
    pub(crate) async fn token_for(&self, cluster: &Cluster, audience: &str) -> Result<String> {
        let mut tokens = TokenServiceClient::new(cluster.as_client("auth", audience::AUTH)?);
        let request = ExchangeTokenRequest {
            subject_token: self.access_token.clone(),
            audience: audience.into(),
            act_for_subject: true,
        };
        Ok(tokens.exchange_token(request).await?.into_inner().access_token)
    }
}

/// An id that nothing else has.
pub(crate) fn fresh_id() -> Uuid {
    gatehouse_core::ids::new_uuid(&Clock::system(), &Entropy::system())
}
