//! Rate limits: no window of time admits more than it may, and nobody is refused who asks for less.

use std::time::Duration;

use anyhow::ensure;

/// A request that was admitted: decided some time between its sending and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// When it was sent.
    pub sent: Duration,
    /// When its answer came.
    pub answered: Duration,
}

/// What a bucket admits.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// At once.
    pub burst: u32,
    /// The time in which as many come back.
    pub interval: Duration,
    /// Replicas that share it.
    pub replicas: u32,
}

/// A time at which the replicas may not have counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// From when on.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
    /// How many replicas counted alone, each with its share of the limit. A replica that started anew counts again.
    pub alone: u32,
    /// Whether the common store forgot what it had counted.
    pub forgotten: bool,
}

/// The most that may be admitted from `from` to `to`: the burst and what comes back, again for each time that the store
/// forgot, and a share of both for each replica that counted alone.
#[must_use]
pub fn bound(limit: Limit, from: Duration, to: Duration, disturbances: &[Disturbance]) -> u64 {
    let window_us = u64::try_from((to.saturating_sub(from)).as_micros()).unwrap_or(u64::MAX);
    let interval_us = u64::try_from(limit.interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let (burst, replicas) = (u64::from(limit.burst), u64::from(limit.replicas.max(1)));
    let back = |burst: u64| burst.saturating_mul(window_us).div_ceil(interval_us);
    let share = (burst / replicas).max(1);
    let mut most = burst + back(burst);
    for disturbance in disturbances.iter().filter(|other| other.from <= to && other.to >= from) {
        most += u64::from(disturbance.alone) * (share + back(share));
        most += u64::from(disturbance.forgotten) * burst;
    }
    most
}

/// A request to which a bucket said no, or something else happened: decided between its sending and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When it was sent.
    pub sent: Duration,
    /// When its answer came, or was no longer waited for.
    pub answered: Duration,
    /// What came of it.
    pub said: Said,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was let through.
    Yes,
    /// It was over the limit.
    No,
    /// It failed or was not answered: it may have taken its token.
    Nothing,
}

/// Checks that a limit lets through what it may while the replicas count together: whoever is refused finds the bucket
/// empty, so all that came back to it before (for at most as long as an empty one takes to fill) was taken by someone.
/// How many windows could be checked in this way, of those in which more than a token comes back.
///
/// # Errors
/// If somebody was refused although less had been asked for.
pub fn check_admitted(asked: &[Asked], limit: Limit, disturbances: &[Disturbance]) -> anyhow::Result<usize> {
    let interval_us = limit.interval.as_micros().max(1);
    let mut checked = 0;
    for refused in asked.iter().filter(|request| request.said == Said::No) {
        for tenth in 1..=10_u32 {
            let window = limit.interval * tenth / 10;
            let Some(from) = refused.sent.checked_sub(window) else { break };
            if disturbances.iter().any(|other| other.from <= refused.answered && other.to >= from) {
                break;
            }
            let back = u128::from(limit.burst) * window.as_micros() / interval_us;
            // The last token may be there in part only.
            let least = usize::try_from(back.saturating_sub(1))?;
            let taken = asked.iter().filter(|request| {
                request.said != Said::No && request.answered >= from && request.sent <= refused.answered
            });
            let taken = taken.count();
            ensure!(
                taken >= least,
                "a request was refused at {:?} although only {taken} were admitted in the {window:?} before; {least} come back in that time",
                refused.sent
            );
            checked += usize::from(least > 0);
        }
    }
    Ok(checked)
}

/// Checks every window that begins with a request and ends with an answer.
///
/// # Errors
/// If one has more than [`bound`] allows.
pub fn check_rate(admitted: &[Admitted], limit: Limit, disturbances: &[Disturbance]) -> anyhow::Result<()> {
    let mut by_answer = admitted.to_vec();
    by_answer.sort_by_key(|request| request.answered);
    for first in admitted {
        let mut within = 0;
        for request in by_answer.iter().filter(|request| request.sent >= first.sent) {
            within += 1;
            let most = bound(limit, first.sent, request.answered, disturbances);
            ensure!(
                within <= most,
                "{within} requests were admitted from {:?} to {:?}, and {most} at most may have been",
                first.sent,
                request.answered
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { burst: 10, interval: Duration::from_secs(10), replicas: 2 };

    fn at(milliseconds: u64) -> Admitted {
        let sent = Duration::from_millis(milliseconds);
        Admitted { sent, answered: sent + Duration::from_millis(1) }
    }

    fn away(from: u64, to: u64, alone: u32, forgotten: bool) -> Disturbance {
        Disturbance { from: Duration::from_secs(from), to: Duration::from_secs(to), alone, forgotten }
    }

    /// A full burst and one a second for a while.
    fn all_that_may() -> Vec<Admitted> {
        (0..10).map(at).chain((1..20).map(|second| at(second * 1000))).collect()
    }

    #[test]
    fn all_that_may_be_admitted_passes_and_one_more_is_found() {
        let mut admitted = all_that_may();
        check_rate(&admitted, LIMIT, &[]).unwrap();
        // One comes back in each window that is not empty.
        admitted.extend([at(20), at(21)]);
        assert!(check_rate(&admitted, LIMIT, &[]).unwrap_err().to_string().contains("12 requests"));
    }

    #[test]
    fn the_rate_is_held_long_after_the_burst() {
        let mut admitted = all_that_may();
        admitted.extend((11..15).map(|second| at(second * 1000 + 500)));
        assert!(check_rate(&admitted, LIMIT, &[]).is_err());
    }

    fn asked(milliseconds: u64, said: Said) -> Asked {
        let Admitted { sent, answered } = at(milliseconds);
        Asked { sent, answered, said }
    }

    #[test]
    fn who_refuses_too_much_is_found() {
        // One a second comes back; in between everybody is refused.
        let fair: Vec<_> = (0..20_u64)
            .flat_map(|second| {
                let burst = if second == 0 { 10 } else { 1 };
                let yes = (0..burst).map(move |number| asked(second * 1000 + number, Said::Yes));
                yes.chain([asked(second * 1000 + 500, Said::No)])
            })
            .collect();
        // Nine windows for each refusal that has as much time before it.
        assert_eq!(check_admitted(&fair, LIMIT, &[]).unwrap(), 10 * 9 + (0..9).sum::<usize>());
        let no_one: Vec<_> = fair.iter().map(|request| Asked { said: Said::No, ..*request }).collect();
        assert!(
            check_admitted(&no_one, LIMIT, &[]).unwrap_err().to_string().contains("only 0 were admitted")
        );
        // Half of what may be.
        let every_other =
            |request: &&Asked| request.said == Said::No || request.sent.as_secs().is_multiple_of(2);
        let half: Vec<_> = fair.iter().filter(every_other).copied().collect();
        assert!(check_admitted(&half, LIMIT, &[]).is_err());
        // Those after it did not empty it.
        let later = (0..10).map(|number| asked(20_000 + number, Said::Yes));
        let later: Vec<_> = std::iter::once(asked(10_000, Said::No)).chain(later).collect();
        assert!(check_admitted(&later, LIMIT, &[]).is_err());
        assert!(check_admitted(&no_one, LIMIT, &[away(100, 101, 2, true)]).is_err());
        // While the store is away, or may have been, nothing follows.
        assert_eq!(check_admitted(&no_one, LIMIT, &[away(0, 30, 2, true)]).unwrap(), 0);
        // A request without an answer may have taken its token.
        let unknown: Vec<_> =
            no_one.iter().map(|request| Asked { said: Said::Nothing, ..*request }).collect();
        check_admitted(&[&unknown[..], &no_one[..]].concat(), LIMIT, &[]).unwrap();
    }

    #[test]
    fn who_counts_alone_adds_a_share_and_no_more() {
        let twice: Vec<_> = (0..10).chain(500..510).map(at).collect();
        assert!(check_rate(&twice, LIMIT, &[]).is_err());
        check_rate(&twice, LIMIT, &[away(0, 1, 2, false)]).unwrap();
        check_rate(&twice, LIMIT, &[away(0, 1, 0, true)]).unwrap();
        let thrice: Vec<_> = twice.iter().copied().chain((600..610).map(at)).collect();
        assert!(check_rate(&thrice, LIMIT, &[away(0, 1, 2, false)]).is_err());
        // A disturbance before or after excuses nothing.
        assert!(check_rate(&twice, LIMIT, &[away(2, 3, 2, true)]).is_err());
        let later: Vec<_> = (5_000..5_010).chain(5_500..5_510).map(at).collect();
        assert!(check_rate(&later, LIMIT, &[away(0, 1, 2, true)]).is_err());
        // What comes back in 20 s, and to each of two that count alone.
        let (from, to) = (Duration::ZERO, Duration::from_secs(20));
        assert_eq!(bound(LIMIT, from, to, &[away(0, 20, 2, false)]), 10 + 20 + 2 * (5 + 10));
    }
}
