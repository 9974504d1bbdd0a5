//! Sessions that end, and every gateway that is shown them afterwards.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::join_all;
use gatehouse_testkit::check::{Probe, Shown};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::client::Api;
use crate::shared::Tokens;

/// How long a session that ends among faults is shown after that: longer than anyone may accept it.
pub(crate) const SHOWN: Duration = Duration::from_secs(8);
/// How long an answer may take where silence is a fault.
const PATIENT: Duration = Duration::from_secs(20);
/// A request that a gateway refuses by itself, once it has let in whoever asks. What stands behind it may refuse who is
/// shown before the gateway does; what a gateway knows shows in its own answers only.
const WRONG: &str = "state=none";
/// Between two tries at one gateway.
const REST: Duration = Duration::from_millis(60);

/// A session that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) session: String,
    pub(crate) access: String,
    pub(crate) acknowledged: Duration,
    /// Before its end.
    pub(crate) before: Vec<Probe>,
    pub(crate) probes: Vec<Probe>,
}

/// Signs in, shows the access token to every gateway, signs out, and shows it again for as long as `shown`.
pub(crate) async fn run(
    api: Api,
    gateways: Vec<(String, String)>,
    credentials: Value,
    shown: Duration,
) -> anyhow::Result<Ended> {
    let tokens = api.sign_in(&credentials).await?;
    // Whoever was shown it has it in memory.
    let before = show(&api, &gateways, &tokens.access).await;
    let refused = before.iter().find(|probe| matches!(probe.shown, Shown::Refused | Shown::Revoked));
    ensure!(refused.is_none(), "a session that lives was refused: {refused:?}");
    sign_out(&api, &tokens).await?;
    let acknowledged = api.now();
    let probes = watch(&api, &gateways, &tokens.access, acknowledged + shown).await;
    Ok(Ended { session: tokens.session, access: tokens.access, acknowledged, before, probes })
}

/// Ends a session.
pub(crate) async fn sign_out(api: &Api, tokens: &Tokens) -> anyhow::Result<()> {
    let sign_out = |http: &Client, base: &str| {
        http.post(format!("{base}/v1/auth/sign-out")).bearer_auth(&tokens.access).json(&json!({}))
    };
    let (status, body) = api.answer(sign_out).await?;
    // The answer to an earlier try may be lost, and then this one is of a session that is over.
    ensure!(
        status.is_success() || status == StatusCode::UNAUTHORIZED,
        "sign-out was answered {status}: {body}"
    );
    Ok(())
}

/// Shows an access token to every gateway again and again until then.
pub(crate) async fn watch(
    api: &Api,
    gateways: &[(String, String)],
    access: &str,
    until: Duration,
) -> Vec<Probe> {
    let watch = |gateway: &(String, String)| {
        let (api, gateway) = (api.clone(), [gateway.clone()]);
        async move {
            let mut probes = Vec::new();
            while api.now() < until {
                probes.extend(show(&api, &gateway, access).await);
                tokio::time::sleep(REST).await;
            }
            probes
        }
    };
    join_all(gateways.iter().map(watch)).await.concat()
}

/// Shows an access token to every gateway once.
pub(crate) async fn show(api: &Api, gateways: &[(String, String)], access: &str) -> Vec<Probe> {
    show_within(PATIENT, api, gateways, access).await
}

/// The same, and who says nothing for so long is silent.
pub(crate) async fn show_within(
    limit: Duration,
    api: &Api,
    gateways: &[(String, String)],
    access: &str,
) -> Vec<Probe> {
    join_all(gateways.iter().map(|(name, base)| async move {
        let (sent, api) = (api.now(), api.at(base.clone()));
        let answer = api
            .once_within(limit, |http, base| http.get(format!("{base}/v1/jobs?{WRONG}")).bearer_auth(access));
        let shown = match answer.await {
            Some((StatusCode::BAD_REQUEST, _)) => Shown::Accepted,
            Some((StatusCode::UNAUTHORIZED, body)) if body["reason"] == "TOKEN_REVOKED" => Shown::Revoked,
            Some((StatusCode::UNAUTHORIZED, _)) => Shown::Refused,
            _ => Shown::Silent,
        };
        Probe { replica: name.clone(), sent, answered: api.now(), shown }
    }))
    .await
}
