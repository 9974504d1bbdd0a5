//! What must have been so, whatever was killed: pure functions over what providers, callers and the harness noted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use gatehouse_testkit::oauth_provider::{Fault, Presented};
use gatehouse_testkit::traces::sha256;

use super::people::{Call, Told};

/// How long a broker may take from a provider's answer to its escrow on a busy machine.
const STORING: Duration = Duration::from_secs(2);

/// A broker that was killed, some time between two moments, or frozen from one to the other.
#[derive(Clone, Debug)]
pub(super) struct Killed {
    pub(super) broker: String,
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Killed {
    /// Whether it was under way when the broker died or was frozen.
    pub(super) fn met(&self, call: &Call) -> bool {
        call.began <= self.to && self.from <= call.began + call.took
    }
}

/// A refresh token that had been shown, whose answer lay in escrow when everyone who knew of it was dead.
#[derive(Clone, Debug)]
pub(super) struct Escrowed {
    /// SHA-256, in hexadecimal digits.
    pub(super) token: String,
    pub(super) at: Instant,
}

/// Checks what a provider was shown; the grants that died of a token shown twice.
///
/// A token may be shown again only if nobody can know what came of it: the answer was lost or said nothing about the
/// token, or whoever showed it was killed or frozen before the answer was in escrow. Never after a successor of it was shown.
pub(super) fn check_presented(
    presented: &[Presented],
    killed: &[Killed],
    escrowed: &[Escrowed],
    timeout: Duration,
) -> anyhow::Result<BTreeSet<u64>> {
    let mut lost = BTreeSet::new();
    for (place, shown) in presented.iter().enumerate() {
        let grant = shown.grant.context("a token that this provider never gave")?;
        let before = &presented[..place];
        for earlier in before.iter().filter(|earlier| earlier.token == shown.token) {
            ensure!(
                is_inconclusive(earlier, killed, timeout),
                "a refresh token of grant {grant} was shown again, and the first answer was not lost:\n{earlier:#?}\n{shown:#?}"
            );
            if let Some(successor) = &earlier.successor {
                ensure!(
                    before.iter().all(|between| between.token != *successor),
                    "a refresh token of grant {grant} was shown after its successor:\n{earlier:#?}\n{shown:#?}"
                );
            }
        }
        let digest = sha256(&shown.token);
        for escrow in escrowed.iter().filter(|escrow| escrow.token == digest && escrow.at < shown.at) {
            let answered =
                before.iter().rfind(|earlier| earlier.token == shown.token && earlier.at < escrow.at);
            let of_use =
                answered.is_some_and(|answered| answered.accepted && !loses_answer(answered, timeout));
            ensure!(
                !of_use,
                "a refresh token of grant {grant} was shown again although its answer lay in escrow"
            );
        }
        let refused =
            !shown.accepted && !matches!(shown.fault, Some(Fault::ServerError | Fault::TooManyRequests));
        if refused {
            lost.insert(grant);
        }
    }
    Ok(lost)
}

/// Whether the fault leaves the one who asked without an answer about the token.
fn loses_answer(shown: &Presented, timeout: Duration) -> bool {
    match &shown.fault {
        None | Some(Fault::InvalidGrant) => false,
        // Near to the limit it may be either.
        Some(Fault::Delay(wait)) => *wait + Duration::from_millis(500) > timeout,
        Some(_) => true,
    }
}

fn is_inconclusive(shown: &Presented, killed: &[Killed], timeout: Duration) -> bool {
    loses_answer(shown, timeout)
        || killed.iter().any(|killed| {
            shown.query == query(&killed.broker)
                && shown.at <= killed.to
                && shown.answered_at.is_none_or(|answered| killed.from <= answered + STORING)
        })
}

/// What a broker's requests to the token endpoint carry, so that providers tell them apart.
pub(super) fn query(broker: &str) -> String {
    format!("from={broker}")
}

/// Checks that every token was given to the one whose it is, and that nobody waited too long but for who was frozen. `owner` of an access token: the connection's place.
pub(super) fn check_owners(
    calls: &[Call],
    owners: &BTreeMap<String, usize>,
    frozen: &[Killed],
) -> anyhow::Result<usize> {
    let mut given = 0;
    for call in calls {
        match &call.told {
            Told::Token(token) => {
                let owner = owners.get(token).with_context(|| format!("a token of nobody's: {call:?}"))?;
                ensure!(*owner == call.connection, "connection {owner}'s token was given away: {call:?}");
                given += 1;
            }
            Told::Wrong(what) => bail!("{what}: {call:?}"),
            Told::Late(what) => {
                let excused = frozen.iter().any(|frozen| frozen.met(call));
                ensure!(excused, "nobody was frozen, and the time ran out: {what}: {call:?}");
            }
            Told::NeedsConsent | Told::PutOff(_) | Told::Lost(_) => {}
        }
    }
    Ok(given)
}

/// What a connection's calls and its provider tell about its audit trail.
#[derive(Clone, Debug, Default)]
pub(super) struct Happened {
    /// Tokens that arrived.
    pub(super) given: usize,
    /// Calls whose answer did not arrive.
    pub(super) lost: usize,
    /// Calls under way when a broker died or was frozen: they may have been repeated at the other one.
    pub(super) disturbed: usize,
    /// Successors that were put into their place: they were shown later, or work now.
    pub(super) rotated: usize,
    /// Refreshes that the provider carried out.
    pub(super) refreshed: usize,
    /// Whether the person was told to connect again.
    pub(super) expired: bool,
}

/// Checks a connection's events, by action and outcome; `Some` names what is not there yet.
pub(super) fn check_trail(
    events: &BTreeMap<(String, String), usize>,
    happened: &Happened,
) -> anyhow::Result<Option<String>> {
    let count = |action: &str, outcome: &str| {
        let key = (format!("token-broker.{action}"), outcome.to_owned());
        events.get(&key).copied().unwrap_or_default()
    };
    let issued = count("tokens.issue", "success");
    // A call may be repeated twice over other connections when its first was cut.
    let most = happened.given + 3 * happened.lost + 2 * happened.disturbed;
    ensure!(issued <= most, "{issued} issues in the audit trail: {happened:?}");
    let rotated = count("tokens.rotate", "success");
    ensure!(rotated <= happened.refreshed, "{rotated} rotations in the audit trail: {happened:?}");
    let expired = count("connections.expire", "denied");
    ensure!(
        happened.expired || expired == 0,
        "an end in the audit trail that nobody was told of: {happened:?}"
    );
    let missing = [
        (issued < happened.given, "tokens that were given"),
        (rotated < happened.rotated, "rotations"),
        (happened.expired && expired == 0, "the end of a connection"),
    ];
    Ok(missing
        .into_iter()
        .find(|(is_missing, _)| *is_missing)
        .map(|(_, what)| format!("{what}: {happened:?}, found {events:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    fn shown(token: &str, at: Instant, successor: Option<&str>) -> Presented {
        Presented {
            token: token.to_owned(),
            grant: Some(1),
            query: query("token-broker-1"),
            at,
            was_used: false,
            fault: None,
            successor: successor.map(str::to_owned),
            accepted: successor.is_some(),
            answered_at: Some(at),
        }
    }

    #[test]
    fn a_token_shown_again_is_found_out() {
        let at = Instant::now();
        let later = at + Duration::from_secs(5);
        let twice = [shown("a", at, Some("b")), shown("a", later, None)];
        let check = |presented: &[Presented], killed: &[Killed], escrowed: &[Escrowed]| {
            check_presented(presented, killed, escrowed, TIMEOUT).map_err(|error| format!("{error:#}"))
        };
        assert!(check(&twice, &[], &[]).unwrap_err().contains("was not lost"));
        // Killed in time, and by whom it was shown.
        let mut killed = Killed { broker: "token-broker-1".to_owned(), from: at, to: at };
        assert_eq!(check(&twice, std::slice::from_ref(&killed), &[]).unwrap(), BTreeSet::from([1]));
        "token-broker-2".clone_into(&mut killed.broker);
        assert!(check(&twice, std::slice::from_ref(&killed), &[]).is_err());
        let late = Killed { broker: "token-broker-1".to_owned(), from: later, to: later };
        assert!(check(&twice, &[late], &[]).is_err());
        // Killed in time, but the answer lay in escrow.
        "token-broker-1".clone_into(&mut killed.broker);
        let escrowed = [Escrowed { token: sha256("a"), at: at + Duration::from_millis(1) }];
        assert!(check(&twice, std::slice::from_ref(&killed), &escrowed).unwrap_err().contains("escrow"));
        // An answer that was lost.
        let mut lost = twice.clone();
        lost[0].fault = Some(Fault::DropAnswer);
        assert_eq!(check(&lost, &[], &[]).unwrap(), BTreeSet::from([1]));
        // But never after the successor was used.
        let between = [lost[0].clone(), shown("b", at, Some("c")), lost[1].clone()];
        assert!(check(&between, &[], &[]).unwrap_err().contains("after its successor"));
    }

    #[test]
    fn a_token_in_the_wrong_hands_is_found_out() {
        let owners = BTreeMap::from([("at".to_owned(), 1)]);
        let call = |connection| Call {
            connection,
            way: super::super::people::Way::Gateway,
            forced: false,
            began: Instant::now(),
            took: Duration::ZERO,
            told: Told::Token("at".to_owned()),
        };
        assert_eq!(check_owners(&[call(1)], &owners, &[]).unwrap(), 1);
        assert!(check_owners(&[call(2)], &owners, &[]).is_err());
        assert!(check_owners(&[call(1)], &BTreeMap::new(), &[]).is_err());
        // Too late, and whether anybody was frozen.
        let late = [Call { told: Told::Late("late".to_owned()), ..call(1) }];
        let began = late[0].began;
        let frozen = |from| [Killed { broker: "token-broker-1".to_owned(), from, to: from }];
        assert!(check_owners(&late, &owners, &[]).is_err());
        assert!(check_owners(&late, &owners, &frozen(began + Duration::from_secs(1))).is_err());
        assert_eq!(check_owners(&late, &owners, &frozen(began)).unwrap(), 0);
    }

    #[test]
    fn what_the_trail_misses_is_found_out() {
        let happened = Happened { given: 2, lost: 0, disturbed: 0, rotated: 1, refreshed: 1, expired: false };
        let trail = |issued, rotated, expired| {
            let event = |action: &str, outcome: &str, number| {
                ((format!("token-broker.{action}"), outcome.to_owned()), number)
            };
            BTreeMap::from([
                event("tokens.issue", "success", issued),
                event("tokens.rotate", "success", rotated),
                event("connections.expire", "denied", expired),
            ])
        };
        assert_eq!(check_trail(&trail(2, 1, 0), &happened).unwrap(), None);
        for missing in [trail(1, 1, 0), trail(2, 0, 0)] {
            assert!(check_trail(&missing, &happened).unwrap().is_some());
        }
        for wrong in [trail(3, 1, 0), trail(2, 2, 0), trail(2, 1, 1)] {
            assert!(check_trail(&wrong, &happened).is_err());
        }
    }
}
