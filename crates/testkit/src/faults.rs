//! Faults by plan: a seed settles what fails, when and for how long, and everything is healed in the end.
//!
//! [`Plan::of`] is a pure function of seed and cluster shape, so a failing seed replays; what the seed can't settle is how
//! the processes' own steps fall between the faults. [`Supervisor`] carries a plan out.

mod injection;
mod plan;

pub use injection::{DRAIN_LIMIT, Injected, Supervisor};
pub use plan::{Fault, Plan, Shape, Step};
