//! `gatehouse verify-audit-chain`: the proof that a log is as it was, read straight from the database.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use gatehouse_audit::domain::names::LogId;
use gatehouse_audit::domain::note::VerifierKey;
use gatehouse_audit::domain::verify::{Fault, Report, Verdict};
use gatehouse_audit::keys::SubjectKeys;
use gatehouse_audit::verify_log::{self, Retention, Trust};
use gatehouse_core::{Clock, Environment, ErrorCode};
use gatehouse_db::{DatabaseUrl, Db};

use crate::cli::{ConfigArgs, environment};
use crate::output::{complain, say};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Data folder of `gatehouse up`; without it, the configuration says where the audit database is
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Only this log; otherwise every log that the configuration, the database or a checkpoint names
    #[arg(long, value_name = "NAME")]
    log: Option<String>,
    /// Checkpoint that was kept elsewhere; may be given several times. It says itself which log it is of
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// Key that checkpoints must be signed with, `name+hash+base64`, kept elsewhere; several where it was changed
    #[arg(long, value_name = "KEY")]
    verifier_key: Vec<String>,
    /// File that holds such a key
    #[arg(long, value_name = "FILE")]
    verifier_key_file: Vec<PathBuf>,
    /// One JSON object for each log
    #[arg(long)]
    json: bool,
}

/// Verifies and says what was found. The exit status is that of the worst log.
pub(crate) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = args.config.load()?;
    let audit = config.audit;
    let mut subject_keys = audit.subject_keys_dir.clone();
    let mut database = config.databases.audit;
    if let Some(data) = &args.data {
        let file = data.join("audit/audit.db");
        let there = file.try_exists().with_context(|| format!("{} can't be looked into", data.display()))?;
        anyhow::ensure!(there, "{} is no data folder: there is no audit log here", data.display());
        database.url = DatabaseUrl::sqlite(&file);
        if subject_keys == gatehouse_audit::Config::default().subject_keys_dir {
            subject_keys = data.join("keys/audit-subjects");
        }
    }
    anyhow::ensure!(
        !database.url.to_string().is_empty(),
        "nothing says where the audit log is: give --data with the folder of gatehouse up, or set databases.audit.url \
         in the configuration (--config) or GATEHOUSE_DATABASES__AUDIT__URL"
    );
    let mut trust = trust(&args)?;
    // Where the keys are not at hand, the report says that persons were not compared.
    trust.subjects = SubjectKeys::existing(&subject_keys);
    // What is examined may be evidence, or on media that nobody can write to.
    let db = Db::connect_read_only(&database, "audit").await?;
    // Whoever can write to the database can take a log out of each table: names come from elsewhere too.
    let mut names = verify_log::logs_in(&db).await?;
    if let Some(only) = &args.log {
        names = BTreeSet::from([only.clone()]);
    } else {
        names.extend(audit.all_logs().into_iter().map(|log| log.name));
        for checkpoint in &trust.checkpoints {
            names.insert(verify_log::log_of(checkpoint)?);
        }
    }
    let mut codes = Vec::new();
    for name in names {
        let verified = match known(&name, &trust, &audit, args.log.is_some()) {
            Ok(known) => verify_log::verify_database(&db, &name, &known).await,
            Err(error) => Err(error),
        };
        match verified {
            Ok(mut report) => {
                if retention(&name, &audit).is_none() {
                    report.notes.push("the configuration does not name this log".to_owned());
                }
                codes.push(verify_log::ExitCode::from(&report));
                tell(&report, args.json)?;
            }
            // One log that can't be read must not keep the others from being looked at.
            Err(error) => {
                codes.push(verify_log::ExitCode::Failed);
                complain!("gatehouse: log {}: {}", name.escape_debug(), why(&error));
            }
        }
    }
    db.close().await;
    // There always is `default`; should there be none, nothing was verified.
    let worst = codes.into_iter().max_by_key(|code| rank(*code)).unwrap_or(verify_log::ExitCode::Failed);
    Ok(ExitCode::from(worst as u8))
}

/// Says what was found of one log. Where nobody takes it, the others are looked at all the same and the status still is
/// that of what was found: it may be all that anybody asks for.
fn tell(report: &Report, json: bool) -> anyhow::Result<()> {
    let told = if json { serde_json::to_string(report)? } else { text(report) };
    if let Err(unheard) = say!("{told}")
        && !unheard.is_closed()
    {
        complain!("gatehouse: {}", crate::message(&unheard.into()));
        complain!("{told}");
    }
    Ok(())
}

/// Why a log could not be verified, with the cause, which only a service keeps from its callers.
fn why(error: &gatehouse_core::Error) -> String {
    let chain = std::iter::successors(Some(error as &(dyn StdError + 'static)), |&cause| cause.source());
    // Of a fault of ours the cause alone says something.
    let without = usize::from(error.code() == ErrorCode::Internal && error.source().is_some());
    crate::told(chain.skip(without))
}

/// What is known of the log `name`, of all that is known.
fn known(
    name: &str,
    trust: &Trust,
    audit: &gatehouse_audit::Config,
    only: bool,
) -> gatehouse_core::Result<Trust> {
    let Ok(log) = LogId::new(name) else { return Ok(Trust::default()) };
    let retention = retention(name, audit);
    let origins = origins(&log, audit);
    let known = Trust { configured: retention.is_some(), retention, origins, ..trust.about(name)? };
    // With --log alone a checkpoint of another log is a mistake; otherwise each is held against its own.
    Ok(if only { Trust { checkpoints: trust.checkpoints.clone(), ..known } } else { known })
}

/// How long the entries of `name` are to be kept, if the configuration names it.
fn retention(name: &str, audit: &gatehouse_audit::Config) -> Option<Retention> {
    let log = audit.all_logs().into_iter().find(|log| log.name == name)?;
    Some(Retention { days: log.days, now: Clock::system().now() })
}

/// The origins that checkpoints of `log` may have; none where the configuration leaves it at what is nobody's.
fn origins(log: &LogId, audit: &gatehouse_audit::Config) -> Vec<String> {
    if audit.origin == gatehouse_audit::Config::default().origin {
        return Vec::new();
    }
    let environments = match environment() {
        Ok(environment) => vec![environment],
        Err(_) => vec![Environment::Dev, Environment::Staging, Environment::Prod],
    };
    environments.into_iter().map(|environment| audit.origin_of(environment, log)).collect()
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
        Fault::BeforeFirst { stored_seq } => {
            format!("an entry stands at {stored_seq}, before the beginning that the log's head states")
        }
        Fault::HeadRepeated => "several rows say where the log begins and ends".to_owned(),
        Fault::NotALog => "rows stand under this name, which the service gives no log".to_owned(),
        Fault::HeadMissing => {
            "the row that says where the log begins and ends is gone, and other rows of the log are there"
                .to_owned()
        }
        Fault::HeadUnreadable => {
            "the row that says where the log begins and ends does not hold what it must".to_owned()
        }
        Fault::TablesDiffer { why } => format!("its tables are not those that the service made: {why}"),
        Fault::LogMissing => "nothing of the log is there, though the configuration names it".to_owned(),
        Fault::PlainRowWithoutEntry => {
            "a plain row is shown to people, and there is no such entry".to_owned()
        }
        Fault::PlainRowRepeated => "several plain rows are shown to people for it".to_owned(),
        Fault::EventRepeated => "its event stands at another place too, of this log or another".to_owned(),
        Fault::PlainRowDiffers => "the plain row shown to people does not say what it says".to_owned(),
        Fault::ColumnDiffers => "a column by which the service finds it does not say what it says".to_owned(),
        Fault::TileChanged { path } => format!("the stored tile {path} is not the one that the entries give"),
    }
}

fn trust(args: &VerifyArgs) -> anyhow::Result<Trust> {
    let checkpoints = args
        .checkpoint
        .iter()
        .map(|path| {
            let kept = std::fs::read_to_string(path)
                .with_context(|| format!("the checkpoint {} can't be read", path.display()))?;
            Ok(as_signed(&kept))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut keys = Vec::new();
    for text in &args.verifier_key {
        keys.push(verifier_key(text).context("--verifier-key")?);
    }
    for path in &args.verifier_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the verifier key {} can't be read", path.display()))?;
        keys.push(verifier_key(&text).with_context(|| path.display().to_string())?);
    }
    Ok(Trust { checkpoints, keys, ..Trust::default() })
}

/// A note as it was signed, whatever mail, editors and shells did to the ends of its lines and to its own: a note has
/// no carriage returns, begins with text and ends with one newline.
fn as_signed(kept: &str) -> String {
    let lines: Vec<&str> = kept.trim_start_matches('\u{feff}').lines().map(str::trim_ascii_end).collect();
    let text = lines.join("\n");
    format!("{}\n", text.trim_ascii())
}

fn verifier_key(text: &str) -> anyhow::Result<VerifierKey> {
    Ok(text.trim().parse()?)
}

/// What is broken outdoes what could not be read: a log that can't be read must not hide it.
const fn rank(code: verify_log::ExitCode) -> u8 {
    match code {
        verify_log::ExitCode::Verified => 0,
        verify_log::ExitCode::NotProven => 1,
        verify_log::ExitCode::Failed => 2,
        verify_log::ExitCode::Broken => 3,
    }
}

/// The words for a front that is gone and may have been pruned.
const PREFIX: &str = "prefix not proven: give --verifier-key";

/// A report in words: a line, and one for each note.
fn text(report: &Report) -> String {
    let kept = report.size - report.first;
    let verdict = match &report.verdict {
        Verdict::Verified { proven } if *proven == report.size => "verified to the last entry".to_owned(),
        Verdict::Verified { proven } => format!(
            "verified to entry {proven}; the {} after the checkpoint agree with each other",
            report.size - proven
        ),
        Verdict::TailNotProven => {
            "the entries agree with each other; tail not proven: give a checkpoint that was kept elsewhere"
                .to_owned()
        }
        Verdict::PrefixNotProven { proven: Some(proven) } => {
            format!("the entries kept agree up to entry {proven} with the checkpoint; {PREFIX}")
        }
        Verdict::PrefixNotProven { proven: None } => format!(
            "the entries kept agree with each other; {PREFIX}; tail not proven: give a checkpoint that was kept elsewhere"
        ),
        Verdict::Broken { entry, up_to, fault } => {
            let last = up_to.map_or_else(String::new, |last| format!(" to {last}"));
            format!("BROKEN at entry {entry}{last}: {}", describe(fault))
        }
    };
    let told = format!(
        "log {}: {kept} entries kept of {}, root {}: {verdict}",
        // Whoever wrote to the database may have written a name that says something else on a terminal.
        report.log.escape_debug(),
        report.size,
        report.root
    );
    report.notes.iter().fold(told, |told, note| told + "\n  note: " + note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_however_it_was_kept() {
        let note = "a/default\n3\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} a/default Az3g\n";
        let dos = note.replace('\n', "\r\n");
        let kept = [
            note.to_owned(),
            format!("{note}\n"),
            format!("{note}\n \n"),
            note.trim_end().to_owned(),
            dos.clone(),
            format!("{dos}\r\n"),
            format!("\u{feff}{dos}"),
            format!("\n{note}"),
            note.replace('\n', " \n"),
        ];
        for kept in kept {
            assert_eq!(as_signed(&kept), note, "{kept:?}");
        }
        // What was changed otherwise is what its signature does not fit.
        assert_ne!(as_signed(&note.replace("\n\n", "\n")), note);
        assert_eq!(as_signed(""), "\n");
    }
}
