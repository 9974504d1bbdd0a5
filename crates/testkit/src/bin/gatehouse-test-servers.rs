//! `gatehouse-test-servers -- COMMAND…`: one PostgreSQL and one Redis for a whole test run.
//!
//! Starts both, names them to the command in the environment, and ends them when the command ends. Its exit status
//! is the command's (128 + n after signal n). SIGINT and SIGTERM go to the command. Even after `kill -9` nothing
//! stays: each server watches this process.

use std::io::{self, Error};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;

use gatehouse_testkit::{Postgres, postgres, redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("gatehouse-test-servers: {error}");
            ExitCode::from(125)
        }
    }
}

async fn run() -> io::Result<u8> {
    // `cargo run … -- COMMAND` swallows the dashes, so they may be missing.
    let mut words = std::env::args_os().skip(1).peekable();
    words.next_if(|word| word == "--");
    let program =
        words.next().ok_or_else(|| Error::other("usage: gatehouse-test-servers -- COMMAND [ARGUMENT…]"))?;
    // Before anything is started: from here on a signal ends this process in order.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let servers =
        tokio::task::spawn_blocking(|| Ok::<_, Error>((Postgres::start()?, redis::Redis::start()?)));
    let (postgres, redis) = tokio::select! {
        started = servers => started.map_err(Error::other)??,
        _ = interrupt.recv() => return Ok(130),
        _ = terminate.recv() => return Ok(143),
    };
    let mut child = Command::new(program)
        .args(words)
        .env(postgres::URL_VARIABLE, postgres.url())
        .env(redis::URL_VARIABLE, redis.url())
        // The gateway then answers INTERNAL where a route refuses for a reason that its documentation does not list.
        .env("GATEHOUSE_TEST_STRICT", "1")
        .spawn()?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = interrupt.recv() => pass_on(&child, Signal::SIGINT),
            _ = terminate.recv() => pass_on(&child, Signal::SIGTERM),
        }
    };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(1))
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may just have ended, and then there is nothing to tell.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
