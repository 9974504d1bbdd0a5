//! Names that people choose.

use gatehouse_core::{Error, Result};

/// `text` as the name in `field`: trimmed, 1 to 100 characters, none of them a control character or one that turns the
/// direction of what follows.
pub fn name(field: &str, text: &str) -> Result<String> {
    let text = text.trim();
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    if !(1..=100).contains(&text.chars().count()) {
        return Err(Error::invalid_field(field, "must have 1 to 100 characters"));
    }
    if text.chars().any(|c| c.is_control() || turns(c)) {
        return Err(Error::invalid_field(field, "must not contain control characters"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_plain() {
        assert_eq!(name("name", "  Ada Lovelace ").unwrap(), "Ada Lovelace");
        assert_eq!(name("name", &"ä".repeat(100)).unwrap().chars().count(), 100);
        for wrong in ["", "   ", "a\nb", "a\u{202e}b", "a\0", &"x".repeat(101)] {
            assert_eq!(name("name", wrong).unwrap_err().reason(), "INVALID_FIELD", "{wrong:?}");
        }
    }
}
