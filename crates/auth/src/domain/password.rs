//! Which passwords are taken: NIST SP 800-63B-4, section 3.1.1.2. Length and a block list; no rules about classes
//! of characters, which make passwords worse.

use super::email::Email;

/// The shortest password taken, in characters.
pub const MIN_CHARS: usize = 12;
/// The longest, in characters. The hash costs the same for any length; the bound keeps requests small.
pub const MAX_CHARS: usize = 128;

/// Why a password is not taken. Each text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// Fewer than [`MIN_CHARS`].
    #[error("use at least 12 characters; a few unrelated words do well")]
    TooShort,
    /// More than [`MAX_CHARS`].
    #[error("use at most 128 characters")]
    TooLong,
    /// On the block list, or a plain variation of what is.
    #[error("this password is among the first that an attacker tries; use a few unrelated words")]
    Common,
    /// One short thing again and again, or a run along the alphabet or the keyboard.
    #[error("this password repeats or runs along the keyboard; use a few unrelated words")]
    Repetitive,
    /// Mostly the account's own e-mail address.
    #[error("this password is taken from your e-mail address; use a few unrelated words")]
    ContainsEmail,
    /// The one that it is to replace.
    #[error("this is your password already; choose another")]
    Unchanged,
}

/// Whether `password` may protect the account of `email`.
pub fn check(password: &str, email: &Email) -> Result<(), WeakPassword> {
    let chars = password.chars().count();
    if chars < MIN_CHARS {
        return Err(WeakPassword::TooShort);
    }
    if chars > MAX_CHARS {
        return Err(WeakPassword::TooLong);
    }
    let plain = password.to_lowercase();
    if contains_name(&plain, email) {
        return Err(WeakPassword::ContainsEmail);
    }
    if repeats(&plain) || mostly_runs(&plain) {
        return Err(WeakPassword::Repetitive);
    }
    if left_after_common_words(&plain) < 4 || left_after_common_words(&without_disguise(&plain)) < 4 {
        return Err(WeakPassword::Common);
    }
    Ok(())
}

fn contains_name(password: &str, email: &Email) -> bool {
    let local = email.local_part();
    password.contains(email.as_str()) || (local.chars().count() >= 4 && password.contains(local))
}

/// `p@ssw0rd` read as `password`.
fn without_disguise(text: &str) -> String {
    let plain = |c| match c {
        '0' => 'o',
        '1' | '!' | '|' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' | '+' => 't',
        '8' => 'b',
        other => other,
    };
    text.chars().map(plain).collect()
}

/// How many letters are left once every word of the block list is taken out. Digits and signs don't count: they are
/// what people hang on a common word. At least as many other letters as make a short word must remain; but a
/// password without letters is judged by its own characters.
fn left_after_common_words(text: &str) -> usize {
    let mut left = text.to_owned();
    for word in common_words() {
        left = left.replace(word, " ");
    }
    let letters = left.chars().filter(|c| c.is_alphabetic()).count();
    if text.chars().any(char::is_alphabetic) { letters } else { distinct(&left) }
}

fn distinct(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).collect::<std::collections::BTreeSet<_>>().len()
}

fn common_words() -> impl Iterator<Item = &'static str> {
    include_str!("common_passwords.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether the text is one piece of at most a third of its length, again and again.
fn repeats(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    (1..=chars.len() / 3).any(|unit| chars.iter().zip(chars.iter().skip(unit)).all(|(a, b)| a == b))
        || chars
            .chunks(chars.len().div_ceil(2))
            .collect::<Vec<_>>()
            .windows(2)
            .all(|halves| halves[0] == halves[1])
        || distinct(text) < 5
}

/// Whether at most 3 characters are left of the text once runs such as `abcd`, `4321` or `qwer` are taken out.
fn mostly_runs(text: &str) -> bool {
    const ROWS: [&str; 5] = ["1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop"];
    let follows = |a: char, b: char| {
        let near = u32::from(a).abs_diff(u32::from(b)) <= 1 && a.is_alphanumeric() && b.is_alphanumeric();
        let on_a_row = ROWS.iter().any(|row| {
            row.find(a).zip(row.find(b)).is_some_and(|(first, second)| first.abs_diff(second) == 1)
        });
        near || on_a_row
    };
    let chars: Vec<char> = text.chars().collect();
    let in_runs = chars.chunk_by(|a, b| follows(*a, *b)).map(<[char]>::len).filter(|length| *length >= 3);
    chars.len() - in_runs.sum::<usize>() <= 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(password: &str) -> Result<(), WeakPassword> {
        check(password, &Email::parse("ada.lovelace@example.com").unwrap())
    }

    #[test]
    fn good_ones_are_taken() {
        for password in [
            "correct horse battery staple",
            "Tr4m-lantern-ouzel",
            "пароли бывают длинными",
            "vK9#mQz!2rLp",
            "7391 0428 5566 1749",
            "the owl reads at noon",
            "mein lieber Herr Gesangsverein",
            "x7Gq2Rw9Lk4TzB",
        ] {
            assert_eq!(judge(password), Ok(()), "{password:?} was refused");
        }
        assert_eq!(judge(&"a9 Kd-".repeat(21)[..120]), Err(WeakPassword::Repetitive));
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        assert_eq!(judge("kurz und gut"), Ok(()));
        assert_eq!(judge("kurz und gu"), Err(WeakPassword::TooShort));
        assert_eq!(judge("ääääääääääk"), Err(WeakPassword::TooShort));
        let long: String = (0..129u32).filter_map(|n| char::from_u32(0x4e00 + n * 7)).collect();
        assert_eq!(judge(&long), Err(WeakPassword::TooLong));
        assert_eq!(judge(&long.chars().take(128).collect::<String>()), Ok(()));
    }

    #[test]
    fn bad_ones_are_refused() {
        for (password, why) in [
            ("password1234", WeakPassword::Common),
            ("P@ssw0rd!2024", WeakPassword::Common),
            ("Welcome2Gatehouse", WeakPassword::Common),
            ("iloveyou-forever", WeakPassword::Common),
            ("letmeinletmein!1", WeakPassword::Common),
            ("administrator!", WeakPassword::Common),
            ("summer2024!!!", WeakPassword::Common),
            ("aaaaaaaaaaaa", WeakPassword::Repetitive),
            ("abcabcabcabc", WeakPassword::Repetitive),
            ("123456789012", WeakPassword::Repetitive),
            ("qwertyuiop12", WeakPassword::Repetitive),
            ("abcdefghijkl", WeakPassword::Repetitive),
            ("ada.lovelace-9", WeakPassword::ContainsEmail),
        ] {
            assert_eq!(judge(password), Err(why), "{password:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = judge(&text);
        }
    }
}
