//! `gatehouse submit`: a job through the gateway, followed live.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use eventsource_stream::{Event, Eventsource as _};
use futures_util::StreamExt as _;
use gatehouse_client::Backoff;
use gatehouse_core::{Entropy, Secret};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use url::Url;

use crate::data_folder::read_secret;
use crate::output::{Unheard, say, to_stderr};

/// How often a broken stream is taken up again before giving up.
const MAX_RECONNECTS: u32 = 10;

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// Kind of the job, such as `optimize`
    kind: String,
    /// File with the job's input as JSON; `-` reads standard input
    input: PathBuf,
    /// The gateway
    #[arg(long, env = "GATEHOUSE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// File with an access token or API key; otherwise `GATEHOUSE_TOKEN`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Name of this submission: the same again gives the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print each event and the result as one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Submits, follows, prints the result. Exit status 0 if the job succeeded, 1 if it did not.
pub(crate) async fn run(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let token = match &args.token_file {
        Some(path) => read_secret(path).context("--token-file")?,
        None => Secret::new(
            std::env::var("GATEHOUSE_TOKEN")
                .context("no credential: name a file with --token-file, or set GATEHOUSE_TOKEN")?,
        ),
    };
    let gateway = Gateway {
        http: reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?,
        url: address(&args.url)?,
        token,
    };
    // Passed on as it stands: a number may have more digits than a type of ours.
    let input: Box<RawValue> = serde_json::from_str(&read_input(&args.input)?)
        .with_context(|| format!("{} is not valid JSON", args.input.display()))?;
    let mut request = gateway
        .request(reqwest::Method::POST, "/v1/jobs")
        .json(&Submission { kind: &args.kind, input: &input });
    if let Some(key) = &args.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let job =
        answer(request.timeout(Duration::from_secs(30)).send().await.with_context(|| gateway.unreachable())?)
            .await?;
    let job: Value = serde_json::from_str(&job).unwrap_or_default();
    let id = job["job_id"].as_str().context("the gateway's answer names no job")?.to_owned();
    let told = Teller { json: args.json };
    told.line(&json!({"event": "submitted", "job_id": id}), &format!("job {id}"))?;
    let state = follow(&gateway, &id, &told).await?;
    if state != "succeeded" {
        told.line(&json!({"event": "ended", "state": state}), &format!("the job ended as {state}"))?;
        return Ok(ExitCode::FAILURE);
    }
    let result =
        answer(gateway.request(reqwest::Method::GET, &format!("/v1/jobs/{id}/result")).send().await?).await?;
    told.result(&result)?;
    Ok(ExitCode::SUCCESS)
}

/// The gateway's address as requests begin with it. It is said in messages, so it may hold no secret.
fn address(text: &str) -> anyhow::Result<String> {
    let sound = Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none()
    });
    if !sound || text.contains('@') {
        bail!(
            "--url (or GATEHOUSE_URL) must be an address such as http://127.0.0.1:8080, without user name, password \
             and query"
        );
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[derive(Serialize)]
struct Submission<'a> {
    kind: &'a str,
    input: &'a RawValue,
}

struct Gateway {
    http: reqwest::Client,
    url: String,
    token: Secret<String>,
}

impl Gateway {
    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(self.token.expose())
    }

    fn unreachable(&self) -> String {
        format!("the gateway at {} can't be reached; is it running?", self.url)
    }
}

struct Teller {
    json: bool,
}

impl Teller {
    fn line(&self, event: &Value, text: &str) -> Result<(), Unheard> {
        if self.json { say!("{event}") } else { say!("{text}") }
    }

    fn event(&self, id: u64, event: &Event) -> Result<(), Unheard> {
        let (name, data) = (event.event.as_str(), on_one_line(&event.data));
        if self.json {
            say!("{{\"event\":{},\"id\":{id},\"data\":{}}}", json!(name), or_null(&data))
        } else if name == "progress" && std::io::stdout().is_terminal() {
            // One line that is written over: a thousand steps are not a thousand lines.
            to_stderr(format_args!("\r\x1b[K{id:>6}  {data}"));
            Ok(())
        } else {
            say!("{id:>6}  {name:<16} {data}")
        }
    }

    /// As the worker wrote it, to the last digit.
    fn result(&self, result: &str) -> Result<(), Unheard> {
        if self.json {
            say!("{{\"event\":\"result\",\"result\":{}}}", or_null(&on_one_line(result)))
        } else {
            say!("{result}")
        }
    }
}

/// JSON on one line, the rest as it stands: a line break is white space there, never text.
fn on_one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// What is no JSON would break the line that it stands in.
fn or_null(json: &str) -> &str {
    if serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok() { json } else { "null" }
}

fn read_input(path: &std::path::Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("standard input can't be read")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

/// The body of a good answer.
async fn answer(response: reqwest::Response) -> anyhow::Result<String> {
    let status = response.status();
    if status.is_success() {
        return response.text().await.context("the gateway's answer broke off");
    }
    let body: Value = response.json().await.unwrap_or(Value::Null);
    let detail = body["detail"].as_str().or(body["title"].as_str()).unwrap_or("no further word");
    bail!("the gateway answered {status}: {detail}");
}

/// Follows the events until the job's last end, taking a broken stream up again after the last event seen; the state that
/// the job ended in.
async fn follow(gateway: &Gateway, id: &str, told: &Teller) -> anyhow::Result<String> {
    let mut seen = Seen::default();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), Entropy::system());
    for _ in 0..=MAX_RECONNECTS {
        let request = gateway
            .request(reqwest::Method::GET, &format!("/v1/jobs/{id}/events"))
            .header("last-event-id", seen.last.to_string());
        match request.send().await {
            Ok(response) if response.status().is_success() => {
                let before = seen.last;
                let ended_well = read(response, &mut seen, told).await?;
                if seen.last > before {
                    backoff.reset();
                }
                // An end is the last until a retry: only after the last one does the stream end without a word (or, where
                // it broke in between, is there nothing to resume).
                if ended_well && let Some(state) = seen.end {
                    return Ok(state);
                }
            }
            Ok(response) if !response.status().is_server_error() => {
                answer(response).await?;
            }
            Ok(_) | Err(_) => {}
        }
        backoff.wait().await;
    }
    bail!("the event stream broke too often; the job goes on: look at {}/v1/jobs/{id}", gateway.url)
}

#[derive(Debug, Default)]
struct Seen {
    /// Number of the last event.
    last: u64,
    /// The state that it told, if it was an end.
    end: Option<String>,
}

/// Reads one answer; whether it ended by itself and without saying that there is more.
async fn read(response: reqwest::Response, seen: &mut Seen, told: &Teller) -> anyhow::Result<bool> {
    let mut events = response.bytes_stream().eventsource();
    while let Some(event) = events.next().await {
        let Ok(event) = event else { return Ok(false) };
        if event.event == "closed" {
            return Ok(false);
        }
        let Ok(sequence) = event.id.parse() else { continue };
        seen.last = sequence;
        seen.end = (event.event == "end").then(|| {
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            data["state"].as_str().unwrap_or("unknown").to_owned()
        });
        told.event(sequence, &event)?;
    }
    Ok(true)
}
