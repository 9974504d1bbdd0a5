//! The form that an event's words must have. The audit service refuses others, and so does [`crate::Outbox::emit`]: one
//! rule for both, so that nothing passes here which is refused there.

/// Words of a-z, 0-9 and `also`, a letter first, at most `longest` bytes.
fn is_slug(text: &str, longest: usize, also: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.len() <= longest
        && bytes.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c))
}

/// What was done: 1 to 96 of a-z, 0-9, dot, `_` and -, a letter first.
#[must_use]
pub fn is_action(text: &str) -> bool {
    is_slug(text, 96, b"._-")
}

/// A service, a log or a retention class: 1 to 32 of a-z, 0-9 and -, a letter first.
#[must_use]
pub fn is_class(text: &str) -> bool {
    is_slug(text, 32, b"-")
}

/// An internal client, or a thing by a name that no person chose for themselves: 1 to 64 of a-z, 0-9, dot, `_` and -, a
/// letter first.
#[must_use]
pub fn is_name(text: &str) -> bool {
    is_slug(text, 64, b"._-")
}

/// The kind of a thing: 1 to 32 of a-z, 0-9, `_` and -, a letter first.
#[must_use]
pub fn is_kind(text: &str) -> bool {
    is_slug(text, 32, b"_-")
}

/// Why something was refused or failed: 1 to 64 of A-Z, 0-9 and `_`, a letter first.
#[must_use]
pub fn is_reason(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_uppercase)
        && bytes.len() <= 64
        && bytes.iter().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_with_a_letter_and_have_an_end() {
        for wrong in ["", "_a", "1a", "-a", ".a", "A", "a b", "é", "a\n", "a@b"] {
            assert!(!is_action(wrong) && !is_class(wrong) && !is_name(wrong) && !is_kind(wrong), "{wrong:?}");
        }
        for wrong in ["", "_A", "1A", "a", "A B", "É", "A-B", "A\n"] {
            assert!(!is_reason(wrong), "{wrong:?}");
        }
        assert!(is_reason("A1_") && is_reason(&"A".repeat(64)) && !is_reason(&"A".repeat(65)));
        assert!(is_action(&"a".repeat(96)) && !is_action(&"a".repeat(97)));
        assert!(is_name("security.csrf") && !is_kind("security.csrf") && !is_class("a_b"));
    }
}
