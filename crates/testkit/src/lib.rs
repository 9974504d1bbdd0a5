//! What tests run against: throwaway real servers, fresh databases, and waiting without sleeping. Dev-only.
//!
//! Invariants: no server and no file outlives the process that started it, however that process ends; tests that
//! share a server never meet.

pub mod postgres;
pub mod test_db;
pub mod wait;

pub use postgres::Postgres;
pub use test_db::TestDb;
pub use wait::eventually;
