//! `gatehouse`: every service of Gatehouse, and the commands that administrators run. `gatehouse --help` begins.

mod cli;
mod config;
mod data_folder;
mod docs;
mod process;
mod services;
mod submit;
mod up;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            // One clear message; the chain of causes stands behind it on the same line.
            eprintln!("gatehouse: {error:#}");
            ExitCode::from(2)
        }
    }
}
