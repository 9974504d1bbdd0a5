//! `gatehouse submit` against a running Gatehouse.

use std::fs;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Ended, Gatehouse, PATIENCE, answer, ended, folder, program};

/// A search that finds nothing. Its numbers are of more digits than 64 bits hold, or say how exact they are.
const INPUT: &str = r#"{
  "objective": "ln(-1 - x^2)",
  "tolerance": 1.10,
  "variables": [{ "name": "x", "lower": 0, "upper": 18446744073709551617 }] }"#;

/// What it said on standard output, a JSON object a line.
fn said(ended: &Ended) -> Vec<Value> {
    ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{ended:?}")))
        .collect()
}

#[tokio::test]
async fn a_job_that_was_retried_is_followed_to_its_last_end_and_its_input_is_passed_on_as_it_stands() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let input = place.path().join("input.json");
    fs::write(&input, format!("\n{INPUT}\n")).unwrap();
    let submit = || async {
        let mut command = program();
        command.args(["submit", "optimize", input.to_str().unwrap(), "--json", "--idempotency-key", "once"]);
        command
            .args(["--url", gatehouse.ready["gateway"].as_str().unwrap()])
            .env("GATEHOUSE_TOKEN", ada.token());
        ended(&mut command).await
    };
    let first = submit().await;
    let lines = said(&first);
    let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(
        (first.code, &names[..]),
        (Some(1), &["submitted", "queued", "started", "end", "ended"][..]),
        "{first:?}"
    );
    let job = lines[0]["job_id"].as_str().unwrap();

    // The same text is the same request, and nothing else is.
    let by_hand = |input: &str| -> RequestBuilder {
        let request = ada.request(Method::POST, "/v1/jobs").header("idempotency-key", "once");
        request
            .header("content-type", "application/json")
            .body(format!("{{\"kind\":\"optimize\", \"input\": {input} }}"))
    };
    let (status, again) = answer(by_hand(INPUT)).await;
    assert_eq!((status.as_u16(), &again["job_id"]), (202, &json!(job)), "{again}");
    for other in [INPUT.replace("1.10", "1.1"), INPUT.replace("617", "618"), INPUT.replace("617", "616")] {
        let (status, refused) = answer(by_hand(&other)).await;
        assert_eq!(
            (status.as_u16(), &refused["reason"]),
            (409, &json!("IDEMPOTENCY_KEY_REUSED")),
            "{refused}"
        );
    }

    let (status, retried) = ada.post(&format!("/v1/jobs/{job}/retry"), &json!({})).await;
    assert!(status.is_success(), "{retried}");
    let second = tokio::time::timeout(PATIENCE, submit()).await.unwrap();
    let lines = said(&second);
    let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let whole = ["submitted", "queued", "started", "end", "queued", "started", "end", "ended"];
    assert_eq!((second.code, &names[..]), (Some(1), &whole[..]), "{second:?}");
    assert_eq!((&lines[0]["job_id"], &lines[6]["id"]), (&json!(job), &json!(6)), "{second:?}");
    assert!(gatehouse.stop().await.success());
}

#[tokio::test]
async fn an_address_that_is_none_is_called_that() {
    let place = folder();
    let input = place.path().join("input.json");
    fs::write(&input, INPUT).unwrap();
    for url in ["nonsense", "", "127.0.0.1:8080", "localhost:8080", "ftp://127.0.0.1/", "http://", "/v1"] {
        let mut command = program();
        command.args(["submit", "optimize", input.to_str().unwrap()]);
        command.env("GATEHOUSE_URL", url).env("GATEHOUSE_TOKEN", "x");
        let ended = ended(&mut command).await;
        assert_eq!(ended.code, Some(2), "{url:?}: {ended:?}");
        for words in ["--url", "GATEHOUSE_URL", "http://"] {
            assert!(ended.stderr.contains(words), "{url:?}: {ended:?}");
        }
        assert!(!ended.stderr.contains("reached"), "{url:?}: {ended:?}");
    }
}
