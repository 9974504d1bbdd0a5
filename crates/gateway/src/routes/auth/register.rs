//! `POST /v1/auth/register`: make an account.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::RegisterRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Public,
        &["/gatehouse.auth.v1.AccountService/Register"],
        LimitClass::SignIn,
        handler!(handle),
    )
}

/// A new account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterBody {
    /// At most 254 characters.
    #[schema(example = "ada@example.org")]
    email: String,
    /// 12 to 128 characters, none of the well-known ones.
    #[schema(format = Password)]
    password: String,
    /// Shown to others; absent takes the part of the address before the @.
    #[serde(default)]
    display_name: String,
    /// Name of a tenant to make with the person as its owner.
    #[serde(default)]
    tenant_name: String,
}

/// The account made.
#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    person_id: String,
    /// Absent unless a tenant was made.
    #[serde(skip_serializing_if = "String::is_empty")]
    tenant_id: String,
}

/// Make an account, and with `tenant_name` a tenant that it owns.
///
/// Sign in afterwards to get tokens.
#[utoipa::path(post, path = "/v1/auth/register", operation_id = "register", tag = "auth", request_body = RegisterBody, responses((status = 201, body = Registered, description = "Made")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: RegisterBody = context.json().await?;
    let request = RegisterRequest {
        email: body.email,
        password: body.password,
        display_name: body.display_name,
        tenant_name: body.tenant_name,
        origin: Some(context.origin()),
    };
    let made = context.accounts().await?.register(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(Registered { person_id: made.person_id, tenant_id: made.tenant_id }))
}
