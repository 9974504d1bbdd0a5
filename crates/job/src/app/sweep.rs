//! The two clocks of a running job, and the end of a finished one. Every replica sweeps; each find is acted on by a
//! conditional statement, so the first one wins.
//!
//! Dead: the worker's heartbeat was lost, and its jobs go to others. Stalled: the worker lives but tells no progress;
//! that is an alarm, not an end, because only the attempt's own time limit can tell slow from stuck.

use std::time::Duration;

use gatehouse_core::{Result, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use super::App;
use super::write::Effects;
use crate::domain::{EventType, Failure};
use crate::store::jobs::{self, Holding, LeaseRow};
use crate::store::sweeps::{self, Held};
use crate::store::{events, queue_locks, sessions};

/// How long a queue's lock stays after it was last taken.
const LOCK_IS_OLD: Duration = Duration::from_hours(1);

/// The name under which the service audits what it does by itself.
const SERVICE: &str = "job";

fn holding(held: &Held) -> Holding {
    Holding { tenant: held.tenant, job: held.job, epoch: held.epoch, holder: held.holder }
}

fn lease_row(held: &Held) -> LeaseRow {
    LeaseRow {
        kind: held.kind.clone(),
        attempt: held.attempt,
        max_attempts: held.max_attempts,
        cancel_requested: held.cancel_requested,
        last_write: held.last_write,
    }
}

impl App {
    /// Sweeps until the process stops.
    pub(crate) async fn run_sweeper(self) {
        let stopping = self.0.lifecycle.stopping();
        let mut ticks = tokio::time::interval(Duration::from_millis(self.0.config.sweep_interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.sweep().await {
                gatehouse_service::reply::log(&error);
            }
        }
    }

    /// One sweep: dead workers, attempts over their time, stalled jobs, expired jobs. Runs by itself every
    /// `sweep_interval_ms`; public for tests that set the clock.
    ///
    /// # Errors
    /// Those of the database; the next sweep goes on.
    pub async fn sweep(&self) -> Result<()> {
        let now = self.0.clock.now();
        self.sweep_dead_workers(now).await?;
        for (kind, bounds) in &self.0.config.kinds {
            self.sweep_timed_out(kind, now.minus(Duration::from_millis(bounds.attempt_timeout_ms)), now)
                .await?;
            self.sweep_stalled(kind, now.minus(Duration::from_millis(bounds.stall_after_ms)), now).await?;
        }
        self.sweep_expired(now).await?;
        self.sweep_locks(now.minus(LOCK_IS_OLD)).await?;
        let counts = read_tx!(self.0.db, "job.count", |tx| { sweeps::count_by_state(tx).await })?;
        let kinds: Vec<_> = self.0.config.kinds.keys().map(String::as_str).collect();
        self.0.metrics.observe(&kinds, &counts, now);
        Ok(())
    }

    async fn sweep_dead_workers(&self, now: Timestamp) -> Result<()> {
        let failure = Failure::new("WORKER_LOST", "The worker that did this job went away.");
        let dead = read_tx!(self.0.db, "job.dead_workers", |tx| { sessions::list_expired(tx, now).await })?;
        for worker in dead {
            let (lost, effects) = run_tx!(self.0.db, "job.bury_worker", |tx| {
                let mut effects = Effects::default();
                if !sessions::delete_expired(tx, worker, now).await? {
                    return Ok((Vec::new(), effects));
                }
                let lost = sweeps::list_held_by(tx, worker).await?;
                for held in &lost {
                    self.take_back(tx, held, &failure, now, &mut effects).await?;
                }
                Ok((lost, effects))
            })?;
            for held in &lost {
                self.0.metrics.attempt_lost(&held.kind, "worker_lost");
                tracing::warn!(job_id = %held.job, kind = held.kind, attempt = held.attempt, "the worker of a job was lost");
            }
            self.follow(effects);
        }
        Ok(())
    }

    async fn sweep_timed_out(&self, kind: &str, since: Timestamp, now: Timestamp) -> Result<()> {
        let failure = Failure::new("ATTEMPT_TIMED_OUT", "The attempt took longer than this kind of job may.");
        let found =
            read_tx!(self.0.db, "job.timed_out", |tx| { sweeps::list_timed_out(tx, kind, since).await })?;
        for held in found {
            let effects = run_tx!(self.0.db, "job.time_out", |tx| {
                let mut effects = Effects::default();
                self.take_back(tx, &held, &failure, now, &mut effects).await?;
                Ok(effects)
            })?;
            self.0.metrics.attempt_lost(kind, "timed_out");
            tracing::warn!(job_id = %held.job, kind, attempt = held.attempt, "an attempt was over its time");
            self.follow(effects);
            self.ring_worker(held.holder);
        }
        Ok(())
    }

    async fn take_back(
        &self,
        tx: &mut gatehouse_db::Tx,
        held: &Held,
        failure: &Failure,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<()> {
        let audit = |action: &str| {
            self.0
                .outbox
                .event(action)
                .by_system(SERVICE)
                .tenant(held.tenant)
                .target("job", held.job.as_uuid())
        };
        self.give_up(tx, (holding(held), None), &lease_row(held), failure, audit, now, effects)
            .await
            .map(drop)
    }

    async fn sweep_stalled(&self, kind: &str, since: Timestamp, now: Timestamp) -> Result<()> {
        let found = read_tx!(self.0.db, "job.stalled", |tx| { sweeps::list_stalled(tx, kind, since).await })?;
        for held in found {
            let audit = self
                .0
                .outbox
                .event("job.jobs.stall")
                .by_system(SERVICE)
                .tenant(held.tenant)
                .target("job", held.job.as_uuid())
                .failed("JOB_STALLED");
            let marked = run_tx!(self.0.db, "job.mark_stalled", |tx| {
                let Some(written) = jobs::mark_stalled(tx, holding(&held), since).await? else {
                    return Ok(false);
                };
                let data = json!({"attempt": written.attempt}).to_string();
                let event = (written.sequence, EventType::Stalled, written.attempt);
                events::add(tx, (held.tenant, held.job), event, now, data).await?;
                self.0.outbox.emit(tx, &audit).await?;
                Ok(true)
            })?;
            if marked {
                self.0.metrics.stalled(kind);
                tracing::warn!(job_id = %held.job, kind, attempt = held.attempt, "a job is stalled: its worker lives but tells no progress");
                self.ring_events(held.tenant, held.job);
            }
        }
        Ok(())
    }

    async fn sweep_locks(&self, before: Timestamp) -> Result<()> {
        let oldest = read_tx!(self.0.db, "job.oldest_lock", |tx| { queue_locks::oldest(tx).await })?;
        if oldest.is_some_and(|oldest| oldest < before) {
            run_tx!(self.0.db, "job.purge_locks", |tx| { queue_locks::purge(tx, before).await })?;
        }
        Ok(())
    }

    async fn sweep_expired(&self, now: Timestamp) -> Result<()> {
        let expired = read_tx!(self.0.db, "job.expired", |tx| { sweeps::list_expired(tx, now).await })?;
        for (tenant, job, kind) in expired {
            let audit = self
                .0
                .outbox
                .event("job.jobs.purge")
                .by_system(SERVICE)
                .tenant(tenant)
                .target("job", job.as_uuid());
            let purged = run_tx!(self.0.db, "job.purge", |tx| {
                // The row goes first: whoever retries the job meanwhile makes this a no-op.
                if !jobs::delete(tx, tenant, job, now).await? {
                    return Ok(false);
                }
                events::delete(tx, tenant, job).await?;
                self.0.outbox.emit(tx, &audit).await?;
                Ok(true)
            })?;
            if purged {
                self.0.metrics.purged(&kind);
                self.ring_events(tenant, job);
            }
        }
        Ok(())
    }
}
