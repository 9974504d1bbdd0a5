//! Optimizer.
pub mod domain;
