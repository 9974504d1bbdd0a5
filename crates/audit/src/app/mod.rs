//! Use cases: each one named transaction, or none.

pub(crate) mod append;
pub(crate) mod checkpoint;
pub(crate) mod erase;
pub(crate) mod export;
pub(crate) mod proof;
pub(crate) mod prune;
pub(crate) mod read;

use std::collections::BTreeMap;
use std::sync::Arc;

use gatehouse_core::{Clock, Entropy, Environment, Error, Result};
use gatehouse_db::{Db, run_tx};
use gatehouse_service::{Lifecycle, Readiness};

use crate::Config;
use crate::domain::names::{LogId, RetentionClass};
use crate::domain::note::{SignerKey, VerifierKey};
use crate::keys::SubjectKeys;
use crate::sequencer::Sequencer;
use crate::signed_states::SignedStates;
use crate::signing::CheckpointSeed;
use crate::standing::Standing;
use crate::store::heads;

/// The log for events that ask for no other.
pub(crate) const DEFAULT_LOG: &str = "default";

/// What the use cases work with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) environment: Environment,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) keys: SubjectKeys,
    pub(crate) states: SignedStates,
    pub(crate) max_prune: u64,
    logs: Arc<BTreeMap<String, Log>>,
}

/// One log as this process runs it.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) retention: RetentionClass,
    pub(crate) days: u32,
    pub(crate) origin: String,
    pub(crate) signer: SignerKey,
    /// What checkpoints may be signed with: the signer's key first, then those of before.
    pub(crate) accepted: Vec<VerifierKey>,
    /// Signs what was pruned: the same seed under a name of its own, so that no checkpoint passes for it.
    pub(crate) prune_signer: SignerKey,
    /// As `accepted`, for what was pruned.
    pub(crate) prune_accepted: Vec<VerifierKey>,
    pub(crate) standing: Standing,
    pub(crate) sequencer: Sequencer,
}

/// What an [`App`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) environment: Environment,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) readiness: Readiness,
    pub(crate) keys: SubjectKeys,
    pub(crate) seed: CheckpointSeed,
}

impl App {
    /// The app with the logs of `config`, whose beginnings are made where they are missing. Logs that another key signed,
    /// or that were signed with more entries than they have, are refused.
    pub(crate) async fn new(config: &Config, parts: Parts) -> Result<Self> {
        let Parts { db, clock, entropy, environment, lifecycle, readiness, keys, seed } = parts;
        let states = SignedStates::beside(&config.subject_keys_dir, config.given_up(), entropy.clone());
        let mut logs = BTreeMap::new();
        for each in config.all_logs() {
            let id = LogId::new(each.name.as_str()).map_err(Error::internal)?;
            let origin = config.origin_of(environment, &id);
            run_tx!(db, "audit.begin_log", |tx| { heads::add(tx, &id).await })?;
            let (signer, prune_signer) = (seed.signer(&origin)?, seed.signer(&pruned_origin(&origin))?);
            let former = config.accepted_keys(&id)?;
            let former_pruned = former
                .iter()
                .map(|key| key.renamed(&pruned_origin(key.name())).map_err(Error::internal))
                .collect::<Result<Vec<_>>>()?;
            let standing = Standing::new(&id, &origin, states.clone(), &readiness);
            let log = Log {
                accepted: std::iter::once(signer.verifier()).chain(former).collect(),
                prune_accepted: std::iter::once(prune_signer.verifier()).chain(former_pruned).collect(),
                signer,
                prune_signer,
                retention: RetentionClass::new(each.name.as_str()).map_err(Error::internal)?,
                days: each.days,
                sequencer: Sequencer::new(
                    standing.clone(),
                    db.clone(),
                    keys.clone(),
                    clock.clone(),
                    lifecycle.clone(),
                    config.max_group as usize,
                    config.max_queue as usize,
                ),
                standing,
                origin,
                id,
            };
            logs.insert(each.name, log);
        }
        let max_prune = config.max_prune.into();
        let logs = Arc::new(logs);
        let app = Self { db, clock, entropy, environment, lifecycle, keys, states, max_prune, logs };
        let mut given_up = Vec::new();
        for log in app.logs() {
            app.check_key(log, &config.checkpoint_key_file).await?;
            given_up.extend(app.check_signed_state(log).await?.map(|state| (log, state)));
        }
        // An event of any goes into the default log: only once none is refused.
        for (log, state) in given_up {
            app.give_up(log, &state).await?;
        }
        Ok(app)
    }

    /// Every log, by name.
    pub(crate) fn logs(&self) -> impl Iterator<Item = &Log> {
        self.logs.values()
    }

    /// The log with this name; an empty name is `default`.
    pub(crate) fn log(&self, name: &str) -> Result<&Log> {
        let name = if name.is_empty() { DEFAULT_LOG } else { name };
        self.logs.get(name).ok_or_else(|| {
            Error::not_found("LOG_NOT_FOUND", "There is no log of this name: see the list of logs.")
        })
    }

    /// The log for a retention class; `default` for one that is not configured, since an event in the wrong log is
    /// better than one in none.
    pub(crate) fn log_for(&self, class: &str) -> Option<&Log> {
        if !class.is_empty() && !self.logs.contains_key(class) {
            tracing::warn!(
                class,
                "no log is configured for this retention class; the event goes to the default log"
            );
        }
        self.logs.get(class).or_else(|| self.logs.get(DEFAULT_LOG))
    }

    /// Runs work on the key store where blocking is allowed.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(Error::internal)?
    }
}

/// The origin of the statement that a prefix was pruned.
pub(crate) fn pruned_origin(origin: &str) -> String {
    format!("{origin}/pruned")
}
