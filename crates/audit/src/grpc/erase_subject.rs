//! `EraseSubject`.

use gatehouse_core::{Error, Result};
use gatehouse_proto::audit::v1::{EraseSubjectRequest, EraseSubjectResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::client_of;
use crate::app::App;

/// Erases a person, for an internal service only: persons are global, and no tenant may erase another's. Reasons:
/// `CLIENT_REQUIRED`, `INVALID_FIELD`.
pub(super) async fn handle(app: &App, request: Request<EraseSubjectRequest>) -> Result<EraseSubjectResponse> {
    let client = client_of(Caller::of(&request)?)?;
    let person = request.into_inner().subject_id.parse().map_err(|_| {
        Error::invalid_field("subject_id", "must be a person id (a hyphenated lower-case UUID)")
    })?;
    app.erase_subject(person, client).await?;
    Ok(EraseSubjectResponse {})
}
