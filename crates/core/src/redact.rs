//! Removing what must not reach a log (requirements L9, T5).

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// What stands where something was removed.
pub const REDACTED: &str = "[redacted]";

struct Rule {
    pattern: Regex,
    replacement: &'static str,
    /// Whether a match counts only if its digits pass the Luhn check (ISO/IEC 7812-1, annex B).
    luhn: bool,
}

/// Ids are full of digit groups: number rules match them first, under this name, and leave them as they are.
const ID: &str = "(?P<id>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})";

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rule = |pattern: &str, replacement, luhn| Rule {
        pattern: Regex::new(pattern).expect("the pattern is a literal that the tests compile"),
        replacement,
        luhn,
    };
    let number = |pattern: &str, replacement, luhn| rule(&format!("{ID}|{pattern}"), replacement, luhn);
    vec![
        rule(r"(?i)\b(bearer|basic|dpop)\s+[A-Za-z0-9._~+/=-]{6,}", "$1 [redacted]", false),
        // Three base64url parts: a JWT, wherever it stands.
        rule(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "[redacted]", false),
        // Our own credentials carry their kind and environment: gh_dev_rt_…, gh_prod_ak_….
        rule(r"\bgh_(dev|staging|prod)_([a-z]{2})_[A-Za-z0-9_-]{8,}", "gh_${1}_${2}_[redacted]", false),
        rule(
            r#"(?i)\b(password|passwd|secret|client_secret|refresh_token|access_token|id_token|api_key|apikey|authorization|code_verifier)("?\s*[:=]\s*"?)[^\s"&,;}]{3,}"#,
            "$1$2[redacted]",
            false,
        ),
        rule(r"(?i)[a-z0-9._%+-]+(?:@|%40)[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}", "[email]", false),
        // No payment network issues numbers that begin with 0, 1 or 7-9; microsecond timestamps begin with 1.
        number(r"\b[2-6](?:(?:[ -]|%20)?\d){12,18}\b", "[card]", true),
        // E.164 with its plus, or national forms with at least two separators.
        number(r"(?:\+|%2[Bb])\d(?:[ ().-]{0,2}\d){7,14}\b", "[phone]", false),
        number(r"(?:\(\d{2,5}\)|\b\d{2,5})[ .-]\d{2,4}[ .-]\d{3,5}\b", "[phone]", false),
    ]
});

/// `text` without credentials, e-mail addresses, card and phone numbers. Borrowed if there was nothing.
///
/// It errs towards removing: a log line that lost a number is cheaper than one that kept a person's.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut current = Cow::Borrowed(text);
    for rule in RULES.iter() {
        if !rule.pattern.is_match(&current) {
            continue;
        }
        let replaced = rule.pattern.replace_all(&current, |found: &regex::Captures<'_>| {
            let keep = found.name("id").is_some() || (rule.luhn && !luhn(&found[0]));
            let mut text = String::new();
            if keep {
                text.push_str(&found[0]);
            } else {
                found.expand(rule.replacement, &mut text);
            }
            text
        });
        if let Cow::Owned(owned) = replaced {
            current = Cow::Owned(owned);
        }
    }
    current
}

fn luhn(text: &str) -> bool {
    let digits = text.chars().rev().filter_map(|c| c.to_digit(10));
    let sum: u32 = digits
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => digit,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_reach_a_log_is_removed() {
        for (text, expected) in [
            ("Authorization: Bearer abc.def-ghi", "Authorization: [redacted] [redacted]"),
            ("got eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2ln back", "got [redacted] back"),
            ("key gh_prod_ak_0123456789abcdef used", "key gh_prod_ak_[redacted] used"),
            (r#"{"password":"hunter22","a":1}"#, r#"{"password":"[redacted]","a":1}"#),
            ("refresh_token=abcdef&x=1", "refresh_token=[redacted]&x=1"),
            ("mail ada.l+x@example.co.uk now", "mail [email] now"),
            ("card 4111 1111 1111 1111.", "card [card]."),
            ("path /a/ada%40example.org/%2B442079460958", "path /a/[email]/[phone]"),
            ("call +44 20 7946 0958 or (030) 123-4567", "call [phone] or [phone]"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn what_may_reach_a_log_stays() {
        for text in [
            "job 0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e finished in 1532 ms",
            "2026-11-22T10:11:12.000001Z listening on 127.0.0.1:8080",
            "order 4111111111111112 is no card",
            "id 01905555-1234-7123-8456-123456789012 at 1790000000000000",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn redacting_twice_changes_nothing_more(text in ".{0,200}") {
            let once = redact(&text).into_owned();
            proptest::prop_assert_eq!(redact(&once).into_owned(), once.clone());
        }
    }
}
