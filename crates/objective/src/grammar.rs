//! What an objective may look like, and its one meaning.
//!
//! ```text
//! sum     = product { ("+" | "-") product }
//! product = sign { ("*" | "/") sign }
//! sign    = { "+" | "-" } power
//! power   = atom [ ("^" | "**") sign ]                 -2^2 = -4, 2^-1 = 0.5, 2^3^2 = 2^9
//! atom    = number | name | function "(" sum { "," sum } ")" | "(" sum ")"
//! ```
//!
//! The expression library evaluates but does not guard: it binds a sign tighter than a power (`-x^2` would
//! mean `(-x)^2`), reads `a^b^c` from the left, takes any unknown name for a variable and knows no limits. So
//! this pass reads the text first, within bounds on length, depth and size, and hands the library a form with
//! every parenthesis written out and every variable as its number.

use std::fmt::Write as _;

/// Longest objective, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// Deepest nesting of parentheses, signs and powers. Reading recurses at most this deep.
pub const MAX_DEPTH: usize = 64;
/// Most numbers, names and operators in one objective.
pub const MAX_NODES: usize = 1024;

type Unary = (&'static str, fn(f64) -> f64);
type Binary = (&'static str, fn(f64, f64) -> f64);

/// Functions of one argument, by the name that the expression library is given too.
pub(crate) const UNARY: &[Unary] = &[
    ("abs", f64::abs),
    ("acos", f64::acos),
    ("asin", f64::asin),
    ("atan", f64::atan),
    ("cbrt", f64::cbrt),
    ("ceil", f64::ceil),
    ("cos", f64::cos),
    ("cosh", f64::cosh),
    ("exp", f64::exp),
    ("floor", f64::floor),
    ("ln", f64::ln),
    ("log", f64::ln),
    ("log10", f64::log10),
    ("log2", f64::log2),
    ("round", f64::round),
    ("sign", f64::signum),
    ("sin", f64::sin),
    ("sinh", f64::sinh),
    ("sqrt", f64::sqrt),
    ("tan", f64::tan),
    ("tanh", f64::tanh),
];

/// Functions of two arguments.
pub(crate) const BINARY: &[Binary] =
    &[("atan2", f64::atan2), ("hypot", f64::hypot), ("max", f64::max), ("min", f64::min), ("pow", f64::powf)];

/// Named numbers.
pub(crate) const CONSTANTS: &[(&str, f64)] =
    &[("e", std::f64::consts::E), ("pi", std::f64::consts::PI), ("tau", std::f64::consts::TAU)];

/// Whether `name` means something of its own and can't name a variable.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    UNARY.iter().any(|(reserved, _)| *reserved == name)
        || BINARY.iter().any(|(reserved, _)| *reserved == name)
        || CONSTANTS.iter().any(|(reserved, _)| *reserved == name)
}

/// The text is not an objective.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at character {column})")]
pub struct GrammarError {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What is wrong and what would be right, in one sentence without its full stop.
    pub problem: String,
}

/// Reads `text` as an objective over `names` and writes it out for the expression library: parentheses around
/// everything, variable `i` as `{v<i, two digits>}`.
///
/// # Errors
/// The first thing in the text that the grammar or a bound does not allow.
pub fn write_out(text: &str, names: &[&str]) -> Result<String, GrammarError> {
    if text.len() > MAX_LENGTH {
        return Err(GrammarError {
            column: 1,
            problem: format!("it is {} bytes long and may be {MAX_LENGTH}", text.len()),
        });
    }
    let mut reader = Reader { tokens: tokens(text)?, next: 0, depth: 0, names };
    let written = reader.sum()?;
    match reader.peek() {
        Token::End => Ok(written),
        found => Err(reader.error(match found {
            Token::Close => "there is a ')' without its '('".to_owned(),
            Token::Comma => "there is a ',' outside a function's arguments".to_owned(),
            other => {
                let name = describe(other);
                format!("an operator is missing before {name}; write '*' to multiply")
            }
        })),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Number(f64),
    Name(&'a str),
    Operator(char),
    Open,
    Close,
    Comma,
    End,
}

fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, GrammarError> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let column = text[..at].chars().count() + 1;
        let rest = &text[at..];
        let (token, length) = match first {
            ' ' | '\t' | '\n' | '\r' => {
                at += 1;
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '*' if rest.starts_with("**") => (Token::Operator('^'), 2),
            '+' | '-' | '*' | '/' | '^' => (Token::Operator(first), 1),
            '0'..='9' | '.' => number(rest, column)?,
            'a'..='z' | 'A'..='Z' | '_' => {
                let length =
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Token::Name(&rest[..length]), length)
            }
            other => {
                return Err(GrammarError {
                    column,
                    problem: format!(
                        "{other:?} has no meaning here; use numbers, names, + - * / ^ ( ) and commas"
                    ),
                });
            }
        };
        found.push((column, token));
        if found.len() > 4 * MAX_NODES {
            return Err(GrammarError { column, problem: "it has too many parts".to_owned() });
        }
        at += length;
    }
    found.push((text.chars().count() + 1, Token::End));
    Ok(found)
}

/// Digits with at most one point, then perhaps an exponent. `2e` is the number 2 beside the constant `e`, which
/// the grammar then refuses; `2e3` is 2000.
fn number(rest: &str, column: usize) -> Result<(Token<'_>, usize), GrammarError> {
    let bytes = rest.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    let text = &rest[..end];
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((Token::Number(value), end)),
        _ => Err(GrammarError {
            column,
            problem: format!("{:?} is not a number in the range of a double", shorten(text)),
        }),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(32).collect()
}

fn describe(token: Token<'_>) -> String {
    match token {
        Token::Number(value) => format!("the number {value}"),
        Token::Name(name) => format!("{:?}", shorten(name)),
        Token::Operator(operator) => format!("'{operator}'"),
        Token::Open => "'('".to_owned(),
        Token::Close => "')'".to_owned(),
        Token::Comma => "','".to_owned(),
        Token::End => "the end".to_owned(),
    }
}

struct Reader<'a> {
    tokens: Vec<(usize, Token<'a>)>,
    next: usize,
    depth: usize,
    names: &'a [&'a str],
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.next).map_or(Token::End, |(_, token)| *token)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn error(&self, problem: impl Into<String>) -> GrammarError {
        let last = self.tokens.last().map_or(1, |(column, _)| *column);
        let column = self.tokens.get(self.next).map_or(last, |(column, _)| *column);
        GrammarError { column, problem: problem.into() }
    }

    fn deeper(&mut self) -> Result<(), GrammarError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("it is nested more than {MAX_DEPTH} deep")));
        }
        self.bounded()
    }

    fn bounded(&self) -> Result<(), GrammarError> {
        if self.next > MAX_NODES * 3 {
            return Err(self.error("it has too many parts"));
        }
        Ok(())
    }

    fn sum(&mut self) -> Result<String, GrammarError> {
        self.deeper()?;
        let mut left = self.product()?;
        while let Token::Operator(operator @ ('+' | '-')) = self.peek() {
            self.take();
            let right = self.product()?;
            left = format!("({left}{operator}{right})");
        }
        self.depth -= 1;
        Ok(left)
    }

    fn product(&mut self) -> Result<String, GrammarError> {
        let mut left = self.sign()?;
        while let Token::Operator(operator @ ('*' | '/')) = self.peek() {
            self.take();
            let right = self.sign()?;
            left = format!("({left}{operator}{right})");
        }
        Ok(left)
    }

    fn sign(&mut self) -> Result<String, GrammarError> {
        self.bounded()?;
        let Token::Operator(sign @ ('+' | '-')) = self.peek() else { return self.power() };
        self.take();
        self.deeper()?;
        let signed = self.sign()?;
        self.depth -= 1;
        Ok(if sign == '-' { format!("(-{signed})") } else { signed })
    }

    fn power(&mut self) -> Result<String, GrammarError> {
        let base = self.atom()?;
        if self.peek() == Token::Operator('^') {
            self.take();
            self.deeper()?;
            let exponent = self.sign()?;
            self.depth -= 1;
            return Ok(format!("({base}^{exponent})"));
        }
        Ok(base)
    }

    fn atom(&mut self) -> Result<String, GrammarError> {
        let missing = |found| format!("a number, a variable or '(' is missing before {}", describe(found));
        match self.peek() {
            Token::Number(value) => {
                self.take();
                // Never an exponent, and it reads back as the same double: what the library's literals need.
                Ok(value.to_string())
            }
            Token::Open => {
                self.take();
                let inner = self.sum()?;
                self.close()?;
                Ok(inner)
            }
            Token::Name(name) => self.name(name),
            found @ (Token::Operator(_) | Token::Close | Token::Comma | Token::End) => {
                Err(self.error(missing(found)))
            }
        }
    }

    fn name(&mut self, name: &'a str) -> Result<String, GrammarError> {
        let arity = if UNARY.iter().any(|(known, _)| *known == name) {
            1
        } else if BINARY.iter().any(|(known, _)| *known == name) {
            2
        } else {
            return self.value(name);
        };
        self.take();
        if self.peek() != Token::Open {
            return Err(self.error(format!("{name} is a function: write {name}(…)")));
        }
        self.take();
        let first = self.sum()?;
        let written = if arity == 1 {
            format!("{name}({first})")
        } else {
            if self.peek() != Token::Comma {
                return Err(self.error(format!("{name} takes two arguments, separated by a comma")));
            }
            self.take();
            let second = self.sum()?;
            let operator = if name == "pow" { "^" } else { name };
            format!("({first} {operator} {second})")
        };
        if self.peek() == Token::Comma {
            let count = if arity == 1 { "one argument" } else { "two arguments" };
            return Err(self.error(format!("{name} takes {count}")));
        }
        self.close()?;
        Ok(written)
    }

    fn value(&mut self, name: &str) -> Result<String, GrammarError> {
        if let Some((_, value)) = CONSTANTS.iter().find(|(known, _)| *known == name) {
            self.take();
            return Ok(value.to_string());
        }
        let Some(index) = self.names.iter().position(|known| *known == name) else {
            let mut problem =
                format!("{:?} is no variable of this request, function or constant", shorten(name));
            if let Some(close) = self.names.iter().find(|known| known.eq_ignore_ascii_case(name)) {
                // Writing to a String can't fail.
                let _ = write!(problem, "; did you mean {close:?}?");
            }
            return Err(self.error(problem));
        };
        self.take();
        if self.peek() == Token::Open {
            return Err(self.error(format!("{name:?} is a variable; write '*' to multiply")));
        }
        Ok(format!("{{v{index:02}}}"))
    }

    fn close(&mut self) -> Result<(), GrammarError> {
        match self.peek() {
            Token::Close => {
                self.take();
                Ok(())
            }
            Token::End => Err(self.error("a ')' is missing")),
            found => Err(self.error(format!("an operator or ')' is missing before {}", describe(found)))),
        }
    }
}
