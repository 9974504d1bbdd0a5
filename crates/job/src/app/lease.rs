//! Workers' sessions and the leases that they get.

use gatehouse_core::ids::WorkerId;
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_service::Caller;
use serde_json::json;

use super::App;
use crate::domain::{EventType, Lease, WorkScope};
use crate::store::sessions::Session;
use crate::store::sweeps::Held;
use crate::store::{events, jobs, sessions, sweeps};

/// Most kinds of one worker.
const MAX_KINDS: usize = 64;
/// Longest name of a worker, in characters.
const MAX_NAME: usize = 100;

/// One stream of a worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSession {
    pub(crate) caller: Caller,
    pub(crate) kinds: Vec<(String, WorkScope)>,
    session: Session,
}

impl WorkerSession {
    pub(crate) fn id(&self) -> WorkerId {
        self.session.id
    }
}

/// A session that was opened or taken up again, and what it still holds.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) session: WorkerSession,
    pub(crate) held: Vec<Held>,
}

impl App {
    /// Opens a worker's session, or takes up the one that it names if that still lives.
    ///
    /// # Errors
    /// `KIND_NOT_FOUND`, `PERMISSION_DENIED` for a kind without a scope, `INVALID_FIELD`.
    pub(crate) async fn open_session(
        &self,
        caller: &Caller,
        kinds: &[String],
        worker_id: &str,
        name: &str,
    ) -> Result<Opened> {
        if kinds.is_empty() || kinds.len() > MAX_KINDS {
            return Err(Error::invalid_field("kinds", format!("name 1 to {MAX_KINDS} kinds")));
        }
        if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Error::invalid_field(
                "name",
                format!("it may have {MAX_NAME} characters, none of control"),
            ));
        }
        let scoped = kinds
            .iter()
            .map(|kind| {
                self.kind(kind)?;
                let held = caller.claims().permissions.iter().map(String::as_str);
                let scope = WorkScope::of(held, kind)
                    .ok_or_else(|| gatehouse_service::identity::denied(&format!("job.jobs.work:{kind}")))?;
                Ok((kind.clone(), scope))
            })
            .collect::<Result<Vec<_>>>()?;
        let known = match worker_id {
            "" => None,
            text => {
                let wrong = |_| Error::invalid_field("worker_id", "it is not one that this service gave out");
                Some(text.parse::<WorkerId>().map_err(wrong)?)
            }
        };
        let fresh = WorkerId::new(&self.0.clock, &self.0.entropy);
        let subject = caller.subject().as_text();
        let now = self.0.clock.now();
        let expires_at = now.plus(self.0.config.lease_ttl());
        let (session, held) = run_tx!(self.0.db, "job.open_session", |tx| {
            if let Some(id) = known
                && let Some(session) = sessions::resume(tx, id, &subject, name, now, expires_at).await?
            {
                return Ok((session, sweeps::list_held_by(tx, id).await?));
            }
            Ok((sessions::add(tx, fresh, &subject, name, now, expires_at).await?, Vec::new()))
        })?;
        Ok(Opened { session: WorkerSession { caller: caller.clone(), kinds: scoped, session }, held })
    }

    /// Keeps a session's leases alive; `false` if the session is over or has a newer stream.
    pub(crate) async fn heartbeat(&self, worker: &WorkerSession) -> Result<bool> {
        let (now, expires_at) = self.session_times();
        Ok(run_tx!(self.0.db, "job.heartbeat", |tx| {
            sessions::extend(tx, worker.session, now, expires_at).await
        })?)
    }

    /// Leases at most `limit` jobs to a worker; `None` if its session is over or has a newer stream.
    pub(crate) async fn claim(&self, worker: &WorkerSession, limit: u32) -> Result<Option<Vec<Lease>>> {
        let (now, expires_at) = self.session_times();
        let leases = run_tx!(self.0.db, "job.claim", |tx| {
            // Also locks the session: the sweeper can't take it for dead meanwhile.
            if !sessions::extend(tx, worker.session, now, expires_at).await? {
                return Ok(None);
            }
            let mut leases: Vec<Lease> = Vec::new();
            for (kind, scope) in &worker.kinds {
                let tenants: Vec<_> = match scope {
                    WorkScope::AnyTenant => vec![None],
                    WorkScope::Tenants(tenants) => tenants.iter().copied().map(Some).collect(),
                };
                for tenant in tenants {
                    let left = i64::from(limit) - i64::try_from(leases.len()).unwrap_or(i64::MAX);
                    if left > 0 {
                        leases.extend(jobs::claim(tx, tenant, kind, worker.id(), now, left).await?);
                    }
                }
            }
            for lease in &leases {
                let data = json!({"attempt": lease.attempt}).to_string();
                let event = (lease.started_sequence, EventType::Started, lease.attempt);
                events::add(tx, (lease.tenant, lease.job), event, now, data).await?;
                let audit = self
                    .0
                    .outbox
                    .event("job.jobs.start")
                    .by(&worker.caller)
                    .tenant(lease.tenant)
                    .target("job", lease.job.as_uuid())
                    .payload(json!({"attempt": lease.attempt, "epoch": lease.epoch}));
                self.0.outbox.emit(tx, &audit).await?;
            }
            Ok(Some(leases))
        })?;
        for lease in leases.iter().flatten() {
            self.ring_events(lease.tenant, lease.job);
        }
        Ok(leases)
    }

    /// What a worker holds, as the database has it.
    pub(crate) async fn held(&self, worker: &WorkerSession) -> Result<Vec<Held>> {
        Ok(read_tx!(self.0.db, "job.held", |tx| { sweeps::list_held_by(tx, worker.id()).await })?)
    }

    /// Ends the session of a worker that left and holds nothing.
    pub(crate) async fn close_session(&self, worker: &WorkerSession) -> Result<()> {
        run_tx!(self.0.db, "job.close_session", |tx| {
            if sweeps::list_held_by(tx, worker.id()).await?.is_empty() {
                sessions::delete(tx, worker.session).await?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn session_times(&self) -> (Timestamp, Timestamp) {
        let now = self.0.clock.now();
        (now, now.plus(self.0.config.lease_ttl()))
    }
}
