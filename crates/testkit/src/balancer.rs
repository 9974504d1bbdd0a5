//! What stands in front of the replicas of a gateway: a TCP load balancer with health checks.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How often each backend is asked whether it is ready.
const PERIOD: Duration = Duration::from_millis(200);
/// How long it may take to say so, and to accept a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// One replica.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where it takes connections.
    pub address: SocketAddr,
    /// Where `GET /readyz` says whether it wants any; `None` for one that always does.
    pub probes: Option<SocketAddr>,
}

/// A running load balancer: each new connection goes to the next backend that is ready and accepts it, or to any that
/// accepts it if none is ready, those that said no last. Connections stay with their backend until one of both ends them. Dropping it ends all.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    backends: Arc<Vec<Watched>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Watched {
    backend: Backend,
    standing: AtomicU8,
    connections: AtomicUsize,
}

/// What a backend last said of itself; who is asked first is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Standing {
    Ready,
    /// It does not answer in time: it stands still, or the machine is busy.
    Silent,
    /// It says no, or nothing is there.
    Unready,
}

impl Watched {
    fn note(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Relaxed);
    }
}

impl Balancer {
    /// Listens on a free loopback port. Its tasks run on the current runtime.
    ///
    /// # Errors
    /// No port could be had.
    pub async fn start(backends: Vec<Backend>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let watched = |backend: Backend| Watched {
            standing: AtomicU8::new(match backend.probes {
                None => Standing::Ready as u8,
                Some(_) => Standing::Unready as u8,
            }),
            connections: AtomicUsize::new(0),
            backend,
        };
        let backends: Arc<Vec<_>> = Arc::new(backends.into_iter().map(watched).collect());
        let mut tasks = JoinSet::new();
        for index in 0..backends.len() {
            tasks.spawn(watch(Arc::clone(&backends), index));
        }
        tasks.spawn(accept(listener, Arc::clone(&backends)));
        Ok(Self { address, backends, _tasks: tasks })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many backends are ready, as far as it knows.
    #[must_use]
    pub fn ready(&self) -> usize {
        let ready = Standing::Ready as u8;
        self.backends.iter().filter(|backend| backend.standing.load(Ordering::Relaxed) == ready).count()
    }

    /// How many connections each backend was given so far.
    #[must_use]
    pub fn connections(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.connections.load(Ordering::Relaxed)).collect()
    }
}

/// Whether a gatehouse process says at `probes` that it is ready, within a second.
pub async fn is_ready(probes: SocketAddr) -> bool {
    standing(probes).await == Standing::Ready
}

async fn standing(probes: SocketAddr) -> Standing {
    let ask = async {
        let mut stream = TcpStream::connect(probes).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: probes\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        io::Result::Ok(status.ends_with(b" 200"))
    };
    match timeout(PATIENCE, ask).await {
        Ok(Ok(true)) => Standing::Ready,
        Ok(_) => Standing::Unready,
        Err(_) => Standing::Silent,
    }
}

async fn watch(backends: Arc<Vec<Watched>>, index: usize) {
    let watched = &backends[index];
    while let Some(probes) = watched.backend.probes {
        watched.note(standing(probes).await);
        tokio::time::sleep(PERIOD).await;
    }
}

async fn accept(listener: TcpListener, backends: Arc<Vec<Watched>>) {
    // Ends with this task, and its connections with it.
    let mut connections = JoinSet::new();
    for turn in 0_usize.. {
        match listener.accept().await {
            Ok((near, _)) => {
                connections.spawn(serve(near, Arc::clone(&backends), turn));
            }
            // One connection went away in the backlog, or there are too many files: both pass.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut near: TcpStream, backends: Arc<Vec<Watched>>, turn: usize) {
    let count = backends.len();
    // Settled before the first await: what is ready changes meanwhile.
    let mut candidates: Vec<_> = (0..count)
        .map(|step| &backends[(turn + step) % count])
        .map(|watched| (watched.standing.load(Ordering::Relaxed), watched))
        .collect();
    // Stable: among equals, turns are kept.
    candidates.sort_by_key(|(standing, _)| *standing);
    for (_, watched) in candidates {
        if let Ok(Ok(mut far)) = timeout(PATIENCE, TcpStream::connect(watched.backend.address)).await {
            watched.connections.fetch_add(1, Ordering::Relaxed);
            // Without it small answers wait for acknowledgements.
            let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually;

    const SOON: Duration = Duration::from_secs(10);

    /// Says `word` to who connects.
    async fn speaker(word: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(word).await;
            }
        });
        (address, task)
    }

    async fn heard(balancer: &Balancer) -> Vec<u8> {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    }

    #[tokio::test]
    async fn connections_take_turns_and_pass_by_who_is_gone() {
        let ((one, ending), (two, _two)) = (speaker(b"one").await, speaker(b"two").await);
        let backends = [one, two].map(|address| Backend { address, probes: None });
        let balancer = Balancer::start(backends.into()).await.unwrap();
        let (first, second) = (heard(&balancer).await, heard(&balancer).await);
        assert_ne!(first, second);
        ending.abort();
        let _ = ending.await;
        for _ in 0..4 {
            assert_eq!(heard(&balancer).await, b"two");
        }
    }

    #[tokio::test]
    async fn who_is_not_ready_is_passed_by() {
        let ((one, _one), (two, _two)) = (speaker(b"one").await, speaker(b"two").await);
        let (yes, _yes) = speaker(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let (no, _no) = speaker(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let balancer = Balancer::start(vec![
            Backend { address: one, probes: Some(no) },
            Backend { address: two, probes: Some(yes) },
        ]);
        let balancer = balancer.await.unwrap();
        eventually(SOON, || async { balancer.ready() == 1 }).await;
        for _ in 0..4 {
            assert_eq!(heard(&balancer).await, b"two");
        }
        assert_eq!(balancer.connections(), [0, 4]);
    }

    /// On a busy machine a healthy replica answers late at times; it is still better than one that goes away.
    #[tokio::test]
    async fn who_says_nothing_is_asked_before_who_says_no() {
        let ((one, _one), (two, _two)) = (speaker(b"one").await, speaker(b"two").await);
        let (no, _no) = speaker(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let balancer = Balancer::start(vec![
            Backend { address: one, probes: Some(no) },
            Backend { address: two, probes: Some(silent.local_addr().unwrap()) },
        ]);
        let balancer = balancer.await.unwrap();
        eventually(SOON, || async {
            balancer.backends[1].standing.load(Ordering::Relaxed) == Standing::Silent as u8
        })
        .await;
        for _ in 0..4 {
            assert_eq!(heard(&balancer).await, b"two");
        }
        assert_eq!(balancer.ready(), 0);
    }
}
