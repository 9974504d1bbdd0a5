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
    told(error.chain())
}

/// One clear message of an error and its causes. It begins with a sentence, for a person reads it; the reasons of ours, which
/// one looks up, stand at its end.
fn told<'a>(chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>) -> String {
    let (mut told, mut reasons) = (String::new(), Vec::new());
    for cause in chain {
        let words = match cause.downcast_ref::<gatehouse_core::Error>() {
            Some(error) => {
                reasons.push(error.reason());
                error.message().to_owned()
            }
            None => cause.to_string(),
        };
        if told.is_empty() {
            told = words;
        } else if !told.contains(&words) {
            told = format!("{}: {words}", told.trim_end_matches('.'));
        }
    }
    reasons.dedup();
    if reasons.is_empty() { told } else { format!("{told} ({})", reasons.join(", ")) }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use gatehouse_core::Error;

    use super::*;

    #[test]
    fn a_message_begins_with_its_sentence_and_ends_with_the_reason() {
        let refused = || Error::failed_precondition("PORT_IN_USE", "auth: it is in use. Stop it.");
        assert_eq!(message(&refused().into()), "auth: it is in use. Stop it. (PORT_IN_USE)");
        let within = Err::<(), _>(refused()).context("the start failed").unwrap_err();
        assert_eq!(message(&within), "the start failed: auth: it is in use. Stop it. (PORT_IN_USE)");
        let with_cause = refused().caused_by("the cause");
        assert_eq!(message(&with_cause.into()), "auth: it is in use. Stop it: the cause (PORT_IN_USE)");
        let twice = refused().caused_by(Error::unavailable("AWAY", "It is away."));
        assert_eq!(message(&twice.into()), "auth: it is in use. Stop it: It is away. (PORT_IN_USE, AWAY)");
        assert_eq!(message(&anyhow::anyhow!("b").context("a")), "a: b");
    }
}
