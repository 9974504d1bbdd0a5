//! Server-sent events (HTML standard, section 9.2): a job's events as they happen.
//!
//! A pump reads from the job service into a bounded queue; the answer's body takes from it as fast as the socket
//! does. So a slow reader slows the pump, the pump slows the gRPC stream, and nothing grows. The pump outlives
//! breaks of the job service, an end without `end` among them: it asks again from the last event that it queued. It stays until the body has gone, and
//! gives up what waits for a reader who does not take it.
//!
//! Invariants: events come once, in order; an answer that ends without an `end` event has delivered a prefix, and the
//! reader resumes from its last id without a gap; the place of a stream is taken for as long as its answer is there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use gatehouse_client::{Backoff, from_status};
use gatehouse_core::{Clock, Entropy, Error, ErrorCode, Result, Timestamp};
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::{JobEvent, JobEventType, WatchJobEventsRequest, WatchJobEventsResponse};
use gatehouse_service::Caller;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::config::SseConfig;
use crate::door::Door;
use crate::frames::{Frames, Next};
use crate::streams::StreamPermit;
use crate::upstream::DeclaredCalls;

/// How long the job service may take to close a stream after `end`.
const AFTER_END: Duration = Duration::from_secs(2);
/// A stream of the job service that held for this long was a good one.
const LIVED: Duration = Duration::from_secs(5);
/// How often is looked whether the reader still reads and may.
const LOOK: Duration = Duration::from_secs(1);

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The job has ended.
    Finished,
    /// This process is going away.
    Draining,
    /// The reader stayed behind.
    SlowConsumer,
    /// What the reader showed has ended.
    CredentialExpired,
    /// It was revoked, or nobody can tell any more.
    CredentialRevoked,
    /// The job is not there any more.
    Gone,
    /// The job service stayed away.
    Unavailable,
}

impl Ending {
    const fn reason(self) -> &'static str {
        match self {
            Self::Finished => "FINISHED",
            Self::Draining => "DRAINING",
            Self::SlowConsumer => "SLOW_CONSUMER",
            Self::CredentialExpired => "CREDENTIAL_EXPIRED",
            Self::CredentialRevoked => "CREDENTIAL_REVOKED",
            Self::Gone => "JOB_NOT_FOUND",
            Self::Unavailable => "SERVICE_UNAVAILABLE",
        }
    }
}

/// actix-web drops the header `Connection: keep-alive` on HTTP/1.1, where it says nothing new; but row L9b asks for
/// it, for the sake of old proxies. The reason phrase is the one place from which it goes out.
pub(crate) const OK_KEEP_ALIVE: &str = "OK\r\nconnection: keep-alive";

/// Stands in an answer that is to say [`OK_KEEP_ALIVE`], unless the connection closes after it.
pub(crate) struct SaysKeepAlive;

/// Opens the job service's stream again with a fresh token.
pub(crate) type Reconnect = Box<
    dyn Fn() -> futures_util::future::BoxFuture<'static, Result<JobServiceClient<DeclaredCalls>>>
        + Send
        + Sync,
>;

/// What a pump works with.
pub(crate) struct Pump {
    pub(crate) job_id: String,
    /// The last event that the reader has.
    pub(crate) cursor: i64,
    pub(crate) config: SseConfig,
    pub(crate) reconnect: Reconnect,
    pub(crate) door: Door,
    pub(crate) caller: Caller,
    pub(crate) ends_at: Option<Timestamp>,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) draining: CancellationToken,
    /// Held for as long as there is an answer or a stream of the job service.
    pub(crate) permit: Arc<StreamPermit>,
    /// When the job service's stream was opened last.
    pub(crate) opened_at: Instant,
    /// When it was lost, if nothing has come since.
    pub(crate) lost_at: Option<Instant>,
    /// Whether the last event queued is an `end`, which is the last of its job until a retry.
    pub(crate) is_end_seen: bool,
}

type Queue = Arc<Frames<Ending>>;

/// Opens a stream of events after `cursor`.
///
/// # Errors
/// What the job service answers.
pub(crate) async fn open(
    jobs: &mut JobServiceClient<DeclaredCalls>,
    job_id: &str,
    cursor: i64,
) -> Result<Streaming<WatchJobEventsResponse>> {
    let request = WatchJobEventsRequest { job_id: job_id.to_owned(), after_sequence: cursor };
    Ok(jobs.watch_job_events(request).await.map_err(from_status)?.into_inner())
}

impl Pump {
    /// Starts to read from `stream`; the answer's body.
    pub(crate) fn start(
        self,
        stream: Streaming<WatchJobEventsResponse>,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + use<> {
        let frames = Frames::new(self.config.queue_maxsize);
        let too_old = Duration::from_secs(self.config.backpressure_fail_timeout_s);
        let body = Body {
            frames: Arc::clone(&frames),
            keep_alive: Duration::from_secs(self.config.keep_alive_s),
            too_old,
            retry_ms: self.config.retry_ms,
            state: BodyState::Opening,
            _permit: Arc::clone(&self.permit),
        };
        let id = gatehouse_client::context::request_id().unwrap_or_default();
        let pump = gatehouse_client::context::with_request_id(id, async move {
            let Some(ending) = self.run(stream, &frames).await else { return };
            tracing::debug!(reason = ending.reason(), "an event stream ended");
            frames.end(ending);
            // The reader may take the rest, in as much time as for all else.
            while !frames.give_up_after(too_old, Ending::SlowConsumer) {
                tokio::select! {
                    () = frames.reader_left() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            tracing::debug!("what waited for the reader of an event stream was given up");
        });
        tokio::spawn(tracing::Instrument::in_current_span(pump));
        futures_util::stream::unfold(body, Body::next)
    }

    /// `None` if the reader went away.
    async fn run(mut self, mut stream: Streaming<WatchJobEventsResponse>, frames: &Queue) -> Option<Ending> {
        let draining = self.draining.clone();
        let mut revocations = self.door.revocations_changed();
        let expiry = self.ends_at.map(|end| Instant::now() + end.since(self.clock.now()));
        let mut look = tokio::time::interval(LOOK);
        let too_old = Duration::from_secs(self.config.backpressure_fail_timeout_s);
        let patience = Duration::from_secs(self.config.reconnect_for_s);
        let mut backoff =
            Backoff::new(Duration::from_millis(50), Duration::from_secs(2), self.entropy.clone());
        let (door, caller) = (self.door.clone(), self.caller.clone());
        let work = async {
            loop {
                match self.read(&mut stream, frames).await {
                    Some(Broken::Ending(ending)) => return Some(ending),
                    Some(Broken::ReaderGone) => return None,
                    // The service ends a stream well only after the last event: a drain is an error.
                    None if self.is_end_seen => return Some(Ending::Finished),
                    // It broke, if without a word, or the service drains: another replica has the rest.
                    None | Some(Broken::Upstream) => {}
                }
                stream = match self.take_up_again(patience, &mut backoff).await {
                    Ok(stream) => stream,
                    Err(ending) => return Some(ending),
                };
            }
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                ending = &mut work => return ending,
                () = frames.reader_left() => return None,
                () = draining.cancelled() => return Some(Ending::Draining),
                () = at(expiry) => return Some(Ending::CredentialExpired),
                _ = revocations.changed() => {}
                _ = look.tick() => if frames.give_up_after(too_old, Ending::SlowConsumer) {
                    return Some(Ending::SlowConsumer);
                },
            }
            match door.check_still_live(&caller) {
                Ok(()) => {}
                Err(error) if error.code() == ErrorCode::Unauthenticated => {
                    return Some(Ending::CredentialRevoked);
                }
                Err(_) => return Some(Ending::Unavailable),
            }
        }
    }
}

enum Broken {
    Ending(Ending),
    ReaderGone,
    Upstream,
}

impl Pump {
    /// Reads until the stream ends (`None`) or breaks.
    async fn read(
        &mut self,
        stream: &mut Streaming<WatchJobEventsResponse>,
        frames: &Queue,
    ) -> Option<Broken> {
        loop {
            let message = if self.is_end_seen {
                match tokio::time::timeout(AFTER_END, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => return Some(Broken::Ending(Ending::Finished)),
                }
            } else {
                stream.message().await
            };
            let events = match message {
                Ok(Some(batch)) => batch.events,
                Ok(None) => return None,
                Err(status) => return Some(broken_by(&from_status(status))),
            };
            for event in events {
                // After a reconnection the service may repeat itself.
                if event.sequence <= self.cursor {
                    continue;
                }
                if !frames.add(encode(&event)).await {
                    return Some(Broken::ReaderGone);
                }
                self.is_end_seen = event.r#type() == JobEventType::End;
                self.cursor = event.sequence;
                self.lost_at = None;
            }
        }
    }

    async fn take_up_again(
        &mut self,
        patience: Duration,
        backoff: &mut Backoff,
    ) -> Result<Streaming<WatchJobEventsResponse>, Ending> {
        // A stream that held for a while was a good one, even if it had nothing to say.
        if self.opened_at.elapsed() > LIVED || self.lost_at.is_none() {
            self.lost_at = None;
            backoff.reset();
        }
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        while lost_at.elapsed() < patience {
            backoff.wait().await;
            let opened = match (self.reconnect)().await {
                Ok(mut jobs) => open(&mut jobs, &self.job_id, self.cursor).await,
                Err(error) if error.code() == ErrorCode::Unauthenticated => {
                    return Err(Ending::CredentialRevoked);
                }
                Err(error) => Err(error),
            };
            match opened.map_err(|error| broken_by(&error)) {
                Ok(stream) => {
                    self.opened_at = Instant::now();
                    return Ok(stream);
                }
                Err(Broken::Ending(ending)) => return Err(ending),
                Err(_) => {}
            }
        }
        Err(Ending::Unavailable)
    }
}

/// What a failure of the job service means for the reader.
fn broken_by(error: &Error) -> Broken {
    match (error.reason(), error.code()) {
        ("SLOW_CONSUMER", _) => Broken::Ending(Ending::SlowConsumer),
        (_, ErrorCode::NotFound) => Broken::Ending(Ending::Gone),
        (_, ErrorCode::PermissionDenied) => Broken::Ending(Ending::CredentialRevoked),
        _ => Broken::Upstream,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

struct Body {
    frames: Queue,
    keep_alive: Duration,
    too_old: Duration,
    retry_ms: u64,
    state: BodyState,
    _permit: Arc<StreamPermit>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.frames.leave();
    }
}

#[derive(PartialEq, Eq)]
enum BodyState {
    Opening,
    Flowing,
    Done,
}

impl Body {
    /// Asked for more, the reader has taken what it was given.
    async fn next(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        self.frames.taken();
        let bytes = self.compose().await?;
        self.frames.given();
        Some((Ok(bytes), self))
    }

    async fn compose(&mut self) -> Option<Bytes> {
        match self.state {
            BodyState::Done => return None,
            BodyState::Opening => {
                self.state = BodyState::Flowing;
                return Some(Bytes::from(format!("retry: {}\n\n", self.retry_ms)));
            }
            BodyState::Flowing => {}
        }
        // A reader who is cut off resumes with what was given up.
        let next = self.frames.next(self.too_old, Ending::SlowConsumer);
        let ending = match tokio::time::timeout(self.keep_alive, next).await {
            Err(_) => return Some(Bytes::from_static(b": keep-alive\n\n")),
            Ok(Next::Frame(bytes)) => return Some(bytes),
            Ok(Next::End(ending)) => ending,
        };
        self.state = BodyState::Done;
        (ending != Ending::Finished).then(|| closed(self.retry_ms, ending))
    }
}

fn closed(retry_ms: u64, ending: Ending) -> Bytes {
    let reason = ending.reason();
    Bytes::from(format!("retry: {retry_ms}\nevent: closed\ndata: {{\"reason\":\"{reason}\"}}\n\n"))
}

/// A whole stream for who comes when this process goes away: an `EventSource` comes back after it, and gives up for good
/// on any status but 200.
pub(crate) fn only_draining(config: &SseConfig) -> Bytes {
    closed(config.retry_ms, Ending::Draining)
}

/// The name of an event's type on the wire.
fn name(event: JobEventType) -> &'static str {
    match event {
        JobEventType::Queued => "queued",
        JobEventType::Started => "started",
        JobEventType::Progress => "progress",
        JobEventType::Notice => "notice",
        JobEventType::Retrying => "retrying",
        JobEventType::Stalled => "stalled",
        JobEventType::End => "end",
        JobEventType::CancelRequested => "cancel_requested",
        JobEventType::Unspecified => "message",
    }
}

/// One event. Line breaks inside the JSON (white space there, never text) become several `data` lines.
fn encode(event: &JobEvent) -> Bytes {
    let mut text = format!("id: {}\nevent: {}\n", event.sequence, name(event.r#type()));
    let data = if event.data_json.is_empty() { "{}" } else { &event.data_json };
    for line in data.split(['\n', '\r']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_can_not_smuggle_another() {
        let event = JobEvent {
            sequence: 7,
            r#type: JobEventType::Progress as i32,
            data_json: "{\n\r\"a\":1}\n\nevent: end\n".to_owned(),
            ..JobEvent::default()
        };
        let text = String::from_utf8(encode(&event).to_vec()).expect("text");
        assert!(text.starts_with("id: 7\nevent: progress\ndata: {\n"), "{text}");
        assert!(text.lines().skip(2).all(|line| line.is_empty() || line.starts_with("data: ")), "{text}");
        assert_eq!(text.matches("\n\n").count(), 1, "{text}");
    }
}
