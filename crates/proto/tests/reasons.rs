//! The reasons that the services' use cases give stand beside the methods of their contracts: callers read them there.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gatehouse_core::ErrorCode;
use gatehouse_proto::access::{PACKAGES, Refusal, access_table};

/// What is found out when a service starts or sweeps, so that no caller is told.
const OF_NO_CALL: [&str; 3] = ["AUDIT_LOG_BEHIND", "AUDIT_LOG_DAMAGED", "CHECKPOINT_KEY_REPLACED"];

/// `Error::not_found("JOB_NOT_FOUND", …)` and the like; what `Error::internal` takes is a cause.
fn reasons_in(source: &str) -> Vec<Refusal> {
    let mut found = Vec::new();
    for rest in source.split("Error::").skip(1) {
        let Some((constructor, arguments)) = rest.split_once('(') else { continue };
        let code = ErrorCode::ALL.into_iter().find(|code| code.as_str().eq_ignore_ascii_case(constructor));
        let code = code.filter(|code| *code != ErrorCode::Internal);
        let reason = arguments.trim_start().strip_prefix('"').and_then(|literal| literal.split('"').next());
        if let Some((code, reason)) = code.zip(reason) {
            found.push((code, reason.to_owned()));
        }
    }
    found
}

fn search(folder: &Path, found: &mut Vec<Refusal>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            found.extend(reasons_in(source.split("#[cfg(test)]").next().unwrap()));
        }
    }
}

#[test]
fn what_a_use_case_refuses_for_stands_beside_a_method() {
    let table = access_table(PACKAGES).unwrap();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut seen, mut missing) = (0, BTreeSet::new());
    for service in ["auth", "token-broker", "job", "audit"] {
        let of_the_service = format!("/gatehouse.{}.", service.replace('-', "_"));
        let methods = table.iter().filter(|(path, _)| path.starts_with(&of_the_service));
        let declared: Vec<Refusal> = methods.flat_map(|(_, method)| method.refusals()).collect();
        let mut given = Vec::new();
        for part in ["app", "domain", "grpc"] {
            search(&crates.join(service).join("src").join(part), &mut given);
        }
        seen += given.len();
        let of_calls = given.into_iter().filter(|(_, reason)| !OF_NO_CALL.contains(&reason.as_str()));
        for (code, reason) in of_calls.filter(|refusal| !declared.contains(refusal)) {
            missing.insert(format!("{service}: {code} {reason}"));
        }
    }
    assert!(missing.is_empty(), "no method of the contracts declares these `refusals`: {missing:?}");
    assert!(seen > 80, "only {seen} reasons were found");
}
