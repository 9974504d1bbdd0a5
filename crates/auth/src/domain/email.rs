//! E-mail addresses as names of accounts.

use std::fmt;

/// A normalised address: what accounts are found by. Two spellings that a mail server would hardly tell apart give
/// one value: surrounding space is dropped, letters are lower-cased.
///
/// The part before the `@` is lower-cased too. RFC 5321 lets a server tell `Ada@` from `ada@`; none of note does,
/// and an account for each would let one person be taken for another. Dots and `+tags` are kept: whether they
/// matter is the server's rule, not ours.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email(String);

/// The text is no address that we take. Says what an address must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an e-mail address such as ada@example.com, at most 254 characters, without spaces or quotes"
)]
pub struct InvalidEmail;

impl Email {
    /// The address that `text` spells.
    pub fn parse(text: &str) -> Result<Self, InvalidEmail> {
        let text = text.trim();
        let (local, domain) = text.rsplit_once('@').ok_or(InvalidEmail)?;
        let plain = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        let local_fits = (1..=64).contains(&local.len())
            && local.chars().all(plain)
            && !local.starts_with('.')
            && !local.ends_with('.')
            && !local.contains("..");
        // Internationalised domains come in their ASCII form (RFC 5890): two scripts, one look, is the trap.
        let label_fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let domain_fits = domain.contains('.') && domain.split('.').all(label_fits);
        if !local_fits || !domain_fits || text.len() > 254 {
            return Err(InvalidEmail);
        }
        Ok(Self(text.to_lowercase()))
    }

    /// The normalised text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the `@`.
    #[must_use]
    pub fn local_part(&self) -> &str {
        self.0.rsplit_once('@').map_or(self.0.as_str(), |(local, _)| local)
    }
}

/// Personal data: a log that prints one prints a placeholder.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_address_are_one_account() {
        for text in ["ada@example.com", " Ada@Example.COM\n", "ADA@EXAMPLE.com"] {
            assert_eq!(Email::parse(text).unwrap().as_str(), "ada@example.com");
        }
        assert_eq!(Email::parse("a.b+c@xn--bcher-kva.example").unwrap().local_part(), "a.b+c");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = format!("{}@example.com", "a".repeat(65));
        for text in [
            "",
            "ada",
            "@",
            "ada@",
            "@example.com",
            "ada@localhost",
            "a b@example.com",
            "a@b@example.com",
            "ada@exa mple.com",
            "ada@-x.com",
            "ada@x..com",
            ".a@x.com",
            "a..b@x.com",
            "\"a\"@x.com",
            "a\u{0}@x.com",
            "ada@bücher.example",
            "a@x.com\r\nBcc: b@x.com",
            &long,
        ] {
            assert_eq!(Email::parse(text), Err(InvalidEmail), "{text:?} was accepted");
        }
    }

    proptest::proptest! {
        #[test]
        fn normalising_twice_changes_nothing(local in "[a-zA-Z0-9+._-]{1,20}", domain in "[a-zA-Z0-9]{1,10}\\.[a-z]{2,4}") {
            if let Ok(email) = Email::parse(&format!("{local}@{domain}")) {
                proptest::prop_assert_eq!(Email::parse(email.as_str()).unwrap(), email);
            }
        }
    }
}
