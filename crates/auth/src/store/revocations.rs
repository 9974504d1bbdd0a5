//! The revocation table: sequenced in commit order, the truth for every verifier.

use std::time::Duration;

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{CredentialId, PersonId, SessionId, TenantId};
use gatehouse_db::{Error, Row, Tx, insert, params, sql};

sql! {
    /// Takes the next numbers, so many, and says the last; its row stays taken until the transaction ends, so numbers
    /// commit in order. The instant rises with them: a token that was dated to an earlier entry's is before these,
    /// whatever clocks say.
    pub NEXT_SEQUENCE = "UPDATE revocation_head SET sequence = sequence + $2, not_before = CASE WHEN not_before >= $1 THEN not_before + 1 ELSE $1 END WHERE id = 1 RETURNING sequence, not_before";
    /// The last number.
    pub LAST_SEQUENCE = "SELECT sequence FROM revocation_head WHERE id = 1";
    /// Live entries after a number.
    pub LIST_REVOCATIONS = "SELECT sequence, kind, subject_id, not_before, expires_at FROM revocations WHERE sequence > $1 AND expires_at > $2 ORDER BY sequence LIMIT $3";
    /// The first that live. Those that have ended stay for hours, and have the lower numbers: the sum keeps the engines
    /// from going through them in order, so that what has not ended is found by the index of the ends.
    pub LIST_FIRST_REVOCATIONS = "SELECT sequence, kind, subject_id, not_before, expires_at FROM revocations WHERE expires_at > $1 ORDER BY sequence + 0 LIMIT $2";
    /// The latest instant before which tokens of any of these subjects are dead. Ids of different kinds are never
    /// equal: UUIDs, pairs of them, and names of clients.
    pub LATEST_NOT_BEFORE = "SELECT MAX(not_before) AS not_before FROM revocations WHERE subject_id IN ($1, $2, $3, $4, $5)";
    /// Forgets entries that concern no live token any more.
    pub PURGE_REVOCATIONS = "DELETE FROM revocations WHERE expires_at < $1";
}

insert! {
    /// Adds entries.
    pub ADD_REVOCATIONS = "INSERT INTO revocations"(sequence, kind, subject_id, not_before, expires_at);
}

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// A session.
    Session(SessionId),
    /// An API key.
    Credential(CredentialId),
    /// All of a person's.
    Person(PersonId),
    /// A person's in one tenant.
    Membership(PersonId, TenantId),
    /// An internal client.
    Client(String),
    /// A whole tenant.
    Tenant(TenantId),
}

impl Revoked {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Session(_) => "session",
            Self::Credential(_) => "credential",
            Self::Person(_) => "person",
            Self::Membership(..) => "membership",
            Self::Client(_) => "client",
            Self::Tenant(_) => "tenant",
        }
    }

    /// The id as verifiers compare it.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Session(id) => id.to_string(),
            Self::Credential(id) => id.to_string(),
            Self::Person(id) => id.to_string(),
            Self::Membership(person, tenant) => format!("{person}/{tenant}"),
            Self::Client(name) => name.clone(),
            Self::Tenant(id) => id.to_string(),
        }
    }

    fn parse(kind: &str, id: &str) -> Option<Self> {
        Some(match kind {
            "session" => Self::Session(id.parse().ok()?),
            "credential" => Self::Credential(id.parse().ok()?),
            "person" => Self::Person(id.parse().ok()?),
            "membership" => {
                let (person, tenant) = id.split_once('/')?;
                Self::Membership(person.parse().ok()?, tenant.parse().ok()?)
            }
            "client" => Self::Client(id.to_owned()),
            "tenant" => Self::Tenant(id.parse().ok()?),
            _ => return None,
        })
    }
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, in commit order.
    pub sequence: i64,
    /// What.
    pub revoked: Revoked,
    /// Tokens issued before this are dead.
    pub not_before: Timestamp,
    /// When no such token can be live any more.
    pub expires_at: Timestamp,
}

/// How far `not_before` lies ahead of the clock.
///
/// A token that was made from what a transaction read just before ours committed must die too, whatever the clocks of
/// two replicas say. Whoever makes a token after reading the entry dates it to `not_before` at least
/// ([`latest_not_before`]), so nothing good dies for it. Above the longest transaction and the worst clock skew.
pub const MARGIN: Duration = Duration::from_secs(30);

/// Adds an entry that ends every token of `revoked` issued so far; its number. `longest_token`: how long a token can live.
///
/// Call it last in a transaction: all that revoke queue for one row from here on.
pub async fn add(
    tx: &mut Tx,
    revoked: &Revoked,
    now: Timestamp,
    longest_token: Duration,
) -> Result<i64, Error> {
    add_group(tx, std::slice::from_ref(revoked), now, longest_token).await
}

/// Adds an entry for each of `revoked` as [`add`] does, in few statements, all with one instant: they are seen together
/// or not at all.
pub async fn add_all(
    tx: &mut Tx,
    revoked: &[Revoked],
    now: Timestamp,
    longest_token: Duration,
) -> Result<(), Error> {
    if !revoked.is_empty() {
        add_group(tx, revoked, now, longest_token).await?;
    }
    Ok(())
}

async fn add_group(
    tx: &mut Tx,
    revoked: &[Revoked],
    now: Timestamp,
    longest_token: Duration,
) -> Result<i64, Error> {
    let count = i64::try_from(revoked.len()).unwrap_or(i64::MAX);
    let head = tx.fetch_one(&NEXT_SEQUENCE, params![now.plus(MARGIN), count]).await?;
    let (last, not_before): (i64, Timestamp) = (head.get("sequence")?, head.get("not_before")?);
    let expires_at = not_before.plus(longest_token).plus(MARGIN);
    let rows = revoked
        .iter()
        .zip(last - count + 1..)
        .map(|(revoked, sequence)| params![sequence, revoked.kind(), revoked.id(), not_before, expires_at]);
    tx.insert(&ADD_REVOCATIONS, rows.collect()).await?;
    Ok(last)
}

/// The instant that everything issued from now on can be told by from what was issued before: later than any date of a
/// token so far. Whoever makes a token after this dates it so, at least.
pub async fn next_not_before(tx: &mut Tx, now: Timestamp) -> Result<Timestamp, Error> {
    tx.fetch_one(&NEXT_SEQUENCE, params![now.plus(MARGIN), 0]).await?.get("not_before")
}

/// Adds entries that end the tokens of each of `revoked` that are dated before its instant, one of
/// [`next_not_before`]'s. As [`add`] otherwise.
pub async fn add_dated(
    tx: &mut Tx,
    revoked: &[(Revoked, Timestamp)],
    now: Timestamp,
    longest_token: Duration,
) -> Result<(), Error> {
    if revoked.is_empty() {
        return Ok(());
    }
    let count = i64::try_from(revoked.len()).unwrap_or(i64::MAX);
    let head = tx.fetch_one(&NEXT_SEQUENCE, params![now.plus(MARGIN), count]).await?;
    let last: i64 = head.get("sequence")?;
    let rows = revoked.iter().zip(last - count + 1..).map(|((revoked, not_before), sequence)| {
        // Who holds a stream open hears of it, though every such token has ended by itself.
        let expires_at = now.max(*not_before).plus(longest_token).plus(MARGIN);
        params![sequence, revoked.kind(), revoked.id(), *not_before, expires_at]
    });
    tx.insert(&ADD_REVOCATIONS, rows.collect()).await.map(drop)
}

/// The last number given.
pub async fn last_sequence(tx: &mut Tx) -> Result<i64, Error> {
    tx.fetch_one(&LAST_SEQUENCE, params![]).await?.get("sequence")
}

/// At most `limit` live entries after `after`, in order.
pub async fn list(tx: &mut Tx, after: i64, now: Timestamp, limit: u32) -> Result<Vec<Entry>, Error> {
    entries(&tx.fetch_all(&LIST_REVOCATIONS, params![after, now, limit]).await?)
}

/// The first `limit` live entries, in order: [`list`] from the start, without a look at any that has ended.
pub async fn list_first(tx: &mut Tx, now: Timestamp, limit: u32) -> Result<Vec<Entry>, Error> {
    entries(&tx.fetch_all(&LIST_FIRST_REVOCATIONS, params![now, limit]).await?)
}

fn entries(rows: &[Row]) -> Result<Vec<Entry>, Error> {
    rows.iter()
        .map(|row| {
            let (kind, id) = (row.get::<String>("kind")?, row.get::<String>("subject_id")?);
            Ok(Entry {
                sequence: row.get("sequence")?,
                revoked: Revoked::parse(&kind, &id)
                    .ok_or_else(|| Error::decode("kind", "it is no revocation that this version knows"))?,
                not_before: row.get("not_before")?,
                expires_at: row.get("expires_at")?,
            })
        })
        .collect()
}

/// The instant that a token for any of `subjects` (at most 5) must not be dated before; `None` if nothing of them was
/// revoked.
pub async fn latest_not_before(tx: &mut Tx, subjects: &[Revoked]) -> Result<Option<Timestamp>, Error> {
    let id = |place: usize| subjects.get(place).map(Revoked::id).unwrap_or_default();
    let params = params![id(0), id(1), id(2), id(3), id(4)];
    tx.fetch_one(&LATEST_NOT_BEFORE, params).await?.get("not_before")
}

/// Forgets entries that were over before `before`; how many.
pub async fn purge(tx: &mut Tx, before: Timestamp) -> Result<u64, Error> {
    tx.execute(&PURGE_REVOCATIONS, params![before]).await
}
