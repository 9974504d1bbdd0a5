//! Where the database is and how hard it may be used.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use gatehouse_core::{Environment, Secret, file_problem};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// A service's database.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`, or `sqlite:<path of a file>`. Outside dev,
    /// PostgreSQL on another host needs sslmode `verify-full` (recommended), `verify-ca` or `require`. Of libpq's other
    /// parameters those that the driver knows are taken; with any other the start is refused, and names the known. Required.
    pub url: DatabaseUrl,
    /// PEM file with the authorities that vouch for PostgreSQL under `verify-full` and `verify-ca`, besides the public
    /// ones; read at each connection. It wins over `sslrootcert` in `url`. Default: none.
    pub ca_file: Option<PathBuf>,
    /// File that holds the password of the PostgreSQL user, read at start; it wins over one in `url`. Default: none.
    pub password_file: Option<PathBuf>,
    /// PostgreSQL schema that holds the service's tables: lower-case letters, digits and `_`, at most 63 characters.
    /// Default: `gatehouse_<service>`. SQLite ignores it.
    pub schema: Option<String>,
    /// Most connections of one process, 1 to 1000. SQLite opens one for writing and at most 4 of these for reading.
    pub max_connections: u32,
    /// How long a transaction waits for a connection (and on SQLite for another process's write) before it fails,
    /// in milliseconds, 1 to 600000.
    pub acquire_timeout_ms: u64,
    /// How long PostgreSQL may work on one statement, waiting for locks included, in milliseconds, 1 to 600000.
    /// Migrations are exempt. SQLite ignores it.
    pub statement_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: DatabaseUrl::default(),
            ca_file: None,
            password_file: None,
            schema: None,
            max_connections: 10,
            acquire_timeout_ms: 5_000,
            statement_timeout_ms: 10_000,
        }
    }
}

impl Config {
    /// The problems that forbid a start, each with what to do; empty when there are none. Names in it are relative
    /// to this section.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        match self.url.target() {
            Err(problem) => problems.push(problem),
            Ok(Target::Sqlite(_)) => {
                if self.password_file.is_some() {
                    problems.push("password_file: SQLite has no password; remove it".into());
                }
                if self.ca_file.is_some() {
                    problems.push("ca_file: SQLite has no connection to encrypt; remove it".into());
                }
            }
            Ok(Target::Postgres(options)) => {
                if !environment.is_dev() && !is_encrypted(&options) && !is_local(&options) {
                    problems.push(format!(
                        "url: in {environment} the connection to PostgreSQL must be encrypted; add ?sslmode=verify-full and \
                         name its authority in ca_file (or add at least ?sslmode=require)"
                    ));
                }
                let verifies = matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
                match &self.ca_file {
                    Some(_) if !verifies => problems.push(
                        "ca_file: counts with sslmode=verify-full (or verify-ca) only; add that to url"
                            .into(),
                    ),
                    file => problems.extend(
                        file.as_deref().and_then(file_problem).map(|problem| format!("ca_file: {problem}")),
                    ),
                }
                if let Some(problem) = self.password_file.as_deref().and_then(file_problem) {
                    problems.push(format!("password_file: {problem}"));
                }
            }
        }
        if let Some(schema) = &self.schema
            && !is_schema_name(schema)
        {
            problems.push(
                "schema: is not a schema name; use lower-case letters, digits and _, at most 63, a letter first".into(),
            );
        }
        if !(1..=1000).contains(&self.max_connections) {
            problems.push("max_connections: must be from 1 to 1000".into());
        }
        for (name, value) in [
            ("acquire_timeout_ms", self.acquire_timeout_ms),
            ("statement_timeout_ms", self.statement_timeout_ms),
        ] {
            if !(1..=600_000).contains(&value) {
                problems.push(format!("{name}: must be from 1 to 600000"));
            }
        }
        problems
    }

    pub(crate) fn acquire_timeout(&self) -> Duration {
        Duration::from_millis(self.acquire_timeout_ms)
    }

    /// The schema for `service` (`token-broker` gives `gatehouse_token_broker`).
    pub(crate) fn schema_for(&self, service: &str) -> String {
        self.schema.clone().unwrap_or_else(|| format!("gatehouse_{}", service.replace('-', "_")))
    }
}

/// Whether the driver refuses to go on in the clear.
pub(crate) fn is_encrypted(options: &PgConnectOptions) -> bool {
    matches!(options.get_ssl_mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull)
}

/// Whether the connection stays on this host: a Unix socket, or loopback.
pub(crate) fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Only names that need no quoting anywhere, so that none can be more than a name.
pub(crate) fn is_schema_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// What may stand in the query of the address of a PostgreSQL, by the names that the driver knows; none holds a secret.
const PLAIN_PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "application_name",
];

/// The same where the value may be a secret, or have one in it.
const SECRET_PARAMETERS: &[&str] = &["password", "sslkey", "ssl-key", "options"];

fn is_parameter(key: &str) -> bool {
    PLAIN_PARAMETERS.contains(&key) || SECRET_PARAMETERS.contains(&key) || key.starts_with("options[")
}

/// Whether the address of a store was cut at a sign of the password that should have been encoded: then what is taken for the
/// host is a part of the password.
#[must_use]
pub fn has_sign_behind_host(url: &Url) -> bool {
    let behind = [Some(url.path()), url.query(), url.fragment()];
    behind.into_iter().flatten().any(|part| part.contains('@'))
}

/// What a [`DatabaseUrl`] leads to.
pub(crate) enum Target {
    Postgres(Box<PgConnectOptions>),
    Sqlite(PathBuf),
}

/// The address of a database. It may hold a password, so it prints and serializes with that replaced by `***`.
#[derive(Clone)]
pub struct DatabaseUrl(Secret<String>);

impl DatabaseUrl {
    /// The address that `text` is; whether it is a sound one, [`Config::validate`] says.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Secret::new(text.into()))
    }

    /// The SQLite file `path`.
    #[must_use]
    pub fn sqlite(path: &Path) -> Self {
        Self::new(format!("sqlite:{}", path.display()))
    }

    /// The SQLite file, where it is one.
    #[must_use]
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        match self.target() {
            Ok(Target::Sqlite(path)) => Some(path),
            _ => None,
        }
    }

    pub(crate) fn target(&self) -> Result<Target, String> {
        let text = self.0.expose();
        if text.is_empty() {
            return Err(
                "url: is not set; set postgres://user@host/database or sqlite:<path of a file>".into()
            );
        }
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') || path.contains('?') || path.contains('\0') {
                return Err(
                    "url: after sqlite: stands the path of a file, without options; it can't live in memory"
                        .into(),
                );
            }
            return Ok(Target::Sqlite(PathBuf::from(path)));
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let url = Url::parse(text).ok();
            if url.as_ref().is_some_and(has_sign_behind_host) {
                return Err(
                    "url: has an @ behind the host; in a user name, password or database name write / as %2F, ? as %3F, # as \
                     %23 and @ as %40"
                        .to_owned(),
                );
            }
            // The driver would log one that it does not know, with its value.
            if url.is_some_and(|url| url.query_pairs().any(|(key, _)| !is_parameter(&key))) {
                return Err(format!(
                    "url: has a parameter that is not known here; known are {}",
                    [PLAIN_PARAMETERS, SECRET_PARAMETERS].concat().join(", ")
                ));
            }
            return PgConnectOptions::from_str(text)
                .map(|options| Target::Postgres(Box::new(options)))
                // The driver's words could repeat the password.
                .map_err(|_| {
                    "url: is not a PostgreSQL address; write postgres://user@host:5432/database".to_owned()
                });
        }
        Err("url: must start with postgres:// or sqlite:".into())
    }
}

/// No address: `validate` says that one is needed.
impl Default for DatabaseUrl {
    fn default() -> Self {
        Self::new("")
    }
}

impl From<&str> for DatabaseUrl {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.expose();
        if text.is_empty() || text.starts_with("sqlite:") {
            return f.write_str(text);
        }
        let Some(mut url) = Url::parse(text).ok().filter(|url| !has_sign_behind_host(url)) else {
            return f.write_str("***");
        };
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return f.write_str("***");
        }
        // libpq also takes the password as a parameter, and sslkey the key itself; of others nobody knows.
        if url.query_pairs().any(|(key, _)| !PLAIN_PARAMETERS.contains(&&*key)) {
            url.set_query(None);
        }
        url.set_fragment(None);
        f.write_str(url.as_str())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl JsonSchema for DatabaseUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DatabaseUrl".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(url: &str, environment: Environment) -> Vec<String> {
        Config { url: url.into(), ..Config::default() }.validate(environment)
    }

    #[test]
    fn postgres_must_be_encrypted_outside_dev() {
        for mode in ["require", "verify-ca", "verify-full"] {
            assert!(
                problems(&format!("postgres://u@h/d?sslmode={mode}"), Environment::Prod).is_empty(),
                "{mode}"
            );
        }
        for mode in ["disable", "allow", "prefer"] {
            let url = format!("postgres://u@h/d?sslmode={mode}");
            assert!(problems(&url, Environment::Dev).is_empty());
            for environment in [Environment::Staging, Environment::Prod] {
                assert!(problems(&url, environment)[0].contains("sslmode"), "{mode} in {environment}");
            }
        }
        assert_eq!(problems("postgres://u@h/d", Environment::Prod).len(), 1);
    }

    #[test]
    fn what_stays_on_this_host_may_be_clear() {
        for local in [
            "postgres://u@127.0.0.1/d",
            "postgres://u@localhost/d?sslmode=disable",
            "postgres://u@[::1]/d",
            "postgres://u@%2Frun%2Fpostgresql/d",
            "postgres:///d?host=/run/postgresql",
        ] {
            assert_eq!(problems(local, Environment::Prod), [""; 0], "{local}");
        }
        for remote in ["postgres://u@127.0.0.1.example/d", "postgres://u@10.0.0.1/d", "postgres:///d?host=db"]
        {
            assert_eq!(problems(remote, Environment::Prod).len(), 1, "{remote}");
        }
    }

    #[test]
    fn an_authority_is_named_where_it_counts() {
        let problems = |url: &str, file: &str| {
            let config = Config { url: url.into(), ca_file: Some(file.into()), ..Config::default() };
            config.validate(Environment::Prod).join("; ")
        };
        assert!(problems("postgres://u@h/d?sslmode=require", "/dev/null").contains("verify-full"));
        assert!(
            problems("postgres://u@h/d?sslmode=verify-full", "/nowhere.pem")
                .contains("is not the path of a file")
        );
        assert!(problems("sqlite:a.db", "/nowhere.pem").contains("remove it"));
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for wrong in [
            "",
            "mysql://h/d",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:a.db?mode=ro",
            "postgres://h:notaport/d",
        ] {
            assert!(problems(wrong, Environment::Dev)[0].starts_with("url: "), "{wrong:?} was accepted");
        }
        let config = Config {
            url: "sqlite:a.db".into(),
            ca_file: None,
            password_file: Some("/p".into()),
            schema: Some("Robert'; DROP".into()),
            max_connections: 0,
            acquire_timeout_ms: 0,
            statement_timeout_ms: 600_001,
        };
        assert_eq!(config.validate(Environment::Dev).len(), 5);
    }

    #[test]
    fn sqlite_paths_are_taken_as_they_are() {
        for (url, path) in
            [("sqlite:a b.db", "a b.db"), ("sqlite:/x/a.db", "/x/a.db"), ("sqlite:///x/a.db", "/x/a.db")]
        {
            assert_eq!(DatabaseUrl::from(url).sqlite_path(), Some(path.into()), "{url}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        for url in [
            "postgres://u:hunter2@h/d?sslmode=require",
            "postgres://u@h/d?password=hunter2",
            "postgres://u:hunter2@h:x/d",
            "postgres://u@h/d?sslpassword=hunter2",
            "postgres://u@h/d?sslkey=hunter2",
            "postgres://u@h/d#hunter2",
            "postgres://u:p@hunter2/x@h/d",
            "postgres://u:p@hunter2?x@h/d",
            "postgres://u:p@hunter2#x@h/d",
            "postgres://u:p@1/hunter2@h/d",
        ] {
            let url = DatabaseUrl::from(url);
            let config = Config { url, ..Config::default() };
            let shown = format!(
                "{config:?} {} {:?}",
                serde_json::to_string(&config).unwrap(),
                config.validate(Environment::Prod)
            );
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    /// The driver would log it, with its value.
    #[test]
    fn a_parameter_that_is_not_known_is_refused() {
        for known in ["sslmode=require&sslkey=k&password=p", "options=-c%20x%3D1&options[y]=2", "host=%2Frun"]
        {
            assert_eq!(problems(&format!("postgres://u@h/d?{known}"), Environment::Dev), [""; 0], "{known}");
        }
        for unknown in ["sslpassword=hunter2", "ssl_mode=require", "hunter2"] {
            let problems =
                problems(&format!("postgres://u@h/d?sslmode=require&{unknown}"), Environment::Prod);
            assert!(problems.len() == 1 && problems[0].starts_with("url: has a parameter"), "{problems:?}");
            assert!(!problems[0].contains("hunter2"), "{problems:?}");
        }
        let known = problems("postgres://u:p%40%2Fy@h/d%40e?sslmode=require", Environment::Prod);
        assert_eq!(known, [""; 0]);
    }

    #[test]
    fn the_schema_is_named_after_the_service() {
        assert_eq!(Config::default().schema_for("token-broker"), "gatehouse_token_broker");
    }
}
