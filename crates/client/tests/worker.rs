//! A worker's stream outlives its token: it is opened again, with the next one, before the service has to end it. Its jobs
//! do not outlive their leases.

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
use gatehouse_proto::job::v1::{WorkDrain, WorkLease, WorkRequest, WorkResponse, WorkWelcome};
use gatehouse_testkit::eventually;
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
    /// Whether the first stream brings a lease and breaks, and no other is answered.
    strands: bool,
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
        let number = self.with(|seen| {
            seen.tokens += 1;
            seen.tokens
        });
        Ok(Response::new(IssueTokenResponse {
            access_token: format!("t{number}"),
            expires_at: Clock::system().now().plus(LIFE).as_micros(),
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
        let strands = self.with(|seen| seen.strands);
        if strands && number > 1 {
            std::future::pending::<()>().await;
        }
        let (answers, stream) = mpsc::channel(8);
        let say = |answer| Ok(WorkResponse { message: Some(answer) });
        let welcome = WorkWelcome {
            worker_id: "w1".into(),
            heartbeat_interval_ms: 100,
            lease_ttl_ms: if strands { 500 } else { 5_000 },
            held: Vec::new(),
        };
        answers.send(say(Answer::Welcome(welcome))).await.unwrap();
        if strands {
            let lease = WorkLease {
                job_id: JOB.into(),
                tenant_id: JOB.into(),
                kind: "count".into(),
                epoch: 1,
                attempt: 1,
                input_json: "{}".into(),
                ..WorkLease::default()
            };
            answers.send(say(Answer::Lease(lease))).await.unwrap();
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        let seen = self.clone();
        tokio::spawn(async move {
            let expiry = tokio::time::sleep(LIFE);
            tokio::pin!(expiry);
            let mut goodbye = false;
            loop {
                tokio::select! {
                    () = &mut expiry => {
                        seen.with(|seen| seen.expired += 1);
                        let _ = answers.send(Err(Status::unavailable("TOKEN_EXPIRED"))).await;
                        return;
                    }
                    message = incoming.message() => match message {
                        Ok(Some(WorkRequest { message: Some(Message::Goodbye(_)) })) => {
                            goodbye = true;
                            let _ = answers.send(say(Answer::Drain(WorkDrain {}))).await;
                        }
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => {
                            seen.with(|seen| seen.broken += usize::from(!goodbye));
                            return;
                        }
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
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
    seen.with(|seen| seen.strands = true);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_opened_again_before_its_token_ends() {
    let seen = Seen::default();
    let worker =
        worker(serve(seen.clone()).await).handle("count", |_: LeasedJob| async { Ok("1".to_owned()) });
    let mut connected = worker.connected();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone()));
    connected.wait_for(|connected| *connected).await.unwrap();
    connected.mark_unchanged();

    eventually(PATIENCE, || async { seen.with(|seen| seen.streams.len() >= 3) }).await;
    let (streams, expired, broken) = seen.with(|seen| (seen.streams.clone(), seen.expired, seen.broken));
    assert_eq!((expired, broken), (0, 0), "{streams:?}");
    assert_eq!(streams[0], ("Bearer t1".to_owned(), String::new()));
    assert_eq!(streams[1], ("Bearer t2".to_owned(), "w1".to_owned()));
    assert_eq!(streams[2], ("Bearer t3".to_owned(), "w1".to_owned()));
    // Nobody who asks whether it is ready hears of it.
    assert!(!connected.has_changed().unwrap());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
