//! `EraseSubject`.

use gatehouse_core::{Error, Result};
use gatehouse_proto::audit::v1::{EraseSubjectRequest, EraseSubjectResponse};
use gatehouse_service::{Caller, Subject};
use tonic::Request;

use crate::app::App;
use crate::app::append::Actor;
use crate::domain::names::ClientName;

/// Erases a person, for a platform administrator or an internal service: persons are global, no role of a tenant has the
/// permission, and an API key, which is a tenant's, can't use it. Reasons: `CLIENT_REQUIRED`, `INVALID_FIELD`.
pub(super) async fn handle(app: &App, request: Request<EraseSubjectRequest>) -> Result<EraseSubjectResponse> {
    let actor = match Caller::of(&request)?.subject() {
        Subject::Person(person) => Actor::Person(*person),
        Subject::Client(name) => Actor::Client(ClientName::new(name.as_str()).map_err(Error::internal)?),
        Subject::ApiKey(_) => {
            let message = "Only a platform administrator or an internal service can do this.";
            return Err(Error::permission_denied("CLIENT_REQUIRED", message));
        }
    };
    let person = request
        .into_inner()
        .subject_id
        .parse()
        .map_err(|_| Error::invalid_field("subject_id", "must be a person id (a hyphenated UUID)"))?;
    app.erase_subject(person, actor).await?;
    Ok(EraseSubjectResponse {})
}
