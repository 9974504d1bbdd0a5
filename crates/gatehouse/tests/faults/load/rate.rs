//! Whoever holds an API key asks for more than it may.

use std::time::Duration;

use gatehouse_core::Entropy;
use gatehouse_testkit::check::Admitted;
use reqwest::StatusCode;
use tokio::sync::watch;

use super::pause;
use crate::client::Api;

/// Longest pause between two requests of one of them.
const REST: Duration = Duration::from_millis(150);

/// Asks until `stop`; what was admitted, and how often it was refused.
pub(crate) async fn probe(
    api: Api,
    key: String,
    entropy: Entropy,
    stop: watch::Receiver<bool>,
) -> (Vec<Admitted>, u64) {
    let (mut admitted, mut refused) = (Vec::new(), 0);
    while !*stop.borrow() {
        let sent = api.now();
        let answer =
            api.once(|http, base| http.get(format!("{base}/v1/jobs?page_size=1")).header("X-API-Key", &key));
        match answer.await {
            Some((StatusCode::OK, _)) => admitted.push(Admitted { sent, answered: api.now() }),
            Some((StatusCode::TOO_MANY_REQUESTS, _)) => refused += 1,
            _ => {}
        }
        pause(&entropy, REST).await;
    }
    (admitted, refused)
}
