//! `gatehouse-demo`: does Gatehouse's main job from end to end while a person watches, through the same doors that
//! any client uses, and fails if any step did not do what it says.

mod api;
mod bench_start;
mod narrator;
mod server;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::narrator::Narrator;

/// Starts Gatehouse on this machine and does its main job from end to end
#[derive(Debug, Parser)]
#[command(
    name = "gatehouse-demo",
    version,
    after_help = "Examples:\n  gatehouse-demo\n  gatehouse-demo --json | jq .\n  gatehouse-demo bench-start\n\nExit status: 0 only if every step did what it says."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// Folder for the data; a second run goes on with it
    #[arg(long, value_name = "FOLDER", default_value = "target/demo-data")]
    data: PathBuf,
    /// The gatehouse program; by default the one beside this program
    #[arg(long, value_name = "FILE")]
    gatehouse: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures start, idle memory and size
    #[command(
        after_help = "Examples:\n  gatehouse-demo bench-start\n  gatehouse-demo bench-start --build release --json"
    )]
    BenchStart(bench_start::BenchArgs),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut narrator = Narrator::new(args.json);
    match run(&args, &mut narrator).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            narrator.failed(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, narrator: &mut Narrator) -> anyhow::Result<()> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let program = match &args.gatehouse {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("gatehouse"),
    };
    anyhow::ensure!(
        program.exists(),
        "{} is missing: run `make demo`, which builds it first",
        program.display()
    );
    if let Some(Command::BenchStart(bench)) = &args.command {
        return bench_start::run(bench, &program).await;
    }
    let mut server =
        server::start(&program, &args.data, narrator).await.context("Gatehouse did not start")?;
    // What failed is told at once; the server is dropped, and ends, behind it.
    steps::run(&server, narrator).await?;
    server.stop(narrator).await?;
    narrator.summary(&server);
    Ok(())
}
