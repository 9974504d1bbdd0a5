//! `GET /v1/jobs/{job_id}/events`: a job as it happens (requirements L8, L9b).

use actix_web::http::{ConnectionType, Version, header};
use actix_web::{HttpResponse, HttpResponseBuilder};
use gatehouse_client::{Authorized, Channel, from_status};
use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, ErrorCode, Result};
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::{GetJobRequest, JobState};
use serde::Deserialize;
use std::sync::Arc;
use tokio::time::Instant;
use utoipa::IntoParams;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::sse::{self, Pump, Reconnect, SaysKeepAlive};
use crate::upstream::DeclaredCalls;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/GetJob", "/gatehouse.job.v1.JobService/WatchJobEvents"],
        LimitClass::Stream,
        handler!(handle),
    )
    .streaming()
    .refusing(&[(ErrorCode::ResourceExhausted, "TOO_MANY_STREAMS")])
}

/// HTTP/2 forbids the header (RFC 9113, section 8.2.2), and a client that asked for `close` gets that; so does one that
/// sent a body, which nobody reads here. Whether this process leaves is asked where the connection's end is decided.
fn may_keep_alive(context: &Context) -> bool {
    let head = context.request.head();
    let has_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
        .iter()
        .any(|name| head.headers.contains_key(name));
    head.version == Version::HTTP_11 && head.connection_type() == ConnectionType::KeepAlive && !has_body
}

/// Where to begin.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Events up to this number are known; `Last-Event-ID` stands over it.
    #[serde(default)]
    after: i64,
}

/// The last event that the reader has, and the field that says so.
fn cursor(context: &Context) -> Result<(i64, &'static str)> {
    let query: EventsQuery = context.query()?;
    let wrong = |field| Error::invalid_field(field, "must be the number of an event, 0 or more");
    let (cursor, field) = match context.header("last-event-id", 20)? {
        Some(text) => (text.parse().map_err(|_| wrong("Last-Event-ID"))?, "Last-Event-ID"),
        None => (query.after, "after"),
    };
    if cursor < 0 { Err(wrong(field)) } else { Ok((cursor, field)) }
}

/// Whether a reader who has the events up to `cursor` has all that there will be.
///
/// # Errors
/// `INVALID_FIELD` if there is no such event yet; what the job service answers.
async fn has_all(context: &Context, job_id: &str, cursor: i64, field: &'static str) -> Result<bool> {
    if cursor == 0 {
        return Ok(false);
    }
    let request = GetJobRequest { job_id: job_id.to_owned() };
    let answer = context.jobs().await?.get_job(request).await.map_err(from_status)?.into_inner();
    let job = answer.job.ok_or_else(|| Error::internal("the job service answered without a job"))?;
    if cursor > job.last_sequence {
        let last = job.last_sequence;
        return Err(Error::invalid_field(
            field,
            format!("the job has no event {cursor}; its last is {last}"),
        ));
    }
    let ended = matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled);
    Ok(ended && cursor == job.last_sequence)
}

fn reconnect(context: &Context, channel: Channel) -> Option<Reconnect> {
    let gateway = Arc::clone(&context.gateway);
    let presented = context.caller.as_ref()?.presented.clone();
    let calls = context.route.calls;
    Some(Box::new(move || {
        let (gateway, presented, channel) = (Arc::clone(&gateway), presented.clone(), channel.clone());
        Box::pin(async move {
            let admitted = gateway.door.admit(&presented, Service::Job).await?;
            let channel = Authorized::with_token(channel, admitted.token);
            Ok(JobServiceClient::new(DeclaredCalls::new(channel, calls)))
        })
    }))
}

/// The head of a stream.
fn begin() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no"));
    response
}

/// A job's events as server-sent events: those so far, then live ones, until the job has ended.
///
/// Event names: `queued`, `started`, `progress`, `notice`, `retrying`, `stalled`, `cancel_requested`, `end`. The id is the event's sequence number, the data a JSON object. Resume with `Last-Event-ID` or `after`. `end` is the last event of its job until the job is retried: a retried job has one for each of its lives, with more events between. So read on after `end`; where it is the last, the answer ends within moments. An answer that stops elsewhere says why in an event `closed` (without an id), or breaks off: resume. Who resumes after the last `end` gets 204, at which an `EventSource` stops.
#[utoipa::path(get, path = "/v1/jobs/{job_id}/events", operation_id = "watchJobEvents", tag = "jobs", params(("job_id" = String, Path, format = Uuid), ("Last-Event-ID" = Option<i64>, Header), EventsQuery), responses((status = 200, content_type = "text/event-stream", body = String, description = "The events"), (status = 204, description = "The job has ended, and there is no event after the one named")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let job_id = context.id::<JobId>("job_id")?;
    let (cursor, field) = cursor(&context)?;
    let gateway = &context.gateway;
    if gateway.lifecycle.stopping().is_cancelled() {
        return Ok(begin().body(sse::only_draining(&gateway.config.sse)));
    }
    let callers_only = || Error::internal("the route lets in callers only");
    let caller = context.caller.clone().ok_or_else(callers_only)?;
    if has_all(&context, &job_id.to_string(), cursor, field).await? {
        return Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish());
    }
    let permit = Arc::new(gateway.streams.open(&caller.caller, job_id)?);
    let reconnect = reconnect(&context, permit.channel()).ok_or_else(callers_only)?;
    let job_id = job_id.to_string();
    let channel = Authorized::with_token(permit.channel(), caller.token);
    let mut jobs = JobServiceClient::new(DeclaredCalls::new(channel, context.route.calls));
    // Opened before the answer begins, so that a refusal is a plain error answer.
    let stream = sse::open(&mut jobs, &job_id, cursor).await?;
    let pump = Pump {
        job_id,
        cursor,
        config: gateway.config.sse.clone(),
        reconnect,
        door: gateway.door.clone(),
        caller: caller.caller,
        ends_at: caller.ends_at,
        clock: gateway.clock.clone(),
        entropy: gateway.entropy.clone(),
        draining: gateway.lifecycle.stopping(),
        permit,
        opened_at: Instant::now(),
        lost_at: None,
        is_end_seen: false,
    };
    let mut response = begin().streaming(pump.start(stream));
    if may_keep_alive(&context) {
        response.extensions_mut().insert(SaysKeepAlive);
    }
    Ok(response)
}
