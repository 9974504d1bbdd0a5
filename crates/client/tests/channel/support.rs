//! Replicas of a service on loopback: real tonic servers that say which they are.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gatehouse_client::{Channel, ChannelConfig, channel};
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::job_service_server::{JobService, JobServiceServer};
use gatehouse_proto::job::v1::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, GetJobResultRequest,
    GetJobResultResponse, Job, ListJobsRequest, ListJobsResponse, RetryJobRequest, RetryJobResponse,
    SubmitJobRequest, SubmitJobResponse, WatchJobEventsRequest, WatchJobEventsResponse,
};
use gatehouse_testkit::lasting_port;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What a replica does, which a test may change.
#[derive(Debug)]
pub(crate) struct Behaviour {
    name: String,
    pub(crate) calls: AtomicUsize,
    /// While set, calls are refused because this replica is not ready.
    pub(crate) unready: AtomicBool,
    /// While set, calls wait for permits of `gate`.
    pub(crate) gated: AtomicBool,
    pub(crate) gate: Semaphore,
}

#[derive(Clone)]
struct Service(Arc<Behaviour>);

impl Service {
    async fn work(&self) -> Result<Job, Status> {
        if self.0.unready.load(Ordering::SeqCst) {
            let mut refusal = Status::unavailable("not yet");
            refusal.metadata_mut().insert("gatehouse-not-begun", "1".parse().unwrap());
            return Err(refusal);
        }
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if self.0.gated.load(Ordering::SeqCst) {
            self.0.gate.acquire().await.unwrap().forget();
        }
        Ok(Job { submitted_by: self.0.name.clone(), ..Job::default() })
    }
}

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl JobService for Service {
    async fn submit_job(&self, _: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        Ok(Response::new(SubmitJobResponse { job: Some(self.work().await?), existed: false }))
    }

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        Ok(Response::new(GetJobResponse { job: Some(self.work().await?) }))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        no()
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        no()
    }

    async fn retry_job(&self, _: Request<RetryJobRequest>) -> Result<Response<RetryJobResponse>, Status> {
        no()
    }

    async fn get_job_result(
        &self,
        _: Request<GetJobResultRequest>,
    ) -> Result<Response<GetJobResultResponse>, Status> {
        no()
    }

    type WatchJobEventsStream = ReceiverStream<Result<WatchJobEventsResponse, Status>>;

    async fn watch_job_events(
        &self,
        _: Request<WatchJobEventsRequest>,
    ) -> Result<Response<Self::WatchJobEventsStream>, Status> {
        no()
    }
}

/// One replica.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) behaviour: Arc<Behaviour>,
    drain: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Replica {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_at(name, own_address()).await
    }

    /// On a runtime of its own, so that it can die with all its connections at once.
    pub(crate) async fn start_at(name: &str, address: SocketAddr) -> Self {
        let behaviour = Arc::new(Behaviour {
            name: name.to_owned(),
            calls: AtomicUsize::new(0),
            unready: AtomicBool::new(false),
            gated: AtomicBool::new(false),
            gate: Semaphore::new(0),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let drain = CancellationToken::new();
        let (ready, listening) = tokio::sync::oneshot::channel();
        let server = runtime.spawn({
            let (behaviour, drain) = (Arc::clone(&behaviour), drain.clone());
            async move {
                let listener = TcpListener::bind(address).await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                Server::builder()
                    .add_service(JobServiceServer::new(Service(behaviour)))
                    .serve_with_incoming_shutdown(TcpListenerStream::new(listener), drain.cancelled_owned())
                    .await
                    .unwrap();
            }
        });
        let address = listening.await.unwrap();
        Self { address, behaviour, drain, server, runtime: Some(runtime) }
    }

    pub(crate) fn calls(&self) -> usize {
        self.behaviour.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn gate(&self) {
        self.behaviour.gated.store(true, Ordering::SeqCst);
    }

    pub(crate) fn open_gate(&self) {
        self.behaviour.gated.store(false, Ordering::SeqCst);
        self.behaviour.gate.add_permits(10_000);
    }

    /// Stops as services do: GOAWAY, running calls finish.
    pub(crate) async fn drain(mut self) {
        self.drain.cancel();
        (&mut self.server).await.unwrap();
    }

    /// Dies: every connection breaks.
    pub(crate) fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where nothing listens, nor will another test.
pub(crate) fn dead_address() -> SocketAddr {
    own_address()
}

/// Nobody else's even while nothing listens there: replicas come back to where they were.
fn own_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, lasting_port().unwrap()).into()
}

pub(crate) fn config(addresses: &[SocketAddr]) -> ChannelConfig {
    ChannelConfig {
        endpoints: addresses.iter().map(|address| format!("http://{address}")).collect(),
        ..ChannelConfig::default()
    }
}

pub(crate) fn channel_to(addresses: &[SocketAddr]) -> Channel {
    channel(&config(addresses)).unwrap()
}

/// A call that may be repeated; the name of the replica that answered.
pub(crate) async fn get(channel: &Channel) -> Result<String, Status> {
    let answer = JobServiceClient::new(channel.clone()).get_job(GetJobRequest::default()).await?;
    Ok(answer.into_inner().job.unwrap().submitted_by)
}

/// A call that may not.
pub(crate) async fn submit(channel: &Channel) -> Result<String, Status> {
    let request = SubmitJobRequest { input_json: "x".repeat(100_000), ..SubmitJobRequest::default() };
    let answer = JobServiceClient::new(channel.clone()).submit_job(request).await?;
    Ok(answer.into_inner().job.unwrap().submitted_by)
}

/// Calls one after the other in `tasks` tasks until stopped; what failed.
pub(crate) struct Load {
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<(usize, Vec<Status>)>>,
}

impl Load {
    pub(crate) fn start(channel: &Channel, tasks: usize) -> Self {
        let stop = CancellationToken::new();
        let tasks = (0..tasks)
            .map(|_| {
                let (channel, stop) = (channel.clone(), stop.clone());
                tokio::spawn(async move {
                    let (mut good, mut failed) = (0, Vec::new());
                    while !stop.is_cancelled() {
                        match submit(&channel).await {
                            Ok(_) => good += 1,
                            Err(status) => failed.push(status),
                        }
                    }
                    (good, failed)
                })
            })
            .collect();
        Self { stop, tasks }
    }

    pub(crate) async fn stop(self) -> (usize, Vec<Status>) {
        self.stop.cancel();
        let (mut good, mut failed) = (0, Vec::new());
        for task in self.tasks {
            let (more, failures) = task.await.unwrap();
            good += more;
            failed.extend(failures);
        }
        (good, failed)
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
