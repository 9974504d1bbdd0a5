//! `gatehouse.auth.v1.AccountService`.

use gatehouse_core::{Result, Secret};
use gatehouse_proto::auth::v1::account_service_server::AccountService;
use gatehouse_proto::auth::v1::{
    ChangePasswordRequest, ChangePasswordResponse, ListSessionsRequest, ListSessionsResponse, RefreshRequest,
    RefreshResponse, RegisterRequest, RegisterResponse, RevokeSessionRequest, RevokeSessionResponse, Session,
    SignInRequest, SignInResponse, SignOutRequest, SignOutResponse, TokenPair, WhoAmIRequest, WhoAmIResponse,
};
use gatehouse_service::{Caller, Subject, reply};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, id, optional_id, text};
use crate::app::Tokens;
use crate::app::accounts::Registration;

#[async_trait]
impl AccountService for Face {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let new = Registration {
            email: message.email,
            password: Secret::new(message.password),
            display_name: message.display_name,
            tenant_name: message.tenant_name,
            origin: self.origin(&metadata, message.origin),
        };
        let made = self.app.register(new).await;
        reply(made.map(|(person, tenant)| RegisterResponse {
            person_id: person.to_string(),
            tenant_id: text(tenant),
        }))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let origin = self.origin(&metadata, message.origin);
        let password = Secret::new(message.password);
        let signed_in = async {
            let tenant = optional_id("tenant_id", &message.tenant_id)?;
            self.app.sign_in(&message.email, password, tenant, &origin).await
        };
        reply(signed_in.await.map(|tokens| SignInResponse { tokens: Some(pair(&tokens)) }))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let origin = self.origin(&metadata, message.origin);
        // Ending a family must not stop halfway because whoever presented the token hung up.
        let (app, token) = (self.app.clone(), Secret::new(message.refresh_token));
        let refreshed = self.finish(async move { app.refresh(&token, &origin).await }).await;
        reply(refreshed.map(|tokens| RefreshResponse { tokens: Some(pair(&tokens)) }))
    }

    async fn sign_out(&self, request: Request<SignOutRequest>) -> Result<Response<SignOutResponse>, Status> {
        let done = async { self.app.sign_out(Caller::of(&request)?).await };
        reply(done.await.map(|()| SignOutResponse {}))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let listed = async {
            let caller = Caller::of(&request)?;
            let sessions = self.app.list_sessions(caller).await?;
            let sessions = sessions.into_iter().map(|session| Session {
                session_id: session.family.id.to_string(),
                created_at: session.created_at.as_micros(),
                last_used_at: session.last_used_at.as_micros(),
                expires_at: session.family.ends_at.as_micros(),
                user_agent: session.user_agent,
                current: caller.claims().sid == Some(session.family.id),
            });
            Ok(ListSessionsResponse { sessions: sessions.collect() })
        };
        reply(listed.await)
    }

    async fn revoke_session(
        &self,
        request: Request<RevokeSessionRequest>,
    ) -> Result<Response<RevokeSessionResponse>, Status> {
        let done = async {
            let session = id("session_id", &request.get_ref().session_id)?;
            self.app.revoke_session(Caller::of(&request)?, session).await
        };
        reply(done.await.map(|()| RevokeSessionResponse {}))
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<ChangePasswordResponse>, Status> {
        let done = async {
            let (caller, message) = (Caller::of(&request)?.clone(), request.into_inner());
            let (current, new) = (Secret::new(message.current_password), Secret::new(message.new_password));
            let app = self.app.clone();
            // What answers a stolen password must not stop because it was made slow.
            self.finish(async move { app.change_password(&caller, current, new).await }).await
        };
        reply(done.await.map(|()| ChangePasswordResponse {}))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let who = async { self.app.who_am_i(Caller::of(&request)?).await };
        reply(who.await.map(|who| {
            let (kind, subject) = match who.subject {
                Subject::Person(id) => ("person", id.to_string()),
                Subject::ApiKey(id) => ("api_key", id.to_string()),
                Subject::Client(name) => ("client", name),
            };
            let mut answer = WhoAmIResponse {
                kind: kind.to_owned(),
                subject,
                tenant_id: text(who.tenant),
                roles: who.roles,
                permissions: who.permissions,
                ..WhoAmIResponse::default()
            };
            if let Some(person) = who.person {
                answer.email = person.email;
                answer.email_verified = person.email_verified;
                answer.display_name = person.display_name;
            }
            answer
        }))
    }
}

fn pair(tokens: &Tokens) -> TokenPair {
    TokenPair {
        access_token: tokens.access.expose().clone(),
        access_token_expires_at: tokens.access_expires_at.as_micros(),
        refresh_token: tokens.refresh.expose().clone(),
        session_expires_at: tokens.session_expires_at.as_micros(),
        session_id: tokens.session.to_string(),
        person_id: tokens.person.to_string(),
        tenant_id: text(tokens.tenant),
    }
}
