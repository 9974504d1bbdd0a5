//! Whoever holds an API key asks for more than it may.

use std::time::Duration;

use anyhow::bail;
use gatehouse_core::Entropy;
use gatehouse_testkit::check::{Asked, Said};
use reqwest::StatusCode;
use tokio::sync::watch;

use super::pause;
use crate::client::Api;

/// Longest pause between two requests of one of them.
const REST: Duration = Duration::from_millis(150);

/// Asks until `stop`; what it was told each time.
///
/// # Errors
/// It was told that its key is not good, or something else that nobody expects.
pub(crate) async fn probe(
    api: Api,
    key: String,
    entropy: Entropy,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Asked>> {
    let (mut asked, api) = (Vec::new(), api.limited());
    while !*stop.borrow() {
        let sent = api.now();
        let answer =
            api.once(|http, base| http.get(format!("{base}/v1/jobs?page_size=1")).header("X-API-Key", &key));
        let said = match answer.await {
            Some((StatusCode::OK, _)) => Said::Yes,
            Some((StatusCode::TOO_MANY_REQUESTS, body)) if body["reason"] == "RATE_LIMITED" => Said::No,
            None => Said::Nothing,
            Some((status, _)) if status.is_server_error() => Said::Nothing,
            Some((status, body)) => bail!("whoever holds an API key was answered {status}: {body}"),
        };
        asked.push(Asked { sent, answered: api.now(), said });
        pause(&entropy, REST).await;
    }
    Ok(asked)
}
