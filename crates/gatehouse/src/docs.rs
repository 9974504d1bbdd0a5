//! The generated pages of `docs/`: settings, errors, permissions, the OpenAPI document.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use gatehouse_core::ErrorCode;
use gatehouse_proto::access::{Access, Declared, PACKAGES, access_table};

use crate::config::{Config, variables};
use crate::output::{complain, say};
use crate::up;

#[derive(Debug, Args)]
pub(crate) struct DocsArgs {
    /// Folder to write to
    #[arg(long, default_value = "docs")]
    folder: PathBuf,
    /// Write nothing; exit status 1 if a page differs from the code
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &DocsArgs) -> anyhow::Result<ExitCode> {
    let mut stale = Vec::new();
    for (name, text) in pages()? {
        let path = args.folder.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
            continue;
        }
        if args.check {
            stale.push(name);
        } else {
            std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))?;
            say!("wrote {}", path.display())?;
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    complain!(
        "these pages differ from the code: {}. Run `gatehouse docs` and commit them.",
        stale.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// Each page with its name.
pub(crate) fn pages() -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("configuration.md", configuration()),
        ("errors.md", errors()?),
        ("permissions.md", permissions()?),
        ("openapi.json", gatehouse_gateway::openapi_json() + "\n"),
    ])
}

const GENERATED: &str = "<!-- Written by `gatehouse docs`; edit the code instead. -->\n";

fn configuration() -> String {
    format!(
        "# Configuration\n\n{GENERATED}\nA TOML file (`--config FILE` or `GATEHOUSE_CONFIG`), then the environment over it. Keys that do not exist are \
         refused, and every section is checked before anything starts. `gatehouse config check` says what is wrong, \
         `gatehouse config show` what is in force; both take `--json`. `GATEHOUSE_ENV` (`dev`, `staging` or `prod`) has no default but in \
         `gatehouse up`, which is `dev`.\n\nDefaults are those of a process by itself. {}\n\n{}\n## Other variables\n\n\
         A variable that begins with `GATEHOUSE_` and is neither in the table above nor in the one below keeps every \
         process from starting, with the name that it is closest to: a setting that is misspelt never goes unheard. \
         Kubernetes puts variables for each Service of a namespace into its containers, and those of a Service named \
         `gatehouse-auth` are `GATEHOUSE_AUTH_SERVICE_HOST`, `GATEHOUSE_AUTH_SERVICE_PORT`, `GATEHOUSE_AUTH_PORT`, \
         `GATEHOUSE_AUTH_PORT_9000_TCP_ADDR` and so on. They are known by the `_SERVICE_HOST` with an address that stands \
         beside them, and let be; `enableServiceLinks: false` in the pod keeps them out.\n\n{}",
        up::defaults_text(),
        gatehouse_service::config::markdown::<Config>(),
        variables::markdown()
    )
}

fn errors() -> anyhow::Result<String> {
    let mut text = format!(
        "# Errors\n\n{GENERATED}\nEvery failure has a code, a stable reason (`UPPER_SNAKE_CASE`, for programs) and one \
         sentence that says what to do (for people). Over HTTP it is `application/problem+json` (RFC 9457) with `reason`; \
         over gRPC a status with `google.rpc.ErrorInfo` (domain `gatehouse`), and `BadRequest` or `RetryInfo` where they \
         apply. Causes stay in our log.\n\n| code | gRPC | HTTP | try again? |\n| --- | --- | --- | --- |\n"
    );
    for code in ErrorCode::ALL {
        let retry =
            if code.is_retryable() { "yes, after `Retry-After` or with backoff" } else { "not unchanged" };
        let _ = writeln!(text, "| `{code}` | {} | {} | {retry} |", code.grpc_code(), code.http_status());
    }
    text.push_str(
        "\nA few reasons have an HTTP status of their own: `PAYLOAD_TOO_LARGE` 413, `URI_TOO_LONG` 414, \
         `UNSUPPORTED_MEDIA_TYPE` 415, `METHOD_NOT_ALLOWED` 405, `BODY_TIMEOUT` 408. \
         Every gRPC method may answer `MESSAGE_INVALID` (`INVALID_ARGUMENT`: the bytes are not its request) and, where the \
         server has no such method, `METHOD_NOT_FOUND` (`UNIMPLEMENTED`). \
         All that a route may answer stands in `/openapi.json`, by status: `x-reasons` of each response, and `x-errors` where \
         errors have the format of RFC 6749. It is made of the methods that the route calls (`x-grpc-methods`) and of what \
         the gateway itself refuses for.\n\nA head that is no HTTP/1.1 is refused before there is a request: with 400 (no `Host` or \
         two lengths, a length that is no number, bytes beyond ASCII in the path, the first bytes of TLS or HTTP/2 at the port \
         without TLS) or 431 (more than 128 KiB, more than 96 fields). Such an answer is empty: it has no problem document, no \
         `X-Request-ID` and none of the security headers, and the connection is closed after it.\n\n## Methods\n\nEach gRPC method declares its reasons beside itself in `proto/` \
         (`refusals`), where its comment says more of them.\n\n",
    );
    for (whose, refusals) in Declared::common_refusals() {
        let _ = writeln!(text, "- {whose} may also refuse for {}.", listed(refusals));
    }
    text.push_str("\n| method | reasons of its own |\n| --- | --- |\n");
    for (path, declared) in access_table(PACKAGES)? {
        let own = declared.own_refusals.iter().map(|(code, reason)| (*code, reason.as_str()));
        let _ = writeln!(text, "| `{}` | {} |", path.trim_start_matches('/'), listed(own));
    }
    Ok(text)
}

/// Reasons with their codes: `NOT_FOUND` `JOB_NOT_FOUND`, …
fn listed<'a>(refusals: impl IntoIterator<Item = (ErrorCode, &'a str)>) -> String {
    let mut text = String::new();
    let mut last = None;
    for (code, reason) in refusals {
        let before = match last {
            None => String::new(),
            Some(same) if same == code => ", ".to_owned(),
            Some(_) => "; ".to_owned(),
        };
        let code_name = if last == Some(code) { String::new() } else { format!("{code}: ") };
        let _ = write!(text, "{before}{code_name}`{reason}`");
        last = Some(code);
    }
    text
}

fn permissions() -> anyhow::Result<String> {
    let mut text = format!(
        "# Who may call what\n\n{GENERATED}\nEach gRPC method declares its rule beside itself in `proto/`; a service with a \
         method that declares none does not start. `privileged` methods refuse as soon as the news of revocations is 2 s \
         late, all others after 30 s. `callers` are the services whose certificates may call it where services show \
         certificates (`tls`): `internal` stands for those in `tls.internal_services`. There a token also counts only over a \
         connection of the service that obtained it, and health and reflection answer whoever has a certificate of the \
         trust domain. `persons only` methods answer `PERSON_REQUIRED` to API keys, and to services that act for nobody, \
         whatever they hold.\n\nTwo permissions belong to no method of their own, and to no client but the gateway: with \
         `auth.tokens.impersonate` a token that is exchanged need not name who acts for its subject (people and API keys speak \
         through the gateway for themselves; every other client sets `act_for_subject` and is named), and with \
         `auth.origin.assert` the audit trail believes where a request came from.\n\n| method | rule | callers | privileged | persons only |\n| --- | --- | --- | --- | --- |\n"
    );
    for (path, declared) in access_table(PACKAGES)? {
        let rule = match declared.access {
            Access::Public => "anyone".to_owned(),
            Access::Authenticated => "any valid token for the service".to_owned(),
            Access::Permission(permission) => format!("`{permission}`"),
        };
        let privileged = if declared.privileged { "yes" } else { "" };
        let persons = if declared.persons_only { "yes" } else { "" };
        let (path, callers) = (path.trim_start_matches('/'), declared.callers.join(", "));
        let _ = writeln!(text, "| `{path}` | {rule} | {callers} | {privileged} | {persons} |");
    }
    text.push_str(
        "\n## Routes\n\nEach route declares the methods that it calls; what it needs follows from them.\n\n",
    );
    text.push_str(&gatehouse_gateway::routes_markdown());
    Ok(text)
}
