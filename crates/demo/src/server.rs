//! The Gatehouse that the demo starts, and the small OAuth provider that stands for somebody else's API.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use gatehouse_testkit::oauth_provider::{OAuthProvider, Options};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::api::text;
use crate::narrator::Narrator;
use crate::tour::{KEPT_CHECKPOINT, KEPT_KEY, Proof, Tour, Visitor};

/// How long a start may take. A debug build on a slow, busy machine needs a few seconds.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// A Gatehouse that was started, and its surroundings.
pub(crate) struct Server {
    child: Child,
    /// What it says on its standard output, until it is ready.
    said: Option<Lines<BufReader<ChildStdout>>>,
    /// Stands for as long as somebody may ask it.
    provider: OAuthProvider,
    program: PathBuf,
    data: PathBuf,
    began: Instant,
    /// Where in the log its own words begin.
    log_begins: u64,
}

impl Server {
    /// Starts both, and waits for neither.
    pub(crate) async fn start(program: &Path, data: &Path, narrator: &mut Narrator) -> anyhow::Result<Self> {
        narrator.step("Start five services and a worker in one process");
        std::fs::create_dir_all(data)
            .with_context(|| format!("the folder {} can't be made", data.display()))?;
        // Before anything is written: the files here are those of the one that runs.
        ensure_free(data)?;
        let options = Options::default();
        let provider = OAuthProvider::start(options.clone()).await?;
        let config = data.join("demo.toml");
        std::fs::write(&config, config_for(&provider, &options, data)?)?;
        let log = std::fs::File::options().append(true).create(true).open(log_of(data))?;
        let log_begins = log.metadata()?.len();
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
            // Ctrl-C on a terminal is for the demo, which stops it: a second signal would cut its drain short.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} can't be run", program.display()))?;
        let said = BufReader::new(child.stdout.take().context("the program has no standard output")?).lines();
        let (program, data) = (program.to_owned(), data.to_owned());
        Ok(Self { child, said: Some(said), provider, program, data, began, log_begins })
    }

    /// Waits until Gatehouse is ready; what there is to see.
    pub(crate) async fn ready(&mut self, narrator: &mut Narrator) -> anyhow::Result<Tour> {
        let mut lines = self.said.take().context("it was waited for before")?;
        let ready = tokio::time::timeout(START_LIMIT, async {
            while let Some(line) = lines.next_line().await? {
                let said: Value = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
                if said["event"] == "ready" {
                    return Ok(said);
                }
            }
            bail!("it ended: {}", self.last_words())
        });
        let ready =
            ready.await.map_err(|_| anyhow::anyhow!("not ready after {} s", START_LIMIT.as_secs()))??;
        // Whatever else it says must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let gateway = text(&ready, "/gateway")?.to_owned();
        narrator.say(&format!("gateway {gateway}, API pages {}", text(&ready, "/docs")?));
        narrator.say(&format!("data in {}, log in {}", self.data.display(), log_of(&self.data).display()));
        narrator.done(&format!("ready after {} ms", self.began.elapsed().as_millis()));
        let verify = format!(
            "\"{}\" verify-audit-chain --data \"{}\" --checkpoint \"{}\" --verifier-key-file \"{}\"",
            self.program.display(),
            self.data.join("gatehouse").display(),
            self.data.join(KEPT_CHECKPOINT).display(),
            self.data.join(KEPT_KEY).display()
        );
        Ok(Tour {
            authorities: Vec::new(),
            visitor: Visitor::New,
            upstream_api: self.provider.api_url(),
            data: self.data.clone(),
            proof: Proof::Here { program: self.program.clone(), data: self.data.join("gatehouse") },
            next: vec![
                ("see what it stands on", "docs/architecture.md".to_owned()),
                ("start it and keep it", "make up".to_owned()),
                ("every setting", "docs/configuration.md".to_owned()),
                ("the audit log of this run", verify),
            ],
            gateway,
        })
    }

    /// The last line that it logged itself; before it stand those of earlier runs.
    fn last_words(&self) -> String {
        let log = std::fs::read(log_of(&self.data)).unwrap_or_default();
        let begin = usize::try_from(self.log_begins).unwrap_or(usize::MAX);
        let own = String::from_utf8_lossy(log.get(begin..).unwrap_or_default());
        own.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// Asks it to stop (SIGTERM) and waits: a drain that fails fails the demo.
    pub(crate) async fn stop(&mut self, narrator: &mut Narrator) -> anyhow::Result<()> {
        narrator.step("Stop");
        // A signal may come when it has just been waited for.
        let Some(id) = self.child.id() else { return Ok(()) };
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

fn log_of(data: &Path) -> PathBuf {
    data.join("gatehouse.log")
}

/// Fails if a Gatehouse holds the folder for the databases; `lock` in it is how it does (`gatehouse up`).
fn ensure_free(data: &Path) -> anyhow::Result<()> {
    let Ok(lock) = std::fs::File::open(data.join("gatehouse/lock")) else { return Ok(()) };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => bail!(
            "another Gatehouse uses {}, perhaps of a demo that was killed. Stop it (SIGTERM), or name another folder with \
             --data.",
            data.display()
        ),
        // What else there is to say of it, Gatehouse says itself.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
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
