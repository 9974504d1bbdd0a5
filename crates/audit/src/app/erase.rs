//! Erasing a person: their key is shredded, their id replaced by the pseudonym. The chain still verifies.
//!
//! Their events may arrive all the while, here and at other replicas. A mark beside the key, which comes first, decides:
//! whoever appends looks for it under the lock of the log's head, and whoever erases waits for each of these locks
//! once before replacing what is there. So an event that still names the person is there to be replaced, or sees the mark.

use gatehouse_core::ids::{EventId, PersonId};
use gatehouse_core::{Error, Result};
use gatehouse_db::{read_tx, run_tx};

use super::App;
use super::append::{Actor, Incoming};
use crate::domain::names::{Action, ClientName, LogId, Outcome, Service, Target, TargetKind};
use crate::keys::Owner;
use crate::store::{heads, plain};

impl App {
    /// Erases `person`, for `actor`. Idempotent; goes on though the caller went away.
    pub(crate) async fn erase_subject(&self, person: PersonId, actor: Actor) -> Result<()> {
        let this = self.clone();
        self.lifecycle.spawn(async move { this.erase(person, actor).await }).await.map_err(Error::internal)?
    }

    async fn erase(&self, person: PersonId, actor: Actor) -> Result<()> {
        let owner = Owner::Person(person);
        // The key goes last: as long as it is there, a second try finds the same pseudonym.
        let key = self
            .blocking(move |app| {
                app.keys.begin_erasure(owner)?;
                app.keys.lookup(owner)
            })
            .await?;
        let pseudonym = match &key {
            Some(key) => key.pseudonym(person.as_uuid()).to_string(),
            None => "erased".to_owned(),
        };
        self.wait_for_appends().await?;
        run_tx!(self.db, "audit.erase", |tx| { plain::erase(tx, person, &pseudonym).await })?;
        let event = self.own_event("audit.subjects.erase", actor)?;
        let target = key.map(|key| Target::Person(key.pseudonym(person.as_uuid())));
        self.append(vec![Incoming { target: target.map(super::append::Target::Other), ..event }]).await?;
        self.blocking(move |app| app.keys.shred(owner)).await.map(drop)
    }

    /// Returns once every transaction has ended that was appending to any log.
    async fn wait_for_appends(&self) -> Result<()> {
        let names = read_tx!(self.db, "audit.erase_logs", |tx| { heads::names(tx).await })?;
        for log in names.iter().filter_map(|name| LogId::new(name.as_str()).ok()) {
            run_tx!(self.db, "audit.erase_wait", |tx| { heads::lock(tx, &log).await.map(drop) })?;
        }
        Ok(())
    }

    /// An event that this service itself emits: straight into the log, since the log is here.
    pub(crate) fn own_event(&self, action: &str, actor: Actor) -> Result<Incoming> {
        Ok(Incoming {
            event_id: EventId::new(&self.clock, &self.entropy),
            occurred: self.clock.now(),
            service: Service::new("audit").map_err(Error::internal)?,
            action: Action::new(action).map_err(Error::internal)?,
            outcome: Outcome::Success,
            reason: None,
            tenant: None,
            actor,
            delegate: None,
            subject: None,
            target: None,
            request_id: gatehouse_client::context::request_id(),
            trace_id: None,
            retention_class: super::DEFAULT_LOG.to_owned(),
            payload: String::new(),
            actor_payload: String::new(),
        })
    }

    /// What acts upon a log has the log as its target.
    pub(crate) fn log_target(name: &str) -> Result<super::append::Target> {
        let kind = TargetKind::new("log").map_err(Error::internal)?;
        let name = ClientName::new(name).map_err(Error::internal)?;
        Ok(super::append::Target::Other(Target::Named(kind, name)))
    }
}
