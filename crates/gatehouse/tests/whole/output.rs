//! Nobody hears what a command says: the reader of a pipe went away, the disk is full.

use std::fs::OpenOptions;
use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{Ended, Gatehouse, PATIENCE, answer, folder, program};

/// The end that is written to of a pipe that nobody reads.
pub(crate) fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A disk without room.
pub(crate) fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// Runs `command`, whose standard output is `stdout`, to its end.
pub(crate) async fn ended(command: &mut Command, stdout: Stdio) -> Ended {
    let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
    Ended::from(output.await.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap())
}

#[tokio::test]
async fn what_can_not_be_said_is_no_panic_and_no_success() {
    for command in [["config", "docs"], ["config", "show"]] {
        // Somebody who has read enough goes away by their own will.
        let closed = ended(program().args(command), unread()).await;
        assert_eq!((closed.code, closed.stderr.as_str()), (Some(2), ""), "{command:?}");
        let no_room = ended(program().args(command), full()).await;
        assert!(no_room.refusal().contains("No space left on device"), "{command:?}: {no_room:?}");
    }
}

#[tokio::test]
async fn a_password_that_nobody_heard_is_said_at_the_next_start() {
    let place = folder();
    let data = place.path().join("data");
    for stdout in [unread(), full()] {
        let mut up = program();
        up.args(["up", "--free-ports", "--json", "--data"]).arg(&data);
        let Ended { code, stderr, .. } = ended(&mut up, stdout).await;
        assert_eq!(code, Some(2), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    let gatehouse = Gatehouse::start(place.path()).await;
    let admin = gatehouse.first_admin();
    let credentials = json!({"email": admin["email"], "password": admin["password"]});
    let (status, session) =
        answer(gatehouse.request(Method::POST, "/v1/auth/sign-in").json(&credentials)).await;
    assert_eq!(status, 200, "{session}");
    assert!(gatehouse.stop().await.success());
    // Once it was heard, it stands nowhere any more.
    assert!(!data.join("first-admin.json").exists());
    assert_eq!(*Gatehouse::start(place.path()).await.first_admin(), Value::Null);
}

#[tokio::test]
async fn logs_that_nobody_takes_stop_nothing() {
    let place = folder();
    let mut child = program()
        .args(["up", "--free-ports", "--json", "--data"])
        .arg(place.path().join("data"))
        .stdout(Stdio::piped())
        .stderr(unread())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let gatehouse = Gatehouse::of(child, serde_json::from_str(&ready).unwrap());
    // A request is a line of the log.
    let account = gatehouse.account("ada").await;
    let (status, person) = account.get("/v1/auth/me").await;
    assert_eq!(status, 200, "{person}");
    assert!(gatehouse.stop().await.success());
}
