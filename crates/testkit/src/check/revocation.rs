//! Revocations: who acknowledged one accepts what it ended no longer than stated.

use std::time::Duration;

use anyhow::ensure;

/// A session that was ended, and everything that tried it afterwards.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// The session.
    pub session: String,
    /// When whoever ended it was told that it is over.
    pub acknowledged: Duration,
    /// How long it may be accepted after that.
    pub bound: Duration,
    /// Everything that tried it.
    pub probes: Vec<Probe>,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// At which replica.
    pub replica: String,
    /// When it was sent.
    pub sent: Duration,
    /// Whether it was accepted.
    pub accepted: bool,
}

/// Checks one; the longest time after the acknowledgement at which it was still accepted.
///
/// # Errors
/// If a replica accepted what was sent after the bound, or again what it had refused.
pub fn check_revocation(revocation: &Revocation) -> anyhow::Result<Duration> {
    let Revocation { session, acknowledged, bound, probes } = revocation;
    let mut longest = Duration::ZERO;
    for probe in probes.iter().filter(|probe| probe.accepted) {
        let after = probe.sent.saturating_sub(*acknowledged);
        ensure!(
            after <= *bound,
            "{} accepted session {session} {after:?} after its end was acknowledged; {bound:?} is the bound",
            probe.replica
        );
        longest = longest.max(after);
    }
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revocation(accepted_at_ms: u64) -> Revocation {
        let probe = |ms, accepted| Probe {
            replica: "gateway-1".to_owned(),
            sent: Duration::from_millis(ms),
            accepted,
        };
        Revocation {
            session: "s".to_owned(),
            acknowledged: Duration::from_secs(1),
            bound: Duration::from_secs(2),
            probes: vec![probe(900, true), probe(accepted_at_ms, true), probe(9000, false)],
        }
    }

    #[test]
    fn who_accepts_for_too_long_is_found() {
        assert_eq!(check_revocation(&revocation(2500)).unwrap(), Duration::from_millis(1500));
        assert!(check_revocation(&revocation(3001)).unwrap_err().to_string().contains("gateway-1 accepted"));
    }
}
