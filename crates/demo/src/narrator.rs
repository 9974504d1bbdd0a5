//! What the watcher sees: a live bar on a terminal, plain lines elsewhere, JSON lines when asked.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

// Where nobody listens any more the demo goes on: its exit status still says what it came to. `println!` would panic.
macro_rules! tell {
    ($($text:tt)*) => {{ let _ = writeln!(io::stdout(), $($text)*); }};
}
macro_rules! complain {
    ($($text:tt)*) => {{ let _ = writeln!(io::stderr(), $($text)*); }};
}

/// Tells of the steps.
pub(crate) struct Narrator {
    mode: Mode,
    begun: Instant,
    current: Option<(String, Instant)>,
    done: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminal,
    Plain,
    Json,
}

struct Step {
    name: String,
    took: Duration,
    outcome: String,
}

impl Narrator {
    pub(crate) fn new(json: bool) -> Self {
        let mode = match (json, io::stdout().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Plain,
        };
        Self { mode, begun: Instant::now(), current: None, done: Vec::new() }
    }

    /// A step begins.
    pub(crate) fn step(&mut self, name: &str) {
        self.current = Some((name.to_owned(), Instant::now()));
        match self.mode {
            Mode::Json => tell!("{}", json!({"event": "step", "name": name})),
            Mode::Terminal | Mode::Plain => tell!("\n▸ {name}"),
        }
    }

    /// Something to know within the step.
    pub(crate) fn say(&self, line: &str) {
        match self.mode {
            Mode::Json => tell!("{}", json!({"event": "note", "text": line})),
            Mode::Terminal | Mode::Plain => tell!("  {line}"),
        }
    }

    /// The step did what it says; `outcome` is what it came to.
    pub(crate) fn done(&mut self, outcome: &str) {
        let Some((name, began)) = self.current.take() else { return };
        let took = began.elapsed();
        match self.mode {
            Mode::Json => tell!(
                "{}",
                json!({"event": "done", "name": name, "seconds": round(took), "outcome": outcome})
            ),
            Mode::Terminal | Mode::Plain => tell!("  ✓ {outcome}  ({:.2} s)", took.as_secs_f64()),
        }
        self.done.push(Step { name, took, outcome: outcome.to_owned() });
    }

    /// A live bar of `length` units.
    pub(crate) fn bar(&self, length: u64) -> Bar {
        let bar = (self.mode == Mode::Terminal).then(|| {
            let bar = ProgressBar::new(length);
            let style = ProgressStyle::with_template("  {bar:32.cyan/blue} {pos:>4}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar
        });
        Bar { mode: self.mode, drawn: bar, length, told: None }
    }

    /// The run failed.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        let step = self.current.as_ref().map_or("start", |(name, _)| name.as_str());
        match self.mode {
            Mode::Json => {
                tell!("{}", json!({"event": "failed", "step": step, "error": format!("{error:#}")}));
            }
            Mode::Terminal | Mode::Plain => complain!("\n✗ {step}: {error:#}"),
        }
    }

    /// What ran, how long it took, where to look next.
    pub(crate) fn summary(&self, next: &[(&str, String)]) {
        if self.mode == Mode::Json {
            let steps: Vec<_> = self
                .done
                .iter()
                .map(|step| json!({"name": step.name, "seconds": round(step.took), "outcome": step.outcome}))
                .collect();
            tell!("{}", json!({"event": "summary", "seconds": round(self.begun.elapsed()), "steps": steps}));
            return;
        }
        let width = self.done.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        tell!("\n{:width$}  seconds  outcome", "step");
        tell!("{}", "─".repeat(width + 60));
        for step in &self.done {
            tell!("{:width$}  {:>7.2}  {}", step.name, step.took.as_secs_f64(), step.outcome);
        }
        tell!("{}", "─".repeat(width + 60));
        tell!("{:width$}  {:>7.2}", "all", self.begun.elapsed().as_secs_f64());
        tell!("\nWhere to look next:");
        for (what, place) in next {
            tell!("  {what:<26} {place}");
        }
    }
}

fn round(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Live progress.
pub(crate) struct Bar {
    mode: Mode,
    drawn: Option<ProgressBar>,
    length: u64,
    told: Option<u64>,
}

impl Bar {
    /// Progress has come to `position`; `message` is the news.
    pub(crate) fn update(&mut self, position: u64, message: &str) {
        match self.mode {
            Mode::Terminal => {
                if let Some(bar) = &self.drawn {
                    bar.set_position(position);
                    bar.set_message(message.to_owned());
                }
            }
            Mode::Json => {
                tell!("{}", json!({"event": "progress", "at": position, "of": self.length, "text": message}));
            }
            // A line for each tenth is news; one for each step would be noise.
            Mode::Plain => {
                let tenth = (position * 10).checked_div(self.length).unwrap_or(0);
                if self.told != Some(tenth) {
                    self.told = Some(tenth);
                    tell!("  {position:>4}/{} {message}", self.length);
                }
            }
        }
    }

    /// The end.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.drawn {
            bar.abandon();
        }
    }
}
