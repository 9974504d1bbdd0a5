//! Ports for servers that must be told theirs.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// A loopback port that was free a moment ago. Another process may take it before the server does: whoever starts one
/// tries again, or says that the port is in use.
///
/// # Errors
/// The system has none to give.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
