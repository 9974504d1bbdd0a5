//! A running Gatehouse, commands that end by themselves, and HTTP as anyone would send it.

use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use gatehouse_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// A debug build on a busy machine takes its time; a whole minute means that something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program with a clean environment: what runs the tests may be configured itself.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatehouse"));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// What a command that ended by itself left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// The one message of a command that could not do its work, once everything around it was checked: status 2,
    /// nothing on standard output, no error among the log lines, no panic.
    pub(crate) fn refusal(&self) -> String {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        for word in ["panicked", "stack backtrace", "\"level\":\"ERROR\""] {
            assert!(!self.stderr.contains(word), "{word}: {}", self.stderr);
        }
        let plain: Vec<&str> = self.stderr.lines().filter(|line| !line.starts_with('{')).collect();
        assert!(plain.first().is_some_and(|line| line.starts_with("gatehouse: ")), "{self:?}");
        assert_eq!(plain.iter().filter(|line| line.starts_with("gatehouse: ")).count(), 1, "{self:?}");
        plain.join("\n")
    }
}

/// Runs `command` to its end.
pub(crate) async fn ended(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(PATIENCE, command.output());
    Ended::from(output.await.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap())
}

/// Runs the program with `arguments` to its end.
pub(crate) async fn run(arguments: &[&str]) -> Ended {
    ended(program().args(arguments)).await
}

/// A folder for one test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A running `gatehouse up`.
pub(crate) struct Gatehouse {
    child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
    http: reqwest::Client,
}

impl Gatehouse {
    /// Starts one on the data in `place` and waits until it is ready.
    pub(crate) async fn start(place: &Path) -> Self {
        Self::start_with(place, &[], &[]).await
    }

    /// As [`Gatehouse::start`], with further arguments and environment variables.
    pub(crate) async fn start_with(place: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let log = place.join("gatehouse.log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = program()
            .args(["up", "--json", "--free-ports", "--data"])
            .arg(place.join("data"))
            .args(arguments)
            // Tests sign in and submit more often in a second than a person in a minute.
            .env("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it is ready in time").unwrap();
        let said = said.unwrap_or_else(|| panic!("it ended: {}", std::fs::read_to_string(&log).unwrap()));
        Self::of(child, serde_json::from_str(&said).unwrap())
    }

    /// One that was started otherwise; `ready` says where its `gateway` and `probes` are.
    pub(crate) fn of(child: Child, ready: Value) -> Self {
        // Fails only if another test did so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .no_proxy()
            .build()
            .unwrap();
        Self { child, ready, http }
    }

    /// Where the gateway is, `ip:port`.
    pub(crate) fn address(&self) -> &str {
        self.ready["gateway"].as_str().unwrap().trim_start_matches("http://")
    }

    /// Whom it showed at its start as the first admin.
    pub(crate) fn first_admin(&self) -> &Value {
        &self.ready["first_admin"]
    }

    /// A request to the gateway without a credential.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.ready["gateway"].as_str().unwrap()))
    }

    /// What the private port answers at `path`.
    pub(crate) async fn probe(&self, path: &str) -> String {
        let url = format!("{}{path}", self.ready["probes"].as_str().unwrap());
        self.http.get(url).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    /// An HTTP client for others than the gateway.
    pub(crate) const fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Sends `bytes` as they are and reads until the gateway closes the connection.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let talk = async {
            let mut stream = tokio::net::TcpStream::connect(self.address()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        };
        tokio::time::timeout(PATIENCE, talk).await.expect("the gateway closes the connection")
    }

    /// Makes an account with a tenant of its own and signs in.
    pub(crate) async fn account(&self, name: &str) -> Account<'_> {
        let credentials =
            json!({"email": format!("{name}@example.org"), "password": "nine purple teapots in a row"});
        let mut registration = credentials.clone();
        registration["tenant_name"] = json!(format!("Tenant of {name}"));
        let made = answer(self.request(Method::POST, "/v1/auth/register").json(&registration)).await;
        assert_eq!(made.0, 201, "{}", made.1);
        let (status, session) =
            answer(self.request(Method::POST, "/v1/auth/sign-in").json(&credentials)).await;
        assert_eq!(status, 200, "{session}");
        Account {
            gatehouse: self,
            person: made.1["person_id"].as_str().unwrap().to_owned(),
            tenant: made.1["tenant_id"].as_str().unwrap().to_owned(),
            session,
        }
    }

    /// Asks it to stop and waits for its end.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").unwrap()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).unwrap();
    }

    /// Its process id.
    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id().expect("it runs")).unwrap()
    }
}

/// Status and JSON body of the answer to `request`.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    (status, value)
}

/// A person who signed in, the owner of a tenant.
pub(crate) struct Account<'a> {
    gatehouse: &'a Gatehouse,
    pub(crate) person: String,
    pub(crate) tenant: String,
    /// The answer to the sign-in.
    pub(crate) session: Value,
}

impl Account<'_> {
    /// The access token.
    pub(crate) fn token(&self) -> &str {
        self.session["access_token"].as_str().unwrap()
    }

    /// A request to the gateway as this person.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.gatehouse.request(method, path).bearer_auth(self.token())
    }

    /// Status and body of a GET.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    /// Status and body of a POST.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(body)).await
    }

    /// Submits a search and returns its job's id.
    pub(crate) async fn optimize(&self, body: &Value) -> String {
        let (status, job) = self.post("/optimize", body).await;
        assert_eq!(status, 202, "{job}");
        job["job_id"].as_str().unwrap().to_owned()
    }

    /// The job once it came to an end.
    pub(crate) async fn finished(&self, job: &str) -> Value {
        eventually(PATIENCE, || async {
            let (status, job) = self.get(&format!("/v1/jobs/{job}")).await;
            assert_eq!(status, 200, "{job}");
            (!job["finished_at"].is_null()).then_some(job)
        })
        .await
    }
}

/// A search that ends well and soon.
pub(crate) fn good_search() -> Value {
    json!({
        "objective": "(x - 1)^2", "variables": [{"name": "x", "lower": -5.0, "upper": 5.0}],
        "max_iterations": 5, "seed": 7,
    })
}
