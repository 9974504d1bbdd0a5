//! The signing keys of all replicas: sealed in the database, rotated by whoever notices first.

use std::sync::{Arc, PoisonError, RwLock};

use gatehouse_core::{Clock, Entropy, Error, Result, Secret, Timestamp};
use gatehouse_db::{Db, read_tx, run_tx};
use gatehouse_service::{Claims, KeySet};

use crate::domain::keys::Purpose;
use crate::domain::signing::{JwkSet, Schedule, TokenKey, TokenKeys};
use crate::key_file::Keys;
use crate::store::signing_keys::{self as store, SealedKey};

/// The keys as last read. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct SigningKeys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    ring: Keys,
    schedule: Schedule,
    clock: Clock,
    entropy: Entropy,
    held: RwLock<Arc<TokenKeys>>,
    /// What this process itself verifies tokens with.
    verifying: KeySet,
}

impl SigningKeys {
    /// Reads the keys; makes the first one if there is none.
    ///
    /// # Errors
    /// If the database is away, or the key ring lacks a key that sealed one.
    pub async fn open(
        db: Db,
        ring: Keys,
        schedule: Schedule,
        clock: Clock,
        entropy: Entropy,
        verifying: KeySet,
    ) -> Result<Self> {
        let keys =
            Self(Arc::new(Shared { db, ring, schedule, clock, entropy, held: RwLock::default(), verifying }));
        keys.refresh().await?;
        Ok(keys)
    }

    /// Reads the keys again, adds the next one if it is due and forgets those that nobody needs. Any number of
    /// replicas may do this at once: the place in the row of keys lets one win.
    ///
    /// # Errors
    /// As [`SigningKeys::open`].
    pub async fn refresh(&self) -> Result<()> {
        let shared = &self.0;
        let mut keys = self.read().await?;
        if let Some((sequence, signs_from)) = keys.next(shared.clock.now(), shared.schedule) {
            let key = TokenKey::generate(sequence, signs_from, &shared.entropy);
            let (sealed, now) = (self.seal(&key), shared.clock.now());
            let added =
                run_tx!(shared.db, "auth.signing_key.add", |tx| { store::add(tx, &sealed, now).await })?;
            if added {
                tracing::info!(kid = key.kid, %signs_from, "made the next signing key");
            }
            keys = self.read().await?;
        }
        let over = keys.forgettable(shared.clock.now(), shared.schedule);
        if !over.is_empty() {
            run_tx!(shared.db, "auth.signing_key.remove", |tx| {
                for sequence in &over {
                    store::remove(tx, *sequence).await?;
                }
                Ok(())
            })?;
        }
        shared.verifying.replace(
            &serde_json::to_string(&keys.jwks(shared.clock.now(), shared.schedule))
                .map_err(Error::internal)?,
        )?;
        *shared.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Whether the next key is due.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.held().next(self.0.clock.now(), self.0.schedule).is_some()
    }

    /// The public keys at this moment.
    #[must_use]
    pub fn jwks(&self) -> JwkSet {
        self.held().jwks(self.0.clock.now(), self.0.schedule)
    }

    /// Since when the key that signs now does, for the age that is exported.
    #[must_use]
    pub fn signing_since(&self) -> Option<Timestamp> {
        self.held().signer(self.0.clock.now()).map(|key| key.signs_from)
    }

    /// Signs `claims` with the key of the moment.
    ///
    /// # Errors
    /// `NO_SIGNING_KEY` if none is due, which only a clock far behind the database's keys can bring about.
    pub fn sign(&self, claims: &Claims) -> Result<Secret<String>> {
        let held = self.held();
        let key = held.signer(self.0.clock.now()).ok_or_else(|| {
            Error::unavailable(
                "NO_SIGNING_KEY",
                "No signing key is in use yet. Check the clocks of the replicas.",
            )
        })?;
        key.sign(claims).map_err(Error::internal)
    }

    fn held(&self) -> Arc<TokenKeys> {
        Arc::clone(&self.0.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read(&self) -> Result<TokenKeys> {
        let rows = read_tx!(self.0.db, "auth.signing_key.list", |tx| { store::list(tx).await })?;
        rows.iter().map(|row| self.open_sealed(row)).collect::<Result<Vec<_>>>().map(TokenKeys::new)
    }

    fn seal(&self, key: &TokenKey) -> SealedKey {
        let ring = self.0.ring.ring();
        let master = ring.current(self.0.clock.now());
        let place = place(key.sequence, &key.kid);
        let sealed =
            ring.seal(master, Purpose::SealSigningKey, &place, key.private().expose(), &self.0.entropy);
        SealedKey {
            sequence: key.sequence,
            kid: key.kid.clone(),
            signs_from: key.signs_from,
            sealed_kid: master.id.clone(),
            sealed,
        }
    }

    fn open_sealed(&self, row: &SealedKey) -> Result<TokenKey> {
        let lost = |why: String| {
            let message = "A signing key in the database does not open with the key file. Restore the key file that belongs to this database.";
            Error::failed_precondition("KEY_FILE_MISMATCH", message).caused_by(why)
        };
        let ring = self.0.ring.ring();
        let master =
            ring.lookup(&row.sealed_kid).ok_or_else(|| lost(format!("no key {}", row.sealed_kid)))?;
        let private = ring
            .open(master, Purpose::SealSigningKey, &place(row.sequence, &row.kid), &row.sealed)
            .map_err(|error| lost(error.to_string()))?;
        let private = private.expose().as_slice().try_into().map_err(|_| lost("wrong length".into()))?;
        let key = TokenKey::from_private(row.sequence, row.signs_from, &Secret::new(private));
        if key.kid == row.kid { Ok(key) } else { Err(lost("wrong thumbprint".into())) }
    }
}

fn place(sequence: i64, kid: &str) -> String {
    format!("signing_keys/{sequence}/{kid}")
}
