//! `gatehouse-demo bench-start`: how long a start takes, what it costs to stand idle, how large the program is.
//!
//! Memory is read twice: of a process that has only started, and of one that has worked and then stood still, which
//! holds what its databases' caches and its allocator kept. Medians over several runs, beside a floor measured in the same
//! run: the same program printing its version, which is what the operating system needs to load and end it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::api::text;
use crate::work::{self, Work};

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Starts to take the median of, 1 to 100
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Seconds to stand idle before memory is read
    #[arg(long, default_value_t = 5)]
    idle_seconds: u64,
    /// Jobs to run before memory is read again
    #[arg(long, default_value_t = 500)]
    jobs: u32,
    /// Sign-ins among these jobs; one at least
    #[arg(long, default_value_t = 10)]
    sign_ins: u32,
    /// Seconds to stand idle after them
    #[arg(long, default_value_t = 30)]
    rest_seconds: u64,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Also build from nothing and after a change in one crate, with this profile; takes minutes
    #[arg(long, value_name = "PROFILE")]
    build: Option<String>,
    /// Write the table into this file too, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Where the table stands in a page.
const BEGIN: &str = "<!-- start: written by `make bench-start`, do not edit -->";
const END: &str = "<!-- end of start -->";

/// Measures and prints.
pub(crate) async fn run(args: &BenchArgs, program: &Path) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let data = place.path().join("data");
    let floor = median((0..args.runs).map(|_| version(program)).collect::<anyhow::Result<_>>()?);
    let first = start(program, &data, None).await?.stop().await?;
    let mut starts = Vec::new();
    let mut memory = None;
    for run in 0..args.runs {
        let server = start(program, &data, None).await?;
        if run + 1 == args.runs {
            memory = Some(server.memory_after(args.idle_seconds).await?);
        }
        starts.push(server.stop().await?);
    }
    let memory = memory.context("no run")?;
    let worked = after_work(args, program, place.path()).await?;
    let size = std::fs::metadata(program)?.len();
    let builds = match &args.build {
        Some(profile) => Some(builds(profile, place.path()).await?),
        None => None,
    };
    let second = median(starts);
    if args.json {
        let builds = builds
            .map(|builds| json!({"cold_s": builds.cold.as_secs_f64(), "warm_s": builds.warm.as_secs_f64()}));
        println!(
            "{}",
            json!({
                "first_start_ms": millis(first), "second_start_ms": millis(second), "floor_ms": millis(floor),
                "runs": args.runs, "idle_rss_kib": memory.resident, "idle_pss_kib": memory.proportional,
                "idle_private_kib": memory.private,
                "jobs": args.jobs, "sign_ins": args.sign_ins.max(1), "rest_s": args.rest_seconds,
                "worked_rss_kib": worked.resident, "worked_pss_kib": worked.proportional,
                "worked_private_kib": worked.private, "program_bytes": size, "build": builds,
            })
        );
        return Ok(());
    }
    let mut table = String::from("| figure | value | aim |\n| --- | ---: | --- |\n");
    let mut row = |figure: &str, value: String, aim: &str| {
        let _ = writeln!(table, "| {figure} | {value} | {aim} |");
    };
    row("start to ready, empty folder", format!("{:.0} ms", millis(first)), "");
    let of_second = format!("start to ready, second start (median of {})", args.runs);
    row(&of_second, format!("{:.0} ms", millis(second)), "under 1000 ms");
    row("floor: the program printing its version (median)", format!("{:.1} ms", millis(floor)), "");
    let idle = format!("memory of all services after {} s idle, resident (RSS)", args.idle_seconds);
    row(&idle, format!("{:.1} MB", megabytes(memory.resident)), "under 60 MB");
    row("of it this process's own (private)", format!("{:.1} MB", megabytes(memory.private)), "");
    let after = format!(
        "memory after {} jobs and {} sign-ins, then {} s idle, resident (RSS)",
        args.jobs,
        args.sign_ins.max(1),
        args.rest_seconds
    );
    row(&after, format!("{:.1} MB", megabytes(worked.resident)), "");
    row("of it this process's own (private)", format!("{:.1} MB", megabytes(worked.private)), "");
    row("size of the program", format!("{:.1} MB", megabytes(size / 1024)), "");
    if let Some(builds) = builds {
        row("build from nothing", format!("{:.0} s", builds.cold.as_secs_f64()), "");
        row("build after a change in `core`", format!("{:.0} s", builds.warm.as_secs_f64()), "");
    }
    print!("{table}");
    if let Some(file) = &args.markdown {
        let page = std::fs::read_to_string(file)?;
        let (before, rest) = page.split_once(BEGIN).context("the file has no place for this table")?;
        let (_, after) = rest.split_once(END).context("the file has no end of the place for this table")?;
        std::fs::write(file, format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))?;
    }
    Ok(())
}

fn version(program: &Path) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{} --version ended with {status}", program.display());
    Ok(began.elapsed())
}

/// What a process holds that has done some work and rests.
async fn after_work(args: &BenchArgs, program: &Path, place: &Path) -> anyhow::Result<Memory> {
    let config = place.join("work.toml");
    work::write_config(&config)?;
    let server = start(program, &place.join("worked"), Some(&config)).await?;
    let work = Work { jobs: args.jobs, sign_ins: args.sign_ins };
    work::run(&server.gateway, work).await.context("the work before memory is read")?;
    let memory = server.memory_after(args.rest_seconds).await?;
    server.stop().await?;
    Ok(memory)
}

struct Running {
    child: tokio::process::Child,
    id: u32,
    gateway: String,
    ready_after: Duration,
}

async fn start(program: &Path, data: &Path, config: Option<&Path>) -> anyhow::Result<Running> {
    let began = Instant::now();
    let mut child = tokio::process::Command::new(program)
        .args(["up", "--json", "--free-ports", "--data"])
        .arg(data)
        .args(config.map(|_| "--config"))
        .args(config)
        .env_remove("GATEHOUSE_ENV")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} can't be run", program.display()))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let line = tokio::time::timeout(LIMIT, BufReader::new(stdout).lines().next_line())
        .await??
        .context("it ended")?;
    let ready_after = began.elapsed();
    let said: Value = serde_json::from_str(&line)?;
    ensure!(said["event"] == "ready", "it said {line}");
    let id = child.id().context("it ended")?;
    let gateway = text(&said, "/gateway")?.to_owned();
    Ok(Running { child, id, gateway, ready_after })
}

impl Running {
    /// What it holds once it was left alone for so long.
    async fn memory_after(&self, seconds: u64) -> anyhow::Result<Memory> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Memory::of(self.id)
    }

    /// Ends it in order; how long it took to be ready.
    async fn stop(mut self) -> anyhow::Result<Duration> {
        kill(Pid::from_raw(i32::try_from(self.id)?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await??;
        ensure!(status.success(), "it ended with {status}");
        Ok(self.ready_after)
    }
}

/// KiB, from the kernel's own books (`/proc/<id>/smaps_rollup`).
struct Memory {
    resident: u64,
    proportional: u64,
    private: u64,
}

impl Memory {
    fn of(id: u32) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| {
                    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
                })
                .with_context(|| format!("no {name} in smaps_rollup"))
        };
        Ok(Self {
            resident: field("Rss:")?,
            proportional: field("Pss:")?,
            private: field("Private_Dirty:")? + field("Private_Clean:")?,
        })
    }
}

struct Builds {
    cold: Duration,
    warm: Duration,
}

async fn builds(profile: &str, place: &Path) -> anyhow::Result<Builds> {
    let target: PathBuf = place.join("target");
    let build = async || -> anyhow::Result<Duration> {
        let began = Instant::now();
        let status = tokio::process::Command::new("cargo")
            .args(["build", "--locked", "--bin", "gatehouse", "--profile", profile, "--target-dir"])
            .arg(&target)
            .kill_on_drop(true)
            .status()
            .await?;
        ensure!(status.success(), "cargo build ended with {status}");
        Ok(began.elapsed())
    };
    let cold = build().await?;
    // A change in the crate that every other one stands on: the worst case of a warm build.
    let touched = Path::new("crates/core/src/lib.rs");
    let file =
        std::fs::File::options().append(true).open(touched).context("run this in the repository's root")?;
    // Now is later than the build, and no lie if this is killed before the file has its own time again.
    let before = file.metadata()?.modified()?;
    #[expect(clippy::disallowed_methods, reason = "what cargo compares is the system's time of files")]
    let now = std::time::SystemTime::now();
    file.set_modified(now)?;
    let warm = build().await;
    file.set_modified(before)?;
    Ok(Builds { cold, warm: warm? })
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
