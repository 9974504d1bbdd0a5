//! However the demo ends, nothing that it started goes on, and it touches nothing of a Gatehouse that runs already.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs::{File, OpenOptions, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use gatehouse_testkit::eventually;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that stands for gatehouse: ready at once, deaf to SIGHUP as to a reload, and slow to stop, after which it
/// says so. Its gateway takes connections and never answers, so the tour stands still in its first step.
struct StandIn {
    place: TempDir,
    program: PathBuf,
    _gateway: TcpListener,
}

impl StandIn {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
        let program = place.path().join("gatehouse");
        let script = format!(
            r#"#!/bin/sh
here='{here}'
[ "$1" = --version ] && exit 0
trap '' HUP
trap 'sleep 0.2; echo stopped > "$here/stopped"; exit 0' TERM
echo $$ > "$here/pid"
echo '{{"event":"ready","gateway":"http://{address}","docs":"http://{address}/docs"}}'
while :; do sleep 0.05; done
"#,
            here = place.path().display(),
            address = gateway.local_addr().unwrap(),
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Self { place, program, _gateway: gateway }
    }

    fn demo(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatehouse-demo"));
        command.arg("--gatehouse").arg(&self.program).arg("--data").arg(self.data());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// Its process, once it runs.
    async fn process(&self) -> Pid {
        let file = self.place.path().join("pid");
        let read = || std::fs::read_to_string(&file).ok()?.trim().parse().ok().map(Pid::from_raw);
        eventually(PATIENCE, || std::future::ready(read())).await
    }
}

/// Whether it runs: what has ended may wait long for somebody to ask how.
fn runs(process: Pid) -> bool {
    let state = |stat: &str| stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !matches!(state(&stat), Some('Z' | 'X')))
}

fn process_of(demo: &Child) -> Pid {
    Pid::from_raw(demo.id().unwrap().try_into().unwrap())
}

#[tokio::test]
async fn a_signal_stops_what_the_demo_started_in_order() {
    for (signal, code) in [(Signal::SIGHUP, 129), (Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let stand_in = StandIn::new();
        let mut demo = stand_in.demo().process_group(0).spawn().unwrap();
        let process = stand_in.process().await;
        // The demo waits for its first answer, which does not come. A terminal sends to the whole group.
        killpg(process_of(&demo), signal).unwrap();
        let ended = tokio::time::timeout(PATIENCE, demo.wait()).await;
        let still_running = runs(process);
        if still_running {
            kill(process, Signal::SIGKILL).unwrap();
        }
        assert_eq!(ended.unwrap().unwrap().code(), Some(code), "{signal}");
        assert!(!still_running, "{signal}: what the demo started goes on");
        assert!(stand_in.place.path().join("stopped").exists(), "{signal}: it was not let stop in order");
    }
}

#[tokio::test]
async fn a_signal_ends_a_measurement_of_starts_and_its_program() {
    let stand_in = StandIn::new();
    let mut demo =
        stand_in.demo().args(["bench-start", "--runs", "1", "--idle-seconds", "600"]).spawn().unwrap();
    let process = stand_in.process().await;
    kill(process_of(&demo), Signal::SIGTERM).unwrap();
    let ended = tokio::time::timeout(PATIENCE, demo.wait()).await;
    // It is killed and not waited for.
    let stopped = async {
        while runs(process) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let still_running = tokio::time::timeout(Duration::from_secs(5), stopped).await.is_err();
    if still_running {
        kill(process, Signal::SIGKILL).unwrap();
    }
    assert_eq!(ended.unwrap().unwrap().code(), Some(143));
    assert!(!still_running);
}

#[tokio::test]
async fn a_demo_beside_another_touches_nothing_of_it() {
    let stand_in = StandIn::new();
    let data = stand_in.data();
    std::fs::create_dir_all(data.join("gatehouse")).unwrap();
    let (log, config) = (data.join("gatehouse.log"), data.join("demo.toml"));
    std::fs::write(&log, "what the other one says\n").unwrap();
    std::fs::write(&config, "# of the other one\n").unwrap();
    // As a Gatehouse holds its folder.
    let _lock = hold(&data.join("gatehouse/lock"));

    let output = stand_in.demo().output().await.unwrap();

    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("another Gatehouse uses"), "{complaint}");
    assert!(complaint.contains("--data"), "{complaint}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "what the other one says\n");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "# of the other one\n");
    assert!(!stand_in.place.path().join("pid").exists(), "a second program was started");
}

fn hold(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.try_lock().unwrap();
    file
}
