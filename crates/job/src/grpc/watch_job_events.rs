//! `WatchJobEvents`.

use std::pin::Pin;

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{WatchJobEventsRequest, WatchJobEventsResponse};
use gatehouse_service::{Caller, status};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Status};

use super::convert;
use crate::App;

pub(super) type Events = Pin<Box<dyn Stream<Item = Result<WatchJobEventsResponse, Status>> + Send>>;

pub(super) async fn handle(app: &App, request: Request<WatchJobEventsRequest>) -> Result<Events> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let events = app.watch(&caller, convert::job_id(&request.job_id)?, request.after_sequence).await?;
    Ok(Box::pin(events.map(|batch| match batch {
        Ok(events) => Ok(WatchJobEventsResponse { events: events.into_iter().map(convert::event).collect() }),
        Err(error) => Err(status(&error)),
    })))
}
