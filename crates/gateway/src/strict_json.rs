//! JSON read without mercy: what a body may not contain is found before any type is tried.
//!
//! `serde_json` alone takes the last of two equal keys in free-form values, and strings of any length. Here
//! both are refused, as is nesting beyond [`MAX_DEPTH`], with the path of the offender. Derived types take an array of
//! their fields for an object; here an object is one.

use std::fmt;

use gatehouse_core::{Error, Result};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Number, Value};

use crate::wording::public_detail;

/// The deepest nesting of arrays and objects that a body may have.
pub(crate) const MAX_DEPTH: usize = 32;
/// The longest string, in characters (requirement T4).
pub(crate) const MAX_TEXT_CHARS: usize = 8192;

/// Reads `bytes` as exactly one JSON value of type `T`.
///
/// # Errors
/// `BODY_NOT_UTF8`, `MALFORMED_JSON`, or `INVALID_FIELD` with the path of the first wrong field.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let value = value_from_slice(bytes)?;
    serde_path_to_error::deserialize(Exact(value)).map_err(|error| {
        let path = error.path().to_string();
        field_error(&path, &public_detail(&error.inner().to_string()))
    })
}

/// Reads what [`from_slice`] has taken as another type, of which parts may be raw JSON.
///
/// # Errors
/// If the type asks for what the other did not.
pub(crate) fn checked_from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(Error::internal)
}

/// Reads `bytes` as one JSON value of any shape within the bounds.
///
/// # Errors
/// As [`from_slice`].
pub(crate) fn value_from_slice(bytes: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Error::invalid_argument(
            "BODY_NOT_UTF8",
            format!("The body must be UTF-8; byte {} is not.", error.valid_up_to()),
        )
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let value = Strict { depth: 0 }
        .deserialize(serde_path_to_error::Deserializer::new(&mut deserializer, &mut track))
        .map_err(|error| {
            if error.is_data() {
                field_error(&track.path().to_string(), &public_detail(&error.to_string()))
            } else {
                malformed(&error)
            }
        })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Error {
    Error::invalid_argument(
        "MALFORMED_JSON",
        format!(
            "The body must be one JSON value and nothing else: {} at line {}, column {}.",
            category(error),
            error.line(),
            error.column()
        ),
    )
}

fn category(error: &serde_json::Error) -> &'static str {
    if error.is_eof() {
        return "it ends too early";
    }
    // Nothing but its words tells these from wrong syntax.
    let words = error.to_string();
    if words.starts_with("number out of range") {
        "a number is out of range (that of 64-bit floating point)"
    } else if words.starts_with("lone leading surrogate") || words.starts_with("unexpected end of hex escape")
    {
        "an escape is a surrogate without its other half"
    } else {
        "the syntax is wrong"
    }
}

fn field_error(path: &str, detail: &str) -> Error {
    if path == "." { Error::invalid_field("body", detail) } else { Error::invalid_field(path, detail) }
}

/// A value, of which only objects become structs, however deep they lie.
struct Exact(Value);

impl IntoDeserializer<'_, serde_json::Error> for Exact {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Exact {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Exact));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(fields) => {
                let mut fields =
                    MapDeserializer::new(fields.into_iter().map(|(key, value)| (key, Exact(value))));
                let value = visitor.visit_map(&mut fields)?;
                fields.end()?;
                Ok(value)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.0.is_array() {
            return Err(de::Error::custom("expected an object, found an array"));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

fn check_text<E: de::Error>(text: &str) -> Result<(), E> {
    // Bytes bound characters from above, so counting is rare.
    if text.len() > MAX_TEXT_CHARS && text.chars().count() > MAX_TEXT_CHARS {
        return Err(E::custom(format_args!("longer than {MAX_TEXT_CHARS} characters")));
    }
    Ok(())
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("the number is out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        check_text(value)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        check_text(&value)?;
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(seed)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            check_text(&key)?;
            if values.contains_key(&key) {
                return Err(de::Error::custom("the same key stands twice in one object"));
            }
            values.insert(key, map.next_value_seed(seed)?);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        name: String,
        #[serde(default)]
        parts: Vec<Part>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        size: f64,
    }

    fn refusal(text: &[u8]) -> (String, String, String) {
        let error = from_slice::<Body>(text).expect_err("refused");
        let field = error.violations().first().map(|one| one.field.clone()).unwrap_or_default();
        (error.reason().to_owned(), field, error.message().to_owned())
    }

    #[test]
    fn a_good_body_reads() {
        let body: Body = from_slice(br#" {"name":"a","parts":[{"size":1}]} "#).expect("good");
        assert_eq!(body.name, "a");
        assert!((body.parts[0].size - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn each_kind_of_bad_body_is_named_with_its_path() {
        for (text, reason, field) in [
            (&b""[..], "MALFORMED_JSON", ""),
            (b"{", "MALFORMED_JSON", ""),
            (b"{\"name\":\"a\"} x", "MALFORMED_JSON", ""),
            (b"{\"name\":\"a\"}{\"name\":\"a\"}", "MALFORMED_JSON", ""),
            (b"{'name':1}", "MALFORMED_JSON", ""),
            (b"{\"name\":NaN}", "MALFORMED_JSON", ""),
            (b"\xff", "BODY_NOT_UTF8", ""),
            (b"[]", "INVALID_FIELD", "body"),
            (b"[\"a\"]", "INVALID_FIELD", "body"),
            (b"[\"a\",[]]", "INVALID_FIELD", "body"),
            (b"{\"name\":\"a\",\"parts\":[[1]]}", "INVALID_FIELD", "parts[0]"),
            (b"{\"name\":\"a\",\"parts\":{\"size\":1}}", "INVALID_FIELD", "parts"),
            (b"{}", "INVALID_FIELD", "body"),
            (b"{\"name\":1}", "INVALID_FIELD", "name"),
            (b"{\"name\":null}", "INVALID_FIELD", "name"),
            (b"{\"name\":\"a\",\"extra\":1}", "INVALID_FIELD", "extra"),
            (b"{\"name\":\"a\",\"name\":\"b\"}", "INVALID_FIELD", "body"),
            (b"{\"name\":\"a\",\"parts\":[{\"size\":\"x\"}]}", "INVALID_FIELD", "parts[0].size"),
        ] {
            let (found_reason, found_field, message) = refusal(text);
            assert_eq!(
                (found_reason.as_str(), found_field.as_str()),
                (reason, field),
                "{message} for {}",
                String::from_utf8_lossy(text)
            );
        }
    }

    /// The grammar takes both; it is we who can't.
    #[test]
    fn what_has_no_value_here_is_not_called_wrong_syntax() {
        for (text, words) in [
            (r#"{"size":1e400}"#, "a number is out of range"),
            (r#"{"size":-1e400}"#, "a number is out of range"),
            (r#"{"size":123e99999999999999999999}"#, "a number is out of range"),
            (r#"["\ud800"]"#, "a surrogate"),
            (r#"["\udc00"]"#, "a surrogate"),
            (r#"["\ud800 "]"#, "a surrogate"),
            (r#"["\ud800\n"]"#, "a surrogate"),
            (r#"["\ud800\u0041"]"#, "a surrogate"),
            (r#"{"\ud800":1}"#, "a surrogate"),
            (r#"["\ud8zz"]"#, "the syntax is wrong"),
            (r#"["\ud8"]"#, "the syntax is wrong"),
        ] {
            let error = value_from_slice(text.as_bytes()).expect_err("refused");
            assert_eq!(error.reason(), "MALFORMED_JSON", "{text}");
            assert!(error.message().contains(words), "{text}: {error}");
            assert!(error.message().contains("line 1, column"), "{text}: {error}");
        }
        value_from_slice(br#"[1e308,-1e-400,"\ud83d\ude00"]"#).expect("good");
    }

    #[test]
    fn what_was_sent_is_not_repeated() {
        let (_, _, message) = refusal(br#"{"name":"a","parts":"hunter2"}"#);
        assert!(!message.contains("hunter2"), "{message}");
        let (_, _, message) = refusal(br#"{"name":12345678}"#);
        assert!(!message.contains("12345678"), "{message}");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(33), "]".repeat(33));
        assert!(value_from_slice(deep.as_bytes()).expect_err("too deep").message().contains("deeper"));
        let deepest = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        value_from_slice(deepest.as_bytes()).expect_err("far too deep");
        let fits = format!("{}1{}", "[".repeat(32), "]".repeat(32));
        value_from_slice(fits.as_bytes()).expect("deep enough");
        let text = serde_json::to_vec(&"é".repeat(8192)).expect("JSON");
        value_from_slice(&text).expect("8192 characters fit");
        let text = serde_json::to_vec(&"é".repeat(8193)).expect("JSON");
        assert!(value_from_slice(&text).expect_err("too long").message().contains("8192"));
    }
}
