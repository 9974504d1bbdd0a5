//! `gatehouse`: every service of Gatehouse, and the commands that administrators run. `gatehouse --help` begins.

mod admin;
mod certs;
mod cli;
mod config;
mod data_folder;
mod docs;
mod healthcheck;
mod output;
mod process;
mod services;
mod submit;
mod up;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

use crate::output::{Unheard, complain};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            if !error.downcast_ref::<Unheard>().is_some_and(Unheard::is_closed) {
                complain!("gatehouse: {}", message(&error));
            }
            ExitCode::from(2)
        }
    }
}

/// One clear message: the error, then of its causes those that say more.
fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match (told.is_empty(), told.contains(&cause)) {
            (true, _) => cause,
            (_, true) => told,
            _ => format!("{told}: {cause}"),
        }
    })
}
