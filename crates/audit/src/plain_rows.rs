//! Whether the plain rows, which people search and read, say what the entries say: who did it, to what, about whom.
//!
//! A leaf names persons by pseudonyms, which only their keys connect with their ids; what else it may not hold
//! (subject, trace) is sealed beside the payload. So with the subject keys all of a row can be compared, and without
//! them all but persons.
//!
//! A row may name nobody where the entry names a person: that is how an erasure leaves it. Then nothing may be left of
//! that person's key, nor of the id that it belongs to: whose key is there, and bears no mark, was not erased.

use std::collections::HashMap;
use std::str::FromStr;

use gatehouse_core::Environment;
use gatehouse_core::ids::{PersonId, RequestId, is_canonical};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::app::App;
use crate::app::append::{Context, is_plain_id};
use crate::domain::leaf::Leaf;
use crate::domain::names::{Actor, ClientName, LogId, Pseudonym, Reason, Target};
use crate::domain::seal::{self, Opener, Part};
use crate::domain::verify::{Fault, Persons};
use crate::keys::{KeyIds, Owner, SubjectKeys};
use crate::store::events::Found;
use crate::store::plain::{PLATFORM, PlainRow};

/// What was found of the persons of a log's rows.
#[derive(Debug)]
pub(crate) struct Findings {
    with_keys: bool,
    unknown: Gap,
    nameless: Gap,
    /// Those whom rows do not name, as their entries name them, with the first entry of each.
    hidden: HashMap<Pseudonym, u64>,
    /// Those whose keys were looked for and are at hand.
    known: HashMap<Pseudonym, PersonId>,
}

/// What of a row's persons could not be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    unknown: bool,
    nameless: bool,
    /// The actor and the target, where the row does not name them.
    hidden: [Option<Pseudonym>; 2],
}

/// The comparison of a run of a log's rows with its entries. It remembers the keys of those whom they name: make a new
/// one for each run, since a key may be shredded meanwhile.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    subjects: Option<&'a SubjectKeys>,
    key_ids: &'a KeyIds,
    known: HashMap<Owner, Option<Known>>,
    /// The installation has one environment; which, the database does not say. First the one that was right last.
    environments: [Environment; 3],
}

/// A key that is at hand, and what is derived from it.
#[derive(Debug)]
struct Known {
    id: Uuid,
    opener: Opener,
    /// The person's pseudonym, if it is a person's key.
    pseudonym: Option<Pseudonym>,
}

/// Rows of which something is not known.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    rows: u64,
    first: u64,
}

impl Gap {
    fn add(&mut self, seq: u64) {
        if self.rows == 0 {
            self.first = seq;
        }
        self.rows += 1;
    }
}

/// How a person in a row compares with the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Same,
    /// The row names a person whose key is not at hand.
    Unknown,
    /// The row names nobody where the entry may.
    Nameless,
    Other,
}

impl Findings {
    pub(crate) fn new(with_keys: bool) -> Self {
        Self {
            with_keys,
            unknown: Gap::default(),
            nameless: Gap::default(),
            hidden: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// Takes those whose keys a comparison found at hand.
    pub(crate) fn learn(&mut self, persons: impl IntoIterator<Item = (Pseudonym, PersonId)>) {
        self.known.extend(persons);
    }

    /// The first entry whose row does not name a person who was not erased.
    pub(crate) fn taken_out(&self, subjects: &SubjectKeys) -> Option<u64> {
        let is_there = |person| {
            let owner = Owner::Person(person);
            !subjects.is_erased(owner) && subjects.lookup(owner).is_ok_and(|key| key.is_some())
        };
        let hidden = self.hidden.iter().filter_map(|(who, seq)| Some((*self.known.get(who)?, *seq)));
        hidden.filter(|(person, _)| is_there(*person)).map(|(_, seq)| seq).min()
    }

    /// Takes what was found of the row of the entry `seq`.
    pub(crate) fn add(&mut self, seq: u64, found: Compared) {
        if found.unknown {
            self.unknown.add(seq);
        }
        if found.nameless {
            self.nameless.add(seq);
        }
        for pseudonym in found.hidden.into_iter().flatten() {
            self.hidden.entry(pseudonym).or_insert(seq);
        }
    }

    pub(crate) fn persons(&self) -> Persons {
        if self.with_keys {
            Persons::Compared { unknown: self.unknown.rows, nameless: self.nameless.rows }
        } else {
            Persons::NotCompared
        }
    }

    /// What a reader of the report has to know; nothing where every person was compared or there is none.
    pub(crate) fn note(&self) -> Vec<String> {
        let Gap { rows, first } = self.unknown;
        let mut notes = Vec::new();
        if rows > 0 && self.with_keys {
            notes.push(format!(
                "persons not compared in {rows} rows, the first of entry {first}: they name persons whose keys are not \
                 at hand. Whoever wrote those rows may have written anyone's id"
            ));
        } else if rows > 0 {
            notes.push(format!(
                "persons not compared: {rows} rows name persons by id, and the subject keys, which connect ids with \
                 pseudonyms, are not at hand"
            ));
        }
        let Gap { rows, first } = self.nameless;
        if rows > 0 && self.with_keys {
            notes.push(format!(
                "{rows} rows, the first of entry {first}, name nobody where their entries name a person, as after an erasure"
            ));
        }
        notes
    }
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(subjects: Option<&'a SubjectKeys>, key_ids: &'a KeyIds) -> Self {
        let environments = [Environment::Prod, Environment::Staging, Environment::Dev];
        Self { subjects, key_ids, known: HashMap::new(), environments }
    }

    /// Those whom the rows named and whose keys are at hand.
    pub(crate) fn persons(&self) -> Vec<(Pseudonym, PersonId)> {
        let person = |(owner, known): (&Owner, &Option<Known>)| match owner {
            Owner::Person(id) => Some((known.as_ref()?.pseudonym?, *id)),
            Owner::Tenant(_) | Owner::Platform => None,
        };
        self.known.iter().filter_map(person).collect()
    }

    /// Compares the row of an entry, if there is one, with it, and the columns beside the leaf with the leaf.
    pub(crate) fn compare(
        &mut self,
        row: Option<&PlainRow>,
        entry: &Found,
        leaf: Option<&Leaf>,
    ) -> Result<Compared, Fault> {
        let Some(leaf) = leaf else { return Err(Fault::ColumnDiffers) };
        let columns = (entry.seq, entry.recorded, entry.event_id);
        if columns != (Some(leaf.seq), Some(leaf.recorded), Some(leaf.event_id.as_uuid())) {
            return Err(Fault::ColumnDiffers);
        }
        let payload = entry.payload.as_deref().unwrap_or_default();
        let Some(row) = row.filter(|row| says_the_same(row, leaf)) else {
            return Err(Fault::PlainRowDiffers);
        };
        let found = [self.actor(row, leaf, payload), self.target(row, leaf), self.sealed(row, leaf, payload)];
        if found.contains(&Who::Other) {
            return Err(Fault::PlainRowDiffers);
        }
        let actor = match leaf.actor {
            Actor::Person(pseudonym) if found[0] == Who::Nameless => Some(pseudonym),
            _ => None,
        };
        let target = match leaf.target {
            Some(Target::Person(pseudonym)) if found[1] == Who::Nameless => Some(pseudonym),
            _ => None,
        };
        Ok(Compared {
            unknown: found.contains(&Who::Unknown),
            nameless: found.contains(&Who::Nameless),
            hidden: [actor, target],
        })
    }

    fn key(&mut self, owner: Owner) -> Option<&Known> {
        let subjects = self.subjects;
        let known = self.known.entry(owner).or_insert_with(|| {
            // A key that can't be read is not at hand.
            let key = subjects.and_then(|subjects| subjects.lookup(owner).ok().flatten())?;
            let pseudonym = match owner {
                Owner::Person(id) => Some(key.pseudonym(id.as_uuid())),
                Owner::Tenant(_) | Owner::Platform => None,
            };
            Some(Known { id: key.id(), opener: key.opener(), pseudonym })
        });
        known.as_ref()
    }

    fn actor(&mut self, row: &PlainRow, leaf: &Leaf, payload: &[u8]) -> Who {
        match &leaf.actor {
            Actor::Person(pseudonym) => match self.person(&row.actor, "person:", *pseudonym) {
                // Part 1 is sealed with the actor's own key.
                Who::Nameless if self.is_sealed_by_a_key_at_hand(payload, Part::Actor) => Who::Other,
                who => who,
            },
            other if other.to_string() == row.actor => Who::Same,
            _ => Who::Other,
        }
    }

    fn target(&mut self, row: &PlainRow, leaf: &Leaf) -> Who {
        let text = row.target.as_deref().unwrap_or_default();
        match &leaf.target {
            Some(Target::Person(pseudonym)) => {
                let id = text.strip_prefix("person/").filter(|id| is_canonical(id));
                self.person(id.unwrap_or(text), "person/", *pseudonym)
            }
            Some(other) if other.to_string() == text => Who::Same,
            None if row.target.is_none() => Who::Same,
            _ => Who::Other,
        }
    }

    /// `text` is an id, or what an erasure put in its place behind `prefix`.
    fn person(&mut self, text: &str, prefix: &str, pseudonym: Pseudonym) -> Who {
        if let Some(id) = written::<PersonId>(text) {
            return match self.key(Owner::Person(id)) {
                Some(key) if key.pseudonym == Some(pseudonym) => Who::Same,
                Some(_) => Who::Other,
                None => Who::Unknown,
            };
        }
        match text.strip_prefix(prefix) {
            Some("erased") => Who::Nameless,
            Some(text) if text == pseudonym.to_string() => Who::Nameless,
            _ => Who::Other,
        }
    }

    /// Whether a part was sealed with the key of somebody who was not erased.
    fn is_sealed_by_a_key_at_hand(&self, payload: &[u8], part: Part) -> bool {
        seal::key_id(payload, part).is_ok_and(|key| key.is_some_and(|key| self.key_ids.has(key)))
    }

    /// Compares the subject, the request and the trace with what is sealed.
    fn sealed(&mut self, row: &PlainRow, leaf: &Leaf, payload: &[u8]) -> Who {
        if self.subjects.is_none() {
            return if row.subject.is_some() { Who::Unknown } else { Who::Same };
        }
        let id_of = |part| seal::key_id(payload, part);
        let (Ok(context), Ok(subject)) = (id_of(Part::Context), id_of(Part::Subject)) else {
            return Who::Other;
        };
        let Some(sealed_with) = context.or(subject) else {
            // Entries of before the context was sealed may hold nothing to compare with.
            return if row.subject.is_some() { Who::Unknown } else { Who::Same };
        };
        let owner = App::owner(row.subject, leaf.tenant);
        match (row.subject, self.key(owner).map(|key| key.id)) {
            (_, Some(key)) if key == sealed_with => {}
            (Some(_), Some(_)) => return Who::Other,
            (Some(_), None) => return Who::Unknown,
            // Whoever the entry is about was not erased, and the row said whom.
            (None, _) if self.key_ids.has(sealed_with) => return Who::Other,
            (None, _) => return Who::Nameless,
        }
        if context.is_none() {
            return Who::Same;
        }
        let Ok(log) = LogId::new(row.log.as_str()) else { return Who::Other };
        let Some(text) = self.open(owner, &log, leaf, payload) else { return Who::Other };
        let Ok(context) = serde_json::from_slice::<Context>(&text) else { return Who::Other };
        let subject = row.subject.map(|subject| subject.to_string()).unwrap_or_default();
        let same = context.subject == subject
            && is_id_of(row.request_id.as_deref(), &context.request)
            && is_id_of(row.trace_id.as_deref(), &context.trace);
        if same { Who::Same } else { Who::Other }
    }

    /// What the entry says of its context, if the key of `owner` opens it in any environment.
    fn open(&mut self, owner: Owner, log: &LogId, leaf: &Leaf, payload: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let environments = self.environments;
        let key = self.key(owner)?;
        let (at, text) = environments.into_iter().enumerate().find_map(|(at, environment)| {
            let place = seal::Place { environment, log, event: leaf.event_id };
            let text = key.opener.open(place, payload, Part::Context).ok().flatten()?;
            Some((at, text))
        })?;
        self.environments.swap(0, at);
        Some(text)
    }
}

/// Whether a row with `id` is the one of an entry with `sealed`. A caller's own id is sealed only; rows of before have it.
fn is_id_of(id: Option<&str>, sealed: &str) -> bool {
    id.unwrap_or_default() == sealed || (id.is_none() && !is_plain_id(sealed))
}

/// The id that stands there in the one spelling of ids.
fn written<T: FromStr>(text: &str) -> Option<T> {
    is_canonical(text).then(|| text.parse().ok()).flatten()
}

/// Whether the row says what the leaf says, persons left out.
fn says_the_same(row: &PlainRow, leaf: &Leaf) -> bool {
    fn text(value: Option<&String>) -> &str {
        value.map(String::as_str).unwrap_or_default()
    }
    row.event_id == leaf.event_id
        && row.log == leaf.log.as_str()
        && row.tenant == leaf.tenant.unwrap_or(PLATFORM)
        && row.occurred == leaf.occurred
        && row.recorded == leaf.recorded
        && row.service == leaf.service.as_str()
        && row.action == leaf.action.as_str()
        && row.outcome == leaf.outcome.as_str()
        && text(row.reason.as_ref()) == leaf.reason.as_ref().map(Reason::as_str).unwrap_or_default()
        && text(row.delegate.as_ref()) == leaf.delegate.as_ref().map(ClientName::as_str).unwrap_or_default()
        // The leaf holds it where it is an id of our own making.
        && row.request_id.as_deref().and_then(written::<RequestId>) == leaf.request_id
}
