//! Bugs for the fault harness to find: proof that it finds what it is for.
//!
//! Exists only with the cargo feature `planted-bugs`, which no crate turns on by itself and no optimised build accepts.
//! Even then nothing is wrong unless `PLANTED_BUG` names one.

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for tests of the fault harness: no optimised build has them");

/// Names the bug that a process has.
pub const VARIABLE: &str = "PLANTED_BUG";

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `refresh`: a refresh token is consumed by a select and then an update, not by one compare-and-set.
    SelectThenUpdate,
    /// `worker`: a worker's write does not check that the worker still holds the job; some writes stand still first.
    UnfencedWrite,
    /// `worker-held-back`, the control of `worker`: some writes stand still, and the fence is there. Nothing is wrong.
    HeldBackWrite,
    /// `audit`: entries are added to the log without the lock of its head.
    BesideTheSequencer,
}

/// Whether this process has it.
#[must_use]
pub fn is(bug: Bug) -> bool {
    let name = match bug {
        Bug::SelectThenUpdate => "refresh",
        Bug::UnfencedWrite => "worker",
        Bug::HeldBackWrite => "worker-held-back",
        Bug::BesideTheSequencer => "audit",
    };
    std::env::var(VARIABLE).is_ok_and(|planted| planted == name)
}
