//! Refresh tokens: one successor each, and nobody who behaves is sent away.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure};

/// What came of presenting a refresh token once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshAnswer {
    /// It was given this successor.
    Successor(String),
    /// It was refused: status and reason.
    Refused(u16, String),
    /// There was no answer, or one that says that it could not be done now: it may have been done all the same, and may
    /// still be.
    Unknown,
}

/// One presentation of a refresh token by a client that behaves: it presents a token again until it has an answer, and
/// no older one after it has the successor.
#[derive(Clone, Debug)]
pub struct RefreshAttempt {
    /// The session.
    pub session: String,
    /// How many successors lie before the token, by the client's count.
    pub generation: usize,
    /// The token.
    pub token: String,
    /// Whether the client lets every request that got no answer die before it uses a successor. Who does not may be
    /// taken for a thief: a request that the network held back presents a token whose successor was used.
    pub patient: bool,
    /// When it was sent.
    pub sent: Duration,
    /// When its answer came, or was no longer waited for.
    pub answered: Duration,
    /// What came of it.
    pub answer: RefreshAnswer,
}

/// How long what concerns a refresh may take.
#[derive(Clone, Copy, Debug)]
pub struct RefreshTimes {
    /// Whoever presents a token that was consumed is given its successor for so long, and may be refused after.
    pub retry_window: Duration,
    /// A request that nobody waits for any more may still arrive for so long.
    pub held_back: Duration,
}

/// Checks all presentations by clients that behave, in the order of their answers; how many tokens of each session were
/// consumed. That a client which is not patient was taken for a thief has to be proven besides, by [`check_taken`].
///
/// # Errors
/// A token has two successors, two have the same, or a client was sent away for no fault of its own. Tokens are not shown.
pub fn check_refreshes(
    attempts: &[RefreshAttempt],
    times: RefreshTimes,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut successors = Successors::default();
    let mut consumed: BTreeMap<String, usize> = BTreeMap::new();
    for attempt in attempts {
        let RefreshAttempt { session, generation, .. } = attempt;
        match &attempt.answer {
            RefreshAnswer::Successor(successor) => {
                if let Err(error) = successors.note(&attempt.token, successor) {
                    bail!("generation {generation} of session {session}: {error}");
                }
                let count = consumed.entry(session.clone()).or_default();
                *count = (*count).max(generation + 1);
            }
            RefreshAnswer::Refused(status, reason) => {
                let may_be_held_back = |other: &&RefreshAttempt| {
                    other.generation < *generation && may_come_late(attempts, other, session, times)
                };
                // It was consumed when it was first presented, at the earliest.
                let is_too_late = |other: &&RefreshAttempt| {
                    !std::ptr::eq(*other, attempt)
                        && other.token == attempt.token
                        && attempt.answered > other.sent + times.retry_window
                };
                let excused = attempts.iter().any(|other| is_too_late(&other))
                    || !attempt.patient && attempts.iter().any(|other| may_be_held_back(&other));
                ensure!(
                    excused,
                    "a client that behaves was sent away with {status} {reason} at generation {generation} of session {session}"
                );
            }
            RefreshAnswer::Unknown => {}
        }
    }
    Ok(consumed)
}

/// Whether `other` is a request of `session` that got no answer and may have come when the session's newest token had been
/// given out: not before that was asked for, and not longer after it was given up than a request lives.
fn may_come_late(
    attempts: &[RefreshAttempt],
    other: &RefreshAttempt,
    session: &str,
    times: RefreshTimes,
) -> bool {
    let given = attempts.iter().filter(|attempt| {
        attempt.session == session && matches!(attempt.answer, RefreshAnswer::Successor(_))
    });
    // Racers are given the same successor: one of them asked first.
    let newest = given.map(|attempt| (attempt.generation, std::cmp::Reverse(attempt.sent))).max();
    let asked = newest.map_or(Duration::ZERO, |(_, std::cmp::Reverse(sent))| sent);
    other.session == session
        && other.answer == RefreshAnswer::Unknown
        && asked <= other.answered + times.held_back
}

/// Checks that `session`, which its service took for stolen because a token of `presented` generations came, was so because a
/// request that got no answer came late.
///
/// # Errors
/// No request of its client can have been that one.
pub fn check_taken(
    attempts: &[RefreshAttempt],
    session: &str,
    presented: usize,
    times: RefreshTimes,
) -> anyhow::Result<()> {
    let late = attempts
        .iter()
        .any(|attempt| attempt.generation == presented && may_come_late(attempts, attempt, session, times));
    ensure!(
        late,
        "session {session} was taken for stolen by generation {presented}, and no request with it can have come late"
    );
    Ok(())
}

/// Every answer to a refresh that any client ever got.
#[derive(Debug, Default)]
pub struct Successors {
    of: BTreeMap<String, String>,
    parent: BTreeMap<String, String>,
}

impl Successors {
    /// Notes that presenting `token` gave `successor`.
    ///
    /// # Errors
    /// If it gave another one before, or another token has that successor. Tokens are not shown.
    pub fn note(&mut self, token: &str, successor: &str) -> anyhow::Result<()> {
        let known = self.of.entry(token.to_owned()).or_insert_with(|| successor.to_owned());
        ensure!(known == successor, "a refresh token has two different successors");
        let parent = self.parent.entry(successor.to_owned()).or_insert_with(|| token.to_owned());
        ensure!(parent == token, "two refresh tokens have the same successor");
        ensure!(token != successor, "a refresh token is its own successor");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);
    const HELD_BACK: Duration = Duration::from_secs(10);
    const TIMES: RefreshTimes = RefreshTimes { retry_window: WINDOW, held_back: HELD_BACK };

    fn attempt(generation: usize, token: &str, answer: RefreshAnswer) -> RefreshAttempt {
        let (session, token) = ("s".to_owned(), token.to_owned());
        let (sent, answered) = (Duration::ZERO, Duration::from_secs(1));
        RefreshAttempt { session, generation, token, patient: true, sent, answered, answer }
    }

    fn given(generation: usize, token: &str, successor: &str) -> RefreshAttempt {
        attempt(generation, token, RefreshAnswer::Successor(successor.to_owned()))
    }

    fn refused(generation: usize, token: &str) -> RefreshAttempt {
        attempt(generation, token, RefreshAnswer::Refused(401, "REFRESH_TOKEN_REUSED".to_owned()))
    }

    #[test]
    fn retries_and_racers_with_one_successor_pass() {
        let unknown = attempt(0, "a", RefreshAnswer::Unknown);
        let history = [unknown, given(0, "a", "b"), given(0, "a", "b"), given(1, "b", "c")];
        assert_eq!(check_refreshes(&history, TIMES).unwrap()["s"], 2);
        // An answer may come late.
        let history = [given(1, "b", "c"), given(0, "a", "b")];
        assert_eq!(check_refreshes(&history, TIMES).unwrap()["s"], 2);
    }

    #[test]
    fn a_second_successor_is_found() {
        let history = [given(0, "a", "b"), given(0, "a", "x")];
        assert!(
            check_refreshes(&history, TIMES).unwrap_err().to_string().contains("two different successors")
        );
    }

    #[test]
    fn who_behaves_and_is_sent_away_is_found() {
        let history = [given(0, "a", "b"), refused(1, "b")];
        assert!(check_refreshes(&history, TIMES).unwrap_err().to_string().contains("sent away with 401"));
        // An answer lost in the same generation excuses nothing: that request and this one are the same.
        let history = [attempt(1, "b", RefreshAnswer::Unknown), refused(1, "b")];
        assert!(check_refreshes(&history, TIMES).is_err());
    }

    #[test]
    fn only_who_is_hasty_can_be_taken_for_a_thief() {
        let mut history = [attempt(0, "a", RefreshAnswer::Unknown), given(0, "a", "b"), refused(1, "b")];
        assert!(check_refreshes(&history, TIMES).is_err());
        history[2].patient = false;
        assert!(check_refreshes(&history, TIMES).is_ok());
        // Not by what another session lost, nor by what was answered.
        history[0].session = "t".to_owned();
        assert!(check_refreshes(&history, TIMES).is_err());
        assert!(check_refreshes(&history[1..], TIMES).is_err());
        // Nor by a request of the same generation.
        let mut history = [attempt(1, "b", RefreshAnswer::Unknown), refused(1, "b")];
        history[1].patient = false;
        assert!(check_refreshes(&history, TIMES).is_err());
    }

    #[test]
    fn what_was_given_up_long_ago_does_not_come_any_more() {
        let mut history = [
            attempt(0, "a", RefreshAnswer::Unknown),
            given(0, "a", "b"),
            given(1, "b", "c"),
            given(1, "b", "c"),
            refused(2, "c"),
        ];
        history[4].patient = false;
        // Until ten seconds after it was given up, which is when the newest token was first asked for, at the earliest.
        let asked = history[0].answered + HELD_BACK;
        (history[2].sent, history[3].sent) = (asked, asked + WINDOW);
        assert!(check_refreshes(&history, TIMES).is_ok() && check_taken(&history, "s", 0, TIMES).is_ok());
        history[2].sent += Duration::from_millis(1);
        assert!(check_refreshes(&history, TIMES).is_err() && check_taken(&history, "s", 0, TIMES).is_err());
        // Whoever was refused asked for nothing that was given.
        history[2].sent = asked;
        history[4].sent = asked + WINDOW;
        assert!(check_refreshes(&history, TIMES).is_ok());
    }

    #[test]
    fn only_the_token_that_came_late_can_have_ended_a_session() {
        let history = [
            given(0, "a", "b"),
            attempt(1, "b", RefreshAnswer::Unknown),
            given(1, "b", "c"),
            given(2, "c", "d"),
        ];
        assert!(check_taken(&history, "s", 1, TIMES).is_ok());
        for (session, presented) in [("s", 0), ("s", 2), ("s", 3), ("t", 1)] {
            assert!(check_taken(&history, session, presented, TIMES).is_err(), "{session} {presented}");
        }
    }

    #[test]
    fn a_retry_counts_for_as_long_as_it_may_come_and_no_longer() {
        let mut history = [attempt(0, "a", RefreshAnswer::Unknown), refused(0, "a")];
        history[1].answered = WINDOW;
        assert!(check_refreshes(&history, TIMES).is_err());
        history[1].answered = WINDOW + Duration::from_millis(1);
        assert!(check_refreshes(&history, TIMES).is_ok());
        // How old another token is excuses nothing.
        history[0].token = "b".to_owned();
        assert!(check_refreshes(&history, TIMES).is_err());
    }

    #[test]
    fn two_successors_are_found() {
        let mut successors = Successors::default();
        successors.note("a", "b").unwrap();
        successors.note("a", "b").unwrap();
        successors.note("b", "c").unwrap();
        assert!(successors.note("a", "x").unwrap_err().to_string().contains("two different successors"));
        assert!(successors.note("d", "c").unwrap_err().to_string().contains("the same successor"));
        assert!(successors.note("e", "e").is_err());
    }
}
