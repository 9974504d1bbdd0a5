//! The OpenAPI document and the page for people, both made from the route table when the process starts.

use std::fmt::Write as _;

use actix_web::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::config::Config;
use crate::oauth_error::OAuthProblem;
use crate::problem::{self, Problem, ProblemField};
use crate::refusals;
use crate::route::{Access, ErrorFormat, Route};
use utoipa::{PartialSchema as _, ToSchema as _};

const STYLE: &str = include_str!("docs.css");

/// What `/openapi.json` and `/docs` answer.
#[derive(Debug)]
pub(crate) struct Documents {
    pub(crate) openapi: String,
    pub(crate) page: String,
    /// The page's Content-Security-Policy: its one style sheet, by digest, and nothing else.
    pub(crate) page_policy: String,
}

impl Documents {
    pub(crate) fn new(routes: &[Route], config: &Config) -> Self {
        let document = document(routes, config);
        let digest = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
        Self {
            page: page(&document),
            openapi: document.to_string(),
            page_policy: format!(
                "default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
            ),
        }
    }
}

/// The OpenAPI 3.1 document of `routes`.
pub(crate) fn document(routes: &[Route], config: &Config) -> Value {
    let mut paths = json!({});
    let mut schemas = json!({});
    let mut add = |name: &str, schema: Value| schemas[name] = schema;
    add(&Problem::name(), to_json(&Problem::schema()));
    add(&ProblemField::name(), to_json(&ProblemField::schema()));
    for route in routes {
        for (name, schema) in &route.schemas {
            add(name, to_json(schema));
        }
        paths[&route.path][route.method.as_str().to_ascii_lowercase()] = operation(route);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Gatehouse",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Who is calling, acting upstream for a person, long work with live progress, proof of what happened.\n\nEach refusal lists what it may be: `x-reasons` are the values of `reason` in a problem document, `x-errors` those of `error` in the format of RFC 6749. A later version may add to them.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": [
            { "name": "auth", "description": "Accounts and sessions of people." },
            { "name": "tenants", "description": "Tenants and who belongs to them." },
            { "name": "api keys", "description": "API keys of a tenant." },
            { "name": "jobs", "description": "Durable work with live progress." },
            { "name": "connections", "description": "Acting upstream for a person without holding that person's keys." },
            { "name": "audit", "description": "Proof of what happened." },
            { "name": "oauth", "description": "Tokens for services, by the standards." },
            { "name": "about", "description": "Documentation and probes." },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "The access token of a sign-in; also an API key, where `api_key` is offered too.",
                },
                "api_key": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
                "client": { "type": "http", "scheme": "basic", "description": "An OAuth client's id and secret." },
            },
        },
    });
    if !config.public_url.is_empty() {
        document["servers"] = json!([{ "url": config.public_url }]);
    }
    document
}

fn operation(route: &Route) -> Value {
    let mut operation = to_json(&route.operation);
    operation["security"] = match route.access {
        Access::Probe | Access::Public => json!([]),
        Access::OAuthClient => json!([{ "client": [] }, {}]),
        Access::Caller(_) if route.persons_only => json!([{ "bearer": [] }]),
        Access::Caller(_) => json!([{ "bearer": [] }, { "api_key": [] }]),
    };
    operation["x-rate-limit-class"] = match route.access {
        Access::Probe => Value::Null,
        _ => route.class.as_str().into(),
    };
    let permissions = route.permissions();
    if !permissions.is_empty() {
        operation["x-permissions"] = json!(permissions);
    }
    if !route.calls.is_empty() {
        // Whose contracts say more of what each refusal means.
        operation["x-grpc-methods"] = json!(route.calls);
    }
    let content = [ErrorFormat::Problem, ErrorFormat::OAuth].map(content);
    operation["responses"]["default"] =
        json!({ "description": "Refused or failed", "content": content[route.errors as usize] });
    for (status, format, name) in refusals::answers(route) {
        let response = &mut operation["responses"][status.to_string()];
        if !response["description"].is_string() {
            let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            response["description"] = phrase.unwrap_or("Refused").into();
        }
        for (media, schema) in entries(&content[format as usize]) {
            response["content"][media] = schema.clone();
        }
        push(&mut response[format.names()], name.into());
    }
    operation
}

/// What a refusal in this format carries, whatever its status.
fn content(format: ErrorFormat) -> Value {
    let (media, schema) = match format {
        ErrorFormat::Problem => (problem::MEDIA_TYPE, Problem::name()),
        ErrorFormat::OAuth => ("application/json", OAuthProblem::name()),
    };
    json!({ media: { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        empty => *empty = json!([item]),
    }
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The page: every operation with its parameters, body, answers and permission. No script.
fn page(document: &Value) -> String {
    let mut html = String::from("<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.push_str(
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Gatehouse API</title><style>",
    );
    html.push_str(STYLE);
    html.push_str("</style></head><body><header><h1>Gatehouse API</h1><p>");
    html.push_str(&escape(text(&document["info"]["description"])));
    html.push_str("</p><p>Machine-readable: <a href=\"/openapi.json\">/openapi.json</a>. Errors are RFC 9457 problem documents.</p><nav>");
    let tags: Vec<&str> = items(&document["tags"]).map(|tag| text(&tag["name"])).collect();
    for tag in &tags {
        let _ = write!(html, "<a href=\"#{}\">{}</a> ", anchor(tag), escape(tag));
    }
    html.push_str("<a href=\"#schemas\">schemas</a></nav></header><main>");
    for tag in &tags {
        let _ = write!(html, "<section id=\"{}\"><h2>{}</h2>", anchor(tag), escape(tag));
        for (path, methods) in entries(&document["paths"]) {
            for (method, operation) in entries(methods) {
                if items(&operation["tags"]).any(|one| text(one) == *tag) {
                    write_operation(&mut html, path, method, operation);
                }
            }
        }
        html.push_str("</section>");
    }
    html.push_str("<section id=\"schemas\"><h2>schemas</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        write_schema(&mut html, name, schema);
    }
    html.push_str("</section></main></body></html>");
    html
}

fn write_operation(html: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        html,
        "<article id=\"{}\"><h3><b class=\"{method}\">{}</b> <code>{}</code></h3><p>{}</p>",
        anchor(text(&operation["operationId"])),
        method.to_uppercase(),
        escape(path),
        escape(text(&operation["summary"])),
    );
    let more = text(&operation["description"]);
    if !more.is_empty() && more != text(&operation["summary"]) {
        let _ = write!(html, "<p>{}</p>", escape(more));
    }
    let access = match items(&operation["security"]).next() {
        None => "public".to_owned(),
        Some(scheme) if scheme.get("client").is_some() => "an OAuth client's id and secret".to_owned(),
        Some(_) => {
            let permissions: Vec<&str> = items(&operation["x-permissions"]).map(text).collect();
            let keys = items(&operation["security"]).any(|scheme| scheme.get("api_key").is_some());
            match (permissions.as_slice(), keys) {
                ([], true) => "any valid credential".to_owned(),
                ([], false) => "a signed-in person".to_owned(),
                (some, true) => format!("permission {}", some.join(", ")),
                (some, false) => format!("a signed-in person with permission {}", some.join(", ")),
            }
        }
    };
    let _ = write!(html, "<dl><dt>Access</dt><dd>{}</dd>", escape(&access));
    for parameter in items(&operation["parameters"]) {
        let _ = write!(
            html,
            "<dt><code>{}</code> <i>{}</i></dt><dd>{} {}</dd>",
            escape(text(&parameter["name"])),
            escape(text(&parameter["in"])),
            kind(&parameter["schema"]),
            escape(text(&parameter["description"])),
        );
    }
    for (media, content) in entries(&operation["requestBody"]["content"]) {
        let _ = write!(html, "<dt>Body <i>{}</i></dt><dd>{}</dd>", escape(media), kind(&content["schema"]));
    }
    for (status, response) in entries(&operation["responses"]) {
        let content = entries(&response["content"]).next().map(|(_, content)| kind(&content["schema"]));
        let _ = write!(
            html,
            "<dt>{}</dt><dd>{} {}",
            escape(status),
            escape(text(&response["description"])),
            content.unwrap_or_default(),
        );
        for format in [ErrorFormat::Problem, ErrorFormat::OAuth] {
            for reason in items(&response[format.names()]) {
                let _ = write!(html, " <code>{}</code>", escape(text(reason)));
            }
        }
        html.push_str("</dd>");
    }
    html.push_str("</dl></article>");
}

fn write_schema(html: &mut String, name: &str, schema: &Value) {
    let _ = write!(
        html,
        "<article id=\"schema-{}\"><h3><code>{}</code></h3><p>{}</p><dl>",
        anchor(name),
        escape(name),
        escape(text(&schema["description"]))
    );
    for (field, property) in entries(&schema["properties"]) {
        let needed = items(&schema["required"]).any(|one| text(one) == field);
        let _ = write!(
            html,
            "<dt><code>{}</code>{}</dt><dd>{} {}</dd>",
            escape(field),
            if needed { " <i>required</i>" } else { "" },
            kind(property),
            escape(text(&property["description"])),
        );
    }
    html.push_str("</dl></article>");
}

/// A schema in a few words, as HTML.
fn kind(schema: &Value) -> String {
    if let Some(name) = text(&schema["$ref"]).rsplit('/').next().filter(|name| !name.is_empty()) {
        return format!("<a href=\"#schema-{}\">{}</a>", anchor(name), escape(name));
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("array of {}", kind(&schema["items"])),
        Value::String(name) => escape(name),
        Value::Array(names) => escape(&names.iter().map(text).collect::<Vec<_>>().join(" or ")),
        _ => "any JSON".to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn anchor(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
