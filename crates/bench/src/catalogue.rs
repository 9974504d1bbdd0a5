//! Every figure: the limits of the machine first, then what is held against them.

use crate::figure::Better::{Higher, Lower};
use crate::figure::{Better, Meta};

const fn raw(key: &'static str, name: &'static str, unit: &'static str, meaning: &'static str) -> Meta {
    Meta { key, name, unit, better: Higher, limit: None, meaning }
}

const fn held(
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    better: Better,
    limit: &'static str,
    meaning: &'static str,
) -> Meta {
    Meta { key, name, unit, better, limit: Some(limit), meaning }
}

/// In the order of the table.
pub(crate) const FIGURES: &[Meta] = &[
    raw(
        "raw.argon2",
        "Argon2id 19 MiB, t=2, p=1",
        "hashes/s",
        "On as many threads as the auth service has permits: all cores but one, at least one.",
    ),
    raw(
        "raw.sha256",
        "SHA-256 of 512 bytes, all cores",
        "hashes/s",
        "What proves a log costs at least: payload digest, chain and leaf are one hash each, and the tree 2 or 3.",
    ),
    raw(
        "raw.ed25519",
        "Ed25519 verification, one core",
        "checks/s",
        "What checking a token's signature costs.",
    ),
    raw("raw.ed25519-sign", "Ed25519 signature, one core", "signatures/s", "What issuing a token costs."),
    raw(
        "raw.fsync",
        "append 8 KiB and fdatasync, one file",
        "syncs/s",
        "What the disk allows to one writer that waits: without group commit, no commit is faster.",
    ),
    raw(
        "raw.pg-commit-1",
        "PostgreSQL, one row a commit, 1 connection",
        "commits/s",
        "One writer that waits for its commit each time.",
    ),
    raw(
        "raw.pg-commit",
        "PostgreSQL, one row a commit, 10 connections",
        "commits/s",
        "As many connections as a service has; PostgreSQL syncs for several at once.",
    ),
    raw(
        "raw.pg-batch",
        "PostgreSQL, 500 rows a commit, 1 connection",
        "rows/s",
        "The same rows when nobody waits for each.",
    ),
    raw(
        "raw.sqlite-commit",
        "SQLite (WAL, synchronous FULL), one row a commit",
        "commits/s",
        "SQLite has one writer, and nothing syncs for several at once.",
    ),
    raw(
        "raw.redis-script",
        "Redis, an empty script, 64 callers on one connection",
        "scripts/s",
        "Round trip, EVALSHA and nothing in it.",
    ),
    raw(
        "raw.http",
        "bare actix-web, fixed answer",
        "requests/s",
        "Also what the load generator can ask for.",
    ),
    raw(
        "raw.rpc",
        "empty RPC: bare tonic server, 64 callers",
        "calls/s",
        "One hop without anything behind it.",
    ),
    raw(
        "raw.proxy",
        "bare actix-web to tonic proxy",
        "requests/s",
        "Both hops of a request through the gateway, and nothing else: no authentication, no limits, no telemetry.",
    ),
    raw(
        "raw.sse",
        "bare actix-web to tonic event streams",
        "events/s",
        "Each stream writes as fast as it is read: no log, no job, no cursor.",
    ),
    Meta {
        key: "raw.sse-memory-edge",
        name: "bare proxy, memory of an idle stream",
        unit: "KiB",
        better: Lower,
        limit: None,
        meaning: "Proportional set size: one HTTP/1.1 connection and one HTTP/2 stream.",
    },
    Meta {
        key: "raw.sse-memory-source",
        name: "bare tonic server, memory of an idle stream",
        unit: "KiB",
        better: Lower,
        limit: None,
        meaning: "Proportional set size: one HTTP/2 stream.",
    },
    held(
        "auth.refresh",
        "refreshes",
        "refreshes/s",
        Higher,
        "raw.pg-commit",
        "One rotation is one durable transaction. 1 would be: as cheap as inserting one row.",
    ),
    held(
        "auth.sign-in",
        "sign-ins",
        "sign-ins/s",
        Higher,
        "raw.argon2",
        "One sign-in is one hash. 1 would be: nothing but the hash; the rest is session, audit event and commit, which run beside the next hash.",
    ),
    held(
        "auth.verify",
        "token verifications, one core",
        "checks/s",
        Higher,
        "raw.ed25519",
        "What each service does at its door. 1 would be: nothing but the signature; the rest is parsing twice, claims, revocations.",
    ),
    held(
        "auth.exchange",
        "token exchanges",
        "exchanges/s",
        Higher,
        "raw.rpc",
        "An RPC with two verified tokens (the caller's and the subject's) and one that is signed; no database.",
    ),
    held(
        "gateway.pipeline",
        "pipeline requests",
        "requests/s",
        Higher,
        "raw.proxy",
        "GET /v1/upstreams with an access token: rate limits in Redis, the exchange remembered by the gateway, verification at the service, telemetry. 1 would be: the pipeline costs nothing.",
    ),
    held(
        "gateway.pipeline-cpu",
        "pipeline, gateway's processor time a request",
        "µs",
        Lower,
        "raw.proxy-cpu",
        "Times that of the bare proxy.",
    ),
    Meta {
        key: "raw.proxy-cpu",
        name: "bare proxy, its processor time a request",
        unit: "µs",
        better: Lower,
        limit: None,
        meaning: "From /proc, user and system.",
    },
    held(
        "ratelimit.redis",
        "limiter decisions, six limits in Redis",
        "decisions/s",
        Higher,
        "raw.redis-script",
        "One script call that reads and writes six keys. 1 would be: as cheap as an empty script.",
    ),
    held(
        "ratelimit.leased",
        "limiter decisions, six limits, leased",
        "decisions/s",
        Higher,
        "raw.redis-script",
        "With prepaid leases most decisions ask nobody: above 1.",
    ),
    held(
        "broker.token",
        "broker tokens, cached",
        "tokens/s",
        Higher,
        "raw.pg-commit",
        "Each issue opens a sealed token and is audited, which is a durable transaction. 1 would be: as cheap as inserting one row.",
    ),
    held(
        "broker.rotation",
        "broker tokens, each with a refresh at the provider",
        "tokens/s",
        Higher,
        "raw.fsync",
        "Intent, escrow, secrets backend (write, rename and sync of a file) and compare-and-set are durable one after the other: several syncs that wait for each other, for each of 16 people at once.",
    ),
    held(
        "job.submit-to-finish",
        "jobs end to end",
        "jobs/s",
        Higher,
        "raw.pg-commit",
        "Submitted, followed by its events, leased, done by an empty handler and finished; counted when its owner has read the end. Three durable steps: at least one commit that nobody else shares, and parts of two batched ones.",
    ),
    held(
        "job.sse",
        "SSE deliveries",
        "events/s",
        Higher,
        "raw.sse",
        "One job's events to all streams, through log, job service and gateway. 1 would be: log, cursors and queues cost nothing.",
    ),
    held(
        "job.sse-memory-gateway",
        "gateway, memory of an idle SSE stream",
        "KiB",
        Lower,
        "raw.sse-memory-edge",
        "Times that of the bare proxy.",
    ),
    held(
        "job.sse-memory-job",
        "job service, memory of an idle SSE stream",
        "KiB",
        Lower,
        "raw.sse-memory-source",
        "Times that of the bare server.",
    ),
    held(
        "audit.append",
        "audit appends, one event a call, 64 callers",
        "events/s",
        Higher,
        "raw.pg-commit",
        "Group commit: above 1 would be better than one commit for each.",
    ),
    held(
        "audit.append-batch",
        "audit appends, 200 events a call, 4 callers",
        "events/s",
        Higher,
        "raw.pg-batch",
        "As the outbox relays. Two rows an event (leaf and readable), tree tiles, and three hashes; 1 would be: as cheap as one row of a bulk insert.",
    ),
    held(
        "audit.verify",
        "events verified by verify-audit-chain",
        "events/s",
        Higher,
        "raw.sha256",
        "Read from PostgreSQL, parsed, hashed five or six times, held against the readable rows and tiles. 0.2 would be: nothing but hashes, on all cores.",
    ),
    held(
        "auth.refresh@sqlite",
        "embedded: refreshes",
        "refreshes/s",
        Higher,
        "raw.sqlite-commit",
        "As above, on SQLite in one process.",
    ),
    held(
        "gateway.pipeline@sqlite",
        "embedded: pipeline requests",
        "requests/s",
        Higher,
        "raw.proxy",
        "All in one process; rate limits in memory.",
    ),
    held(
        "broker.token@sqlite",
        "embedded: broker tokens, cached",
        "tokens/s",
        Higher,
        "raw.sqlite-commit",
        "As above.",
    ),
    held(
        "job.submit-to-finish@sqlite",
        "embedded: jobs end to end",
        "jobs/s",
        Higher,
        "raw.sqlite-commit",
        "As above.",
    ),
    held(
        "audit.append@sqlite",
        "embedded: audit appends, one event a call, 64 callers",
        "events/s",
        Higher,
        "raw.sqlite-commit",
        "Group commit, on a database that has none: above 1.",
    ),
];

/// The figure of `key`.
pub(crate) fn find(key: &str) -> Option<&'static Meta> {
    FIGURES.iter().find(|meta| meta.key == key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_are_unique_and_limits_exist() {
        let keys: BTreeSet<_> = FIGURES.iter().map(|meta| meta.key).collect();
        assert_eq!(keys.len(), FIGURES.len());
        for meta in FIGURES {
            assert!(meta.limit.is_none_or(|limit| find(limit).is_some()), "{}", meta.key);
            assert!(meta.limit.is_some() || meta.key.contains("raw."));
        }
    }
}
