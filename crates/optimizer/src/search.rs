//! The search: CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016), one generation a step.
//!
//! Every variable is scaled to `[0, 1]` and folded back at the ends (a point 0.1 beyond a bound is the point 0.1
//! inside it), so no candidate is ever evaluated out of its bounds, and no penalty needs a scale. A candidate
//! whose value is not a finite number ranks behind all others.
//!
//! The state of the library's strategy can't be stored, but a run is settled by problem and seed alone. So a
//! checkpoint is the seed, the number of finished iterations, the bound on them and the best so far; taking up again
//! runs those iterations once more, in a fraction of a second, without telling anyone.

use std::collections::BTreeMap;

use cmaes::{CMAES, CMAESOptions, DVector, TerminationReason};
use gatehouse_core::Error;
use gatehouse_objective::{Iterations, Objective, Problem, Variable};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

/// Points tried before the first iteration, to start where the objective has a value at all.
const PROBES: usize = 256;
/// The first standard deviation, as a part of each variable's interval.
const INITIAL_STEP: f64 = 0.3;

/// The best point so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The objective there; finite.
    pub value: f64,
    /// The variables there, each within its bounds.
    pub point: BTreeMap<String, f64>,
}

/// What one iteration tells the world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Number of this iteration, from 1.
    pub iteration: u32,
    /// How many were asked for and how many will run at most.
    pub iterations: Iterations,
    /// How often the objective has been evaluated.
    pub evaluations: u64,
    /// The best point so far.
    pub best: Best,
    /// The strategy's standard deviation, as a part of the variables' intervals: how far it still looks around.
    pub spread: f64,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// All allowed iterations ran.
    MaxIterations,
    /// The values of a generation no longer differ by the tolerance, or the steps became that small.
    Converged,
    /// Doubles can't tell the candidates apart any more, or the search no longer improves.
    Stagnated,
}

/// The result of a finished search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The best point found.
    pub best: Best,
    /// Why the search ended.
    pub stopped: Stop,
    /// How many iterations ran.
    pub iteration: u32,
    /// How many were asked for and how many were allowed.
    pub iterations: Iterations,
    /// How often the objective was evaluated.
    pub evaluations: u64,
    /// The seed: with it, the same request gives the same result.
    pub seed: u64,
}

/// What a later attempt needs to go on where this one is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The seed of the run.
    pub seed: u64,
    /// Finished iterations.
    pub iteration: u32,
    /// How many iterations were allowed; absent in a checkpoint of before this was kept.
    #[serde(default)]
    pub allowed: Option<u32>,
    /// The best point so far.
    pub best: Best,
}

/// A running search.
pub struct Search {
    strategy: Box<CMAES<Evaluator>>,
    variables: Vec<Variable>,
    iterations: Iterations,
    seed: u64,
    iteration: u32,
    best: Best,
    stopped: Option<Stop>,
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search")
            .field("seed", &self.seed)
            .field("iteration", &self.iteration)
            .field("best", &self.best)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

struct Evaluator {
    objective: Objective,
    variables: Vec<Variable>,
}

/// Stands for "no finite value": ranks last, and unlike an infinity or NaN the strategy can average it.
const NO_VALUE: f64 = f64::MAX;

impl cmaes::ObjectiveFunction for Evaluator {
    fn evaluate(&mut self, scaled: &DVector<f64>) -> f64 {
        let point = unscale(&self.variables, scaled.as_slice());
        self.objective.value_at(&point).unwrap_or(NO_VALUE)
    }
}

/// From the strategy's space to the caller's, folding what lies outside `[0, 1]` back in.
fn unscale(variables: &[Variable], scaled: &[f64]) -> Vec<f64> {
    let point = variables.iter().zip(scaled).map(|(variable, at)| {
        let within = at.rem_euclid(2.0);
        let folded = if within > 1.0 { 2.0 - within } else { within };
        // Rounding may leave the interval by a unit in the last place; NaN would be no place at all.
        let value = variable.lower + folded * (variable.upper - variable.lower);
        if value.is_nan() { variable.lower } else { value.clamp(variable.lower, variable.upper) }
    });
    point.collect()
}

fn named(variables: &[Variable], point: &[f64]) -> BTreeMap<String, f64> {
    variables.iter().map(|variable| variable.name.clone()).zip(point.iter().copied()).collect()
}

impl Search {
    /// Begins at iteration 0. The same problem and seed give the same run, every time.
    ///
    /// # Errors
    /// `FailedPrecondition`, reason `OBJECTIVE_NOT_FINITE`, if none of the points tried has a finite value.
    pub fn start(problem: &Problem, seed: u64) -> Result<Self, Error> {
        let variables = problem.variables.clone();
        let (start, best) = probe(problem, seed)?;
        let evaluator = Evaluator { objective: problem.objective.clone(), variables: variables.clone() };
        let strategy = CMAESOptions::new(start, INITIAL_STEP)
            .seed(seed)
            .tol_fun(problem.tolerance)
            .tol_fun_hist(problem.tolerance)
            .build(evaluator)
            .map_err(|error| Error::internal(format!("the strategy refused its options: {error:?}")))?;
        let iterations = problem.iterations;
        let strategy = Box::new(strategy);
        Ok(Self { strategy, variables, iterations, seed, iteration: 0, best, stopped: None })
    }

    /// Runs one iteration, unless the search has ended.
    pub fn step(&mut self) -> Progress {
        if self.stopped.is_none() {
            let ended = self.strategy.next();
            self.iteration += 1;
            if let Some(found) = self.strategy.current_best_individual()
                && found.value < self.best.value
            {
                let point = unscale(&self.variables, found.point.as_slice());
                self.best = Best { value: found.value, point: named(&self.variables, &point) };
            }
            self.stopped = match ended {
                Some(data) => Some(stop_of(&data.reasons)),
                None if self.iteration >= self.iterations.allowed => Some(Stop::MaxIterations),
                None => None,
            };
        }
        self.progress()
    }

    fn progress(&self) -> Progress {
        let spread = self.strategy.sigma();
        Progress {
            iteration: self.iteration,
            iterations: self.iterations,
            evaluations: self.evaluations(),
            best: self.best.clone(),
            spread: if spread.is_finite() { spread } else { f64::MAX },
        }
    }

    fn evaluations(&self) -> u64 {
        (PROBES + self.strategy.function_evals()) as u64
    }

    /// Finished iterations.
    #[must_use]
    pub fn iteration(&self) -> u32 {
        self.iteration
    }

    /// Why the search ended, once it has.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// The result, once the search has ended.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.stopped.map(|stopped| Outcome {
            best: self.best.clone(),
            stopped,
            iteration: self.iteration,
            iterations: self.iterations,
            evaluations: self.evaluations(),
            seed: self.seed,
        })
    }

    /// Where a later attempt can go on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            seed: self.seed,
            iteration: self.iteration,
            allowed: Some(self.iterations.allowed),
            best: self.best.clone(),
        }
    }

    /// Takes over a best point that an earlier attempt reported, if it is better. It differs from what was
    /// replayed only where the earlier attempt ran on a machine whose sines round otherwise.
    pub fn adopt(&mut self, best: Best) {
        if best.value < self.best.value {
            self.best = best;
        }
    }
}

/// Where to start: the middle of all intervals, or, where the objective has no value there, the best of some
/// points spread over the whole box.
fn probe(problem: &Problem, seed: u64) -> Result<(Vec<f64>, Best), Error> {
    let mut chance = ChaCha12Rng::seed_from_u64(seed);
    let count = problem.variables.len();
    let middle = vec![0.5; count];
    let spread = std::iter::repeat_with(|| (0..count).map(|_| chance.random::<f64>()).collect::<Vec<_>>());
    let mut start = None;
    let mut best: Option<Best> = None;
    let mut best_scaled = middle.clone();
    for (index, scaled) in std::iter::once(middle.clone()).chain(spread).take(PROBES).enumerate() {
        let point = unscale(&problem.variables, &scaled);
        let Some(value) = problem.objective.value_at(&point) else { continue };
        if index == 0 {
            start = Some(middle.clone());
        }
        if best.as_ref().is_none_or(|best| value < best.value) {
            best = Some(Best { value, point: named(&problem.variables, &point) });
            best_scaled = scaled;
        }
    }
    match best {
        Some(best) => Ok((start.unwrap_or(best_scaled), best)),
        None => Err(Error::failed_precondition(
            "OBJECTIVE_NOT_FINITE",
            format!(
                "The objective gave no finite number at any of {PROBES} points within the bounds: check it for \
                 logarithms or roots of negative numbers, divisions by zero and overflow, or narrow the bounds."
            ),
        )),
    }
}

fn stop_of(reasons: &[TerminationReason]) -> Stop {
    let converged = [
        TerminationReason::TolFun,
        TerminationReason::TolFunHist,
        TerminationReason::TolX,
        TerminationReason::TolFunRel,
    ];
    if reasons.iter().any(|reason| converged.contains(reason)) { Stop::Converged } else { Stop::Stagnated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(objective: &str, variables: &[(&str, f64, f64)], iterations: u32) -> Problem {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, lower, upper)| serde_json::json!({"name": name, "lower": lower, "upper": upper}))
            .collect();
        let input = serde_json::json!({"objective": objective, "variables": variables});
        Problem::parse(input.to_string().as_bytes(), iterations).unwrap()
    }

    fn finish(mut search: Search) -> Outcome {
        while search.stopped().is_none() {
            search.step();
        }
        search.outcome().unwrap()
    }

    #[test]
    fn known_minima_are_found() {
        let box5: &[(&str, f64, f64)] = &[("x", -5.0, 5.0), ("y", -5.0, 5.0)];
        for (objective, variables, expected, near) in [
            ("(x-1)^2 + (y+2)^2", box5, 0.0, &[("x", 1.0), ("y", -2.0)][..]),
            ("(1-x)^2 + 100*(y-x^2)^2", box5, 0.0, &[("x", 1.0), ("y", 1.0)]),
            (
                "-20*exp(-0.2*sqrt(0.5*(x^2+y^2))) - exp(0.5*(cos(2*pi*x)+cos(2*pi*y))) + e + 20",
                box5,
                0.0,
                &[("x", 0.0), ("y", 0.0)],
            ),
            ("x + y", box5, -10.0, &[("x", -5.0), ("y", -5.0)]),
            ("(x-3)^2", &[("x", 0.0, 10.0)], 0.0, &[("x", 3.0)]),
            ("ln(x) + y^2", &[("x", -1.0, 1.0), ("y", -1e6, 2e6)], f64::NEG_INFINITY, &[]),
            ("(x-1e-3)^2*1e12", &[("x", 0.0, 1.0)], 0.0, &[("x", 1e-3)]),
        ] {
            let outcome = finish(Search::start(&problem(objective, variables, 500), 7).unwrap());
            assert!(
                outcome.best.value <= expected + 1e-8 || expected.is_infinite(),
                "{objective}: {outcome:?}"
            );
            for (name, place) in near {
                assert!((outcome.best.point[*name] - place).abs() < 1e-4, "{objective}: {outcome:?}");
            }
        }
    }

    #[test]
    fn every_number_of_variables_works() {
        for count in (1..=64).step_by(7) {
            let names: Vec<String> = (0..count).map(|index| format!("x{index}")).collect();
            let variables: Vec<_> = names.iter().map(|name| (name.as_str(), -3.0, 4.0)).collect();
            let sum = names.iter().map(|name| format!("({name}-1)^2")).collect::<Vec<_>>().join("+");
            let outcome = finish(Search::start(&problem(&sum, &variables, 40), 3).unwrap());
            let count = f64::from(count);
            assert!(outcome.best.value < 6.0 * count, "{count} variables: {}", outcome.best.value);
        }
    }

    #[test]
    fn no_candidate_leaves_its_bounds() {
        let variables = [Variable { name: "x".into(), lower: -0.1, upper: 0.3 }];
        for at in [-1e300, -2.5, -1.0, -1e-17, 0.0, 0.3, 1.0, 1.1, 7.7, 1e300, f64::INFINITY, f64::NAN] {
            let value = unscale(&variables, &[at])[0];
            assert!((-0.1..=0.3).contains(&value), "{at} became {value}");
        }
        assert!((unscale(&variables, &[1.25])[0] - 0.2).abs() < 1e-15);
    }

    #[test]
    fn one_step_is_one_iteration_and_the_best_never_worsens() {
        let mut search = Search::start(&problem("x^2 + sin(9*x)", &[("x", -5.0, 5.0)], 30), 1).unwrap();
        let mut before = f64::INFINITY;
        for iteration in 1.. {
            let progress = search.step();
            assert_eq!(progress.iteration, iteration);
            assert!(progress.best.value <= before);
            before = progress.best.value;
            if search.stopped().is_some() {
                break;
            }
        }
        assert!(search.iteration() <= 30);
        let ended = search.outcome();
        search.step();
        assert_eq!(search.outcome(), ended, "a finished search does not move");
    }

    #[test]
    fn a_run_taken_up_from_a_checkpoint_equals_an_unbroken_one() {
        let problem =
            problem("(1-x)^2 + 100*(y-x^2)^2 + sin(5*x)", &[("x", -5.0, 5.0), ("y", -5.0, 5.0)], 60);
        let mut unbroken = Search::start(&problem, 11).unwrap();
        let all: Vec<Progress> = (0..60).map(|_| unbroken.step()).collect();
        for cut in [0, 1, 17, 59] {
            let mut first = Search::start(&problem, 11).unwrap();
            (0..cut).for_each(|_| drop(first.step()));
            let stored = serde_json::to_string(&first.checkpoint()).unwrap();
            let checkpoint: Checkpoint = serde_json::from_str(&stored).unwrap();
            let mut second = Search::start(&problem, checkpoint.seed).unwrap();
            while second.iteration() < checkpoint.iteration {
                second.step();
            }
            second.adopt(checkpoint.best);
            let rest: Vec<Progress> = (cut..60).map(|_| second.step()).collect();
            assert_eq!(rest, all[usize::try_from(cut).unwrap()..], "cut after {cut}");
            assert_eq!(second.outcome(), unbroken.outcome());
        }
    }

    #[test]
    fn a_checkpoint_without_a_bound_is_of_before_and_is_read() {
        let stored = r#"{"seed":7,"iteration":70,"best":{"value":0.5,"point":{"x":1.0}}}"#;
        let checkpoint: Checkpoint = serde_json::from_str(stored).unwrap();
        assert_eq!((checkpoint.iteration, checkpoint.allowed), (70, None));
    }

    #[test]
    fn an_objective_without_any_value_is_refused_clearly() {
        for objective in ["ln(-1 - x^2)", "1/(x-x)", "sqrt(x - 100)", "exp(1000 + x)*x - exp(1000)"] {
            let error = Search::start(&problem(objective, &[("x", 0.0, 5.0)], 10), 1).unwrap_err();
            assert_eq!(error.reason(), "OBJECTIVE_NOT_FINITE", "{objective}");
        }
    }

    #[test]
    fn awkward_objectives_end_without_harm() {
        for objective in [
            "ln(x)",
            "1/x",
            "-1/abs(x)",
            "x*1e308",
            "-exp(700*x)",
            "0*x",
            "floor(x)",
            "sign(x)",
            "1e-320*x^2",
            "sqrt(x - 4.9)",
            "ln(sin(1000*x))",
            "x^x",
            "max(x, 1e308)",
        ] {
            for seed in 0..3 {
                let outcome =
                    finish(Search::start(&problem(objective, &[("x", -5.0, 5.0)], 300), seed).unwrap());
                assert!(outcome.best.value.is_finite(), "{objective}: {outcome:?}");
                assert!(serde_json::to_string(&outcome).unwrap().len() < 500);
            }
        }
    }

    #[test]
    fn a_search_ends_at_its_bound_on_iterations() {
        let outcome = finish(Search::start(&problem("x^2", &[("x", -5.0, 4.0)], 3), 1).unwrap());
        assert_eq!((outcome.iteration, outcome.stopped), (3, Stop::MaxIterations));
        let flat = finish(Search::start(&problem("0*x", &[("x", -5.0, 4.0)], 100_000), 1).unwrap());
        assert_eq!(flat.stopped, Stop::Converged);
    }
}
