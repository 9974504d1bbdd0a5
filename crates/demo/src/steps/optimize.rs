//! The main job: submit an objective, watch the search live, fetch the result.

use anyhow::{Context as _, bail, ensure};
use eventsource_stream::Eventsource as _;
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::narrator::Narrator;

/// Rosenbrock's valley: easy to find, hard to follow to its lowest point, which is 0 at (1, 1).
const OBJECTIVE: &str = "(1 - x)^2 + 100 * (y - x^2)^2";

pub(crate) async fn run(api: &Api, narrator: &mut Narrator) -> anyhow::Result<String> {
    narrator.step("POST /optimize and watch it live");
    narrator.say(&format!("minimise {OBJECTIVE} for x, y in [-2, 2]"));
    let variable = |name: &str| json!({"name": name, "lower": -2.0, "upper": 2.0});
    // More iterations than allowed: the service clamps them and says so.
    let request = json!({
        "objective": OBJECTIVE, "variables": [variable("x"), variable("y")], "max_iterations": 1_000_000, "seed": 7,
    });
    let job = api.post("/optimize", &request).await?;
    let id = text(&job, "/job_id")?.to_owned();
    narrator.say(&format!("job {id}"));

    let watched = watch(api, &id, narrator).await?;
    ensure!(watched.state == "succeeded", "the job ended as {}", watched.state);
    ensure!(watched.progress > 0, "no progress was seen");
    ensure!(watched.gapless, "the event ids had a gap");
    if let Some(notice) = &watched.notice {
        narrator.say(&format!("told on the way: {notice}"));
    }

    let result = api.get(&format!("/v1/jobs/{id}/result")).await?;
    let value = find_number(&result, &["best_value", "value"]).context("the result has no value")?;
    ensure!(value.abs() < 1e-3, "the search ended at {value}, far from the lowest point");
    narrator.done(&format!("minimum {value:.3e} after {} live events, ids without a gap", watched.events));
    Ok(id)
}

struct Watched {
    events: u64,
    progress: u64,
    gapless: bool,
    notice: Option<String>,
    state: String,
}

async fn watch(api: &Api, id: &str, narrator: &Narrator) -> anyhow::Result<Watched> {
    let response =
        api.request(Method::GET, &format!("/v1/jobs/{id}/events")).send().await?.error_for_status()?;
    let mut events = response.bytes_stream().eventsource();
    let mut bar = narrator.bar(200);
    let mut watched = Watched { events: 0, progress: 0, gapless: true, notice: None, state: String::new() };
    let mut last: u64 = 0;
    while let Some(event) = events.next().await {
        let event = event.context("the event stream broke")?;
        let sequence: u64 =
            event.id.parse().with_context(|| format!("the event id {:?} is no number", event.id))?;
        watched.gapless &= sequence == last + 1;
        last = sequence;
        watched.events += 1;
        let data: Value = serde_json::from_str(&event.data).context("an event's data is no JSON")?;
        match event.event.as_str() {
            "progress" => {
                watched.progress += 1;
                let iteration = find_number(&data, &["iteration"]).unwrap_or(0.0);
                let best = find_number(&data, &["best_value", "value"]).unwrap_or(f64::NAN);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count for a bar"
                )]
                bar.update(iteration as u64, &format!("best so far {best:.6e}"));
            }
            "notice" => watched.notice = find_text(&data, "message").map(str::to_owned),
            "end" => {
                find_text(&data, "state")
                    .context("the end event has no state")?
                    .clone_into(&mut watched.state);
                bar.finish();
                return Ok(watched);
            }
            _ => {}
        }
    }
    bail!("the stream ended without an end event")
}

/// A number under one of `names`, wherever it stands in the object.
fn find_number(value: &Value, names: &[&str]) -> Option<f64> {
    names
        .iter()
        .find_map(|name| value.get(name).and_then(Value::as_f64))
        .or_else(|| value.as_object()?.values().find_map(|inner| find_number(inner, names)))
}

fn find_text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value
        .get(name)
        .and_then(Value::as_str)
        .or_else(|| value.as_object()?.values().find_map(|inner| find_text(inner, name)))
}
