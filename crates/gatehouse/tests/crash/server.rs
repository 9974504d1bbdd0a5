//! The process that is killed: `gatehouse up` on one data folder, started again and again.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Another build to try, such as the release build.
const PROGRAM_VARIABLE: &str = "GATEHOUSE_SOAK_PROGRAM";
/// How long a start may take on a slow, busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Most iterations of a job here; the jobs ask for more, so that each is told that they were clamped.
pub(crate) const ITERATIONS: u32 = 50;

/// Leases of a second and frequent looks: a round then waits for the product, not for a timeout made for production.
const SETTINGS: [(&str, &str); 5] = [
    ("GATEHOUSE_OPTIMIZER__MIN_ITERATION_MS", "20"),
    ("GATEHOUSE_JOB__LEASE_TTL_MS", "1200"),
    ("GATEHOUSE_JOB__SWEEP_INTERVAL_MS", "100"),
    ("GATEHOUSE_OUTBOX__POLL_MS", "100"),
    // On a machine that is busy for seconds, a client's retry must still be one.
    ("GATEHOUSE_AUTH__REFRESH_RETRY_WINDOW_S", "180"),
];

/// A kill is an attempt that failed, and so is a lease lost to a machine too busy for heartbeats.
const CONFIG: &str = "[job.kinds.optimize]\nmax_attempts = 50\nretry_pause_ms = 50\n";

/// Where the data is and how often the process was started and killed.
pub(crate) struct Server {
    program: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
    address: watch::Sender<Option<String>>,
    /// Time from each start to ready, as its starter sees it.
    pub(crate) ready_after: Vec<Duration>,
    /// Kills so far.
    pub(crate) kills: u64,
}

impl Server {
    /// Nothing runs yet; the data will be below `folder`.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        std::fs::write(folder.join("soak.toml"), CONFIG)?;
        let (address, _) = watch::channel(None);
        let program = std::env::var_os(PROGRAM_VARIABLE).unwrap_or(env!("CARGO_BIN_EXE_gatehouse").into());
        Ok(Self {
            program: program.into(),
            folder: folder.to_owned(),
            child: None,
            address,
            ready_after: Vec::new(),
            kills: 0,
        })
    }

    /// Where the gateway is; `None` while nothing runs.
    pub(crate) fn address(&self) -> watch::Receiver<Option<String>> {
        self.address.subscribe()
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let stdout = self.spawn()?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = tokio::time::timeout(START_LIMIT, async {
            while let Some(line) = lines.next_line().await? {
                let said: Value = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
                if said["event"] == "ready" {
                    return Ok(said);
                }
            }
            bail!("the process ended instead of being ready; its log is {}", self.log().display())
        });
        let ready =
            ready.await.map_err(|_| anyhow::anyhow!("not ready after {} s", START_LIMIT.as_secs()))??;
        let gateway = ready["gateway"].as_str().context("no gateway")?.to_owned();
        // Whatever else it says must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.address.send_replace(Some(gateway));
        let took = began.elapsed();
        self.ready_after.push(took);
        Ok(took)
    }

    /// Starts it and kills it `after` that, most likely before it is ready.
    pub(crate) async fn start_and_kill(&mut self, after: Duration) -> anyhow::Result<()> {
        let stdout = self.spawn()?;
        // The moment of the kill is what is tried here.
        tokio::time::sleep(after).await;
        self.kill().await?;
        drop(stdout);
        Ok(())
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("nothing runs")?;
        child.start_kill()?;
        self.address.send_replace(None);
        let status = child.wait().await?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        anyhow::ensure!(signal == Some(9), "it had ended by itself with {status}");
        self.kills += 1;
        Ok(())
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Runs `gatehouse verify-audit-chain` on one log, with a checkpoint that was kept.
    pub(crate) async fn verify(&self, log: &str, checkpoint: &Path) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.program);
        command.arg("verify-audit-chain").arg("--data").arg(self.folder.join("gatehouse data"));
        command.args(["--log", log, "--checkpoint"]).arg(checkpoint);
        Ok(command.output().await?)
    }

    /// The file that the process logs to.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("gatehouse.log")
    }

    fn spawn(&mut self) -> anyhow::Result<tokio::process::ChildStdout> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&self.program)
            .args(["up", "--json", "--free-ports", "--data"])
            .arg(self.folder.join("gatehouse data"))
            .arg("--config")
            .arg(self.folder.join("soak.toml"))
            .env_remove("GATEHOUSE_ENV")
            .env_remove(PROGRAM_VARIABLE)
            .env("MAX_ITERATIONS", ITERATIONS.to_string())
            .envs(SETTINGS)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} can't be run", self.program.display()))?;
        let stdout = child.stdout.take().context("the program has no standard output")?;
        self.child = Some(child);
        Ok(stdout)
    }
}
