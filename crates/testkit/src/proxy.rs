//! A TCP proxy whose connections can be made to fail.
//!
//! It stands between two processes and does to their connections what networks do: lets bytes wait, come late, get lost
//! in one direction only, or ends it all. What it knows of the bytes is at most a pattern to look for: that is how
//! "committed, and the answer lost" is made to happen at will.

use std::io::{self, Error};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Long enough for a server on a busy machine to accept; a dead one on loopback refuses at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to bytes that go one way.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// Each piece passes so much later than the one before it.
    Late(Duration),
    /// They wait until the flow changes. Nothing is lost.
    Stall,
    /// They are lost, and nobody is told: a half-open connection. What comes after would make no sense to its reader, so
    /// a connection that lost bytes is ended as soon as the flow changes.
    Lose,
    /// A piece that holds this pattern (any piece, if it is empty) is lost and the connection ended both ways.
    CutAt(&'static [u8]),
}

/// What happens to all connections of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Weather {
    /// From who connected to whom it wanted.
    pub requests: Flow,
    /// And back.
    pub answers: Flow,
    /// Whether new connections are ended at once.
    pub refuse: bool,
}

impl Weather {
    /// Nothing passes either way, and nobody is told.
    #[must_use]
    pub const fn stalled() -> Self {
        Self { requests: Flow::Stall, answers: Flow::Stall, refuse: false }
    }

    /// Requests arrive; their answers do not.
    #[must_use]
    pub const fn answers_lost() -> Self {
        Self { requests: Flow::Pass, answers: Flow::Lose, refuse: false }
    }

    /// Requests arrive, and each answer that holds `pattern` ends its connection instead of arriving.
    #[must_use]
    pub const fn cut_at_answer(pattern: &'static [u8]) -> Self {
        Self { requests: Flow::Pass, answers: Flow::CutAt(pattern), refuse: false }
    }

    /// Everything arrives later by `by` each way.
    #[must_use]
    pub const fn late(by: Duration) -> Self {
        Self { requests: Flow::Late(by), answers: Flow::Late(by), refuse: false }
    }

    /// New connections are ended at once; [`Proxy::cut`] ends the open ones.
    #[must_use]
    pub const fn refusing() -> Self {
        Self { requests: Flow::Pass, answers: Flow::Pass, refuse: true }
    }
}

/// A running proxy. Dropping it ends its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<String>,
    weather: watch::Sender<Weather>,
    /// Grows with each cut.
    cuts: watch::Sender<u64>,
    accepted: AtomicU64,
    lost: AtomicU64,
}

impl Proxy {
    /// Listens on a free loopback port and passes everything on to `target` (`host:port`). Its tasks run on the current
    /// runtime.
    ///
    /// # Errors
    /// No port could be had.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target.into()),
            weather: watch::Sender::default(),
            cuts: watch::Sender::default(),
            accepted: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections elsewhere; open ones stay where they are.
    pub fn point_to(&self, target: impl Into<String>) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target.into();
    }

    /// Changes what happens to all connections, open and new ones.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.set(Weather::default());
    }

    /// Ends all open connections, both ways, now.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Pieces that were lost so far, by [`Flow::Lose`] and [`Flow::CutAt`].
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // An error here is of one connection (it went away in the backlog) or of too many files: both pass.
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                let refuse = shared.weather.borrow().refuse;
                if !refuse {
                    // Subscribed before the task runs: a cut that comes in between counts.
                    let cuts = shared.cuts.subscribe();
                    tokio::spawn(connection(near, cuts, Arc::clone(&shared)));
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(near: TcpStream, mut cuts: watch::Receiver<u64>, shared: Arc<Shared>) {
    let target = shared.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let talk = async {
        let far = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await??;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let requests = pump(near_read, far_write, &shared, |weather| &weather.requests);
        let answers = pump(far_read, near_write, &shared, |weather| &weather.answers);
        tokio::try_join!(requests, answers)
    };
    tokio::select! {
        _ = talk => {}
        _ = cuts.changed() => {}
    }
}

/// Passes bytes on until their end.
///
/// # Errors
/// If the whole connection is to end, both ways.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    way: fn(&Weather) -> &Flow,
) -> io::Result<()> {
    let mut weather = shared.weather.subscribe();
    let mut piece = vec![0; 64 * 1024];
    let mut has_lost = false;
    loop {
        let length = loop {
            tokio::select! {
                read = from.read(&mut piece) => break read?,
                changed = weather.changed() => {
                    changed.map_err(Error::other)?;
                    if has_lost && *way(&weather.borrow_and_update()) != Flow::Lose {
                        return Err(Error::other("bytes of this connection were lost"));
                    }
                }
            }
        };
        let read = &piece[..length];
        loop {
            let flow = way(&weather.borrow_and_update()).clone();
            match flow {
                Flow::Lose => {
                    has_lost = true;
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                _ if has_lost => return Err(Error::other("bytes of this connection were lost")),
                Flow::Stall => weather.changed().await.map_err(Error::other)?,
                Flow::CutAt(pattern) if holds(read, pattern) => {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    return Err(Error::other("the connection is to end here"));
                }
                Flow::Late(by) => {
                    tokio::time::sleep(by).await;
                    to.write_all(read).await?;
                    break;
                }
                Flow::Pass | Flow::CutAt(_) => {
                    to.write_all(read).await?;
                    break;
                }
            }
        }
        if length == 0 {
            if !has_lost {
                // Half-closed connections stay so.
                to.shutdown().await?;
            }
            return Ok(());
        }
    }
}

fn holds(piece: &[u8], pattern: &[u8]) -> bool {
    // The end of a connection is no piece.
    !piece.is_empty() && (pattern.is_empty() || piece.windows(pattern.len()).any(|window| window == pattern))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::eventually;

    const SOON: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(100);

    /// Sends back what it gets; counts what it got.
    async fn echo() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, got) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut piece = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut piece).await {
                        counted.fetch_add(length as u64, Ordering::Relaxed);
                        stream.write_all(&piece[..length]).await.unwrap();
                    }
                });
            }
        });
        (address, got)
    }

    async fn ask(stream: &mut TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(question).await?;
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    async fn pair() -> (Proxy, TcpStream, Arc<AtomicU64>) {
        let (address, got) = echo().await;
        let proxy = Proxy::start(address.to_string()).await.unwrap();
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, stream, got)
    }

    #[tokio::test]
    async fn everything_passes_in_fair_weather() {
        let (proxy, mut stream, _) = pair().await;
        assert_eq!(ask(&mut stream, b"hello").await.unwrap(), b"hello");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!((proxy.accepted(), proxy.lost()), (1, 0));
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_nothing_else() {
        let (proxy, mut stream, _) = pair().await;
        ask(&mut stream, b"hello").await.unwrap();
        proxy.cut();
        assert!(timeout(SOON, ask(&mut stream, b"again")).await.unwrap().is_err());
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"hello").await.unwrap(), b"hello");
        proxy.set(Weather::refusing());
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(timeout(SOON, ask(&mut refused, b"hello")).await.unwrap().is_err());
        assert_eq!(ask(&mut stream, b"still here").await.unwrap(), b"still here");
    }

    #[tokio::test]
    async fn what_is_stalled_arrives_later() {
        let (proxy, mut stream, got) = pair().await;
        ask(&mut stream, b"hello").await.unwrap();
        proxy.set(Weather::stalled());
        assert!(timeout(A_WHILE, ask(&mut stream, b"again")).await.is_err());
        assert_eq!(got.load(Ordering::Relaxed), 5);
        proxy.heal();
        let mut answer = [0; 5];
        timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"again");
    }

    #[tokio::test]
    async fn lost_answers_were_asked_for_and_end_the_connection_in_the_end() {
        let (proxy, mut stream, got) = pair().await;
        proxy.set(Weather::answers_lost());
        assert!(timeout(A_WHILE, ask(&mut stream, b"hello")).await.is_err());
        eventually(SOON, || async { got.load(Ordering::Relaxed) == 5 && proxy.lost() == 1 }).await;
        proxy.heal();
        assert!(matches!(timeout(SOON, stream.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn a_chosen_answer_is_never_given() {
        let (proxy, mut stream, got) = pair().await;
        proxy.set(Weather::cut_at_answer(b"COMMIT"));
        assert_eq!(ask(&mut stream, b"SELECT").await.unwrap(), b"SELECT");
        assert!(timeout(SOON, ask(&mut stream, b"<COMMIT>")).await.unwrap().is_err());
        assert_eq!((got.load(Ordering::Relaxed), proxy.lost()), (14, 1));
    }

    #[tokio::test]
    async fn late_is_late_and_whole() {
        let (proxy, mut stream, _) = pair().await;
        proxy.set(Weather::late(A_WHILE));
        let began = std::time::Instant::now();
        assert_eq!(ask(&mut stream, b"hello").await.unwrap(), b"hello");
        assert!(began.elapsed() >= 2 * A_WHILE);
    }
}
