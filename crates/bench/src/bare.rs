//! Servers with nothing in them, each a process of its own: what Gatehouse's own are held against.

use std::io::Write as _;
use std::pin::Pin;

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::job_service_server::{JobService, JobServiceServer};
use gatehouse_proto::job::v1::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, GetJobResultRequest,
    GetJobResultResponse, JobEvent, ListJobsRequest, ListJobsResponse, RetryJobRequest, RetryJobResponse,
    SubmitJobRequest, SubmitJobResponse, WatchJobEventsRequest, WatchJobEventsResponse,
};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// As the answer to the pipeline's request.
const ANSWER: &str = r#"{"upstreams":[{"name":"bench","display_name":"Bench","scopes":["read"]}]}"#;
/// As one of the events that are delivered.
pub(crate) const EVENT: &str = r#"{"step":123456,"note":"as long as a line of progress usually is"}"#;
/// Streams of one connection to the server, as the gateway has.
const STREAMS_EACH: usize = 500;
/// Most streams at once.
const MOST_STREAMS: usize = 8_000;

/// A `JobService` that knows nothing: `GetJob` is the empty RPC, `GetJobResult` has a fixed answer, and
/// `WatchJobEvents` writes as fast as it is read after 0, and nothing after anything else.
struct Nothing;

type Events = Pin<Box<dyn Stream<Item = Result<WatchJobEventsResponse, Status>> + Send>>;

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a bare server"))
}

fn event(sequence: i64) -> WatchJobEventsResponse {
    let event = JobEvent { sequence, data_json: EVENT.to_owned(), ..JobEvent::default() };
    WatchJobEventsResponse { events: vec![event] }
}

#[tonic::async_trait]
impl JobService for Nothing {
    type WatchJobEventsStream = Events;

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        Ok(Response::new(GetJobResponse::default()))
    }

    async fn get_job_result(
        &self,
        _: Request<GetJobResultRequest>,
    ) -> Result<Response<GetJobResultResponse>, Status> {
        Ok(Response::new(GetJobResultResponse { result_json: ANSWER.to_owned() }))
    }

    async fn watch_job_events(
        &self,
        request: Request<WatchJobEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let flood = request.into_inner().after_sequence == 0;
        let first = futures_util::stream::iter([Ok(event(1))]);
        Ok(Response::new(if flood {
            Box::pin(first.chain(futures_util::stream::iter(2..).map(|sequence| Ok(event(sequence)))))
        } else {
            Box::pin(first.chain(futures_util::stream::pending()))
        }))
    }

    async fn submit_job(&self, _: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        not_here()
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        not_here()
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        not_here()
    }

    async fn retry_job(&self, _: Request<RetryJobRequest>) -> Result<Response<RetryJobResponse>, Status> {
        not_here()
    }
}

/// Says where it listens, on a line of its own.
fn tell(port: u16) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{port}")?;
    out.flush()?;
    Ok(())
}

/// Ends when whoever started this process is gone: they hold the other end of standard input.
async fn until_alone() {
    let (sender, gone) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(sender);
    });
    let _ = gone.await;
}

/// The bare gRPC server.
///
/// # Errors
/// If it can't listen.
pub(crate) async fn serve_rpc() -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    tell(listener.local_addr()?.port())?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .max_concurrent_streams(1_000)
        .add_service(JobServiceServer::new(Nothing))
        .serve_with_incoming_shutdown(incoming, until_alone())
        .await?;
    Ok(())
}

#[derive(Clone)]
struct Upstream {
    calls: JobServiceClient<Channel>,
    streams: std::sync::Arc<(Vec<Channel>, std::sync::atomic::AtomicUsize)>,
}

/// The bare proxy to the gRPC server on `upstream`.
///
/// # Errors
/// If it can't listen.
pub(crate) async fn serve_proxy(upstream: u16) -> Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{upstream}"))?.tcp_nodelay(true);
    let channels = (0..MOST_STREAMS / STREAMS_EACH).map(|_| endpoint.connect_lazy()).collect();
    let upstream = Upstream {
        calls: JobServiceClient::new(endpoint.connect().await.context("the bare server does not answer")?),
        streams: std::sync::Arc::new((channels, std::sync::atomic::AtomicUsize::new(0))),
    };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(upstream.clone()))
            .route("/fixed", web::get().to(|| async { HttpResponse::Ok().body(ANSWER) }))
            .route("/call", web::get().to(call))
            .route("/events", web::get().to(|upstream: web::Data<Upstream>| events(upstream, 0)))
            .route("/idle", web::get().to(|upstream: web::Data<Upstream>| events(upstream, 1)))
    })
    .disable_signals()
    .shutdown_timeout(0)
    .tcp_nodelay(true)
    .bind(("127.0.0.1", 0))?;
    tell(server.addrs().first().context("it listens nowhere")?.port())?;
    let running = server.run();
    let handle = running.handle();
    tokio::spawn(async move {
        until_alone().await;
        handle.stop(false).await;
    });
    running.await?;
    Ok(())
}

async fn call(upstream: web::Data<Upstream>) -> HttpResponse {
    match upstream.calls.clone().get_job_result(GetJobResultRequest::default()).await {
        Ok(answer) => {
            HttpResponse::Ok().content_type("application/json").body(answer.into_inner().result_json)
        }
        Err(status) => HttpResponse::BadGateway().body(status.to_string()),
    }
}

async fn events(upstream: web::Data<Upstream>, after_sequence: i64) -> HttpResponse {
    let (channels, next) = &*upstream.streams;
    let place = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) / STREAMS_EACH;
    let mut client = JobServiceClient::new(channels[place % channels.len()].clone());
    let request = WatchJobEventsRequest { after_sequence, ..WatchJobEventsRequest::default() };
    match client.watch_job_events(request).await {
        Ok(answer) => HttpResponse::Ok().content_type("text/event-stream").streaming(
            answer.into_inner().map(|events| {
                let text = events.map_err(std::io::Error::other)?.events.into_iter().fold(
                    String::new(),
                    |text, event| {
                        text + &format!(
                            "id: {}\nevent: notice\ndata: {}\n\n",
                            event.sequence, event.data_json
                        )
                    },
                );
                Ok::<_, std::io::Error>(Bytes::from(text))
            }),
        ),
        Err(status) => HttpResponse::BadGateway().body(status.to_string()),
    }
}
