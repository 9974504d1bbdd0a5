//! From tokens in an answer to tokens in their place: pending, promoted, known to the database, old one shredded.
//! Each step can be done again, by whoever comes after a crash.

use std::time::Duration;

use gatehouse_core::{Secret, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_secrets::{Error, IdempotencyToken, SecretKey, VersionId, VersionInfo};
use uuid::Uuid;

use super::Broker;
use super::attempt::{Attempted, escrow_purpose};
use super::failure::Failure;
use super::rotate::{Rotation, version_id};
use crate::domain::answer::{AccessToken, RawAnswer, Tokens};
use crate::domain::connection::{ConnectionKey, ConnectionState};
use crate::domain::scopes::Scopes;
use crate::domain::wish::Life;
use crate::steps::Step;
use crate::store::access_tokens::{self, Cached};
use crate::store::connections::{self, secret_key};
use crate::store::rotations::{self, Answered, End};

/// No access token is kept or called valid for longer (requirement B3c).
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// Rows of attempts that are over, kept for whoever asks what happened.
const KEPT_ATTEMPTS: i64 = 20;

/// What there is to know of an attempt once it was answered.
pub(crate) struct Attempt {
    pub(crate) generation: i64,
    pub(crate) rotation_id: Uuid,
    /// The version that was shown to the provider.
    pub(crate) shown: VersionId,
    /// The version that was current when the token was picked; what came of it replaces no other.
    pub(crate) expected: Option<VersionId>,
    pub(crate) scopes: Scopes,
}

impl Broker {
    /// Acts on an answer that an earlier holder left in escrow. Whether it gave tokens.
    ///
    /// One that does not open now stays: a key may come back (restored, its `min_decryption_version` lowered, the right
    /// one configured), and until then nobody can know whether the answer holds the successor of the token that would be
    /// shown again. Only the person gives it up, by a new consent or by disconnecting.
    pub(crate) async fn settle_escrow(
        &self,
        rotation: &Rotation<'_>,
        row: &Answered,
    ) -> Result<bool, Failure> {
        let opened = self.secrets.unseal(&escrow_purpose(row.key, row.rotation_id), &row.escrow).await;
        let answer = match opened {
            Ok(bytes) => RawAnswer::from_bytes(bytes.expose()),
            Err(Error::DoesNotOpen) => None,
            Err(other) => return Err(other.into()),
        };
        let Some(answer) = answer else {
            tracing::error!(
                connection = %row.key.connection,
                upstream = rotation.connection.upstream,
                generation = row.generation,
                "an upstream's answer in escrow does not open; no token is renewed until it does. Is the sealing key the \
                 one of before, and are its old versions allowed?"
            );
            return Err(Failure::Upstream { reason: "escrow_unreadable", wait: Self::wait_after(rotation) });
        };
        let attempt = Attempt {
            generation: row.generation,
            rotation_id: row.rotation_id,
            shown: version_id(&row.token_version)?,
            expected: row.expected_version.as_deref().map(version_id).transpose()?,
            scopes: row.scopes.clone(),
        };
        match self.act_on(rotation, &attempt, &answer).await {
            Ok(Attempted::Settled) => Ok(true),
            // It is on record; go on with what else there is.
            Ok(Attempted::Refused | Attempted::Outdated) | Err(Failure::Upstream { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    pub(crate) async fn settle(
        &self,
        rotation: &Rotation<'_>,
        attempt: &Attempt,
        tokens: &Tokens,
        received_at: Timestamp,
    ) -> Result<Attempted, Failure> {
        let lease = rotation.lease;
        let secret = secret_key(lease.key)?;
        let shown = self.secrets.get_version(&secret, &attempt.shown).await?;
        let fresh = tokens.refresh.as_ref().filter(|fresh| {
            shown.as_ref().is_none_or(|shown| shown.value.expose() != fresh.expose().as_bytes())
        });
        let successor = match fresh {
            Some(fresh) => {
                let value = Secret::new(fresh.expose().as_bytes().to_vec());
                let token = IdempotencyToken::new(attempt.rotation_id.to_string())?;
                let version = self.secrets.put_pending(&secret, &value, &token).await?;
                self.steps.at(Step::PendingPut)?;
                version
            }
            None => attempt.shown.clone(),
        };
        if !self.still_holds(lease).await? {
            return Err(self.overtaken(lease.key).await?);
        }
        self.steps.at(Step::HolderChecked)?;
        // Against what was current under the lease, never a fresh look: whoever came between is newer than we are.
        match self.secrets.promote(&secret, &successor, attempt.expected.as_ref()).await {
            Ok(()) => {}
            Err(error @ (Error::Conflict { .. } | Error::VersionNotFound)) => {
                if !self.still_holds(lease).await? {
                    return Err(self.overtaken(lease.key).await?);
                }
                if matches!(error, Error::VersionNotFound) {
                    return Err(error.into());
                }
                // A consent that was interrupted before it told the database: its token is the newer one.
                self.end(lease.key, attempt.generation, End::Failed("outdated")).await?;
                return Ok(Attempted::Outdated);
            }
            Err(other) => return Err(other.into()),
        }
        self.steps.at(Step::Promoted)?;

        let now = self.clock.now();
        let cached = match &tokens.access {
            Some(access) => {
                let granted = tokens.scopes.as_ref().unwrap_or(&attempt.scopes);
                let generation = lease.generation;
                Some(self.sealed(lease.key, &attempt.scopes, generation, access, granted, received_at).await?)
            }
            None => None,
        };
        // Listed while we are the newest: what a later consent or rotation puts there is none of ours to delete.
        let superseded = self.secrets.list_versions(&secret).await?;
        let event = self.event(rotation, "token-broker.tokens.rotate");
        let finished = run_tx!(self.db, "token_broker.rotation.finish", |tx| {
            if !connections::finish_rotation(tx, lease, fresh.is_some(), now).await? {
                return Ok(false);
            }
            rotations::end(tx, lease.key, attempt.generation, End::Done, now).await?;
            rotations::supersede(tx, lease.key, lease.generation, now).await?;
            rotations::prune(tx, lease.key, lease.generation - KEPT_ATTEMPTS).await?;
            if let Some(cached) = &cached {
                access_tokens::put(tx, lease.key, &attempt.scopes, cached).await?;
            }
            self.outbox.emit(tx, &event).await?;
            Ok(true)
        })?;
        if !finished {
            return Err(self.overtaken(lease.key).await?);
        }
        self.steps.at(Step::Finished)?;
        if let Err(error) = self.delete_all_but(&secret, superseded, &successor).await {
            // The next rotation deletes them.
            tracing::warn!(%error, connection = %lease.key.connection, "old refresh tokens could not be deleted yet");
        }
        self.steps.at(Step::OldDeleted)?;
        if tokens.access.is_none() {
            let wait = Self::wait_after(rotation);
            return Err(Failure::Upstream { reason: "answer_without_access_token", wait });
        }
        Ok(Attempted::Settled)
    }

    /// What a holder does that is not the newest any more. Its token stays as a candidate for whoever is, unless the
    /// connection is over: then nobody would ever look.
    async fn overtaken(&self, key: ConnectionKey) -> Result<Failure, Failure> {
        let connection =
            read_tx!(self.db, "token_broker.rotation.look", |tx| { connections::lookup(tx, key).await })?;
        if connection.is_some_and(|connection| connection.state != ConnectionState::Disconnected) {
            return Ok(Failure::Busy);
        }
        self.shred(key).await?;
        Ok(Failure::Gone)
    }

    /// Deletes what is superseded. The backend itself refuses to delete what is current by now.
    pub(crate) async fn delete_all_but(
        &self,
        secret: &SecretKey,
        versions: Vec<VersionInfo>,
        kept: &VersionId,
    ) -> gatehouse_secrets::Result<()> {
        for version in versions.into_iter().filter(|version| version.id != *kept) {
            self.secrets.delete_version(secret, &version.id).await?;
        }
        Ok(())
    }

    /// An access token as the cache keeps it.
    pub(crate) async fn sealed(
        &self,
        key: ConnectionKey,
        scopes: &Scopes,
        generation: i64,
        access: &AccessToken,
        granted: &Scopes,
        received_at: Timestamp,
    ) -> Result<Cached, Failure> {
        let text = Secret::new(access.token.expose().as_bytes().to_vec());
        let sealed = self.secrets.seal(&access_tokens::purpose(key, scopes, generation), &text).await?;
        Ok(Cached {
            generation,
            sealed,
            token_type: access.token_type.clone(),
            granted: granted.clone(),
            life: Life {
                issued_at: Some(received_at),
                expires_at: access.expires_at.min(received_at.plus(LONGEST_LIFE)),
            },
        })
    }
}
