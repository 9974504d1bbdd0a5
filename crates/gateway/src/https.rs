//! A connection over TLS, from its handshake on: HTTP/1.1 is left to actix-web, HTTP/2 to [`crate::http2`].

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::task::{self, Poll};

use actix_http::{Protocol, Request, Response};
use actix_tls::accept::rustls_0_23::{AcceptorService, TlsStream};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::Service;
use actix_web::rt::net::TcpStream;
use futures_util::future::LocalBoxFuture;

use crate::doors::when_ready;
use crate::heads::Patient;
use crate::http2::{self, Bounds, Leaving};

/// What HTTP/1.1 is served with: a connection, its protocol, its peer.
pub(crate) type Accepted<T> = (Patient<T>, Protocol, Option<std::net::SocketAddr>);

/// Takes connections.
pub(crate) struct Https<H1, App, C, B> {
    pub(crate) acceptor: AcceptorService,
    pub(crate) http1: Rc<H1>,
    pub(crate) app: Rc<App>,
    /// What is to be known of a connection from its first moment.
    pub(crate) connection: C,
    pub(crate) bounds: Bounds,
    pub(crate) leaving: Leaving,
    /// What answers carry.
    pub(crate) body: PhantomData<B>,
}

impl<H1, App, C, B> Service<TcpStream> for Https<H1, App, C, B>
where
    H1: Service<Accepted<TlsStream<TcpStream>>, Response = ()> + 'static,
    H1::Error: fmt::Debug,
    App: Service<Request> + 'static,
    App::Response: Into<Response<B>>,
    App::Error: Into<Response<BoxBody>>,
    C: Fn(&TlsStream<TcpStream>) -> crate::connection::Connection + Clone + 'static,
    B: MessageBody + 'static,
{
    type Response = ();
    type Error = ();
    type Future = LocalBoxFuture<'static, Result<(), ()>>;

    /// Always: handshakes are bounded as all connections are, and the acceptor's own bound, which would keep the worker
    /// from every connection, is not asked.
    fn poll_ready(&self, _: &mut task::Context<'_>) -> Poll<Result<(), ()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, socket: TcpStream) -> Self::Future {
        let peer = socket.peer_addr().ok();
        let accepting = self.acceptor.call(socket);
        let (http1, app) = (Rc::clone(&self.http1), Rc::clone(&self.app));
        let (connection, leaving) = (self.connection.clone(), self.leaving.clone());
        let bounds = self.bounds;
        Box::pin(async move {
            let stream = accepting.await.map_err(|error| tracing::debug!(?error, "no TLS"))?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                let io = Patient::new(stream, bounds.patience.keep_alive);
                let served = when_ready(&*http1, (io, Protocol::Http1, peer)).await;
                return served.map_err(|error| tracing::debug!(?error, "a connection ended"));
            }
            let connection = connection(&stream);
            let served = http2::serve(stream, peer, app, connection, bounds, leaving).await;
            served.map_err(|error| tracing::debug!(%error, "an HTTP/2 connection ended"))
        })
    }
}
