//! One attempt: the intent is durable, the token is shown once, the answer is safe before anyone reads it.

use std::time::{Duration, Instant};

use gatehouse_core::{Error, Secret, Timestamp};
use gatehouse_db::run_tx;
use gatehouse_secrets::{SecretVersion, VersionId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Broker;
use super::failure::Failure;
use super::rotate::Rotation;
use super::settle::Attempt;
use crate::domain::answer::{self, Meaning, RawAnswer};
use crate::domain::connection::ConnectionKey;
use crate::steps::Step;
use crate::store::connections::{self, Lease};
use crate::store::rotations::{self, End, Intent};

/// How an attempt ended, if it ended in an answer about this token.
pub(crate) enum Attempted {
    Settled,
    /// `invalid_grant`: another token may do.
    Refused,
    /// The current token is not the one that this attempt may replace: a newer consent's stands there.
    Outdated,
}

impl Broker {
    pub(crate) async fn attempt(
        &self,
        rotation: &Rotation<'_>,
        candidate: &SecretVersion,
        expected: Option<VersionId>,
    ) -> Result<Attempted, Failure> {
        let (lease, key) = (rotation.lease, rotation.lease.key);
        let token = std::str::from_utf8(candidate.value.expose()).map_err(Error::internal)?;
        let (started, now) = (Instant::now(), self.clock.now());
        let until = now.plus(self.0.config.lease());
        let intent = Intent {
            rotation_id: gatehouse_core::ids::new_uuid(&self.clock, &self.entropy),
            token_version: candidate.id.as_str().to_owned(),
            expected_version: expected.as_ref().map(|expected| expected.as_str().to_owned()),
            token_hash: Sha256::digest(token).into(),
            scopes: rotation.scopes.clone(),
            deadline: now.plus(rotation.provider.timeout()),
        };
        let begun = run_tx!(self.db, "token_broker.rotation.intend", |tx| {
            let held = connections::renew_lease(tx, lease, until).await?;
            if held {
                rotations::add(tx, lease, &intent, now).await?;
            }
            Ok(held)
        })?;
        if !begun {
            return Err(Failure::Busy);
        }
        self.steps.at(Step::IntentCommitted)?;

        let narrowed = (rotation.scopes != rotation.connection.scopes).then_some(&rotation.scopes);
        // Nothing may be awaited between this look and the request.
        if self.stood_still(started, until, rotation.provider.timeout()) {
            return Err(self.show_nothing(lease).await?);
        }
        let answer = match rotation.provider.refresh(token, narrowed).await {
            Ok(answer) => answer,
            Err(silence) => {
                let reason = silence.reason();
                tracing::warn!(
                    upstream = rotation.provider.name,
                    cause = silence.cause(),
                    reason,
                    "no answer to a refresh"
                );
                self.end(key, lease.generation, End::Failed(reason)).await?;
                return Err(Failure::Upstream { reason, wait: Self::wait_after(rotation) });
            }
        };
        self.steps.at(Step::Answered)?;
        self.lay_into_escrow(key, lease.generation, intent.rotation_id, &answer).await?;
        self.steps.at(Step::EscrowCommitted)?;

        let attempt = Attempt {
            generation: lease.generation,
            rotation_id: intent.rotation_id,
            shown: candidate.id.clone(),
            expected,
            scopes: intent.scopes,
        };
        self.act_on(rotation, &attempt, &answer).await
    }

    /// Whether an attempt stood still since it `started` (SIGSTOP, a frozen cgroup, a commit held back) until its request
    /// might outlast the lease: then another may have shown the token by now, and this attempt may not. By both
    /// clocks, for each misses something: `Instant` (`CLOCK_MONOTONIC`) stands while the system is suspended, and the
    /// wall clock, by which others judge the lease, can be set back.
    fn stood_still(&self, started: Instant, until: Timestamp, timeout: Duration) -> bool {
        started.elapsed() + timeout > self.0.config.lease() || self.clock.now().plus(timeout) > until
    }

    /// Ends an attempt that showed nothing: it may not be taken for one whose answer was lost. If the lease is still held
    /// it goes back, for whoever wants to try again at once.
    async fn show_nothing(&self, lease: Lease) -> Result<Failure, Failure> {
        let now = self.clock.now();
        run_tx!(self.db, "token_broker.rotation.show_nothing", |tx| {
            rotations::end_unshown(tx, lease, now).await?;
            connections::release(tx, lease).await
        })?;
        tracing::warn!(
            connection = %lease.key.connection,
            generation = lease.generation,
            "stood still for too long to show a refresh token; showed nothing"
        );
        Ok(Failure::Busy)
    }

    /// Does what an answer asks for: the same whether it came just now or out of escrow.
    pub(crate) async fn act_on(
        &self,
        rotation: &Rotation<'_>,
        attempt: &Attempt,
        answer: &RawAnswer,
    ) -> Result<Attempted, Failure> {
        let key = rotation.lease.key;
        let upstream = |reason| Failure::Upstream { reason, wait: Self::wait_after(rotation) };
        match answer::read(answer) {
            Meaning::Granted(tokens) => self.settle(rotation, attempt, &tokens, answer.received_at).await,
            Meaning::InvalidGrant => {
                self.end(key, attempt.generation, End::Refused).await?;
                Ok(Attempted::Refused)
            }
            Meaning::Refused(reason) => {
                self.end(key, attempt.generation, End::Failed(reason)).await?;
                Err(upstream(reason))
            }
            Meaning::Unclear(reason) => {
                // A 200 that nobody can read may hold the only token there is.
                let end = if answer.status == 200 { End::FailedUnread(reason) } else { End::Failed(reason) };
                self.end(key, attempt.generation, end).await?;
                Err(upstream(reason))
            }
        }
    }

    /// From the provider's answer until this is committed the token exists in this memory alone: so it is tried for
    /// as long as there is hope, whatever fails.
    async fn lay_into_escrow(
        &self,
        key: ConnectionKey,
        generation: i64,
        rotation_id: Uuid,
        answer: &RawAnswer,
    ) -> Result<(), Failure> {
        let bytes = answer.to_bytes();
        let give_up = Instant::now() + 4 * self.0.config.lease();
        let mut pause = Duration::from_millis(20);
        loop {
            match self.try_escrow(key, generation, rotation_id, &bytes).await {
                Ok(()) => return Ok(()),
                Err(Failure::Busy) => return Err(Failure::Busy),
                Err(failure) if Instant::now() > give_up => return Err(failure),
                Err(failure) => {
                    tracing::error!(
                        connection = %key.connection,
                        generation,
                        cause = %gatehouse_core::redact(&format!("{failure:?}")),
                        "an upstream's answer could not be stored; trying again"
                    );
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn try_escrow(
        &self,
        key: ConnectionKey,
        generation: i64,
        rotation_id: Uuid,
        bytes: &Secret<Vec<u8>>,
    ) -> Result<(), Failure> {
        let sealed = self.secrets.seal(&escrow_purpose(key, rotation_id), bytes).await?;
        let laid = run_tx!(self.db, "token_broker.rotation.escrow", |tx| {
            rotations::lay_into_escrow(tx, key, generation, &sealed).await
        })?;
        if !laid {
            // A later rotation went well, or the connection was shredded: this answer is nobody's any more.
            tracing::info!(connection = %key.connection, generation, "an overtaken rotation's answer was dropped");
            return Err(Failure::Busy);
        }
        Ok(())
    }
}

/// What an answer is sealed for: moved to another row, it does not open.
pub(crate) fn escrow_purpose(key: ConnectionKey, rotation_id: Uuid) -> String {
    format!("token-broker/escrow/{}/{}/{rotation_id}", key.tenant, key.connection)
}
