//! The table for people.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Report;
use crate::catalogue;
use crate::figure::{Better, Figure};
use crate::machine::is_release;
use crate::progress::number;

const BEGIN: &str = "<!-- figures: written by `make bench`, do not edit -->";
const END: &str = "<!-- end of figures -->";

/// What a table of a debug build begins with.
pub(crate) const MEANINGLESS: &str =
    "THIS IS A DEBUG BUILD: ITS FIGURES MEAN NOTHING. Use `make bench`, which builds for release.";

/// Limits, figures and their cost, as Markdown.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    if report.machine.build != "release" {
        let _ = writeln!(text, "**{MEANINGLESS}**\n");
    }
    let _ = writeln!(
        text,
        "{} runs of {} s a figure, medians; in brackets the spread, largest less smallest in percent of the median.\n{}.\n",
        report.runs,
        report.seconds,
        report.machine.sentence()
    );
    let (limits, held): (Vec<_>, Vec<_>) = report.figures.iter().partition(|figure| figure.limit.is_none());
    if !limits.is_empty() {
        text.push_str("| what the machine can do | value | what it is |\n| --- | ---: | --- |\n");
        for figure in limits {
            let _ = writeln!(text, "| {} | {} | {} |", figure.name, value(figure), figure.meaning);
        }
        text.push('\n');
    }
    if !held.is_empty() {
        text.push_str("| figure | value | limit | ratio | one call, ms (p50, p99) | processor time a unit, µs | what the ratio means |\n");
        text.push_str("| --- | ---: | --- | ---: | ---: | --- | --- |\n");
        for figure in held {
            let limit = figure.limit.as_deref().and_then(catalogue::find);
            let limit = limit.zip(figure.limit_value).map_or_else(String::new, |(meta, value)| {
                format!("{} {} ({})", number(value), meta.unit, meta.name)
            });
            let calls = figure.p50_ms.zip(figure.p99_ms);
            let calls =
                calls.map_or_else(String::new, |(p50, p99)| format!("{}, {}", number(p50), number(p99)));
            let _ = writeln!(
                text,
                "| {} | {} | {limit} | {} | {calls} | {} | {} |",
                figure.name,
                value(figure),
                ratio(figure),
                cost(figure),
                figure.meaning
            );
        }
    }
    text
}

fn value(figure: &Figure) -> String {
    format!("{} {} ({:.0} %)", number(figure.value), figure.unit, figure.spread_percent)
}

fn ratio(figure: &Figure) -> String {
    let Some(ratio) = figure.ratio else { return String::new() };
    match figure.better {
        Better::Higher => format!("**{ratio:.3}**"),
        Better::Lower => format!("**{ratio:.1}x**"),
    }
}

/// The dearest first; a fiftieth of the whole and less is what the background does.
fn cost(figure: &Figure) -> String {
    let whole: f64 = figure.cpu_us.values().sum();
    let mut spent: Vec<_> = figure.cpu_us.iter().filter(|(_, us)| **us > whole / 50.0).collect();
    spent.sort_unstable_by(|left, right| right.1.total_cmp(left.1));
    let spent: Vec<_> = spent.into_iter().map(|(name, us)| format!("{name} {}", number(*us))).collect();
    spent.join(", ")
}

/// Puts the table into the marked region of `file`.
///
/// # Errors
/// If the file has no such region.
pub(crate) fn fill(file: &Path, report: &Report) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
    let filled = region(&text, &table(report))
        .with_context(|| format!("{} has no region from `{BEGIN}` to `{END}`", file.display()))?;
    std::fs::write(file, filled).with_context(|| format!("{} can't be written", file.display()))?;
    if !is_release() {
        eprintln!("{MEANINGLESS}");
    }
    Ok(())
}

fn region(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_alone_is_written() {
        let text = format!("# Head\n\n{BEGIN}\nold\n{END}\n\ntail\n");
        let filled = region(&text, "new\n").unwrap();
        assert_eq!(filled, format!("# Head\n\n{BEGIN}\n\nnew\n\n{END}\n\ntail\n"));
        assert_eq!(region(&filled, "new\n").unwrap(), filled);
        assert_eq!(region("no marks", "new"), None);
    }
}
