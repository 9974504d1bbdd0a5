//! Submitting a job.

use gatehouse_client::context;
use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, Result};
use gatehouse_db::{Tx, run_tx};
use gatehouse_service::Caller;
use serde_json::json;

use super::App;
use super::queue::queue_full;
use crate::config::KindConfig;
use crate::domain::{EventType, IdempotencyKey, Job, request_digest};
use crate::store::events;
use crate::store::jobs::{self, NewJob};

/// What a submission led to.
enum Submitted {
    New(Job),
    Known(Job),
    KeyReused,
    QueueFull,
    /// The job of the key was deleted while we looked.
    Vanished,
}

impl App {
    /// Queues a job for the caller's tenant; `true` if the idempotency key had made it before.
    ///
    /// # Errors
    /// `KIND_NOT_FOUND`, `INPUT_TOO_LARGE`, `INPUT_INVALID`, `IDEMPOTENCY_KEY_REUSED`, `QUEUE_FULL`, `SUBMIT_RACED`.
    pub(crate) async fn submit(
        &self,
        caller: &Caller,
        kind: String,
        input: String,
        idempotency_key: &str,
    ) -> Result<(Job, bool)> {
        let tenant = caller.tenant()?;
        let bounds = self.kind(&kind)?;
        check_input(&input, bounds)?;
        let key = IdempotencyKey::parse(idempotency_key)?;
        let new = NewJob {
            tenant,
            id: JobId::new(&self.0.clock, &self.0.entropy),
            submitted_by: caller.subject().as_text(),
            traceparent: context::traceparent(),
            key: key.map(|key| (key, request_digest(&kind, &input))),
            max_attempts: bounds.max_attempts,
            kind,
            input,
        };
        let event = self
            .0
            .outbox
            .event("job.jobs.submit")
            .by(caller)
            .target("job", new.id.as_uuid())
            .payload(json!({"kind": new.kind, "input_bytes": new.input.len()}));
        let now = self.0.clock.now();
        let limit = i64::from(bounds.max_queued_per_tenant);
        let submitted = run_tx!(self.0.db, "job.submit", |tx| {
            if let Some(before) = known(tx, &new).await? {
                return Ok(before);
            }
            let Some(turn) = self.place_in_queue(tx, (tenant, &new.kind), limit, now).await? else {
                // The last place may have gone to another request with the same key, a moment ago.
                return Ok(known(tx, &new).await?.unwrap_or(Submitted::QueueFull));
            };
            if !jobs::add(tx, &new, now, turn).await? {
                // As the key has.
                return Ok(known(tx, &new).await?.unwrap_or(Submitted::Vanished));
            }
            let data = json!({"kind": new.kind}).to_string();
            events::add(tx, (tenant, new.id), (1, EventType::Queued, 0), now, data).await?;
            self.0.outbox.emit(tx, &event).await?;
            Ok(jobs::lookup(tx, tenant, new.id).await?.map_or(Submitted::Vanished, Submitted::New))
        })?;
        match submitted {
            Submitted::New(job) => {
                self.0.metrics.submitted(&job.kind);
                self.ring_queue(&job.kind);
                Ok((job, false))
            }
            Submitted::Known(job) => Ok((job, true)),
            Submitted::KeyReused => Err(Error::already_exists(
                "IDEMPOTENCY_KEY_REUSED",
                "This idempotency key was used for another request. Use a new key for a new job.",
            )),
            Submitted::QueueFull => Err(queue_full(limit)),
            Submitted::Vanished => Err(Error::aborted(
                "SUBMIT_RACED",
                "The job of this key was deleted just now. Submit it again.",
            )),
        }
    }

    pub(crate) fn kind(&self, kind: &str) -> Result<&KindConfig> {
        self.0.config.enabled_kind(kind).ok_or_else(|| {
            let enabled = self.0.config.kinds.iter().filter(|(_, bounds)| bounds.enabled);
            let known: Vec<_> = enabled.map(|(name, _)| name.as_str()).collect();
            let shown: String = kind.chars().take(64).collect();
            Error::not_found(
                "KIND_NOT_FOUND",
                format!("There is no kind of job {shown:?}; known are {}.", known.join(", ")),
            )
        })
    }
}

/// What the key of `new` has led to before.
async fn known(tx: &mut Tx, new: &NewJob) -> gatehouse_db::Result<Option<Submitted>> {
    let Some((key, digest)) = &new.key else { return Ok(None) };
    let found = jobs::lookup_by_key(tx, new.tenant, &new.submitted_by, key).await?;
    Ok(found.map(
        |(job, stored)| {
            if stored == *digest { Submitted::Known(job) } else { Submitted::KeyReused }
        },
    ))
}

fn check_input(input: &str, bounds: &KindConfig) -> Result<()> {
    if input.len() > usize::try_from(bounds.max_input_bytes).unwrap_or(usize::MAX) {
        let problem = format!("The input has {} bytes and may have {}.", input.len(), bounds.max_input_bytes);
        return Err(
            Error::invalid_argument("INPUT_TOO_LARGE", &problem).with_violation("input_json", problem)
        );
    }
    serde_json::from_str::<serde::de::IgnoredAny>(input).map(drop).map_err(|error| {
        let problem = format!("The input is not valid JSON: {error}.");
        Error::invalid_argument("INPUT_INVALID", &problem).with_violation("input_json", problem)
    })
}
