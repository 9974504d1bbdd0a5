//! Tokens for a service itself, by client credentials (RFC 6749, section 4.4).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use gatehouse_core::{Clock, Error, ErrorCode, Result, Secret, Timestamp};
use gatehouse_proto::auth::v1::IssueTokenRequest;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use http::HeaderMap;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::{Channel, context, from_status};

/// How long nobody asks again behind the callers' backs after it failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A token this near to its end may end on its way, or have ended by the service's clock: nobody shows it any more.
const SLACK: Duration = Duration::from_secs(2);

/// Who an internal service is.
#[derive(Clone)]
pub struct ClientCredentials {
    /// Its name, as auth's configuration has it.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret<String>,
}

/// Fetches and keeps one token for each audience. Cheap to clone; clones share the tokens.
#[derive(Clone)]
pub struct TokenSource(Arc<Inner>);

struct Inner {
    auth: Channel,
    credentials: ClientCredentials,
    clock: Clock,
    slots: std::sync::Mutex<HashMap<&'static str, Arc<Slot>>>,
}

/// The token for one audience.
#[derive(Default)]
struct Slot(std::sync::Mutex<Known>);

#[derive(Default)]
struct Known {
    held: Option<Held>,
    /// Who asks auth, or did last.
    asking: Option<Asking>,
    /// When auth was last asked, or answered, in vain.
    failed_at: Option<Instant>,
}

/// A task that asks auth. It belongs to none of those who wait for it: it goes on when they leave.
struct Asking {
    task: AbortHandle,
    answer: Answer,
}

/// What auth answers, for all who wait for it.
type Answer = Shared<BoxFuture<'static, Result<Secret<String>, Unanswered>>>;

#[derive(Clone)]
enum Unanswered {
    Failed(Failure),
    /// The runtime of whoever began to ask has ended.
    Left,
}

/// How asking auth failed.
#[derive(Clone)]
struct Failure {
    code: ErrorCode,
    reason: String,
    message: String,
    retry_after: Option<Duration>,
}

impl Failure {
    fn of(error: &Error) -> Self {
        Self {
            code: error.code(),
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            retry_after: error.retry_after_hint(),
        }
    }

    fn tell(self) -> Error {
        let error = Error::new(self.code, self.reason, self.message);
        match self.retry_after {
            Some(wait) => error.retry_after(wait),
            None => error,
        }
    }
}

/// What is in memory for whoever wants a token.
enum Look {
    Fresh(Secret<String>),
    /// To be renewed, by an answer that is awaited unless that failed just now.
    Due(Secret<String>, Option<Answer>),
    Gone(Answer),
}

#[derive(Clone)]
struct Held {
    token: Secret<String>,
    fetched_at: Timestamp,
    expires_at: Timestamp,
}

impl Held {
    /// When it is to be renewed.
    fn due_at(&self) -> Timestamp {
        self.expires_at.minus(self.part_of_life(5))
    }

    /// When it is shown no more.
    fn gone_at(&self) -> Timestamp {
        self.expires_at.minus(self.part_of_life(10).min(SLACK))
    }

    fn part_of_life(&self, divisor: u32) -> Duration {
        self.expires_at.since(self.fetched_at).checked_div(divisor).unwrap_or(Duration::ZERO)
    }
}

impl Slot {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there at `now`; where that is not enough, a task begins to ask, by `fetch`, or who does so already is heard.
    fn look<F>(self: &Arc<Self>, now: Timestamp, fetch: impl FnOnce() -> F) -> Look
    where
        F: Future<Output = Result<Held>> + Send + 'static,
    {
        let mut known = self.known();
        let living = known.held.clone().filter(|held| now < held.gone_at());
        if let Some(held) = living.as_ref().filter(|held| now < held.due_at()) {
            return Look::Fresh(held.token.clone());
        }
        let begun = known.asking.as_ref().filter(|asking| !asking.task.is_finished());
        let begun = begun.map(|asking| asking.answer.clone());
        let failed_just_now = known.failed_at.is_some_and(|at| at.elapsed() < TRY_AGAIN);
        match (living, begun) {
            (Some(held), None) if failed_just_now => Look::Due(held.token, None),
            (living, begun) => {
                let answer = begun.unwrap_or_else(|| self.begin(&mut known, fetch()));
                match living {
                    Some(held) => Look::Due(held.token, Some(answer)),
                    None => Look::Gone(answer),
                }
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        known: &mut Known,
        fetch: impl Future<Output = Result<Held>> + Send + 'static,
    ) -> Answer {
        known.failed_at = Some(Instant::now());
        let slot = Arc::clone(self);
        let asked = async move {
            let fetched = fetch.await;
            let mut known = slot.known();
            match fetched {
                Ok(held) => {
                    known.failed_at = None;
                    Ok(known.held.insert(held).token.clone())
                }
                Err(error) => {
                    known.failed_at = Some(Instant::now());
                    if known.held.is_some() {
                        tracing::warn!(%error, "the token of this service could not be renewed yet");
                    }
                    Err(Unanswered::Failed(Failure::of(&error)))
                }
            }
        };
        let task = tokio::spawn(asked.in_current_span());
        let abort = task.abort_handle();
        let heard = task.map(|joined| match joined {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => {
                Err(Unanswered::Failed(Failure::of(&Error::internal("asking for a token panicked"))))
            }
            Err(_) => Err(Unanswered::Left),
        });
        let answer = heard.boxed().shared();
        known.asking = Some(Asking { task: abort, answer: answer.clone() });
        answer
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSource({})", self.0.credentials.client_id)
    }
}

impl TokenSource {
    /// A source that asks the auth service behind `auth`.
    #[must_use]
    pub fn new(auth: Channel, credentials: ClientCredentials, clock: Clock) -> Self {
        Self(Arc::new(Inner { auth, credentials, clock, slots: std::sync::Mutex::default() }))
    }

    /// A token that `audience` accepts. Nobody waits while there is one that lives for 2 s more: in the last fifth of its
    /// life it is renewed behind the callers' backs. Where there is none, all who want one wait for one answer of auth, and a
    /// failure is the answer of all of them: so the wait is that of one call, however many wait, and whoever of them leaves.
    ///
    /// # Errors
    /// What auth answered, if there is no token that still lives: `INVALID_CLIENT`, `SERVICE_UNAVAILABLE`.
    pub async fn token(&self, audience: &'static str) -> Result<Secret<String>> {
        // Twice: whoever began to ask may be of a runtime that ends.
        for _ in 0..2 {
            let answer = match self.look(audience) {
                Look::Fresh(token) | Look::Due(token, _) => return Ok(token),
                Look::Gone(answer) => answer,
            };
            match answer.await {
                Ok(token) => return Ok(token),
                Err(Unanswered::Failed(failure)) => return Err(failure.tell()),
                Err(Unanswered::Left) => {}
            }
        }
        Err(Error::unavailable("SERVICE_UNAVAILABLE", "This process is stopping. Try again in a moment."))
    }

    /// How long a stream that is opened now can go on before it should be opened again: well after a newer token is to be
    /// had, and before the service has to end it because its own has ended. `None` if there is no newer one, as while auth
    /// is away. A token in the last fifth of its life is renewed before this answers.
    ///
    /// # Errors
    /// As [`TokenSource::token`].
    pub(crate) async fn fades_in(&self, audience: &'static str) -> Result<Option<Duration>> {
        match self.look(audience) {
            Look::Fresh(_) | Look::Due(_, None) => {}
            // If auth is away, what we hold still counts: go on with it.
            Look::Due(_, Some(answer)) => drop(answer.await),
            Look::Gone(_) => drop(self.token(audience).await?),
        }
        let slot = self.slot(audience);
        let known = slot.known();
        let fades_at = known.held.as_ref().map(|held| held.expires_at.minus(held.part_of_life(10)));
        Ok(fades_at.map(|at| at.since(self.0.clock.now())).filter(|left| !left.is_zero()))
    }

    /// Forgets `token`, which `audience` refused. One that was fetched since stays.
    pub fn forget(&self, audience: &'static str, token: &Secret<String>) {
        let slot = self.slot(audience);
        let mut known = slot.known();
        if known.held.as_ref().is_some_and(|held| held.token.expose() == token.expose()) {
            known.held = None;
        }
    }

    fn look(&self, audience: &'static str) -> Look {
        self.slot(audience).look(self.0.clock.now(), || {
            // Of the request that asks first; the task belongs to none.
            let mut headers = HeaderMap::new();
            context::inject(&mut headers);
            self.clone().fetch(audience, headers)
        })
    }

    fn slot(&self, audience: &'static str) -> Arc<Slot> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(audience).or_default())
    }

    async fn fetch(self, audience: &'static str, headers: HeaderMap) -> Result<Held> {
        let fetched_at = self.0.clock.now();
        let mut request = tonic::Request::new(IssueTokenRequest {
            client_id: self.0.credentials.client_id.clone(),
            client_secret: self.0.credentials.client_secret.expose().clone(),
            audience: audience.to_owned(),
            scope: String::new(),
        });
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        let answer =
            TokenServiceClient::new(self.0.auth.clone()).issue_token(request).await.map_err(from_status)?;
        let answer = answer.into_inner();
        Ok(Held {
            token: Secret::new(answer.access_token),
            fetched_at,
            expires_at: Timestamp::from_micros(answer.expires_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn held(token: &str, fetched_at: i64) -> Held {
        let fetched_at = Timestamp::from_seconds(fetched_at);
        Held {
            token: Secret::new(token.into()),
            fetched_at,
            expires_at: fetched_at.plus(Duration::from_secs(100)),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    async fn answer(look: Look) -> Result<String, ErrorCode> {
        let answer = match look {
            Look::Fresh(token) | Look::Due(token, None) => return Ok(token.expose().clone()),
            Look::Due(_, Some(answer)) | Look::Gone(answer) => answer,
        };
        match tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time") {
            Ok(token) => Ok(token.expose().clone()),
            Err(Unanswered::Failed(failure)) => Err(failure.tell().code()),
            Err(Unanswered::Left) => panic!("nobody left"),
        }
    }

    async fn panics() -> Result<Held> {
        panic!("as planned")
    }

    #[tokio::test]
    async fn a_panic_is_one_failure_and_not_the_last_word() {
        let slot = Arc::<Slot>::default();
        // Of those who wait for it, and of whoever would renew.
        assert_eq!(answer(slot.look(at(0), panics)).await, Err(ErrorCode::Internal));
        assert_eq!(answer(slot.look(at(0), || async { Ok(held("t1", 0)) })).await, Ok("t1".into()));
        assert_eq!(answer(slot.look(at(85), panics)).await, Err(ErrorCode::Internal));
        slot.known().failed_at = None;
        let renewed = slot.look(at(85), || async { Ok(held("t2", 85)) });
        assert!(matches!(&renewed, Look::Due(token, Some(_)) if token.expose() == "t1"));
        assert_eq!(answer(renewed).await, Ok("t2".into()));
    }

    #[tokio::test]
    async fn a_token_is_gone_2_s_before_its_end() {
        let slot = Arc::<Slot>::default();
        answer(slot.look(at(0), || async { Ok(held("t1", 0)) })).await.unwrap();
        let never = || std::future::pending::<Result<Held>>();
        assert!(matches!(slot.look(at(79), never), Look::Fresh(_)));
        assert!(matches!(slot.look(at(97), never), Look::Due(_, Some(_))));
        assert!(matches!(slot.look(at(98), never), Look::Gone(_)));
        // Of a short life it is a part.
        assert_eq!(held("t1", 0).part_of_life(10).min(SLACK), SLACK);
        let short = Held { expires_at: at(10), ..held("t1", 0) };
        assert_eq!(short.gone_at(), at(9));
    }

    /// The runtime of whoever began to ask may end, as that of a thread of the gateway.
    #[test]
    fn who_waits_for_one_who_left_is_told() {
        let slot = Arc::<Slot>::default();
        let asked = AtomicUsize::new(0);
        let fetch = |hangs: bool| {
            asked.fetch_add(1, Ordering::SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Ok(held("t1", 0))
            }
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let visitor = runtime();
        let Look::Gone(begun) = visitor.block_on(async { slot.look(at(0), || fetch(true)) }) else {
            panic!("there is none")
        };
        drop(visitor);
        runtime().block_on(async {
            assert!(matches!(begun.await, Err(Unanswered::Left)));
            assert_eq!(answer(slot.look(at(0), || fetch(false))).await, Ok("t1".into()));
        });
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
