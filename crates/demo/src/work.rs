//! Some work for a Gatehouse whose memory is measured: sign-ins and small jobs, each followed to its end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::json;

use crate::api::{Api, text};
use crate::steps::sign_in::newcomer;

/// How long one job may take, a debug build on a busy machine included.
const JOB_LIMIT: Duration = Duration::from_secs(60);

/// How much there is to do.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) jobs: u32,
    pub(crate) sign_ins: u32,
}

/// Writes a configuration whose limits let one client do all this at once.
pub(crate) fn write_config(file: &Path) -> anyhow::Result<()> {
    let limits = ["ip", "person", "tenant", "classes.sign-in.ip", "classes.job-create.ip"]
        .map(|limit| format!("[rate_limits.rules.{limit}]\ncapacity = 1000000\n"));
    std::fs::write(file, limits.join(""))?;
    Ok(())
}

/// Does it, one thing after the other, as somebody new.
pub(crate) async fn run(gateway: &str, work: Work) -> anyhow::Result<()> {
    let mut api = Api::new(gateway, &[])?;
    let (credentials, registration) = newcomer();
    api.post("/v1/auth/register", &registration).await?;
    // At least one, for a token; the others stand evenly between the jobs.
    let every = (work.jobs / work.sign_ins.max(1)).max(1);
    for number in 0..work.jobs.max(1) {
        if number % every == 0 {
            let session = api.post("/v1/auth/sign-in", &credentials).await?;
            api.sign_in(text(&session, "/access_token")?);
        }
        if number < work.jobs {
            job(&api).await?;
        }
    }
    Ok(())
}

async fn job(api: &Api) -> anyhow::Result<()> {
    let variable = |name: &str| json!({"name": name, "lower": -2.0, "upper": 2.0});
    let request = json!({
        "objective": "(1 - x)^2 + 100 * (y - x^2)^2", "variables": [variable("x"), variable("y")],
        "max_iterations": 20, "seed": 7,
    });
    let job = api.post("/optimize", &request).await?;
    let id = text(&job, "/job_id")?;
    let events = api.request(Method::GET, &format!("/v1/jobs/{id}/events")).timeout(JOB_LIMIT);
    let events = events.send().await?.error_for_status()?.text().await.context("the event stream broke")?;
    ensure!(events.contains("succeeded"), "the job did not succeed: {events}");
    api.get(&format!("/v1/jobs/{id}/result")).await?;
    Ok(())
}
