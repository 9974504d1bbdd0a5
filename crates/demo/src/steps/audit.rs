//! What just happened, and the proof of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::sign_in::Account;
use crate::api::{Api, text};
use crate::narrator::Narrator;
use crate::tour::{KEPT_CHECKPOINT, KEPT_KEY, Proof, Tour};

pub(crate) async fn run(
    api: &Api,
    tour: &Tour,
    account: &Account,
    job: &str,
    narrator: &mut Narrator,
) -> anyhow::Result<()> {
    narrator.step("Show the audit trail");
    let expected = [
        "auth.sessions.create",
        "job.jobs.submit",
        "job.jobs.start",
        "job.jobs.finish",
        "token-broker.connections.complete",
        "token-broker.tokens.issue",
    ];
    let events = settled(api, &expected).await?;
    for event in &events {
        let (action, target) = (text(event, "/action")?, event["target"].as_str().unwrap_or_default());
        narrator.say(&format!("{action:<36} {:<8} {target}", event["outcome"].as_str().unwrap_or_default()));
    }
    ensure!(
        events.iter().any(|event| event["actor"] == account.person_id.as_str()),
        "no event names the admin"
    );
    ensure!(
        events.iter().any(|event| event["target"].as_str().is_some_and(|target| target.ends_with(job))),
        "no event names the job"
    );
    narrator.done(&format!("{} events of this tenant", events.len()));

    narrator.step("Keep a checkpoint and verify the log");
    let logs = api.get("/v1/audit/logs").await?;
    let log = logs["logs"].get(0).context("there is no log")?;
    let name = text(log, "/name")?;
    let answer = api.get(&format!("/v1/audit/logs/{name}/checkpoint?fresh=true")).await?;
    // A product keeps both where whoever can write to the database can't.
    std::fs::write(tour.data.join(KEPT_CHECKPOINT), text(&answer, "/checkpoint")?)?;
    std::fs::write(tour.data.join(KEPT_KEY), text(log, "/verifier_key")?)?;
    let Proof::Here { program, data } = &tour.proof else {
        narrator
            .done(&format!("kept in {}; verify-audit-chain runs where the database is", tour.data.display()));
        return Ok(());
    };
    let verify = |with_kept: bool| {
        let mut command = Command::new(program);
        command.arg("verify-audit-chain").arg("--data").arg(data).kill_on_drop(true);
        if with_kept {
            command.arg("--checkpoint").arg(tour.data.join(KEPT_CHECKPOINT));
            command.arg("--verifier-key-file").arg(tour.data.join(KEPT_KEY));
        }
        command
    };
    let (code, said) = outcome(verify(false)).await?;
    narrator.say(&format!("without a checkpoint: {said}"));
    ensure!(
        code == Some(3) && said.contains("tail not proven"),
        "the tail was called proven without a checkpoint"
    );
    let (code, said) = outcome(verify(true)).await?;
    ensure!(
        code == Some(0) && !said.contains("not proven: "),
        "not proven although there are a checkpoint and the key: {said}"
    );
    narrator.done(&said);
    Ok(())
}

/// The tenant's events, once each that must be there has arrived: the relay takes a moment.
async fn settled(api: &Api, expected: &[&str]) -> anyhow::Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let page = api.get("/v1/audit/events?page_size=200").await?;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        let missing: Vec<_> = expected
            .iter()
            .filter(|action| !events.iter().any(|event| event["action"] == **action))
            .collect();
        if missing.is_empty() {
            return Ok(events);
        }
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("no events of {missing:?} arrived in 20 s");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Exit status and words of `verify-audit-chain`.
async fn outcome(mut command: Command) -> anyhow::Result<(Option<i32>, String)> {
    let output = command.output().await?;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), format!("{} {}", said.trim(), complained.trim()).trim().to_owned()))
}
