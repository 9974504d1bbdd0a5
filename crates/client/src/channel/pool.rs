//! The replicas of one service: which there are, which can be called, and which is called next.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use gatehouse_core::Entropy;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::config::{ChannelConfig, Endpoint};
use super::connection::{Connection, Place};
use super::connector::Connector;
use super::resolver::Resolver;
use crate::Backoff;

/// The most replicas that one channel connects to.
const MAX_REPLICAS: usize = 64;
/// The most calls that one channel has under way.
const MAX_CALLS: usize = 10_000;
/// The shortest time from one try to connect to the next, however many calls wait for it.
const MIN_SPACING: Duration = Duration::from_millis(50);
/// The shortest time from one look at the names to the next.
const MIN_RESOLVE_SPACING: Duration = Duration::from_millis(250);
/// What a call waits for a replica even if there has been none for long: a try that it asked for fits in.
const GRACE: Duration = Duration::from_millis(150);
/// A connection that held for this long was a good one.
const LIVED: Duration = Duration::from_secs(1);

/// Flow-control windows, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) stream: u32,
    pub(super) connection: u32,
}

/// What a channel was made with.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: ChannelConfig,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) windows: Option<Windows>,
    pub(super) connector: Connector,
    pub(super) resolver: Resolver,
    pub(super) entropy: Entropy,
    /// What the channel's tasks run on: calls come from other runtimes too.
    pub(super) runtime: Handle,
}

/// One replica: an address, and what it is to be spoken to as.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Arc<Endpoint>,
    /// Which of the configured endpoints.
    index: usize,
    pub(super) address: SocketAddr,
}

impl Target {
    fn is(&self, index: usize, address: SocketAddr) -> bool {
        self.index == index && self.address == address
    }
}

#[derive(Debug)]
struct Replica {
    target: Target,
    connection: RwLock<Option<Arc<Connection>>>,
    /// A call waits for it.
    wanted: Notify,
    gone: CancellationToken,
}

impl Replica {
    fn open(&self) -> Option<Arc<Connection>> {
        let held = self.connection.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|connection| connection.is_open()).cloned()
    }

    fn put(&self, connection: Option<Arc<Connection>>) {
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) settings: Settings,
    replicas: RwLock<Vec<Arc<Replica>>>,
    /// Turns whenever a replica can be called that could not be.
    arrived: watch::Sender<()>,
    /// Since when no replica can be called.
    none_since: Mutex<Option<Instant>>,
    resolve_now: Notify,
    started: AtomicBool,
    calls: Arc<AtomicUsize>,
    stopped: CancellationToken,
}

impl Pool {
    /// Nothing happens before the first call.
    pub(super) fn new(settings: Settings, stopped: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            settings,
            replicas: RwLock::default(),
            arrived: watch::Sender::new(()),
            none_since: Mutex::default(),
            resolve_now: Notify::new(),
            started: AtomicBool::new(false),
            calls: Arc::default(),
            stopped,
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.calls.load(Ordering::Relaxed) >= MAX_CALLS
    }

    /// Counts one call for as long as it is held.
    pub(super) fn place(&self) -> Place {
        Place::take(&self.calls)
    }

    /// The connection that the next call is to go over, none of `tried`: of two that can be called, chosen at random,
    /// the one with less to do (Mitzenmacher, "The Power of Two Choices", 2001). Waits for one if there is none, at
    /// most the connect timeout, and only shortly if there has been none for that long already. `None` if none came.
    pub(super) async fn pick(self: &Arc<Self>, tried: &[Arc<Connection>]) -> Option<Arc<Connection>> {
        self.start();
        if let Some(connection) = self.choose(tried) {
            return Some(connection);
        }
        let mut arrived = self.arrived.subscribe();
        let now = Instant::now();
        let give_up =
            (self.note_state().unwrap_or(now) + self.settings.config.connect_timeout()).max(now + GRACE);
        loop {
            if let Some(connection) = self.choose(tried) {
                return Some(connection);
            }
            self.want();
            tokio::select! {
                _ = arrived.changed() => {}
                () = tokio::time::sleep_until(give_up) => return self.choose(tried),
            }
        }
    }

    /// As [`Pool::pick`], without waiting.
    pub(super) fn choose(&self, tried: &[Arc<Connection>]) -> Option<Arc<Connection>> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        let mut open: Vec<_> = replicas
            .iter()
            .filter_map(|replica| replica.open())
            .filter(|connection| !tried.iter().any(|one| Arc::ptr_eq(one, connection)))
            .collect();
        drop(replicas);
        if open.len() < 2 {
            return open.pop();
        }
        let first = open.swap_remove(self.below(open.len()));
        let second = open.swap_remove(self.below(open.len()));
        Some(if second.outstanding() < first.outstanding() { second } else { first })
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.settings.entropy.below(bound as u64)).unwrap_or(0)
    }

    /// Tries those at once that are out.
    fn want(&self) {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        for replica in replicas.iter().filter(|replica| replica.open().is_none()) {
            replica.wanted.notify_one();
        }
        if replicas.is_empty() {
            self.resolve_now.notify_one();
        }
    }

    /// Since when there is no replica that can be called; `None` if there is one.
    fn note_state(&self) -> Option<Instant> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        let any = replicas.iter().any(|replica| replica.open().is_some());
        drop(replicas);
        let mut since = self.none_since.lock().unwrap_or_else(PoisonError::into_inner);
        if any {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
        *since
    }

    fn start(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::AcqRel) {
            self.note_state();
            let (pool, stopped) = (Arc::clone(self), self.stopped.clone());
            self.settings.runtime.spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = pool.keep_names() => {}
                }
            });
        }
    }

    /// Looks the names up again and again. An address that a name does not stand for any more gets no new calls; a name
    /// that can't be resolved keeps the addresses that it had.
    async fn keep_names(self: Arc<Self>) {
        let named = |endpoint: &Endpoint| endpoint.host.parse::<IpAddr>().is_err();
        let all_are_numbers = !self.settings.endpoints.iter().any(named);
        loop {
            self.resolve().await;
            if all_are_numbers {
                return std::future::pending().await;
            }
            let interval = self.settings.config.resolve_interval();
            let jitter =
                self.settings.entropy.below(u64::try_from(interval.as_millis() / 5).unwrap_or(1) + 1);
            tokio::time::sleep(MIN_RESOLVE_SPACING).await;
            let rest = (interval + Duration::from_millis(jitter)).saturating_sub(MIN_RESOLVE_SPACING);
            let _ = timeout(rest, self.resolve_now.notified()).await;
        }
    }

    async fn resolve(self: &Arc<Self>) {
        let limit = self.settings.config.connect_timeout();
        let looked_up = self.settings.endpoints.iter().map(|endpoint| async {
            match timeout(limit, self.settings.resolver.look_up(&endpoint.host, endpoint.port)).await {
                Ok(Ok(addresses)) if !addresses.is_empty() => Some(addresses),
                Ok(Ok(_)) => None,
                Ok(Err(error)) => {
                    tracing::debug!(host = endpoint.host, %error, "a name could not be resolved");
                    None
                }
                Err(_) => {
                    tracing::debug!(host = endpoint.host, "a name was not resolved in time");
                    None
                }
            }
        });
        let found: Vec<Option<Vec<SocketAddr>>> = futures_util::future::join_all(looked_up).await;
        self.set(&found);
    }

    /// Takes in what the names stand for now, endpoint by endpoint; `None` is: as before.
    fn set(self: &Arc<Self>, found: &[Option<Vec<SocketAddr>>]) {
        let mut replicas = self.replicas.write().unwrap_or_else(PoisonError::into_inner);
        replicas.retain(|replica| {
            let target = &replica.target;
            let stays = match found.get(target.index) {
                Some(Some(addresses)) => addresses.contains(&target.address),
                _ => true,
            };
            if !stays {
                tracing::info!(
                    replica = %target.address,
                    service = target.endpoint.host,
                    "a replica is no longer among those that its name stands for"
                );
                replica.gone.cancel();
            }
            stays
        });
        for (index, addresses) in found.iter().enumerate() {
            let Some(endpoint) = self.settings.endpoints.get(index) else { continue };
            for address in addresses.iter().flatten() {
                if replicas.iter().any(|replica| replica.target.is(index, *address)) {
                    continue;
                }
                if replicas.len() >= MAX_REPLICAS {
                    tracing::warn!(most = MAX_REPLICAS, "a service has more replicas than are called");
                    return;
                }
                let target = Target { endpoint: Arc::new(endpoint.clone()), index, address: *address };
                let replica = Arc::new(Replica {
                    target,
                    connection: RwLock::default(),
                    wanted: Notify::new(),
                    gone: self.stopped.child_token(),
                });
                replicas.push(Arc::clone(&replica));
                let (pool, gone) = (Arc::clone(self), replica.gone.clone());
                self.settings.runtime.spawn(async move {
                    tokio::select! {
                        () = gone.cancelled() => {}
                        () = pool.keep(&replica) => {}
                    }
                    replica.put(None);
                });
            }
        }
    }

    /// Keeps one replica connected.
    async fn keep(&self, replica: &Replica) {
        let max = self.settings.config.reconnect_max();
        let mut backoff = Backoff::new(MIN_SPACING * 2, max, self.settings.entropy.clone());
        let (address, service) = (replica.target.address, replica.target.endpoint.host.as_str());
        let mut known_away = false;
        loop {
            let limit = self.settings.config.connect_timeout();
            let opened = match timeout(limit, Connection::open(&self.settings, &replica.target)).await {
                Ok(opened) => opened,
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            };
            match opened {
                Ok(connection) => {
                    if known_away {
                        tracing::info!(replica = %address, service, "a replica is back");
                        known_away = false;
                    }
                    let (connection, began) = (Arc::new(connection), Instant::now());
                    replica.put(Some(Arc::clone(&connection)));
                    self.note_state();
                    self.arrived.send_replace(());
                    connection.closed().await;
                    replica.put(None);
                    self.note_state();
                    tracing::debug!(replica = %address, service, "a connection to a replica has ended");
                    if began.elapsed() >= LIVED {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) => {
                    if !known_away {
                        tracing::warn!(replica = %address, service, %error, "a replica can't be reached; others get its calls");
                        known_away = true;
                    }
                }
            }
            // Its name may stand for others by now.
            self.resolve_now.notify_one();
            tokio::time::sleep(MIN_SPACING).await;
            let _ = timeout(backoff.next_wait().saturating_sub(MIN_SPACING), replica.wanted.notified()).await;
        }
    }
}
