//! The task that keeps [`Revocations`] and a [`KeySet`] up to date.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::{Authorized, Backoff, from_status};
use gatehouse_core::{Entropy, Error, Result};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{GetJwksRequest, WatchRevocationsRequest};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Moment, Revocations};
use crate::readiness::Gate;
use crate::verifier::KeySet;
use crate::{Lifecycle, Readiness};

/// How often it is looked whether the news is too late.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// From one fetch of the keys for a key id that is not known to the next: anyone can make ids up. Auth publishes a key
/// long before it signs with it, so for a good token the first fetch does.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);

/// The shortest time for which keys are kept, whatever auth says.
const SHORTEST_KEEP: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_KEEP: Duration = Duration::from_hours(1);

/// The first pause after a failure to fetch the keys or to open the stream.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest, while someone waits for what is not there.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Keeps [`Revocations`] and the [`KeySet`] of a process up to date from the auth service: one stream, taken up again
/// with backoff whenever it ends, and beside it the keys, fetched whenever a stream begins, when they are as old as auth
/// lets them be, and when an unknown key id turns up.
///
/// Each stream begins with all that lives: a number that was heard of one says nothing to the next, whose table may have
/// been restored since.
#[derive(Clone, Debug)]
pub struct RevocationFeed {
    auth: TokenServiceClient<Authorized>,
    revocations: Revocations,
    keys: KeySet,
    entropy: Entropy,
    /// The first message of a stream was heard: auth is there, and may be one that was restored.
    began: Arc<Notify>,
}

impl RevocationFeed {
    /// A feed over `auth`, a channel that shows a token with the permission `auth.revocations.watch`.
    #[must_use]
    pub fn new(auth: Authorized, revocations: Revocations, keys: KeySet, entropy: Entropy) -> Self {
        let began = Arc::default();
        Self { auth: TokenServiceClient::new(auth), revocations, keys, entropy, began }
    }

    /// Runs until the process stops. `readiness` turns good with the first whole snapshot and the keys, and bad while the
    /// news is so late that nobody is let in; `service` names whose it is.
    pub fn start(self, service: &str, lifecycle: &Lifecycle, readiness: &Readiness) {
        let gate = readiness
            .gate(format!("{service}.revocations"), "no snapshot of revocations, or no keys, from auth yet");
        lifecycle.spawn(self.clone().tell_readiness(gate, lifecycle.stopping()));
        let (keys, stopping) = (self.clone(), lifecycle.stopping());
        lifecycle.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = keys.keep_keys() => {}
            }
        });
        let stopping = lifecycle.stopping();
        lifecycle.spawn(async move {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, self.entropy.clone());
            loop {
                let ended = tokio::select! {
                    () = stopping.cancelled() => return,
                    ended = self.follow(&mut backoff) => ended,
                };
                if let Err(error) = ended {
                    tracing::debug!(?error, "the revocation stream ended; taking it up again");
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = backoff.wait() => {}
                }
            }
        });
    }

    /// Holds `gate` open while anyone can be let in.
    async fn tell_readiness(self, gate: Gate, stopping: CancellationToken) {
        let (mut news, mut keys) = (self.revocations.subscribe(), self.keys.changes());
        let mut heard = false;
        loop {
            if self.revocations.is_fresh() && !self.keys.is_empty() {
                heard = true;
                gate.ready();
            } else if heard {
                gate.unready("no word of auth on revocations for so long that every call is refused");
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                // The senders live as long as `self`.
                _ = news.changed() => {}
                _ = keys.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<()> {
        let clock = &self.revocations.0.clock;
        let mut last = Moment::before_now(clock, Duration::ZERO);
        let request = WatchRevocationsRequest { after_sequence: 0 };
        let mut stream =
            self.auth.clone().watch_revocations(request).await.map_err(from_status)?.into_inner();
        let mut silence = Duration::from_secs(2);
        let silent = || Error::unavailable("STREAM_SILENT", "Auth's stream fell silent.");
        let mut is_first = true;
        loop {
            // A stream that says nothing for too long is as good as gone.
            let message = match tokio::time::timeout(silence * 2, stream.message()).await {
                Ok(message) => message.map_err(from_status)?,
                Err(_) => return Err(silent()),
            };
            // If it was this process that stood still, what auth said meanwhile is here at once, and as old as that.
            if last.age(clock.now()) > silence * 2 {
                return Err(silent());
            }
            last = Moment::before_now(clock, Duration::ZERO);
            let Some(news) = message else { return Ok(()) };
            if std::mem::take(&mut is_first) {
                self.began.notify_one();
            }
            if let Ok(heartbeat @ 1..) = u64::try_from(news.heartbeat_ms) {
                silence = Duration::from_millis(heartbeat.max(100));
            }
            let age = Duration::from_millis(u64::try_from(news.age_ms).unwrap_or(0));
            self.revocations.apply_aged(&news.revocations, news.sequence, news.snapshot_complete, age);
            if news.snapshot_complete {
                backoff.reset();
            }
        }
    }

    /// Fetches the keys whenever a stream begins and whenever they are too old, so that a key is known before it signs; for
    /// an unknown key id at once if that was not done for [`UNKNOWN_KEY_PAUSE`], else at the end of that.
    async fn keep_keys(self) {
        let mut next_unknown = Instant::now();
        // The first stream is about to begin, and nobody is let in before.
        let mut keep_until = next_unknown + LONGEST_KEEP;
        loop {
            let unknown = async {
                tokio::time::sleep_until(next_unknown).await;
                self.keys.wanted().await;
            };
            let is_unknown = tokio::select! {
                () = self.began.notified() => false,
                () = tokio::time::sleep_until(keep_until) => false,
                () = unknown => true,
            };
            keep_until = Instant::now() + self.fetch_keys().await;
            if is_unknown {
                next_unknown = Instant::now() + UNKNOWN_KEY_PAUSE;
            }
        }
    }

    /// Fetches the keys, however often it takes; how long they may be kept. Seldom while auth is away for long, and at once
    /// when a stream begins.
    async fn fetch_keys(&self) -> Duration {
        let longest = if self.keys.is_empty() { LONGEST_PAUSE } else { UNKNOWN_KEY_PAUSE };
        let mut backoff = Backoff::new(FIRST_PAUSE, longest, self.entropy.clone());
        loop {
            match self.try_fetch_keys().await {
                Ok(max_age) => return max_age,
                Err(error) => tracing::debug!(?error, "the keys can't be fetched; trying again"),
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = self.began.notified() => backoff.reset(),
            }
        }
    }

    async fn try_fetch_keys(&self) -> Result<Duration> {
        let answer = self.auth.clone().get_jwks(GetJwksRequest {}).await.map_err(from_status)?.into_inner();
        self.keys.replace(&answer.jwks_json)?;
        let max_age = Duration::from_millis(u64::try_from(answer.max_age_ms).unwrap_or(0));
        Ok(max_age.clamp(SHORTEST_KEEP, LONGEST_KEEP))
    }
}
