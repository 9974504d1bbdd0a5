//! The first tenant and its first admin, on empty tables.

use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_core::{Clock, Entropy, Error, Result, Secret};
use gatehouse_db::{Db, read_tx, run_tx};
use gatehouse_outbox::Outbox;

use super::tenants::found;
use super::{App, Parts};
use crate::domain::email::Email;
use crate::domain::text;
use crate::hashing::Hasher;
use crate::store::{bootstrap, people};

/// The first admin, whose password is shown once and stored nowhere.
#[derive(Debug)]
pub struct FirstAdmin {
    /// The tenant that was made.
    pub tenant: TenantId,
    /// Its owner, who is also the platform's admin.
    pub person: PersonId,
    /// Their address.
    pub email: String,
    /// Their password, random.
    pub password: Secret<String>,
}

impl App {
    /// As [`first_admin`], on this service's own database.
    ///
    /// # Errors
    /// As [`first_admin`].
    pub async fn bootstrap<E: From<Error>>(
        &self,
        address: &str,
        tenant_name: &str,
        keep: impl FnOnce(&FirstAdmin) -> Result<(), E>,
    ) -> Result<Option<FirstAdmin>, E> {
        let Parts { db, hasher, outbox, clock, entropy, .. } = &*self.0;
        first_admin(&Deps { db, hasher, outbox, clock, entropy }, address, tenant_name, keep).await
    }
}

/// What [`first_admin`] works with: no more than a command beside the running service has.
#[derive(Clone, Copy, Debug)]
pub struct Deps<'a> {
    /// Auth's database, migrated.
    pub db: &'a Db,
    /// Hashes as the service does, with the key ring's pepper.
    pub hasher: &'a Hasher,
    /// Of that database; the running service relays what stands in it.
    pub outbox: &'a Outbox,
    /// Time.
    pub clock: &'a Clock,
    /// Chance.
    pub entropy: &'a Entropy,
}

/// Makes a tenant and its owner, who is also the platform's admin, unless that was done before on this database: then
/// `None`. Any number of processes may ask at once.
///
/// `keep` shows the password or writes it down, and is called before anything is stored: whatever happens then, there is
/// no admin whose password nobody knows. What it kept is void if this ends with an error or with `None`.
///
/// # Errors
/// What `keep` says; `INVALID_FIELD` if the address or the name is none, `EMAIL_TAKEN` if someone registered the address
/// before.
pub async fn first_admin<E: From<Error>>(
    deps: &Deps<'_>,
    address: &str,
    tenant_name: &str,
    keep: impl FnOnce(&FirstAdmin) -> Result<(), E>,
) -> Result<Option<FirstAdmin>, E> {
    let email = Email::parse(address).map_err(|error| Error::invalid_field("email", error.to_string()))?;
    let name = text::name("tenant_name", tenant_name)?;
    // At every start but the first: no hash, and no memory for one.
    if read_tx!(deps.db, "auth.bootstrap.lookup", |tx| { bootstrap::is_claimed(tx).await })
        .map_err(Error::from)?
    {
        return Ok(None);
    }
    // 120 random bits in letters that nobody mistakes for one another.
    let password = Secret::new(
        deps.entropy
            .bytes::<24>()
            .chunks(6)
            .map(|group| {
                group
                    .iter()
                    .map(|byte| char::from(b"abcdefghjkmnpqrstuvwxyz23456789x"[usize::from(byte % 32)]))
                    .collect::<String>()
            })
            .collect::<Vec<_>>()
            .join("-"),
    );
    let hash = deps.hasher.hash(password.clone()).await?;
    let (person, tenant) = (PersonId::new(deps.clock, deps.entropy), TenantId::new(deps.clock, deps.entropy));
    let admin = FirstAdmin { tenant, person, email: email.as_str().to_owned(), password };
    keep(&admin)?;
    let now = deps.clock.now();
    let event = deps.outbox.event("auth.tenants.bootstrap").by_system("auth").about(person).tenant(tenant);
    let event = event.target("tenant", tenant.as_uuid());
    let made = run_tx!(deps.db, "auth.bootstrap", |tx| {
        if !bootstrap::claim(tx, now).await? {
            return Ok(false);
        }
        if !people::add(tx, person, email.as_str(), email.local_part(), &hash, true, now).await? {
            let message = "The first admin's address has an account already. Choose another address.";
            return Err(Error::already_exists("EMAIL_TAKEN", message).into());
        }
        found(tx, tenant, &name, person, now).await?;
        deps.outbox.emit(tx, &event).await?;
        Ok(true)
    })
    .map_err(Error::from)?;
    Ok(made.then_some(admin))
}
