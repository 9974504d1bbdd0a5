//! Accounts.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::PersonId;
use gatehouse_db::{Error, Row, Tx, params, sql};

use crate::domain::password_hash::PasswordHash;

sql! {
    /// The account of an address.
    pub LOOKUP_PERSON_BY_EMAIL = "SELECT person_id, email, email_verified, display_name, password_hash, platform_admin, disabled_at FROM people WHERE email = $1";
    /// An account.
    pub LOOKUP_PERSON = "SELECT person_id, email, email_verified, display_name, password_hash, platform_admin, disabled_at FROM people WHERE person_id = $1";
    /// Adds an account unless the address is taken.
    pub ADD_PERSON = "INSERT INTO people (person_id, email, email_verified, display_name, password_hash, password_changed_at, platform_admin, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $6) ON CONFLICT (email) DO NOTHING";
    /// Marks a sign-in, if the password that was checked is still the account's. Also the lock that sign-in and a
    /// change of the password queue for, so that no session begins on a password that was just replaced.
    pub MARK_SIGN_IN = "UPDATE people SET last_signed_in_at = $3 WHERE person_id = $1 AND password_hash = $2 AND disabled_at IS NULL";
    /// Takes the account's row: what counts something of a person's before it adds to it queues for this.
    pub LOCK_PERSON = "UPDATE people SET created_at = created_at WHERE person_id = $1";
    /// Replaces the password, if it is still the one that was checked.
    pub CHANGE_PASSWORD = "UPDATE people SET password_hash = $3, password_changed_at = $4 WHERE person_id = $1 AND password_hash = $2 AND disabled_at IS NULL";
    /// Stores the same password under today's cost and pepper.
    pub REHASH_PASSWORD = "UPDATE people SET password_hash = $3 WHERE person_id = $1 AND password_hash = $2";
}

/// An account.
#[derive(Clone, Debug)]
pub struct Person {
    /// Its id.
    pub id: PersonId,
    /// Normalised address.
    pub email: String,
    /// Whether it was shown to be theirs.
    pub email_verified: bool,
    /// Name for display.
    pub display_name: String,
    /// The hash, as stored: what compare-and-set statements compare with.
    pub stored_hash: String,
    /// Whether they run the installation.
    pub platform_admin: bool,
    /// Since when the account is disabled.
    pub disabled_at: Option<Timestamp>,
}

impl Person {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.get("person_id")?,
            email: row.get("email")?,
            email_verified: row.get("email_verified")?,
            display_name: row.get("display_name")?,
            stored_hash: row.get("password_hash")?,
            platform_admin: row.get("platform_admin")?,
            disabled_at: row.get("disabled_at")?,
        })
    }
}

/// The account of `email`.
pub async fn lookup_by_email(tx: &mut Tx, email: &str) -> Result<Option<Person>, Error> {
    let row = tx.fetch_optional(&LOOKUP_PERSON_BY_EMAIL, params![email]).await?;
    row.as_ref().map(Person::from_row).transpose()
}

/// The account `id`.
pub async fn lookup(tx: &mut Tx, id: PersonId) -> Result<Option<Person>, Error> {
    let row = tx.fetch_optional(&LOOKUP_PERSON, params![id]).await?;
    row.as_ref().map(Person::from_row).transpose()
}

/// Adds an account; `false` if the address is taken.
pub async fn add(
    tx: &mut Tx,
    id: PersonId,
    email: &str,
    display_name: &str,
    hash: &PasswordHash,
    platform_admin: bool,
    now: Timestamp,
) -> Result<bool, Error> {
    let params = params![id, email, false, display_name, hash.to_string(), now, platform_admin];
    Ok(tx.execute(&ADD_PERSON, params).await? == 1)
}

/// See [`MARK_SIGN_IN`]; `false` if the password was changed or the account disabled meanwhile.
pub async fn mark_sign_in(tx: &mut Tx, id: PersonId, checked: &str, now: Timestamp) -> Result<bool, Error> {
    Ok(tx.execute(&MARK_SIGN_IN, params![id, checked, now]).await? == 1)
}

/// See [`LOCK_PERSON`].
pub async fn lock(tx: &mut Tx, id: PersonId) -> Result<(), Error> {
    tx.execute(&LOCK_PERSON, params![id]).await.map(drop)
}

/// See [`CHANGE_PASSWORD`]; `false` if the password was changed or the account disabled meanwhile.
pub async fn change_password(
    tx: &mut Tx,
    id: PersonId,
    checked: &str,
    new: &PasswordHash,
    now: Timestamp,
) -> Result<bool, Error> {
    Ok(tx.execute(&CHANGE_PASSWORD, params![id, checked, new.to_string(), now]).await? == 1)
}

/// See [`REHASH_PASSWORD`].
pub async fn rehash(tx: &mut Tx, id: PersonId, checked: &str, new: &PasswordHash) -> Result<(), Error> {
    tx.execute(&REHASH_PASSWORD, params![id, checked, new.to_string()]).await?;
    Ok(())
}
