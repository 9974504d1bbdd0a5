//! Configuration: defaults, a TOML file over them, then the environment, checked whole before anything binds.
//!
//! Every section is a struct that derives `Deserialize`, `Serialize`, `JsonSchema` and has a `Default`; its doc
//! comments are the documentation ([`fields`] reads them), and its schema tells what an environment variable may
//! set. `section.field` is set by `GATEHOUSE_SECTION__FIELD`, and by the name in the field's `x-env` where the
//! requirements name one.

mod faults;
mod names;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use toml::{Table, Value};

use names::{PREFIX, is_service_link, suggest_key, suggest_variable};

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

/// What a configuration is read from besides the environment, which stands over all of it.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// Defaults of this way to start, in place of those of the type.
    pub defaults: Table,
    /// A TOML file, which stands over the defaults.
    pub file: Option<&'a Path>,
    /// Variables that begin with `GATEHOUSE_` and are no settings.
    pub others: &'a [Other],
}

/// A variable that begins with `GATEHOUSE_` and sets no key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    /// Its name.
    pub name: &'static str,
    /// What a process does that has it.
    pub usage: Usage,
}

/// What a process does with a variable that is no setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// It reads it itself: whoever misspelt a name may have meant this one.
    Read,
    /// It lets it be: a program that starts processes, or is called beside them, reads it.
    LetBe,
    /// It does not start, since nobody would do what the variable says. What to say after its name.
    Refused(&'static str),
}

/// Reads `T` from `sources` and `variables`.
///
/// # Errors
/// Every problem found: an unreadable file, TOML that does not parse (with its line), keys that do not exist, values
/// that their keys can't hold, variables that begin with `GATEHOUSE_` and that nobody reads. Those that Kubernetes makes of
/// its Services are let be. No problem repeats a value.
pub fn load<T>(
    sources: &Sources<'_>,
    variables: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + JsonSchema + Default,
{
    let mut table = sources.defaults.clone();
    if let Some(path) = sources.file {
        lay_over(&mut table, read(path)?);
    }
    let fields = fields::<T>();
    let known: BTreeMap<String, &Field> = fields
        .iter()
        .flat_map(|field| field.variables().into_iter().map(move |name| (name, field)))
        .collect();
    let mut problems = Vec::new();
    let variables = as_text(variables, |name| known.contains_key(name), &mut problems);
    let mut set_by = BTreeMap::new();
    for (name, text) in &variables {
        match known.get(name) {
            Some(field) => match parse(&field.kind, text) {
                Ok(value) => {
                    set(&mut table, &field.path, value);
                    set_by.insert(field.path.as_str(), name);
                }
                Err(problem) => {
                    problems.push(format!("the environment variable {name}: {}: {problem}", field.path));
                }
            },
            None if !name.starts_with(PREFIX) || is_service_link(name, &variables) => {}
            None => problems.extend(
                refusal(name, &known, sources.others)
                    .map(|problem| format!("the environment variable {name} {problem}")),
            ),
        }
    }
    check_keys(&mut table, "", &fields, &mut problems);
    match faults::read_whole(table, &fields) {
        Ok(whole) if problems.is_empty() => return Ok(whole),
        Ok(_) => {}
        Err(faults) => problems.extend(faults.into_iter().map(|fault| {
            // Whoever set it by a variable looks for that.
            let variable = set_by.get(fault.key.as_str());
            variable.map(|name| format!("the environment variable {name}: ")).unwrap_or_default()
                + &fault.problem
        })),
    }
    Err(ConfigError(problems))
}

/// Why a process does not start with the variable `name`, which sets none of the `known` keys.
fn refusal(name: &str, known: &BTreeMap<String, &Field>, others: &[Other]) -> Option<String> {
    match others.iter().find(|other| other.name == name).map(|other| other.usage) {
        Some(Usage::Read | Usage::LetBe) => None,
        Some(Usage::Refused(why)) => Some(why.to_owned()),
        None => {
            // One that is let be would only be wrong without a word.
            let read = others.iter().filter(|other| other.usage == Usage::Read).map(|other| other.name);
            let suggestion = suggest_variable(name, known.keys().map(String::as_str).chain(read));
            Some(format!("names no key of the configuration{suggestion}"))
        }
    }
}

/// The variables that are text. Of the others, those that would set something are problems.
fn as_text(
    variables: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    is_known: impl Fn(&str) -> bool,
    problems: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut text = BTreeMap::new();
    for (name, value) in variables {
        let Ok(name) = name.into().into_string() else { continue };
        match value.into().into_string() {
            Ok(value) => {
                text.insert(name, value);
            }
            Err(_) if is_known(&name) => {
                problems.push(format!("the environment variable {name}: must be text in UTF-8"));
            }
            // Whether anybody reads it, its name says.
            Err(_) => {
                text.insert(name, String::new());
            }
        }
    }
    text
}

/// Puts `upper` over `lower`, key by key.
fn lay_over(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(lower)), Value::Table(upper)) => lay_over(lower, upper),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(vec![format!("the file {} can't be read: {error}", path.display())]))?;
    text.parse().map_err(|error: toml::de::Error| {
        // Its `Display` shows the line, with what stands there.
        let before = &text[..error.span().map_or(0, |span| text.floor_char_boundary(span.start))];
        let (line, column) = (
            before.split('\n').count(),
            before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1,
        );
        let message = error.message().lines().next().unwrap_or_default();
        ConfigError(vec![format!(
            "the file {} is not valid TOML: line {line}, column {column}: {message}",
            path.display(),
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

/// Takes out and names each key that does not exist and each plain value of the wrong type, with its whole path.
fn check_keys(table: &mut Table, path: &str, fields: &[Field], problems: &mut Vec<String>) {
    table.retain(|key, value| {
        let before = problems.len();
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let section = format!("{path}.");
        if let Some(field) = fields.iter().find(|field| field.path == path) {
            problems.extend(wrong_type(&field.kind, value).map(|problem| format!("{path}: {problem}")));
        } else if fields.iter().any(|field| field.path.starts_with(&section)) {
            match value {
                Value::Table(inner) => {
                    check_keys(inner, &path, fields, problems);
                    return true;
                }
                _ => problems.push(format!("{path}: is a section; write [{path}] and its keys below")),
            }
        } else {
            problems.push(format!("{path}: there is no such key{}", suggest_key(&path, fields)));
        }
        problems.len() == before
    });
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
    use std::os::unix::ffi::OsStringExt as _;

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

    /// Of a file with `text`, which goes with the value.
    fn load_file(text: &str, variables: &[(&str, &str)]) -> Result<Whole, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        load(&Sources { file: Some(file.path()), ..Sources::default() }, env(variables))
    }

    const OTHERS: &[Other] = &[
        Other { name: "GATEHOUSE_ENV", usage: Usage::Read },
        Other { name: "GATEHOUSE_TEST_LABEL", usage: Usage::LetBe },
        Other { name: "GATEHOUSE_LABEL", usage: Usage::Refused("is for others") },
    ];

    fn load_env(variables: &[(&str, &str)]) -> Result<Whole, ConfigError> {
        load(&Sources { others: OTHERS, ..Sources::default() }, env(variables))
    }

    #[test]
    fn the_environment_stands_over_the_file() {
        let whole = load_file(
            "[first]\nhow_many = 4\nnames = [\"x\"]\n",
            &[
                ("HOW_MANY", "5"),
                ("GATEHOUSE_FIRST__NAMES", "a, b"),
                ("GATEHOUSE_FIRST__LABEL", "l"),
                ("PATH", "/"),
            ],
        )
        .unwrap();
        assert_eq!(
            whole.first,
            First { how_many: 5, names: vec!["a".into(), "b".into()], on: true, label: Some("l".into()) }
        );
    }

    #[test]
    fn what_is_said_stands_over_the_defaults_of_a_start() {
        let defaults: Table = "[first]\nhow_many = 9\nnames = [\"d\"]\n".parse().unwrap();
        let with = |text: &str, variables: &[(&str, &str)]| -> First {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, text).unwrap();
            let sources =
                Sources { defaults: defaults.clone(), file: Some(file.path()), ..Sources::default() };
            load::<Whole>(&sources, env(variables)).unwrap().first
        };
        assert_eq!((with("", &[]).how_many, with("", &[]).on), (9, true));
        // Also where it says what the type's default is.
        assert_eq!(with("[first]\nhow_many = 3\n", &[]).how_many, 3);
        assert_eq!(with("", &[("HOW_MANY", "3")]).how_many, 3);
        assert_eq!(with("[first]\nnames = []\n", &[]), First { how_many: 9, ..First::default() });
    }

    #[test]
    fn a_value_that_its_key_can_not_hold_is_told_by_the_variable() {
        let error = load_env(&[("HOW_MANY", "-1")]).unwrap_err().to_string();
        let bounds = "first.how_many: must be a whole number from 0 to 4294967295";
        assert!(error.ends_with(&format!("- the environment variable HOW_MANY: {bounds}")), "{error}");
        let error = load_file("[first]\nhow_many = -1\n", &[]).unwrap_err().to_string();
        assert!(error.ends_with(&format!("- {bounds}")), "{error}");
    }

    #[test]
    fn a_variable_that_nobody_reads_is_refused() {
        for (slip, told) in [
            ("GATEHOUSE_HOW_MANY", "did you mean HOW_MANY?"),
            ("GATEHOUSE_FIRST_NAMES", "did you mean GATEHOUSE_FIRST__NAMES?"),
            ("GATEHOUSE_ENVIRON", "did you mean GATEHOUSE_ENV?"),
            ("GATEHOUSE_FIRST__HOW", "did you mean GATEHOUSE_FIRST__HOW_MANY?"),
            // Not what somebody else reads, which would be let be.
            ("GATEHOUSE_TEST_LABELS", "did you mean GATEHOUSE_FIRST__LABEL?"),
            ("GATEHOUSE_LABEL", "the environment variable GATEHOUSE_LABEL is for others"),
            ("GATEHOUSE_SOMETHING_ELSE_ENTIRELY", "`gatehouse config docs` lists them all"),
            ("GATEHOUSE_", "names no key"),
        ] {
            let error = load_env(&[(slip, "hunter2")]).unwrap_err().to_string();
            assert!(error.contains(slip) && error.contains(told) && !error.contains("hunter2"), "{error}");
        }
        load_env(&[
            ("GATEHOUSE_ENV", "dev"),
            ("GATEHOUSE_TEST_LABEL", "x"),
            ("GATEHOUSES", "x"),
            ("gatehouse_first", "x"),
        ])
        .unwrap();
        let link =
            [("GATEHOUSE_AUTH_PORT", "tcp://10.0.0.1:80"), ("GATEHOUSE_AUTH_SERVICE_HOST", "10.0.0.1")];
        load_env(&link).unwrap();
        assert!(load_env(&link[..1]).is_err());
    }

    #[test]
    fn a_variable_that_is_no_text_is_refused_if_it_would_set_something() {
        let broken = OsString::from_vec(b"\xff".to_vec());
        let load = |name: &str| -> Result<Whole, ConfigError> {
            let sources = Sources { others: OTHERS, ..Sources::default() };
            load(&sources, [(OsString::from(name), broken.clone())])
        };
        assert!(load("GATEHOUSE_FIRST__LABEL").unwrap_err().to_string().contains("must be text in UTF-8"));
        assert!(load("GATEHOUSE_FRIST__LABEL").unwrap_err().to_string().contains("names no key"));
        load("GATEHOUSE_ENV").unwrap();
        load("LS_COLORS").unwrap();
    }

    #[test]
    fn every_mistake_is_named() {
        let error =
            load_env(&[("HOW_MANY", "many"), ("GATEHOUSE_FIRST__NAME", "x")]).unwrap_err().to_string();
        assert!(error.contains("HOW_MANY: first.how_many: must be a whole number"), "{error}");
        assert!(error.contains("did you mean GATEHOUSE_FIRST__NAMES?"), "{error}");
        let wrong = "frist = 1\nnames = []\n[first]\nhow_mny = 1\nnames = \"x\"\non = \"hunter2\"\n";
        let error = load_file(wrong, &[]).unwrap_err().to_string();
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
        let error = load_file("first = 1\n", &[]).unwrap_err().to_string();
        assert!(error.contains("write [first]"), "{error}");
        let error = load_file("[first]\nlabel = \"hunter2\n", &[]).unwrap_err().to_string();
        assert!(error.contains("not valid TOML: line 2, column ") && !error.contains("hunter2"), "{error}");
        let nowhere = Sources { file: Some(Path::new("/nowhere.toml")), ..Sources::default() };
        assert!(load::<Whole>(&nowhere, env(&[])).is_err());
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
}
