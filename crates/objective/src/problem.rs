//! What a caller asks for: `{"objective": "(x-1)^2", "variables": [{"name": "x", "lower": -5, "upper": 5}],
//! "max_iterations": 100, "seed": 7, "tolerance": 1e-9}`.

use gatehouse_core::{Error, FieldViolation};
use serde::Serialize;
use serde_json::{Map, Value};

use super::grammar;
use super::objective::Objective;

/// Most variables of one problem.
pub const MAX_VARIABLES: usize = 64;
/// Longest name of a variable, in characters.
pub const MAX_NAME_LENGTH: usize = 64;
/// Largest size of a bound: beyond it, differences of bounds lose what they are for.
pub const MAX_BOUND: f64 = 1e150;
/// Largest seed: every JSON reader reads integers up to 2^53 - 1 exactly (RFC 7493, section 2.2).
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// One variable and the closed interval that it is searched in.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// An ASCII identifier, not the name of a function or constant.
    pub name: String,
    /// Smallest value.
    pub lower: f64,
    /// Largest value, greater than `lower`.
    pub upper: f64,
}

/// How many iterations were asked for and how many will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Iterations {
    /// What the request said; absent where it said nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<u64>,
    /// What will run at most.
    pub allowed: u32,
    /// Whether the request asked for more than `MAX_ITERATIONS` and got that instead.
    pub clamped: bool,
}

impl Iterations {
    fn within(requested: Option<u64>, most: u32) -> Self {
        let asked = requested.map_or(most, |asked| u32::try_from(asked).unwrap_or(u32::MAX));
        let clamped = requested.is_some_and(|asked| asked > u64::from(most));
        Self { requested, allowed: asked.min(most), clamped }
    }

    /// What holds for a run that is taken up after iteration `done` and was `told` so many: neither more than that, nor
    /// fewer than ran already.
    #[must_use]
    pub fn taken_up(self, done: u32, told: Option<u32>) -> Self {
        let most = told.map_or(self.allowed, |told| told.min(self.allowed)).max(done);
        Self::within(self.requested, most)
    }
}

/// A problem that can be searched.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The function to minimise.
    pub objective: Objective,
    /// The variables, in the order of the request.
    pub variables: Vec<Variable>,
    /// Bound on the number of iterations.
    pub iterations: Iterations,
    /// Seed of every random choice, if the caller fixed it.
    pub seed: Option<u64>,
    /// The search ends once the values of a generation differ by less than this.
    pub tolerance: f64,
}

impl Problem {
    /// Reads a request, JSON in UTF-8. `max_iterations` is the most that any problem gets.
    ///
    /// # Errors
    /// `InvalidArgument` with reason `INVALID_OPTIMIZE_REQUEST` and one violation for each wrong field.
    pub fn parse(input: &[u8], max_iterations: u32) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(input)
            .map_err(|error| refuse(vec![violation("", format!("it is not valid JSON: {error}"))]))?;
        let mut reader = Reader { violations: Vec::new() };
        let Value::Object(fields) = value else {
            return Err(refuse(vec![violation(
                "",
                "an object with \"objective\" and \"variables\" is expected",
            )]));
        };
        let known = ["objective", "variables", "max_iterations", "seed", "tolerance"];
        reader.refuse_unknown("", &fields, &known);
        let variables = reader.variables(fields.get("variables"));
        let objective = reader.objective(fields.get("objective"), &variables);
        let requested = reader.integer(&fields, "max_iterations", 1, u64::MAX);
        let seed = reader.integer(&fields, "seed", 0, MAX_SEED);
        let tolerance = reader.tolerance(fields.get("tolerance"));
        match objective {
            Some(objective) if reader.violations.is_empty() => {
                let iterations = Iterations::within(requested, max_iterations);
                Ok(Self { objective, variables, iterations, seed, tolerance })
            }
            _ => Err(refuse(reader.violations)),
        }
    }
}

fn refuse(violations: Vec<FieldViolation>) -> Error {
    let first = violations.first().map_or(String::new(), |wrong| {
        if wrong.field.is_empty() {
            wrong.description.clone()
        } else {
            format!("{}: {}", wrong.field, wrong.description)
        }
    });
    let others = match violations.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let error = Error::invalid_argument("INVALID_OPTIMIZE_REQUEST", format!("{first}{others}"));
    violations.into_iter().fold(error, |error, wrong| error.with_violation(wrong.field, wrong.description))
}

fn violation(field: impl Into<String>, description: impl Into<String>) -> FieldViolation {
    FieldViolation { field: field.into(), description: description.into() }
}

struct Reader {
    violations: Vec<FieldViolation>,
}

impl Reader {
    fn wrong(&mut self, field: impl Into<String>, description: impl Into<String>) {
        // A request with a thousand mistakes needs no list of a thousand.
        if self.violations.len() < 16 {
            self.violations.push(violation(field, description));
        }
    }

    fn refuse_unknown(&mut self, path: &str, fields: &Map<String, Value>, known: &[&str]) {
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let shown: String = name.chars().filter(char::is_ascii_graphic).take(32).collect();
            let field = if path.is_empty() { shown } else { format!("{path}.{shown}") };
            self.wrong(field, format!("is unknown; known are {}", known.join(", ")));
        }
    }

    fn objective(&mut self, value: Option<&Value>, variables: &[Variable]) -> Option<Objective> {
        let Some(text) = value.and_then(Value::as_str) else {
            self.wrong("objective", "an expression as a string is required, such as \"(x-1)^2 + y^2\"");
            return None;
        };
        // With the variables unknown, every name would be reported a second time.
        if variables.is_empty() {
            return None;
        }
        let names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
        Objective::parse(text, &names).map_err(|error| self.wrong("objective", error.to_string())).ok()
    }

    fn variables(&mut self, value: Option<&Value>) -> Vec<Variable> {
        let Some(list) = value.and_then(Value::as_array) else {
            self.wrong(
                "variables",
                "a list is required, such as [{\"name\": \"x\", \"lower\": -5, \"upper\": 5}]",
            );
            return Vec::new();
        };
        if list.is_empty() || list.len() > MAX_VARIABLES {
            self.wrong("variables", format!("1 to {MAX_VARIABLES} are allowed, not {}", list.len()));
            return Vec::new();
        }
        let mut variables: Vec<Variable> = Vec::with_capacity(list.len());
        let before = self.violations.len();
        for (index, item) in list.iter().enumerate() {
            let path = format!("variables[{index}]");
            let Some(variable) = self.variable(&path, item) else { continue };
            if variables.iter().any(|other| other.name == variable.name) {
                self.wrong(format!("{path}.name"), format!("{:?} is named twice", variable.name));
            }
            variables.push(variable);
        }
        if self.violations.len() > before { Vec::new() } else { variables }
    }

    fn variable(&mut self, path: &str, value: &Value) -> Option<Variable> {
        let Value::Object(fields) = value else {
            self.wrong(path, "an object with \"name\", \"lower\" and \"upper\" is expected");
            return None;
        };
        self.refuse_unknown(path, fields, &["name", "lower", "upper"]);
        let name = self.name(&format!("{path}.name"), fields.get("name"));
        let lower = self.bound(&format!("{path}.lower"), fields.get("lower"));
        let upper = self.bound(&format!("{path}.upper"), fields.get("upper"));
        let (name, lower, upper) = (name?, lower?, upper?);
        // A subnormal width would make every step a multiple of itself.
        if !(upper > lower && (upper - lower).is_normal()) {
            self.wrong(format!("{path}.upper"), "it must be greater than \"lower\"");
            return None;
        }
        Some(Variable { name, lower, upper })
    }

    fn name(&mut self, path: &str, value: Option<&Value>) -> Option<String> {
        let Some(name) = value.and_then(Value::as_str) else {
            self.wrong(path, "a name as a string is required");
            return None;
        };
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let continues = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !starts || !continues || name.len() > MAX_NAME_LENGTH {
            self.wrong(
                path,
                format!("a name is 1 to {MAX_NAME_LENGTH} of a-z A-Z 0-9 _ and does not start with a digit"),
            );
            return None;
        }
        if grammar::is_reserved(name) {
            self.wrong(path, format!("{name:?} is the name of a function or constant; choose another"));
            return None;
        }
        Some(name.to_owned())
    }

    fn bound(&mut self, path: &str, value: Option<&Value>) -> Option<f64> {
        match value.and_then(Value::as_f64) {
            Some(bound) if bound.abs() <= MAX_BOUND => Some(bound),
            _ => {
                self.wrong(path, format!("a number between {:e} and {MAX_BOUND:e} is required", -MAX_BOUND));
                None
            }
        }
    }

    fn integer(&mut self, fields: &Map<String, Value>, name: &str, least: u64, most: u64) -> Option<u64> {
        let value = fields.get(name)?;
        let found = value.as_u64().filter(|number| (least..=most).contains(number));
        if found.is_none() {
            let range = if most == u64::MAX {
                format!("of {least} or more")
            } else {
                format!("from {least} to {most}")
            };
            self.wrong(name, format!("an integer {range} is expected"));
        }
        found
    }

    fn tolerance(&mut self, value: Option<&Value>) -> f64 {
        const DEFAULT: f64 = 1e-12;
        let Some(value) = value else { return DEFAULT };
        match value.as_f64() {
            Some(tolerance) if (0.0..=1e12).contains(&tolerance) => tolerance,
            _ => {
                self.wrong("tolerance", "a number from 0 to 1e12 is expected");
                DEFAULT
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Problem, Error> {
        Problem::parse(text.as_bytes(), 200)
    }

    #[test]
    fn a_whole_request_is_read() {
        let problem = parse(
            r#"{"objective": "(x-1)^2 + y^2", "variables": [{"name": "x", "lower": -5, "upper": 5},
                {"name": "y", "lower": 0.5, "upper": 2}], "max_iterations": 50, "seed": 7, "tolerance": 1e-6}"#,
        )
        .unwrap();
        assert_eq!(problem.objective.value_at(&[1.0, 2.0]), Some(4.0));
        assert_eq!(problem.iterations, Iterations { requested: Some(50), allowed: 50, clamped: false });
        assert_eq!((problem.seed, problem.tolerance), (Some(7), 1e-6));
    }

    #[test]
    fn iterations_are_clamped_and_the_clamp_is_told() {
        let with = |iterations: &str| {
            let text = format!(
                r#"{{"objective": "x", "variables": [{{"name": "x", "lower": 0, "upper": 1}}]{iterations}}}"#
            );
            parse(&text).unwrap().iterations
        };
        assert_eq!(with(""), Iterations { requested: None, allowed: 200, clamped: false });
        assert!(!with(r#", "max_iterations": 200"#).clamped);
        let clamped = with(r#", "max_iterations": 18446744073709551615"#);
        assert_eq!(clamped, Iterations { requested: Some(u64::MAX), allowed: 200, clamped: true });
    }

    #[test]
    fn a_run_taken_up_keeps_what_was_told_and_what_ran() {
        let taken_up = |requested, most, done, told| {
            let now = Iterations::within(requested, most).taken_up(done, told);
            (now.allowed, now.clamped)
        };
        for (requested, most, done, told, expected) in [
            (Some(1000), 200, 70, Some(200), (200, true)),
            (Some(1000), 10, 70, Some(200), (70, true)),
            (Some(1000), 100, 70, Some(200), (100, true)),
            (Some(1000), 500, 70, Some(200), (200, true)),
            (Some(80), 200, 70, Some(80), (80, false)),
            (Some(80), 10, 70, Some(80), (70, true)),
            (None, 10, 70, Some(200), (70, false)),
            // A checkpoint of before the bound stood in it.
            (Some(1000), 10, 70, None, (70, true)),
            (Some(1000), 200, 70, None, (200, true)),
        ] {
            assert_eq!(
                taken_up(requested, most, done, told),
                expected,
                "{requested:?} {most} {done} {told:?}"
            );
        }
    }

    #[test]
    fn each_wrong_field_is_named_by_its_path() {
        let x = r#"{"name": "x", "lower": 0, "upper": 1}"#;
        let with = |objective: &str, variables: &str, more: &str| {
            format!(r#"{{"objective": {objective}, "variables": {variables}{more}}}"#)
        };
        let ok = format!("[{x}]");
        let many = format!("[{}]", vec![x; 65].join(","));
        for (text, field, words) in [
            ("", "", "not valid JSON"),
            ("[1]", "", "an object"),
            ("{\"objective\": \"x\"", "", "not valid JSON"),
            (&"[".repeat(100_000), "", "not valid JSON"),
            ("{}", "variables", "a list is required"),
            (&with("7", &ok, ""), "objective", "required"),
            (&with("\"x +\"", &ok, ""), "objective", "missing before the end (at character 4)"),
            (&with("\"x + z\"", &ok, ""), "objective", "\"z\" is no variable"),
            (&with("\"x\"", "[]", ""), "variables", "1 to 64"),
            (&with("\"x\"", &many, ""), "variables", "not 65"),
            (&with("\"x\"", "{}", ""), "variables", "a list"),
            (&with("\"x\"", "[3]", ""), "variables[0]", "an object"),
            (&with("\"x\"", &format!("[{x}, {x}]"), ""), "variables[1].name", "named twice"),
            (
                &with("\"x\"", r#"[{"name": "sin", "lower": 0, "upper": 1}]"#, ""),
                "variables[0].name",
                "function",
            ),
            (
                &with("\"x\"", r#"[{"name": "2x", "lower": 0, "upper": 1}]"#, ""),
                "variables[0].name",
                "a name is",
            ),
            (
                &with("\"x\"", r#"[{"name": "х", "lower": 0, "upper": 1}]"#, ""),
                "variables[0].name",
                "a name is",
            ),
            (
                &with("\"x\"", r#"[{"name": "x", "lower": "0", "upper": 1}]"#, ""),
                "variables[0].lower",
                "a number",
            ),
            (&with("\"x\"", r#"[{"name": "x", "lower": 0}]"#, ""), "variables[0].upper", "a number"),
            (
                &with("\"x\"", r#"[{"name": "x", "lower": 1, "upper": 1}]"#, ""),
                "variables[0].upper",
                "greater",
            ),
            (
                &with("\"x\"", r#"[{"name": "x", "lower": 0, "upper": 1e200}]"#, ""),
                "variables[0].upper",
                "1e150",
            ),
            (
                &with("\"x\"", r#"[{"name": "x", "lower": 0, "upper": 5e-324}]"#, ""),
                "variables[0].upper",
                "greater",
            ),
            (
                &with("\"x\"", r#"[{"name": "x", "lower": 0, "upper": 1, "step": 1}]"#, ""),
                "variables[0].step",
                "is unknown",
            ),
            (&with("\"x\"", &ok, r#", "max_iterations": 0"#), "max_iterations", "of 1 or more"),
            (&with("\"x\"", &ok, r#", "max_iterations": 1.5"#), "max_iterations", "integer"),
            (&with("\"x\"", &ok, r#", "max_iterations": -1"#), "max_iterations", "integer"),
            (&with("\"x\"", &ok, r#", "seed": 9007199254740992"#), "seed", "9007199254740991"),
            (&with("\"x\"", &ok, r#", "tolerance": -1"#), "tolerance", "from 0"),
            (&with("\"x\"", &ok, r#", "population": 9"#), "population", "is unknown"),
        ] {
            let error = parse(text).expect_err(text);
            let wrong = error.violations().iter().find(|wrong| wrong.field == field);
            let wrong = wrong.unwrap_or_else(|| panic!("{text}: {error}"));
            assert!(wrong.description.contains(words), "{text}: {wrong:?}");
            assert_eq!(error.reason(), "INVALID_OPTIMIZE_REQUEST");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Problem::parse(&bytes, 10);
        }
    }
}
