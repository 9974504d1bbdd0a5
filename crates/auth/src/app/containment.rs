//! Ending everything of someone at once: what runbooks call for.

use gatehouse_core::Result;
use gatehouse_db::run_tx;

use super::App;
use crate::store::revocations::{self, Revoked};
use crate::store::sessions::{self, EndReason};

impl App {
    /// Ends every token of `what` that was issued so far, on every replica and service within a second; of a person,
    /// their sessions too. For operators: the caller is trusted. What a client or tenant gets afterwards holds again.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn contain(&self, what: &Revoked) -> Result<()> {
        let now = self.now();
        let event = self.0.outbox.event("auth.revocations.add").by_system("admin");
        let event = match what {
            Revoked::Session(id) => event.target("session", id.as_uuid()),
            Revoked::Credential(id) => event.target("api_key", id.as_uuid()),
            Revoked::Person(id) => event.about(*id).target("person", id.as_uuid()),
            Revoked::Membership(person, tenant) => {
                event.about(*person).tenant(*tenant).target("person", person.as_uuid())
            }
            Revoked::Client(name) => event.target_named("client", name),
            Revoked::Tenant(id) => event.tenant(*id).target("tenant", id.as_uuid()),
        };
        run_tx!(self.0.db, "auth.contain", |tx| {
            match what {
                Revoked::Person(id) => {
                    sessions::end_all(tx, *id, EndReason::Revoked, now).await?;
                }
                Revoked::Session(id) => {
                    sessions::end(tx, *id, EndReason::Revoked, now).await?;
                }
                _ => {}
            }
            self.0.outbox.emit(tx, &event).await?;
            revocations::add(tx, what, now, self.0.config.longest_token()).await
        })?;
        self.revoked();
        Ok(())
    }
}
