//! The signals that ask the demo to end, so that what it started ends with it.

use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// From the moment this exists, none of them ends the demo by itself. What a terminal that closes sends (SIGHUP) is
/// one of them: Gatehouse itself takes it as the wish to read its configuration again, and would go on for ever.
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next one.
    pub(crate) async fn recv(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
        }
    }
}
