//! Sessions: refresh, sign-out, list, revoke.

use gatehouse_core::ids::{PersonId, SessionId, TenantId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_outbox::AuditEvent;
use gatehouse_service::Caller;
use serde_json::Value;

use super::accounts::revocable;
use super::{App, Origin, SessionFacts, Tokens};
use crate::domain::keys::KeyRing;
use crate::domain::refresh::{RefreshToken, Verdict};
use crate::domain::roles::Role;
use crate::store::people::Person;
use crate::store::revocations::{self, Revoked};
use crate::store::sessions::{self, EndReason, Session};
use crate::store::{memberships, people};

/// What a refresh came to. Refusals are values, not errors: the transaction that ends a family must commit.
enum Refreshed {
    Done(Box<Done>),
    Refused(Refusal),
}

struct Done {
    successor: RefreshToken,
    session: Session,
    person: Person,
    tenant: Option<(TenantId, Role)>,
    not_before: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Invalid,
    Reused,
    Ended,
}

impl Refusal {
    fn error(self) -> Error {
        match self {
            Self::Invalid => Error::unauthenticated(
                "REFRESH_TOKEN_INVALID",
                "The refresh token was not accepted. Sign in again.",
            ),
            Self::Reused => Error::unauthenticated(
                "REFRESH_TOKEN_REUSED",
                "This refresh token was used before, so its session was ended. Sign in again.",
            ),
            Self::Ended => Error::unauthenticated("SESSION_EXPIRED", "The session is over. Sign in again."),
        }
    }
}

/// The events that a refresh may have to tell of, made before the transaction's block, which may run again.
struct Events {
    refreshed: AuditEvent,
    /// Still without its payload.
    reused: AuditEvent,
    origin: Value,
}

impl Events {
    /// Tells, beside from where, which token came and which one the session was at: how far behind whoever presented it was.
    fn reused(&self, token: &RefreshToken, session: &Session) -> AuditEvent {
        let mut payload = self.origin.clone();
        payload["presented_generation"] = token.generation().into();
        payload["session_generation"] = session.family.generation.into();
        self.reused.clone().about(session.person).payload(payload)
    }
}

impl App {
    /// Exchanges a refresh token for its successor: the same one for everyone who presents it until that has been used,
    /// for as long as the retry window; after either, the session ends.
    ///
    /// # Errors
    /// `REFRESH_TOKEN_INVALID`, `REFRESH_TOKEN_REUSED`, `SESSION_EXPIRED`, `REFRESH_RACE`.
    pub async fn refresh(&self, text: &Secret<String>, origin: &Origin) -> Result<Tokens> {
        let ring = self.0.keys.ring();
        // Not made by us: refused before the database is asked.
        let token = RefreshToken::parse(text.expose(), &ring).ok_or_else(|| Refusal::Invalid.error())?;
        let now = self.now();
        let event =
            || self.0.outbox.event("auth.sessions.refresh").target("session", token.family().as_uuid());
        let events = Events {
            refreshed: event().payload(origin.as_json()),
            reused: event().denied("REFRESH_TOKEN_REUSED"),
            origin: origin.as_json(),
        };
        let outcome = run_tx!(self.0.db, "auth.refresh", |tx| {
            self.refresh_in(tx, &token, &ring, now, &events).await
        })?;
        let done = match outcome {
            Refreshed::Done(done) => done,
            Refreshed::Refused(refusal) => {
                if refusal == Refusal::Reused {
                    self.revoked();
                }
                return Err(refusal.error());
            }
        };
        let facts = SessionFacts {
            person: &done.person,
            session: token.family(),
            tenant: done.tenant,
            authenticated_at: done.session.authenticated_at,
            session_ends_at: done.session.family.ends_at,
            not_before: done.not_before,
            now,
        };
        let (access, access_expires_at) = self.session_token(&facts)?;
        let refresh = done.successor.to_text(&ring).ok_or_else(|| Refusal::Invalid.error())?;
        Ok(Tokens {
            access,
            access_expires_at,
            refresh,
            session_expires_at: done.session.family.ends_at,
            session: token.family(),
            person: done.person.id,
            tenant: done.session.tenant,
        })
    }

    async fn refresh_in(
        &self,
        tx: &mut Tx,
        token: &RefreshToken,
        ring: &KeyRing,
        now: Timestamp,
        events: &Events,
    ) -> gatehouse_db::Result<Refreshed> {
        let refused = |refusal| Ok(Refreshed::Refused(refusal));
        // Twice is enough: whoever loses the compare-and-set finds the token consumed when it looks again.
        for _ in 0..3 {
            let Some(session) = sessions::lookup(tx, token.family()).await? else {
                return refused(Refusal::Invalid);
            };
            let Some((person, tenant)) = standing(tx, &session).await? else {
                return refused(Refusal::Ended);
            };
            let successor = match session.family.judge(token, ring, now, self.retry_window()) {
                Verdict::Unknown => return refused(Refusal::Invalid),
                Verdict::Ended => return refused(Refusal::Ended),
                Verdict::Replayed => {
                    self.end_for_reuse(tx, &session, now, events.reused(token, &session)).await?;
                    return refused(Refusal::Reused);
                }
                Verdict::Again { salt, kid } => match ring.lookup(&kid) {
                    Some(key) => token.successor(ring, key, &salt),
                    None => return refused(Refusal::Invalid),
                },
                Verdict::Alive => {
                    let salt = self.0.entropy.bytes();
                    let next = token.successor(ring, ring.current(now), &salt);
                    let Some(digest) = next.digest(ring) else { return refused(Refusal::Invalid) };
                    if !sessions::consume(tx, &session.family, &digest, &salt, now).await? {
                        continue;
                    }
                    let event = events.refreshed.clone().by_person(person.id).about(person.id);
                    self.0.outbox.emit(tx, &in_tenant(event, session.tenant)).await?;
                    next
                }
            };
            let subjects = revocable(token.family(), person.id, session.tenant);
            let not_before = revocations::latest_not_before(tx, &subjects).await?;
            return Ok(Refreshed::Done(Box::new(Done { successor, session, person, tenant, not_before })));
        }
        Err(Error::aborted(
            "REFRESH_RACE",
            "Another request refreshed this session at the same moment. Try again.",
        )
        .into())
    }

    async fn end_for_reuse(
        &self,
        tx: &mut Tx,
        session: &Session,
        now: Timestamp,
        event: AuditEvent,
    ) -> gatehouse_db::Result<()> {
        if sessions::end(tx, session.family.id, EndReason::RefreshReused, now).await?.is_some() {
            // Nobody knows who presented it: the thief, or the person after the thief.
            self.0.outbox.emit(tx, &in_tenant(event, session.tenant)).await?;
            let revoked = Revoked::Session(session.family.id);
            revocations::add(tx, &revoked, now, self.0.config.longest_token()).await?;
        }
        Ok(())
    }

    /// Ends the caller's session. Idempotent; without a session there is nothing to end.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn sign_out(&self, caller: &Caller) -> Result<()> {
        let (Ok(person), Some(session)) = (caller.person(), caller.claims().sid) else { return Ok(()) };
        self.end_own_session(caller, person, session, EndReason::SignedOut, "auth.sessions.sign_out").await?;
        Ok(())
    }

    /// Ends one of the caller's own sessions. Idempotent.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`, `PERSON_REQUIRED`.
    pub async fn revoke_session(&self, caller: &Caller, session: SessionId) -> Result<()> {
        let person = caller.person()?;
        if self.end_own_session(caller, person, session, EndReason::Revoked, "auth.sessions.revoke").await? {
            return Ok(());
        }
        let found = read_tx!(self.0.db, "auth.session.look", |tx| { sessions::lookup(tx, session).await })?;
        match found.filter(|found| found.person == person) {
            Some(_) => Ok(()),
            None => Err(Error::not_found("SESSION_NOT_FOUND", "You have no such session.")),
        }
    }

    async fn end_own_session(
        &self,
        caller: &Caller,
        person: PersonId,
        session: SessionId,
        reason: EndReason,
        action: &str,
    ) -> Result<bool> {
        let event = self.0.outbox.event(action).by(caller).about(person).target("session", session.as_uuid());
        let now = self.now();
        let ended = run_tx!(self.0.db, "auth.session.end", |tx| {
            if !sessions::end_own(tx, session, person, reason, now).await? {
                return Ok(false);
            }
            self.0.outbox.emit(tx, &event).await?;
            revocations::add(tx, &Revoked::Session(session), now, self.0.config.longest_token()).await?;
            Ok(true)
        })?;
        self.revoked();
        Ok(ended)
    }

    /// Ends a session on the word of whoever holds one of its tokens.
    pub(crate) async fn end_held_session(&self, session: SessionId) -> Result<()> {
        let event = self.0.outbox.event("auth.sessions.revoke").target("session", session.as_uuid());
        let now = self.now();
        run_tx!(self.0.db, "auth.session.end_held", |tx| {
            if let Some((person, tenant)) = sessions::end(tx, session, EndReason::Revoked, now).await? {
                self.0
                    .outbox
                    .emit(tx, &in_tenant(event.clone().by_person(person).about(person), tenant))
                    .await?;
                revocations::add(tx, &Revoked::Session(session), now, self.0.config.longest_token()).await?;
            }
            Ok(())
        })?;
        self.revoked();
        Ok(())
    }

    /// The caller's live sessions, newest first.
    ///
    /// # Errors
    /// `PERSON_REQUIRED`.
    pub async fn list_sessions(&self, caller: &Caller) -> Result<Vec<Session>> {
        let (person, now) = (caller.person()?, self.now());
        Ok(read_tx!(self.0.db, "auth.session.list", |tx| { sessions::list(tx, person, now).await })?)
    }
}

/// Whose session it is and where they act in it, if they still may.
pub(crate) async fn standing(
    tx: &mut Tx,
    session: &Session,
) -> gatehouse_db::Result<Option<(Person, Option<(TenantId, Role)>)>> {
    let person = people::lookup(tx, session.person).await?;
    let Some(person) = person.filter(|person| person.disabled_at.is_none()) else { return Ok(None) };
    let Some(tenant) = session.tenant else { return Ok(Some((person, None))) };
    let role = memberships::lookup_role(tx, tenant, person.id).await?;
    Ok(role.map(|role| (person, Some((tenant, role)))))
}

pub(crate) fn in_tenant(event: AuditEvent, tenant: Option<TenantId>) -> AuditEvent {
    match tenant {
        Some(tenant) => event.tenant(tenant),
        None => event,
    }
}
