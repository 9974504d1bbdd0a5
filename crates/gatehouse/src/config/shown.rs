//! The configuration as it is shown to a person.

use serde_json::Value;

use super::Config;

/// The way to an address of a database, which hides its own password and shows its user.
const DATABASE_URL: &[&str] = &["databases", "*", "url"];

/// `config` without the user names and passwords that stand in addresses. Where a start takes none it is refused, but what is
/// refused is shown as well. What is not set is null, which TOML has not: [`without_nulls`].
pub(crate) fn without_credentials(config: &Config) -> serde_json::Result<Value> {
    let mut shown = serde_json::to_value(config)?;
    hide(&mut shown, Some(DATABASE_URL));
    Ok(shown)
}

/// `way` is what is left of the way to an address of a database, if this may be on it.
fn hide(value: &mut Value, way: Option<&[&str]>) {
    match value {
        Value::String(text) if way.is_none_or(|way| !way.is_empty()) => {
            if let Some(hidden) = hidden(text) {
                *text = hidden;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| hide(value, None)),
        Value::Object(fields) => {
            for (key, value) in fields {
                let on_it =
                    way.and_then(<[_]>::split_first).filter(|(step, _)| **step == "*" || *step == key);
                hide(value, on_it.map(|(_, behind)| behind));
            }
        }
        _ => {}
    }
}

/// `text` without who and by what, if it is an address. Where a password was not encoded, all before the last `@` may be of
/// it. An address of another kind, such as that of a database in the wrong place, may hold a secret anywhere.
fn hidden(text: &str) -> Option<String> {
    let (scheme, address) = text.split_once("://")?;
    if !scheme.ends_with("http") && !scheme.ends_with("https") {
        return Some(format!("{scheme}://***"));
    }
    let host = address.rfind('@')?;
    Some(format!("{scheme}://***{}", &address[host..]))
}

/// `value` without the fields that are null.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(without_nulls).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_shown_without_who_and_by_what() {
        let mut shown = json!({
            "issuer": "http://me:p@h:1",
            "quoted": ["https://me:it's\"p@h", "https://a", "d@e"],
            "spaced": {"url": "http://me:p @/?#x@h"},
            "databases": {"job": {"url": "postgres://me:***@h/d", "schema": "postgres://me:p@h/d"}},
            "none": 1,
        });
        hide(&mut shown, Some(DATABASE_URL));
        let expected = json!({
            "issuer": "http://***@h:1",
            "quoted": ["https://***@h", "https://a", "d@e"],
            "spaced": {"url": "http://***@h"},
            "databases": {"job": {"url": "postgres://me:***@h/d", "schema": "postgres://***"}},
            "none": 1,
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_not_set_is_left_out() {
        let value = json!({"a": null, "b": {"c": null, "d": [{"e": null}, 1]}});
        assert_eq!(without_nulls(value), json!({"b": {"d": [{}, 1]}}));
    }
}
