//! The Gatehouse that the demo starts, and the small OAuth provider that stands for somebody else's API.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use gatehouse_testkit::oauth_provider::{OAuthProvider, Options};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::api::text;
use crate::narrator::Narrator;
use crate::tour::{KEPT_CHECKPOINT, KEPT_KEY, Proof, Tour, Visitor};

/// How long a start may take. A debug build on a slow, busy machine needs a few seconds.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// A running Gatehouse and its surroundings.
pub(crate) struct Server {
    child: Child,
    /// Stands for as long as somebody may ask it.
    _provider: OAuthProvider,
    /// What there is to see.
    pub(crate) tour: Tour,
}

/// Starts both and waits until Gatehouse is ready.
pub(crate) async fn start(program: &Path, data: &Path, narrator: &mut Narrator) -> anyhow::Result<Server> {
    narrator.step("Start five services and a worker in one process");
    std::fs::create_dir_all(data).with_context(|| format!("the folder {} can't be made", data.display()))?;
    let options = Options::default();
    let provider = OAuthProvider::start(options.clone()).await?;
    let config = data.join("demo.toml");
    std::fs::write(&config, config_for(&provider, &options, data)?)?;
    let log = std::fs::File::create(data.join("gatehouse.log"))?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(["up", "--json", "--free-ports", "--data"])
        .arg(data.join("gatehouse"))
        .arg("--config")
        .arg(&config)
        .env_remove("GATEHOUSE_ENV")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} can't be run", program.display()))?;
    let stdout = child.stdout.take().context("the program has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = tokio::time::timeout(START_LIMIT, async {
        while let Some(line) = lines.next_line().await? {
            let said: Value = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
            if said["event"] == "ready" {
                return Ok(said);
            }
        }
        let log = std::fs::read_to_string(data.join("gatehouse.log")).unwrap_or_default();
        bail!("it ended: {}", log.lines().last().unwrap_or("it said nothing"))
    });
    let ready = ready.await.map_err(|_| anyhow::anyhow!("not ready after {} s", START_LIMIT.as_secs()))??;
    // Whatever else it says must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let gateway = text(&ready, "/gateway")?.to_owned();
    narrator.say(&format!("gateway {gateway}, API pages {}", text(&ready, "/docs")?));
    narrator.say(&format!("data in {}, log in {}", data.display(), data.join("gatehouse.log").display()));
    narrator.done(&format!("ready after {} ms", began.elapsed().as_millis()));
    let verify = format!(
        "\"{}\" verify-audit-chain --data \"{}\" --checkpoint \"{}\" --verifier-key-file \"{}\"",
        program.display(),
        data.join("gatehouse").display(),
        data.join(KEPT_CHECKPOINT).display(),
        data.join(KEPT_KEY).display()
    );
    let tour = Tour {
        authorities: Vec::new(),
        visitor: Visitor::New,
        upstream_api: provider.api_url(),
        data: data.to_owned(),
        proof: Proof::Here { program: program.to_owned(), data: data.join("gatehouse") },
        next: vec![
            ("see what it stands on", "docs/architecture.md".to_owned()),
            ("start it and keep it", "make up".to_owned()),
            ("every setting", "docs/configuration.md".to_owned()),
            ("the audit log of this run", verify),
        ],
        gateway,
    };
    Ok(Server { child, _provider: provider, tour })
}

impl Server {
    /// Asks it to stop (SIGTERM) and waits: a drain that fails fails the demo.
    pub(crate) async fn stop(&mut self, narrator: &mut Narrator) -> anyhow::Result<()> {
        narrator.step("Stop");
        let id = self.child.id().context("it has ended already")?;
        let id = i32::try_from(id).context("no process id")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)?;
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait())
            .await
            .map_err(|_| anyhow::anyhow!("still running {} s after SIGTERM", STOP_LIMIT.as_secs()))??;
        anyhow::ensure!(status.success(), "it ended with {status}");
        narrator.done("drained and ended by itself");
        Ok(())
    }
}

/// The configuration: the demo's provider as an upstream, nothing else.
fn config_for(provider: &OAuthProvider, options: &Options, data: &Path) -> anyhow::Result<String> {
    let secret = data.join("demo-provider.secret");
    std::fs::write(&secret, &options.client_secret)?;
    Ok(format!(
        r#"# Written by gatehouse-demo at each run.
[token_broker.upstreams.demo]
display_name = "The demo's own provider"
authorization_endpoint = "{authorize}"
token_endpoint = "{token}"
revocation_endpoint = "{revoke}"
client_id = "{client}"
client_secret_file = {secret}
scopes = ["read"]
rotation = "strict"
"#,
        authorize = provider.authorization_endpoint(),
        token = provider.token_endpoint(),
        revoke = provider.revocation_endpoint(),
        client = options.client_id,
        // A JSON string is a TOML basic string.
        secret = serde_json::to_string(&secret.canonicalize()?)?,
    ))
}
