//! The search itself: types and rules, no I/O.

pub mod grammar;
pub mod objective;
pub mod problem;
pub mod search;

pub use objective::Objective;
pub use problem::{Iterations, Problem, Variable};
pub use search::{Best, Checkpoint, Outcome, Progress, Search, Stop};
