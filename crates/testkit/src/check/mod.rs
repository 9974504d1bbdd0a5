//! What clients saw, and whether it can have been. Every check is a pure function over a history, so that each can be
//! shown to find what it is for.

pub mod audit;
pub mod events;
pub mod rate;
pub mod refresh;
pub mod revocation;

pub use audit::{Expected, Logged, check_audit};
pub use events::{Seen, Told, check_events};
pub use rate::{Admitted, Asked, Disturbance, Limit, Said, check_admitted, check_rate};
pub use refresh::{RefreshAnswer, RefreshAttempt, RefreshTimes, Successors, check_refreshes, check_taken};
pub use revocation::{Probe, Revocation, Shown, check_revocation};
