use gatehouse_core::{Clock, Environment};
use proptest::prelude::*;

use super::super::keys::tests::ring;
use super::*;

const WINDOW: Duration = Duration::from_secs(30);

/// The family's row, with the one statement that the database runs on it.
struct Row(Family);

impl Row {
    fn start(ring: &KeyRing, entropy: &Entropy, now: Timestamp) -> (Self, RefreshToken) {
        let id = SessionId::new(&Clock::settable(now), entropy);
        let token = RefreshToken::first(id, ring.current(now), entropy);
        let family = Family {
            id,
            generation: 0,
            current: token.digest(ring).unwrap(),
            parent: None,
            ends_at: now.plus(Duration::from_hours(30 * 24)),
            ended: false,
        };
        (Self(family), token)
    }

    /// `UPDATE … SET … WHERE generation = $1 AND digest = $2 AND NOT ended`.
    fn compare_and_set(
        &mut self,
        seen: &RefreshToken,
        ring: &KeyRing,
        next: &RefreshToken,
        salt: Salt,
        at: Timestamp,
    ) {
        let digest = seen.digest(ring).unwrap();
        if self.0.generation == seen.generation() && self.0.current.matches(&digest) && !self.0.ended {
            self.0.parent = Some(Consumed { digest, salt, at });
            self.0.generation += 1;
            self.0.current = next.digest(ring).unwrap();
        }
    }

    /// A whole refresh: the text of the successor, or `None`.
    fn refresh(&mut self, text: &str, ring: &KeyRing, entropy: &Entropy, now: Timestamp) -> Option<String> {
        let token = RefreshToken::parse(text, ring)?;
        loop {
            match self.0.judge(&token, ring, now, WINDOW) {
                Verdict::Alive => {
                    let salt = entropy.bytes();
                    let next = token.successor(ring, ring.current(now), &salt);
                    self.compare_and_set(&token, ring, &next, salt, now);
                }
                Verdict::Again { salt, kid } => {
                    let next = token.successor(ring, ring.lookup(&kid).unwrap(), &salt);
                    return Some(next.to_text(ring).unwrap().expose().clone());
                }
                Verdict::Replayed => {
                    self.0.ended = true;
                    return None;
                }
                Verdict::Ended | Verdict::Unknown => return None,
            }
        }
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(10_000 + seconds)
}

fn started() -> (KeyRing, Entropy, Row, String) {
    let (ring, entropy) = (ring(Environment::Dev, 1), Entropy::seeded(5));
    let (row, token) = Row::start(&ring, &entropy, at(0));
    let text = token.to_text(&ring).unwrap().expose().clone();
    (ring, entropy, row, text)
}

#[test]
fn a_token_reads_back_and_has_one_spelling() {
    let (ring, _, row, text) = started();
    assert!(text.starts_with("gh_dev_rt_"), "{text}");
    assert_eq!(gatehouse_core::redact(&text), "gh_dev_rt_[redacted]");
    let token = RefreshToken::parse(&text, &ring).unwrap();
    assert_eq!((token.family(), token.generation()), (row.0.id, 0));
    for wrong in [
        format!("{text}="),
        format!(" {text}"),
        text.to_uppercase(),
        text.replace("_dev_", "_prod_"),
        text[..text.len() - 1].to_owned(),
        String::new(),
        "gh_dev_rt_".to_owned(),
        "gh_dev_rt_a_".to_owned(),
    ] {
        assert!(RefreshToken::parse(&wrong, &ring).is_none(), "{wrong:?} was read");
    }
}

#[test]
fn a_token_of_another_environment_is_unknown_even_under_the_same_master_key() {
    let (_, _, _, text) = started();
    let prod = ring(Environment::Prod, 1);
    assert!(RefreshToken::parse(&text, &prod).is_none());
    assert!(RefreshToken::parse(&text.replace("_dev_", "_prod_"), &prod).is_none());
}

#[test]
fn racers_and_a_client_that_lost_its_answer_get_the_same_successor() {
    let (ring, entropy, mut row, text) = started();
    let token = RefreshToken::parse(&text, &ring).unwrap();
    // Two racers both read generation 0 and both prepare a successor with a salt of their own.
    let salts: [Salt; 2] = [entropy.bytes(), entropy.bytes()];
    for salt in salts {
        let next = token.successor(&ring, ring.current(at(1)), &salt);
        row.compare_and_set(&token, &ring, &next, salt, at(1));
    }
    let first = row.refresh(&text, &ring, &entropy, at(1)).unwrap();
    let again = row.refresh(&text, &ring, &entropy, at(31)).unwrap();
    assert_eq!(first, again);
    let expected = token.successor(&ring, ring.current(at(1)), &salts[0]).to_text(&ring).unwrap();
    assert_eq!(&first, expected.expose());
    assert_eq!(row.0.generation, 1);
}

#[test]
fn a_parent_is_refused_after_the_window_and_ends_the_family() {
    let (ring, entropy, mut row, text) = started();
    let next = row.refresh(&text, &ring, &entropy, at(0)).unwrap();
    assert_eq!(row.refresh(&text, &ring, &entropy, at(30)), Some(next.clone()));
    assert_eq!(row.refresh(&text, &ring, &entropy, at(31)), None);
    assert!(row.0.ended);
    assert_eq!(row.refresh(&next, &ring, &entropy, at(31)), None);
}

#[test]
fn a_parent_is_refused_once_its_successor_was_used_and_ends_the_family() {
    let (ring, entropy, mut row, text) = started();
    let second = row.refresh(&text, &ring, &entropy, at(0)).unwrap();
    let third = row.refresh(&second, &ring, &entropy, at(1)).unwrap();
    assert_eq!(row.refresh(&text, &ring, &entropy, at(2)), None);
    assert!(row.0.ended);
    assert_eq!(row.refresh(&third, &ring, &entropy, at(2)), None);
}

#[test]
fn a_family_ends_after_its_time_without_being_marked() {
    let (ring, entropy, mut row, text) = started();
    assert_eq!(row.refresh(&text, &ring, &entropy, at(30 * 86_400)), None);
    assert!(!row.0.ended);
}

#[test]
fn a_token_that_only_knows_the_family_ends_nothing() {
    let (ring, entropy, mut row, text) = started();
    row.refresh(&text, &ring, &entropy, at(0)).unwrap();
    // Our tag, wrong secret: only a holder of the key could make it, and even that one kills nothing.
    let forged = RefreshToken::first(row.0.id, ring.current(at(0)), &entropy);
    let forged = forged.to_text(&ring).unwrap().expose().clone();
    assert_eq!(row.refresh(&forged, &ring, &entropy, at(1)), None);
    assert!(!row.0.ended);
}

#[test]
fn the_row_and_the_key_together_do_not_yield_the_token() {
    // Everything that a thief of the row and of the ring has, tried as the missing parent secret.
    let (ring, entropy, mut row, text) = started();
    let next = row.refresh(&text, &ring, &entropy, at(0)).unwrap();
    let parent = row.0.parent.clone().unwrap();
    for guess in
        [parent.digest.bytes, row.0.current.bytes, parent.salt, [0; 32], *ring.keys()[0].secret.expose()]
    {
        let thief = RefreshToken {
            family: row.0.id,
            generation: 0,
            kid: ring.keys()[0].id.clone(),
            secret: Secret::new(guess),
        };
        let made = thief.successor(&ring, &ring.keys()[0], &parent.salt).to_text(&ring).unwrap();
        assert_ne!(made.expose(), &next);
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Present the token that was handed out `back` tokens ago, `seconds` later.
    Present { back: usize, seconds: i64 },
}

proptest! {
    /// However tokens are presented, no token ever has two successors, and a token is answered only if it is the
    /// newest, or the newest's parent within the window.
    #[test]
    fn no_token_ever_has_two_successors(
        steps in proptest::collection::vec(
            (0usize..4, 0i64..40).prop_map(|(back, seconds)| Step::Present { back, seconds }), 1..40)
    ) {
        let (ring, entropy, mut row, text) = started();
        let mut handed = vec![(text, at(0))];
        let mut successor_of = std::collections::HashMap::<String, String>::new();
        let mut now = at(0);
        for Step::Present { back, seconds } in steps {
            now = now.plus(Duration::from_secs(u64::try_from(seconds).unwrap()));
            let place = handed.len().saturating_sub(1 + back);
            let shown = handed[place].0.clone();
            let was_ended = row.0.ended;
            let answer = row.refresh(&shown, &ring, &entropy, now);
            let newest = place + 1 == handed.len();
            let retry = place + 2 == handed.len() && now.since(handed[place + 1].1) <= WINDOW;
            prop_assert_eq!(answer.is_some(), !was_ended && (newest || retry));
            if let Some(next) = answer {
                let known = successor_of.entry(shown).or_insert_with(|| next.clone());
                prop_assert_eq!(&*known, &next);
                if newest {
                    handed.push((next, now));
                }
            } else {
                prop_assert!(row.0.ended);
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,160}") {
        let ring = ring(Environment::Dev, 1);
        prop_assert!(RefreshToken::parse(&text, &ring).is_none());
        prop_assert!(RefreshToken::parse(&["gh_dev_rt_", &text].concat(), &ring).is_none());
    }
}
