//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::figure::{Run, summarise};
use crate::load::Times;
use crate::machine::{Machine, is_release};
use crate::report::{Report, compare, markdown};
use crate::session::{Needs, Session};
use crate::suites::{ALL, Suite};
use crate::{bare, counts, progress};

/// Measures Gatehouse against what this machine can do at all
#[derive(Debug, Parser)]
#[command(
    name = "gatehouse-bench",
    version,
    after_help = "Examples:\n  gatehouse-bench all --save target/bench/last.json --markdown docs/benchmarks.md\n  \
                  gatehouse-bench auth --seconds 5 --runs 5\n  gatehouse-bench raw --json | jq '.figures[] | {key, value}'\n  \
                  gatehouse-bench compare target/bench/before.json target/bench/last.json\n\n\
                  Needs postgresql and redis-server of the distribution; starts its own and leaves nothing behind."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything; some ten minutes
    All(Measure),
    /// Refreshes, sign-ins, verifications, exchanges
    Auth(Measure),
    /// Requests through the whole pipeline, and their processor time
    Gateway(Measure),
    /// Decisions of the rate limiter
    Ratelimit(Measure),
    /// Brokered tokens, cached and refreshed
    Broker(Measure),
    /// Jobs from submission to finish, event streams and their memory
    Job(Measure),
    /// Appends to the audit log, and proving it
    Audit(Measure),
    /// The limits of the machine alone
    Raw(Measure),
    /// Counts statements, commits, syncs and Redis calls of each operation, without any load
    Counts {
        /// Operations of each kind
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        operations: u32,
        /// Fill the marked region of this file with the counts
        #[arg(long, value_name = "FILE")]
        markdown: Option<PathBuf>,
    },
    /// Says what changed between two saved runs; what lies within the spread is called noise
    #[command(after_help = "Exit status: 1 if a figure became worse by more than the noise.")]
    Compare {
        /// The earlier run
        old: PathBuf,
        /// The later run
        #[arg(default_value = "target/bench/last.json")]
        new: PathBuf,
    },
    /// A bare gRPC server, for the load
    #[command(hide = true)]
    BareRpc,
    /// A bare proxy, for the load
    #[command(hide = true)]
    BareProxy { upstream: u16 },
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Measure {
    /// How long each figure is measured in each run, seconds; half of it before that to warm up
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Runs; the table shows their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Idle event streams whose memory is measured
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=8000))]
    idle_streams: u32,
    /// Print the report as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Save the report; where there is one, say first what changed since (figures not measured now stay in it)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Fill the marked region of this file with the table
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Does what the command line says.
///
/// # Errors
/// What went wrong; a figure with a failed call in it is none.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::All(options) => measure(&ALL, &options).await?,
        Command::Auth(options) => measure(&[Suite::Auth], &options).await?,
        Command::Gateway(options) => measure(&[Suite::Gateway], &options).await?,
        Command::Ratelimit(options) => measure(&[Suite::Ratelimit], &options).await?,
        Command::Broker(options) => measure(&[Suite::Broker], &options).await?,
        Command::Job(options) => measure(&[Suite::Job], &options).await?,
        Command::Audit(options) => measure(&[Suite::Audit], &options).await?,
        Command::Raw(options) => measure(&[Suite::Raw], &options).await?,
        Command::Counts { operations, markdown } => counts::run(operations, markdown.as_deref()).await?,
        Command::Compare { old, new } => {
            let (text, worse) = compare::table(&Report::read(&old)?, &Report::read(&new)?);
            print!("{text}");
            return Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::BareRpc => bare::serve_rpc().await?,
        Command::BareProxy { upstream } => bare::serve_proxy(upstream).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(suites: &[Suite], options: &Measure) -> Result<()> {
    ensure!((0.1..=600.0).contains(&options.seconds), "--seconds must be from 0.1 to 600");
    if !is_release() {
        progress::step(markdown::MEANINGLESS);
    }
    let began = Instant::now();
    let machine = Machine::look();
    progress::step("starting PostgreSQL (durable), Redis, the services, the bare servers");
    let needs = suites.iter().map(|suite| suite.needs()).fold(Needs::default(), Needs::and);
    let times = Times {
        warm: Duration::from_secs_f64(options.seconds / 2.0),
        measure: Duration::from_secs_f64(options.seconds),
    };
    let session = Session::start(times, options.idle_streams as usize, needs).await?;
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        let mut run = Run::new();
        for suite in suites {
            progress::step(&format!(
                "run {number} of {}, {suite:?}, {} s so far",
                options.runs,
                began.elapsed().as_secs()
            ));
            suite.measure(&session, &mut run).await?;
        }
        runs.push(run);
    }
    session.stop().await?;
    progress::step(&format!("done after {} s", began.elapsed().as_secs()));
    let report = Report { machine, runs: runs.len(), seconds: options.seconds, figures: summarise(&runs) };
    if let Some(file) = &options.save {
        if let Ok(before) = Report::read(file) {
            eprintln!("\nSince {}:\n{}", file.display(), compare::table(&before, &report).0);
            std::fs::copy(file, file.with_file_name("before.json"))?;
        }
        report.save(file)?;
    }
    if let Some(file) = &options.markdown {
        markdown::fill(file, &report)?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", markdown::table(&report));
    }
    if !is_release() {
        progress::step(markdown::MEANINGLESS);
    }
    Ok(())
}
