//! Who may come in: the register of the open connections of clients, over all workers and listeners.
//!
//! Invariants: never more connections than there are places, and never more of one address than its share; one too
//! many is closed at once and never left to wait, so that no worker ever stops taking connections; and there are never
//! more places than files that the process may open beside the others that it needs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Debug;
use std::future::{Ready, poll_fn, ready};
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use actix_web::dev::Service;
use actix_web::rt::net::TcpStream;
use futures_util::future::{Either, LocalBoxFuture};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, UpDownCounter};
use tokio::time::Instant;

use crate::config::Config;

/// Open files that everything else in the process may need: connections to services and databases, files, and clients
/// that were just taken from the listener.
const OTHER_FILES: u64 = 512;
/// How often refusals for one reason are told in the log.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// The register.
pub(crate) struct Doors {
    places: usize,
    share: usize,
    trusted: Vec<IpNet>,
    open: Mutex<Open>,
    gauge: UpDownCounter<i64>,
    refused: Counter<u64>,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    untold: HashMap<&'static str, (Option<Instant>, u64)>,
}

/// One open connection; gives its place back when it is dropped.
pub(crate) struct Place {
    doors: Arc<Doors>,
    /// Whose share it is of, unless a trusted proxy's, which has none.
    address: Option<IpAddr>,
}

impl Doors {
    /// For the gateway of `config`; may raise the process's own bound on open files, up to what it is allowed.
    pub(crate) fn new(config: &Config, trusted: Vec<IpNet>) -> Arc<Self> {
        let places = places(config.max_connections, open_files(config.max_connections));
        if places < config.max_connections {
            tracing::warn!(
                places,
                "gateway.max_connections is {}, but this process may not open so many files (ulimit -n): it takes \
                 {places} connections at a time",
                config.max_connections
            );
        }
        Arc::new(Self::with(places, config.max_connections_per_address, trusted))
    }

    fn with(places: usize, share: usize, trusted: Vec<IpNet>) -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        Self {
            places,
            share,
            trusted,
            open: Mutex::default(),
            gauge: meter
                .i64_up_down_counter("gatehouse.gateway.connections")
                .with_description("Open connections of clients.")
                .build(),
            refused: meter
                .u64_counter("gatehouse.gateway.connections.refused")
                .with_description(
                    "Connections of clients that were closed at once because there were too many.",
                )
                .build(),
        }
    }

    /// A place for a connection from `peer`, if there is one.
    pub(crate) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let address = (!self.trusted.iter().any(|net| net.contains(&peer))).then(|| network(peer));
        let mut open = self.lock();
        if open.all >= self.places {
            self.refuse(open, "all", peer);
            return None;
        }
        if let Some(address) = address {
            let of_address = open.by_address.entry(address).or_default();
            if *of_address >= self.share {
                self.refuse(open, "address", peer);
                return None;
            }
            *of_address += 1;
        }
        open.all += 1;
        drop(open);
        self.gauge.add(1, &[]);
        Some(Place { doors: Arc::clone(self), address })
    }

    fn refuse(&self, mut open: MutexGuard<'_, Open>, bound: &'static str, peer: IpAddr) {
        let (told, untold) = open.untold.entry(bound).or_default();
        *untold += 1;
        let tell = told.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        let refused = if tell {
            *told = Some(Instant::now());
            std::mem::take(untold)
        } else {
            0
        };
        drop(open);
        self.refused.add(1, &[KeyValue::new("bound", bound)]);
        if tell {
            let field = if bound == "all" { "max_connections" } else { "max_connections_per_address" };
            let peer = peer.to_string();
            tracing::warn!(
                refused,
                peer,
                "connections were closed: there are as many as gateway.{field} allows"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.doors.lock();
        open.all -= 1;
        if let Some(Entry::Occupied(mut of_address)) =
            self.address.map(|address| open.by_address.entry(address))
        {
            *of_address.get_mut() -= 1;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
        drop(open);
        self.doors.gauge.add(-1, &[]);
    }
}

/// Whom an address stands for: of IPv6, one customer has a /64 at least.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// How many files this process may open, after it was allowed as many as `connections` need, if that can be.
fn open_files(connections: usize) -> u64 {
    let needed = connections as u64 + OTHER_FILES;
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((now, most)) if now < needed => {
            let raised = needed.min(most);
            let set = setrlimit(Resource::RLIMIT_NOFILE, raised, most);
            set.map_or(now, |()| raised)
        }
        Ok((now, _)) => now,
        Err(error) => {
            tracing::warn!(%error, "how many files this process may open is not known");
            needed
        }
    }
}

/// How many connections find room where so many files may be open.
fn places(wanted: usize, files: u64) -> usize {
    let room = files - OTHER_FILES.min(files / 2);
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
}

/// A listener's connections, served by `inner` once they have a place, for as long as they hold it.
pub(crate) struct Door<S> {
    doors: Arc<Doors>,
    inner: Rc<S>,
}

impl<S> Door<S> {
    pub(crate) fn new(doors: Arc<Doors>, inner: S) -> Self {
        Self { doors, inner: Rc::new(inner) }
    }
}

impl<S> Service<TcpStream> for Door<S>
where
    S: Service<TcpStream, Response = ()> + 'static,
    S::Error: Debug,
{
    type Response = ();
    type Error = ();
    type Future = Either<Ready<Result<(), ()>>, LocalBoxFuture<'static, Result<(), ()>>>;

    /// Always: while one service of a worker is not ready, the worker takes no connection for any.
    fn poll_ready(&self, _: &mut task::Context<'_>) -> Poll<Result<(), ()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, socket: TcpStream) -> Self::Future {
        // One that has no peer any more is gone.
        let place = socket.peer_addr().ok().and_then(|peer| self.doors.admit(peer.ip()));
        let Some(place) = place else { return Either::Left(ready(Ok(()))) };
        // An event goes out when it happens, whether or not the one before it was acknowledged.
        let _ = socket.set_nodelay(true);
        let inner = Rc::clone(&self.inner);
        Either::Right(Box::pin(async move {
            if let Err(error) = when_ready(&*inner, socket).await {
                tracing::debug!(?error, "a connection ended");
            }
            drop(place);
            Ok(())
        }))
    }
}

/// What `service` answers to `request`, once it is ready to.
pub(crate) async fn when_ready<S: Service<R>, R>(service: &S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|context| service.poll_ready(context)).await?;
    service.call(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(places: usize, share: usize) -> Arc<Doors> {
        Arc::new(Doors::with(places, share, vec!["10.0.0.0/8".parse().expect("a network")]))
    }

    fn from(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_its_share_and_all_have_the_places() {
        let doors = doors(5, 2);
        let mut held: Vec<_> = (0..2).map(|_| doors.admit(from("192.0.2.1")).expect("a place")).collect();
        assert!(doors.admit(from("192.0.2.1")).is_none());
        assert!(doors.admit(from("::ffff:192.0.2.1")).is_none(), "the same address in other words");
        held.push(doors.admit(from("2001:db8::1")).expect("a place"));
        held.push(doors.admit(from("2001:db8::ffff:1")).expect("a place"));
        assert!(doors.admit(from("2001:db8::2")).is_none(), "the same network");
        held.push(doors.admit(from("2001:db8:0:1::1")).expect("another network"));
        assert!(doors.admit(from("192.0.2.2")).is_none(), "no place is left");
        held.clear();
        assert!(doors.lock().by_address.is_empty(), "who has gone is not remembered");
        assert_eq!(doors.lock().all, 0);
    }

    #[test]
    fn a_trusted_proxy_has_no_share_but_needs_a_place() {
        let doors = doors(3, 1);
        let held: Vec<_> = (0..5).filter_map(|_| doors.admit(from("::ffff:10.1.2.3"))).collect();
        assert_eq!(held.len(), 3);
        drop(held);
        assert!(doors.admit(from("10.1.2.3")).is_some());
    }

    #[test]
    fn there_are_no_more_places_than_files() {
        assert_eq!(places(10_000, 1 << 20), 10_000);
        assert_eq!(places(10_000, 10_512), 10_000);
        assert_eq!(places(10_000, 4096), 3584);
        assert_eq!(places(10_000, 500), 250);
        assert_eq!(places(10_000, 0), 1);
    }
}
