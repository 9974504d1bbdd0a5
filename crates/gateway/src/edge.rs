//! The way of every request: name it, see where it comes from, check what every request must satisfy, route it,
//! count it, let it in, answer, dress the answer.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::uri::Authority;
use actix_web::http::{ConnectionType, Method, StatusCode, Version};
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, guard, web};
use futures_util::FutureExt as _;
use gatehouse_client::context as call_context;
use gatehouse_core::{Error, Result};
use tracing::Instrument as _;

use crate::body::holding;
use crate::browser::{BrowserRules, add_security_headers, names_this_machine};
use crate::client_address;
use crate::connection::Connection;
use crate::context::{Context, RequestInfo, Unread};
use crate::credential;
use crate::door::Admitted;
use crate::gateway::Gateway;
use crate::heads::Activity;
use crate::limits::{Charge, Outcome};
use crate::route::{Access, ErrorFormat, LimitClass, Route};
use crate::sse::{OK_KEEP_ALIVE, SaysKeepAlive};
use crate::{oauth_error, problem, refusals, request_id, telemetry};

/// Registers every route of the table, each path's 405, and the 404.
pub(crate) fn configure(gateway: &Arc<Gateway>, config: &mut web::ServiceConfig) {
    let mut paths: Vec<&str> = gateway.routes.iter().map(|route| route.path.as_str()).collect();
    paths.dedup();
    for path in paths {
        let here: Vec<&Arc<Route>> = gateway.routes.iter().filter(|route| route.path == path).collect();
        let mut resource = web::resource(path);
        let mut allow: Vec<&str> = Vec::new();
        for route in here {
            allow.push(route.method.as_str());
            let head = route.method == Method::GET && !route.streams;
            if head {
                allow.push("HEAD");
            }
            let method = route.method.clone();
            let matcher = guard::fn_guard(move |context| {
                let found = &context.head().method;
                *found == method || (head && *found == Method::HEAD)
            });
            let (gateway, route) = (Arc::clone(gateway), Arc::clone(route));
            resource = resource.route(web::route().guard(matcher).to(
                move |request: HttpRequest, payload: web::Payload| {
                    dispatch(Arc::clone(&gateway), Arc::clone(&route), request, payload.into_inner())
                },
            ));
        }
        allow.push("OPTIONS");
        let allow = allow.join(", ");
        let gateway = Arc::clone(gateway);
        config.service(resource.default_service(web::to(
            move |request: HttpRequest, payload: web::Payload| {
                wrong_method(Arc::clone(&gateway), request, payload.into_inner(), allow.clone())
            },
        )));
    }
}

/// What surrounds every request, routed or not.
pub(crate) async fn surround<B: MessageBody + 'static>(
    gateway: Arc<Gateway>,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let started = Instant::now();
    let presented = request.headers().get(request_id::HEADER).and_then(|value| value.to_str().ok());
    let id = request_id::choose(presented, &gateway.clock, &gateway.entropy);
    let peer = request.peer_addr().map_or_else(|| [0, 0, 0, 0].into(), |address| address.ip());
    let names_this_machine = names_this_machine(request.uri(), request.headers());
    let connection = request.conn_data::<Connection>().cloned();
    let connection = connection.or_else(|| request.extensions_mut().remove::<Connection>());
    let tls = connection.as_ref().is_some_and(Connection::is_tls);
    let client = client_address::resolve(
        peer,
        tls,
        request.headers(),
        &gateway.trusted_proxies,
        gateway.config.trusted_proxy_header,
    );
    let info = RequestInfo { request_id: id.clone(), client };
    request.extensions_mut().insert(info);
    let method = request.method().as_str().to_owned();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let span = telemetry::request_span(&method, request.path(), &id, request.headers());
    gateway.metrics.began(&method);

    let at_work = request.conn_data::<Activity>().map(Activity::begin);
    let (underway, begun) = connection.as_ref().map(Connection::begin).unzip();
    let http1 = request.version() < Version::HTTP_2;
    if let Some(connection) = &connection
        && http1
        && request.head().connection_type() == ConnectionType::Close
    {
        connection.close();
    }
    let checked = begun.unwrap_or(Ok(())).and_then(|()| check_every_request(&gateway, &request, client));
    let answered = call_context::with_request_id(id.clone(), async {
        match checked {
            Ok(()) => next.call(request).await.map(ServiceResponse::map_into_left_body),
            Err(error) => {
                log(&error);
                let payload = request.take_payload();
                let response = problem::response(&error, &id, false);
                let response = keep_unread(response, request.version(), Rc::new(RefCell::new(Some(payload))));
                Ok(request.into_response(response).map_into_right_body())
            }
        }
    })
    .instrument(span.clone())
    .await;
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => return Err(error),
    };

    let route = response.request().match_pattern();
    let status = response.status().as_u16();
    if gateway.lifecycle.leaving().is_cancelled() {
        // The next request is to find another process; a connection that closes under it would cost it an answer.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    } else if response.response().extensions().get::<SaysKeepAlive>().is_some() {
        response.response_mut().head_mut().reason = Some(OK_KEEP_ALIVE);
    }
    if let Some(connection) = &connection
        && http1
        && response.response().head().connection_type() == ConnectionType::Close
    {
        connection.close();
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static(request_id::HEADER), value);
    }
    let made_for_development = tls && gateway.config.tls_certificate_file.is_empty();
    add_security_headers(headers, client.https && !names_this_machine && !made_for_development);
    gateway.browser.add_cors_headers(headers, origin.as_ref());
    let took = started.elapsed();
    gateway.metrics.ended(&method, route.as_deref(), status, took);
    span.record("http.response.status_code", status);
    if let Some(route) = &route {
        span.record("http.route", route.as_str());
        telemetry::name_after_route(&span, &method, route);
    }
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
    let route = route.as_deref().unwrap_or("unrouted");
    if route != "/healthz" && route != "/readyz" {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let client = client.ip.to_string();
        span.in_scope(|| tracing::info!(target: "gatehouse_gateway::access", route, status, took_ms, client, "answered"));
    }
    Ok(response.map_body(|_, body| {
        let body = match underway {
            Some(underway) => underway.carry(body.boxed()),
            None => body.boxed(),
        };
        match at_work {
            Some(at_work) => at_work.carry(body),
            None => body,
        }
    }))
}

fn check_every_request(
    gateway: &Gateway,
    request: &ServiceRequest,
    client: client_address::ClientAddress,
) -> Result<()> {
    let config = &gateway.config;
    let too_long = |what: String| Err(Error::invalid_argument("URI_TOO_LONG", what));
    if request.uri().path_and_query().map_or(0, |whole| whole.as_str().len()) > config.max_uri_bytes {
        return too_long(format!("The URI may have at most {} bytes.", config.max_uri_bytes));
    }
    for pair in request.query_string().split('&') {
        let value = pair.split_once('=').map_or(pair, |(_, value)| value);
        if value.len() > config.max_query_value_bytes {
            return too_long(format!(
                "A query parameter may have at most {} bytes.",
                config.max_query_value_bytes
            ));
        }
    }
    check_host(request.headers())?;
    gateway.browser.check_origin(request.method(), request.headers(), client)
}

/// A request names one host, and that as an authority without a user (RFC 9112, section 3.2). Links are made of it.
fn check_host(headers: &HeaderMap) -> Result<()> {
    let mut hosts = headers.get_all(header::HOST);
    let Some(host) = hosts.next() else { return Ok(()) };
    let good = host.is_empty()
        || host.to_str().is_ok_and(|text| {
            !text.contains('@') && text.parse::<Authority>().is_ok_and(|authority| !has_bad_port(&authority))
        });
    if good && hosts.next().is_none() {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "INVALID_HOST",
        "Send one Host header: a name or an address, and a port if need be.",
    ))
}

fn has_bad_port(authority: &Authority) -> bool {
    let after_host = authority.as_str().get(authority.host().len()..).unwrap_or_default();
    !after_host.is_empty() && authority.port_u16().is_none()
}

/// One routed request.
async fn dispatch(
    gateway: Arc<Gateway>,
    route: Arc<Route>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    let info = info(&request);
    let format = route.errors;
    let id = info.request_id.clone();
    let shown =
        request.headers().contains_key(header::AUTHORIZATION) || request.headers().contains_key("x-api-key");
    let mut extra = HeaderMap::new();
    let version = request.version();
    // No handler reads what comes with a GET, and over HTTP/2 it would be kept at the cost of others: see `Unread`.
    let is_wanted = version < Version::HTTP_2 || route.method != Method::GET;
    let unread: Unread = Rc::new(RefCell::new(is_wanted.then_some(payload)));
    let run = run(gateway, Arc::clone(&route), request, Rc::clone(&unread), info, &mut extra);
    let result = AssertUnwindSafe(run)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(Error::internal("a handler panicked")));
    let mut response = result.unwrap_or_else(|error| {
        let error = refusals::as_listed(&route, error);
        log(&error);
        match format {
            ErrorFormat::Problem => problem::response(&error, &id, shown),
            ErrorFormat::OAuth => oauth_error::response(&error),
        }
    });
    for (name, value) in extra {
        response.headers_mut().insert(name, value);
    }
    keep_unread(response, version, unread)
}

/// Keeps the body that was not read for as long as the answer is on its way. See [`Unread`].
fn keep_unread(mut response: HttpResponse, version: Version, unread: Unread) -> HttpResponse {
    if version >= Version::HTTP_2 {
        unread.take();
    }
    if unread.borrow().is_none() {
        return response;
    }
    // An answer without a body is checked when its head is sent, any other when its body ends.
    response.extensions_mut().insert(Rc::clone(&unread));
    response.map_body(|_, body| holding(body, unread))
}

async fn run(
    gateway: Arc<Gateway>,
    route: Arc<Route>,
    request: HttpRequest,
    payload: Unread,
    info: RequestInfo,
    extra: &mut HeaderMap,
) -> Result<HttpResponse> {
    let caller = admit(&gateway, &route, &request, &info, extra).await?;
    if let Some(admitted) = &caller {
        tracing::Span::current().record("caller", admitted.caller.subject().as_text());
    }
    let handler = route.handler;
    let context = Context { gateway, route, request, payload, info, caller };
    context.check_query()?;
    handler(context).await
}

/// Counts the request and lets its sender in. See [`crate::limits`] for the order.
async fn admit(
    gateway: &Gateway,
    route: &Route,
    request: &HttpRequest,
    info: &RequestInfo,
    extra: &mut HeaderMap,
) -> Result<Option<Admitted>> {
    let charge =
        Charge { limits: &gateway.rate_limits, client: info.client, class: route.class, route: &route.name };
    let mut decide = |outcome: Outcome| {
        outcome.write_headers(extra);
        outcome.permit()
    };
    let service = match route.access {
        Access::Probe => return Ok(None),
        Access::Public | Access::OAuthClient => {
            decide(charge.all(None).await)?;
            return Ok(None);
        }
        Access::Caller(service) => service,
    };
    // REQUIRE_AUTH=false, static tokens (API_BEARER_TOKENS) and external issuers would be further arms of this.
    let recognised = match credential::extract(request.headers(), gateway.environment) {
        Ok(Some(presented)) => gateway.door.recognise(&presented, service).map(|caller| (presented, caller)),
        Ok(None) => Err(Error::unauthenticated(
            "CREDENTIAL_MISSING",
            "Show an access token as `Authorization: Bearer …`, or an API key as `X-API-Key: …`.",
        )),
        Err(error) => Err(error),
    };
    match recognised {
        Ok((presented, Some(caller))) => {
            decide(charge.all(Some(&caller)).await)?;
            gateway.door.admit(&presented, service).await.map(Some)
        }
        Ok((presented, None)) => {
            decide(charge.before_exchange().await)?;
            let admitted = gateway.door.admit(&presented, service).await?;
            decide(charge.after_exchange(&admitted.caller).await)?;
            Ok(Some(admitted))
        }
        Err(error) => {
            // Guessing is counted like any other request.
            decide(charge.all(None).await)?;
            Err(error)
        }
    }
}

/// No such path.
pub(crate) async fn not_found(
    gateway: Arc<Gateway>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let error = Error::not_found("ROUTE_NOT_FOUND", "There is no such address here. /docs lists all.");
    let response = unrouted(&gateway, &request, error).await;
    keep_unread(response, request.version(), Rc::new(RefCell::new(Some(payload.into_inner()))))
}

/// The path exists, the method does not; or a preflight.
async fn wrong_method(
    gateway: Arc<Gateway>,
    request: HttpRequest,
    payload: Payload,
    allow: String,
) -> HttpResponse {
    let mut response = if *request.method() == Method::OPTIONS {
        options(&gateway, &request, &allow).await
    } else {
        let error =
            Error::invalid_argument("METHOD_NOT_ALLOWED", format!("This address takes {allow} only."));
        unrouted(&gateway, &request, error).await
    };
    if let Ok(value) = HeaderValue::from_str(&allow) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    keep_unread(response, request.version(), Rc::new(RefCell::new(Some(payload))))
}

async fn options(gateway: &Gateway, request: &HttpRequest, allow: &str) -> HttpResponse {
    let origin = request.headers().get(header::ORIGIN).and_then(|value| value.to_str().ok());
    match origin {
        Some(origin) if !gateway.browser.allows(origin) => {
            let error = Error::permission_denied(
                "ORIGIN_NOT_ALLOWED",
                "Pages of this origin may not call this API. The operator lists origins in CORS_ALLOWED_ORIGINS.",
            );
            unrouted(gateway, request, error).await
        }
        _ => {
            let mut builder = HttpResponse::build(StatusCode::NO_CONTENT);
            if origin.is_some() {
                for header in BrowserRules::preflight_headers(allow) {
                    builder.insert_header(header);
                }
            }
            builder.finish()
        }
    }
}

async fn unrouted(gateway: &Gateway, request: &HttpRequest, error: Error) -> HttpResponse {
    let info = info(request);
    let charge = Charge {
        limits: &gateway.rate_limits,
        client: info.client,
        class: LimitClass::Read,
        route: "unrouted",
    };
    let outcome = charge.all(None).await;
    let error = outcome.permit().err().unwrap_or(error);
    let mut response = problem::response(&error, &info.request_id, false);
    outcome.write_headers(response.headers_mut());
    response
}

fn info(request: &HttpRequest) -> RequestInfo {
    request.extensions().get::<RequestInfo>().cloned().unwrap_or_else(|| RequestInfo {
        request_id: "unknown".to_owned(),
        client: client_address::ClientAddress { ip: [0, 0, 0, 0].into(), https: false },
    })
}

/// Services logged the causes of their own failures; what is left are ours and broken connections.
fn log(error: &Error) {
    if error.cause().is_some() || error.code() == gatehouse_core::ErrorCode::Internal {
        gatehouse_service::reply::log(error);
    }
}
