//! Revocations: who acknowledged one accepts what it ended no longer than stated, and never again once it knew of it.

use std::collections::BTreeMap;
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
    /// The replicas that must have come to know of it: silence is no refusal.
    pub known_by: Vec<String>,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// At which replica.
    pub replica: String,
    /// When it was sent.
    pub sent: Duration,
    /// When its answer came, or was no longer waited for.
    pub answered: Duration,
    /// What came of it.
    pub shown: Shown,
}

/// What a replica makes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Whoever shows it is let in.
    Accepted,
    /// It is told that the session is revoked: the replica has heard of it.
    Revoked,
    /// It is refused because someone whom the replica asked has heard of it. Another whom it asks next may not have yet.
    Refused,
    /// It is told to come again, or nothing: says nothing of the session.
    Silent,
}

/// Checks one; the longest time after the acknowledgement at which it was still accepted.
///
/// # Errors
/// If a replica accepted what was sent after the bound, or again what it knew to be over, or one of those that must have
/// heard of it never did.
pub fn check_revocation(revocation: &Revocation) -> anyhow::Result<Duration> {
    let Revocation { session, acknowledged, bound, probes, known_by } = revocation;
    let mut known: BTreeMap<&str, Duration> = BTreeMap::new();
    for probe in probes.iter().filter(|probe| probe.shown == Shown::Revoked) {
        let first = known.entry(&probe.replica).or_insert(probe.answered);
        *first = (*first).min(probe.answered);
    }
    let mut longest = Duration::ZERO;
    for probe in probes.iter().filter(|probe| probe.shown == Shown::Accepted) {
        let after = probe.sent.saturating_sub(*acknowledged);
        ensure!(
            after <= *bound,
            "{} accepted session {session} {after:?} after its end was acknowledged; {bound:?} is the bound",
            probe.replica
        );
        if let Some(first) = known.get(probe.replica.as_str()) {
            ensure!(
                probe.sent <= *first,
                "{} accepted session {session} at {:?} again, which it knew to be over at {first:?}",
                probe.replica,
                probe.sent
            );
        }
        longest = longest.max(after);
    }
    for replica in known_by {
        ensure!(
            known.contains_key(replica.as_str()),
            "{replica} never said that session {session} is over, which it is since {acknowledged:?}; its last answers: {:?}",
            probes.iter().filter(|probe| probe.replica == *replica).rev().take(5).collect::<Vec<_>>()
        );
    }
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(ms: u64, shown: Shown) -> Probe {
        let sent = Duration::from_millis(ms);
        Probe { replica: "gateway-1".to_owned(), sent, answered: sent + Duration::from_millis(10), shown }
    }

    fn revocation(probes: Vec<Probe>) -> Revocation {
        Revocation {
            session: "s".to_owned(),
            acknowledged: Duration::from_secs(1),
            bound: Duration::from_secs(2),
            probes,
            known_by: vec!["gateway-1".to_owned()],
        }
    }

    fn fault(probes: Vec<Probe>) -> String {
        check_revocation(&revocation(probes)).expect_err("a planted fault was not found").to_string()
    }

    #[test]
    fn who_accepts_for_too_long_is_found() {
        let accepted_at =
            |ms| vec![probe(900, Shown::Accepted), probe(ms, Shown::Accepted), probe(9000, Shown::Revoked)];
        assert_eq!(check_revocation(&revocation(accepted_at(2500))).unwrap(), Duration::from_millis(1500));
        assert!(fault(accepted_at(3001)).contains("gateway-1 accepted"));
        // The slowest counts, not the last.
        let probes = [2500, 1500].map(|ms| probe(ms, Shown::Accepted));
        let probes = probes.into_iter().chain([probe(9000, Shown::Revoked)]).collect();
        assert_eq!(check_revocation(&revocation(probes)).unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn who_accepts_again_what_it_refused_is_found() {
        let flapping =
            vec![probe(1100, Shown::Revoked), probe(1200, Shown::Accepted), probe(1300, Shown::Revoked)];
        assert!(fault(flapping).contains("again, which it knew to be over"));
        // Whatever order they are told in, and whichever replica it is.
        let unsorted = [(1300, Shown::Revoked), (1100, Shown::Revoked), (1200, Shown::Accepted)];
        let unsorted = unsorted.map(|(ms, shown)| probe(ms, shown));
        assert!(fault(unsorted.to_vec()).contains("again, which it knew to be over"));
        let other = unsorted.map(|probe| Probe { replica: "gateway-2".to_owned(), ..probe });
        let other = other.into_iter().chain([probe(1300, Shown::Revoked)]).collect();
        assert!(fault(other).contains("gateway-2 accepted session s at 1.2s again"));
        // Two that were under way at the same time may be answered either way.
        let crossing = vec![probe(1100, Shown::Revoked), probe(1105, Shown::Accepted)];
        check_revocation(&revocation(crossing)).unwrap();
        // Behind it stand two, of whom only one had heard.
        let asked =
            vec![probe(1100, Shown::Refused), probe(1200, Shown::Accepted), probe(1300, Shown::Revoked)];
        check_revocation(&revocation(asked)).unwrap();
        let elsewhere = Probe { replica: "gateway-2".to_owned(), ..probe(1200, Shown::Accepted) };
        check_revocation(&revocation(vec![probe(1100, Shown::Revoked), elsewhere])).unwrap();
    }

    #[test]
    fn silence_is_no_refusal_and_the_word_of_another_no_knowledge() {
        assert!(fault(vec![probe(1100, Shown::Refused)]).contains("never said"));
        assert!(fault(vec![probe(1100, Shown::Silent)]).contains("never said"));
        assert!(fault(vec![]).contains("never said"));
    }
}
