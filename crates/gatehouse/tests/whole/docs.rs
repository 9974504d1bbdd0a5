//! The generated pages say what the code does, and every setting does what its page says.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::support::{ended, folder, program, run};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// Each environment name of the requirements that is in force, with a value that is not its default, and the line of
/// `config show` that it gives within its section.
const NAMES: &[(&str, &str, &str, &str)] = &[
    ("RATE_LIMIT_CAPACITY", "4711", "rate_limits.rules", "capacity = 4711"),
    ("RATE_LIMIT_INTERVAL", "17", "rate_limits.rules", "interval_s = 17"),
    ("MAX_REQUEST_BYTES", "4096", "gateway", "max_request_bytes = 4096"),
    (
        "CORS_ALLOWED_ORIGINS",
        "https://a.example,https://b.example",
        "gateway",
        "cors_allowed_origins = [\"https://a.example\", \"https://b.example\"]",
    ),
    ("REQUIRE_AUTH", "false", "gateway", "require_auth = false"),
    ("MAX_ITERATIONS", "321", "optimizer", "max_iterations = 321"),
    ("SSE_QUEUE_MAXSIZE", "33", "gateway.sse", "queue_maxsize = 33"),
    ("SSE_BACKPRESSURE_FAIL_TIMEOUT_S", "44", "gateway.sse", "backpressure_fail_timeout_s = 44"),
    ("JOB_TTL_SUCCEEDED_S", "55", "job", "ttl_succeeded_s = 55"),
    ("JOB_TTL_FAILED_S", "66", "job", "ttl_failed_s = 66"),
    ("JOB_TTL_CANCELLED_S", "77", "job", "ttl_cancelled_s = 77"),
];

/// The line stands in the section, and only there.
fn stands_in(shown: &str, section: &str, line: &str) -> bool {
    let within = shown.split("\n[").find_map(|part| part.strip_prefix(&format!("{section}]\n")));
    // Lists are printed over several lines.
    let flat = |text: &str| text.replace("\n    ", " ").replace("[ ", "[").replace(",\n]", "]");
    within.is_some_and(|within| flat(within).lines().any(|found| found == line))
}

#[tokio::test]
async fn the_generated_pages_are_those_of_the_code() {
    let found = run(&["docs", "--check", "--folder", DOCS]).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    // A page that differs is found, and told how to mend.
    let place = folder();
    let other = place.path().to_str().unwrap();
    let found = run(&["docs", "--check", "--folder", other]).await;
    assert_eq!(found.code, Some(1), "{found:?}");
    for word in ["configuration.md", "errors.md", "permissions.md", "openapi.json", "Run `gatehouse docs`"] {
        assert!(found.stderr.contains(word), "{word}: {found:?}");
    }
    assert_eq!(run(&["docs", "--folder", other]).await.code, Some(0));
    assert_eq!(run(&["docs", "--check", "--folder", other]).await.code, Some(0));
}

#[tokio::test]
async fn each_environment_name_is_documented_once_and_takes_effect() {
    let page = fs::read_to_string(format!("{DOCS}/configuration.md")).unwrap();
    let defaults = run(&["config", "show"]).await.stdout;
    for (name, value, section, line) in NAMES {
        let rows: Vec<&str> = page.lines().filter(|row| row.contains(&format!("`{name}`"))).collect();
        assert_eq!(rows.len(), 1, "{name}: {rows:?}");
        let key = format!("{section}.{}", line.split_once(" = ").unwrap().0);
        assert!(rows[0].starts_with(&format!("| `{key}` |")), "{name}: {}", rows[0]);
        let found = ended(program().args(["config", "show"]).env(name, value)).await;
        assert_eq!(found.code, Some(0), "{found:?}");
        assert!(stands_in(&found.stdout, section, line), "{name} did not set {key}: {}", found.stdout);
        assert!(!stands_in(&defaults, section, line), "{name}: that is the default");
        // The name of the key itself sets the same, and stands over the file.
        let place = folder();
        let file = place.path().join("gatehouse.toml");
        fs::write(&file, "drain_timeout_s = 31\n").unwrap();
        let generic = format!("GATEHOUSE_{}", key.to_uppercase().replace('.', "__"));
        let found =
            ended(program().args(["config", "show", "--config"]).arg(&file).env(generic, value)).await;
        assert!(stands_in(&found.stdout, section, line), "{key}: {found:?}");
        assert!(found.stdout.contains("drain_timeout_s = 31"), "{found:?}");
    }
    // No name may set two keys: one of them would silently stay as it was.
    let mut seen = BTreeSet::new();
    let keys = page.split("\n## Other variables\n").next().unwrap();
    for row in keys.lines().filter(|row| row.starts_with("| `")) {
        for name in row.split('|').nth(2).unwrap().split("<br>") {
            assert!(seen.insert(name.trim().to_owned()), "{name} stands twice");
        }
        assert!(row.split('|').nth(4).unwrap().trim().len() > 5, "undocumented: {row}");
    }
    assert!(seen.len() > 80, "{}", seen.len());
}

#[tokio::test]
async fn the_openapi_document_is_3_1_and_has_every_route() {
    let text = fs::read_to_string(format!("{DOCS}/openapi.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."), "{}", document["openapi"]);
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.insert(format!("{} {path}", method.to_uppercase()));
            for field in ["operationId", "summary", "responses", "tags"] {
                assert!(!operation[field].is_null(), "{method} {path} has no {field}");
            }
        }
    }
    let page = fs::read_to_string(format!("{DOCS}/permissions.md")).unwrap();
    let routes: BTreeSet<String> = page
        .split("## Routes")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split_once('`').map(|(route, _)| route.to_owned()))
        .collect();
    assert!(routes.len() > 40, "{routes:?}");
    assert_eq!(documented, routes);
    // Every reference leads somewhere.
    for reference in text.split("\"$ref\": \"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    assert!(text.contains("\"$ref\": \"#") && text.contains("application/problem+json"));
}

#[test]
fn every_error_code_and_method_is_listed() {
    let errors = fs::read_to_string(format!("{DOCS}/errors.md")).unwrap();
    for code in gatehouse_core::ErrorCode::ALL {
        assert!(errors.contains(&format!("| `{code}` |")), "{code}");
    }
    let permissions = fs::read_to_string(format!("{DOCS}/permissions.md")).unwrap();
    let methods = gatehouse_proto::access::access_table(gatehouse_proto::access::PACKAGES).unwrap();
    assert!(methods.len() > 40, "{}", methods.len());
    for method in methods.keys() {
        assert!(permissions.contains(method.trim_start_matches("/gatehouse.")), "{method}");
    }
}
