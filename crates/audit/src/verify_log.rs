//! `verify-audit-chain`: verification of a log in the database or as exported.

mod entries;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use gatehouse_client::from_status;
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_db::{Db, MigrationState, Tx, read_tx};
use gatehouse_proto::audit::v1::ExportLeavesRequest;
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::audit::v1::{ExportHeader, ExportLeavesResponse, GetConsistencyProofRequest};
use serde::{Deserialize, Serialize};
use tonic::Streaming;

use crate::app::pruned_origin;
use crate::domain::checkpoint::Checkpoint;
use crate::domain::digest::Digest;
use crate::domain::merkle::Frontier;
use crate::domain::names::{LogId, RetentionClass};
use crate::domain::note::VerifierKey;
use crate::domain::proof::{consistency_ranges, hashes};
use crate::domain::pruned::Pruned;
use crate::domain::tiles::{TileId, tiles_of};
use crate::domain::verify::{
    Fault, LogVerifier, Persons, PrunedPrefix, Report, StoredEntry, StoredHead, Verdict,
};
use crate::keys::SubjectKeys;
use crate::store::{checkpoints, events, heads, plain, tiles};

/// Checkpoints read at once.
const PAGE: u32 = 500;

/// How the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ExitCode {
    /// All that the checkpoint covers is as it was.
    Verified = 0,
    /// Something was changed.
    Broken = 1,
    /// Verification could not be done.
    Failed = 2,
    /// The entries agree with each other, but what would show that none is missing at the end (a checkpoint) or that
    /// those missing at the front were pruned (the log's key) was not given.
    NotProven = 3,
}

impl From<&Report> for ExitCode {
    fn from(report: &Report) -> Self {
        match report.verdict {
            // Somebody is named whom nothing shows to be the one.
            Verdict::Verified { .. } if matches!(report.persons, Persons::Compared { unknown: 1.., .. }) => {
                Self::NotProven
            }
            Verdict::Verified { .. } => Self::Verified,
            Verdict::TailNotProven | Verdict::PrefixNotProven { .. } => Self::NotProven,
            Verdict::Broken { .. } => Self::Broken,
        }
    }
}

/// What the verifier knows from elsewhere. The more of it, the less it has to believe.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Checkpoints that were kept elsewhere: the whole content of each file.
    pub checkpoints: Vec<String>,
    /// The log's verifier key, `name+hash+base64`, kept elsewhere; several where it was changed, and any of them counts.
    /// Without one the signatures of `checkpoints` are not looked at: they are believed because they were kept. That a
    /// prefix was pruned is believed with a key only.
    pub keys: Vec<VerifierKey>,
    /// The origins that a checkpoint of the log may have, where the configuration says; empty where it doesn't. Looked at
    /// without `keys` only: a key has a name of its own.
    pub origins: Vec<String>,
    /// Whether the configuration names the log: then the service made it when it started, and it has to be there.
    pub configured: bool,
    /// The keys of those whom the entries are about. Without them persons are not compared.
    pub subjects: Option<SubjectKeys>,
    /// How long entries are to be kept; without it, that they were kept as long is not looked at.
    pub retention: Option<Retention>,
}

/// How long entries are to be kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Days from recording.
    pub days: u32,
    /// The present.
    pub now: Timestamp,
}

impl Trust {
    /// What of this is about `log`: its checkpoints, and the key under its name. All logs of an installation are
    /// signed with one seed, so that the key of one is that of each.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID`, for a checkpoint that names no log at all.
    pub fn about(&self, log: &str) -> Result<Self> {
        let named = self.checkpoints.iter().map(|note| Ok((log_of(note)?, note)));
        let named = named.collect::<Result<Vec<_>>>()?;
        let id = log_id(log)?;
        let keys = self.keys.iter().map(|key| key.of_log(&id).map_err(Error::internal));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let own = named.into_iter().filter(|(name, _)| name == log).map(|(_, note)| note.clone());
        Ok(Self { checkpoints: own.collect(), keys, ..self.clone() })
    }

    /// The checkpoints, of this log and with good signatures where the key is known.
    ///
    /// # Errors
    /// `CHECKPOINT_INVALID`: verification must not go on as if none had been given.
    fn checkpoints(&self, log: &LogId) -> Result<Vec<Checkpoint>> {
        self.checkpoints
            .iter()
            .map(|note| {
                let found = log_of(note)?;
                if found != log.as_str() {
                    return Err(unusable(format!("it is of the log {found}, not of {log}")));
                }
                let checkpoint = if self.keys.is_empty() {
                    Checkpoint::read_unsigned(note).map_err(unusable)?
                } else {
                    Checkpoint::open_by_any(note, &self.keys).map_err(unusable)?.0
                };
                if self.keys.is_empty() && !self.origins.is_empty() && !self.origins.contains(&checkpoint.origin) {
                    return Err(unusable(format!(
                        "it is of {:?}, and audit.origin makes this log {}. It is of another installation or \
                         environment; if audit.origin was changed since, give the verifier key under its old name too",
                        checkpoint.origin,
                        self.origins.join(" or ")
                    )));
                }
                Ok(checkpoint)
            })
            .collect()
    }
}

/// The log that a checkpoint is of: the end of its origin. No signature is looked at.
///
/// # Errors
/// `CHECKPOINT_INVALID`.
pub fn log_of(note: &str) -> Result<String> {
    let origin = Checkpoint::read_unsigned(note).map_err(unusable)?.origin;
    let name = origin.rsplit('/').next().unwrap_or(&origin);
    let log =
        LogId::new(name).map_err(|_| unusable(format!("{origin:?} does not end in the name of a log")))?;
    Ok(log.to_string())
}

fn unusable(why: impl std::fmt::Display) -> Error {
    Error::invalid_argument("CHECKPOINT_INVALID", format!("The checkpoint can't be used: {why}."))
}

/// The names of the logs that any table of a database knows of, whether or not they have a head. A log of which nothing
/// is left is not among them: the configuration or a checkpoint has to name it.
///
/// # Errors
/// `NO_AUDIT_LOG` where the tables were never made, or a database that can't be read.
pub async fn logs_in(db: &Db) -> Result<BTreeSet<String>> {
    let (mut names, mut tables) = (BTreeSet::new(), 0);
    for sql in heads::NAMES {
        match read_tx!(db, "verify.logs", |tx| { heads::names_by(tx, sql).await }) {
            Ok(some) => {
                names.extend(some);
                tables += 1;
            }
            // Whoever writes to the database can drop a table: each log is found broken then.
            Err(error) if error.is_schema_mismatch() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let migrated = || async {
        let status = db.migration_status(&crate::MIGRATIONS).await?;
        Ok::<_, Error>(status.iter().any(|migration| migration.state != MigrationState::Pending))
    };
    if tables == 0 && !migrated().await? {
        return Err(Error::not_found(
            "NO_AUDIT_LOG",
            "There is no audit log here: the audit service's migrations never ran on this database, or all of its \
             tables and the record of them were removed.",
        ));
    }
    Ok(names)
}

/// Verifies the log `name` where it lies: entries, payloads, head, tree, plain rows and stored checkpoints. Only
/// reads. Entries that are added meanwhile are left for the next time.
///
/// # Errors
/// `LOG_NOT_FOUND` for a log that nothing knows of, `CHECKPOINT_INVALID`, or a database that can't be read. What is wrong with the log is no error but
/// the report.
pub async fn verify_database(db: &Db, name: &str, trust: &Trust) -> Result<Report> {
    let error = match examine(db, name, trust).await {
        Err(error) => error,
        examined => return examined,
    };
    let Some(why) = schema_mismatch(&error) else { return Err(error) };
    // The first migration made all that is read here, and no later one changed it: an earlier version has the same.
    Ok(broken(name, Fault::TablesDiffer { why }))
}

/// What the database says, where its tables are not those that the service made.
fn schema_mismatch(error: &Error) -> Option<String> {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let mut databases = causes.filter_map(|cause| cause.downcast_ref::<gatehouse_db::Error>());
    databases.find(|error| error.is_schema_mismatch()).map(ToString::to_string)
}

async fn examine(db: &Db, name: &str, trust: &Trust) -> Result<Report> {
    let log = match log_id(name) {
        Ok(log) => log,
        Err(error) => {
            let names = read_tx!(db, "verify.logs", |tx| { heads::names_anywhere(tx).await })?;
            return if names.contains(name) { Ok(broken(name, Fault::NotALog)) } else { Err(error) };
        }
    };
    let trusted = trust.checkpoints(&log)?;
    let (head, names) = read_tx!(db, "verify.head", |tx| {
        let head = heads::find(tx, &log).await?;
        // Every table is searched only where it matters.
        let names = if head.is_some() { BTreeSet::new() } else { heads::names_anywhere(tx).await? };
        Ok((head, names))
    })?;
    let head = match head {
        Some(Ok(head)) => head,
        Some(Err(_)) => return Ok(broken(name, Fault::HeadUnreadable)),
        None => return headless(log, names.contains(name), &trusted, trust.configured),
    };
    let older: Vec<u64> =
        trusted.iter().map(|trusted| trusted.size).filter(|size| *size < head.first_seq).collect();
    let needed: BTreeSet<TileId> = older
        .iter()
        .flat_map(|size| consistency_ranges(*size, head.first_seq).unwrap_or_default())
        .chain([(0, head.first_seq)])
        .flat_map(|range| tiles_of([range]))
        .collect();
    let tree = read_tx!(db, "verify.prefix", |tx| { tiles::load(tx, &log, &needed).await })?;

    let start = Start {
        first: head.first_seq,
        first_chain: head.first_chain,
        frontier: tree.frontier(head.first_seq).ok(),
        pruned_note: head.pruned_note.as_deref().unwrap_or_default(),
        keys: &trust.keys,
        retention: trust.retention,
    };
    let mut verifier = start.verifier(&log)?;
    for checkpoint in &trusted {
        let proof = consistency_ranges(checkpoint.size, head.first_seq)
            .and_then(|ranges| hashes(&tree, &ranges).ok());
        verifier.trust(checkpoint, proof.as_deref());
    }
    compare_stored_checkpoints(db, &log, &trust.keys, head.size, &mut verifier).await?;
    let findings = entries::verify(db, &log, &head, &mut verifier, trust.subjects.as_ref()).await?;
    let mut report = verifier.finish(Some(StoredHead { size: head.size, chain: head.chain }));
    report.persons = findings.persons();
    report.notes.extend(findings.note());
    if let Some(seq) = trust.subjects.as_ref().and_then(|subjects| findings.taken_out(subjects))
        && !matches!(report.verdict, Verdict::Broken { entry, .. } if entry <= seq)
    {
        report.verdict = Verdict::Broken { entry: seq, up_to: None, fault: Fault::PlainRowDiffers };
    }
    if !matches!(report.verdict, Verdict::Broken { .. })
        && let Some((entry, fault)) = read_tx!(db, "verify.beside", |tx| { beside(tx, &log).await })?
    {
        report.verdict = Verdict::Broken { entry, up_to: None, fault };
    }
    Ok(report)
}

/// What stands in the tables beside the entries that were verified, and is shown or relied on: none of it may be there.
/// All is of one snapshot with the head of now, so that entries which are added or pruned meanwhile are none of it.
/// Last, because an entry that is missing says more than the row that is left of it.
async fn beside(tx: &mut Tx, log: &LogId) -> gatehouse_db::Result<Option<(u64, Fault)>> {
    if heads::count(tx, log).await? > 1 {
        return Ok(Some((0, Fault::HeadRepeated)));
    }
    if let Some((stored_seq, first)) = events::lookup_outside(tx, log).await? {
        let fault = if stored_seq < first { Fault::BeforeFirst { stored_seq } } else { Fault::BeyondHead };
        return Ok(Some((u64::try_from(stored_seq).unwrap_or(0), fault)));
    }
    if let Some(seq) = plain::lookup_without_entry(tx, log).await? {
        return Ok(Some((u64::try_from(seq).unwrap_or(0), Fault::PlainRowWithoutEntry)));
    }
    Ok(events::lookup_repeated(tx, log).await?.map(|entry| (entry, Fault::EventRepeated)))
}

/// The report on a log without a head: none of it is proven to be anything.
fn headless(log: LogId, has_rows: bool, trusted: &[Checkpoint], configured: bool) -> Result<Report> {
    let known_size = trusted.iter().map(|checkpoint| checkpoint.size).max().unwrap_or(0);
    let fault = if has_rows {
        Fault::HeadMissing
    } else if known_size > 0 {
        Fault::Missing { known_size }
    } else if configured || !trusted.is_empty() {
        Fault::LogMissing
    } else {
        let text = format!("There is no log {log} in this database.");
        return Err(Error::not_found("LOG_NOT_FOUND", text));
    };
    let retention = RetentionClass::new(log.as_str()).map_err(Error::internal)?;
    let mut verifier = LogVerifier::new(log, retention, None);
    if fault == Fault::LogMissing {
        verifier.note("a service that has not started since the log was configured has not made it yet");
    }
    verifier.report(0, fault);
    Ok(verifier.finish(None))
}

/// The report on what is no log, or can't be read as one.
fn broken(name: &str, fault: Fault) -> Report {
    Report {
        log: name.to_owned(),
        first: 0,
        size: 0,
        root: Frontier::empty().root(),
        checkpoints: 0,
        verdict: Verdict::Broken { entry: 0, up_to: None, fault },
        persons: Persons::NotCompared,
        notes: Vec::new(),
    }
}

/// Verifies a log from the stream that `ExportLeaves` sends, and asks `audit` for the proof that a checkpoint older than
/// what is kept needs.
///
/// # Errors
/// As [`verify_database`], and those of the calls.
pub async fn verify_export<T>(audit: &mut AuditServiceClient<T>, name: &str, trust: &Trust) -> Result<Report>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let log = log_id(name)?;
    let trusted = trust.checkpoints(&log)?;
    let request = ExportLeavesRequest { log: name.to_owned(), from_index: 0 };
    let mut stream = audit.export_leaves(request).await.map_err(from_status)?.into_inner();
    let Some(header) = next(&mut stream).await?.and_then(|message| message.header) else {
        return Err(Error::internal("the export did not begin with its header"));
    };
    let head = Exported::read(&header)?;
    let start = Start {
        first: head.first,
        first_chain: head.first_chain,
        frontier: head.frontier.clone(),
        pruned_note: &header.pruned_note,
        keys: &trust.keys,
        retention: trust.retention,
    };
    let mut verifier = start.verifier(&log)?;
    for checkpoint in &trusted {
        let proof = if checkpoint.size < head.first {
            let request = GetConsistencyProofRequest {
                log: name.to_owned(),
                from_size: crate::store::stored(checkpoint.size),
                to_size: header.first_index,
            };
            let proof = audit.get_consistency_proof(request).await.map_err(from_status)?.into_inner();
            Some(proof.hashes.iter().filter_map(|hash| Digest::from_slice(hash)).collect::<Vec<_>>())
        } else {
            None
        };
        verifier.trust(checkpoint, proof.as_deref());
    }
    while let Some(message) = next(&mut stream).await? {
        for leaf in message.leaves {
            verifier.push(StoredEntry {
                seq: u64::try_from(leaf.index).unwrap_or(u64::MAX),
                leaf: &leaf.leaf,
                payload_sha256: Digest::from_slice(&leaf.payload_digest),
            });
        }
    }
    Ok(verifier.finish(Some(StoredHead { size: head.size, chain: head.chain })))
}

async fn next(stream: &mut Streaming<ExportLeavesResponse>) -> Result<Option<ExportLeavesResponse>> {
    stream.message().await.map_err(from_status)
}

fn log_id(name: &str) -> Result<LogId> {
    LogId::new(name).map_err(|error| Error::invalid_field("log", error.to_string()))
}

/// The head as the export's first message states it.
struct Exported {
    size: u64,
    chain: Digest,
    first: u64,
    first_chain: Digest,
    frontier: Option<Frontier>,
}

impl Exported {
    fn read(header: &ExportHeader) -> Result<Self> {
        let number = |value: i64| u64::try_from(value).map_err(Error::internal);
        let digest = |bytes: &[u8]| {
            Digest::from_slice(bytes)
                .ok_or_else(|| Error::internal("the export's header holds a digest of another size"))
        };
        let first = number(header.first_index)?;
        let subtrees = header.frontier.iter().map(|hash| digest(hash)).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            size: number(header.size)?,
            chain: digest(&header.chain)?,
            first,
            first_chain: digest(&header.first_chain)?,
            frontier: Frontier::from_parts(first, subtrees),
        })
    }
}

/// Where a log begins, as its store says.
struct Start<'a> {
    first: u64,
    first_chain: Digest,
    frontier: Option<Frontier>,
    pruned_note: &'a str,
    keys: &'a [VerifierKey],
    retention: Option<Retention>,
}

impl Start<'_> {
    /// A verifier from here on, which knows already if the prefix is gone without leave.
    fn verifier(&self, log: &LogId) -> Result<LogVerifier> {
        let retention = RetentionClass::new(log.as_str()).map_err(Error::internal)?;
        let Some(frontier) = self.frontier.clone() else {
            let mut verifier = LogVerifier::new(log.clone(), retention, None);
            let id = TileId { level: 0, index: 0 };
            verifier.report(0, Fault::TileChanged { path: id.path(id.width(self.first)) });
            return Ok(verifier);
        };
        let root = frontier.root();
        if self.first == 0 {
            return Ok(LogVerifier::new(log.clone(), retention, None));
        }
        let statement = if self.keys.is_empty() {
            Pruned::read_unsigned(self.pruned_note)
        } else {
            let keys = self.keys.iter().map(|key| key.renamed(&pruned_origin(key.name())));
            let keys = keys.collect::<Result<Vec<_>, _>>().map_err(Error::internal)?;
            Pruned::open_by_any(self.pruned_note, &keys)
        };
        let stated = statement
            .ok()
            .filter(|Pruned { checkpoint, .. }| checkpoint.size == self.first && checkpoint.root == root);
        let last_recorded = stated.as_ref().and_then(|statement| statement.last_recorded);
        let too_soon = self.retention.zip(last_recorded).filter(|(retention, last_recorded)| {
            let days = Duration::from_secs(u64::from(retention.days) * 86_400);
            *last_recorded > retention.now.minus(days)
        });
        let signed = stated.is_some() && !self.keys.is_empty() && too_soon.is_none();
        let pruned = PrunedPrefix { chain: self.first_chain, frontier, signed };
        let mut verifier = LogVerifier::new(log.clone(), retention, Some(pruned));
        match (stated, last_recorded) {
            (None, _) => verifier.report(0, Fault::PrefixRemoved),
            (Some(_), Some(at)) => {
                verifier.pruned_until(at);
                verifier.note(format!("what was pruned had been recorded until {at}"));
            }
            (Some(_), None) => verifier.note(
                "the statement that entries were pruned is of the older form, which does not say when the last of \
                 them had been recorded",
            ),
        }
        if let Some((retention, _)) = too_soon {
            verifier.note(format!(
                "that is less than {} days ago: unless entries were to be kept for a shorter time then, they were \
                 removed too soon",
                retention.days
            ));
        }
        Ok(verifier)
    }
}

/// Checkpoints that lie beside the log narrow down where it was changed, if the key is known: whoever writes to the
/// database can write others. What is none is told in any case.
async fn compare_stored_checkpoints(
    db: &Db,
    log: &LogId,
    keys: &[VerifierKey],
    size: u64,
    verifier: &mut LogVerifier,
) -> Result<()> {
    let (mut from, mut unreadable) = (0, 0);
    loop {
        let page = read_tx!(db, "verify.checkpoints", |tx| { checkpoints::list(tx, log, from, PAGE).await })?;
        let last = page.iter().rev().find_map(|(size, _)| *size);
        for stored in page {
            let (Some(stored_size), Some(note)) = stored else {
                unreadable += 1;
                continue;
            };
            let checkpoint = match stored_checkpoint(&note, keys, log) {
                Ok(checkpoint) if checkpoint.size == stored_size => checkpoint,
                Ok(Checkpoint { size, .. }) => {
                    verifier.note(format!("the stored checkpoint of size {stored_size} is of size {size}"));
                    continue;
                }
                Err(why) => {
                    verifier.note(format!("the stored checkpoint of size {stored_size} {why}"));
                    continue;
                }
            };
            // One that was signed after the head was read is for the next time.
            let is_later = checkpoint.size > size && {
                let now = read_tx!(db, "verify.head", |tx| { heads::find(tx, log).await })?;
                now.and_then(gatehouse_db::Result::ok).is_some_and(|head| head.size >= checkpoint.size)
            };
            if !keys.is_empty() && !is_later {
                verifier.compare(&checkpoint);
            }
        }
        let Some(last) = last else { break };
        from = last.saturating_add(1);
    }
    if unreadable > 0 {
        verifier
            .note(format!("{unreadable} stored checkpoints can't be read: size or note are of another type"));
    }
    Ok(())
}

/// A checkpoint that lies beside the log; or what is wrong with it.
fn stored_checkpoint(note: &str, keys: &[VerifierKey], log: &LogId) -> Result<Checkpoint, &'static str> {
    if keys.is_empty() {
        let found = log_of(note).ok().filter(|found| found == log.as_str());
        let checkpoint = found.and_then(|_| Checkpoint::read_unsigned(note).ok());
        checkpoint.ok_or("is no checkpoint of this log")
    } else {
        let opened = Checkpoint::open_by_any(note, keys);
        opened.map(|(checkpoint, _)| checkpoint).map_err(|_| "has no good signature")
    }
}
