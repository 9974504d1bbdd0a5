//! `gatehouse verify-audit-chain`: the proof that a log is as it was, read straight from the database.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use gatehouse_audit::domain::note::VerifierKey;
use gatehouse_audit::domain::verify::{Fault, Report, Verdict};
use gatehouse_audit::verify_log::{self, Trust};
use gatehouse_db::{DatabaseUrl, Db};

use crate::cli::ConfigArgs;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Data folder of `gatehouse up`; without it, the configuration says where the audit database is
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Only this log; otherwise every log
    #[arg(long, value_name = "NAME")]
    log: Option<String>,
    /// Checkpoint that was kept elsewhere; may be given several times
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// Key that checkpoints must be signed with, `name+hash+base64`, kept elsewhere
    #[arg(long, value_name = "KEY")]
    verifier_key: Option<String>,
    /// One JSON object for each log
    #[arg(long)]
    json: bool,
}

/// Verifies and says what was found. The exit status is that of the worst log.
pub(crate) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = args.config.load()?.databases.audit;
    if let Some(data) = &args.data {
        let file = data.join("audit/audit.db");
        anyhow::ensure!(file.exists(), "{} is no data folder with an audit log", data.display());
        config.url = DatabaseUrl::sqlite(&file);
    }
    let trust = trust(&args)?;
    let db = Db::connect(&config, "audit").await?;
    let names = match &args.log {
        Some(name) => vec![name.clone()],
        None => verify_log::logs_in(&db).await?,
    };
    // A checkpoint names the log that it is of, so with one only that log is asked about.
    anyhow::ensure!(
        trust.checkpoints.is_empty() || names.len() == 1,
        "there are several logs: say with --log which one the checkpoint is of"
    );
    let mut worst = verify_log::ExitCode::Verified;
    for name in names {
        let report = verify_log::verify_database(&db, &name, &trust).await?;
        let code = verify_log::ExitCode::from(&report);
        if rank(code) > rank(worst) {
            worst = code;
        }
        if args.json { println!("{}", serde_json::to_string(&report)?) } else { tell(&report) }
    }
    db.close().await;
    Ok(ExitCode::from(worst as u8))
}

/// One sentence for a fault.
fn describe(fault: &Fault) -> String {
    match fault {
        Fault::NotALeaf { why } => format!("its bytes are no leaf: {why}"),
        Fault::OtherLog => "it belongs to another log".to_owned(),
        Fault::OutOfPlace { leaf_seq, .. } => format!("entry {leaf_seq} stands in its place"),
        Fault::ChainBroken => "its link does not fit the entry before".to_owned(),
        Fault::PayloadChanged => "its payload is not the one that was logged".to_owned(),
        Fault::Missing { known_size } => {
            format!("the log is known to have had {known_size} entries and ends before it")
        }
        Fault::BeyondHead => "it lies beyond the end that the log's head states".to_owned(),
        Fault::Rewritten { checkpoint_size } => {
            format!(
                "the entries agree with each other but not with the checkpoint of {checkpoint_size}: they were rewritten"
            )
        }
        Fault::PrefixRemoved => {
            "entries before it are gone without a signed statement that they were pruned".to_owned()
        }
        Fault::PlainRowDiffers => "the plain row shown to people does not say what it says".to_owned(),
        Fault::TileChanged { path } => format!("the stored tile {path} is not the one that the entries give"),
    }
}

fn trust(args: &VerifyArgs) -> anyhow::Result<Trust> {
    let checkpoints = args
        .checkpoint
        .iter()
        .map(|path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("the checkpoint {} can't be read", path.display()))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let key = args
        .verifier_key
        .as_deref()
        .map(|text| text.parse::<VerifierKey>().map_err(|error| anyhow::anyhow!("--verifier-key: {error}")))
        .transpose()?;
    Ok(Trust { checkpoints, key })
}

const fn rank(code: verify_log::ExitCode) -> u8 {
    match code {
        verify_log::ExitCode::Verified => 0,
        verify_log::ExitCode::TailNotProven => 1,
        verify_log::ExitCode::Broken => 2,
        verify_log::ExitCode::Failed => 3,
    }
}

fn tell(report: &Report) {
    let kept = report.size - report.first;
    print!("log {}: {kept} entries kept of {}, root {}: ", report.log, report.size, report.root);
    match &report.verdict {
        Verdict::Verified { proven } if *proven == report.size => println!("verified to the last entry"),
        Verdict::Verified { proven } => {
            println!(
                "verified to entry {proven}; the {} after the checkpoint agree with each other",
                report.size - proven
            );
        }
        Verdict::TailNotProven => {
            println!(
                "the entries agree with each other; tail not proven: give a checkpoint that was kept elsewhere"
            );
        }
        Verdict::Broken { entry, up_to, fault } => {
            let last = up_to.map_or_else(String::new, |last| format!(" to {last}"));
            println!("BROKEN at entry {entry}{last}: {}", describe(fault));
        }
    }
    for note in &report.notes {
        println!("  note: {note}");
    }
}
