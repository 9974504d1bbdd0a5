//! What a gRPC server shows to whoever asks it what it is: reflection, health, and what it says to calls that make no
//! sense.

#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

use std::future::poll_fn;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatehouse_client::{audience, from_status};
use gatehouse_core::{Clock, Entropy, Error, ErrorCode};
use gatehouse_proto::auth::v1::token_service_server::{TokenService, TokenServiceServer};
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, RevokeTokenRequest, RevokeTokenResponse,
    WatchRevocationsRequest, WatchRevocationsResponse,
};
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::readiness::Gate;
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{
    AccessLayer, GrpcServer, KeySet, Lifecycle, Readiness, Revocations, Verifier, status,
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::Service as _;

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN_SERVICE: &str = "gatehouse.auth.v1.TokenService";
const REVOKE: &str = "/gatehouse.auth.v1.TokenService/RevokeToken";
const ISSUE: &str = "/gatehouse.auth.v1.TokenService/IssueToken";
const JWKS: &str = "/gatehouse.auth.v1.TokenService/GetJwks";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Answers what can be called without a token, each in its way.
struct Tokens;

type Never<T> = tokio_stream::Pending<Result<T, Status>>;

#[tonic::async_trait]
impl TokenService for Tokens {
    type WatchRevocationsStream = Never<WatchRevocationsResponse>;

    async fn issue_token(
        &self,
        _: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        Err(status(&Error::internal("a fault")))
    }

    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<GetJwksResponse>, Status> {
        Err(Status::internal("in its own words"))
    }

    async fn revoke_token(
        &self,
        _: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Ok(Response::new(RevokeTokenResponse {}))
    }

    async fn exchange_token(
        &self,
        _: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        unreachable!("it needs a token")
    }

    async fn introspect_token(
        &self,
        _: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        unreachable!("it needs a token")
    }

    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        unreachable!("it needs a token")
    }
}

struct Server {
    channel: Channel,
    lifecycle: Lifecycle,
    gate: Gate,
}

impl Server {
    async fn start() -> Self {
        let clock = Clock::system();
        let revocations = Revocations::new(clock.clone(), Staleness::default());
        let verifier = Verifier::new("i", audience::AUTH, KeySet::default(), revocations, clock.clone());
        let access = AccessLayer::new(&["gatehouse.auth.v1"], verifier, clock, Entropy::system()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (lifecycle, readiness) = (Lifecycle::new(), Readiness::new());
        let gate = readiness.gate("test", "not yet");
        let routes = Routes::new(TokenServiceServer::new(Tokens));
        GrpcServer::new(GrpcConfig::default(), access, listener)
            .start(routes, &lifecycle, &readiness)
            .unwrap();
        let channel = Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { channel, lifecycle, gate }
    }

    fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    async fn check(&self, service: &str) -> Result<ServingStatus, Code> {
        let answer = self.health().check(asking(service)).await;
        answer.map(|answer| said(answer.into_inner())).map_err(|status| status.code())
    }

    /// Sends `body` as it is, and how the call ended.
    async fn send(&self, path: &str, body: impl Into<String>, headers: &[(&str, &str)]) -> Status {
        let mut request = http::Request::post(path).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::new(body.into())).unwrap();
        let mut channel = self.channel.clone();
        poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        let response = channel.call(request).await.unwrap();
        Status::from_header_map(response.headers()).unwrap_or_else(|| Status::new(Code::Ok, ""))
    }
}

fn asking(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

fn said(answer: HealthCheckResponse) -> ServingStatus {
    ServingStatus::try_from(answer.status).unwrap()
}

/// A message with its prefix (gRPC over HTTP/2, `Length-Prefixed-Message`).
fn framed(message: &str) -> String {
    let [a, b] = u16::try_from(message.len()).unwrap().to_be_bytes().map(char::from);
    format!("\0\0\0{a}{b}{message}")
}

/// What one server says of itself by one version of reflection.
macro_rules! reflected {
    ($channel:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let mut client = ServerReflectionClient::new($channel.clone());
        let mut ask = async |asked| {
            let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
            answers.message().await.map(|answer| answer.unwrap().message_response.unwrap())
        };
        let MessageResponse::ListServicesResponse(list) =
            ask(MessageRequest::ListServices(String::new())).await.unwrap()
        else {
            panic!("no list")
        };
        let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        names.sort();
        let mut described = vec![];
        for symbol in [
            TOKEN_SERVICE,
            "gatehouse.options.v1.access",
            "gatehouse.options.v1.AccessRule",
            "gatehouse.job.v1.JobService",
            "gatehouse.job.v1.SubmitJobRequest",
            "gatehouse.audit.v1.AuditService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            match ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await {
                Ok(MessageResponse::FileDescriptorResponse(_)) => described.push(symbol),
                Ok(MessageResponse::ErrorResponse(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(status) => assert_eq!(status.code(), Code::NotFound, "{symbol}"),
            }
        }
        (names, described)
    }};
}

#[tokio::test]
async fn reflection_tells_what_is_served_here_and_nothing_else() {
    let server = Server::start().await;
    for (names, described) in [reflected!(server.channel, v1), reflected!(server.channel, v1alpha)] {
        let expected = [
            "gatehouse.auth.v1.AccountService",
            "gatehouse.auth.v1.ApiKeyService",
            "gatehouse.auth.v1.TenantService",
            TOKEN_SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        assert_eq!(names, expected);
        for symbol in &described {
            assert!(!symbol.contains("job") && !symbol.contains("audit"), "{symbol} is not served here");
        }
        for symbol in [TOKEN_SERVICE, expected[4], expected[5], expected[6]] {
            assert!(described.contains(&symbol), "{symbol} is not described");
        }
    }
    assert!(server.lifecycle.drain(PATIENCE).await);
}

#[tokio::test]
async fn each_service_is_as_healthy_as_its_server() {
    let server = Server::start().await;
    let known = ["", TOKEN_SERVICE, "gatehouse.auth.v1.ApiKeyService", "grpc.health.v1.Health"];
    let unknown = ["gatehouse.job.v1.JobService", "TokenService", "gatehouse.auth.v1", "made.up"];
    let mut watches = vec![];
    for service in known {
        // Nothing is said to serve before it does.
        assert_eq!(server.check(service).await, Ok(ServingStatus::NotServing), "{service:?}");
        let mut watch = server.health().watch(asking(service)).await.unwrap().into_inner();
        assert_eq!(said(watch.message().await.unwrap().unwrap()), ServingStatus::NotServing);
        watches.push(watch);
    }
    let mut strangers = vec![];
    for service in unknown {
        assert_eq!(server.check(service).await, Err(Code::NotFound), "{service:?}");
        let mut watch = server.health().watch(asking(service)).await.unwrap().into_inner();
        assert_eq!(said(watch.message().await.unwrap().unwrap()), ServingStatus::ServiceUnknown);
        strangers.push(watch);
    }
    let mut becomes = async |expected| {
        for watch in &mut watches {
            let news = tokio::time::timeout(PATIENCE, watch.message()).await.expect("there is news");
            assert_eq!(said(news.unwrap().unwrap()), expected);
        }
        for service in known {
            assert_eq!(server.check(service).await, Ok(expected), "{service:?}");
        }
    };
    server.gate.ready();
    becomes(ServingStatus::Serving).await;
    // Of another reason not to be ready there is nothing to tell.
    server.gate.unready("away");
    becomes(ServingStatus::NotServing).await;
    server.gate.unready("away for another reason");
    server.gate.ready();
    becomes(ServingStatus::Serving).await;
    server.lifecycle.leave();
    becomes(ServingStatus::NotServing).await;
    // Whoever watches does not keep the server from its end, and is told to come back elsewhere.
    assert!(server.lifecycle.drain(Duration::from_secs(10)).await, "watched, it does not end");
    for watch in watches.iter_mut().chain(&mut strangers) {
        let ended = watch.next().await.expect("it is told why").unwrap_err();
        assert_eq!((ended.code(), from_status(ended).reason()), (Code::Unavailable, "SERVICE_STOPPING"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_implemented() {
    let server = Server::start().await;
    for path in [
        "/gatehouse.auth.v1.TokenService/MadeUp",
        "/gatehouse.auth.v1.MadeUp/GetJwks",
        "/gatehouse.job.v1.JobService/SubmitJob",
        "/grpc.health.v1.Health/MadeUp",
        "/grpc.reflection.v1.ServerReflection/MadeUp",
        "/grpc.reflection.v2.ServerReflection/ServerReflectionInfo",
        "/gatehouse.auth.v1.TokenService/getjwks",
        "/gatehouse.auth.v1.TokenService",
        "//",
        "/",
    ] {
        let status = server.send(path, framed(""), &[]).await;
        let told = (status.code(), status.message().to_owned());
        assert_eq!(told, (Code::Unimplemented, "This service has no such method.".to_owned()), "{path}");
        let error = from_status(status);
        assert_eq!((error.code(), error.reason()), (ErrorCode::Unimplemented, "METHOD_NOT_FOUND"), "{path}");
    }
    assert_eq!(server.send(CHECK, framed(""), &[]).await.code(), Code::Ok);
    assert!(server.lifecycle.drain(PATIENCE).await);
}

#[tokio::test]
async fn a_message_that_can_not_be_read_is_its_senders_fault() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.subscriber());
    let server = Server::start().await;
    assert_eq!(server.send(REVOKE, framed("\n\x01x"), &[]).await.code(), Code::Ok);
    let too_long = "\0\0\x50\0\0".to_owned() + &"x".repeat(64);
    let invalid = [
        ("a text longer than what is there", framed("\n\x7fsecret-of-mine")),
        ("a number where a text belongs", framed("\x08\x01")),
        ("a field without a number", framed("\0")),
        ("a group that does not end", framed("\x0b")),
    ];
    for (what, body) in invalid {
        let status = server.send(REVOKE, body, &[]).await;
        let told = (status.code(), status.message().to_owned());
        let message = "The message can't be decoded as the request of this method.".to_owned();
        assert_eq!(told, (Code::InvalidArgument, message), "{what}");
        assert_eq!(from_status(status).reason(), "MESSAGE_INVALID", "{what}");
    }
    // What has its own code in gRPC keeps it, and so does what services say themselves.
    for (what, path, body, header, code) in [
        ("too long", REVOKE, too_long, None, Code::OutOfRange),
        ("in an encoding that is not offered", REVOKE, framed(""), Some("zstd"), Code::Unimplemented),
        ("marked as compressed", REVOKE, "\x01\0\0\0\0".into(), None, Code::Internal),
        ("a fault of the service", ISSUE, framed(""), None, Code::Internal),
        ("a fault in the service's own words", JWKS, framed(""), None, Code::Internal),
    ] {
        let headers: Vec<_> = header.map(|encoding| ("grpc-encoding", encoding)).into_iter().collect();
        let status = server.send(path, body, &headers).await;
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert_ne!(from_status(status).reason(), "MESSAGE_INVALID", "{what}");
    }
    assert!(server.lifecycle.drain(PATIENCE).await);
    let log = log.text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("MESSAGE_INVALID")).collect();
    assert_eq!(lines.len(), 4, "{log}");
    for line in lines {
        assert!(line.contains(" INFO ") && line.contains("failed to decode"), "{line}");
    }
    assert!(!log.contains("secret-of-mine"), "{log}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn subscriber(&self) -> impl tracing::Subscriber + use<> {
        let log = self.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
