//! `Work`: one worker's stream.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::FutureExt as _;
use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, Result};
use gatehouse_proto::job::v1::work_finish::Outcome;
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::{
    JobEventType, WorkAck, WorkCancel, WorkDrain, WorkFinish, WorkHeartbeatAck, WorkHello, WorkLease,
    WorkLeaseLost, WorkRequest, WorkResponse, WorkWelcome,
};
use gatehouse_service::doorbell::Bell;
use gatehouse_service::{Caller, reply, status};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::convert::count;
use crate::App;
use crate::app::{NumberedWrite, Opened, WorkerSession, queue_topic, worker_topic};
use crate::domain::{EventType, Failure, JobEvent, Lease, Write, WriteOutcome};
use crate::store::sweeps::Held;

pub(super) type Answers = ReceiverStream<Result<WorkResponse, Status>>;

/// How long a worker may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Most messages that are stored in one transaction.
const BATCH: usize = 256;
/// How long a worker may take to go when the service stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// The most credit that one worker may hold.
const MAX_CREDIT: u32 = 1_000;

pub(super) async fn handle(app: &App, request: Request<Streaming<WorkRequest>>) -> Result<Answers> {
    let caller = Caller::of(&request)?.clone();
    let mut incoming = request.into_inner();
    let hello = match timeout(HELLO_TIMEOUT, incoming.message()).await {
        Ok(Ok(Some(WorkRequest { message: Some(Message::Hello(hello)) }))) => hello,
        Ok(Err(status)) => {
            return Err(reply::unreadable(&status).unwrap_or_else(|| {
                Error::unavailable("STREAM_BROKEN", "The stream broke.").caused_by(status)
            }));
        }
        Ok(Ok(_)) => {
            return Err(Error::invalid_argument("HELLO_MISSING", "The first message must be a hello."));
        }
        Err(_) => {
            return Err(Error::deadline_exceeded("HELLO_MISSING", "The worker did not say hello in time."));
        }
    };
    let WorkHello { kinds, worker_id, name } = hello;
    let opened = app.open_session(&caller, &kinds, &worker_id, &name).await?;
    let (answers, stream) = mpsc::channel(BATCH);
    let work = Work::new(app.clone(), opened, name, answers);
    app.lifecycle().spawn(work.run(incoming));
    Ok(ReceiverStream::new(stream))
}

/// What the stream knows of a lease that it handed out.
#[derive(Clone, Debug)]
struct Known {
    tenant: gatehouse_core::ids::TenantId,
    kind: String,
    cancel_told: bool,
}

struct Work {
    app: App,
    worker: WorkerSession,
    /// What the worker calls itself.
    name: String,
    answers: mpsc::Sender<Result<WorkResponse, Status>>,
    leases: HashMap<(JobId, i64), Known>,
    credit: u32,
    /// The last look at the queue may have left jobs there: it got as many as it asked for, or there was none yet. Else
    /// there is no reason to look until the queue's bell rings.
    queue_holds_more: bool,
    /// Said goodbye, or the service stops: gets no more leases.
    leaving: bool,
    welcome: Option<WorkWelcome>,
}

/// A write to a lease that the session does not have.
struct Stranger {
    job_id: String,
    epoch: i64,
    number: i64,
    said: Option<[u8; 32]>,
}

/// The stream is over; the worker may come back.
struct Over;

impl Work {
    fn new(
        app: App,
        opened: Opened,
        name: String,
        answers: mpsc::Sender<Result<WorkResponse, Status>>,
    ) -> Self {
        let Opened { session: worker, held } = opened;
        let ttl_ms = i64::try_from(app.config().lease_ttl_ms).unwrap_or(i64::MAX);
        let welcome = WorkWelcome {
            worker_id: worker.id().to_string(),
            heartbeat_interval_ms: ttl_ms / 3,
            lease_ttl_ms: ttl_ms,
            answers_heartbeats: true,
            held: held
                .iter()
                .map(|held| WorkLease {
                    job_id: held.job.to_string(),
                    epoch: held.epoch,
                    last_write_number: held.last_write,
                    ..WorkLease::default()
                })
                .collect(),
        };
        let leases = held
            .into_iter()
            .map(|held| {
                let known = Known { tenant: held.tenant, kind: held.kind, cancel_told: false };
                ((held.job, held.epoch), known)
            })
            .collect();
        Self {
            app,
            worker,
            name,
            answers,
            leases,
            credit: 0,
            queue_holds_more: true,
            leaving: false,
            welcome: Some(welcome),
        }
    }

    async fn run(mut self, mut incoming: Streaming<WorkRequest>) {
        let worker_id = self.worker.id();
        tracing::info!(%worker_id, name = self.name, held = self.leases.len(), "a worker has connected");
        // An error here means that nobody reads: then there is nobody to tell.
        let _ = self.serve(&mut incoming).await;
        if self.leases.is_empty()
            && let Err(error) = self.app.close_session(&self.worker).await
        {
            gatehouse_service::reply::log(&error);
        }
        tracing::info!(%worker_id, name = self.name, held = self.leases.len(), "a worker's stream has ended");
    }

    async fn serve(&mut self, incoming: &mut Streaming<WorkRequest>) -> Result<(), Over> {
        let mut queue = Queues::listen(&self.app, &self.worker);
        let mut own_bell = self.app.doorbell().subscribe(&worker_topic(self.worker.id()));
        let mut revoked = self.app.revocations().subscribe();
        let stopping = self.app.lifecycle().stopping();
        let mut poll = interval(self.app.config().poll_interval());
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked_at = Instant::now();
        let mut drain_by = None;
        if let Some(welcome) = self.welcome.take() {
            self.tell(Answer::Welcome(welcome)).await?;
        }
        // A cancel may have been asked for while the worker was away.
        self.reconcile().await?;
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(first)) => self.take(first, incoming).await?,
                    Ok(None) => return Ok(()),
                    Err(status) => return self.broken(&status).await,
                },
                // A ring that comes while there is no credit is still there to be heard when there is.
                () = queue.rung(), if self.may_dispatch() => self.dispatch().await?,
                () = std::future::ready(()), if self.may_dispatch() && self.queue_holds_more => self.dispatch().await?,
                () = own_bell.rung() => self.reconcile().await?,
                _ = poll.tick() => {
                    if self.may_dispatch() {
                        self.dispatch().await?;
                    }
                    // Rings may be lost.
                    if looked_at.elapsed() > self.app.config().lease_ttl() / 3 {
                        looked_at = Instant::now();
                        self.reconcile().await?;
                    }
                    if self.app.clock().now() >= self.worker.caller.expires_at() {
                        return self.fail(&Error::unavailable("TOKEN_EXPIRED", "The token has ended. Connect again with a new one.")).await;
                    }
                }
                _ = revoked.changed() => if let Err(error) = self.app.revocations().check(&self.worker.caller, false)
                    && error.reason() == "TOKEN_REVOKED"
                {
                    return self.fail(&error).await;
                },
                () = stopping.cancelled(), if drain_by.is_none() => {
                    drain_by = Some(Instant::now() + DRAIN_TIMEOUT);
                    self.leaving = true;
                    self.tell(Answer::Drain(WorkDrain {})).await?;
                }
                () = tokio::time::sleep_until(drain_by.unwrap_or_else(Instant::now)), if drain_by.is_some() => return Ok(()),
            }
        }
    }

    fn may_dispatch(&self) -> bool {
        self.credit > 0 && !self.leaving
    }

    async fn tell(&self, message: Answer) -> Result<(), Over> {
        self.answers.send(Ok(WorkResponse { message: Some(message) })).await.map_err(|_| Over)
    }

    async fn fail(&self, error: &Error) -> Result<(), Over> {
        self.answers.send(Err(status(error))).await.map_err(|_| Over)?;
        Err(Over)
    }

    /// Takes a message and all that have arrived behind it; their writes are one transaction.
    async fn take(&mut self, first: WorkRequest, incoming: &mut Streaming<WorkRequest>) -> Result<(), Over> {
        let mut writes = Vec::new();
        let mut heartbeat = None;
        let mut next = Some(first);
        let mut taken = 0;
        let mut broken = None;
        while let Some(WorkRequest { message }) = next.take() {
            taken += 1;
            match message {
                Some(Message::Credit(credit)) => {
                    let more = u32::try_from(credit.leases).unwrap_or(0);
                    self.credit = self.credit.saturating_add(more).min(MAX_CREDIT);
                }
                Some(Message::Heartbeat(sent)) => heartbeat = Some(sent.number),
                Some(Message::Goodbye(_)) => {
                    self.credit = 0;
                    self.leaving = true;
                    self.tell(Answer::Drain(WorkDrain {})).await?;
                }
                Some(Message::Hello(_)) | None => {}
                Some(write) => match self.write_of(write) {
                    Ok(write) => writes.push(write),
                    Err(stranger) => self.answer_stranger(stranger).await?,
                },
            }
            // What is read is taken. What is not there yet comes later, and an end shows again at the next read; a message
            // that can't be read shows once.
            if taken < BATCH {
                match incoming.message().now_or_never() {
                    Some(Ok(message)) => next = message,
                    Some(Err(status)) => broken = Some(status),
                    None => {}
                }
            }
        }
        if !writes.is_empty() {
            self.store(writes).await?;
        }
        if let Some(number) = heartbeat {
            // The answer says that the leases are renewed: that is committed first.
            match self.app.heartbeat(&self.worker).await {
                Ok(true) => self.tell(Answer::HeartbeatAck(WorkHeartbeatAck { number })).await?,
                Ok(false) => return self.fail(&session_over()).await,
                Err(error) => return self.fail(&error).await,
            }
        }
        match broken {
            Some(status) => self.broken(&status).await,
            None => Ok(()),
        }
    }

    /// Ends the stream because nothing more can be read from it.
    async fn broken(&self, status: &Status) -> Result<(), Over> {
        if let Some(error) = reply::unreadable(status) {
            return self.fail(&error).await;
        }
        // The connection is gone: there is nobody to tell.
        tracing::debug!(code = ?status.code(), "a worker's stream broke");
        Ok(())
    }

    async fn store(&mut self, writes: Vec<NumberedWrite>) -> Result<(), Over> {
        let outcomes = match self.app.write(&self.worker, &writes).await {
            Ok(outcomes) => outcomes,
            Err(error) => return self.fail(&error).await,
        };
        let mut missing = None;
        for (write, outcome) in writes.iter().zip(outcomes) {
            let key = (write.job, write.epoch);
            match outcome {
                WriteOutcome::LeaseLost => self.lose(key).await?,
                WriteOutcome::Missing { last_write } => {
                    missing.get_or_insert_with(|| write_missing(write, last_write));
                }
                WriteOutcome::Stored { sequence, cancel_requested } => {
                    if write.write.ends_lease() {
                        self.leases.remove(&key);
                    }
                    self.tell(Answer::Ack(WorkAck {
                        job_id: write.job.to_string(),
                        epoch: write.epoch,
                        write_number: write.number,
                        sequence,
                    }))
                    .await?;
                    if cancel_requested {
                        self.tell_cancel(key).await?;
                    }
                }
            }
        }
        // The worker learns from the next welcome what is stored, and sends the rest again.
        match missing {
            Some(error) => self.fail(&error).await,
            None => Ok(()),
        }
    }

    async fn tell_cancel(&mut self, key: (JobId, i64)) -> Result<(), Over> {
        let Some(known) = self.leases.get_mut(&key).filter(|known| !known.cancel_told) else { return Ok(()) };
        known.cancel_told = true;
        self.tell(Answer::Cancel(WorkCancel { job_id: key.0.to_string(), epoch: key.1 })).await
    }

    async fn lose(&mut self, key: (JobId, i64)) -> Result<(), Over> {
        self.leases.remove(&key);
        self.tell(Answer::LeaseLost(WorkLeaseLost { job_id: key.0.to_string(), epoch: key.1 })).await
    }

    /// Hands out leases for the credit that there is.
    async fn dispatch(&mut self) -> Result<(), Over> {
        let wanted = self.credit.min(self.app.config().lease_batch);
        let leases = match self.app.claim(&self.worker, wanted).await {
            Ok(Some(leases)) => leases,
            Ok(None) => return self.fail(&session_over()).await,
            Err(error) => return self.fail(&error).await,
        };
        self.queue_holds_more = leases.len() >= usize::try_from(wanted).unwrap_or(usize::MAX);
        for lease in leases {
            self.credit = self.credit.saturating_sub(1);
            let known =
                Known { tenant: lease.tenant, kind: lease.kind.clone(), cancel_told: lease.cancel_requested };
            self.leases.insert((lease.job, lease.epoch), known);
            self.tell(Answer::Lease(lease_message(lease))).await?;
        }
        Ok(())
    }

    /// Tells the worker of leases that it lost and of cancels, from the database.
    async fn reconcile(&mut self) -> Result<(), Over> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let held: Vec<Held> = match self.app.held(&self.worker).await {
            Ok(held) => held,
            Err(error) => return self.fail(&error).await,
        };
        let still: HashSet<_> = held.iter().map(|held| (held.job, held.epoch)).collect();
        let lost: Vec<_> = self.leases.keys().filter(|key| !still.contains(key)).copied().collect();
        for key in lost {
            self.lose(key).await?;
        }
        for held in held.iter().filter(|held| held.cancel_requested) {
            self.tell_cancel((held.job, held.epoch)).await?;
        }
        Ok(())
    }

    /// Answers a write to a lease that this session does not have. An end that was stored before is acknowledged again:
    /// the worker sends it because it did not hear that. Anything else is lost.
    async fn answer_stranger(&mut self, stranger: Stranger) -> Result<(), Over> {
        let Stranger { job_id, epoch, number, said } = stranger;
        if let (Ok(job), Some(said)) = (job_id.parse(), said) {
            match self.app.ended_before(job, epoch, said).await {
                Ok(true) => {
                    let ack = WorkAck { job_id, epoch, write_number: number, sequence: 0 };
                    return self.tell(Answer::Ack(ack)).await;
                }
                Ok(false) => {}
                Err(error) => return self.fail(&error).await,
            }
        }
        self.tell(Answer::LeaseLost(WorkLeaseLost { job_id, epoch })).await
    }

    /// The write that a message asks for, unless this session does not have the lease that it names.
    fn write_of(&self, message: Message) -> Result<NumberedWrite, Stranger> {
        let (job_id, epoch, number) = match &message {
            Message::Event(event) => (&event.job_id, event.epoch, event.write_number),
            Message::Checkpoint(checkpoint) => {
                (&checkpoint.job_id, checkpoint.epoch, checkpoint.write_number)
            }
            Message::Finish(finish) => (&finish.job_id, finish.epoch, finish.write_number),
            Message::Release(release) => (&release.job_id, release.epoch, 0),
            Message::Hello(_) | Message::Credit(_) | Message::Heartbeat(_) | Message::Goodbye(_) => {
                (&String::new(), 0, 0)
            }
        };
        let job_id = job_id.clone();
        let said = self.said(&message);
        let found =
            job_id.parse().ok().and_then(|job| self.leases.get(&(job, epoch)).map(|known| (job, known)));
        let Some((job, known)) = found else { return Err(Stranger { job_id, epoch, number, said }) };
        let max_result = self.app.config().kinds.get(&known.kind).map_or(0, |bounds| bounds.max_result_bytes);
        let write = write_of(message, usize::try_from(max_result).unwrap_or(0));
        Ok(NumberedWrite { tenant: known.tenant, job, epoch, number, write, said })
    }

    /// A digest of a message that ends a lease, as this client sent it: the same again is the same end. It has no key: the
    /// result itself stands in the same row (decision 0098).
    fn said(&self, message: &Message) -> Option<[u8; 32]> {
        let message = match message {
            Message::Finish(finish) => finish.encode_to_vec(),
            Message::Release(release) => release.encode_to_vec(),
            _ => return None,
        };
        let client = self.worker.caller.subject().as_text();
        Some(Sha256::new().chain_update(client).chain_update([0]).chain_update(message).finalize().into())
    }
}

/// What a message asks to be stored. A message that breaks the protocol fails the job: sent again it would break it
/// again.
fn write_of(message: Message, max_result_bytes: usize) -> Write {
    let numbered = match &message {
        Message::Event(event) => event.write_number > 0,
        Message::Checkpoint(checkpoint) => checkpoint.write_number > 0,
        _ => true,
    };
    if !numbered {
        return broken("writes are numbered from 1");
    }
    match message {
        Message::Event(event) => {
            let event_type = match JobEventType::try_from(event.r#type) {
                Ok(JobEventType::Progress) => EventType::Progress,
                Ok(JobEventType::Notice) => EventType::Notice,
                _ => return broken("a worker may tell of progress and notices only"),
            };
            let is_object =
                serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&event.data_json).is_ok();
            if event.data_json.len() > JobEvent::MAX_DATA || !is_object {
                return broken("the data of an event must be a JSON object of at most 16 KiB");
            }
            if event.checkpoint.len() > Write::MAX_CHECKPOINT {
                return broken("a checkpoint may have 64 KiB");
            }
            let checkpoint = (!event.checkpoint.is_empty()).then(|| event.checkpoint.to_vec());
            Write::Event { event_type, data: event.data_json, checkpoint }
        }
        Message::Checkpoint(checkpoint) if checkpoint.checkpoint.len() > Write::MAX_CHECKPOINT => {
            broken("a checkpoint may have 64 KiB")
        }
        Message::Checkpoint(checkpoint) => Write::Checkpoint(checkpoint.checkpoint.to_vec()),
        Message::Finish(WorkFinish { outcome, .. }) => match outcome {
            Some(Outcome::ResultJson(result)) if result.len() > max_result_bytes => {
                let message =
                    format!("The result has {} bytes and may have {max_result_bytes}.", result.len());
                Write::Fail { failure: Failure::new("RESULT_TOO_LARGE", message), retryable: false }
            }
            Some(Outcome::ResultJson(result))
                if serde_json::from_str::<serde::de::IgnoredAny>(&result).is_err() =>
            {
                broken("the result must be a JSON value")
            }
            Some(Outcome::ResultJson(result)) => Write::Succeed(result),
            Some(Outcome::Failure(failure)) => Write::Fail {
                failure: Failure::from_worker(&failure.reason, &failure.message),
                retryable: failure.retryable,
            },
            Some(Outcome::Cancelled(true)) => Write::Cancelled,
            Some(Outcome::Cancelled(false)) | None => broken("a finish must say how"),
        },
        Message::Release(_)
        | Message::Hello(_)
        | Message::Credit(_)
        | Message::Heartbeat(_)
        | Message::Goodbye(_) => Write::Release,
    }
}

fn broken(rule: &str) -> Write {
    let message = format!("The worker of this job broke a rule of the service: {rule}.");
    Write::Fail { failure: Failure::new("WORKER_PROTOCOL", message), retryable: false }
}

fn lease_message(lease: Lease) -> WorkLease {
    WorkLease {
        job_id: lease.job.to_string(),
        tenant_id: lease.tenant.to_string(),
        kind: lease.kind,
        epoch: lease.epoch,
        attempt: count(lease.attempt),
        input_json: lease.input,
        checkpoint: lease.checkpoint.into(),
        cancel_requested: lease.cancel_requested,
        traceparent: lease.traceparent,
        last_write_number: lease.last_write,
    }
}

fn write_missing(write: &NumberedWrite, last_write: i64) -> Error {
    let NumberedWrite { job, number, .. } = write;
    tracing::warn!(job_id = %job, number, last_write, "a worker's write does not follow the last one that was stored");
    Error::aborted(
        "WRITE_MISSING",
        format!(
            "Write {number} of job {job} does not follow write {last_write}, the last one stored. Connect again \
             and send what follows that one."
        ),
    )
}

fn session_over() -> Error {
    Error::aborted("SESSION_OVER", "This session is over or has a newer stream. Connect again.")
}

/// The bells of all kinds that a worker does.
struct Queues(Vec<Bell>);

impl Queues {
    fn listen(app: &App, worker: &WorkerSession) -> Self {
        Self(worker.kinds.iter().map(|(kind, _)| app.doorbell().subscribe(&queue_topic(kind))).collect())
    }

    async fn rung(&mut self) {
        let rings = self.0.iter_mut().map(|bell| Box::pin(bell.rung()));
        futures_util::future::select_all(rings).await;
    }
}
