//! One process of a cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Error, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// How much of a log a message holds.
const END_OF_LOG: u64 = 4096;

/// One process: where it is, and whether it runs.
#[derive(Debug)]
pub struct Node {
    /// `service-number`.
    pub name: String,
    /// The service, as the program's subcommand is called.
    pub service: &'static str,
    /// Where it takes connections: gRPC, or HTTP of a gateway. A worker has none and this says nothing.
    pub address: SocketAddr,
    /// Its private port.
    pub probes: SocketAddr,
    /// How often it was started.
    pub starts: u32,
    pub(super) program: PathBuf,
    pub(super) config: PathBuf,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) log: PathBuf,
    pub(super) child: Option<Child>,
    /// When it was last started.
    pub started_at: Option<Instant>,
    /// Whether it was told to end.
    pub(super) is_ending: bool,
}

impl Node {
    /// The file that it logs to, over all starts.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn launch(&mut self) -> io::Result<u32> {
        if self.child.is_some() {
            return Err(Error::other(format!("{} runs already", self.name)));
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.env_clear().arg(self.service).arg("--config").arg(&self.config).envs(&self.variables);
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let id = child.id();
        self.child = Some(child);
        self.is_ending = false;
        self.started_at = Some(Instant::now());
        self.starts += 1;
        Ok(id)
    }

    pub(super) fn kill9(&mut self) -> io::Result<Option<u32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        child.kill()?;
        child.wait()?;
        Ok(Some(child.id()))
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = self.id().ok_or_else(|| Error::other(format!("{} does not run", self.name)))?;
        kill(Pid::from_raw(i32::try_from(id).map_err(Error::other)?), signal).map_err(Error::from)
    }

    /// How it ended, if it has; told once.
    pub(super) fn has_ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// For how long it ran that has ended: until its last word, for whoever looks may have been held up for long since.
    pub(super) fn ran(&self) -> Duration {
        let last_word = std::fs::metadata(&self.log).and_then(|log| log.modified());
        let since = last_word.ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        self.started_at.map(|at| at.elapsed().saturating_sub(since)).unwrap_or_default()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(END_OF_LOG)))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            io::Result::Ok(String::from_utf8_lossy(&end).into_owned())
        };
        read().unwrap_or_else(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_ran_until_its_last_word_whoever_looks_when() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let file = File::create(&log).unwrap();
        let (hour, minutes) = (Duration::from_hours(1), Duration::from_mins(50));
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written.checked_sub(minutes).unwrap()).unwrap();
        let node = Node {
            name: "auth-1".into(),
            service: "auth",
            address: ([127, 0, 0, 1], 1).into(),
            probes: ([127, 0, 0, 1], 2).into(),
            starts: 1,
            program: PathBuf::new(),
            config: PathBuf::new(),
            variables: BTreeMap::new(),
            log,
            child: None,
            started_at: Instant::now().checked_sub(hour),
            is_ending: false,
        };
        let ran = node.ran();
        assert!(ran.abs_diff(Duration::from_mins(10)) < Duration::from_secs(30), "{ran:?}");
    }
}
