//! The auth service, as hostile as a test asks.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use gatehouse_proto::auth::v1::*;

use super::Fake;

#[tonic::async_trait]
impl account_service_server::AccountService for Fake {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.enter("Register").await?;
        let request = request.into_inner();
        self.0.lock().origins.push(request.origin.unwrap_or_default());
        Ok(Response::new(RegisterResponse { person_id: "p".into(), tenant_id: request.tenant_name }))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        self.enter("SignIn").await?;
        let request = request.into_inner();
        self.0.lock().origins.push(request.origin.unwrap_or_default());
        Ok(Response::new(SignInResponse { tokens: Some(Self::pair()) }))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshResponse>, Status> {
        self.enter("Refresh").await?;
        drop(request);
        Ok(Response::new(RefreshResponse { tokens: Some(Self::pair()) }))
    }

    async fn sign_out(&self, _request: Request<SignOutRequest>) -> Result<Response<SignOutResponse>, Status> {
        Ok(Response::new(SignOutResponse::default()))
    }

    async fn list_sessions(
        &self,
        _request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        Ok(Response::new(ListSessionsResponse::default()))
    }

    async fn revoke_session(
        &self,
        _request: Request<RevokeSessionRequest>,
    ) -> Result<Response<RevokeSessionResponse>, Status> {
        Ok(Response::new(RevokeSessionResponse::default()))
    }

    async fn change_password(
        &self,
        _request: Request<ChangePasswordRequest>,
    ) -> Result<Response<ChangePasswordResponse>, Status> {
        Ok(Response::new(ChangePasswordResponse::default()))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        self.enter("WhoAmI").await?;
        drop(request);
        Ok(Response::new(WhoAmIResponse { kind: "person".into(), ..WhoAmIResponse::default() }))
    }
}

#[tonic::async_trait]
impl token_service_server::TokenService for Fake {
    type WatchRevocationsStream =
        Pin<Box<dyn Stream<Item = Result<WatchRevocationsResponse, Status>> + Send>>;

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let request = request.into_inner();
        Self::issue(&request)
    }

    async fn exchange_token(
        &self,
        request: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        self.enter("ExchangeToken").await?;
        let request = request.into_inner();
        self.exchange(&request)
    }

    async fn introspect_token(
        &self,
        request: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        let live = request.into_inner().token == "live";
        let claims_json = if live { r#"{"sub":"p"}"#.to_owned() } else { String::new() };
        Ok(Response::new(IntrospectTokenResponse { active: live, claims_json }))
    }

    async fn revoke_token(
        &self,
        _request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Ok(Response::new(RevokeTokenResponse::default()))
    }

    async fn get_jwks(&self, request: Request<GetJwksRequest>) -> Result<Response<GetJwksResponse>, Status> {
        drop(request);
        Ok(Response::new(GetJwksResponse { jwks_json: super::jwks(), max_age_ms: 60_000 }))
    }

    async fn watch_revocations(
        &self,
        _request: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }
}

#[tonic::async_trait]
impl tenant_service_server::TenantService for Fake {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        self.enter("CreateTenant").await?;
        drop(request);
        Ok(Response::new(CreateTenantResponse { tenant: Some(Tenant::default()) }))
    }

    async fn get_tenant(
        &self,
        request: Request<GetTenantRequest>,
    ) -> Result<Response<GetTenantResponse>, Status> {
        self.enter("GetTenant").await?;
        drop(request);
        Ok(Response::new(GetTenantResponse { tenant: Some(Tenant::default()) }))
    }

    async fn list_tenants(
        &self,
        _request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        Ok(Response::new(ListTenantsResponse::default()))
    }

    async fn list_members(
        &self,
        _request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        Ok(Response::new(ListMembersResponse::default()))
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<AddMemberResponse>, Status> {
        drop(request);
        Ok(Response::new(AddMemberResponse { member: Some(Member::default()) }))
    }

    async fn set_member_role(
        &self,
        request: Request<SetMemberRoleRequest>,
    ) -> Result<Response<SetMemberRoleResponse>, Status> {
        drop(request);
        Ok(Response::new(SetMemberRoleResponse { member: Some(Member::default()) }))
    }

    async fn remove_member(
        &self,
        _request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        Ok(Response::new(RemoveMemberResponse::default()))
    }
}

#[tonic::async_trait]
impl api_key_service_server::ApiKeyService for Fake {
    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        drop(request);
        Ok(Response::new(CreateApiKeyResponse {
            api_key: Some(ApiKey::default()),
            text: "gh_dev_ak_secret".into(),
        }))
    }

    async fn list_api_keys(
        &self,
        _request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        Ok(Response::new(ListApiKeysResponse::default()))
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        drop(request);
        Ok(Response::new(RotateApiKeyResponse {
            api_key: Some(ApiKey::default()),
            text: "gh_dev_ak_secret".into(),
        }))
    }

    async fn revoke_api_key(
        &self,
        _request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        Ok(Response::new(RevokeApiKeyResponse::default()))
    }
}
