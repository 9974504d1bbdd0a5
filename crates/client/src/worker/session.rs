//! The session: one task that owns the stream, the leases and the credits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gatehouse_core::{Entropy, ErrorCode, Result};
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::worker_service_client::WorkerServiceClient;
use gatehouse_proto::job::v1::{
    WorkCredit, WorkGoodbye, WorkHeartbeat, WorkHello, WorkLease, WorkRelease, WorkRequest, WorkResponse,
    WorkWelcome,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::Instrument as _;

use super::held::{Command, Key, Leases};
use super::job::{Failure, LeasedJob, Stop, Unfinished};
use super::{Handler, WorkerConfig};
use crate::{Authorized, Backoff, context, from_status};

/// How long it may take until the service has answered a hello, with the token for it.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for answers that came while this process stood still.
const LATE_ANSWERS: Duration = Duration::from_millis(100);

pub(super) struct Session {
    channel: Authorized,
    config: WorkerConfig,
    handlers: BTreeMap<String, Handler>,
    backoff: Backoff,
    worker_id: String,
    leases: Leases,
    commands: (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>),
    heartbeat: Duration,
    lease_ttl: Duration,
    /// From when on the service counts our leases for `lease_ttl`, as far as we can tell: never later than it does.
    alive_at: Instant,
    /// When the drain that has begun must be over.
    drain_by: Option<Instant>,
    /// Whether the service takes us for its worker now.
    connected: watch::Sender<bool>,
}

/// An open stream. Outgoing messages are bounded by the leases' windows, so their channel needs no bound.
struct Link {
    outgoing: mpsc::UnboundedSender<WorkRequest>,
    incoming: Streaming<WorkResponse>,
    /// Credits that the service has and did not use.
    granted: usize,
    /// Whether the service was told that this worker leaves, and said that no more leases come.
    goodbye: Goodbye,
    /// Whether the service said that it goes away.
    closing: bool,
    /// When the stream is to be opened again, because its token ends soon after.
    renew_at: Option<Instant>,
    /// When the hello was on its way at the earliest.
    greeted_at: Instant,
    heartbeats: Heartbeats,
}

/// The heartbeats of a stream that wait for their answers: one is sent each third of the time after which none of them
/// counts, and the stream ends then.
#[derive(Default)]
struct Heartbeats {
    /// Whether this service answers them. Of one that does not we only know what we sent.
    are_answered: bool,
    sent: i64,
    unanswered: VecDeque<(i64, Instant)>,
}

impl Heartbeats {
    fn next(&mut self) -> WorkHeartbeat {
        self.sent += 1;
        if self.are_answered {
            self.unanswered.push_back((self.sent, Instant::now()));
        }
        WorkHeartbeat { number: self.sent }
    }

    /// When the newest of those that an answer stands for was sent.
    fn answered(&mut self, number: i64) -> Option<Instant> {
        let mut sent_at = None;
        while let Some((_, at)) = self.unanswered.pop_front_if(|(sent, _)| *sent <= number) {
            sent_at = Some(at);
        }
        sent_at
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    Unsaid,
    Said,
    Answered,
}

impl Link {
    /// A broken stream shows when it is read.
    fn send(&self, message: Message) {
        let _ = self.outgoing.send(WorkRequest { message: Some(message) });
    }
}

enum Ended {
    Drained,
    Broken,
    /// The service goes away.
    Moved,
    /// The stream's token ends soon.
    Renewed,
    /// The service has not renewed the leases for as long as they count.
    Silent,
}

impl Session {
    pub(super) fn new(
        channel: Authorized,
        config: WorkerConfig,
        handlers: BTreeMap<String, Handler>,
        entropy: &Entropy,
        connected: watch::Sender<bool>,
    ) -> Self {
        let max_wait = Duration::from_millis(config.reconnect_max_ms);
        Self {
            channel,
            config,
            handlers,
            backoff: Backoff::new(Duration::from_millis(50), max_wait, entropy.clone()),
            worker_id: String::new(),
            leases: Leases::default(),
            commands: mpsc::unbounded_channel(),
            heartbeat: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(15),
            alive_at: Instant::now(),
            drain_by: None,
            connected,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        loop {
            if shutdown.is_cancelled() && self.drain_by.is_none() {
                self.drain();
            }
            if self.drained() {
                return Ok(());
            }
            let connecting = connect(self.channel.clone(), self.hello());
            let Some(connected) = self.meanwhile(connecting, &shutdown).await else { continue };
            match connected {
                Ok((mut link, welcome)) => {
                    tracing::info!(
                        worker_id = welcome.worker_id,
                        held = welcome.held.len(),
                        "connected to the job service"
                    );
                    self.welcome(&mut link, welcome);
                    self.tell_connected(true);
                    let ended = self.serve(&mut link, &shutdown).await;
                    self.tell_connected(matches!(ended, Ended::Renewed));
                    match ended {
                        Ended::Drained => return Ok(()),
                        Ended::Renewed => {
                            tracing::debug!("the stream's token ends soon; going on with a new one");
                            continue;
                        }
                        Ended::Broken => {
                            tracing::warn!("the stream to the job service broke; connecting again");
                        }
                        Ended::Silent => {
                            tracing::warn!("the job service renews no leases; connecting again");
                        }
                        Ended::Moved => {
                            tracing::info!(
                                "this replica of the job service goes away; taking the session to another"
                            );
                        }
                    }
                }
                Err(error)
                    if matches!(
                        error.code(),
                        ErrorCode::PermissionDenied
                            | ErrorCode::NotFound
                            | ErrorCode::Unimplemented
                            | ErrorCode::InvalidArgument
                    ) =>
                {
                    self.leases.lose_all();
                    return Err(error);
                }
                Err(error) => {
                    self.tell_connected(false);
                    tracing::warn!(%error, "the job service did not take the worker; trying again");
                }
            }
            self.wait(&shutdown).await;
        }
    }

    /// Only a change is heard of.
    fn tell_connected(&self, connected: bool) {
        self.connected.send_if_modified(|before| std::mem::replace(before, connected) != connected);
    }

    fn hello(&self) -> WorkHello {
        WorkHello {
            kinds: self.handlers.keys().cloned().collect(),
            worker_id: self.worker_id.clone(),
            name: self.config.name.clone(),
        }
    }

    fn welcome(&mut self, link: &mut Link, welcome: WorkWelcome) {
        self.backoff.reset();
        link.heartbeats.are_answered = welcome.answers_heartbeats;
        // Where nothing is held, it is about leases to come: those are handed out after this.
        let is_about_held = welcome.answers_heartbeats && self.leases.any_held();
        let counts_from = if is_about_held { link.greeted_at } else { Instant::now() };
        self.alive_at = self.alive_at.max(counts_from);
        let millis = |value: i64| Duration::from_millis(u64::try_from(value).unwrap_or(0).max(10));
        self.heartbeat = millis(welcome.heartbeat_interval_ms);
        self.lease_ttl = millis(welcome.lease_ttl_ms);
        self.worker_id = welcome.worker_id;
        for request in self.leases.reconcile(&welcome.held) {
            let _ = link.outgoing.send(request);
        }
        // Leases that are not ours: given up by us already, or this process is not the one that took them.
        for lease in welcome.held {
            let key = Key { job_id: lease.job_id, epoch: lease.epoch };
            if !self.leases.holds(&key) {
                link.send(Message::Release(WorkRelease { job_id: key.job_id, epoch: key.epoch }));
            }
        }
        self.grant(link);
    }

    /// Lets the service hand out as many leases as there is room for.
    fn grant(&self, link: &mut Link) {
        let room = usize::try_from(self.config.concurrency).unwrap_or(1);
        let wanted = room.saturating_sub(self.leases.len() + link.granted);
        if self.drain_by.is_none() && wanted > 0 {
            link.granted += wanted;
            link.send(Message::Credit(WorkCredit { leases: i32::try_from(wanted).unwrap_or(1) }));
        }
    }

    async fn serve(&mut self, link: &mut Link, shutdown: &CancellationToken) -> Ended {
        let mut heartbeat = interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.drain_by.is_some() && link.goodbye == Goodbye::Unsaid {
                link.goodbye = Goodbye::Said;
                link.send(Message::Goodbye(WorkGoodbye {}));
            }
            // A lease may be on its way until the goodbye is answered.
            if self.drain_is_late() || link.goodbye == Goodbye::Answered && self.drained() {
                return Ended::Drained;
            }
            if link.closing {
                return Ended::Moved;
            }
            if link.goodbye == Goodbye::Answered && self.drain_by.is_none() {
                return Ended::Renewed;
            }
            let dead_at = self.dead_at();
            tokio::select! {
                answer = link.incoming.message() => match answer {
                    Ok(Some(WorkResponse { message: Some(answer) })) => self.answer(link, answer),
                    Ok(Some(WorkResponse { message: None })) => {}
                    Ok(None) => return Ended::Broken,
                    Err(status) => {
                        tracing::debug!(code = ?status.code(), "the stream ended");
                        return Ended::Broken;
                    }
                },
                Some(command) = self.commands.1.recv() => {
                    if let Some(request) = self.command(command) {
                        let _ = link.outgoing.send(request);
                    }
                    self.grant(link);
                },
                _ = heartbeat.tick() => self.beat(link),
                () = tokio::time::sleep_until(dead_at), if link.heartbeats.are_answered => {
                    self.read_late_answers(link).await;
                    if self.give_up_if_dead() {
                        return Ended::Silent;
                    }
                },
                () = shutdown.cancelled(), if self.drain_by.is_none() => self.drain(),
                () = until(self.drain_by) => {},
                // The leases stay; the service only hands out no more of them on this stream.
                () = until(link.renew_at), if link.goodbye == Goodbye::Unsaid => {
                    link.goodbye = Goodbye::Said;
                    link.send(Message::Goodbye(WorkGoodbye {}));
                },
            }
        }
    }

    /// If this process stood still, the answer may be there that says that the leases count, and nobody had the time to
    /// read it: not even the connection's task, which has to run first. Waits for it no longer than we are late anyway.
    async fn read_late_answers(&mut self, link: &mut Link) {
        let now = Instant::now();
        let until = now + now.duration_since(self.dead_at()).min(LATE_ANSWERS);
        while Instant::now() >= self.dead_at()
            && let Ok(Ok(Some(answer))) = timeout_at(until, link.incoming.message()).await
        {
            if let Some(answer) = answer.message {
                self.answer(link, answer);
            }
        }
    }

    fn beat(&mut self, link: &mut Link) {
        let heartbeat = link.heartbeats.next();
        link.send(Message::Heartbeat(heartbeat));
        if !link.heartbeats.are_answered {
            self.alive_at = Instant::now();
        }
    }

    fn dead_at(&self) -> Instant {
        self.alive_at + self.lease_ttl
    }

    /// Whether the service may have given our leases to others by now: then their jobs are stopped.
    fn give_up_if_dead(&mut self) -> bool {
        let dead = Instant::now() >= self.dead_at();
        if dead && self.leases.any_held() {
            tracing::warn!(
                leases = self.leases.len(),
                "out of touch for the time of a lease: stopping the jobs"
            );
            self.leases.lose_all();
        }
        dead
    }

    fn drain(&mut self) {
        self.drain_by = Some(Instant::now() + self.config.drain_timeout());
        self.leases.stop_all(Stop::Draining);
    }

    /// Whether a drain is over: every lease is given back, or its time is up.
    fn drained(&mut self) -> bool {
        self.drain_by.is_some() && (self.leases.is_empty() || self.drain_is_late())
    }

    fn drain_is_late(&mut self) -> bool {
        let late = self.drain_by.is_some_and(|drain_by| Instant::now() >= drain_by);
        if late {
            self.leases.lose_all();
        }
        late
    }

    fn answer(&mut self, link: &mut Link, answer: Answer) {
        if !link.heartbeats.are_answered {
            self.alive_at = Instant::now();
        }
        match answer {
            Answer::HeartbeatAck(ack) => {
                if let Some(sent_at) = link.heartbeats.answered(ack.number) {
                    self.alive_at = self.alive_at.max(sent_at);
                }
            }
            Answer::Lease(lease) => {
                link.granted = link.granted.saturating_sub(1);
                self.take(link, lease);
            }
            Answer::Ack(ack) => {
                let key = Key { job_id: ack.job_id, epoch: ack.epoch };
                if self.leases.acknowledge(&key, ack.write_number) {
                    self.grant(link);
                }
            }
            Answer::Cancel(cancel) => {
                self.leases.stop(&Key { job_id: cancel.job_id, epoch: cancel.epoch }, Stop::Cancelled);
            }
            Answer::LeaseLost(lost) => {
                self.leases.lose(&Key { job_id: lost.job_id, epoch: lost.epoch });
                self.grant(link);
            }
            Answer::Drain(_) if link.goodbye == Goodbye::Said => link.goodbye = Goodbye::Answered,
            // What it did not acknowledge is sent to the next.
            Answer::Drain(_) => link.closing = true,
            Answer::Welcome(_) => {}
        }
    }

    fn take(&mut self, link: &Link, lease: WorkLease) {
        let ids = (lease.job_id.parse(), lease.tenant_id.parse());
        let handler = self.handlers.get(&lease.kind).cloned();
        let (key, window, stop) = self.leases.add(&lease, self.config.max_unacknowledged);
        let (Some(handler), (Ok(id), Ok(tenant)), None) = (handler, ids, self.drain_by) else {
            // Given back like one that was begun: the drain waits until the service knows.
            if let Some(request) = self.leases.end(&key, Err(Unfinished::Stopped(Stop::Draining))) {
                let _ = link.outgoing.send(request);
            }
            return;
        };
        if lease.cancel_requested {
            self.leases.stop(&key, Stop::Cancelled);
        }
        let commands = self.commands.0.clone();
        let job = LeasedJob {
            id,
            tenant,
            attempt: u32::try_from(lease.attempt).unwrap_or(1),
            kind: lease.kind,
            input: lease.input_json,
            checkpoint: lease.checkpoint.into(),
            key: key.clone(),
            commands: commands.clone(),
            window,
            stop,
        };
        let span = tracing::info_span!(
            "job.run",
            job_id = %id,
            kind = job.kind,
            attempt = job.attempt,
            trace_id = tracing::field::Empty,
            outcome = tracing::field::Empty
        );
        context::adopt_traceparent(&span, &lease.traceparent);
        if let Some(trace) = context::trace_id(&span) {
            span.record("trace_id", trace);
        }
        let work = context::with_request_id(key.job_id.clone(), perform(handler, job)).instrument(span);
        tokio::spawn(async move {
            let verdict = work.await;
            // Without a session nobody is left to tell.
            let _ = commands.send(Command::Done(key, verdict));
        });
    }

    fn command(&mut self, command: Command) -> Option<WorkRequest> {
        match command {
            Command::Tell(key, told) => self.leases.tell(&key, told),
            Command::Done(key, verdict) => self.leases.end(&key, verdict),
        }
    }

    /// Waits before the next try.
    async fn wait(&mut self, shutdown: &CancellationToken) {
        let wait = tokio::time::sleep(self.backoff.next_wait());
        self.meanwhile(wait, shutdown).await;
    }

    /// Between two streams: jobs go on within their windows, until the service must take the worker for dead. What
    /// `awaited` gave; `None` if a drain is over before that.
    async fn meanwhile<T>(
        &mut self,
        awaited: impl Future<Output = T>,
        shutdown: &CancellationToken,
    ) -> Option<T> {
        let mut awaited = std::pin::pin!(awaited);
        loop {
            self.give_up_if_dead();
            let dead_at = self.dead_at();
            if self.drained() {
                return None;
            }
            tokio::select! {
                given = &mut awaited => return Some(given),
                () = tokio::time::sleep_until(dead_at), if self.leases.any_held() => {}
                Some(command) = self.commands.1.recv() => drop(self.command(command)),
                () = shutdown.cancelled(), if self.drain_by.is_none() => self.drain(),
                () = until(self.drain_by) => {}
            }
        }
    }
}

/// Opens a stream.
async fn connect(channel: Authorized, hello: WorkHello) -> Result<(Link, WorkWelcome)> {
    let (outgoing, requests) = mpsc::unbounded_channel();
    let _ = outgoing.send(WorkRequest { message: Some(Message::Hello(hello)) });
    let greeted = async move {
        // Asked before the call takes its token, which is this one or a newer one.
        let fades_in = channel.fades_in().await?;
        let renew_at = fades_in.map(|left| Instant::now() + left);
        let greeted_at = Instant::now();
        let mut client = WorkerServiceClient::new(channel);
        let answered = client.work(UnboundedReceiverStream::new(requests)).await;
        let mut incoming = answered.map_err(from_status)?.into_inner();
        let first = incoming.message().await.map_err(from_status)?;
        Ok((renew_at, greeted_at, incoming, first.and_then(|answer| answer.message)))
    };
    let away = |message| gatehouse_core::Error::unavailable("SERVICE_UNAVAILABLE", message);
    match timeout(HELLO_TIMEOUT, greeted).await {
        Ok(greeted) => match greeted? {
            (renew_at, greeted_at, incoming, Some(Answer::Welcome(welcome))) => Ok((
                Link {
                    outgoing,
                    incoming,
                    granted: 0,
                    goodbye: Goodbye::Unsaid,
                    closing: false,
                    renew_at,
                    greeted_at,
                    heartbeats: Heartbeats::default(),
                },
                welcome,
            )),
            _ => Err(away("The job service did not say welcome.")),
        },
        Err(_) => Err(away("The job service did not answer in time.")),
    }
}

/// Waits until `instant`; for ever without one.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn perform(handler: Handler, job: LeasedJob) -> Result<String, Unfinished> {
    let stop = job.stop.clone();
    if let Some(stop) = job.stop() {
        return Err(Unfinished::Stopped(stop));
    }
    // A task of its own, so that a panic is an outcome and not the end of the worker.
    let verdict = match tokio::spawn(handler(job).in_current_span()).await {
        Ok(verdict) => verdict,
        Err(error) => {
            tracing::error!(%error, "the handler of a job panicked");
            Err(Unfinished::Failed(Failure {
                reason: "WORKER_PANICKED".into(),
                message:
                    "The worker that did this job broke off. The job is tried again while attempts are left."
                        .into(),
                retryable: true,
            }))
        }
    };
    let outcome = match &verdict {
        Ok(_) => "succeeded",
        Err(Unfinished::Failed(failure)) => failure.reason.as_str(),
        Err(Unfinished::Stopped(_)) => "stopped",
    };
    tracing::Span::current().record("outcome", outcome);
    match verdict {
        // The strongest reason that is known by now counts, not the one that the handler saw.
        Err(Unfinished::Stopped(seen)) => Err(Unfinished::Stopped(stop.borrow().unwrap_or(seen).max(seen))),
        verdict => verdict,
    }
}
