//! The contract itself: what every backend does, checked once on the way in.

use std::collections::BTreeMap;
use std::sync::Arc;

use gatehouse_core::{Clock, Entropy, Environment, Secret, Timestamp};

use crate::config::{BackendKind, Config};
use crate::document::{Document, Mutation};
use crate::embedded::Embedded;
use crate::memory::Memory;
use crate::vault::Vault;
use crate::{
    Error, IdempotencyToken, MAX_SEALED_BYTES, MAX_VALUE_BYTES, Result, SecretKey, SecretVersion, VersionId,
    VersionInfo,
};

/// A secrets backend. Cheap to clone; clones share it. The crate's page says what every implementation promises.
#[derive(Clone, Debug)]
pub struct Secrets {
    backend: Backend,
    environment: Environment,
    clock: Clock,
}

#[derive(Clone, Debug)]
enum Backend {
    Embedded(Arc<Embedded>),
    Vault(Arc<Vault>),
    Memory(Arc<Memory>),
}

/// The key that seals new values, without the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealingKey {
    /// Its id, as ciphertexts carry it.
    pub id: String,
    /// When it was made: warn when it is older than 90 days (requirement P11).
    pub created_at: Timestamp,
}

/// A backend that answers.
#[derive(Clone, Debug)]
pub struct Health {
    /// Which implementation: `embedded`, `vault`, `memory`.
    pub backend: &'static str,
    /// The key that seals new values.
    pub sealing_key: SealingKey,
}

impl Secrets {
    /// Opens the backend that `config` chooses, making what is missing where `environment` allows it. The
    /// embedded store is opened by one process at a time.
    ///
    /// # Errors
    /// [`Error::Setup`] where the configuration does not fit what is there (the message says what to do),
    /// [`Error::Locked`], [`Error::Denied`], [`Error::Unavailable`].
    pub async fn open(
        config: &Config,
        environment: Environment,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self> {
        let backend = match config.backend {
            BackendKind::Embedded => {
                let (config, clock) = (config.embedded.clone(), clock.clone());
                let store = blocking(move || Embedded::open(&config, environment, clock, entropy)).await?;
                Backend::Embedded(Arc::new(store))
            }
            BackendKind::Vault => Backend::Vault(Arc::new(Vault::open(&config.vault, environment).await?)),
        };
        Ok(Self { backend, environment, clock })
    }

    /// A backend in memory, gone with the last clone. For tests.
    #[must_use]
    pub fn in_memory(environment: Environment, clock: Clock, entropy: Entropy) -> Self {
        let memory = Memory::new(environment, clock.clone(), entropy);
        Self { backend: Backend::Memory(Arc::new(memory)), environment, clock }
    }

    /// Adds a version to the secret `key`, which comes to be if it was not there. `value`: 1 to
    /// [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) bytes. The same `token` with the same value gives the same
    /// version and changes nothing, whether that version is pending or current.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::TokenReused`], [`Error::TooManyVersions`], [`Error::Unavailable`].
    pub async fn put_pending(
        &self,
        key: &SecretKey,
        value: &Secret<Vec<u8>>,
        token: &IdempotencyToken,
    ) -> Result<VersionId> {
        let bytes = value.expose().len();
        if bytes > MAX_VALUE_BYTES {
            return Err(Error::TooLarge { bytes, limit: MAX_VALUE_BYTES });
        }
        if bytes == 0 {
            return Err(Error::Grammar { what: "the value", problem: "it is empty".to_owned() });
        }
        let mutation = Mutation::Put { token: token.clone(), value: value.clone(), now: self.clock.now() };
        self.update(key, mutation).await?;
        Ok(VersionId::of(token))
    }

    /// Makes `version` the current one if the current one is `expected` (`None`: if there is none yet). Succeeds
    /// without a change if it is current already. The version it supersedes stays until it is deleted.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another version is current, [`Error::VersionNotFound`], [`Error::Unavailable`].
    pub async fn promote(
        &self,
        key: &SecretKey,
        version: &VersionId,
        expected: Option<&VersionId>,
    ) -> Result<()> {
        self.update(key, Mutation::Promote { version: version.clone(), expected: expected.cloned() }).await
    }

    /// The current version, if there is one.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unavailable`].
    pub async fn get_current(&self, key: &SecretKey) -> Result<Option<SecretVersion>> {
        Ok(self.load(key).await?.and_then(|document| document.current().cloned()))
    }

    /// The version of that name, pending or current, if it is there.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unavailable`].
    pub async fn get_version(&self, key: &SecretKey, version: &VersionId) -> Result<Option<SecretVersion>> {
        Ok(self.load(key).await?.and_then(|document| document.version(version).cloned()))
    }

    /// Every version, in the order they were put; none if there is no such secret.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unavailable`].
    pub async fn list_versions(&self, key: &SecretKey) -> Result<Vec<VersionInfo>> {
        Ok(self.load(key).await?.map(|document| document.list()).unwrap_or_default())
    }

    /// Removes one version for good; succeeds if it is gone already.
    ///
    /// # Errors
    /// [`Error::IsCurrent`], [`Error::Unavailable`].
    pub async fn delete_version(&self, key: &SecretKey, version: &VersionId) -> Result<()> {
        self.update(key, Mutation::DeleteVersion { version: version.clone() }).await
    }

    /// Removes the secret with all its versions for good; succeeds if it is gone already.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete(&self, key: &SecretKey) -> Result<()> {
        match &self.backend {
            Backend::Embedded(store) => {
                let (store, key) = (store.clone(), key.clone());
                blocking(move || store.delete(&key)).await
            }
            Backend::Vault(vault) => vault.delete(key).await,
            Backend::Memory(memory) => {
                memory.delete(key);
                Ok(())
            }
        }
    }

    /// Encrypts `plaintext` (up to [`MAX_SEALED_BYTES`](crate::MAX_SEALED_BYTES)) under the backend's newest
    /// sealing key. `purpose` must be shown again to open it: say what it is and whose, such as
    /// `token-broker/escrow/<rotation id>`, so that a ciphertext moved to another row does not open. To wrap a
    /// data key, seal the key.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Unavailable`].
    pub async fn seal(&self, purpose: &str, plaintext: &Secret<Vec<u8>>) -> Result<Vec<u8>> {
        let bytes = plaintext.expose().len();
        if bytes > MAX_SEALED_BYTES {
            return Err(Error::TooLarge { bytes, limit: MAX_SEALED_BYTES });
        }
        let aad = self.associated_data(purpose);
        match &self.backend {
            Backend::Embedded(store) => store.seal(&aad, plaintext),
            Backend::Vault(vault) => vault.seal(&aad, plaintext).await,
            Backend::Memory(memory) => memory.seal(&aad, plaintext),
        }
    }

    /// Opens what [`Secrets::seal`] sealed for the same purpose, under whichever of the backend's keys it names.
    ///
    /// # Errors
    /// [`Error::DoesNotOpen`], [`Error::Unavailable`].
    pub async fn unseal(&self, purpose: &str, sealed: &[u8]) -> Result<Secret<Vec<u8>>> {
        let aad = self.associated_data(purpose);
        match &self.backend {
            Backend::Embedded(store) => store.unseal(&aad, sealed),
            Backend::Vault(vault) => vault.unseal(&aad, sealed).await,
            Backend::Memory(memory) => memory.open(&aad, sealed),
        }
    }

    /// Adds a sealing key, which seals from now on; what older keys sealed still opens.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Denied`].
    pub async fn rotate_sealing_key(&self) -> Result<SealingKey> {
        match &self.backend {
            Backend::Embedded(store) => {
                let store = store.clone();
                blocking(move || store.rotate()).await
            }
            Backend::Vault(vault) => vault.rotate().await,
            Backend::Memory(memory) => Ok(memory.rotate()),
        }
    }

    /// Whether the backend answers and our credential holds.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Denied`].
    pub async fn health(&self) -> Result<Health> {
        match &self.backend {
            Backend::Embedded(store) => {
                let store = store.clone();
                let sealing_key = blocking(move || store.health()).await?;
                Ok(Health { backend: "embedded", sealing_key })
            }
            Backend::Vault(vault) => Ok(Health { backend: "vault", sealing_key: vault.health().await? }),
            Backend::Memory(memory) => Ok(Health { backend: "memory", sealing_key: memory.sealing_key() }),
        }
    }

    /// How many versions each secret of an in-memory backend holds; empty for every other backend. For tests.
    #[must_use]
    pub fn census(&self) -> BTreeMap<String, usize> {
        match &self.backend {
            Backend::Memory(memory) => memory.dump(),
            Backend::Embedded(_) | Backend::Vault(_) => BTreeMap::new(),
        }
    }

    async fn load(&self, key: &SecretKey) -> Result<Option<Document>> {
        match &self.backend {
            Backend::Embedded(store) => {
                let (store, key) = (store.clone(), key.clone());
                blocking(move || store.load(&key)).await
            }
            Backend::Vault(vault) => vault.load(key).await,
            Backend::Memory(memory) => Ok(memory.load(key)),
        }
    }

    async fn update(&self, key: &SecretKey, mutation: Mutation) -> Result<()> {
        match &self.backend {
            Backend::Embedded(store) => {
                let (store, key) = (store.clone(), key.clone());
                blocking(move || store.update(&key, &mutation)).await
            }
            Backend::Vault(vault) => vault.update(key, &mutation).await,
            Backend::Memory(memory) => memory.update(key, &mutation),
        }
    }

    fn associated_data(&self, purpose: &str) -> Vec<u8> {
        format!("gatehouse sealed v1\0{}\0{purpose}", self.environment).into_bytes()
    }
}

/// Runs file work off the async threads. It goes on to its end even if the caller goes away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::unavailable)?
}
