//! `gatehouse-bench`: how fast Gatehouse is, each figure held against what this machine can do at all.
//!
//! The services run as processes of their own on throwaway, durable servers; this process is the load. In each run
//! the raw limit is measured right before what is divided by it. To extend: a figure is an entry in `catalogue` and a
//! measurement in one of `suites`; a limit is one in `raw`.

mod bare;
mod catalogue;
mod cli;
mod cluster;
mod counts;
mod figure;
mod http;
mod load;
mod machine;
mod people;
mod processes;
mod progress;
mod raw;
mod report;
mod session;
mod suites;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Args;

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::run(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gatehouse-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
