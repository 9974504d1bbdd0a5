//! A worker's stream outlives its token: it is opened again, with the next one, before the service has to end it. Its jobs
//! live as long as their leases, and no longer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatehouse_client::worker::{LeasedJob, Stop, Worker, WorkerConfig};
use gatehouse_client::{Authorized, ChannelConfig, ClientCredentials, TokenSource, audience, channel};
use gatehouse_core::{Clock, Secret};
use gatehouse_proto::auth::v1::token_service_server::{TokenService, TokenServiceServer};
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, RevokeTokenRequest, RevokeTokenResponse,
    WatchRevocationsRequest, WatchRevocationsResponse,
};
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use gatehouse_proto::job::v1::{
    WorkAck, WorkDrain, WorkFinish, WorkHeartbeat, WorkHeartbeatAck, WorkLease, WorkRelease, WorkRequest,
    WorkResponse, WorkWelcome,
};
use gatehouse_testkit::{LagMeter, eventually};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

const LIFE: Duration = Duration::from_secs(2);
const JOB: &str = "01900000-0000-7000-8000-000000000001";
const PATIENCE: Duration = Duration::from_secs(30);

/// What the services saw.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
struct Record {
    tokens: usize,
    /// Each stream's credential, and the worker that it was opened for.
    streams: Vec<(String, String)>,
    /// Streams that the service had to end, because their token had.
    expired: usize,
    /// Streams that ended without a goodbye.
    broken: usize,
    manner: Manner,
    /// What each stream said after its hello, with the stream's number.
    said: Vec<(usize, Message)>,
}

/// How the job service treats its workers.
#[derive(Clone, Debug, Default)]
enum Manner {
    /// Hands out nothing, and ends a stream whose token has ended.
    #[default]
    Idle,
    /// The first stream brings a lease and breaks, and no other is answered.
    Strands,
    /// The first stream brings a lease and ends when the test says so, and the next takes it up. A heartbeat is answered or,
    /// by an older service, not.
    Breaks { answers_heartbeats: bool, at: CancellationToken },
    /// Streams are held open, and what is written is acknowledged, but no heartbeat is; yet the lease of the first counts on.
    CanNotRenew,
    /// No heartbeat after the tenth is answered until the test says so; from then on each is at once.
    AnswersLate { at: CancellationToken },
}

/// Longer than a machine stands still.
const LONG_LEASE: Duration = Duration::from_secs(5);
const SHORT_LEASE: Duration = Duration::from_millis(500);

fn say(answer: Answer) -> WorkResponse {
    WorkResponse { message: Some(answer) }
}

fn lease() -> WorkLease {
    WorkLease {
        job_id: JOB.into(),
        tenant_id: JOB.into(),
        kind: "count".into(),
        epoch: 1,
        attempt: 1,
        input_json: "{}".into(),
        ..WorkLease::default()
    }
}

impl Seen {
    fn with<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

#[tonic::async_trait]
impl TokenService for Seen {
    async fn issue_token(
        &self,
        _: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let (number, life) = self.with(|seen| {
            seen.tokens += 1;
            (seen.tokens, if matches!(seen.manner, Manner::Idle) { LIFE } else { PATIENCE * 10 })
        });
        Ok(Response::new(IssueTokenResponse {
            access_token: format!("t{number}"),
            expires_at: Clock::system().now().plus(life).as_micros(),
            scope: String::new(),
        }))
    }

    async fn exchange_token(
        &self,
        _: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn introspect_token(
        &self,
        _: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn revoke_token(
        &self,
        _: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<GetJwksResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type WatchRevocationsStream = ReceiverStream<Result<WatchRevocationsResponse, Status>>;

    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl WorkerService for Seen {
    type WorkStream = ReceiverStream<Result<WorkResponse, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<WorkRequest>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|request| request.message);
        let Some(Message::Hello(hello)) = first else { return Err(Status::invalid_argument("no hello")) };
        let number = self.with(|seen| {
            seen.streams.push((token, hello.worker_id));
            seen.streams.len()
        });
        let manner = self.with(|seen| seen.manner.clone());
        if matches!(manner, Manner::Strands) && number > 1 {
            std::future::pending::<()>().await;
        }
        let (lease_ttl, answers_heartbeats) = match &manner {
            Manner::Idle | Manner::AnswersLate { .. } => (LONG_LEASE, true),
            Manner::Strands | Manner::CanNotRenew => (SHORT_LEASE, true),
            Manner::Breaks { answers_heartbeats, .. } => (LONG_LEASE, *answers_heartbeats),
        };
        let (answers, stream) = mpsc::channel(8);
        let welcome = WorkWelcome {
            worker_id: "w1".into(),
            heartbeat_interval_ms: 100,
            lease_ttl_ms: i64::try_from(lease_ttl.as_millis()).unwrap(),
            held: if number > 1 { vec![lease()] } else { Vec::new() },
            answers_heartbeats,
        };
        answers.send(Ok(say(Answer::Welcome(welcome)))).await.unwrap();
        if number == 1 && !matches!(manner, Manner::Idle) {
            answers.send(Ok(say(Answer::Lease(lease())))).await.unwrap();
        }
        let expiry = match &manner {
            Manner::Strands => return Ok(Response::new(ReceiverStream::new(stream))),
            Manner::Idle => LIFE,
            Manner::Breaks { .. } | Manner::CanNotRenew | Manner::AnswersLate { .. } => PATIENCE * 2,
        };
        tokio::spawn(self.clone().listen(number, manner, expiry, incoming, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Seen {
    async fn listen(
        self,
        number: usize,
        manner: Manner,
        expiry: Duration,
        mut incoming: Streaming<WorkRequest>,
        answers: mpsc::Sender<Result<WorkResponse, Status>>,
    ) {
        let breaks = match &manner {
            Manner::Breaks { at, .. } if number == 1 => at.clone(),
            _ => CancellationToken::new(),
        };
        let answers_again = match &manner {
            Manner::AnswersLate { at } => at.clone(),
            _ => CancellationToken::new(),
        };
        let mut unanswered = None;
        let mut expiry = std::pin::pin!(tokio::time::sleep(expiry));
        let mut goodbye = false;
        loop {
            let message = tokio::select! {
                () = breaks.cancelled() => return,
                () = answers_again.cancelled(), if unanswered.is_some() => {
                    let ack = WorkHeartbeatAck { number: unanswered.take().unwrap() };
                    let _ = answers.send(Ok(say(Answer::HeartbeatAck(ack)))).await;
                    continue;
                }
                () = &mut expiry => {
                    self.with(|seen| seen.expired += 1);
                    let _ = answers.send(Err(Status::unavailable("TOKEN_EXPIRED"))).await;
                    return;
                }
                message = incoming.message() => message,
            };
            let Ok(Some(WorkRequest { message: Some(message) })) = message else {
                self.with(|seen| seen.broken += usize::from(!goodbye));
                return;
            };
            self.with(|seen| seen.said.push((number, message.clone())));
            let ack = |job_id: String, epoch, write_number| {
                Some(Answer::Ack(WorkAck { job_id, epoch, write_number, sequence: 0 }))
            };
            let answer = match message {
                Message::Goodbye(_) => {
                    goodbye = true;
                    Some(Answer::Drain(WorkDrain {}))
                }
                // What an older service does.
                Message::Heartbeat(_)
                    if matches!(manner, Manner::Breaks { answers_heartbeats: false, .. }) =>
                {
                    None
                }
                // Any other answer than its own says nothing of a heartbeat.
                Message::Heartbeat(_) if matches!(manner, Manner::CanNotRenew) => ack(JOB.into(), 1, 0),
                Message::Heartbeat(WorkHeartbeat { number }) if matches!(&manner, Manner::AnswersLate { at } if number > 10 && !at.is_cancelled()) =>
                {
                    unanswered = Some(number);
                    None
                }
                Message::Heartbeat(WorkHeartbeat { number }) => {
                    Some(Answer::HeartbeatAck(WorkHeartbeatAck { number }))
                }
                Message::Finish(WorkFinish { job_id, epoch, write_number, .. }) => {
                    ack(job_id, epoch, write_number)
                }
                Message::Release(WorkRelease { job_id, epoch }) => ack(job_id, epoch, 0),
                _ => None,
            };
            if let Some(answer) = answer {
                let _ = answers.send(Ok(say(answer))).await;
            }
        }
    }
}

async fn serve(seen: Seen) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Server::builder()
        .add_service(TokenServiceServer::new(seen.clone()))
        .add_service(WorkerServiceServer::new(seen));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// A worker of jobs of the kind `count`, and when it is connected.
fn worker(address: SocketAddr) -> Worker {
    let channel = channel(&ChannelConfig::to(format!("http://{address}"))).unwrap();
    let credentials =
        ClientCredentials { client_id: "worker".into(), client_secret: Secret::new("none".into()) };
    let tokens = TokenSource::new(channel.clone(), credentials, Clock::system());
    Worker::new(
        Authorized::as_client(channel, tokens, audience::JOB),
        WorkerConfig { name: "counter".into(), ..WorkerConfig::default() },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_with_its_lease_also_while_no_stream_can_be_opened() {
    let seen = Seen::default();
    seen.with(|seen| seen.manner = Manner::Strands);
    let (stopped, mut told) = mpsc::unbounded_channel();
    let worker = worker(serve(seen.clone()).await).handle("count", move |job: LeasedJob| {
        let stopped = stopped.clone();
        async move {
            let stop = job.stopped().await;
            let _ = stopped.send(stop);
            Err(stop.into())
        }
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    eventually(PATIENCE, || async { seen.with(|seen| seen.streams.len() == 2) }).await;
    // The lease is over after half a second; an answer to the hello may be waited for a good deal longer.
    let stop = tokio::time::timeout(Duration::from_secs(4), told.recv()).await.expect("it goes on").unwrap();
    assert_eq!(stop, Stop::LeaseLost);
    assert_eq!(seen.with(|seen| seen.streams.len()), 2, "it was not given up on the hello that it stopped");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// A job that writes nothing for longer than its lease lives by the heartbeats, also over a break.
async fn a_quiet_job_outlives_a_break(answers_heartbeats: bool) {
    let (seen, at) = (Seen::default(), CancellationToken::new());
    seen.with(|seen| seen.manner = Manner::Breaks { answers_heartbeats, at: at.clone() });
    let (tell_begun, mut begun) = mpsc::unbounded_channel();
    let done = CancellationToken::new();
    let may_end = done.clone();
    let worker = worker(serve(seen.clone()).await).handle("count", move |job: LeasedJob| {
        let (tell_begun, may_end) = (tell_begun.clone(), may_end.clone());
        async move {
            tell_begun.send(()).unwrap();
            tokio::select! {
                () = may_end.cancelled() => Ok("1".to_owned()),
                stop = job.stopped() => Err(stop.into()),
            }
        }
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    begun.recv().await.unwrap();
    // The time itself is what is tried: the lease would be over by now.
    tokio::time::sleep(LONG_LEASE + SHORT_LEASE).await;
    assert_eq!(seen.with(|seen| seen.streams.len()), 1, "an open stream goes on");
    at.cancel();
    eventually(PATIENCE, || async { seen.with(|seen| seen.said.iter().any(|(stream, _)| *stream == 2)) })
        .await;
    done.cancel();
    let finish = eventually(PATIENCE, || async {
        seen.with(|seen| {
            seen.said.iter().find_map(|(stream, message)| match message {
                Message::Finish(finish) => Some((*stream, finish.clone())),
                Message::Release(release) => panic!("given up: {release:?}"),
                _ => None,
            })
        })
    })
    .await;
    assert_eq!((finish.0, finish.1.epoch, finish.1.write_number), (2, 1, 1));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_job_outlives_a_break_that_is_shorter_than_its_lease() {
    tokio::join!(a_quiet_job_outlives_a_break(true), a_quiet_job_outlives_a_break(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_with_its_lease_also_while_a_stream_is_open_and_is_given_back() {
    let seen = Seen::default();
    seen.with(|seen| seen.manner = Manner::CanNotRenew);
    let (stopped, mut told) = mpsc::unbounded_channel();
    let done = CancellationToken::new();
    let may_end = done.clone();
    let worker = worker(serve(seen.clone()).await).handle("count", move |job: LeasedJob| {
        let (stopped, may_end) = (stopped.clone(), may_end.clone());
        async move {
            let stop = job.stopped().await;
            let _ = stopped.send(stop);
            // It winds down for a while.
            may_end.cancelled().await;
            Err(stop.into())
        }
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    let stop = tokio::time::timeout(PATIENCE, told.recv()).await.expect("it goes on").unwrap();
    assert_eq!(stop, Stop::LeaseLost);
    assert_eq!(seen.with(|seen| seen.expired), 0, "the service kept the stream open");
    // Another replica may do better. Where the lease is found to count still, nobody works under it: it is given back.
    let release = eventually(PATIENCE, || async {
        seen.with(|seen| {
            seen.said.iter().find_map(|(stream, message)| match message {
                Message::Release(release) => Some((*stream, release.epoch)),
                _ => None,
            })
        })
    })
    .await;
    assert_eq!(release, (2, 1));
    done.cancel();
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// How many heartbeats the service has heard.
fn heartbeats(seen: &Seen) -> usize {
    seen.with(|seen| seen.said.iter().filter(|(_, said)| matches!(said, Message::Heartbeat(_))).count())
}

/// The answer is there a moment after the process goes on, as when it was in the socket and the connection's task has not
/// read it yet: the leases count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_outlives_a_pause_of_its_process_when_its_heartbeat_was_answered() {
    let (seen, at) = (Seen::default(), CancellationToken::new());
    seen.with(|seen| seen.manner = Manner::AnswersLate { at: at.clone() });
    let heard = seen.clone();
    let worker = worker(serve(seen.clone()).await).handle("count", move |job: LeasedJob| {
        let (heard, at) = (heard.clone(), at.clone());
        async move {
            // The lease counts from the tenth for all that is known, and two seconds later from the last.
            eventually(PATIENCE, || async { heartbeats(&heard) >= 30 }).await;
            // This thread is all that this process has.
            std::thread::sleep(LONG_LEASE * 7 / 10);
            at.cancel();
            let before = heartbeats(&heard);
            tokio::select! {
                stop = job.stopped() => Err(stop.into()),
                () = eventually(PATIENCE, || async { heartbeats(&heard) > before + 3 }) => Ok("1".to_owned()),
            }
        }
    });
    let shutdown = CancellationToken::new();
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let running = process.spawn(worker.run(shutdown.clone()));
    let verdict = eventually(PATIENCE, || async {
        seen.with(|seen| {
            seen.said.iter().find_map(|(stream, message)| match message {
                Message::Finish(finish) => Some((*stream, finish.write_number)),
                Message::Release(release) => panic!("given up: {release:?}"),
                _ => None,
            })
        })
    })
    .await;
    assert_eq!((verdict, seen.with(|seen| seen.streams.len())), ((1, 1), 1));
    shutdown.cancel();
    running.await.unwrap().unwrap();
    process.shutdown_background();
}

/// How much later than meant things may happen where a stream is to be renewed in the last tenth of a token's life.
const ON_TIME: Duration = Duration::from_millis(100);
/// How often that is tried on a machine that is late.
const TRIES: usize = 10;

/// A worker's streams until there were three, and whether all went in time. None if the machine was too late for that to
/// be said.
async fn three_streams() -> Option<Record> {
    let (lag, began) = (LagMeter::start(), std::time::Instant::now());
    let seen = Seen::default();
    let worker =
        worker(serve(seen.clone()).await).handle("count", |_: LeasedJob| async { Ok("1".to_owned()) });
    let mut connected = worker.connected();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    connected.wait_for(|connected| *connected).await.unwrap();
    connected.mark_unchanged();

    eventually(PATIENCE, || async { seen.with(|seen| seen.streams.len() >= 3) }).await;
    let record = seen.with(std::mem::take);
    let was_heard = connected.has_changed().unwrap();
    let late = lag.worst(began, std::time::Instant::now());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    if late > ON_TIME {
        return None;
    }
    // Nobody who asks whether it is ready hears of it.
    assert!(!was_heard);
    Some(record)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_opened_again_before_its_token_ends() {
    let mut in_time = None;
    for _ in 0..TRIES {
        in_time = three_streams().await;
        if in_time.is_some() {
            break;
        }
    }
    let Record { streams, expired, broken, .. } = in_time.expect("the machine was late each time");
    assert_eq!((expired, broken), (0, 0), "{streams:?}");
    assert_eq!(streams[0], ("Bearer t1".to_owned(), String::new()));
    assert_eq!(streams[1], ("Bearer t2".to_owned(), "w1".to_owned()));
    assert_eq!(streams[2], ("Bearer t3".to_owned(), "w1".to_owned()));
}
