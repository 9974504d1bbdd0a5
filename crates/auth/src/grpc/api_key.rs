//! `gatehouse.auth.v1.ApiKeyService`.

use gatehouse_core::{Result, Timestamp};
use gatehouse_proto::auth::v1::api_key_service_server::ApiKeyService;
use gatehouse_proto::auth::v1::{
    ApiKey, CreateApiKeyRequest, CreateApiKeyResponse, ListApiKeysRequest, ListApiKeysResponse,
    RevokeApiKeyRequest, RevokeApiKeyResponse, RotateApiKeyRequest, RotateApiKeyResponse,
};
use gatehouse_service::{Caller, reply};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, id, micros};
use crate::store::api_keys::ApiKeyRow;

#[async_trait]
impl ApiKeyService for Face {
    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        let made = async {
            let message = request.get_ref();
            let (caller, permissions) = (Caller::of(&request)?, message.permissions.clone());
            self.app.create_api_key(caller, &message.name, permissions, message.lifetime_seconds).await
        };
        let now = self.app.now();
        reply(made.await.map(|(key, text)| CreateApiKeyResponse {
            api_key: Some(api_key(key, now)),
            text: text.expose().clone(),
        }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        let listed = async { self.app.list_api_keys(Caller::of(&request)?).await };
        let now = self.app.now();
        reply(listed.await.map(|keys| ListApiKeysResponse {
            api_keys: keys.into_iter().map(|key| api_key(key, now)).collect(),
        }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        let rotated = async {
            let message = request.get_ref();
            let key = id("api_key_id", &message.api_key_id)?;
            let caller = Caller::of(&request)?;
            self.app.rotate_api_key(caller, key, message.overlap_seconds, message.replace_new_text).await
        };
        let now = self.app.now();
        reply(rotated.await.map(|(key, text)| RotateApiKeyResponse {
            api_key: Some(api_key(key, now)),
            text: text.expose().clone(),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        let revoked = async {
            let key = id("api_key_id", &request.get_ref().api_key_id)?;
            self.app.revoke_api_key(Caller::of(&request)?, key).await
        };
        reply(revoked.await.map(|()| RevokeApiKeyResponse {}))
    }
}

fn api_key(key: ApiKeyRow, now: Timestamp) -> ApiKey {
    ApiKey {
        api_key_id: key.id.to_string(),
        name: key.name,
        permissions: key.permissions,
        created_at: key.created_at.as_micros(),
        expires_at: micros(key.expires_at),
        last_used_at: micros(key.last_used_at),
        revoked_at: micros(key.revoked_at),
        hint: key.hint,
        age_days: i32::try_from(now.since(key.made_at).as_secs() / 86_400).unwrap_or(i32::MAX),
    }
}
