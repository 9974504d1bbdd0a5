//! The figures: what each is, what it is held against, and what was measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What a figure is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Its key in JSON; `raw.` is a limit of the machine, a suffix `@sqlite` the embedded mode.
    pub(crate) key: &'static str,
    /// Its name for people.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The raw limit that it is divided by.
    pub(crate) limit: Option<&'static str>,
    /// What it is, and what its ratio means.
    pub(crate) meaning: &'static str,
}

/// One measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) value: f64,
    /// Processor time for one unit, by process, microseconds.
    pub(crate) cpu_us: BTreeMap<String, f64>,
    /// Milliseconds of one call.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

/// The measurements of one run, by key.
pub(crate) type Run = BTreeMap<&'static str, Sample>;

/// A figure over all runs, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// The median of `values`.
    pub(crate) value: f64,
    /// One a run.
    pub(crate) values: Vec<f64>,
    /// Largest less smallest, in percent of the median.
    pub(crate) spread_percent: f64,
    /// The raw limit's key.
    pub(crate) limit: Option<String>,
    /// Its median.
    pub(crate) limit_value: Option<f64>,
    /// The median of the runs' ratios: what this machine did to both in one run cancels out.
    pub(crate) ratio: Option<f64>,
    pub(crate) ratios: Vec<f64>,
    /// Medians, microseconds of processor time a unit.
    pub(crate) cpu_us: BTreeMap<String, f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) meaning: String,
}

/// Medians over `runs`, in the order of the catalogue.
pub(crate) fn summarise(runs: &[Run]) -> Vec<Figure> {
    crate::catalogue::FIGURES.iter().filter_map(|meta| summary(meta, runs)).collect()
}

fn summary(meta: &Meta, runs: &[Run]) -> Option<Figure> {
    let samples: Vec<&Sample> = runs.iter().filter_map(|run| run.get(meta.key)).collect();
    if samples.is_empty() {
        return None;
    }
    let values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
    let limits: Vec<f64> = meta
        .limit
        .map(|limit| runs.iter().filter_map(|run| Some(run.get(limit)?.value)).collect())
        .unwrap_or_default();
    let ratios: Vec<f64> = runs
        .iter()
        .filter_map(|run| Some((run.get(meta.key)?.value, run.get(meta.limit?)?.value)))
        .filter(|(_, limit)| *limit > 0.0)
        .map(|(value, limit)| value / limit)
        .collect();
    let mut cpu_us: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (process, spent) in samples.iter().flat_map(|sample| &sample.cpu_us) {
        cpu_us.entry(process.clone()).or_default().push(*spent);
    }
    let over = |pick: fn(&Sample) -> Option<f64>| {
        let known: Vec<f64> = samples.iter().filter_map(|sample| pick(sample)).collect();
        median(&known)
    };
    Some(Figure {
        key: meta.key.to_owned(),
        name: meta.name.to_owned(),
        unit: meta.unit.to_owned(),
        better: meta.better,
        value: median(&values)?,
        spread_percent: spread_percent(&values),
        values,
        limit: meta.limit.map(str::to_owned),
        limit_value: median(&limits),
        ratio: median(&ratios),
        ratios,
        cpu_us: cpu_us.into_iter().filter_map(|(process, spent)| Some((process, median(&spent)?))).collect(),
        p50_ms: over(|sample| sample.p50_ms),
        p99_ms: over(|sample| sample.p99_ms),
        meaning: meta.meaning.to_owned(),
    })
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
}

/// Largest less smallest, in percent of the median.
pub(crate) fn spread_percent(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::MIN, f64::max);
    let smallest = values.iter().copied().fold(f64::MAX, f64::min);
    match median(values) {
        Some(middle) if middle > 0.0 => (largest - smallest) / middle * 100.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: f64, limit: f64) -> Run {
        let sample = |value| Sample { value, ..Sample::default() };
        Run::from([("auth.refresh", sample(value)), ("raw.pg-commit", sample(limit))])
    }

    #[test]
    fn a_ratio_is_that_of_its_own_run() {
        // A machine that is twice as slow in one run: the values spread, the ratios do not.
        let figures = summarise(&[run(100.0, 400.0), run(50.0, 200.0), run(90.0, 360.0)]);
        let refresh = figures.iter().find(|figure| figure.key == "auth.refresh").unwrap();
        assert!((refresh.value - 90.0).abs() < 1e-9);
        assert!((refresh.ratio.unwrap() - 0.25).abs() < 1e-9);
        assert!((spread_percent(&refresh.ratios)).abs() < 1e-9);
        assert!((refresh.spread_percent - 55.555).abs() < 0.01);
        assert!(figures.iter().any(|figure| figure.key == "raw.pg-commit" && figure.ratio.is_none()));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
