//! `gatehouse-demo`: does Gatehouse's main job from end to end while a person watches, through the same doors that
//! any client uses, and fails if any step did not do what it says.

mod api;
mod bench_start;
mod narrator;
mod provider;
mod server;
mod signals;
mod steps;
mod tour;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;

use crate::narrator::Narrator;
use crate::server::Server;
use crate::signals::Signals;
use crate::tour::{Proof, Tour, Visitor};

/// Starts Gatehouse on this machine and does its main job from end to end
#[derive(Debug, Parser)]
#[command(
    name = "gatehouse-demo",
    version,
    after_help = "Examples:\n  gatehouse-demo\n  gatehouse-demo --json | jq .\n  gatehouse-demo bench-start\n\nExit status: 0 only if every step did what it says; 128 and its number after a signal."
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
    /// Measures start, memory when idle and after work, and size
    #[command(
        after_help = "Examples:\n  gatehouse-demo bench-start\n  gatehouse-demo bench-start --build release --json"
    )]
    BenchStart(bench_start::BenchArgs),
    /// Goes through a Gatehouse that runs already, as its first admin
    #[command(
        after_help = "Example:\n  gatehouse-demo tour --url https://localhost:8443 --authority ca.crt --email ada@example.com --password-file password.txt --upstream-api https://localhost:9443/api/me\n\nThe broker there must know the demo's provider as the upstream `demo`."
    )]
    Tour(TourArgs),
    /// Runs the demo's OAuth provider by itself, over HTTPS
    Provider(provider::ProviderArgs),
    /// Makes the provider's certificate, for the provider and for who is to believe it
    ProviderCertificate(provider::CertificateArgs),
}

#[derive(Debug, clap::Args)]
struct TourArgs {
    /// Address of the gateway
    #[arg(long, value_name = "URL")]
    url: String,
    /// PEM file of certificates to believe beside those of the machine; may be given several times
    #[arg(long, value_name = "FILE")]
    authority: Vec<PathBuf>,
    /// The first admin's address
    #[arg(long, value_name = "ADDRESS")]
    email: String,
    /// File that holds their password
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// What the upstream `demo` protects
    #[arg(long, value_name = "URL")]
    upstream_api: String,
    /// Folder for the checkpoint and the key that are kept
    #[arg(long, value_name = "FOLDER")]
    keep: PathBuf,
}

/// How it ended, where nothing failed.
enum Ended {
    Done,
    BySignal(Signal),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut narrator = Narrator::new(args.json);
    match run(&args, &mut narrator).await {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        // As a shell tells it.
        Ok(Ended::BySignal(signal)) => ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)),
        Err(error) => {
            narrator.failed(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, narrator: &mut Narrator) -> anyhow::Result<Ended> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bench = match &args.command {
        Some(Command::Tour(tour)) => return go(tour, narrator).await.map(|()| Ended::Done),
        Some(Command::Provider(provider)) => return provider::run(provider).await.map(|()| Ended::Done),
        Some(Command::ProviderCertificate(certificate)) => {
            return provider::make_certificate(certificate).map(|()| Ended::Done);
        }
        Some(Command::BenchStart(bench)) => Some(bench),
        None => None,
    };
    let program = match &args.gatehouse {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("gatehouse"),
    };
    anyhow::ensure!(
        program.exists(),
        "{} is missing: run `make demo`, which builds it first",
        program.display()
    );
    // Before anything is started.
    let mut signals = Signals::listen()?;
    let Some(bench) = bench else { return demonstrate(args, &program, &mut signals, narrator).await };
    tokio::select! {
        measured = bench_start::run(bench, &program) => measured.map(|()| Ended::Done),
        // What runs is dropped, and killed by that; its data are thrown away.
        signal = signals.recv() => Ok(Ended::BySignal(signal)),
    }
}

/// The demo itself.
async fn demonstrate(
    args: &Args,
    program: &Path,
    signals: &mut Signals,
    narrator: &mut Narrator,
) -> anyhow::Result<Ended> {
    let mut server = Server::start(program, &args.data, narrator).await.context("Gatehouse did not start")?;
    let signal = tokio::select! {
        // What failed is told at once; the server is dropped, and ends, behind it.
        toured = tour(&mut server, narrator) => {
            narrator.summary(&toured?);
            return Ok(Ended::Done);
        }
        signal = signals.recv() => signal,
    };
    narrator.say(&format!("{signal}: what was started stops; a second signal kills it"));
    tokio::select! {
        stopped = server.stop(narrator) => stopped?,
        _ = signals.recv() => {}
    }
    Ok(Ended::BySignal(signal))
}

/// Every step, the stop included; where to look next.
async fn tour(server: &mut Server, narrator: &mut Narrator) -> anyhow::Result<Vec<(&'static str, String)>> {
    let tour = server.ready(narrator).await.context("Gatehouse did not start")?;
    steps::run(&tour, narrator).await?;
    server.stop(narrator).await?;
    Ok(tour.next)
}

/// The tour through what runs already.
async fn go(args: &TourArgs, narrator: &mut Narrator) -> anyhow::Result<()> {
    let password = std::fs::read_to_string(&args.password_file)
        .with_context(|| format!("{} can't be read", args.password_file.display()))?;
    let tour = Tour {
        gateway: args.url.clone(),
        authorities: args.authority.clone(),
        visitor: Visitor::Known { email: args.email.clone(), password: password.trim().to_owned() },
        upstream_api: args.upstream_api.clone(),
        data: args.keep.clone(),
        proof: Proof::Elsewhere,
        next: vec![("the API's pages", format!("{}/docs", args.url.trim_end_matches('/')))],
    };
    steps::run(&tour, narrator).await?;
    narrator.summary(&tour.next);
    Ok(())
}
