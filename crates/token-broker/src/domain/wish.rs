//! How long a caller wants a token to live, and when that is reason enough to renew it.

use std::time::Duration;

use gatehouse_core::Timestamp;

/// When an access token was given by the upstream, and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Unknown for one from before this was noted.
    pub issued_at: Option<Timestamp>,
    /// Its end.
    pub expires_at: Timestamp,
}

/// What a caller wants of a token's life. It counts once the token is of age: callers may ask for what the upstream never
/// gives, and each renewal is a write at the provider and, with most, a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// How long it must still live.
    pub remaining: Duration,
    /// Of age after so much of its own life, percent, at most 100.
    pub renew_after_percent: u32,
}

impl Wish {
    /// Any token that has not ended.
    pub const ANY: Self = Self { remaining: Duration::ZERO, renew_after_percent: 100 };

    /// Whether a token does at `now`: it lives for long enough, or is too young to be renewed for a wish.
    #[must_use]
    pub fn is_met_by(self, life: Life, now: Timestamp) -> bool {
        now < life.expires_at && (now.plus(self.remaining) < life.expires_at || self.is_too_young(life, now))
    }

    fn is_too_young(self, life: Life, now: Timestamp) -> bool {
        life.issued_at.is_some_and(|issued_at| {
            let of_age = life.expires_at.since(issued_at) * self.renew_after_percent / 100;
            now < issued_at.plus(of_age)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_seconds(second)
    }

    /// From which second of its life a token is renewed.
    fn renewed_after(life_s: i64, remaining_s: u64, renew_after_percent: u32) -> Option<i64> {
        let life = Life { issued_at: Some(at(1_000)), expires_at: at(1_000 + life_s) };
        let wish = Wish { remaining: Duration::from_secs(remaining_s), renew_after_percent };
        (0..=life_s).find(|age| !wish.is_met_by(life, at(1_000 + age)))
    }

    #[test]
    fn a_wish_counts_once_the_token_is_of_age() {
        for (life, remaining, percent, expected) in [
            // An hour's token serves any wish in full.
            (3600, 600, 50, 3000),
            (3600, 60, 50, 3540),
            // A wish that the upstream hardly meets, or never.
            (660, 600, 50, 330),
            (300, 600, 50, 150),
            (60, 60, 50, 30),
            (300, 600, 90, 270),
            (300, 600, 10, 30),
            // As the wish says, whatever it costs.
            (300, 600, 0, 0),
            (660, 600, 0, 60),
            // What has ended serves nobody.
            (300, 0, 50, 300),
            (300, 0, 100, 300),
            (0, 600, 90, 0),
        ] {
            assert_eq!(
                renewed_after(life, remaining, percent),
                Some(expected),
                "{life} {remaining} {percent}"
            );
        }
    }

    #[test]
    fn odd_times_keep_no_dead_token() {
        let wish = Wish { remaining: Duration::from_secs(600), renew_after_percent: 100 };
        let life = |issued_at: Option<i64>| Life { issued_at: issued_at.map(at), expires_at: at(1_300) };
        assert!(!wish.is_met_by(life(None), at(1_000)), "a token of unknown age is old");
        assert!(wish.is_met_by(life(Some(1_000)), at(990)), "another replica's clock is ahead");
        assert!(!wish.is_met_by(life(Some(2_000)), at(1_300)), "dead, though it is from the future");
        let forever =
            Life { issued_at: Some(at(i64::MIN / 1_000_000)), expires_at: at(i64::MAX / 1_000_000) };
        assert!(wish.is_met_by(forever, at(0)));
    }
}
