//! Sessions that end, and every gateway that is shown them afterwards.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::join_all;
use gatehouse_testkit::check::Probe;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::client::Api;

/// How long a session is shown after its end: longer than anyone may accept it.
pub(crate) const SHOWN: Duration = Duration::from_secs(8);
/// Between two tries at one gateway.
const REST: Duration = Duration::from_millis(60);

/// A session that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) session: String,
    pub(crate) acknowledged: Duration,
    pub(crate) probes: Vec<Probe>,
}

/// Signs in, shows the access token to every gateway, signs out, and shows it again for a while.
pub(crate) async fn run(
    api: Api,
    gateways: Vec<(String, String)>,
    credentials: Value,
) -> anyhow::Result<Ended> {
    let tokens = api.sign_in(&credentials).await?;
    // Whoever was shown it has it in memory.
    join_all(gateways.iter().map(|(_, base)| show(api.at(base.clone()), &tokens.access))).await;
    let sign_out = |http: &Client, base: &str| {
        http.post(format!("{base}/v1/auth/sign-out")).bearer_auth(&tokens.access).json(&json!({}))
    };
    let (status, body) = api.answer(sign_out).await?;
    // The answer to an earlier try may be lost, and then this one is of a session that is over.
    ensure!(
        status.is_success() || status == StatusCode::UNAUTHORIZED,
        "sign-out was answered {status}: {body}"
    );
    let acknowledged = api.now();
    let probes = watch(&api, &gateways, &tokens.access, acknowledged).await;
    Ok(Ended { session: tokens.session, acknowledged, probes })
}

/// Shows an access token to every gateway for a while.
pub(crate) async fn watch(
    api: &Api,
    gateways: &[(String, String)],
    access: &str,
    acknowledged: Duration,
) -> Vec<Probe> {
    let watch = |(name, base): &(String, String)| {
        let (api, name) = (api.at(base.clone()), name.clone());
        async move {
            let mut probes = Vec::new();
            while api.now() < acknowledged + SHOWN {
                let sent = api.now();
                let accepted = show(api.clone(), access).await;
                probes.push(Probe { replica: name.clone(), sent, accepted });
                tokio::time::sleep(REST).await;
            }
            probes
        }
    };
    join_all(gateways.iter().map(watch)).await.concat()
}

async fn show(api: Api, access: &str) -> bool {
    let answer = api.once(|http, base| http.get(format!("{base}/v1/jobs?page_size=1")).bearer_auth(access));
    matches!(answer.await, Some((status, _)) if status.is_success())
}
