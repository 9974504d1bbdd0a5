//! Looking events up.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::ids::{EventId, TenantId};
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_db::read_tx;
use uuid::Uuid;

use super::App;
use super::append::Context;
use crate::domain::names::LogId;
use crate::domain::seal::{self, OpenError, Part};
use crate::keys::Owner;
use crate::store::plain::{Filter, PLATFORM, PlainRow};
use crate::store::{events, plain};

/// An event in clear, as far as its keys are there.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) row: PlainRow,
    pub(crate) payload: String,
    pub(crate) actor_payload: String,
    /// A key was shredded: some of it can't be read any more.
    pub(crate) erased: bool,
    pub(crate) leaf: Vec<u8>,
}

/// What to list, as callers ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) page_size: u32,
    pub(crate) page_token: String,
    /// An action or, ending in a dot, the beginning of some.
    pub(crate) action: String,
    pub(crate) actor: String,
    pub(crate) target: String,
    pub(crate) from: Timestamp,
    pub(crate) to: Option<Timestamp>,
    pub(crate) request_id: String,
}

impl App {
    /// A page of a tenant's events, newest first, and the token of the next page.
    pub(crate) async fn list_events(&self, tenant: TenantId, query: Query) -> Result<(Vec<Event>, String)> {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let is_prefix = query.action.ends_with('.');
        let (exact, prefix) = if is_prefix { (None, some(query.action)) } else { (some(query.action), None) };
        let before = if query.page_token.is_empty() {
            (query.to.unwrap_or(Timestamp::from_micros(i64::MAX)), Uuid::nil())
        } else {
            read_token(&query.page_token)?
        };
        let filter = Filter {
            before,
            from: query.from,
            action: exact,
            action_prefix: prefix,
            actor: some(query.actor),
            target: some(query.target),
            request_id: some(query.request_id),
            most: query.page_size + 1,
        };
        let page = query.page_size as usize;
        let (rows, next) = read_tx!(self.db, "audit.list", |tx| {
            let listed = plain::list(tx, tenant, &filter).await?;
            // By what is listed, shown or not: a row that stands for no entry hides none that come after it.
            let next = match listed.get(page.saturating_sub(1)) {
                Some(last) if listed.len() > page => write_token(last.occurred, last.event_id),
                _ => String::new(),
            };
            let mut rows = Vec::new();
            for row in listed.into_iter().take(page) {
                // An entry can be pruned between two pages, never between two statements of one.
                if let Some(entry) = events::lookup(tx, &row.log, row.seq).await? {
                    rows.push((row, entry));
                }
            }
            Ok((rows, next))
        })?;
        let events = self
            .blocking(move |app| {
                rows.into_iter().map(|(row, entry)| app.open(row, entry)).collect::<Result<_>>()
            })
            .await?;
        Ok((events, next))
    }

    /// One event of a tenant.
    ///
    /// # Errors
    /// `EVENT_NOT_FOUND`, also where it is another tenant's.
    pub(crate) async fn get_event(&self, tenant: TenantId, id: EventId) -> Result<Event> {
        let found = read_tx!(self.db, "audit.get", |tx| {
            let Some((log, seq)) = events::lookup_place(tx, id).await? else { return Ok(None) };
            let row = plain::lookup(tx, tenant, &log, seq).await?;
            let entry = events::lookup(tx, &log, seq).await?;
            Ok(row.zip(entry))
        })?;
        let (row, entry) = found.ok_or_else(not_found)?;
        self.blocking(move |app| app.open(row, entry)).await
    }

    fn open(&self, mut row: PlainRow, entry: events::Stored) -> Result<Event> {
        let tenant = (row.tenant != PLATFORM).then_some(row.tenant);
        // Its log may be one that the configuration names no more: what it holds is still to be read.
        let log = LogId::new(row.log.as_str()).map_err(Error::internal)?;
        let place = seal::Place { environment: self.environment, log: &log, event: row.event_id };
        let mut erased = false;
        let mut read = |part: Part, owner: Owner| -> Result<String> {
            if seal::key_id(&entry.payload, part).map_err(changed)?.is_none() {
                return Ok(String::new());
            }
            let Some(key) = self.keys.lookup(owner)? else {
                erased = true;
                return Ok(String::new());
            };
            match seal::open(place, &entry.payload, part, &key) {
                Ok(plain) => {
                    Ok(plain.map(|plain| String::from_utf8_lossy(&plain).into_owned()).unwrap_or_default())
                }
                Err(OpenError::OtherKey) => {
                    erased = true;
                    Ok(String::new())
                }
                Err(error) => Err(changed(error)),
            }
        };
        let payload = read(Part::Subject, Self::owner(row.subject, tenant))?;
        if row.request_id.is_none() {
            // A caller's own id, which may say anything, is sealed.
            let context = read(Part::Context, Self::owner(row.subject, tenant))?;
            let context = serde_json::from_str::<Context>(&context).unwrap_or_default();
            row.request_id = Some(context.request).filter(|id| !id.is_empty());
        }
        let actor = row.actor.parse().ok();
        let actor_payload = read(Part::Actor, Self::owner(actor, tenant))?;
        Ok(Event { row, payload, actor_payload, erased, leaf: entry.leaf })
    }
}

pub(crate) fn not_found() -> Error {
    Error::not_found("EVENT_NOT_FOUND", "There is no such event, or its time is over.")
}

fn changed(error: OpenError) -> Error {
    Error::internal(format!("a stored payload was changed: {error}. Run verify-audit-chain."))
}

fn write_token(occurred: Timestamp, id: EventId) -> String {
    let mut bytes = occurred.as_micros().to_be_bytes().to_vec();
    bytes.extend_from_slice(id.as_uuid().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_token(token: &str) -> Result<(Timestamp, Uuid)> {
    let invalid = || Error::invalid_field("page_token", "must be the next_page_token of an earlier answer");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let (micros, id) = bytes.split_first_chunk::<8>().ok_or_else(invalid)?;
    let id = Uuid::from_slice(id).map_err(|_| invalid())?;
    Ok((Timestamp::from_micros(i64::from_be_bytes(*micros)), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_reads_back_and_others_are_refused() {
        let id = EventId::from_uuid(Uuid::from_u128(5));
        let token = write_token(Timestamp::from_micros(7), id);
        assert_eq!(read_token(&token).ok(), Some((Timestamp::from_micros(7), id.as_uuid())));
        for wrong in ["", "x", "AAAA", &format!("{token}AA")] {
            assert!(read_token(wrong).is_err(), "{wrong:?}");
        }
    }
}
