//! Proof of what happened.
//!
//! Owns the logs: what an entry is, how entries are chained, hashed into a tree and signed, and how a stored log
//! is verified.
//!
//! Invariants: [`domain::leaf`] version 1 is frozen; nothing that names a person stands in a leaf; a stored leaf
//! is never written again.
//!
//! To extend: a new fact about events goes into the sealed payload. A new member of the leaf is version 2 of it,
//! beside version 1, which must verify for ever.

pub mod domain;
