//! One entry of a log, version 1: FROZEN. The bytes that [`Leaf::encode`] writes are stored, chained and put
//! into the tree; nothing ever writes them again.
//!
//! The encoding is the JSON Canonicalization Scheme (RFC 8785) restricted further: the members of
//! [`Leaf`] all present, in the order of that RFC, absent values as `null`, numbers as integers below 2^53 and
//! strings from alphabets that need no escape. A person can read it, `jq` can, and so can any JCS library.

use std::fmt::Write as _;
use std::str::FromStr;

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{EventId, RequestId, TenantId};
use serde::Deserialize;

use super::digest::Digest;
use super::names::{
    Action, Actor, ClientName, InvalidName, LogId, Outcome, Reason, RetentionClass, Service, Target,
    canonical_uuid,
};

/// The version that this module reads and writes.
pub const VERSION: u64 = 1;
/// No leaf is longer than this, in bytes. Well within the 65,535 of a tlog-tiles entry bundle.
pub const MAX_LEAF_BYTES: usize = 2048;
/// Integers in a leaf lie below this: RFC 8785 carries numbers as IEEE 754 doubles.
pub const MAX_INTEGER: u64 = 1 << 53;

/// One entry: who did what to what, when, with which outcome, and where it stands in the log. Holds nothing
/// that names a person; that is in the sealed payload, whose stored bytes `payload_sha256` is the digest of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What was done.
    pub action: Action,
    /// Who did it.
    pub actor: Actor,
    /// The internal client that acted for the actor (the `act` claim of RFC 8693).
    pub delegate: Option<ClientName>,
    /// The event's id: the idempotency key of its way here.
    pub event_id: EventId,
    /// The log that this entry belongs to.
    pub log: LogId,
    /// When it happened, by the clock of the service that it happened in.
    pub occurred: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// SHA-256 of the stored (sealed) payload.
    pub payload_sha256: Digest,
    /// The link to the entry before: [`Digest::of_chain`] of its bytes, or [`Digest::of_genesis`].
    pub prev_chain: Digest,
    /// Why it was refused or failed.
    pub reason: Option<Reason>,
    /// When the sequencer put it here.
    pub recorded: Timestamp,
    /// The request at the edge that caused it.
    pub request_id: Option<RequestId>,
    /// How long it is kept: that of its log.
    pub retention: RetentionClass,
    /// Its place in the log, from 0.
    pub seq: u64,
    /// The service that it happened in.
    pub service: Service,
    /// What was acted upon.
    pub target: Option<Target>,
    /// The tenant that it concerns; `None` for the platform's own.
    pub tenant: Option<TenantId>,
}

/// Why bytes are not a leaf.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Longer than [`MAX_LEAF_BYTES`].
    #[error("longer than {MAX_LEAF_BYTES} bytes")]
    TooLong,
    /// Not JSON with exactly the members of a leaf.
    #[error("not the JSON of an audit entry: {0}")]
    Json(String),
    /// A later version; this program is too old for it.
    #[error("version {0}, but this program knows only version {VERSION}")]
    Version(u64),
    /// A member has a value that it must not have.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The same content, but not the one spelling of it: spaces, another order, another escape.
    #[error("not in canonical form (RFC 8785)")]
    NotCanonical,
}

/// The members as JSON carries them, in canonical order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    action: String,
    actor: String,
    delegate: Option<String>,
    event_id: String,
    log: String,
    occurred_us: u64,
    outcome: String,
    payload_sha256: String,
    prev_chain: String,
    reason: Option<String>,
    recorded_us: u64,
    request_id: Option<String>,
    retention: String,
    seq: u64,
    service: String,
    target: Option<String>,
    tenant: Option<String>,
    v: u64,
}

impl Leaf {
    /// The one spelling of this entry: the bytes to store and to hash.
    ///
    /// Times before 1970 are written as 0, and integers from 2^53 on as 2^53 - 1, so that whatever is written
    /// can be read.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = String::with_capacity(768);
        out.push('{');
        string(&mut out, "action", self.action.as_str());
        string(&mut out, "actor", &self.actor.to_string());
        optional(&mut out, "delegate", self.delegate.as_ref().map(ToString::to_string));
        string(&mut out, "event_id", &self.event_id.to_string());
        string(&mut out, "log", self.log.as_str());
        integer(&mut out, "occurred_us", micros(self.occurred));
        string(&mut out, "outcome", self.outcome.as_str());
        string(&mut out, "payload_sha256", &self.payload_sha256.to_string());
        string(&mut out, "prev_chain", &self.prev_chain.to_string());
        optional(&mut out, "reason", self.reason.as_ref().map(|reason| reason.as_str().to_owned()));
        integer(&mut out, "recorded_us", micros(self.recorded));
        optional(&mut out, "request_id", self.request_id.map(|id| id.to_string()));
        string(&mut out, "retention", self.retention.as_str());
        integer(&mut out, "seq", self.seq);
        string(&mut out, "service", self.service.as_str());
        optional(&mut out, "target", self.target.as_ref().map(ToString::to_string));
        optional(&mut out, "tenant", self.tenant.map(|id| id.to_string()));
        integer(&mut out, "v", VERSION);
        out.pop();
        out.push('}');
        out.into_bytes()
    }

    /// Reads what [`Leaf::encode`] wrote, and nothing else: `parse(bytes)?.encode() == bytes` always holds.
    pub fn parse(bytes: &[u8]) -> Result<Self, LeafError> {
        if bytes.len() > MAX_LEAF_BYTES {
            return Err(LeafError::TooLong);
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| LeafError::Json(error.to_string()))?;
        if wire.v != VERSION {
            return Err(LeafError::Version(wire.v));
        }
        let leaf = Self {
            action: Action::new(wire.action)?,
            actor: wire.actor.parse()?,
            delegate: wire.delegate.map(ClientName::new).transpose()?,
            event_id: EventId::from_uuid(canonical_uuid("the event id", &wire.event_id)?),
            log: LogId::new(wire.log)?,
            occurred: timestamp(wire.occurred_us)?,
            outcome: Outcome::from_str(&wire.outcome)?,
            payload_sha256: digest("the payload's digest", &wire.payload_sha256)?,
            prev_chain: digest("the chain's link", &wire.prev_chain)?,
            reason: wire.reason.map(Reason::new).transpose()?,
            recorded: timestamp(wire.recorded_us)?,
            request_id: wire
                .request_id
                .map(|text| canonical_uuid("the request id", &text))
                .transpose()?
                .map(RequestId::from_uuid),
            retention: RetentionClass::new(wire.retention)?,
            seq: wire.seq,
            service: Service::new(wire.service)?,
            target: wire.target.as_deref().map(str::parse).transpose()?,
            tenant: wire
                .tenant
                .map(|text| canonical_uuid("the tenant", &text))
                .transpose()?
                .map(TenantId::from_uuid),
        };
        // JSON has many spellings of one value; the log has one. Whatever differs from ours is refused here.
        if leaf.encode() == bytes { Ok(leaf) } else { Err(LeafError::NotCanonical) }
    }
}

fn string(out: &mut String, name: &str, value: &str) {
    debug_assert!(value.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'"' && c != b'\\'));
    let _ = write!(out, "\"{name}\":\"{value}\",");
}

fn optional(out: &mut String, name: &str, value: Option<String>) {
    match value {
        Some(value) => string(out, name, &value),
        None => {
            let _ = write!(out, "\"{name}\":null,");
        }
    }
}

fn integer(out: &mut String, name: &str, value: u64) {
    let _ = write!(out, "\"{name}\":{},", value.min(MAX_INTEGER - 1));
}

fn micros(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(0)
}

fn timestamp(micros: u64) -> Result<Timestamp, InvalidName> {
    i64::try_from(micros)
        .map(Timestamp::from_micros)
        .map_err(|_| InvalidName { what: "a time", expected: "microseconds below 2^53" })
}

fn digest(what: &'static str, text: &str) -> Result<Digest, InvalidName> {
    Digest::from_hex(text).ok_or(InvalidName { what, expected: "64 lower-case hexadecimal digits" })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// The vector of docs/audit-log.md. If this test must change, the format did: then it is version 2.
    fn vector() -> Leaf {
        let log = LogId::new("standard").expect("valid");
        let uuid = |last: u128| Uuid::from_u128(0x0190_b5c2_7f3e_7a52_9d2c_0b1d_7cbb_0000 + last);
        Leaf {
            action: Action::new("auth.sessions.create").expect("valid"),
            actor: "person:00112233445566778899aabbccddeeff".parse().expect("valid"),
            delegate: None,
            event_id: EventId::from_uuid(uuid(1)),
            prev_chain: Digest::of_genesis(&log),
            log,
            occurred: Timestamp::from_micros(1_790_000_000_000_001),
            outcome: Outcome::Denied,
            payload_sha256: Digest::of_payload(b""),
            reason: Some(Reason::new("INVALID_PASSWORD").expect("valid")),
            recorded: Timestamp::from_micros(1_790_000_000_250_000),
            request_id: Some(RequestId::from_uuid(uuid(2))),
            retention: RetentionClass::new("standard").expect("valid"),
            seq: 0,
            service: Service::new("auth").expect("valid"),
            target: None,
            tenant: Some(TenantId::from_uuid(uuid(3))),
        }
    }

    const VECTOR: &str = concat!(
        r#"{"action":"auth.sessions.create","actor":"person:00112233445566778899aabbccddeeff","#,
        r#""delegate":null,"event_id":"0190b5c2-7f3e-7a52-9d2c-0b1d7cbb0001","log":"standard","#,
        r#""occurred_us":1790000000000001,"outcome":"denied","#,
        r#""payload_sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","#,
        r#""prev_chain":"GENESIS","reason":"INVALID_PASSWORD","recorded_us":1790000000250000,"#,
        r#""request_id":"0190b5c2-7f3e-7a52-9d2c-0b1d7cbb0002","retention":"standard","seq":0,"service":"auth","#,
        r#""target":null,"tenant":"0190b5c2-7f3e-7a52-9d2c-0b1d7cbb0003","v":1}"#,
    );

    #[test]
    fn version_1_is_frozen() {
        let genesis = "e22e86ca2a1b8f8008772df68295c7b6ecac6d0a13dbe0d711f79651ea40ddbb";
        let expected = VECTOR.replace("GENESIS", genesis);
        let bytes = vector().encode();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        assert_eq!(Leaf::parse(&bytes), Ok(vector()));
        assert_eq!(
            Digest::of_chain(&bytes).to_string(),
            "6d00ac40111f6e8815dde30c1638e9b76db1c5c379362911103418828006bea1"
        );
        assert_eq!(
            super::super::merkle::leaf_hash(&bytes).to_string(),
            "df6ab1fe282c005e4906902efacd7aaea8944d87730a58b151953d171c5518d5"
        );
        // RFC 8785: what a JSON library with sorted members and no spaces writes is the same.
        let value: serde_json::Value = serde_json::from_slice(&bytes).expect("it is JSON");
        assert_eq!(serde_json::to_vec(&value).expect("it serialises"), bytes);
    }

    #[test]
    fn every_other_spelling_is_refused() {
        let text = String::from_utf8(vector().encode()).expect("ASCII");
        for (from, to) in [
            ("{\"action\"", "{ \"action\""),
            ("\"seq\":0", "\"seq\":-0"),
            ("\"seq\":0", "\"seq\":0.0"),
            ("\"seq\":0", "\"seq\":1e0"),
            ("\"v\":1", "\"v\":2"),
            ("\"v\":1}", "\"v\":1}\n"),
            ("\"v\":1}", "\"v\":1,\"w\":1}"),
            ("\"v\":1}", "\"v\":1,\"v\":1}"),
            ("\"target\":null,", ""),
            ("\"target\":null,", "\"target\":\"person:ada\","),
            ("denied", "\\u0064enied"),
            ("denied", "maybe"),
            ("0190b5c2-7f3e-7a52-9d2c-0b1d7cbb0001", "0190B5C2-7f3e-7a52-9d2c-0b1d7cbb0001"),
            ("1790000000000001", "9007199254740992"),
            ("1790000000000001", "99999999999999999999"),
        ] {
            let wrong = text.replacen(from, to, 1);
            assert_ne!(wrong, text, "{from} is not in the vector");
            assert!(Leaf::parse(wrong.as_bytes()).is_err(), "accepted: {wrong}");
        }
        assert_eq!(Leaf::parse(&[b' '; MAX_LEAF_BYTES + 1]), Err(LeafError::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_encodes_to_the_same_bytes(place in 0_usize..900, byte: u8) {
            let mut bytes = vector().encode();
            let place = place % bytes.len();
            bytes[place] = byte;
            if let Ok(leaf) = Leaf::parse(&bytes) {
                proptest::prop_assert_eq!(leaf.encode(), bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            proptest::prop_assert!(Leaf::parse(&bytes).is_err());
        }
    }
}
