//! What the bare servers can do, as processes of their own.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};
use gatehouse_proto::job::v1::GetJobRequest;
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::figure::Sample;
use crate::http::{Connection, Delivered, get, read_events};
use crate::load::{Caller, count, drive, window};
use crate::processes::memory_kib;
use crate::session::Session;

/// The bare gRPC server and the bare proxy before it.
pub(crate) struct BareServers {
    rpc: Child,
    proxy: Child,
    rpc_port: u16,
    proxy_port: u16,
}

impl BareServers {
    /// Starts both.
    ///
    /// # Errors
    /// If one does not come up.
    pub(crate) async fn start() -> Result<Self> {
        let (rpc, rpc_port) = start(&["bare-rpc"]).await?;
        let (proxy, proxy_port) = start(&["bare-proxy", &rpc_port.to_string()]).await?;
        Ok(Self { rpc, proxy, rpc_port, proxy_port })
    }

    /// Their process ids: server, proxy.
    pub(crate) fn ids(&self) -> (Option<u32>, Option<u32>) {
        (self.rpc.id(), self.proxy.id())
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.proxy_port).into()
    }
}

async fn start(arguments: &[&str]) -> Result<(Child, u16)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        // Held open: its end tells the server that nobody is left.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().context("no standard output")?;
    let line = BufReader::new(out).lines().next_line().await?;
    let port = line.context("the bare server ended")?.trim().parse()?;
    Ok((child, port))
}

struct Empty(JobServiceClient<Channel>);

impl Caller for Empty {
    async fn call(&mut self) -> Result<u64> {
        self.0.get_job(GetJobRequest::default()).await?;
        Ok(1)
    }
}

/// Empty RPCs, over as many connections as callers of our services use.
pub(crate) async fn rpc(session: &Session) -> Result<Sample> {
    let address = format!("http://127.0.0.1:{}", session.bare().rpc_port);
    let mut channels = Vec::new();
    for _ in 0..session.connections {
        channels.push(Endpoint::from_shared(address.clone())?.tcp_nodelay(true).connect().await?);
    }
    let callers = (0..session.callers)
        .map(|place| Empty(JobServiceClient::new(channels[place % channels.len()].clone())))
        .collect();
    Ok(drive(callers, session.times, session.processes()).await?.0)
}

/// GETs of `path` at the bare proxy.
pub(crate) async fn http(session: &Session, path: &str) -> Result<Sample> {
    let address = session.bare().address();
    let mut callers = Vec::new();
    for _ in 0..session.callers {
        callers.push(Connection::open(address, get(address, path, None)).await?);
    }
    Ok(drive(callers, session.times, session.processes()).await?.0)
}

/// Streams that write as fast as they are read.
pub(crate) async fn events(session: &Session) -> Result<Sample> {
    let address = session.bare().address();
    let delivered = Delivered::default();
    let readers: Vec<_> = (0..session.streams)
        .map(|_| tokio::spawn(read_events(address, get(address, "/events", None), delivered.clone())))
        .collect();
    let sample =
        window(session.times, session.processes(), || delivered.events.load(Ordering::Relaxed), None).await;
    let broken = delivered.broken.load(Ordering::Relaxed);
    for reader in readers {
        reader.abort();
    }
    ensure!(broken == 0, "{broken} bare streams broke");
    sample
}

/// What one idle stream takes at the proxy and at the server. Fresh processes: memory once taken is not given back.
pub(crate) async fn memory(session: &Session) -> Result<(Sample, Sample)> {
    let servers = BareServers::start().await?;
    let address = servers.address();
    let (Some(rpc), Some(proxy)) = servers.ids() else { anyhow::bail!("a bare server ended") };
    let held = session.idle_streams;
    let (edge, source) = idle_memory(held, (proxy, rpc), |_| (address, get(address, "/idle", None))).await?;
    let sample = |kib| Sample { value: kib, ..Sample::default() };
    Ok((sample(edge), sample(source)))
}

/// KiB that each of `held` streams takes in the processes `edge` and `source`, after the first few.
pub(crate) async fn idle_memory(
    held: usize,
    (edge, source): (u32, u32),
    stream: impl Fn(usize) -> (SocketAddr, Vec<u8>),
) -> Result<(f64, f64)> {
    const FIRST: usize = 16;
    let delivered = Delivered::default();
    let mut readers = Vec::new();
    let mut open = async |range: std::ops::Range<usize>| {
        let all = range.end as u64;
        for place in range {
            let (address, request) = stream(place);
            readers.push(tokio::spawn(read_events(address, request, delivered.clone())));
            // Everybody at once would be turned away at the door.
            while readers.len() as u64 > delivered.open.load(Ordering::Relaxed) + 64 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                ensure!(delivered.broken.load(Ordering::Relaxed) == 0, "a stream broke");
            }
        }
        let begun = std::time::Instant::now();
        while delivered.events.load(Ordering::Relaxed) < all {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            ensure!(delivered.broken.load(Ordering::Relaxed) == 0, "a stream broke");
            ensure!(begun.elapsed().as_secs() < 60, "not all streams began in a minute");
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        Ok((memory_kib(edge)?, memory_kib(source)?))
    };
    let before = open(0..FIRST).await?;
    let after = open(FIRST..FIRST + held).await?;
    delivered.over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.abort();
    }
    let each = |before: f64, after: f64| (after - before) / count(held as u64);
    Ok((each(before.0, after.0), each(before.1, after.1)))
}
