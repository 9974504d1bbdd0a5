//! The sentences of parsers, in words that someone who never saw Rust understands.

const MAX_DETAIL_CHARS: usize = 200;

/// A parser's sentence about a field, without the value that the caller sent (it may be a password in the wrong
/// place), without positions, and bounded.
pub(crate) fn public_detail(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or(message);
    let told = match (message.strip_prefix("invalid type: "), message.strip_prefix("invalid value: ")) {
        (None, Some(rest)) if found(rest) == "integer" => mismatch(rest, "one that is out of these bounds"),
        (Some(rest), _) | (None, Some(rest)) => mismatch(rest, kind(found(rest))),
        _ => plain(message).to_owned(),
    };
    told.chars().filter(|c| !c.is_control()).take(MAX_DETAIL_CHARS).collect()
}

/// The kind of what was found: its value stands behind it.
fn found(rest: &str) -> &str {
    rest.split([' ', '`', '"', ',']).next().unwrap_or_default()
}

fn mismatch(rest: &str, found: &str) -> String {
    let expected = rest.rsplit_once(", expected ").map_or("something else", |(_, expected)| wanted(expected));
    format!("expected {expected}, found {found}")
}

fn kind(found: &str) -> &str {
    match found {
        "integer" => "a whole number",
        "floating" => "a number with a fraction",
        "string" | "character" => "a string",
        "boolean" => "true or false",
        "null" | "unit" | "Option" => "null",
        "sequence" => "an array",
        "map" => "an object",
        _ => "something else",
    }
}

fn wanted(expected: &str) -> &str {
    match expected {
        "u64" | "usize" => "a whole number of 0 or more",
        "u32" => "a whole number from 0 to 4294967295",
        "u16" => "a whole number from 0 to 65535",
        "u8" => "a whole number from 0 to 255",
        "i64" => "a whole number",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        "a string" | "string or map" => "a string",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("enum ") => "one of the names that the documentation lists",
        _ => expected,
    }
}

/// What Rust's own parsers say of numbers and the like in a query.
fn plain(message: &str) -> &str {
    match message {
        "cannot parse integer from empty string" | "invalid digit found in string" => {
            "expected a whole number"
        }
        "number too large to fit in target type" => "the number is too large",
        "number too small to fit in target type" => "the number is too small",
        "cannot parse float from empty string" | "invalid float literal" => "expected a number",
        "provided string was not `true` or `false`" => "expected true or false",
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Empty {}

    fn told<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        public_detail(&serde_json::from_str::<T>(json).unwrap_err().to_string())
    }

    #[test]
    fn no_name_of_a_type_is_told() {
        assert_eq!(told::<Empty>("null"), "expected an object, found null");
        assert_eq!(told::<Empty>("3"), "expected an object, found a whole number");
        let bounds = "one that is out of these bounds";
        assert_eq!(told::<u64>("-1"), format!("expected a whole number of 0 or more, found {bounds}"));
        assert_eq!(told::<u8>("256"), format!("expected a whole number from 0 to 255, found {bounds}"));
        assert_eq!(
            told::<u64>("1.5"),
            "expected a whole number of 0 or more, found a number with a fraction"
        );
        assert_eq!(told::<Vec<u8>>("\"x\""), "expected an array, found a string");
        assert_eq!(told::<f64>("\"0\""), "expected a number, found a string");
        assert_eq!(told::<String>("[]"), "expected a string, found an array");
        assert_eq!(told::<bool>("{}"), "expected true or false, found an object");
        assert_eq!(public_detail(&"".parse::<i64>().unwrap_err().to_string()), "expected a whole number");
        assert_eq!(public_detail(&"x".parse::<u8>().unwrap_err().to_string()), "expected a whole number");
        assert_eq!(public_detail(&"999".parse::<u8>().unwrap_err().to_string()), "the number is too large");
        assert_eq!(public_detail(&"yes".parse::<bool>().unwrap_err().to_string()), "expected true or false");
        assert_eq!(public_detail(&"".parse::<f64>().unwrap_err().to_string()), "expected a number");
        assert_eq!(public_detail(&"x".parse::<f64>().unwrap_err().to_string()), "expected a number");
    }
}
