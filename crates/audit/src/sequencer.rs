//! The one way into a log: group commit.
//!
//! Whoever wants to append queues what they have and waits for their turn; whoever's turn it is commits all that is
//! queued as one contiguous run and answers every waiter. Between replicas the lock of the head row does the same.
//! So numbers are contiguous, the chain can't fork, and the more there is to do the fewer commits an entry costs.

#[cfg(feature = "planted-bugs")]
mod planted;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use gatehouse_core::ids::{EventId, PersonId};
use gatehouse_core::{Clock, Error, Result, Timestamp};
use gatehouse_db::{Db, Tx, run_tx};
use gatehouse_service::Lifecycle;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use tokio::sync::{Mutex, Semaphore, oneshot};

use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::merkle::leaf_hash;
use crate::domain::names::LogId;
use crate::domain::tiles::Tiles;
use crate::keys::{Owner, SubjectKeys};
use crate::standing::Standing;
use crate::store::events::NewEntry;
use crate::store::plain::PlainRow;
use crate::store::{events, heads, plain, tiles};

/// After so many looks at what is there already, somebody else has to look at what goes on.
const MOST_LOOKS: u32 = 5;

/// An entry but for its place, link and time of recording, which the sequencer sets.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) leaf: Leaf,
    pub(crate) payload: Vec<u8>,
    pub(crate) plain: PlainRow,
}

impl Draft {
    /// Those whom the plain row names by their ids.
    fn persons(&self) -> impl Iterator<Item = PersonId> {
        let PlainRow { actor, subject, target, .. } = &self.plain;
        [actor.parse().ok(), *subject, target.as_deref().and_then(person_of)].into_iter().flatten()
    }

    /// The plain row as the entry `seq`. Whoever is among the `erased` stands in it as in the leaf.
    fn row(&self, seq: u64, recorded: Timestamp, erased: &HashSet<PersonId>) -> PlainRow {
        let mut row = PlainRow { seq, recorded, ..self.plain.clone() };
        let is_erased = |person: Option<PersonId>| person.is_some_and(|person| erased.contains(&person));
        if is_erased(row.actor.parse().ok()) {
            row.actor = self.leaf.actor.to_string();
        }
        if is_erased(row.target.as_deref().and_then(person_of)) {
            row.target = self.leaf.target.as_ref().map(ToString::to_string);
        }
        if is_erased(row.subject) {
            row.subject = None;
        }
        row
    }
}

/// The person in a plain row's target.
fn person_of(target: &str) -> Option<PersonId> {
    target.strip_prefix("person/")?.parse().ok()
}

/// Where an event stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) event_id: EventId,
    pub(crate) log: String,
    pub(crate) seq: u64,
}

/// The sequencer of one log in this process. Cheap to clone; clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct Sequencer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: LogId,
    db: Db,
    keys: SubjectKeys,
    clock: Clock,
    lifecycle: Lifecycle,
    standing: Standing,
    max_group: usize,
    queue: StdMutex<VecDeque<Job>>,
    room: Arc<Semaphore>,
    /// Held by whoever commits; remembers the right edge between commits.
    turn: Mutex<Option<Edge>>,
    appended: Counter<u64>,
    group_size: Histogram<u64>,
    labels: [KeyValue; 1],
}

#[derive(Debug)]
struct Job {
    drafts: Vec<Draft>,
    reply: oneshot::Sender<Result<Vec<Place>>>,
    _room: tokio::sync::OwnedSemaphorePermit,
}

/// The state that the next entry is added to, as of our last commit. Another replica may have moved on since: then
/// it does not fit the head that we lock, and is read again.
#[derive(Clone, Debug)]
struct Edge {
    size: u64,
    chain: Digest,
    tiles: Tiles,
}

impl Sequencer {
    pub(crate) fn new(
        standing: Standing,
        db: Db,
        keys: SubjectKeys,
        clock: Clock,
        lifecycle: Lifecycle,
        max_group: usize,
        max_queue: usize,
    ) -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        let labels = [KeyValue::new("log", standing.log().to_string())];
        Self(Arc::new(Inner {
            log: standing.log().clone(),
            db,
            keys,
            clock,
            lifecycle,
            standing,
            max_group,
            queue: StdMutex::default(),
            room: Arc::new(Semaphore::new(max_queue)),
            turn: Mutex::default(),
            appended: meter
                .u64_counter("gatehouse.audit.appended")
                .with_description("Entries added to a log.")
                .build(),
            group_size: meter
                .u64_histogram("gatehouse.audit.group")
                .with_description("Entries in one commit.")
                .build(),
            labels,
        }))
    }

    /// Adds entries in this order, one after the other though others may come between, and answers once they are
    /// durable. An event that is there already keeps its place. Goes on though the caller went away.
    ///
    /// # Errors
    /// `AUDIT_BUSY` if too much waits already; `AUDIT_NOT_STORED` if the database did not take them, or has less than was
    /// signed of the log. In either case sending them again is right.
    pub(crate) async fn append(&self, drafts: Vec<Draft>) -> Result<Vec<Place>> {
        let room = u32::try_from(drafts.len())
            .ok()
            .and_then(|entries| Arc::clone(&self.0.room).try_acquire_many_owned(entries).ok());
        let room = room.ok_or_else(|| {
            Error::resource_exhausted(
                "AUDIT_BUSY",
                "The audit log has too much to do. Send the events again later.",
            )
            .retry_after(std::time::Duration::from_secs(1))
        })?;
        let (reply, answer) = oneshot::channel();
        self.queue().push_back(Job { drafts, reply, _room: room });
        let this = self.clone();
        self.0.lifecycle.spawn(async move { this.take_turn().await });
        answer.await.map_err(|_| Error::internal("the sequencer dropped a job"))?
    }

    /// There is one turn for each job, so none is left; a job may be done in an earlier one's turn.
    async fn take_turn(&self) {
        let mut edge = self.0.turn.lock().await;
        let jobs = self.take_group();
        if jobs.is_empty() {
            return;
        }
        let drafts: Vec<&Draft> = jobs.iter().flat_map(|job| &job.drafts).collect();
        match self.commit(&drafts, edge.as_ref()).await {
            Ok((mut places, next, added)) => {
                self.count(added);
                self.0.group_size.record(drafts.len() as u64, &self.0.labels);
                *edge = Some(next);
                for job in jobs {
                    let rest = places.split_off(job.drafts.len());
                    let mine = std::mem::replace(&mut places, rest);
                    // The caller may have gone away; the entries are in the log all the same.
                    let _ = job.reply.send(Ok(mine));
                }
            }
            Err(error) => {
                *edge = None;
                tracing::error!(log = %self.0.log, %error, entries = drafts.len(), "entries could not be stored");
                for job in jobs {
                    let _ = job.reply.send(Err(Error::unavailable(
                        "AUDIT_NOT_STORED",
                        "The audit log could not store the events. Send them again.",
                    )));
                }
            }
        }
    }

    /// The next jobs, as many as fit a group, at least one.
    fn take_group(&self) -> Vec<Job> {
        let mut queue = self.queue();
        let (mut group, mut entries) = (Vec::new(), 0);
        while let Some(job) = queue.front() {
            entries += job.drafts.len();
            if !group.is_empty() && entries > self.0.max_group {
                break;
            }
            group.extend(queue.pop_front());
        }
        group
    }

    /// Nobody looks whether events are there already until one proves to be: they seldom are. What is there is then
    /// known, unless another log takes one of the events at the same time.
    async fn commit(
        &self,
        drafts: &[&Draft],
        edge: Option<&Edge>,
    ) -> gatehouse_db::Result<(Vec<Place>, Edge, u64)> {
        let now = self.0.clock.now();
        let mut look = false;
        for _ in 0..MOST_LOOKS {
            let mut repeated = false;
            let result = run_tx!(self.0.db, "audit.append", |tx| {
                let added = self.append_in(tx, drafts, edge, now, look).await?;
                repeated = added.is_none();
                added.ok_or_else(|| Error::internal("events went into another log at the same time").into())
            });
            if !repeated {
                return result;
            }
            look = true;
        }
        Err(Error::internal("events went into other logs at the same time, again and again").into())
    }

    /// Adds an entry of this service's own within a transaction that does what it tells. Whoever has it locks no other log
    /// afterwards: this one is the last. Once that is committed, [`Self::count`] is to be told.
    pub(crate) async fn append_within(&self, tx: &mut Tx, draft: &Draft) -> gatehouse_db::Result<()> {
        let added = self.append_in(tx, &[draft], None, self.0.clock.now(), false).await?;
        added.map(drop).ok_or_else(|| Error::internal("an event of our own was there already").into())
    }

    /// Counts entries that were added.
    pub(crate) fn count(&self, added: u64) {
        self.0.appended.add(added, &self.0.labels);
    }

    /// `None`, and the transaction is to be rolled back, if an event is there already that was not found so.
    async fn append_in(
        &self,
        tx: &mut Tx,
        drafts: &[&Draft],
        edge: Option<&Edge>,
        now: Timestamp,
        look: bool,
    ) -> gatehouse_db::Result<Option<(Vec<Place>, Edge, u64)>> {
        #[cfg(feature = "planted-bugs")]
        if gatehouse_core::planted::is(gatehouse_core::planted::Bug::BesideTheSequencer) {
            return planted::append_beside(self, tx, drafts, now).await.map(Some);
        }
        let log = &self.0.log;
        let locked = heads::lock(tx, log).await?;
        let erased = self.look_at_files(drafts).await?;
        self.0.standing.check_locked(locked.size)?;
        let remembered = edge.filter(|edge| (edge.size, edge.chain) == (locked.size, locked.chain));
        let mut tree = match remembered {
            Some(edge) => edge.tiles.clone(),
            None => tiles::load_right_edge(tx, log, locked.size).await?,
        };
        let mut known = HashMap::new();
        if look {
            let ids: Vec<EventId> = drafts.iter().map(|draft| draft.leaf.event_id).collect();
            known = events::places(tx, &ids).await?;
        }
        let (mut size, mut chain) = (locked.size, locked.chain);
        let mut changed = BTreeSet::new();
        let mut places = Vec::with_capacity(drafts.len());
        let (mut entries, mut rows) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
        for draft in drafts {
            let event_id = draft.leaf.event_id;
            let (log, seq) = match known.entry(event_id) {
                Entry::Occupied(place) => place.get().clone(),
                Entry::Vacant(place) => {
                    let leaf = Leaf { seq: size, prev_chain: chain, recorded: now, ..draft.leaf.clone() };
                    let leaf = leaf.encode();
                    tree.push(size, leaf_hash(&leaf), &mut changed).map_err(damaged)?;
                    chain = Digest::of_chain(&leaf);
                    rows.push(draft.row(size, now, &erased));
                    entries.push(NewEntry {
                        seq: size,
                        event_id,
                        recorded: now,
                        leaf,
                        payload: &draft.payload,
                    });
                    size += 1;
                    place.insert((log.to_string(), size - 1)).clone()
                }
            };
            places.push(Place { event_id, log, seq });
        }
        if events::add(tx, log, entries).await? != size - locked.size {
            return Ok(None);
        }
        plain::add(tx, rows).await?;
        for id in changed {
            let hashes = tree.bytes(id).ok_or_else(|| Error::internal("a changed tile has no bytes"))?;
            tiles::put(tx, log, id, hashes).await?;
        }
        if size > locked.size && !heads::advance(tx, log, &locked, size, chain).await? {
            return Err(Error::internal("the log's lock was lost in the middle of a commit").into());
        }
        tree.keep_right_edge(size);
        Ok(Some((places, Edge { size, chain, tiles: tree }, size - locked.size)))
    }

    /// Learns what was signed by now, and who of those named is erased by now. To be asked under the lock of the head. An
    /// erasure that has begun waits for it: a draft may be older than that. And what another replica signed before a
    /// database went back may reach beyond the entries that there are.
    async fn look_at_files(&self, drafts: &[&Draft]) -> Result<HashSet<PersonId>> {
        let mut named: HashSet<PersonId> = drafts.iter().flat_map(|draft| draft.persons()).collect();
        let (keys, standing) = (self.0.keys.clone(), self.0.standing.clone());
        let look = move || {
            standing.read_if_changed();
            named.retain(|person| keys.is_erased(Owner::Person(*person)));
            named
        };
        tokio::task::spawn_blocking(look).await.map_err(Error::internal)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Job>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stored tree does not fit the stored head: appending would cover it up.
pub(crate) fn damaged(missing: crate::domain::tiles::MissingTile) -> Error {
    Error::internal(format!("the stored tree is damaged: {missing}. Run verify-audit-chain."))
}
