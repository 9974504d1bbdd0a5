//! Ports for servers that must be told theirs.

use std::collections::BTreeSet;
use std::io::{self, Error};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use gatehouse_core::Entropy;

/// Below what systems give to outgoing connections by themselves.
const LASTING: std::ops::Range<u16> = 10_000..32_000;

/// A loopback port that was free a moment ago. Another process may take it before the server does: whoever starts one
/// tries again, or says that the port is in use.
///
/// # Errors
/// The system has none to give.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// As [`free_port`], for a server that is stopped and started again on its port: meanwhile the system gives it to no
/// outgoing connection, and this function to nobody else in this process.
///
/// # Errors
/// None was found.
pub fn lasting_port() -> io::Result<u16> {
    static GIVEN: LazyLock<Mutex<BTreeSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let random = Entropy::system();
    for _ in 0..1000 {
        let drawn = random.below(u64::from(LASTING.end - LASTING.start));
        let port = LASTING.start + u16::try_from(drawn).unwrap_or(0);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(Error::other("no port is free"))
}
