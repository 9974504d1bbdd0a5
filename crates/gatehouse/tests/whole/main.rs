//! The whole product as its users meet it: the real program in a process of its own, its HTTP, its messages, its
//! pages, its traces. One test program, because each would link the whole again.
#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

mod admin;
mod bad_input;
mod credentials;
mod dependencies;
mod docs;
mod handles;
mod health;
mod mtls;
mod other_tenants;
mod output;
mod processes;
mod replicas;
mod roles;
mod sql;
mod start;
mod submit;
mod support;
mod surface;
mod trace;
mod unsaid;
mod verify;
