//! An objective ready to be evaluated.

use exmex::{BinOp, Express, FlatEx, MakeOperators, NumberMatcher, Operator};

use super::grammar::{self, BINARY, GrammarError, UNARY};

/// The operators of the grammar, and no others. Priorities are equal because the text given to the library has
/// every parenthesis written out.
#[derive(Clone, Debug)]
struct Operators;

impl MakeOperators<f64> for Operators {
    fn make<'a>() -> Vec<Operator<'a, f64>> {
        let plain = |apply: fn(f64, f64) -> f64| BinOp { apply, prio: 0, is_commutative: false };
        let mut operators = vec![
            Operator::make_bin("+", plain(|a, b| a + b)),
            Operator::make_bin_unary("-", plain(|a, b| a - b), |a| -a),
            Operator::make_bin("*", plain(|a, b| a * b)),
            Operator::make_bin("/", plain(|a, b| a / b)),
            Operator::make_bin("^", plain(f64::powf)),
        ];
        operators.extend(UNARY.iter().map(|(name, apply)| Operator::make_unary(name, *apply)));
        let two = BINARY.iter().filter(|(name, _)| *name != "pow");
        operators.extend(two.map(|(name, apply)| Operator::make_bin(name, plain(*apply))));
        operators
    }
}

/// A parsed objective over variables that are known by their place.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Boxed: the library keeps small expressions in the value itself, which makes it tens of KiB large.
    expression: Box<FlatEx<f64, Operators, NumberMatcher>>,
    /// For each variable that the expression mentions, in the library's order, its place in the request.
    mentioned: Vec<usize>,
}

impl Objective {
    /// Parses `text` over variables called `names`, in this order.
    ///
    /// # Errors
    /// See [`grammar::write_out`]. An objective that mentions no variable at all is refused too.
    pub fn parse(text: &str, names: &[&str]) -> Result<Self, GrammarError> {
        let written = grammar::write_out(text, names)?;
        let refuse = |problem: String| GrammarError { column: 1, problem };
        let expression = FlatEx::<f64, Operators, NumberMatcher>::parse_wo_compile(&written)
            .map_err(|error| refuse(format!("it could not be read: {}", error.msg())))?;
        let mentioned = expression
            .var_names()
            .iter()
            .map(|name| name.trim_start_matches('v').parse::<usize>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| refuse("it could not be read".to_owned()))?;
        if mentioned.is_empty() {
            return Err(refuse(
                "it mentions none of the variables, so there is nothing to search".to_owned(),
            ));
        }
        Ok(Self { expression: Box::new(expression), mentioned })
    }

    /// The value at `point`, one coordinate for each variable of the request. `None` where it has no finite value:
    /// a logarithm of a negative number, a division by zero, an overflow.
    #[must_use]
    pub fn value_at(&self, point: &[f64]) -> Option<f64> {
        let arguments: Option<Vec<f64>> =
            self.mentioned.iter().map(|place| point.get(*place).copied()).collect();
        self.expression.eval(&arguments?).ok().filter(|value| value.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::grammar::{MAX_DEPTH, MAX_LENGTH};

    fn value(text: &str) -> Option<f64> {
        Objective::parse(text, &["x", "y", "x1", "sinx"]).unwrap().value_at(&[2.0, 3.0, 5.0, 7.0])
    }

    #[test]
    fn an_expression_means_what_mathematics_means() {
        for (text, expected) in [
            ("-x^2", -4.0),
            ("2^-x", 0.25),
            ("2^x^y", 256.0),
            ("-x^-y", -0.125),
            ("--x", 2.0),
            ("x - -y", 5.0),
            ("x-y-1", -2.0),
            ("x/y/2", 1.0 / 3.0),
            ("12/x*y", 18.0),
            ("12*x/y", 8.0),
            ("x**2 + y ** 2", 13.0),
            ("(x-1)^2 + (y+2)^2", 26.0),
            ("max(x, y) - min(x, y)", 1.0),
            ("pow(x, y) + hypot(3, 2*x)", 13.0),
            ("atan2(0*x, 1)", 0.0),
            ("sin(0*x) + cos(0*y)", 1.0),
            ("1e1*x + 1.5e-1 + .5 + 1.", 21.65),
            ("x1 + sinx + x", 14.0),
            ("ln(e^x) + log10(1000) + log2(8)", 8.0),
            ("2*pi*x - tau*x", 0.0),
            ("abs(-(x+y))*-1", -5.0),
            ("-sin(-(x-2)) + sqrt(4)*sign(x)", 2.0),
            ("1e300*x", 2e300),
        ] {
            let found = value(text).unwrap();
            assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{text}: {found}");
        }
    }

    #[test]
    fn what_has_no_finite_value_is_none() {
        for text in ["ln(-x)", "1/(x-2)", "0/(x-2)", "exp(1e3*x)", "sqrt(1-x)", "-1/(x-2)", "acos(x)"] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn each_wrong_objective_is_refused_with_its_place() {
        for (text, column, words) in [
            ("", 1, "missing before the end"),
            ("   ", 4, "missing before the end"),
            ("x +", 4, "missing before the end"),
            ("x + * y", 5, "missing before '*'"),
            ("2x", 2, "operator is missing before \"x\""),
            ("x y", 3, "operator is missing"),
            ("(x", 3, "')' is missing"),
            ("x)", 2, "without its '('"),
            ("x(y)", 2, "is a variable"),
            ("sin x", 5, "write sin(…)"),
            ("sin(x, y)", 6, "takes one argument"),
            ("min(x)", 6, "takes two arguments"),
            ("max(x, y, 1)", 9, "takes two arguments"),
            ("()", 2, "missing before ')'"),
            ("sin()", 5, "missing before ')'"),
            ("x, y", 2, "outside a function"),
            ("z + x", 1, "no variable"),
            ("X + y", 1, "did you mean \"x\"?"),
            ("import(os)", 1, "no variable"),
            ("x; y", 2, "has no meaning"),
            ("{x}", 1, "has no meaning"),
            ("x == y", 3, "has no meaning"),
            ("é + x", 1, "has no meaning"),
            ("x + é", 5, "has no meaning"),
            ("x\0", 2, "has no meaning"),
            ("1.2.3 * x", 4, "operator is missing"),
            (".", 1, "not a number"),
            ("1e999 * x", 1, "not a number"),
            ("2e * x", 2, "operator is missing"),
            ("1 + 2", 1, "mentions none"),
        ] {
            let error = Objective::parse(text, &["x", "y"]).expect_err(text);
            assert_eq!(error.column, column, "{text:?}: {error}");
            assert!(error.problem.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn hostile_sizes_are_refused_before_they_cost_anything() {
        let nested =
            |open: &str, close: &str, times: usize| format!("{}x{}", open.repeat(times), close.repeat(times));
        for text in [
            nested("(", ")", MAX_LENGTH / 2 - 1),
            nested("-", "", MAX_LENGTH - 1),
            nested("sin(", ")", 800),
            nested("x^", "", 2000),
            nested("2^-(", ")", 500),
            format!("{}x", "x+".repeat(2047)),
            "x+".repeat(10_000_000),
            "(".repeat(4096),
            ",".repeat(4096),
        ] {
            assert!(Objective::parse(&text, &["x"]).is_err(), "{}… was accepted", &text[..20]);
        }
        let within = MAX_DEPTH - 1;
        assert!(Objective::parse(&nested("(", ")", within), &["x"]).is_ok());
        assert!(Objective::parse(&nested("(", ")", MAX_DEPTH), &["x"]).is_err());
        let wide = format!("{}x", "(x-1e308)^2+".repeat(250));
        let objective = Objective::parse(&wide, &["x"]).unwrap();
        assert_eq!(objective.value_at(&[0.0]), None);
    }

    /// What the text should mean, computed without the library.
    #[derive(Clone, Debug)]
    enum Tree {
        Number(f64),
        Variable(usize),
        Negated(Box<Tree>),
        Function(usize, Box<Tree>),
        Operation(u8, Box<Tree>, Box<Tree>),
    }

    impl Tree {
        fn text(&self) -> String {
            match self {
                Self::Number(value) => value.to_string(),
                Self::Variable(place) => ["x", "y"][*place].to_owned(),
                Self::Negated(inner) => format!("-({})", inner.text()),
                Self::Function(index, inner) => format!("{}({})", UNARY[*index].0, inner.text()),
                Self::Operation(operator, left, right) => match operator {
                    0 => format!("{} + ({})", left.text(), right.text()),
                    1 => format!("({}) - ({})", left.text(), right.text()),
                    2 => format!("({}) * ({})", left.text(), right.text()),
                    3 => format!("({}) / ({})", left.text(), right.text()),
                    4 => format!("({}) ^ ({})", left.text(), right.text()),
                    5 => format!("max({}, {})", left.text(), right.text()),
                    _ => format!("hypot({}, {})", left.text(), right.text()),
                },
            }
        }

        fn value(&self, point: [f64; 2]) -> f64 {
            match self {
                Self::Number(value) => *value,
                Self::Variable(place) => point[*place],
                Self::Negated(inner) => -inner.value(point),
                Self::Function(index, inner) => UNARY[*index].1(inner.value(point)),
                Self::Operation(operator, left, right) => {
                    let (left, right) = (left.value(point), right.value(point));
                    match operator {
                        0 => left + right,
                        1 => left - right,
                        2 => left * right,
                        3 => left / right,
                        4 => left.powf(right),
                        5 => left.max(right),
                        _ => left.hypot(right),
                    }
                }
            }
        }
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![(0.0..100.0).prop_map(Tree::Number), (0..2usize).prop_map(Tree::Variable),];
        leaf.prop_recursive(6, 120, 2, |inner| {
            prop_oneof![
                inner.clone().prop_map(|tree| Tree::Negated(Box::new(tree))),
                (0..UNARY.len(), inner.clone())
                    .prop_map(|(index, tree)| Tree::Function(index, Box::new(tree))),
                (0..7u8, inner.clone(), inner).prop_map(|(op, left, right)| Tree::Operation(
                    op,
                    Box::new(left),
                    Box::new(right)
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_library_computes_what_the_grammar_means(tree in trees(), x in -5.0..5.0, y in -5.0..5.0) {
            let text = format!("0*x + ({})", tree.text());
            let expected = Some(0.0 * x + tree.value([x, y])).filter(|value: &f64| value.is_finite());
            let found = Objective::parse(&text, &["x", "y"]).unwrap().value_at(&[x, y]);
            prop_assert_eq!(found, expected, "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ -~é\\n]{0,80}") {
            let _ = Objective::parse(&text, &["x", "y"]);
        }

        #[test]
        fn no_text_of_its_own_alphabet_makes_it_panic(
            parts in proptest::collection::vec(
                prop_oneof!["x", "y", "sin", "min", "\\(", "\\)", ",", "\\+", "-", "\\^", "e", "1", "\\.", "2e3"],
                0..40,
            )
        ) {
            let _ = Objective::parse(&parts.concat(), &["x", "y"]);
        }
    }
}
