//! `gatehouse healthcheck`: asks the process beside it, in the same container, whether it is ready.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::ConfigArgs;
use crate::output::complain;

/// How long each of connecting, asking and reading may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks `/readyz` of the probes' port: 0 ready, 1 not ready, 2 nobody there.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = args.load()?;
    let address: SocketAddr = config.probes.address.parse().context("probes.address is no address")?;
    let answer = ask(reachable(address)).with_context(|| format!("nothing answers at {address}"))?;
    if answer.lines().next().is_some_and(|status| status.split(' ').nth(1) == Some("200")) {
        return Ok(ExitCode::SUCCESS);
    }
    // The engine keeps it and shows it to whoever asks why.
    complain!("{}", answer.lines().last().unwrap_or("an empty answer"));
    Ok(ExitCode::FAILURE)
}

/// Where a process that listens on all addresses is found from beside it.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// One request by hand: an HTTP client would read every certificate authority first, every few seconds.
fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_reached_over_loopback() {
        let to = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(to("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(to("[::]:9464"), "[::1]:9464");
        assert_eq!(to("10.1.2.3:9464"), "10.1.2.3:9464");
    }
}
