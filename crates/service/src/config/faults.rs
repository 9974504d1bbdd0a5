//! Values that their key can't hold: where each stands and what is expected, in the words of the configuration and never with
//! the value, which may be a secret in the wrong place.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::Field;

/// One of them.
#[derive(Debug)]
pub(super) struct Fault {
    /// The key of the configuration that it is in.
    pub(super) key: String,
    /// A sentence that begins with its place.
    pub(super) problem: String,
}

/// Reads `table`, in which every key exists, as `T`.
///
/// # Errors
/// All faults that can be found: where one stops the reading, the entry with it is left out and the rest is read.
pub(super) fn read_whole<T: DeserializeOwned>(mut table: Table, fields: &[Field]) -> Result<T, Vec<Fault>> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut left_out = BTreeMap::<String, Vec<usize>>::new();
    loop {
        let error = match serde_path_to_error::deserialize(table.clone()) {
            Ok(whole) if faults.is_empty() => return Ok(whole),
            Ok(_) => return Err(faults),
            Err(error) => error,
        };
        let segments: Vec<&Segment> = error.path().iter().collect();
        let Some((field, inner)) = place(&segments, fields) else {
            // Not within a key, so there is nothing that can be left out.
            if faults.is_empty() {
                let problem = in_plain_words(error.inner().message(), None);
                faults.push(Fault { key: String::new(), problem });
            }
            return Err(faults);
        };
        let shown = shown(&field.path, inner, left_out.get(&field.path));
        let told = in_plain_words(error.inner().message(), value_at(&table, &field.path, inner));
        faults.push(Fault { key: field.path.clone(), problem: format!("{shown}: {told}") });
        if !leave_out(&mut table, &field.path, inner.first().copied(), &mut left_out) {
            return Err(faults);
        }
    }
}

/// The field that `segments` lead into, and the rest of them.
fn place<'a, 'b>(segments: &'b [&'b Segment], fields: &'a [Field]) -> Option<(&'a Field, &'b [&'b Segment])> {
    let mut path = String::new();
    for (position, segment) in segments.iter().enumerate() {
        let (Segment::Map { key } | Segment::Enum { variant: key }) = segment else { return None };
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        if let Some(field) = fields.iter().find(|field| field.path == path) {
            return Some((field, &segments[position + 1..]));
        }
    }
    None
}

/// The place as whoever wrote it counts: elements of a list that were left out before are counted too.
fn shown(path: &str, inner: &[&Segment], left_out: Option<&Vec<usize>>) -> String {
    let inner = inner.iter().enumerate().map(|(depth, segment)| match segment {
        Segment::Seq { index } if depth == 0 => format!("[{}]", original(*index, left_out)),
        Segment::Seq { index } => format!("[{index}]"),
        Segment::Map { key } | Segment::Enum { variant: key } => format!(".{key}"),
        Segment::Unknown => String::new(),
    });
    path.to_owned() + &inner.collect::<String>()
}

/// The index that an element had before those in `left_out`, in order, were.
fn original(index: usize, left_out: Option<&Vec<usize>>) -> usize {
    left_out.into_iter().flatten().fold(index, |index, gone| if *gone <= index { index + 1 } else { index })
}

fn value_at<'a>(table: &'a Table, path: &str, inner: &[&Segment]) -> Option<&'a Value> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    match rest {
        Some(rest) => value_at(value.as_table()?, rest, inner),
        // What is deeper than can be followed stands in what is found.
        None => Some(inner.iter().fold(value, |value, segment| {
            let deeper = match segment {
                Segment::Seq { index } => value.get(*index),
                Segment::Map { key } => value.get(key.as_str()),
                Segment::Enum { .. } | Segment::Unknown => None,
            };
            deeper.unwrap_or(value)
        })),
    }
}

/// Takes the entry with the fault out of the list or table at `path`, or all of it. Whether there was something to take.
fn leave_out(
    table: &mut Table,
    path: &str,
    entry: Option<&Segment>,
    left_out: &mut BTreeMap<String, Vec<usize>>,
) -> bool {
    let (sections, key) = path.rsplit_once('.').map_or(("", path), |(sections, key)| (sections, key));
    let mut table = table;
    for section in sections.split('.').filter(|section| !section.is_empty()) {
        let Some(Value::Table(inner)) = table.get_mut(section) else { return false };
        table = inner;
    }
    match (table.get_mut(key), entry) {
        (Some(Value::Array(list)), Some(Segment::Seq { index })) if *index < list.len() => {
            list.remove(*index);
            let gone = left_out.entry(path.to_owned()).or_default();
            gone.push(original(*index, Some(gone)));
            gone.sort_unstable();
            true
        }
        (Some(Value::Table(entries)), Some(Segment::Map { key })) if entries.contains_key(key) => {
            entries.remove(key).is_some()
        }
        (Some(_), _) => table.remove(key).is_some(),
        (None, _) => false,
    }
}

/// A parser's sentence about `value` without the value itself and without the names of types.
fn in_plain_words(message: &str, value: Option<&Value>) -> String {
    let expected =
        message.rsplit_once(", expected ").map(|(_, expected)| expected.lines().next().unwrap_or_default());
    if let Some(rest) = message.strip_prefix("invalid type: ") {
        let found = rest.split([' ', ',']).next().and_then(type_name);
        let found = found.map(|found| format!(", and is of type {found}")).unwrap_or_default();
        return format!("must be {}{found}", wanted(expected.unwrap_or_default()));
    }
    if ["invalid value: ", "invalid length ", "unknown variant "]
        .iter()
        .any(|start| message.starts_with(start))
    {
        return format!("must be {}", wanted(expected.unwrap_or_default()));
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return format!("the key {} is missing", name.trim_matches('`'));
    }
    if message.starts_with("unknown field ") {
        let known = expected.map(|known| known.strip_prefix("one of ").unwrap_or(known)).unwrap_or_default();
        return format!("there is no such key; known are {known}");
    }
    // Words of a type of our own. They may say what they could not read.
    match value {
        Some(value) if !repeats(message, value) => message.lines().next().unwrap_or_default().to_owned(),
        _ => format!("must be {}", wanted("")),
    }
}

/// Whether `message` has anything in it that stands in `value`: a whole word of it, or so much of a longer one as would help
/// to guess it.
fn repeats(message: &str, value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|value| repeats(message, value)),
        Value::Table(table) => table.values().any(|value| repeats(message, value)),
        Value::String(text) => text.split_whitespace().any(|word| {
            let letters: Vec<char> = word.chars().collect();
            let parts = letters.windows(letters.len().clamp(1, TELLING));
            parts.into_iter().any(|part| message.contains(&part.iter().collect::<String>()))
        }),
        other => message.contains(&other.to_string()),
    }
}

/// So many letters of a value are not repeated.
const TELLING: usize = 8;

fn type_name(found: &str) -> Option<&'static str> {
    Some(match found {
        "string" | "character" => "string",
        "integer" => "integer",
        "floating" => "float",
        "boolean" => "boolean",
        "sequence" => "array",
        "map" => "table",
        _ => return None,
    })
}

fn wanted(expected: &str) -> &str {
    match expected {
        "u64" | "usize" | "u128" => "a whole number of 0 or more",
        "u32" => "a whole number from 0 to 4294967295",
        "u16" => "a whole number from 0 to 65535",
        "u8" => "a whole number from 0 to 255",
        "i64" | "isize" | "i128" => "a whole number",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list, such as [\"a\", \"b\"]",
        "a map" => TABLE,
        "a string" | "string or map" => "text in quotes",
        "path string" => "a path in quotes",
        "" => "what docs/configuration.md says",
        _ if expected.starts_with("a nonzero ") => "a whole number of 1 or more",
        _ if expected.contains("struct ") => TABLE,
        _ if expected.contains("enum ") => "one of the names that docs/configuration.md lists",
        _ => expected,
    }
}

const TABLE: &str = "a table, such as { key = \"value\" }";

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize};

    use super::super::{Sources, load};
    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Whole {
        plain: u16,
        small: Small,
        section: Section,
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Section {
        list: Vec<Entry>,
        by_name: BTreeMap<String, Entry>,
        name: Own,
    }

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        name: String,
        #[serde(default)]
        permissions: Vec<String>,
        #[serde(default)]
        count: i64,
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Small {
        #[default]
        One,
        Two,
    }

    /// As a type that reads text itself, and tells what it could not read.
    #[derive(Debug, Default, Serialize, JsonSchema)]
    struct Own(String);

    impl<'de> Deserialize<'de> for Own {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            match text.as_str() {
                "silent" => Err(serde::de::Error::custom("a name of our own is expected")),
                _ if text.len() > 16 => {
                    let begin: String = text.chars().take(16).collect();
                    Err(serde::de::Error::custom(format!("{begin:?}... is no name")))
                }
                _ => Err(serde::de::Error::custom(format!("{text} is no name"))),
            }
        }
    }

    fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let sources = Sources { defaults: text.parse().unwrap(), ..Sources::default() };
        load::<Whole>(&sources, variables.iter().copied()).unwrap_err().0
    }

    #[test]
    fn each_fault_is_told_with_its_place_and_without_the_value() {
        let text = "plain = 70000\nsmall = \"hunter2\"\nwrong = 1\n[section]\nname = \"hunter2\"\nlist = [\n\
            {name = \"a\", permissions = \"hunter2, expected u8\"}, {name = \"b\"}, \"hunter2\", {name = 7},\n\
            {permissions = []}, {name = \"c\", secret = \"hunter2\"}, {name = \"d\", permissions = [\"x\", 2]}]\n\
            [section.by_name]\none = {name = \"a\", count = \"hunter2\"}\ntwo = \"hunter2\"\n";
        let mut told = problems(text, &[]);
        told.sort();
        let mut expected = [
            "plain: must be a whole number from 0 to 65535",
            "small: must be `one` or `two`",
            "wrong: there is no such key; `gatehouse config docs` lists them all",
            "section.name: must be what docs/configuration.md says",
            "section.list[0].permissions: must be a list, such as [\"a\", \"b\"], and is of type string",
            "section.list[2]: must be a table, such as { key = \"value\" }, and is of type string",
            "section.list[3].name: must be text in quotes, and is of type integer",
            "section.list[4]: the key name is missing",
            "section.list[5].secret: there is no such key; known are `name`, `permissions`, `count`",
            "section.list[6].permissions[1]: must be text in quotes, and is of type integer",
            "section.by_name.one.count: must be a whole number, and is of type string",
            "section.by_name.two: must be a table, such as { key = \"value\" }, and is of type string",
        ];
        expected.sort_unstable();
        assert_eq!(told, expected);
        assert_eq!(
            problems("[section]\nname = \"silent\"", &[]),
            ["section.name: a name of our own is expected"]
        );
        for part in ["hunter2-and-much-more-of-it", "hunter2\\\"hunter2-and-more"] {
            let text = format!("[section]\nname = {part:?}");
            assert_eq!(
                problems(&text, &[]),
                ["section.name: must be what docs/configuration.md says"],
                "{part}"
            );
        }
    }

    #[test]
    fn the_variable_that_set_it_is_named() {
        let variables = [
            ("GATEHOUSE_SECTION__LIST", "hunter2"),
            ("GATEHOUSE_PLAIN", "-1"),
            ("GATEHOUSE_NAME", "hunter2"),
        ];
        let mut told = problems("", &variables);
        told.sort();
        assert_eq!(
            told,
            [
                "the environment variable GATEHOUSE_NAME names no key of the configuration; did you mean \
                 GATEHOUSE_SECTION__NAME?",
                "the environment variable GATEHOUSE_PLAIN: plain: must be a whole number from 0 to 65535",
                "the environment variable GATEHOUSE_SECTION__LIST: section.list[0]: must be a table, such as \
                 { key = \"value\" }, and is of type string",
            ]
        );
    }
}
