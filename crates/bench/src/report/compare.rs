//! What changed since another run, and what is only noise.

use std::fmt::Write as _;

use super::Report;
use crate::figure::{Better, Figure};
use crate::progress::number;

/// Less than this may come from anything, whatever the spread of three runs says.
const FLOOR_PERCENT: f64 = 5.0;

/// More than this is no measurement of a figure: half of it could be gone without a word.
const TOO_MUCH_PERCENT: f64 = 20.0;

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Noise,
    TooNoisy,
    Better,
    Worse,
}

impl Change {
    const fn text(self) -> &'static str {
        match self {
            Self::Noise => "within noise",
            Self::TooNoisy => "too noisy to tell: measure again, on an idle machine",
            Self::Better => "better",
            Self::Worse => "WORSE",
        }
    }
}

/// A figure then and now: of those with a limit the ratios, because another machine, or a busier one, moves both.
struct Pair {
    old: f64,
    new: f64,
    noise_percent: f64,
    better: Better,
}

impl Pair {
    fn of(old: &Figure, new: &Figure) -> Self {
        let (old_ratio, new_ratio) = (old.ratio, new.ratio);
        match old_ratio.zip(new_ratio) {
            Some((before, now)) => Self {
                old: before,
                new: now,
                noise_percent: noise(&old.ratios, &new.ratios),
                better: new.better,
            },
            None => Self {
                old: old.value,
                new: new.value,
                noise_percent: noise(&old.values, &new.values),
                better: new.better,
            },
        }
    }

    fn change(&self) -> Change {
        let percent = (self.new / self.old - 1.0) * 100.0;
        if !percent.is_finite() || percent.abs() <= self.noise_percent {
            let tells = self.noise_percent <= TOO_MUCH_PERCENT;
            return if tells { Change::Noise } else { Change::TooNoisy };
        }
        if (percent > 0.0) == (self.better == Better::Higher) { Change::Better } else { Change::Worse }
    }
}

/// The larger spread of the two, in percent.
fn noise(old: &[f64], new: &[f64]) -> f64 {
    crate::figure::spread_percent(old).max(crate::figure::spread_percent(new)).max(FLOOR_PERCENT)
}

/// A line for each figure that both have, and whether any became worse.
pub(crate) fn table(old: &Report, new: &Report) -> (String, bool) {
    let mut text = format!("then: {}\nnow:  {}\n\n", old.machine.sentence(), new.machine.sentence());
    if old.machine.build != new.machine.build {
        let _ = writeln!(
            text,
            "ONE IS A {} BUILD AND THE OTHER A {} BUILD.\n",
            old.machine.build, new.machine.build
        );
    }
    let _ = writeln!(
        text,
        "{:<58} {:>12} {:>12} {:>9} {:>9} {:>8} {:>8}  ",
        "figure", "then", "now", "ratio", "ratio", "change", "noise"
    );
    let mut worse = false;
    for figure in &new.figures {
        let Some(before) = old.figures.iter().find(|old| old.key == figure.key) else { continue };
        let pair = Pair::of(before, figure);
        let change = pair.change();
        // A machine that is slower today is no fault of ours.
        worse |= change == Change::Worse && figure.limit.is_some();
        let ratio = |figure: &Figure| figure.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let _ = writeln!(
            text,
            "{:<58} {:>12} {:>12} {:>9} {:>9} {:>+7.1}% {:>7.1}%  {}",
            format!("{} ({})", figure.name, figure.unit),
            number(before.value),
            number(figure.value),
            ratio(before),
            ratio(figure),
            (pair.new / pair.old - 1.0) * 100.0,
            pair.noise_percent,
            change.text()
        );
    }
    (text, worse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(old: f64, new: f64, better: Better) -> Change {
        Pair { old, new, noise_percent: 8.0, better }.change()
    }

    #[test]
    fn what_is_within_the_spread_is_noise() {
        assert_eq!(pair(100.0, 107.0, Better::Higher), Change::Noise);
        assert_eq!(pair(100.0, 93.0, Better::Lower), Change::Noise);
        assert_eq!(pair(100.0, 110.0, Better::Higher), Change::Better);
        assert_eq!(pair(100.0, 110.0, Better::Lower), Change::Worse);
        assert_eq!(pair(100.0, 90.0, Better::Higher), Change::Worse);
        assert_eq!(pair(0.0, 90.0, Better::Higher), Change::Noise);
        let halved = Pair { old: 100.0, new: 50.0, noise_percent: 60.0, better: Better::Higher };
        assert_eq!(halved.change(), Change::TooNoisy);
        assert!((noise(&[100.0, 101.0], &[90.0, 110.0]) - 20.0).abs() < 1e-9);
        assert!((noise(&[1.0], &[1.0]) - FLOOR_PERCENT).abs() < 1e-9);
    }
}
