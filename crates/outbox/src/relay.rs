//! Sends what the outbox holds to the audit service, in order, until each event is in the log.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::{Authorized, Backoff, from_status};
use gatehouse_core::{Clock, Entropy, ErrorCode, Timestamp};
use gatehouse_db::{Db, read_tx, run_tx};
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::audit::v1::{AppendEventsRequest, NewEvent};
use gatehouse_service::Lifecycle;
use prost::Message as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::{Config, Outbox, store};

/// The first pause before the relay looks again after a bell that rang too early; it grows fourfold each time.
const EAGER_PAUSE: Duration = Duration::from_millis(2);
/// How often it does so.
const EAGER_LOOKS: u32 = 4;

/// How often what the outbox holds is counted for the metrics: counting costs more the more there is.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How much the outbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Events that the audit service does not have yet.
    pub waiting: u64,
    /// How long the oldest of them has waited.
    pub oldest_age: Duration,
    /// Events that the audit service refused; they stay until a person looked at them.
    pub refused: u64,
}

/// The task that empties a service's outbox. Every replica runs one; one at a time works.
#[derive(Clone, Debug)]
pub struct Relay {
    db: Db,
    audit: AuditServiceClient<Authorized>,
    config: Config,
    clock: Clock,
    entropy: Entropy,
    bell: Arc<Notify>,
    holder: Uuid,
    metrics: Arc<Metrics>,
}

/// What one look at the table led to.
enum Pass {
    /// So many went out: there may be more.
    More(u64),
    /// Nothing is left.
    Empty,
    /// Another replica relays.
    Elsewhere,
    /// The audit service or the database did not take it; wait and try again.
    Failed,
}

impl Relay {
    /// The relay of `service` (its name in metrics), which sends over `audit`: a channel that is authorized for
    /// `gatehouse.audit` as a client with the permission `audit.events.append`.
    #[must_use]
    pub fn new(
        service: &'static str,
        db: Db,
        audit: Authorized,
        outbox: &Outbox,
        config: Config,
        clock: Clock,
        entropy: Entropy,
    ) -> Self {
        let holder = uuid::Builder::from_random_bytes(entropy.bytes()).into_uuid();
        Self {
            db,
            audit: AuditServiceClient::new(audit),
            config,
            clock,
            entropy,
            bell: outbox.bell.clone(),
            holder,
            metrics: Arc::new(Metrics::new(service)),
        }
    }

    /// Runs until `lifecycle` stops, and then for at most `drain_ms` until the table is empty; drain waits for it.
    pub fn start(self, lifecycle: &Lifecycle) {
        let stopping = lifecycle.stopping();
        lifecycle.spawn(async move { self.run(&stopping).await });
    }

    /// How much the outbox holds now.
    pub async fn status(&self) -> gatehouse_db::Result<Status> {
        let (waiting, oldest, refused) =
            read_tx!(self.db, "outbox.status", |tx| { store::backlog(tx).await })?;
        let oldest_age = oldest.map_or(Duration::ZERO, |oldest| self.clock.now().since(oldest));
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Status { waiting: count(waiting), oldest_age, refused: count(refused) })
    }

    async fn run(self, stopping: &CancellationToken) {
        let mut backoff = Backoff::new(
            Duration::from_millis(50),
            Duration::from_millis(self.config.max_backoff_ms),
            self.entropy.clone(),
        );
        // Looks soon after a bell, which is rung before its transaction commits.
        let mut eager = 0;
        let mut counted = None;
        while !stopping.is_cancelled() {
            let pass = self.pass(&mut counted).await;
            let pause = match pass {
                Pass::More(_) => Duration::ZERO,
                Pass::Empty if eager > 0 => EAGER_PAUSE * 4_u32.pow(EAGER_LOOKS - eager),
                Pass::Empty | Pass::Elsewhere => Duration::from_millis(self.config.poll_ms),
                Pass::Failed => backoff.next_wait(),
            };
            eager = eager.saturating_sub(1);
            let failed = matches!(pass, Pass::Failed);
            if !failed {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.bell.notified(), if !failed => eager = EAGER_LOOKS,
                () = stopping.cancelled() => {}
            }
        }
        // What the last calls left behind, and not what other replicas add meanwhile. What can't be sent now stays in
        // the table.
        let last = async {
            let mut left = self.status().await.map_or(u64::MAX, |status| status.waiting);
            while left > 0 {
                match self.pass(&mut counted).await {
                    Pass::More(sent) => left = left.saturating_sub(sent),
                    Pass::Failed => {
                        tokio::time::sleep(backoff.next_wait().min(Duration::from_millis(200))).await;
                    }
                    Pass::Empty | Pass::Elsewhere => return,
                }
            }
        };
        let drained = tokio::time::timeout(Duration::from_millis(self.config.drain_ms), last).await;
        if drained.is_err() {
            tracing::info!("audit events are left in the outbox; the next start sends them");
        }
        let released =
            run_tx!(self.db, "outbox.release", |tx| { store::release_relay(tx, self.holder).await });
        if let Err(error) = released {
            tracing::debug!(%error, "the relay was not released; another replica takes it after its time");
        }
    }

    /// Takes the next batch and sends it. `counted`: when the metrics were told last.
    async fn pass(&self, counted: &mut Option<Timestamp>) -> Pass {
        let now = self.clock.now();
        match self.anything_waits(counted, now).await {
            Ok(true) => {}
            Ok(false) => return Pass::Empty,
            Err(error) => {
                tracing::warn!(%error, "the outbox can't be read");
                return Pass::Failed;
            }
        }
        let until = now.plus(Duration::from_millis(self.config.lease_ms));
        match self.take_batch(now, until).await {
            Ok(None) => Pass::Elsewhere,
            Ok(Some(batch)) => {
                let count = batch.len() as u64;
                match self.send(batch).await {
                    Ok(()) => Pass::More(count),
                    Err(()) => Pass::Failed,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the outbox can't be read");
                Pass::Failed
            }
        }
    }

    async fn anything_waits(
        &self,
        counted: &mut Option<Timestamp>,
        now: Timestamp,
    ) -> gatehouse_db::Result<bool> {
        if counted.is_some_and(|before| now.since(before) < COUNT_EVERY) {
            return read_tx!(self.db, "outbox.look", |tx| { store::any_waits(tx).await });
        }
        let status = self.status().await?;
        self.metrics.show(&status);
        *counted = Some(now);
        Ok(status.waiting > 0)
    }

    /// The next events; `None` if another replica relays.
    async fn take_batch(
        &self,
        now: Timestamp,
        until: Timestamp,
    ) -> gatehouse_db::Result<Option<Vec<(Uuid, Vec<u8>)>>> {
        let held =
            run_tx!(self.db, "outbox.hold", |tx| { store::hold_relay(tx, self.holder, until, now).await })?;
        if !held {
            return Ok(None);
        }
        read_tx!(self.db, "outbox.next", |tx| { store::next(tx, self.config.batch).await }).map(Some)
    }

    async fn send(&self, batch: Vec<(Uuid, Vec<u8>)>) -> Result<(), ()> {
        let mut events = Vec::with_capacity(batch.len());
        for (id, bytes) in batch {
            match NewEvent::decode(bytes.as_slice()) {
                Ok(event) => events.push((id, event)),
                Err(error) => self.set_aside(id, &format!("not an event: {error}")).await?,
            }
        }
        match self.append(&events).await {
            Ok(()) => Ok(()),
            // One of them is not to the audit service's liking: the others must not wait for it.
            Err(Refusal::Event(_)) if events.len() > 1 => {
                for event in events {
                    self.append_one(event).await?;
                }
                Ok(())
            }
            Err(Refusal::Event(why)) => match events.first() {
                Some((id, _)) => self.set_aside(*id, &why).await,
                None => Ok(()),
            },
            Err(Refusal::NotNow) => Err(()),
        }
    }

    async fn append_one(&self, event: (Uuid, NewEvent)) -> Result<(), ()> {
        let id = event.0;
        match self.append(&[event]).await {
            Ok(()) => Ok(()),
            Err(Refusal::Event(why)) => self.set_aside(id, &why).await,
            Err(Refusal::NotNow) => Err(()),
        }
    }

    /// Sends events and removes them once the log has them.
    async fn append(&self, events: &[(Uuid, NewEvent)]) -> Result<(), Refusal> {
        if events.is_empty() {
            return Ok(());
        }
        let request = AppendEventsRequest { events: events.iter().map(|(_, event)| event.clone()).collect() };
        if let Err(status) = self.audit.clone().append_events(request).await {
            let error = from_status(status);
            if error.code() == ErrorCode::InvalidArgument {
                return Err(Refusal::Event(error.message().to_owned()));
            }
            self.metrics.failed();
            tracing::warn!(code = %error.code(), reason = error.reason(), "audit events were not taken; they wait");
            return Err(Refusal::NotNow);
        }
        let ids: Vec<Uuid> = events.iter().map(|(id, _)| *id).collect();
        let removed = run_tx!(self.db, "outbox.remove", |tx| { store::remove(tx, &ids).await });
        if let Err(error) = removed {
            // They will be sent again; the audit service knows their ids.
            tracing::warn!(%error, "relayed audit events could not be removed");
            return Err(Refusal::NotNow);
        }
        self.metrics.sent(events.len() as u64);
        Ok(())
    }

    async fn set_aside(&self, id: Uuid, why: &str) -> Result<(), ()> {
        tracing::error!(event_id = %id, why, "the audit service refuses an event; it stays in audit_outbox");
        run_tx!(self.db, "outbox.refuse", |tx| { store::refuse(tx, id, why).await }).map_err(|error| {
            tracing::warn!(%error, "a refused audit event could not be set aside");
        })
    }
}

/// Why events were not taken.
enum Refusal {
    /// An event is wrong, and always will be.
    Event(String),
    /// Something is away; later it may work.
    NotNow,
}
