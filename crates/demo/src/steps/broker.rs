//! Acting upstream without holding the person's keys: connect, consent, a brokered token, a call with it.

use anyhow::{Context as _, ensure};
use reqwest::Url;
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::narrator::Narrator;
use crate::tour::Tour;

pub(crate) async fn run(api: &Api, tour: &Tour, narrator: &mut Narrator) -> anyhow::Result<()> {
    narrator.step("Connect an upstream and get a brokered access token");
    let begun = api.post("/v1/connections", &json!({"upstream": "demo"})).await?;
    // What a browser does: show the consent page, and follow the redirect to the callback.
    let consented = api.http().get(text(&begun, "/authorization_url")?).send().await?;
    let location = consented
        .headers()
        .get("location")
        .and_then(|location| location.to_str().ok())
        .with_context(|| format!("the provider answered {} and no redirect", consented.status()))?;
    let callback = Url::parse(location).context("the redirect is no address")?;
    let query = callback.query().context("the redirect carries no code")?;
    let connection = api.get(&format!("/v1/connections/callback?{query}")).await?;
    narrator.say("consented; the refresh token went into the broker's encrypted store and nowhere else");

    let brokered = api.post("/v1/connections/demo/token", &json!({})).await?;
    let token = text(&brokered, "/access_token")?;
    let me: Value = api
        .http()
        .get(&tour.upstream_api)
        .bearer_auth(token)
        .send()
        .await?
        .error_for_status()
        .context("the upstream did not accept the brokered token")?
        .json()
        .await?;
    ensure!(me.is_object(), "the upstream's answer is no object");
    for answer in [&connection, &brokered] {
        ensure!(!answer.to_string().contains("refresh"), "an answer speaks of a refresh token");
    }
    narrator.done("the upstream accepted it; no refresh token left the broker");
    Ok(())
}
