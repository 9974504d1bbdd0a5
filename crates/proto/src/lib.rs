//! The gRPC contracts of Gatehouse, generated from `/proto` (read those files for the documentation of every
//! field), and what our tools read from them.
//!
//! Invariants: nothing here is written by hand but the modules [`access`], [`codec`] and [`descriptors`], and the `Debug`
//! of messages that carry secrets, which print their name only. Published fields keep their numbers for ever.
//!
//! To extend: add the method to its `.proto` with an access option beside it, and the reasons of its own that it refuses
//! for; a new message with a secret in it goes into the list in `build.rs` and into `secret_messages.rs` (the compiler
//! insists on the second).

pub mod access;
pub mod codec;
pub mod descriptors;
pub mod repeatable;
mod secret_messages;

/// Every descriptor with its options, as protox encoded it; for the permission table and, in parts, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! generated {
    ($($(#[$doc:meta])* $module:ident = $package:literal;)*) => {$(
        $(#[$doc])*
        pub mod $module {
            /// Version 1.
            #[expect(
                missing_docs,
                clippy::pedantic,
                clippy::allow_attributes_without_reason,
                clippy::allow_attributes,
                reason = "generated; documented in the .proto file"
            )]
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    )*};
}

generated! {
    /// Who is calling.
    auth = "gatehouse.auth.v1";
    /// Acting upstream for a person.
    token_broker = "gatehouse.token_broker.v1";
    /// Durable jobs.
    job = "gatehouse.job.v1";
    /// Proof of what happened.
    audit = "gatehouse.audit.v1";
}
