//! What workers write about the jobs that they hold. Every write is fenced: it names the lease's epoch, and changes
//! nothing if that is no longer the job's.

use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_core::{Result, Timestamp};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_outbox::AuditEvent;
use serde_json::json;

use super::App;
use super::lease::WorkerSession;
use crate::domain::{EventType, Failure, JobState, Write, WriteOutcome, retry_pause};
use crate::store::events;
use crate::store::jobs::{self, Ending, Holding, LeaseRow, Said};

/// A write of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NumberedWrite {
    pub(crate) tenant: TenantId,
    pub(crate) job: JobId,
    pub(crate) epoch: i64,
    pub(crate) number: i64,
    pub(crate) write: Write,
    /// Of a message that ends a lease: its digest.
    pub(crate) said: Option<Said>,
}

/// What follows a commit: bells and counts.
#[derive(Debug, Default)]
pub(super) struct Effects {
    events: Vec<(TenantId, JobId)>,
    queues: Vec<String>,
    finished: Vec<(String, JobState)>,
}

impl App {
    /// Whether a lease was ended by exactly what was `said`: the worker says it again, since it heard no answer.
    pub(crate) async fn ended_before(&self, job: JobId, epoch: i64, said: Said) -> Result<bool> {
        Ok(read_tx!(self.0.db, "job.ended_before", |tx| { jobs::was_ended_by(tx, job, epoch, said).await })?)
    }

    /// Stores the writes of a worker, in order, in one transaction.
    pub(crate) async fn write(
        &self,
        worker: &WorkerSession,
        writes: &[NumberedWrite],
    ) -> Result<Vec<WriteOutcome>> {
        #[cfg(feature = "planted-bugs")]
        self.stand_still().await;
        let now = self.0.clock.now();
        let (outcomes, effects) = run_tx!(self.0.db, "job.write", |tx| {
            let mut effects = Effects::default();
            let mut outcomes = Vec::with_capacity(writes.len());
            for write in writes {
                outcomes.push(self.store(tx, worker, write, now, &mut effects).await?);
            }
            Ok((outcomes, effects))
        })?;
        for _ in outcomes.iter().filter(|outcome| **outcome == WriteOutcome::LeaseLost) {
            self.0.metrics.write_refused();
        }
        self.follow(effects);
        Ok(outcomes)
    }

    /// Between the last look at who holds what and a write there is always some time; with the bug planted, one write in
    /// some waits for longer than a lease of the fault harness lives, for the fence to be what is left.
    #[cfg(feature = "planted-bugs")]
    async fn stand_still(&self) {
        use gatehouse_core::planted::{Bug, is};
        if (is(Bug::UnfencedWrite) || is(Bug::HeldBackWrite)) && self.0.entropy.below(40) == 0 {
            let pause = std::time::Duration::from_millis(200 + self.0.entropy.below(3_000));
            let stopping = self.0.lifecycle.stopping();
            let _ = tokio::time::timeout(pause, stopping.cancelled()).await;
        }
    }

    pub(super) fn follow(&self, mut effects: Effects) {
        effects.events.sort_unstable();
        effects.events.dedup();
        for (tenant, job) in effects.events {
            self.ring_events(tenant, job);
        }
        for kind in effects.queues {
            self.ring_queue(&kind);
        }
        for (kind, state) in effects.finished {
            self.0.metrics.finished(&kind, state.as_str());
        }
    }

    async fn store(
        &self,
        tx: &mut Tx,
        worker: &WorkerSession,
        write: &NumberedWrite,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<WriteOutcome> {
        let NumberedWrite { tenant, job, epoch, number, .. } = *write;
        let holding = Holding { tenant, job, epoch, holder: worker.id() };
        let audit = |action: &str| {
            self.0.outbox.event(action).by(&worker.caller).tenant(tenant).target("job", job.as_uuid())
        };
        let stored = match &write.write {
            Write::Event { event_type, data, checkpoint } => {
                let written = jobs::write_event(tx, holding, number, now, checkpoint.clone()).await?;
                if let Some(written) = written {
                    let event = (written.sequence, *event_type, written.attempt);
                    events::add(tx, (tenant, job), event, now, data.clone()).await?;
                    effects.events.push((tenant, job));
                }
                written
            }
            Write::Checkpoint(checkpoint) => {
                let written = jobs::write_checkpoint(tx, holding, number, checkpoint.clone()).await?;
                written.map(|written| jobs::Written { sequence: 0, ..written })
            }
            ending => {
                let said = (ending, number, write.said);
                return self.end(tx, holding, said, audit, now, effects).await;
            }
        };
        if let Some(jobs::Written { sequence, cancel_requested, .. }) = stored {
            return Ok(WriteOutcome::Stored { sequence, cancel_requested });
        }
        // Stored before, and the worker did not hear of it; or one before it is missing; or no longer the worker's.
        Ok(match jobs::lookup_lease(tx, holding).await? {
            Some(lease) if lease.last_write >= number => {
                WriteOutcome::Stored { sequence: 0, cancel_requested: lease.cancel_requested }
            }
            Some(lease) => WriteOutcome::Missing { last_write: lease.last_write },
            None => WriteOutcome::LeaseLost,
        })
    }

    async fn end(
        &self,
        tx: &mut Tx,
        holding: Holding,
        (write, number, said): (&Write, i64, Option<Said>),
        audit: impl Fn(&str) -> AuditEvent,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<WriteOutcome> {
        let Some(lease) = jobs::lookup_lease(tx, holding).await? else {
            // Stored before, and the worker did not hear of it; or no longer the worker's.
            let before = match said {
                Some(said) => jobs::was_ended_by(tx, holding.job, holding.epoch, said).await?,
                None => false,
            };
            return Ok(if before { WriteOutcome::STORED_BEFORE } else { WriteOutcome::LeaseLost });
        };
        if is_finish(write, said) && number != lease.last_write + 1 {
            return Ok(WriteOutcome::Missing { last_write: lease.last_write });
        }
        let holding = (holding, said);
        let stopped = Failure::new("WORKER_STOPPED", "The worker stopped before the job was done.");
        let ended = match write {
            Write::Succeed(result) => {
                let ending = Ending::Succeeded(result.clone());
                self.finish(tx, holding, &lease, &ending, audit("job.jobs.finish"), now, effects).await?
            }
            Write::Fail { failure, retryable: false } => {
                let ending = Ending::Failed(failure.clone());
                self.finish(tx, holding, &lease, &ending, audit("job.jobs.finish"), now, effects).await?
            }
            Write::Fail { failure, retryable: true } => {
                self.give_up(tx, holding, &lease, failure, audit, now, effects).await?
            }
            Write::Cancelled if !lease.cancel_requested => {
                self.give_up(tx, holding, &lease, &stopped, audit, now, effects).await?
            }
            Write::Release if !lease.cancel_requested => {
                let data = json!({"reason": "WORKER_DRAINING"}).to_string();
                let audit = audit("job.jobs.release");
                self.requeue(tx, holding, &lease, (now, 1), data, audit, now, effects).await?
            }
            _ => {
                self.finish(tx, holding, &lease, &Ending::Cancelled, audit("job.jobs.finish"), now, effects)
                    .await?
            }
        };
        Ok(match ended {
            Some(sequence) => WriteOutcome::Stored { sequence, cancel_requested: false },
            None => WriteOutcome::LeaseLost,
        })
    }

    /// An attempt ended without a result: another follows, if one is left and nobody asked for the job to stop.
    #[expect(clippy::too_many_arguments, reason = "one step of a transaction, called from two places")]
    pub(super) async fn give_up(
        &self,
        tx: &mut Tx,
        holding: (Holding, Option<Said>),
        lease: &LeaseRow,
        failure: &Failure,
        audit: impl Fn(&str) -> AuditEvent,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<Option<i64>> {
        if lease.cancel_requested {
            let audit = audit("job.jobs.finish");
            return self.finish(tx, holding, lease, &Ending::Cancelled, audit, now, effects).await;
        }
        if lease.attempt >= lease.max_attempts {
            let ending = Ending::Failed(failure.clone());
            return self.finish(tx, holding, lease, &ending, audit("job.jobs.finish"), now, effects).await;
        }
        let first =
            self.0.config.kinds.get(&lease.kind).map(crate::KindConfig::retry_pause).unwrap_or_default();
        let available_at = now.plus(retry_pause(lease.attempt, first));
        let data =
            json!({"reason": failure.reason, "message": failure.message, "available_at": available_at})
                .to_string();
        let audit = audit("job.jobs.requeue").failed(&failure.reason);
        self.requeue(tx, holding, lease, (available_at, 0), data, audit, now, effects).await
    }

    #[expect(clippy::too_many_arguments, reason = "one step of a transaction, called from two places")]
    async fn requeue(
        &self,
        tx: &mut Tx,
        (holding, said): (Holding, Option<Said>),
        lease: &LeaseRow,
        (available_at, attempts_given_back): (Timestamp, u32),
        data: String,
        audit: AuditEvent,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<Option<i64>> {
        let key = (holding.tenant, holding.job);
        let Some(written) = jobs::requeue(tx, holding, said, available_at, attempts_given_back).await? else {
            return Ok(None);
        };
        // The event belongs to the attempt that ended.
        let event = (written.sequence, EventType::Retrying, lease.attempt);
        events::add(tx, key, event, now, data).await?;
        self.0.outbox.emit(tx, &audit).await?;
        effects.events.push(key);
        effects.queues.push(lease.kind.clone());
        Ok(Some(written.sequence))
    }

    #[expect(clippy::too_many_arguments, reason = "one step of a transaction, called from three places")]
    pub(super) async fn finish(
        &self,
        tx: &mut Tx,
        (holding, said): (Holding, Option<Said>),
        lease: &LeaseRow,
        ending: &Ending,
        audit: AuditEvent,
        now: Timestamp,
        effects: &mut Effects,
    ) -> gatehouse_db::Result<Option<i64>> {
        let key = (holding.tenant, holding.job);
        let state = ending.state();
        let expires_at = now.plus(self.0.config.ttl(state));
        let Some(written) = jobs::finish(tx, holding, ending, said, now, expires_at).await? else {
            return Ok(None);
        };
        let (data, audit) = match ending {
            Ending::Failed(failure) => (end_data(state, Some(failure)), audit.failed(&failure.reason)),
            Ending::Succeeded(_) | Ending::Cancelled => (end_data(state, None), audit),
        };
        events::add(tx, key, (written.sequence, EventType::End, written.attempt), now, data).await?;
        self.0.outbox.emit(tx, &audit.payload(json!({"state": state.as_str()}))).await?;
        effects.events.push(key);
        effects.finished.push((lease.kind.clone(), state));
        Ok(Some(written.sequence))
    }
}

/// Whether a write that ends a lease has a number of its own: a release has none (what it leaves out, the next attempt
/// does), nor has the service's own end of a job whose worker breaks the rules.
fn is_finish(write: &Write, said: Option<Said>) -> bool {
    // Writes of others have moved the number.
    #[cfg(feature = "planted-bugs")]
    if gatehouse_core::planted::is(gatehouse_core::planted::Bug::UnfencedWrite) {
        return false;
    }
    said.is_some() && *write != Write::Release
}

/// Data of an `end` event.
pub(super) fn end_data(state: JobState, failure: Option<&Failure>) -> String {
    match failure {
        Some(failure) => {
            json!({"state": state.as_str(), "reason": failure.reason, "message": failure.message})
        }
        None => json!({"state": state.as_str()}),
    }
    .to_string()
}
