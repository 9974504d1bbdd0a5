//! What auth said of revocations while this process stood still is not news of this moment when it goes on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use gatehouse_client::{Authorized, ChannelConfig, channel};
use gatehouse_core::{Clock, Entropy};
use gatehouse_proto::auth::v1::token_service_server::{TokenService, TokenServiceServer};
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, RevokeTokenRequest, RevokeTokenResponse,
    WatchRevocationsRequest, WatchRevocationsResponse,
};
use gatehouse_service::revocations::{RevocationFeed, Revocations, Staleness};
use gatehouse_service::verifier::KeySet;
use gatehouse_service::{Lifecycle, Readiness};
use gatehouse_testkit::eventually;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(30);
/// How often auth says something.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How old news may be.
const LIMIT: Duration = Duration::from_millis(300);

/// An auth service that falls silent, and then takes nobody any more.
#[derive(Clone, Debug, Default)]
struct Auth(Arc<AtomicBool>);

#[tonic::async_trait]
impl TokenService for Auth {
    async fn issue_token(
        &self,
        _: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
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
        let x = URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]});
        Ok(Response::new(GetJwksResponse { jwks_json: keys.to_string(), ..GetJwksResponse::default() }))
    }

    type WatchRevocationsStream = ReceiverStream<Result<WatchRevocationsResponse, Status>>;

    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let silent = Arc::clone(&self.0);
        if silent.load(Ordering::SeqCst) {
            return Err(Status::unavailable("gone"));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while !silent.load(Ordering::SeqCst) {
                let news = WatchRevocationsResponse {
                    snapshot_complete: true,
                    heartbeat_ms: i64::try_from(HEARTBEAT.as_millis()).unwrap(),
                    ..WatchRevocationsResponse::default()
                };
                if sender.send(Ok(news)).await.is_err() {
                    return;
                }
                tokio::time::sleep(HEARTBEAT / 2).await;
            }
            sender.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves in threads of its own, which go on when the test's stands still.
fn serve(auth: Auth, runtime: &tokio::runtime::Runtime) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        Server::builder().add_service(TokenServiceServer::new(auth)).serve_with_incoming(incoming).await
    });
    address
}

#[test]
fn what_waited_while_the_process_stood_still_is_not_new() {
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let auth = Auth::default();
    let address = serve(auth.clone(), &elsewhere);
    here.block_on(async {
        let channel = channel(&ChannelConfig::to(format!("http://{address}"))).unwrap();
        let revocations = Revocations::new(Clock::system(), Staleness { privileged: LIMIT, all: LIMIT });
        let lifecycle = Lifecycle::new();
        RevocationFeed::new(
            Authorized::anonymous(channel),
            revocations.clone(),
            KeySet::default(),
            Entropy::system(),
        )
        .start("test", &lifecycle, &Readiness::new());
        eventually(PATIENCE, || async { revocations.is_fresh() }).await;

        // This thread is all that this process has: auth goes on for a while, and is gone.
        std::thread::sleep(2 * HEARTBEAT);
        auth.0.store(true, Ordering::SeqCst);
        std::thread::sleep(2 * LIMIT);
        for _ in 0..50 {
            assert!(!revocations.is_fresh(), "what lay in the socket for longer than {LIMIT:?} was believed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lifecycle.drain(PATIENCE).await;
    });
}
