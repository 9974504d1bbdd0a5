//! Whether a stored log is what was once written: every change, deletion, insertion, reordering, truncation and
//! rewrite, with the first bad entry by number.
//!
//! What a stored log alone can show is that it agrees with itself. Whoever can rewrite all of it can make it
//! agree again, and whoever can cut off its end leaves nothing to disagree. Only a checkpoint that they could
//! not reach tells: without one the verdict says `tail not proven`. Whoever can cut off its front can also write
//! down that it was pruned: only a signature tells, and without the key the verdict says `prefix not proven`.

use std::collections::BTreeMap;

use gatehouse_core::Timestamp;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::digest::Digest;
use super::leaf::{Leaf, LeafError};
use super::merkle::{Frontier, leaf_hash};
use super::names::{LogId, RetentionClass};
use super::proof::proves_consistency;

/// One stored entry, as read.
#[derive(Clone, Copy, Debug)]
pub struct StoredEntry<'a> {
    /// The place under which it is stored.
    pub seq: u64,
    /// The stored leaf.
    pub leaf: &'a [u8],
    /// [`Digest::of_payload`] of the stored payload; `None` if there is none.
    pub payload_sha256: Option<Digest>,
}

/// What of an entry can be computed without those before it, on any thread and in any order: all but whether it
/// fits. Made of the stored bytes and nothing else.
#[derive(Clone, Debug)]
pub struct ReadEntry {
    seq: u64,
    leaf: Result<Leaf, LeafError>,
    payload_sha256: Option<Digest>,
    chain: Digest,
    hash: Digest,
}

impl ReadEntry {
    /// Parses and hashes a stored entry.
    #[must_use]
    pub fn of(entry: StoredEntry<'_>) -> Self {
        Self {
            seq: entry.seq,
            leaf: Leaf::parse(entry.leaf),
            payload_sha256: entry.payload_sha256,
            chain: Digest::of_chain(entry.leaf),
            hash: leaf_hash(entry.leaf),
        }
    }

    /// The place under which it is stored.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// What the leaf says; `None` if the bytes are none.
    #[must_use]
    pub fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref().ok()
    }

    /// The leaf's hash in the tree.
    #[must_use]
    pub const fn hash(&self) -> Digest {
        self.hash
    }
}

/// What the store says of the whole log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredHead {
    /// How many entries there are, those pruned included.
    pub size: u64,
    /// The link that the next entry will carry.
    pub chain: Digest,
}

/// What is left of a pruned prefix: enough to go on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrunedPrefix {
    /// The link that the first entry kept carries.
    pub chain: Digest,
    /// The right edge of the tree over what was pruned.
    pub frontier: Frontier,
    /// Whether the log's own key, known from elsewhere, signed that it was pruned.
    pub signed: bool,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The stored bytes are not a leaf.
    NotALeaf {
        /// Why not.
        why: String,
    },
    /// The entry belongs to another log or retention class.
    OtherLog,
    /// Another entry stands at this place: one was removed, added or moved.
    OutOfPlace {
        /// The number that the leaf found here carries.
        leaf_seq: u64,
        /// The number that it is stored under.
        stored_seq: u64,
    },
    /// The link does not fit the entry before.
    ChainBroken,
    /// The stored payload is not the one that was logged, or is missing.
    PayloadChanged,
    /// The log ends before this entry, which is known to have been there. Since the tree of the checkpoint can't be
    /// made without it, entries before it back to the last checkpoint that agreed may have been rewritten too.
    Missing {
        /// The size that the log is known to have had.
        known_size: u64,
    },
    /// The entry lies beyond the end that the store's head states.
    BeyondHead,
    /// An entry stands before the first one that, as the store's head states, is kept.
    BeforeFirst {
        /// The number that it is stored under, which no entry has if it is below 0.
        stored_seq: i64,
    },
    /// The entries agree with each other but not with the checkpoint: they were rewritten.
    Rewritten {
        /// The size of the checkpoint.
        checkpoint_size: u64,
    },
    /// The prefix before the first entry kept is gone without a statement, signed by the log's key, that it was
    /// pruned.
    PrefixRemoved,
    /// There are rows of the log, but not the one that says where it begins and ends.
    HeadMissing,
    /// The row that says where the log begins and ends does not hold what it must.
    HeadUnreadable,
    /// The tables are not those that the service made.
    TablesDiffer {
        /// What the database says.
        why: String,
    },
    /// Several rows say where the log begins and ends.
    HeadRepeated,
    /// Rows stand under a name that no log can have.
    NotALog,
    /// Nothing of the log is there, though the configuration names it: the service made it when it started.
    LogMissing,
    /// A plain row stands for an entry that is not there.
    PlainRowWithoutEntry,
    /// Several plain rows stand for the entry, and each is shown.
    PlainRowRepeated,
    /// The event stands at another place too, of this log or another.
    EventRepeated,
    /// The plain row that the UI shows does not say what the entry says.
    PlainRowDiffers,
    /// A column beside the entry, by which the service finds it, does not say what the entry says.
    ColumnDiffers,
    /// A stored tile of the tree is not the one that the entries give.
    TileChanged {
        /// The tile's path.
        path: String,
    },
}

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// All entries agree with each other, and those below `proven` with a checkpoint kept elsewhere.
    Verified {
        /// How many entries, from the first, the checkpoint proves. Those after it came later: their tail is not
        /// proven.
        proven: u64,
    },
    /// All entries agree with each other; nothing shows that none is missing at the end or that not all of them
    /// were rewritten.
    TailNotProven,
    /// All entries kept agree with each other. That those before them were pruned, and not removed, is stated
    /// without a signature that could be checked: whoever removed them could have written it.
    PrefixNotProven {
        /// How many entries the checkpoint proves, as in [`Verdict::Verified`]; none without a checkpoint.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        proven: Option<u64>,
    },
    /// Something was changed.
    Broken {
        /// The first entry that contradicts what is stored around it. Where only a checkpoint shows the damage: the
        /// first that may be bad.
        entry: u64,
        /// The last that may be the first bad one, where that is not exactly known.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        up_to: Option<u64>,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// Whether the plain rows name the persons that the entries, by pseudonyms and sealed data, name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "persons", rename_all = "snake_case")]
pub enum Persons {
    /// Nothing was compared: the subject keys were not at hand, or there are no plain rows.
    #[default]
    NotCompared,
    /// They were compared.
    Compared {
        /// Rows that name a person whose key is not at hand, so that it could be anyone.
        unknown: u64,
        /// Rows that name nobody where somebody may have been named: after an erasure that is right.
        nameless: u64,
    },
}

/// The result of verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The log.
    pub log: String,
    /// The first entry that is still kept.
    pub first: u64,
    /// How many entries the log has, those pruned included.
    pub size: u64,
    /// The root of the tree over all of them.
    pub root: Digest,
    /// How many checkpoints agreed, those stored beside the log included.
    pub checkpoints: u64,
    /// What was found.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Whether persons were compared.
    #[serde(flatten)]
    pub persons: Persons,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    root: Digest,
    trusted: bool,
}

/// Verifies one log, entry by entry; memory does not grow with the log.
#[derive(Clone, Debug)]
pub struct LogVerifier {
    log: LogId,
    retention: RetentionClass,
    first: u64,
    /// Whether the lack of a prefix, if one lacks, is known to be right.
    prefix_proven: bool,
    /// When the last entry of the prefix had been recorded, where that is stated.
    pruned_until: Option<Timestamp>,
    chain: Digest,
    frontier: Frontier,
    marks: BTreeMap<u64, Vec<Mark>>,
    /// The largest size at which a checkpoint agreed, whoever kept it; below it nothing is bad.
    agreed: u64,
    /// The largest size at which a checkpoint kept elsewhere agreed.
    proven: Option<u64>,
    checkpoints: u64,
    /// An entry whose link does not fit: it or the one before is bad, and the next one tells which.
    suspect: Option<u64>,
    /// A checkpoint disagreed; what comes next tells whether the entry just taken is to blame.
    disagreement: Option<Verdict>,
    broken: Option<Verdict>,
    notes: Vec<String>,
}

impl LogVerifier {
    /// Verification of `log`, all of whose entries have the class `retention`, from its first entry or from the
    /// end of `pruned` on.
    #[must_use]
    pub fn new(log: LogId, retention: RetentionClass, pruned: Option<PrunedPrefix>) -> Self {
        let (chain, frontier, signed) = match pruned {
            Some(PrunedPrefix { chain, frontier, signed }) => (chain, frontier, signed),
            None => (Digest::of_genesis(&log), Frontier::empty(), false),
        };
        Self {
            log,
            retention,
            first: frontier.size(),
            prefix_proven: signed || frontier.size() == 0,
            pruned_until: None,
            chain,
            frontier,
            marks: BTreeMap::new(),
            agreed: 0,
            proven: None,
            checkpoints: 0,
            suspect: None,
            disagreement: None,
            broken: None,
            notes: Vec::new(),
        }
    }

    /// Holds the log against a checkpoint that was kept elsewhere. To be called before the first entry.
    ///
    /// A checkpoint older than a pruned prefix needs `consistency`, the proof from its size to that of the
    /// prefix; it may come from the same store, for it convinces on its own.
    pub fn trust(&mut self, checkpoint: &Checkpoint, consistency: Option<&[Digest]>) {
        self.mark(checkpoint, true, consistency);
    }

    /// Holds the log against a checkpoint that was stored beside it and whose signature is good. It finds more and
    /// narrows down where, but proves nothing: whoever cut the log could have cut the checkpoints too.
    pub fn compare(&mut self, checkpoint: &Checkpoint) {
        self.mark(checkpoint, false, None);
    }

    /// Tells when the last entry that was pruned had been recorded.
    pub fn pruned_until(&mut self, last_recorded: Timestamp) {
        self.pruned_until = Some(last_recorded);
    }

    fn mark(&mut self, checkpoint: &Checkpoint, trusted: bool, consistency: Option<&[Digest]>) {
        let &Checkpoint { size, root, .. } = checkpoint;
        if size >= self.first {
            self.marks.entry(size).or_default().push(Mark { root, trusted });
            if size == self.first {
                self.hold_against_marks();
                if self.disagreement.is_some() {
                    self.broken = self.disagreement.take();
                }
            }
            return;
        }
        match consistency {
            Some(proof) if proves_consistency(size, root, self.first, self.frontier.root(), proof) => {
                self.checkpoints += 1;
                if trusted {
                    // Every log extends an empty one.
                    self.proven = self.proven.max(Some(if size == 0 { 0 } else { self.first }));
                }
            }
            Some(_) => {
                self.rewritten(0, self.first, size);
                self.broken = self.disagreement.take();
            }
            None if trusted => self.notes.push(format!(
                "the checkpoint of size {size} is older than the first entry kept ({}): it needs a consistency proof",
                self.first
            )),
            None => {}
        }
    }

    /// Takes the next stored entry, in the store's order.
    pub fn push(&mut self, entry: StoredEntry<'_>) {
        if self.broken.is_none() {
            self.push_read(&ReadEntry::of(entry));
        }
    }

    /// Takes the next stored entry, parsed and hashed.
    pub fn push_read(&mut self, entry: &ReadEntry) {
        if self.broken.is_some() {
            return;
        }
        let seq = self.frontier.size();
        let leaf = match &entry.leaf {
            Ok(leaf) => leaf,
            Err(error) => return self.bad_leaf(seq, error),
        };
        if let Some(suspect) = self.suspect {
            let next_fits = leaf.prev_chain == self.chain;
            return self.blame(suspect, next_fits);
        }
        if self.disagreement.is_some() && leaf.prev_chain == self.chain {
            self.broken = self.disagreement.take();
            return;
        }
        if leaf.seq != seq || entry.seq != seq {
            return self.fail(seq, Fault::OutOfPlace { leaf_seq: leaf.seq, stored_seq: entry.seq });
        }
        if leaf.log != self.log || leaf.retention != self.retention {
            return self.fail(seq, Fault::OtherLog);
        }
        if entry.payload_sha256 != Some(leaf.payload_sha256) {
            return self.fail(seq, Fault::PayloadChanged);
        }
        if leaf.prev_chain != self.chain {
            self.suspect = Some(seq);
        }
        if let Some(until) = self.pruned_until.take().filter(|until| leaf.recorded < *until) {
            self.notes.push(format!(
                "the first entry kept was recorded at {}, before the last one pruned, at {until}: the clock went back",
                leaf.recorded
            ));
        }
        self.chain = entry.chain;
        self.frontier.push(entry.hash);
        if self.suspect.is_none() {
            self.hold_against_marks();
        }
    }

    /// Records a fault at `entry` that the caller found in what is stored beside the entries, unless an entry was
    /// bad already.
    pub fn report(&mut self, entry: u64, fault: Fault) {
        if self.suspect.is_none() && self.disagreement.is_none() {
            self.fail(entry, fault);
        }
    }

    /// Adds a remark for the reader of the report.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// How many entries were taken, those pruned included.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Whether something bad was found, so that reading on is of no use.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The verdict, once all entries were taken. `head` is what the store says of the whole, if it says anything.
    #[must_use]
    pub fn finish(mut self, head: Option<StoredHead>) -> Report {
        let size = self.frontier.size();
        if self.broken.is_none() {
            self.check_end(size, head);
        }
        // A checkpoint of nothing proves that nothing is there, and else nothing.
        let proven = self.proven.filter(|proven| *proven > 0 || size == 0);
        if self.broken.is_none() && self.proven != proven {
            self.notes.push("a checkpoint of size 0 proves nothing of a log that has entries".to_owned());
        }
        if self.broken.is_none()
            && let Some(proven) = proven.filter(|proven| *proven < size)
        {
            self.notes.push(format!(
                "entries {proven} to {} are later than the checkpoint: their tail is not proven",
                size - 1
            ));
        }
        let verdict = match (self.broken, proven) {
            (Some(broken), _) => broken,
            (None, proven) if !self.prefix_proven => Verdict::PrefixNotProven { proven },
            (None, Some(proven)) => Verdict::Verified { proven },
            (None, None) => Verdict::TailNotProven,
        };
        Report {
            log: self.log.to_string(),
            first: self.first,
            size,
            root: self.frontier.root(),
            checkpoints: self.checkpoints,
            verdict,
            persons: Persons::NotCompared,
            notes: self.notes,
        }
    }

    fn check_end(&mut self, size: u64, head: Option<StoredHead>) {
        if let Some(suspect) = self.suspect {
            let head_fits = head.is_some_and(|head| head.size == size && head.chain == self.chain);
            return self.blame(suspect, head_fits);
        }
        if self.disagreement.is_some() {
            if head.is_some_and(|head| head.size == size && head.chain != self.chain) {
                self.disagreement = None;
                return self.fail(size.saturating_sub(1), Fault::ChainBroken);
            }
            self.broken = self.disagreement.take();
            return;
        }
        if let Some((&known_size, _)) = self.marks.last_key_value() {
            if self.agreed < size {
                self.notes.push(format!(
                    "entries {} to {} agree with each other; nothing complete is left to hold them against",
                    self.agreed,
                    size - 1
                ));
            }
            return self.fail(size, Fault::Missing { known_size });
        }
        match head {
            Some(head) if head.size > size => self.fail(size, Fault::Missing { known_size: head.size }),
            Some(head) if head.size < size => self.fail(head.size, Fault::BeyondHead),
            Some(head) if head.chain != self.chain => self.fail(size.saturating_sub(1), Fault::ChainBroken),
            _ => {}
        }
    }

    /// Compares with the checkpoints of the present size, and is done with them.
    fn hold_against_marks(&mut self) {
        let size = self.frontier.size();
        let Some(marks) = self.marks.remove(&size) else { return };
        let root = self.frontier.root();
        for mark in marks {
            if mark.root != root {
                return self.rewritten(self.agreed, size, size);
            }
            self.checkpoints += 1;
            if mark.trusted {
                self.proven = self.proven.max(Some(size));
            }
        }
        self.agreed = size;
    }

    fn rewritten(&mut self, from: u64, to: u64, checkpoint_size: u64) {
        let up_to = (to > from + 1).then(|| to - 1);
        let fault = Fault::Rewritten { checkpoint_size };
        self.disagreement.get_or_insert(Verdict::Broken { entry: from, up_to, fault });
    }

    fn bad_leaf(&mut self, seq: u64, error: &LeafError) {
        match self.suspect {
            Some(suspect) => self.blame(suspect, false),
            None => self.fail(seq, Fault::NotALeaf { why: error.to_string() }),
        }
    }

    /// The link of entry `suspect` does not fit the entry before. If what follows fits `suspect` as it stands, it
    /// was the one before that changed; otherwise it was `suspect` itself.
    fn blame(&mut self, suspect: u64, what_follows_fits: bool) {
        let the_one_before = what_follows_fits && suspect > self.first;
        match self.disagreement.take() {
            // The checkpoint says that something before `suspect` is bad, and nothing says which.
            Some(disagreement) if !the_one_before => self.broken = Some(disagreement),
            _ => self.fail(if the_one_before { suspect - 1 } else { suspect }, Fault::ChainBroken),
        }
    }

    fn fail(&mut self, entry: u64, fault: Fault) {
        if let Some(disagreement) = self.disagreement.take() {
            self.broken.get_or_insert(disagreement);
        }
        self.broken.get_or_insert(Verdict::Broken { entry, up_to: None, fault });
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
