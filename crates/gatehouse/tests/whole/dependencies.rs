//! `.ci/check-dependencies`: what could not be checked never looks as if it had been.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::support::folder;

const NO_DATABASE: &str =
    "[ERROR] failed to fetch advisory database https://github.com/RustSec/advisory-db with cli";
const NO_COPY: &str = "[ERROR] failed to get 'FETCH_HEAD' metadata: no such folder";
const SOUND: &str = "advisories ok";
const FOUND: &str = "error[vulnerability]: a bad thing\nadvisories FAILED";

/// The exit status and output of the check, with a `cargo deny` that says and ends so, with a way to the database and without.
fn checked(online: (&str, i32), offline: (&str, i32), is_required: bool) -> (Option<i32>, String) {
    let place = folder();
    let program = place.path().join("tools/bin/cargo-deny");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    let text = format!(
        "#!/usr/bin/env bash\ncase \"$*\" in\n  --version) echo 'cargo-deny 0.20.2' ;;\n  *--offline*advisories) echo {:?}; exit \
         {} ;;\n  *advisories) echo {:?}; exit {} ;;\n  *) echo 'bans ok, licenses ok, sources ok' ;;\nesac\n",
        offline.0, offline.1, online.0, online.1
    );
    fs::write(&program, text.replace("\\n", "\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.ci/check-dependencies"))
        .env("CARGO_TARGET_DIR", place.path())
        .env("GATEHOUSE_REQUIRE_ADVISORIES", if is_required { "1" } else { "" })
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn advisories_that_could_not_be_checked_are_said_to_be() {
    let unused = ("not asked for", 9);
    let (code, told) = checked((SOUND, 0), unused, true);
    assert_eq!((code, told.contains("NOT CHECKED")), (Some(0), false), "{told}");
    let (code, told) = checked((FOUND, 1), unused, false);
    assert_eq!((code, told.contains("a bad thing")), (Some(1), true), "{told}");
    // What else goes wrong is no lack of a way there.
    let (code, told) = checked(("[ERROR] deny.toml is wrong", 1), unused, false);
    assert_eq!((code, told.contains("deny.toml is wrong")), (Some(1), true), "{told}");

    for (is_required, expected) in [(false, 0), (true, 1)] {
        let (code, told) = checked((NO_DATABASE, 1), (NO_COPY, 1), is_required);
        assert_eq!(code, Some(expected), "{told}");
        let last = told.lines().last().unwrap();
        assert!(
            last.starts_with("NOT CHECKED: advisories (failed to fetch advisory database https"),
            "{told}"
        );
        // A copy of an earlier run is as good as it is old.
        let (code, told) = checked((NO_DATABASE, 1), (SOUND, 0), is_required);
        assert_eq!((code, told.contains("NOT CHECKED")), (Some(0), false), "{told}");
        assert!(told.contains("the copy of an earlier run"), "{told}");
        let (code, told) = checked((NO_DATABASE, 1), (FOUND, 1), is_required);
        assert_eq!((code, told.contains("a bad thing")), (Some(1), true), "{told}");
    }
}
