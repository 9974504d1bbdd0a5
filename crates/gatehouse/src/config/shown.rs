//! The configuration as it is shown to a person.

/// `text`, of the configuration as TOML or JSON, without the user names and passwords that stand in addresses. Where a start
/// takes none it is refused, but what is refused is shown as well.
pub(crate) fn without_credentials(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("://") {
        let (before, after) = rest.split_at(place + "://".len());
        let end = after.find(['"', '\'', '\n']).unwrap_or(after.len());
        let (address, behind) = after.split_at(end);
        shown.push_str(before);
        // An address of a database shows its user, and hides its password itself.
        let is_database = ["postgres://", "postgresql://"].iter().any(|scheme| before.ends_with(scheme));
        match address.rfind('@') {
            Some(host) if !is_database => {
                shown.push_str("***");
                shown.push_str(&address[host..]);
            }
            _ => shown.push_str(address),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_who_and_by_what() {
        for (text, expected) in [
            ("a = \"http://me:p@h:1\"\nb = \"@\"", "a = \"http://***@h:1\"\nb = \"@\""),
            ("['https://a', 'https://t@b/c', 'd@e']", "['https://a', 'https://***@b/c', 'd@e']"),
            ("\"http://me:p @/?#x@h\"", "\"http://***@h\""),
            ("\"postgres://me:***@h/d\"", "\"postgres://me:***@h/d\""),
            ("none = 1\n", "none = 1\n"),
        ] {
            assert_eq!(without_credentials(text), expected);
        }
    }
}
