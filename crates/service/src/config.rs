//! Configuration: a TOML file, then the environment over it, checked whole before anything binds.
//!
//! Every section is a struct that derives `Deserialize`, `Serialize`, `JsonSchema` and has a `Default`; its doc
//! comments are the documentation ([`fields`] reads them), and its schema tells what an environment variable may
//! set. `section.field` is set by `GATEHOUSE_SECTION__FIELD`, and by the name in the field's `x-env` where the
//! requirements name one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use toml::{Table, Value};

/// What is wrong with the configuration: every problem at once, each a sentence that names the key.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is wrong:\n  - {}", .0.join("\n  - "))]
pub struct ConfigError(pub Vec<String>);

/// One key of the configuration, for documentation and for the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// `section.field`.
    pub path: String,
    /// JSON schema type: `string`, `integer`, `number`, `boolean`, `array`, `object`.
    pub kind: String,
    /// The doc comment, on one line.
    pub description: String,
    /// The default as TOML.
    pub default: String,
    /// The name that the requirements give it, if any.
    pub env: Option<String>,
}

impl Field {
    /// The environment variables that set it, the generic one first.
    #[must_use]
    pub fn variables(&self) -> Vec<String> {
        let generic = format!("GATEHOUSE_{}", self.path.to_uppercase().replace('.', "__"));
        std::iter::once(generic).chain(self.env.clone()).collect()
    }
}

/// Every key of `T`, in the order of its structs.
#[must_use]
pub fn fields<T: JsonSchema + Serialize + Default>() -> Vec<Field> {
    let schema: Schema = SchemaSettings::default()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>();
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    let mut found = Vec::new();
    collect(schema.as_value(), &defaults, "", &mut found);
    found
}

fn collect(schema: &Json, default: &Json, path: &str, found: &mut Vec<Field>) {
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return };
    for (name, property) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = default.get(name).unwrap_or(&Json::Null);
        if property.get("properties").is_some() {
            collect(property, default, &path, found);
            continue;
        }
        let text = |key: &str| property.get(key).and_then(Json::as_str).map(str::to_owned);
        found.push(Field {
            path,
            kind: kind(property),
            description: text("description")
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            default: match default {
                Json::Null => String::new(),
                other => other.to_string(),
            },
            env: text("x-env"),
        });
    }
}

fn kind(property: &Json) -> String {
    match property.get("type") {
        Some(Json::String(kind)) => kind.clone(),
        // `Option<T>` is ["T", "null"].
        Some(Json::Array(kinds)) => {
            kinds.iter().filter_map(Json::as_str).find(|&kind| kind != "null").unwrap_or("string").to_owned()
        }
        _ if property.get("anyOf").is_some() => "object".to_owned(),
        _ => "string".to_owned(),
    }
}

/// Reads `T` from `file` (if any) and `variables`.
///
/// # Errors
/// Every problem found: an unreadable file, TOML that does not parse (with its line), keys that do not exist, values
/// of the wrong type, variables that begin with `GATEHOUSE_`, contain `__` and name no key.
pub fn load<T>(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + JsonSchema + Default,
{
    let mut table = match file {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let fields = fields::<T>();
    let known: BTreeMap<String, &Field> = fields
        .iter()
        .flat_map(|field| field.variables().into_iter().map(move |name| (name, field)))
        .collect();
    let mut problems = Vec::new();
    for (name, text) in variables {
        match known.get(&name) {
            Some(field) => match parse(&field.kind, &text) {
                Ok(value) => set(&mut table, &field.path, value),
                Err(problem) => problems.push(format!("the environment variable {name}: {problem}")),
            },
            None if name.starts_with("GATEHOUSE_") && name.contains("__") => problems.push(format!(
                "the environment variable {name} names no key of the configuration{}",
                suggest(&name, known.keys())
            )),
            // Names without `__` may be another program's (Kubernetes sets GATEHOUSE_PORT and the like for a service of
            // that name), so only what looks like a slip is refused.
            None if name.starts_with("GATEHOUSE_") => {
                if let Some((1..=2, close)) = closest(&name, known.keys()) {
                    problems.push(format!(
                        "the environment variable {name} names no key of the configuration; did you mean {close}?"
                    ));
                }
            }
            None => {}
        }
    }
    check_keys(&table, "", &fields, &mut problems);
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    T::deserialize(table).map_err(|error| ConfigError(vec![error.to_string().trim().replace('\n', " ")]))
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(vec![format!("the file {} can't be read: {error}", path.display())]))?;
    text.parse().map_err(|error: toml::de::Error| {
        ConfigError(vec![format!(
            "the file {} is not valid TOML: {}",
            path.display(),
            error.to_string().trim()
        )])
    })
}

fn parse(kind: &str, text: &str) -> Result<Value, String> {
    match kind {
        "integer" => text.parse().map(Value::Integer).map_err(|_| "must be a whole number".to_owned()),
        "number" => text.parse().map(Value::Float).map_err(|_| "must be a number".to_owned()),
        "boolean" => text.parse().map(Value::Boolean).map_err(|_| "must be true or false".to_owned()),
        "array" if !text.trim_start().starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        "array" | "object" => format!("value = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .ok_or_else(|| "must be a TOML value on one line".to_owned()),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn set(table: &mut Table, path: &str, value: Value) {
    let mut table = table;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            table.insert(part.to_owned(), value);
            return;
        }
        let next = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        // A file that has a plain value where a section belongs is refused when it is read as `T`.
        let Value::Table(inner) = next else { return };
        table = inner;
    }
}

/// Names each key that does not exist and each plain value of the wrong type, with its whole path.
fn check_keys(table: &Table, path: &str, fields: &[Field], problems: &mut Vec<String>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let section = format!("{path}.");
        if let Some(field) = fields.iter().find(|field| field.path == path) {
            problems.extend(wrong_type(&field.kind, value).map(|problem| format!("{path}: {problem}")));
        } else if fields.iter().any(|field| field.path.starts_with(&section)) {
            match value {
                Value::Table(inner) => check_keys(inner, &path, fields, problems),
                _ => problems.push(format!("{path}: is a section; write [{path}] and its keys below")),
            }
        } else {
            problems.push(format!("{path}: there is no such key{}", suggest_key(&path, fields)));
        }
    }
}

/// What is wrong with the type of `value`; the value itself is not repeated, it may be a secret in the wrong place.
fn wrong_type(kind: &str, value: &Value) -> Option<String> {
    let expected = match (kind, value) {
        ("integer", Value::Integer(_))
        | ("number", Value::Integer(_) | Value::Float(_))
        | ("boolean", Value::Boolean(_))
        | ("array", Value::Array(_))
        | ("string", Value::String(_) | Value::Table(_) | Value::Array(_)) => return None,
        ("integer", _) => "a whole number",
        ("number", _) => "a number",
        ("boolean", _) => "true or false",
        ("array", _) => "a list, such as [\"a\", \"b\"]",
        ("string", _) => "text in quotes",
        _ => return None,
    };
    Some(format!("must be {expected}, and is of type {}", value.type_str()))
}

/// The key that was meant: one that is written alike, or the same name in another section.
fn suggest_key(path: &str, fields: &[Field]) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let named =
        |field: &&Field| last(&field.path) == last(path) || field.path.contains(&format!("{}.", last(path)));
    if let Some((0..=3, close)) = closest(path, fields.iter().map(|field| &field.path)) {
        return format!("; did you mean {close}?");
    }
    let sections: Vec<String> = fields
        .iter()
        .filter_map(|field| field.path.rsplit_once('.'))
        .map(|(section, _)| section.to_owned())
        .collect();
    match (closest(path, sections.iter()), fields.iter().find(named)) {
        (Some((0..=3, close)), _) => format!("; did you mean the section {close}?"),
        (_, Some(field)) => format!("; did you mean {}?", field.path),
        _ => "; `gatehouse config docs` lists them all".to_owned(),
    }
}

fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    match closest(name, known) {
        Some((0..=4, close)) => format!("; did you mean {close}?"),
        _ => "; `gatehouse config docs` lists them all".to_owned(),
    }
}

fn closest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<(usize, &'a String)> {
    known.map(|candidate| (distance(name, candidate), candidate)).min()
}

/// Levenshtein distance, for suggestions only.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, byte) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (column, other) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(byte != other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// The configuration as a Markdown table, for `docs/configuration.md`.
#[must_use]
pub fn markdown<T: JsonSchema + Serialize + Default>() -> String {
    let mut text = String::from("| key | environment | default | meaning |\n| --- | --- | --- | --- |\n");
    for field in fields::<T>() {
        let names = field.variables().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join("<br>");
        let default =
            if field.default.is_empty() { "none".to_owned() } else { format!("`{}`", field.default) };
        let description = field.description.replace('|', "\\|");
        // Writing to a String can't fail.
        let _ = writeln!(text, "| `{}` | {names} | {default} | {description} |", field.path);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Whole {
        /// The first section.
        first: First,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct First {
        /// How many, 1 to 10.
        #[schemars(extend("x-env" = "HOW_MANY"))]
        how_many: u32,
        names: Vec<String>,
        on: bool,
        label: Option<String>,
    }

    impl Default for First {
        fn default() -> Self {
            Self { how_many: 3, names: vec![], on: true, label: None }
        }
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_environment_stands_over_the_file() {
        let file = tempfile("[first]\nhow_many = 4\nnames = [\"x\"]\n");
        let whole: Whole = load(
            Some(&file),
            env(&[
                ("HOW_MANY", "5"),
                ("GATEHOUSE_FIRST__NAMES", "a, b"),
                ("GATEHOUSE_FIRST__LABEL", "l"),
                ("PATH", "/"),
            ]),
        )
        .unwrap();
        assert_eq!(
            whole.first,
            First { how_many: 5, names: vec!["a".into(), "b".into()], on: true, label: Some("l".into()) }
        );
    }

    #[test]
    fn every_mistake_is_named() {
        let error = load::<Whole>(None, env(&[("HOW_MANY", "many"), ("GATEHOUSE_FIRST__NAME", "x")]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("HOW_MANY: must be a whole number"), "{error}");
        assert!(error.contains("did you mean GATEHOUSE_FIRST__NAMES?"), "{error}");
        let wrong = "frist = 1\nnames = []\n[first]\nhow_mny = 1\nnames = \"x\"\non = \"hunter2\"\n";
        let error = load::<Whole>(Some(&tempfile(wrong)), env(&[])).unwrap_err().to_string();
        for expected in [
            "first.how_mny: there is no such key; did you mean first.how_many?",
            "first.names: must be a list, such as [\"a\", \"b\"], and is of type string",
            "first.on: must be true or false, and is of type string",
            "frist: there is no such key; did you mean the section first?",
            "names: there is no such key; did you mean first.names?",
        ] {
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
        let error = load::<Whole>(Some(&tempfile("first = 1\n")), env(&[])).unwrap_err().to_string();
        assert!(error.contains("write [first]"), "{error}");
        let error = load::<Whole>(Some(&tempfile("[first\n")), env(&[])).unwrap_err().to_string();
        assert!(error.contains("not valid TOML"), "{error}");
        assert!(load::<Whole>(Some(Path::new("/nowhere.toml")), env(&[])).is_err());
    }

    #[test]
    fn the_table_says_what_the_comments_say() {
        let table = markdown::<Whole>();
        assert!(
            table.contains(
                "| `first.how_many` | `GATEHOUSE_FIRST__HOW_MANY`<br>`HOW_MANY` | `3` | How many, 1 to 10. |"
            ),
            "{table}"
        );
    }

    fn tempfile(text: &str) -> std::path::PathBuf {
        let name = format!(
            "gatehouse-config-{:x}.toml",
            u128::from_le_bytes(gatehouse_core::Entropy::system().bytes())
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}
