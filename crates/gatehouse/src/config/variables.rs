//! Environment variables that begin with `GATEHOUSE_` and set no key of the configuration. Every other one with that
//! beginning has to name a key, or nothing starts: whoever misspelt a setting hears of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use gatehouse_service::config::{Other, Usage};

/// Each with what a process does that has it, and who reads it.
pub(crate) const OTHERS: &[(&str, Usage, &str)] = &[
    ("GATEHOUSE_ENV", Usage::Read, "every process: `dev`, `staging` or `prod`"),
    ("GATEHOUSE_CONFIG", Usage::Read, "every process: the configuration file"),
    ("GATEHOUSE_DATA", Usage::Read, "`gatehouse up`: the data folder"),
    ("GATEHOUSE_CERTS_EVERY", Usage::LetBe, "`gatehouse certs`: hours between renewals"),
    (
        "GATEHOUSE_URL",
        Usage::LetBe,
        "`gatehouse submit`: the gateway; `docker-compose.yml`: the public address",
    ),
    ("GATEHOUSE_TOKEN", Usage::LetBe, "`gatehouse submit`: the credential"),
    (
        "GATEHOUSE_AUDIT_ORIGIN",
        Usage::Refused("is for docker-compose.yml; did you mean GATEHOUSE_AUDIT__ORIGIN?"),
        COMPOSE,
    ),
    (
        "GATEHOUSE_BIND",
        Usage::Refused(
            "is for docker-compose.yml; did you mean GATEHOUSE_GATEWAY__TLS_ADDRESS or GATEHOUSE_GATEWAY__ADDRESS?",
        ),
        COMPOSE,
    ),
    (
        "GATEHOUSE_HOST",
        Usage::Refused("is for docker-compose.yml; did you mean GATEHOUSE_GATEWAY__PUBLIC_URL?"),
        COMPOSE,
    ),
    (
        "GATEHOUSE_HTTPS",
        Usage::Refused(
            "is for docker-compose.yml; did you mean GATEHOUSE_GATEWAY__TLS_ADDRESS and GATEHOUSE_GATEWAY__TLS_CERTIFICATE_FILE?",
        ),
        COMPOSE,
    ),
    ("GATEHOUSE_IMAGE", Usage::Refused(READ_BY_NONE), COMPOSE),
    (
        "GATEHOUSE_LOG",
        Usage::Refused("is for docker-compose.yml; did you mean GATEHOUSE_TELEMETRY__LOG_FILTER?"),
        COMPOSE,
    ),
    (
        "GATEHOUSE_OTLP_ENDPOINT",
        Usage::Refused("is for docker-compose.yml; did you mean GATEHOUSE_TELEMETRY__OTLP_ENDPOINT?"),
        COMPOSE,
    ),
    (
        "GATEHOUSE_PORT",
        Usage::Refused(
            "is for docker-compose.yml; did you mean GATEHOUSE_GATEWAY__TLS_ADDRESS or GATEHOUSE_GATEWAY__ADDRESS?",
        ),
        COMPOSE,
    ),
    ("GATEHOUSE_PROFILE", Usage::Refused(READ_BY_NONE), COMPOSE),
    ("GATEHOUSE_SECRETS", Usage::Refused(READ_BY_NONE), COMPOSE),
    ("GATEHOUSE_TOUR_IMAGE", Usage::Refused(READ_BY_NONE), COMPOSE),
    ("GATEHOUSE_ALLOW_SKIPS", Usage::LetBe, TESTS),
    ("GATEHOUSE_BENCH", Usage::LetBe, TESTS),
    ("GATEHOUSE_BROKER_KILLS", Usage::LetBe, TESTS),
    ("GATEHOUSE_BROKER_SECONDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_FAULT_PROGRAM", Usage::LetBe, TESTS),
    ("GATEHOUSE_FAULT_SECONDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_FAULT_SEEDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_FAULT_SETTINGS", Usage::LetBe, TESTS),
    ("GATEHOUSE_REQUIRE_ADVISORIES", Usage::LetBe, TESTS),
    ("GATEHOUSE_SEED", Usage::LetBe, TESTS),
    ("GATEHOUSE_SOAK_BROKER_SECONDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_SOAK_PROGRAM", Usage::LetBe, TESTS),
    ("GATEHOUSE_SOAK_ROUNDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_SOAK_SECONDS", Usage::LetBe, TESTS),
    ("GATEHOUSE_SOAK_SEED", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_BAO", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_CRASH_FIRST", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_CRASH_ROOT", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_POSTGRES_URL", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_REDIS_URL", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_SEED", Usage::LetBe, TESTS),
    ("GATEHOUSE_TEST_STRICT", Usage::LetBe, TESTS),
];

const COMPOSE: &str = "`docker-compose.yml` (`.env.example`) and its scripts; no process starts with it";
const READ_BY_NONE: &str = "is for docker-compose.yml; no process reads it: unset it";
const TESTS: &str = "tests and checks (`Makefile`)";

/// As the configuration is read with them.
pub(crate) fn others() -> Vec<Other> {
    OTHERS.iter().map(|&(name, usage, _)| Other { name, usage }).collect()
}

/// Who reads which, as a Markdown table.
pub(crate) fn markdown() -> String {
    let mut text = String::from("| variable | read by |\n| --- | --- |\n");
    for reader in OTHERS.iter().map(|(_, _, reader)| *reader).collect::<BTreeSet<_>>() {
        let names = OTHERS.iter().filter(|(_, _, other)| *other == reader);
        let names: Vec<_> = names.map(|(name, ..)| format!("`{name}`")).collect();
        // Writing to a String can't fail.
        let _ = writeln!(text, "| {} | {reader} |", names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use clap::CommandFactory as _;
    use gatehouse_service::config::fields;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;

    /// Names that tests have for what is not there.
    const SLIPS: [&str; 16] = [
        "GATEHOUSE_AUTH_HOST",
        "GATEHOUSE_SOMETHING_ELSE_ENTIRELY",
        "GATEHOUSE_ISSUR",
        "GATEHOUSE_AUTH_ISUER",
        "GATEHOUSE_AUTH_ISSUER",
        "GATEHOUSE_CORS_ALLOWED_ORIGINS",
        "GATEHOUSE_GATEWAY_CORS_ALLOWED_ORIGINS",
        "GATEHOUSE_ENVIRON",
        "GATEHOUSE_REQUIRE_AUTH",
        "GATEHOUSE_HOW_MANY",
        "GATEHOUSE_FIRST_NAMES",
        "GATEHOUSE_LABEL",
        "GATEHOUSE_NAME",
        "GATEHOUSE_PLAIN",
        "GATEHOUSE_TEST_LABEL",
        "GATEHOUSE_TEST_LABELS",
    ];

    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || ["target", ".git"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }

    /// The variables that stand anywhere, each with one place. Those with `__` set keys and nothing else; what ends with
    /// `_` is a piece of a name; Kubernetes makes the others.
    fn mentioned() -> BTreeMap<String, PathBuf> {
        let (mut all, mut found) = (Vec::new(), BTreeMap::new());
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &mut all);
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        for path in all {
            if path.ends_with("config/variables.rs") || path.ends_with("docs/configuration.md") {
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for name in text.split(|c| !is_part(c)).filter(|word| word.starts_with("GATEHOUSE_")) {
                let is_link = name.contains("_SERVICE_")
                    || name.contains("_PORT_")
                    || name.ends_with("_PORT") && name != "GATEHOUSE_PORT";
                if !name.ends_with('_') && !name.contains("__") && !is_link {
                    found.insert(name.to_owned(), path.clone());
                }
            }
        }
        found
    }

    #[test]
    fn each_variable_that_anything_reads_is_known_and_no_other() {
        let keys: BTreeSet<String> =
            fields::<Config>().iter().flat_map(gatehouse_service::config::Field::variables).collect();
        let others: BTreeSet<&str> = others().into_iter().map(|other| other.name).collect();
        assert_eq!(others.len(), OTHERS.len(), "a name stands twice");
        let mentioned = mentioned();
        let unknown: Vec<_> = mentioned
            .iter()
            .filter(|(name, _)| !keys.contains(*name) && !others.contains(name.as_str()))
            .filter(|(name, _)| !SLIPS.contains(&name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "a process would refuse to start for these: {unknown:#?}");
        for name in others {
            assert!(mentioned.contains_key(name), "nothing reads {name}");
            assert!(!keys.contains(name), "{name} is a key");
        }
    }

    #[test]
    fn each_variable_of_the_command_line_is_known() {
        let mut commands = vec![Cli::command()];
        let mut seen = 0;
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            for name in command.get_arguments().filter_map(|argument| argument.get_env()) {
                let name = name.to_str().unwrap();
                assert!(others().iter().any(|other| other.name == name), "{name}");
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
