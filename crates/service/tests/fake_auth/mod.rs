//! An auth service of which tests say what is in its table, and what it answers not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use gatehouse_client::{Authorized, ChannelConfig, channel};
use gatehouse_proto::auth::v1::token_service_server::{TokenService, TokenServiceServer};
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, Revocation, RevokeTokenRequest,
    RevokeTokenResponse, WatchRevocationsRequest, WatchRevocationsResponse,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How often it says something.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// What it has to tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// What is revoked; a number is a place in this, from 1.
    pub(crate) entries: Vec<Revocation>,
    /// The ids of its keys.
    pub(crate) keys: Vec<String>,
    /// How long they may be kept.
    pub(crate) keys_max_age: Duration,
    /// Open streams fall silent, new ones are refused, and so is whoever asks for the keys.
    pub(crate) silent: bool,
    /// Streams that were opened before this was changed end.
    pub(crate) process: u32,
    /// Whoever asks for the keys waits.
    pub(crate) keys_hang: bool,
}

/// Clones are one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeAuth {
    pub(crate) table: Arc<watch::Sender<Table>>,
    /// How often it was asked for its keys.
    pub(crate) fetches: Arc<AtomicUsize>,
}

impl FakeAuth {
    /// Serves in the threads of `runtime`; calls to it.
    pub(crate) fn serve(&self, runtime: &Runtime) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = TokenServiceServer::new(self.clone());
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        address
    }

    /// Says what is in the table from now on.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Table)) {
        self.table.send_modify(change);
    }
}

/// The way to what serves at `address`.
pub(crate) fn calls_to(address: SocketAddr) -> Authorized {
    Authorized::anonymous(channel(&ChannelConfig::to(format!("http://{address}"))).unwrap())
}

#[tonic::async_trait]
impl TokenService for FakeAuth {
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
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let mut table = self.table.subscribe();
        if table.borrow().silent {
            return Err(Status::unavailable("gone"));
        }
        let table = table.wait_for(|table| !table.keys_hang).await.unwrap();
        let x = URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes());
        let key = |id: &String| json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x});
        let keys = json!({"keys": table.keys.iter().map(key).collect::<Vec<_>>()});
        let max_age_ms = i64::try_from(table.keys_max_age.as_millis()).unwrap();
        Ok(Response::new(GetJwksResponse { jwks_json: keys.to_string(), max_age_ms }))
    }

    type WatchRevocationsStream = ReceiverStream<Result<WatchRevocationsResponse, Status>>;

    async fn watch_revocations(
        &self,
        request: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let mut sent = usize::try_from(request.into_inner().after_sequence).unwrap();
        let mut tables = self.table.subscribe();
        let process = tables.borrow().process;
        if tables.borrow().silent {
            return Err(Status::unavailable("gone"));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let table = tables.borrow_and_update().clone();
                if table.process != process {
                    return;
                }
                if table.silent {
                    return sender.closed().await;
                }
                let revocations = table.entries.iter().skip(sent).cloned().collect();
                sent = table.entries.len();
                let news = WatchRevocationsResponse {
                    revocations,
                    sequence: i64::try_from(sent).unwrap(),
                    snapshot_complete: true,
                    heartbeat_ms: i64::try_from(HEARTBEAT.as_millis()).unwrap(),
                    age_ms: 0,
                };
                if sender.send(Ok(news)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = tables.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(HEARTBEAT / 2) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
