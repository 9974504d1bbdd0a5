//! What one round does, settled by the seed.

use std::fmt;
use std::time::Duration;

use gatehouse_core::Entropy;

use crate::server::ITERATIONS;

/// What is under way when the process is killed, besides a running job and clients that refresh a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing else.
    Progress,
    /// A second job is being submitted.
    Submit,
    /// Somebody signs in.
    SignIn,
    /// Eight clients present one refresh token.
    Refresh,
    /// A refresh token that is used up is presented.
    Replay,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Progress => "progress",
            Self::Submit => "submit",
            Self::SignIn => "sign-in",
            Self::Refresh => "refresh",
            Self::Replay => "replay",
        })
    }
}

/// One round.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What is under way at the kill.
    pub(crate) phase: Phase,
    /// It begins after so many progress events, somewhere in the middle of the job.
    pub(crate) progress: usize,
    /// The kill comes so long after.
    pub(crate) delay: Duration,
    /// The starts after it that are killed too, each so long after its beginning.
    pub(crate) killed_starts: Vec<Duration>,
    /// Whether the audit log is verified while nothing runs, too.
    pub(crate) verify_while_down: bool,
}

impl Plan {
    /// The plan of `round` under `seed`: always the same for the same two.
    pub(crate) fn of(seed: u64, round: u64) -> Self {
        // Odd, so that no two rounds share a stream (the golden ratio, as in SplitMix64).
        let entropy = Entropy::seeded(seed.wrapping_add(round.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let phase = match entropy.below(100) {
            0..50 => Phase::Progress,
            50..64 => Phase::Submit,
            64..76 => Phase::SignIn,
            76..88 => Phase::Refresh,
            _ => Phase::Replay,
        };
        // The whole of a sign-in takes longer than that of the others: it computes a password hash.
        let longest_ms = if phase == Phase::SignIn { 120 } else { 40 };
        let killed_starts = if entropy.below(5) == 0 { 1 + entropy.below(2) } else { 0 };
        Self {
            phase,
            progress: 1 + usize::try_from(entropy.below(u64::from(ITERATIONS) - 15)).unwrap_or(0),
            delay: Duration::from_micros(entropy.below(longest_ms * 1000)),
            killed_starts: (0..killed_starts).map(|_| Duration::from_millis(entropy.below(800))).collect(),
            verify_while_down: entropy.below(4) == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_settles_the_plan_and_every_phase_comes() {
        assert_eq!(format!("{:?}", Plan::of(7, 3)), format!("{:?}", Plan::of(7, 3)));
        let phases: std::collections::BTreeSet<_> = (0..100).map(|round| Plan::of(7, round).phase).collect();
        assert_eq!(phases.len(), 5);
    }
}
