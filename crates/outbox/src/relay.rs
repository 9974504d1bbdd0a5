//! Sends what the outbox holds to the audit service, in order, until each event is in the log. An event that the audit
//! service refuses or fails on does not keep those after it: then the order is another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gatehouse_client::{Authorized, Backoff, from_status};
use gatehouse_core::{Clock, Entropy, Error, ErrorCode, Timestamp};
use gatehouse_db::{Db, read_tx, run_tx};
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::audit::v1::{AppendEventsRequest, NewEvent};
use gatehouse_service::Lifecycle;
use prost::Message as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::stuck::Stuck;
use crate::{Config, Outbox, replacement, store};

/// The first pause before the relay looks again after a bell that rang too early; it grows fourfold each time.
const EAGER_PAUSE: Duration = Duration::from_millis(2);
/// How often it does so.
const EAGER_LOOKS: u32 = 4;

/// After so many events that the audit service failed on, one after the other, it is not the events.
const MOST_FAILING_IN_A_ROW: u32 = 10;

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
    /// Events that the audit service fails on, in this process; another learns of them by itself.
    stuck: Arc<Mutex<Stuck>>,
    /// How many refused events were told of.
    told: Arc<AtomicU64>,
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
            stuck: Arc::default(),
            told: Arc::default(),
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
                // All that is left is stuck and waits.
                if batch.is_empty() {
                    return Pass::Empty;
                }
                match self.send(batch).await {
                    Ok(0) | Err(()) => Pass::Failed,
                    Ok(done) => Pass::More(done),
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
        self.alarm(status.refused);
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
        let waiting = self.stuck().waiting(now);
        let most = self.config.batch.saturating_add(u32::try_from(waiting.len()).unwrap_or(u32::MAX));
        let mut batch = read_tx!(self.db, "outbox.next", |tx| { store::next(tx, most).await })?;
        batch.retain(|(id, _)| !waiting.contains(id));
        batch.truncate(self.config.batch as usize);
        Ok(Some(batch))
    }

    async fn send(&self, batch: Vec<(Uuid, Vec<u8>)>) -> Result<u64, ()> {
        let mut events = Vec::with_capacity(batch.len());
        for (id, bytes) in batch {
            match NewEvent::decode(bytes.as_slice()) {
                Ok(event) => events.push((id, event)),
                Err(error) => self.set_aside(id, &format!("not an event: {error}")).await?,
            }
        }
        let count = events.len() as u64;
        match self.append(&events).await {
            Ok(()) => Ok(count),
            Err(Refusal::NotNow) => Err(()),
            // One of them is not to the audit service's liking, or it fails on one: the others must not wait for it.
            Err(Refusal::Event(_) | Refusal::Failure(_)) => self.send_one_by_one(events).await,
        }
    }

    /// How many are done with. Those that the audit service fails on wait, each for itself.
    async fn send_one_by_one(&self, events: Vec<(Uuid, NewEvent)>) -> Result<u64, ()> {
        let (mut done, mut failed_in_a_row) = (0, 0);
        for (id, event) in events {
            match self.append(&[(id, event.clone())]).await {
                Ok(()) => (done, failed_in_a_row) = (done + 1, 0),
                Err(Refusal::NotNow) => return Err(()),
                Err(Refusal::Event(error)) => {
                    self.replace(id, event, error).await?;
                    (done, failed_in_a_row) = (done + 1, 0);
                }
                Err(Refusal::Failure(error)) => {
                    self.stuck().add(id, self.clock.now(), Duration::from_millis(self.config.max_backoff_ms));
                    tracing::error!(
                        event_id = %id, code = %error.code(), reason = error.reason(),
                        "the audit service fails on an event; it waits, later ones pass it"
                    );
                    failed_in_a_row += 1;
                    if failed_in_a_row == MOST_FAILING_IN_A_ROW {
                        // It is not the events.
                        return Err(());
                    }
                }
            }
        }
        self.metrics.stuck(self.stuck().len());
        Ok(done)
    }

    /// Sends in the event's place one without what was refused, so that it is known what happened; the event itself
    /// stays for a person to look at.
    async fn replace(&self, id: Uuid, event: NewEvent, refusal: Error) -> Result<(), ()> {
        let why = refusal.message().to_owned();
        let (mut event, mut refusal) = (event, refusal);
        let mut left_out: Vec<String> = Vec::new();
        let sent = loop {
            let field = replacement::field_of(&refusal).filter(|field| !left_out.contains(field));
            let Some(field) = field.filter(|_| left_out.len() < replacement::MOST_FIELDS) else {
                break false;
            };
            if !replacement::leave_out(&mut event, &field, self.clock.now()) {
                break false;
            }
            left_out.push(field);
            let request = AppendEventsRequest { events: vec![replacement::tell(&event, &left_out)] };
            match self.call(request).await {
                Ok(()) => break true,
                Err(Refusal::Event(error)) => refusal = error,
                // The event is still there as it was; the next pass comes here again.
                Err(Refusal::NotNow | Refusal::Failure(_)) => return Err(()),
            }
        };
        let what = if sent {
            format!("{why}; sent without {}", left_out.join(", "))
        } else {
            format!("{why}; NOT sent")
        };
        self.set_aside(id, &what).await
    }

    /// Sends events and removes them once the log has them.
    async fn append(&self, events: &[(Uuid, NewEvent)]) -> Result<(), Refusal> {
        if events.is_empty() {
            return Ok(());
        }
        self.call(AppendEventsRequest { events: events.iter().map(|(_, event)| event.clone()).collect() })
            .await?;
        let ids: Vec<Uuid> = events.iter().map(|(id, _)| *id).collect();
        let removed = run_tx!(self.db, "outbox.remove", |tx| { store::remove(tx, &ids).await });
        if let Err(error) = removed {
            // They will be sent again; the audit service knows their ids.
            tracing::warn!(%error, "relayed audit events could not be removed");
            return Err(Refusal::NotNow);
        }
        self.stuck().remove(&ids);
        self.metrics.sent(events.len() as u64);
        Ok(())
    }

    async fn call(&self, request: AppendEventsRequest) -> Result<(), Refusal> {
        let Err(status) = self.audit.clone().append_events(request).await else { return Ok(()) };
        let error = from_status(status);
        match error.code() {
            ErrorCode::InvalidArgument => return Err(Refusal::Event(error)),
            // It says itself that something is wrong with what it was given or has, not with the way there.
            ErrorCode::Internal
            | ErrorCode::FailedPrecondition
            | ErrorCode::NotFound
            | ErrorCode::Unimplemented => {
                self.metrics.failed();
                return Err(Refusal::Failure(error));
            }
            _ => {}
        }
        self.metrics.failed();
        tracing::warn!(code = %error.code(), reason = error.reason(), "audit events were not taken; they wait");
        Err(Refusal::NotNow)
    }

    async fn set_aside(&self, id: Uuid, why: &str) -> Result<(), ()> {
        self.stuck().remove(&[id]);
        tracing::error!(event_id = %id, why, "the audit service refuses an event; it stays in audit_outbox");
        run_tx!(self.db, "outbox.refuse", |tx| { store::refuse(tx, id, why).await }).map_err(|error| {
            tracing::warn!(%error, "a refused audit event could not be set aside");
        })
    }

    fn stuck(&self) -> std::sync::MutexGuard<'_, Stuck> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so, once for each number, where events wait for a person.
    fn alarm(&self, refused: u64) {
        if self.told.swap(refused, Ordering::Relaxed) != refused && refused > 0 {
            tracing::error!(
                refused,
                "audit events were refused and stay in audit_outbox: look at them, and at what made them"
            );
        }
    }
}

/// Why events were not taken.
enum Refusal {
    /// An event is wrong, and always will be.
    Event(Error),
    /// The audit service failed on them, perhaps because of one of them.
    Failure(Error),
    /// Something is away; later it may work.
    NotNow,
}
