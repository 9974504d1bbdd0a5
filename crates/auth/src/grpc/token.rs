//! `gatehouse.auth.v1.TokenService`.

use std::time::Duration;

use gatehouse_core::{Error, Result, Secret};
use gatehouse_proto::auth::v1::token_service_server::TokenService;
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, RevokeTokenRequest, RevokeTokenResponse,
    WatchRevocationsRequest, WatchRevocationsResponse,
};
use gatehouse_service::{Caller, Peer, reply};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Face, micros, text};
use crate::revocation_log::RevocationLog;

/// How long a watcher may hear nothing. A quarter of what privileged methods tolerate.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// The service that stands at the OAuth endpoint.
const GATEWAY: &str = "gateway";

/// Entries in one message: some 100 KiB, where clients take 4 MiB.
const PART: usize = 1_000;

#[async_trait]
impl TokenService for Face {
    type WatchRevocationsStream = ReceiverStream<Result<WatchRevocationsResponse, Status>>;

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        // A service asks for itself; the gateway passes on what clients show it.
        if let Some(peer) = Peer::of(&request).filter(|peer| peer.service() != GATEWAY)
            && peer.service() != request.get_ref().client_id
        {
            tracing::warn!(
                peer = peer.service(),
                "client credentials were refused: they are another service's"
            );
            return reply(Err(Error::permission_denied(
                "CLIENT_OF_ANOTHER_SERVICE",
                "These client credentials belong to another service than the one that shows them.",
            )));
        }
        let message = request.into_inner();
        let secret = Secret::new(message.client_secret);
        let issued =
            self.app.issue_token(&message.client_id, &secret, &message.audience, &message.scope).await;
        reply(issued.map(|issued| IssueTokenResponse {
            access_token: issued.token.expose().clone(),
            expires_at: issued.expires_at.as_micros(),
            scope: issued.permissions.join(" "),
        }))
    }

    async fn exchange_token(
        &self,
        request: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        let exchanged = async {
            let message = request.get_ref();
            let subject = Secret::new(message.subject_token.clone());
            let caller = Caller::of(&request)?;
            self.app.exchange_token(caller, &subject, &message.audience, message.act_for_subject).await
        };
        reply(exchanged.await.map(|exchanged| ExchangeTokenResponse {
            access_token: exchanged.token.token.expose().clone(),
            expires_at: exchanged.token.expires_at.as_micros(),
            subject_expires_at: micros(exchanged.subject_expires_at),
            person_id: text(exchanged.person),
            tenant_id: text(exchanged.tenant),
            session_id: text(exchanged.session),
            credential_id: text(exchanged.credential),
        }))
    }

    async fn introspect_token(
        &self,
        request: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        let said = self.app.introspect_token(&Secret::new(request.into_inner().token)).await;
        reply(
            said.map(|claims| IntrospectTokenResponse {
                active: claims.is_some(),
                claims_json: text(claims),
            }),
        )
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let done = self.app.revoke_token(&Secret::new(request.into_inner().token)).await;
        reply(done.map(|()| RevokeTokenResponse {}))
    }

    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<GetJwksResponse>, Status> {
        reply(self.app.jwks().map(|(jwks_json, max_age)| GetJwksResponse {
            jwks_json,
            max_age_ms: i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX),
        }))
    }

    async fn watch_revocations(
        &self,
        request: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let after = request.into_inner().after_sequence;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let (log, stopping) = (self.app.0.revocations.clone(), self.lifecycle.stopping());
        self.lifecycle.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = watch(log, after, sender) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends what is live, then each reading that brought something, and a heartbeat with one that did not. While the table
/// can't be read nothing is sent but the last reading to whoever comes, with its age, so that verifiers know that their
/// news is late. Numbers count within one history of the table: in another, all is told again.
async fn watch(
    log: RevocationLog,
    after: i64,
    sender: tokio::sync::mpsc::Sender<Result<WatchRevocationsResponse, Status>>,
) {
    let mut readings = log.subscribe();
    let mut sent = after;
    let mut history = None;
    let mut last_sent: Option<tokio::time::Instant> = None;
    loop {
        let reading = *readings.borrow_and_update();
        if let Some(reading) = reading {
            let is_another = history.is_some_and(|history| history != reading.history);
            if is_another || sent > reading.sequence {
                sent = 0;
            }
            history = Some(reading.history);
            // In parts, for any number may be live; only the last covers the whole reading.
            loop {
                let revocations = log.after(sent, PART);
                let quiet = last_sent.is_some_and(|sent| sent.elapsed() < HEARTBEAT / 2);
                if quiet && revocations.is_empty() {
                    break;
                }
                let whole = revocations.len() < PART;
                let last = revocations.last().map_or(sent, |last| last.sequence);
                sent = if whole { last.max(reading.sequence) } else { last };
                let message = WatchRevocationsResponse {
                    revocations,
                    sequence: sent,
                    snapshot_complete: whole,
                    heartbeat_ms: i64::try_from(HEARTBEAT.as_millis()).unwrap_or(i64::MAX),
                    age_ms: i64::try_from(reading.age().as_millis()).unwrap_or(i64::MAX),
                };
                // A watcher that takes nothing for as long as this is better off with a new stream.
                if !matches!(tokio::time::timeout(HEARTBEAT * 4, sender.send(Ok(message))).await, Ok(Ok(())))
                {
                    return;
                }
                last_sent = whole.then(tokio::time::Instant::now);
                if whole {
                    break;
                }
            }
        }
        tokio::select! {
            changed = readings.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}
