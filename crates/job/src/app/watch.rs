//! Following a job's events.
//!
//! Attach: listen to the job's bell, then read the log after the cursor, then read again at each ring. The log is
//! the only source, so every reader gets every event once and in order, whichever replica wrote it; the bell is
//! only a reason to look, and a look now and then makes up for lost rings. Of a reader who does not keep up, the
//! queue holds a bounded window; the rest waits in the log.

use std::time::Duration;

use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_core::{Error, Result};
use gatehouse_db::read_tx;
use gatehouse_service::Caller;
use gatehouse_service::doorbell::Bell;
use tokio::time::Instant;

use super::outgoing::Reader;
use super::{App, Outgoing, events_topic};
use crate::domain::{EventType, JobEvent, not_found};
use crate::store::{events, jobs};

/// Most events read from the log at once, and most in one message.
const PAGE: usize = 200;
/// After a look, rings within this time are one: a job that tells a thousand events a second is read a hundred times.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a replica that stops waits for a reader who has but what is queued to read, the end with it: well within a
/// drain, and much longer than one who reads takes.
const LAST_READ: Duration = Duration::from_secs(1);

struct Watch {
    caller: Caller,
    tenant: TenantId,
    job: JobId,
    after: i64,
    queue: Outgoing<JobEvent, Error>,
}

/// What a look at the log found.
enum Look {
    /// Everything that there is has been queued.
    UpToDate,
    /// The queue is full.
    Full,
    /// The final event has been queued.
    Over,
}

impl App {
    /// The events of a job after `after`, then live ones, until the final one.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `INVALID_FIELD` for a negative cursor. Later, in the stream: `SLOW_CONSUMER`, `TOKEN_REVOKED`,
    /// `JOB_NOT_FOUND` if the job is deleted meanwhile, `SERVICE_STOPPING`; all but the third can be resumed from the
    /// last sequence seen.
    pub(crate) async fn watch(
        &self,
        caller: &Caller,
        job: JobId,
        after: i64,
    ) -> Result<Reader<JobEvent, Error>> {
        let tenant = caller.tenant()?;
        if after < 0 {
            return Err(Error::invalid_field("after_sequence", "it must not be negative"));
        }
        // Before the first look, so that nothing falls between.
        let bell = self.0.doorbell.subscribe(&events_topic(tenant, job));
        read_tx!(self.0.db, "job.get", |tx| { jobs::lookup(tx, tenant, job).await })?
            .ok_or_else(not_found)?;
        let capacity = usize::try_from(self.0.config.sse_queue_maxsize).unwrap_or(usize::MAX);
        let (queue, reader) = Outgoing::new(capacity, PAGE);
        let watch = Watch { caller: caller.clone(), tenant, job, after, queue };
        self.0.lifecycle.spawn(self.clone().follow_log(watch, bell));
        Ok(reader)
    }

    async fn follow_log(self, mut watch: Watch, mut bell: Bell) {
        let stopping = self.0.lifecycle.stopping();
        let patience = Duration::from_secs(self.0.config.sse_backpressure_fail_timeout_s);
        let mut revoked = self.0.revocations.subscribe();
        let mut leave_at = None;
        loop {
            let look = match self.look(&mut watch).await {
                Ok(look) => look,
                Err(error) => return watch.queue.cut_off(error),
            };
            if matches!(look, Look::Over) {
                watch.queue.finish();
            }
            let looked_at = Instant::now();
            loop {
                if watch.queue.reader_gone() {
                    return;
                }
                let behind_at = watch.queue.behind_at(patience);
                if behind_at.is_some_and(|at| at <= Instant::now()) {
                    self.0.metrics.reader_cut_off();
                    tracing::info!(job_id = %watch.job, "a reader of events stayed behind and was cut off");
                    return watch.queue.cut_off(slow_consumer());
                }
                if matches!(look, Look::Over) && behind_at.is_none() {
                    return;
                }
                tokio::select! {
                    () = watch.queue.taken() => if matches!(look, Look::Full) { break },
                    () = bell.rung(), if matches!(look, Look::UpToDate) => {
                        tokio::time::sleep_until(looked_at + PAUSE).await;
                        break;
                    }
                    () = tokio::time::sleep_until(looked_at + self.0.config.poll_interval()), if matches!(look, Look::UpToDate) => break,
                    () = tokio::time::sleep_until(behind_at.unwrap_or(looked_at)), if behind_at.is_some() => {}
                    // The sender lives as long as the app.
                    _ = revoked.changed() => if let Err(error) = self.0.revocations.check(&watch.caller, false)
                        && error.reason() == "TOKEN_REVOKED"
                    {
                        return watch.queue.cut_off(error);
                    },
                    () = stopping.cancelled(), if leave_at.is_none() => {
                        if !matches!(look, Look::Over) {
                            return watch.queue.cut_off(stopping_now());
                        }
                        leave_at = Some(Instant::now() + LAST_READ);
                    }
                    () = tokio::time::sleep_until(leave_at.unwrap_or(looked_at)), if leave_at.is_some() => {
                        return watch.queue.cut_off(stopping_now());
                    }
                }
            }
        }
    }

    /// Queues what the log has after the cursor, as far as there is room.
    async fn look(&self, watch: &mut Watch) -> Result<Look> {
        loop {
            let room = watch.queue.room().min(PAGE);
            if room == 0 {
                return Ok(Look::Full);
            }
            let limit = i64::try_from(room).unwrap_or(1);
            let (tenant, job, after) = (watch.tenant, watch.job, watch.after);
            let (events, last) = read_tx!(self.0.db, "job.watch", |tx| {
                let found = jobs::lookup(tx, tenant, job).await?;
                let events = events::list(tx, tenant, job, after, limit).await?;
                Ok((events, found.map(|job| (job.state.is_final(), job.last_sequence))))
            })?;
            let (is_final, last_sequence) = last.ok_or_else(not_found)?;
            let count = events.len();
            if let Some(event) = events.last() {
                watch.after = event.sequence;
                let over = is_final && event.sequence >= last_sequence && event.event_type == EventType::End;
                watch.queue.add(events);
                if over {
                    return Ok(Look::Over);
                }
            } else if is_final && watch.after >= last_sequence {
                // The reader had seen the end before.
                return Ok(Look::Over);
            }
            if count < room {
                return Ok(Look::UpToDate);
            }
        }
    }
}

fn slow_consumer() -> Error {
    Error::resource_exhausted(
        "SLOW_CONSUMER",
        "Events were read too slowly. Connect again and go on after the last one that you have.",
    )
}

fn stopping_now() -> Error {
    Error::unavailable(
        "SERVICE_STOPPING",
        "This replica is stopping. Connect again and go on after the last event that you have.",
    )
}
