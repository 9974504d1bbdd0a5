//! What is going on, for whoever waits: standard error, so that standard output can be read by programs.

use crate::catalogue;
use crate::figure::Sample;

/// A step begins.
pub(crate) fn step(text: &str) {
    eprintln!("{text}");
}

/// A figure of this run.
pub(crate) fn measured(key: &str, sample: &Sample) {
    let (name, unit) = catalogue::find(key).map_or((key, ""), |meta| (meta.name, meta.unit));
    eprintln!("    {name}: {} {unit}", number(sample.value));
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    let digits: usize = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && digit.is_ascii_digit() && grouped != "-" {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, text) in [
            (1_234_567.0, "1 234 567"),
            (999.6, "1 000"),
            (99.94, "99.9"),
            (1.234, "1.23"),
            (0.0456, "0.046"),
            (-1234.0, "-1 234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
