//! Upstreams that take one API key from us (requirement P7b): versions in the secrets backend, rotated by changing a
//! file, handed only to the services that the configuration names.

use std::time::Duration;

use gatehouse_core::{Error, Result, Secret};
use gatehouse_db::run_tx;
use gatehouse_secrets::{IdempotencyToken, SecretKey};
use gatehouse_service::{Caller, reply};

use super::tokens::Issued;
use super::{Broker, SERVICE};
use crate::domain::scopes::Scopes;

/// How long a caller may keep a key before it asks again: so long may a rotation take to reach everyone.
const KEPT_BY_CALLERS: Duration = Duration::from_mins(5);

fn secret_key(upstream: &str) -> gatehouse_secrets::Result<SecretKey> {
    SecretKey::new(format!("token-broker/static-keys/{upstream}"))
}

impl Broker {
    /// Takes changed key files in. A file that can't be read changes nothing: the last version stays.
    pub(crate) async fn read_static_keys(&self) {
        for (upstream, settings) in &self.0.config.static_keys {
            let text = match tokio::fs::read_to_string(&settings.key_file).await {
                Ok(text) => Secret::new(text.trim().as_bytes().to_vec()),
                Err(error) => {
                    tracing::warn!(upstream, %error, "the key file can't be read; the last version stays");
                    continue;
                }
            };
            if let Err(error) = self.take_in(upstream, &text).await {
                reply::log(&error);
            }
        }
    }

    async fn take_in(&self, upstream: &str, text: &Secret<Vec<u8>>) -> Result<()> {
        let key = secret_key(upstream)?;
        let current = self.secrets.get_current(&key).await?;
        if text.expose().is_empty()
            || current.as_ref().is_some_and(|current| current.value.expose() == text.expose())
        {
            return Ok(());
        }
        let token = gatehouse_core::ids::new_uuid(&self.clock, &self.entropy);
        let version =
            self.secrets.put_pending(&key, text, &IdempotencyToken::new(token.to_string())?).await?;
        let expected = current.map(|current| current.id);
        let promoted = match self.secrets.promote(&key, &version, expected.as_ref()).await {
            Ok(()) => true,
            // Another replica read the same file.
            Err(gatehouse_secrets::Error::Conflict { .. }) => false,
            Err(other) => return Err(other.into()),
        };
        for old in self.secrets.list_versions(&key).await?.iter().filter(|old| !old.is_current) {
            self.secrets.delete_version(&key, &old.id).await?;
        }
        if promoted {
            let event = self
                .outbox
                .event("token-broker.static-keys.rotate")
                .by_system(SERVICE)
                .target_named("upstream", upstream);
            run_tx!(self.db, "token_broker.static_keys.rotate", |tx| { self.outbox.emit(tx, &event).await })?;
            tracing::info!(upstream, "a new version of the upstream's key is in use");
        }
        Ok(())
    }

    pub(crate) async fn issue_static(&self, caller: &Caller, upstream: &str) -> Result<Issued> {
        let settings = self.0.config.static_keys.get(upstream);
        let allowed = settings
            .zip(caller.client())
            .filter(|(settings, client)| settings.clients.iter().any(|allowed| allowed == client));
        let Some((settings, _)) = allowed else {
            return Err(Error::permission_denied(
                "POLICY_DENIED",
                "Only the services configured for it may have this key.",
            ));
        };
        let current = self.secrets.get_current(&secret_key(upstream)?).await?.ok_or_else(|| {
            Error::unavailable(
                "UPSTREAM_UNAVAILABLE",
                "The upstream's key has not been read yet. Try again in a moment.",
            )
        })?;
        let event =
            self.outbox.event("token-broker.tokens.issue").by(caller).target_named("upstream", upstream);
        run_tx!(self.db, "token_broker.static_keys.issue", |tx| { self.outbox.emit(tx, &event).await })?;
        Ok(Issued {
            token: Secret::new(String::from_utf8(current.value.expose().clone()).map_err(Error::internal)?),
            token_type: if settings.token_type.is_empty() {
                "apikey".to_owned()
            } else {
                settings.token_type.clone()
            },
            expires_at: self.clock.now().plus(KEPT_BY_CALLERS),
            scopes: Scopes::default(),
            connection: None,
        })
    }
}
