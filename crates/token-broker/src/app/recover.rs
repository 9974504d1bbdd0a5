//! What a process does at its start and now and then: end what others were interrupted in.

use std::time::Duration;

use gatehouse_db::{read_tx, run_tx};
use gatehouse_service::reply;

use super::Broker;
use super::failure::Failure;
use super::rotate::Want;
use crate::store::{access_tokens, authorizations, connections, offline_grants, person_locks, rotations};

/// How many interrupted connections are seen to at once.
const AT_ONCE: usize = 8;
/// How long connections and offline grants are shown after they have ended. The audit trail keeps what they were.
const KEPT_ENDED: Duration = Duration::from_hours(30 * 24);
/// After how long nobody has a person's row any more that they took.
const LOCK_IS_OLD: Duration = Duration::from_hours(1);

impl Broker {
    /// Begins the sweeps; they end when the lifecycle stops.
    pub fn start(&self) {
        let broker = self.clone();
        self.lifecycle.spawn(async move {
            let stopping = broker.lifecycle.stopping();
            loop {
                if let Err(error) = broker.sweep().await {
                    reply::log(&error);
                }
                let pause = Duration::from_millis(broker.0.config.sweep_ms);
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        });
    }

    /// Before the first sweep, where no other process shares the database: whoever held a lease is dead.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn free_leases_of_the_dead(&self) -> gatehouse_core::Result<()> {
        if self.sole_replica {
            let freed =
                run_tx!(self.db, "token_broker.free_leases", |tx| { connections::free_leases(tx).await })?;
            if freed > 0 {
                tracing::info!(freed, "took over from a process that ended in the middle of its work");
            }
        }
        Ok(())
    }

    /// One round: offline grants of those who were revoked are ended, interrupted rotations are ended (so that a provider's leeway is not missed for want of a caller),
    /// disconnected connections shredded, what has expired deleted, static keys read again.
    ///
    /// # Errors
    /// Those of the database; what concerns one connection is logged and left for the next round.
    pub async fn sweep(&self) -> gatehouse_core::Result<()> {
        // First: what nobody may have any more must not wait for what is interrupted.
        self.sweep_grants().await?;
        let now = self.clock.now();
        let (interrupted, unshredded) = read_tx!(self.db, "token_broker.sweep.look", |tx| {
            Ok((rotations::list_interrupted(tx, now).await?, connections::list_unshredded(tx, now).await?))
        })?;
        for keys in interrupted.chunks(AT_ONCE) {
            let renewals = keys.iter().map(|key| async move {
                let connection = read_tx!(self.db, "token_broker.sweep.connection", |tx| {
                    connections::lookup(tx, *key).await
                })?;
                match connection {
                    Some(connection) => self.renew(*key, connection.scopes, Want::Recovery).await,
                    None => Ok::<(), Failure>(()),
                }
            });
            // Each failure was logged and audited where it happened.
            futures_util::future::join_all(renewals).await;
        }
        for key in unshredded {
            if let Err(failure) = self.shred(key).await {
                tracing::warn!(connection = %key.connection, ?failure, "a connection's secrets are not shredded yet");
            }
        }
        let abandoned = now.minus(Duration::from_secs(self.0.config.authorization_seconds));
        let unfinished = read_tx!(self.db, "token_broker.sweep.unfinished", |tx| {
            connections::list_unfinished(tx, abandoned).await
        })?;
        for key in unfinished {
            if let Err(failure) = self.abandon(key).await {
                tracing::warn!(connection = %key.connection, ?failure, "an abandoned connection is not removed yet");
            }
        }
        run_tx!(self.db, "token_broker.sweep.purge", |tx| {
            authorizations::purge(tx, now).await?;
            access_tokens::purge(tx, now).await
        })?;
        run_tx!(self.db, "token_broker.sweep.locks", |tx| {
            person_locks::purge(tx, now.minus(LOCK_IS_OLD)).await
        })?;
        let long_over = now.minus(KEPT_ENDED);
        run_tx!(self.db, "token_broker.sweep.forget", |tx| {
            offline_grants::forget(tx, long_over).await?;
            for key in connections::list_forgettable(tx, long_over).await? {
                rotations::forget(tx, key).await?;
                connections::forget(tx, key).await?;
            }
            Ok(())
        })?;
        self.read_static_keys().await;
        Ok(())
    }
}
