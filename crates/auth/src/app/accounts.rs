//! Accounts of people: registration, sign-in, password, who am I.

use std::time::Duration;

use gatehouse_core::ids::{PersonId, SessionId, TenantId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_service::{Caller, Subject};
use serde_json::json;

use super::sessions::in_tenant;
use super::tenants::found;
use super::{App, Origin, SessionFacts, Tokens, permissions_of, roles_of};
use crate::domain::email::Email;
use crate::domain::password;
use crate::domain::password_hash::PasswordHash;
use crate::domain::refresh::RefreshToken;
use crate::domain::roles::Role;
use crate::domain::text;
use crate::store::people::Person;
use crate::store::revocations::{self, Revoked};
use crate::store::sessions::{self, EndReason, NewSession};
use crate::store::{memberships, people, tenants};

/// An account to make.
#[derive(Debug)]
pub struct Registration {
    /// Address.
    pub email: String,
    /// Password.
    pub password: Secret<String>,
    /// Name for display; empty takes the part of the address before the `@`.
    pub display_name: String,
    /// A tenant to make with it; empty for none.
    pub tenant_name: String,
    /// Where from.
    pub origin: Origin,
}

/// Who a caller is.
#[derive(Debug)]
pub struct Whoami {
    /// Whom the token speaks for.
    pub subject: Subject,
    /// In which tenant.
    pub tenant: Option<TenantId>,
    /// With which roles.
    pub roles: Vec<String>,
    /// With which permissions, at every service.
    pub permissions: Vec<String>,
    /// A person's account.
    pub person: Option<Person>,
}

/// One answer, whatever was wrong.
fn invalid_credentials() -> Error {
    Error::unauthenticated("INVALID_CREDENTIALS", "The e-mail address or the password is wrong.")
}

fn rejected(field: &str, weak: password::WeakPassword) -> Error {
    Error::invalid_argument("PASSWORD_REJECTED", format!("{field}: {weak}."))
        .with_violation(field, weak.to_string())
}

fn email(text: &str) -> Result<Email> {
    Email::parse(text).map_err(|error| Error::invalid_field("email", error.to_string()))
}

/// Longer than any password that is taken: no account has it, and hashing it would only cost.
fn check_length(password: &Secret<String>) -> Result<()> {
    if password.expose().chars().count() > password::MAX_CHARS { Err(invalid_credentials()) } else { Ok(()) }
}

impl App {
    /// Makes an account, and a tenant with it where one is named. An address that is taken gives the same answer at
    /// the same cost, with ids that lead nowhere: who has an account here is nobody's business. Only who also knows the
    /// account's password is told, unless it is disabled. The audit trail has every such attempt, about the account's
    /// person: it tries a password as sign-in does.
    ///
    /// # Errors
    /// `REGISTRATION_CLOSED`, `INVALID_FIELD`, `PASSWORD_REJECTED`, `EMAIL_TAKEN`, `HASHING_BUSY`.
    pub async fn register(&self, new: Registration) -> Result<(PersonId, Option<TenantId>)> {
        if !self.0.config.registration_open {
            return Err(Error::permission_denied(
                "REGISTRATION_CLOSED",
                "New accounts are made by an administrator here.",
            ));
        }
        let email = email(&new.email)?;
        let display_name = match new.display_name.trim() {
            "" => email.local_part().to_owned(),
            name => text::name("display_name", name)?,
        };
        let tenant_name = match new.tenant_name.trim() {
            "" => None,
            name => Some(text::name("tenant_name", name)?),
        };
        password::check(new.password.expose(), &email).map_err(|weak| rejected("password", weak))?;
        let taken = read_tx!(self.0.db, "auth.register.lookup", |tx| {
            people::lookup_by_email(tx, email.as_str()).await
        })?;
        // One hash either way. A disabled account's password opens nothing, not even this answer.
        let (hash, known) = match &taken {
            None => (Some(self.0.hasher.hash(new.password.clone()).await?), false),
            Some(person) => (None, self.opens(person, new.password.clone()).await?),
        };
        let person = PersonId::new(&self.0.clock, &self.0.entropy);
        let tenant = tenant_name.map(|name| (TenantId::new(&self.0.clock, &self.0.entropy), name));
        let now = self.now();
        let payload = new.origin.with("email", email.as_str());
        let event = self.0.outbox.event("auth.people.register").payload(payload);
        let denied = event.clone().denied("EMAIL_TAKEN");
        let event = event.by_person(person).about(person).target("person", person.as_uuid());
        let founded = self.0.outbox.event("auth.tenants.create").by_person(person);
        let overtaken_by = run_tx!(self.0.db, "auth.register", |tx| {
            let added = match &hash {
                Some(hash) => {
                    people::add(tx, person, email.as_str(), &display_name, hash, false, now).await?
                }
                None => false,
            };
            if !added {
                // Whose address it is, also where they took it a moment ago.
                let holder = people::lookup_by_email(tx, email.as_str()).await?;
                let denied = match &holder {
                    Some(holder) => denied.clone().about(holder.id),
                    None => denied.clone(),
                };
                self.0.outbox.emit(tx, &denied).await?;
                return Ok(holder.filter(|_| hash.is_some()));
            }
            if let Some((id, name)) = &tenant {
                found(tx, *id, name, person, now).await?;
                self.0.outbox.emit(tx, &founded.clone().tenant(*id).target("tenant", id.as_uuid())).await?;
            }
            self.0.outbox.emit(tx, &event).await?;
            Ok(None)
        })?;
        // Twice at once (a double click, say): whoever comes second is told as if they had come later.
        let known = match &overtaken_by {
            Some(holder) => self.opens(holder, new.password).await?,
            None => known,
        };
        if known {
            return Err(Error::already_exists("EMAIL_TAKEN", "You have an account already. Sign in."));
        }
        Ok((person, tenant.map(|(id, _)| id)))
    }

    /// Whether `password` opens the account of `person`.
    async fn opens(&self, person: &Person, password: Secret<String>) -> Result<bool> {
        let right = self.0.hasher.verify(password, Some(person.stored_hash.clone())).await?;
        Ok(right && person.disabled_at.is_none())
    }

    /// Signs a person in by password and starts a session, which ends those unused for longest beyond the most that a person
    /// has. Unknown, wrong and disabled are one answer at one cost.
    ///
    /// # Errors
    /// `INVALID_CREDENTIALS`, `TENANT_REQUIRED`, `HASHING_BUSY`.
    pub async fn sign_in(
        &self,
        address: &str,
        password: Secret<String>,
        tenant: Option<TenantId>,
        origin: &Origin,
    ) -> Result<Tokens> {
        let email = email(address)?;
        check_length(&password)?;
        let person = read_tx!(self.0.db, "auth.sign_in.lookup", |tx| {
            people::lookup_by_email(tx, email.as_str()).await
        })?;
        let stored = person.as_ref().map(|person| person.stored_hash.clone());
        let right = self.0.hasher.verify(password.clone(), stored).await?;
        let person = match person {
            Some(person) if right && person.disabled_at.is_none() => person,
            other => {
                let event = self.0.outbox.event("auth.sessions.create").denied("INVALID_CREDENTIALS");
                let event = event.payload(origin.with("email", email.as_str()));
                let event = match &other {
                    Some(person) => event.about(person.id),
                    None => event,
                };
                run_tx!(self.0.db, "auth.sign_in.denied", |tx| { self.0.outbox.emit(tx, &event).await })?;
                return Err(invalid_credentials());
            }
        };
        let rehashed = if self.0.hasher.is_outdated(&person.stored_hash) {
            // A better hash can wait for the next time.
            self.0.hasher.hash(password).await.ok()
        } else {
            None
        };
        self.start_session(&person, tenant, rehashed.as_ref(), origin).await
    }

    async fn start_session(
        &self,
        person: &Person,
        wanted: Option<TenantId>,
        rehashed: Option<&PasswordHash>,
        origin: &Origin,
    ) -> Result<Tokens> {
        let session = SessionId::new(&self.0.clock, &self.0.entropy);
        let now = self.now();
        let ends_at = now.plus(Duration::from_secs(self.0.config.session_lifetime_s));
        let ring = self.0.keys.ring();
        let first = RefreshToken::first(session, ring.current(now), &self.0.entropy);
        let lost = || Error::internal("the current key is not in its ring");
        let (digest, text) = first.digest(&ring).zip(first.to_text(&ring)).ok_or_else(lost)?;
        let agent: String = origin.user_agent.chars().take(256).collect();
        let event = self.0.outbox.event("auth.sessions.create").by_person(person.id).about(person.id);
        let event = event.target("session", session.as_uuid()).payload(origin.as_json());
        let denied = self.0.outbox.event("auth.sessions.create").by_person(person.id).about(person.id);
        let denied = denied.payload(origin.as_json());
        let started = run_tx!(self.0.db, "auth.sign_in", |tx| {
            let tenant = match choose_tenant(tx, person.id, wanted).await? {
                Ok(tenant) => tenant,
                // The password was right: whoever tries stolen ones is to be seen.
                Err(refused) => {
                    self.0.outbox.emit(tx, &denied.clone().denied(refused.reason())).await?;
                    return Ok(Err(refused));
                }
            };
            if !people::mark_sign_in(tx, person.id, &person.stored_hash, now).await? {
                return Err(invalid_credentials().into());
            }
            if let Some(hash) = rehashed {
                people::rehash(tx, person.id, &person.stored_hash, hash).await?;
            }
            let new = NewSession {
                id: session,
                person: person.id,
                tenant: tenant.map(|(id, _)| id),
                user_agent: &agent,
                now,
                ends_at,
                digest: &digest,
            };
            sessions::add(tx, &new).await?;
            let most = self.0.config.max_sessions_per_person;
            let surplus = sessions::end_surplus(tx, person.id, session, most, now).await?;
            let not_before =
                revocations::latest_not_before(tx, &revocable(session, person.id, new.tenant)).await?;
            let mut event = in_tenant(event.clone(), new.tenant);
            if !surplus.is_empty() {
                let mut payload = origin.as_json();
                payload["sessions_ended"] = surplus.len().into();
                event = event.payload(payload);
            }
            self.0.outbox.emit(tx, &event).await?;
            self.revoke_sessions(tx, &surplus, now).await?;
            Ok(Ok((tenant, not_before, surplus.len())))
        })?;
        let (tenant, not_before, ended) = started?;
        if ended > 0 {
            self.revoked();
        }
        let facts = SessionFacts {
            person,
            session,
            tenant,
            authenticated_at: now,
            session_ends_at: ends_at,
            not_before,
            now,
        };
        let (access, access_expires_at) = self.session_token(&facts)?;
        Ok(Tokens {
            access,
            access_expires_at,
            refresh: text,
            session_expires_at: ends_at,
            session,
            person: person.id,
            tenant: tenant.map(|(id, _)| id),
        })
    }

    /// Changes the caller's password and ends every other session of theirs. Whoever stole the password can make this no
    /// slower: sessions are bounded, and ended together. Run it to its end though the caller went away.
    ///
    /// # Errors
    /// `INVALID_CREDENTIALS`, `PASSWORD_REJECTED`, `PERSON_REQUIRED`, `HASHING_BUSY`.
    pub async fn change_password(
        &self,
        caller: &Caller,
        current: Secret<String>,
        new: Secret<String>,
    ) -> Result<()> {
        let id = caller.person()?;
        check_length(&current)?;
        let person =
            read_tx!(self.0.db, "auth.change_password.lookup", |tx| { people::lookup(tx, id).await })?
                .ok_or_else(invalid_credentials)?;
        let address = Email::parse(&person.email).map_err(Error::internal)?;
        password::check(new.expose(), &address).map_err(|weak| rejected("new_password", weak))?;
        let unchanged = current.expose() == new.expose();
        let right = self.0.hasher.verify(current, Some(person.stored_hash.clone())).await?;
        let event =
            self.0.outbox.event("auth.passwords.change").by(caller).about(id).target("person", id.as_uuid());
        if !right {
            let event = event.denied("INVALID_CREDENTIALS");
            run_tx!(self.0.db, "auth.change_password.denied", |tx| { self.0.outbox.emit(tx, &event).await })?;
            return Err(invalid_credentials());
        }
        // Only now: before, it would say whether the password is right at no cost.
        if unchanged {
            return Err(rejected("new_password", password::WeakPassword::Unchanged));
        }
        let hash = self.0.hasher.hash(new).await?;
        // Without a session of its own the call keeps none.
        let keep = caller.claims().sid.unwrap_or(SessionId::from_uuid(uuid::Uuid::nil()));
        let now = self.now();
        run_tx!(self.0.db, "auth.change_password", |tx| {
            if !people::change_password(tx, id, &person.stored_hash, &hash, now).await? {
                return Err(invalid_credentials().into());
            }
            let ended = sessions::end_others(tx, id, keep, EndReason::PasswordChanged, now).await?;
            self.0.outbox.emit(tx, &event.clone().payload(json!({ "sessions_ended": ended.len() }))).await?;
            self.revoke_sessions(tx, &ended, now).await
        })?;
        self.revoked();
        Ok(())
    }

    /// Ends the tokens of sessions that were just ended; last in a transaction.
    async fn revoke_sessions(
        &self,
        tx: &mut Tx,
        ended: &[SessionId],
        now: Timestamp,
    ) -> gatehouse_db::Result<()> {
        let revoked: Vec<_> = ended.iter().map(|session| Revoked::Session(*session)).collect();
        revocations::add_all(tx, &revoked, now, self.0.config.longest_token()).await
    }

    /// Who the caller is.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn who_am_i(&self, caller: &Caller) -> Result<Whoami> {
        let tenant = caller.claims().tid;
        let mut who = Whoami {
            subject: caller.subject().clone(),
            tenant,
            roles: Vec::new(),
            permissions: caller.claims().permissions.clone(),
            person: None,
        };
        match caller.subject() {
            Subject::Person(id) => {
                let (person, role) = read_tx!(self.0.db, "auth.who_am_i", |tx| {
                    let role = match tenant {
                        Some(tenant) => memberships::lookup_role(tx, tenant, *id).await?,
                        None => None,
                    };
                    Ok((people::lookup(tx, *id).await?, role))
                })?;
                let person = person.ok_or_else(invalid_credentials)?;
                let roles = roles_of(&person, tenant.zip(role));
                who.permissions = permissions_of(&roles);
                who.roles = roles.iter().map(ToString::to_string).collect();
                who.person = Some(person);
            }
            Subject::ApiKey(id) => {
                let key = read_tx!(self.0.db, "auth.who_am_i", |tx| {
                    crate::store::api_keys::lookup_credential(tx, *id).await
                })?;
                who.permissions = key.map(|key| key.permissions).unwrap_or_default();
            }
            Subject::Client(name) => {
                who.permissions =
                    self.0.clients.lookup(name).map(|client| client.permissions.clone()).unwrap_or_default();
            }
        }
        Ok(who)
    }
}

/// What may revoke a session's tokens.
pub(crate) fn revocable(session: SessionId, person: PersonId, tenant: Option<TenantId>) -> Vec<Revoked> {
    let mut revocable = vec![Revoked::Session(session), Revoked::Person(person)];
    if let Some(tenant) = tenant {
        revocable.extend([Revoked::Membership(person, tenant), Revoked::Tenant(tenant)]);
    }
    revocable
}

/// The tenant to act in: the one wanted, or the only one there is.
async fn choose_tenant(
    tx: &mut Tx,
    person: PersonId,
    wanted: Option<TenantId>,
) -> gatehouse_db::Result<Result<Option<(TenantId, Role)>>> {
    let memberships = tenants::list_of_person(tx, person).await?;
    let chosen = match (wanted, memberships.as_slice()) {
        (Some(wanted), all) => all.iter().find(|(tenant, _)| tenant.id == wanted),
        (None, []) => return Ok(Ok(None)),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    if let Some((tenant, role)) = chosen {
        return Ok(Ok(Some((tenant.id, *role))));
    }
    // The password was right: these are the person's own.
    let list: Vec<_> =
        memberships.iter().map(|(tenant, _)| format!("{} ({})", tenant.id, tenant.name)).collect();
    let choice = if list.is_empty() {
        "leave it empty: you are in no tenant".into()
    } else {
        format!("one of {}", list.join(", "))
    };
    let error = Error::failed_precondition("TENANT_REQUIRED", "Say which of your tenants to sign in to.");
    Ok(Err(error.with_violation("tenant_id", choice)))
}
