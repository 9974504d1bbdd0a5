//! The door of every gRPC server: request id, trace, caller, whether it is a person, permission, metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use gatehouse_client::{NOT_BEGUN, context};
use gatehouse_core::{Clock, Entropy, Error, ErrorCode, Result};
use gatehouse_proto::access::{Access, Declared};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use opentelemetry::trace::TraceContextExt as _;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::{Caller, Peer, Verifier, health, reflection, reply};

/// Wraps a gRPC server's routes.
#[derive(Clone, Debug)]
pub struct AccessLayer {
    door: Arc<Door>,
    between_services: bool,
}

#[derive(Debug)]
struct Door {
    methods: BTreeMap<String, Declared>,
    verifier: Verifier,
    clock: Clock,
    entropy: Entropy,
    duration: Histogram<f64>,
}

impl AccessLayer {
    /// A door for the methods of `packages` (`gatehouse.job.v1`).
    ///
    /// # Errors
    /// A method that declares no usable access rule: the server must not start.
    pub fn new(packages: &[&str], verifier: Verifier, clock: Clock, entropy: Entropy) -> Result<Self> {
        let methods = gatehouse_proto::access::access_table(packages).map_err(|gap| {
            Error::failed_precondition("ACCESS_UNDECLARED", "A method declares no access rule.")
                .caused_by(gap)
        })?;
        // Names and units: OpenTelemetry semantic conventions for RPC metrics.
        let duration = opentelemetry::global::meter("gatehouse")
            .f64_histogram("rpc.server.call.duration")
            .with_unit("s")
            .with_description("Time from a call's arrival to its answer's head.")
            .build();
        let door = Arc::new(Door { methods, verifier, clock, entropy, duration });
        Ok(Self { door, between_services: false })
    }

    /// The services whose methods it lets through to those who may, by their full names: our own.
    pub(crate) fn own_services(&self) -> BTreeSet<String> {
        self.door.methods.keys().map(|path| service_of(path).to_owned()).collect()
    }

    /// All of which it lets methods through.
    pub(crate) fn services(&self) -> BTreeSet<String> {
        let others = health::METHODS.into_iter().chain(reflection::METHODS);
        others.map(|path| service_of(path).to_owned()).chain(self.own_services()).collect()
    }

    /// A door behind connections whose other end showed a certificate: it must be one of those services that the method
    /// names, and a token must be its own or have been exchanged by it.
    #[must_use]
    pub fn between_services(self) -> Self {
        Self { between_services: true, ..self }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessService { layer: self.clone(), inner }
    }
}

/// See [`AccessLayer`].
#[derive(Clone, Debug)]
pub struct AccessService<S> {
    layer: AccessLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for AccessService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        // Probes come every second from everywhere: no span, no log.
        if health::METHODS.contains(&request.uri().path()) {
            let mut inner = inner;
            return Box::pin(async move { inner.call(request).await });
        }
        Box::pin(layer.pass(request, inner))
    }
}

impl AccessLayer {
    async fn pass<S>(self, mut request: Request<Body>, mut inner: S) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let started = Instant::now();
        let path = request.uri().path().to_owned();
        let (service, method) = self.door.names(&path);
        let request_id = self.door.request_id(&request);
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            request.headers_mut().insert(context::REQUEST_ID, value);
        }
        let span = tracing::info_span!(
            "rpc",
            otel.name = format!("{service}/{method}"),
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.service = service,
            request_id,
            trace_id = tracing::field::Empty,
            caller = tracing::field::Empty,
        );
        context::adopt(&span, request.headers());
        let trace = span.context().span().span_context().trace_id();
        if trace != opentelemetry::TraceId::INVALID {
            span.record("trace_id", trace.to_string());
        }
        let response = context::with_request_id(
            request_id,
            async {
                match self.door.admit(&path, &mut request, self.between_services) {
                    Ok(()) => inner.call(request).await.map(blame_the_sender),
                    Err(error) => Ok(refusal(&error)),
                }
            }
            .instrument(span),
        )
        .await;
        let code = match &response {
            Ok(response) => response
                .headers()
                .get("grpc-status")
                .and_then(|code| code.to_str().ok())
                .unwrap_or("0")
                .to_owned(),
            Err(_) => "2".to_owned(),
        };
        self.door.duration.record(
            started.elapsed().as_secs_f64(),
            &[
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", method.to_owned()),
                KeyValue::new("rpc.response.status_code", code),
            ],
        );
        response
    }
}

impl Door {
    /// Service and method of `path`, for the labels of metrics and the names of spans: whoever makes paths up, and need
    /// not show a credential for it, must not make labels without bound.
    fn names<'a>(&self, path: &'a str) -> (&'a str, &'a str) {
        let known = reflection::METHODS.contains(&path) || self.methods.contains_key(path);
        let names = path.trim_start_matches('/').split_once('/').filter(|_| known);
        names.unwrap_or(("unknown", "unknown"))
    }

    fn admit(&self, path: &str, request: &mut Request<Body>, between_services: bool) -> Result<()> {
        // Reflection tells only what this repository's proto files tell everyone.
        if reflection::METHODS.contains(&path) {
            return Ok(());
        }
        let Some(declared) = self.methods.get(path) else {
            return Err(Error::unimplemented("METHOD_NOT_FOUND", "This service has no such method."));
        };
        let peer = request.extensions().get::<Peer>();
        if between_services {
            check_peer(path, declared, peer)?;
        }
        if declared.access == Access::Public {
            return Ok(());
        }
        let token = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| {
                Error::unauthenticated("TOKEN_MISSING", "Send an access token as a bearer token.")
            })?;
        let caller = self.verifier.verify(token, declared.privileged)?;
        tracing::Span::current().record("caller", caller.subject().as_text());
        if between_services {
            check_token_is_of_peer(path, &caller, peer)?;
        }
        if declared.persons_only {
            caller.person()?;
        }
        if let Access::Permission(permission) = &declared.access {
            caller.require(permission)?;
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }

    fn request_id(&self, request: &Request<Body>) -> String {
        request
            .headers()
            .get(context::REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| context::is_valid_request_id(id))
            .map_or_else(
                || gatehouse_core::ids::RequestId::new(&self.clock, &self.entropy).to_string(),
                str::to_owned,
            )
    }
}

/// The full name of the service in a method's path.
fn service_of(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

/// The answer to a call whose message could not be decoded says that its sender is to blame: for tonic that is a fault of
/// the server. What services say themselves stays.
fn blame_the_sender(response: Response<Body>) -> Response<Body> {
    let broken = response.extensions().get::<tonic::Status>().and_then(reply::undecodable);
    broken.map_or(response, |error| refusal(&error))
}

/// The answer to a call that goes no further. Where that is only this replica's state, the caller may ask another.
fn refusal(error: &Error) -> Response<Body> {
    let mut response = reply::status(error).into_http();
    if error.code() == ErrorCode::Unavailable {
        response.headers_mut().insert(NOT_BEGUN, HeaderValue::from_static("1"));
    }
    response
}

/// Whether the service at the other end may call the method at all, whatever token it shows.
fn check_peer(path: &str, declared: &Declared, peer: Option<&Peer>) -> Result<()> {
    if let Some(peer) = peer
        && declared.may_be_called_by(peer.service(), peer.is_internal())
    {
        return Ok(());
    }
    let service = peer.map_or("a connection without a certificate", Peer::service);
    tracing::warn!(
        peer = service,
        path,
        "a call was refused: the method does not name this service as a caller"
    );
    Err(Error::permission_denied(
        "CALLER_NOT_ALLOWED",
        format!("The service {service} may not call this method."),
    ))
}

/// Every token for a service names the client that obtained it, for itself or for a person: over the connection of
/// another service it is a stolen one.
fn check_token_is_of_peer(path: &str, caller: &Caller, peer: Option<&Peer>) -> Result<()> {
    let client = caller.claims().client_id.as_deref().or_else(|| caller.client());
    match (client, peer) {
        (None, _) => Ok(()),
        (Some(client), Some(peer)) if client == peer.service() => Ok(()),
        (Some(client), peer) => {
            let service = peer.map_or("no service", Peer::service);
            tracing::warn!(
                peer = service,
                client,
                path,
                "a call was refused: its token belongs to another service; it may be stolen"
            );
            Err(Error::permission_denied(
                "TOKEN_OF_ANOTHER_SERVICE",
                "The access token was issued to another service than the one that shows it.",
            ))
        }
    }
}
