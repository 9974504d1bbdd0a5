//! The service's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gatehouse_core::{Environment, file_problem};
use gatehouse_service::identity::PERSONS_CLIENT;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::app::tokens::IMPERSONATE;
use crate::domain::password_hash::Cost;
use crate::domain::roles::{audience_of, covers};
use crate::domain::signing::Schedule;

/// The auth service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File with the key ring that digests, peppers and sealed keys depend on. Keep it apart from the database and its
    /// backups. Made on first start in dev; elsewhere it must be there, not readable by others. Required.
    pub key_file: PathBuf,
    /// Whether anyone may make an account.
    pub registration_open: bool,
    /// How long an access token of a person lives, seconds, 60 to 3600.
    pub access_token_lifetime_s: u64,
    /// How long a token for one service lives, seconds, 60 to 900.
    pub service_token_lifetime_s: u64,
    /// How long a consumed refresh token is taken for a retry while its successor is unused, seconds, 0 to 300.
    pub refresh_retry_window_s: u64,
    /// How long a session lives whatever happens, seconds, 300 to 31536000 (a year).
    pub session_lifetime_s: u64,
    /// Most sessions that a person may have at once, 1 to 1000. Who signs in beyond that ends those that went unused for
    /// longest.
    pub max_sessions_per_person: u32,
    /// Most API keys that a tenant may have at once, 1 to 500.
    pub max_api_keys: u32,
    /// Most tenants that a person may be in and still make another, 1 to 200.
    pub max_tenants_per_person: u32,
    /// What a password hash costs, and how many run at once.
    pub hashing: HashingConfig,
    /// When the keys that sign access tokens change.
    pub signing: SigningConfig,
    /// The internal services that may ask for tokens, each as a table with `name`, `secret_file`, `permissions`.
    pub clients: Vec<ClientConfig>,
}

/// Password hashing (Argon2id).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HashingConfig {
    /// Memory of one hash, KiB, 7168 to 1048576 outside dev. Every running hash holds this much.
    pub memory_kib: u32,
    /// Passes over the memory, 1 to 10.
    pub passes: u32,
    /// Hashes at once, 0 to 256; 0 takes one core fewer than there are, at least one.
    pub permits: u32,
    /// Hashes that may wait for their turn, 0 to 1000. More are refused with `HASHING_BUSY`.
    pub queue: u32,
    /// Whether hashes also depend on a key of the key ring, so that a stolen database gives nothing to guess against.
    pub pepper: bool,
}

/// Rotation of signing keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SigningConfig {
    /// How long a key signs, seconds, 3600 to 7776000 (90 days).
    pub period_s: u64,
    /// How long a key is published before it signs, seconds, 60 to 86400, less than the period.
    pub lead_s: u64,
    /// How long verifiers may keep the set of public keys, seconds, 1 to 3600, less than the lead.
    pub jwks_max_age_s: u64,
}

/// An internal service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// Its name: 1 to 32 of `a`–`z`, `0`–`9`, `-`, a letter first.
    pub name: String,
    /// File with its secret, at least 32 characters. Two lines are two secrets that both hold, for rotation.
    pub secret_file: PathBuf,
    /// What it may do: `service.noun.verb`, with scope after a colon where the permission takes one.
    /// `auth.tokens.impersonate` is for the gateway alone, which needs it.
    pub permissions: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            registration_open: true,
            access_token_lifetime_s: 600,
            service_token_lifetime_s: 300,
            refresh_retry_window_s: 30,
            session_lifetime_s: 30 * 86_400,
            max_sessions_per_person: 100,
            max_api_keys: 100,
            max_tenants_per_person: 20,
            hashing: HashingConfig::default(),
            signing: SigningConfig::default(),
            clients: Vec::new(),
        }
    }
}

impl Default for HashingConfig {
    fn default() -> Self {
        let Cost { memory_kib, passes, .. } = Cost::DEFAULT;
        Self { memory_kib, passes, permits: 0, queue: 32, pepper: true }
    }
}

impl Default for SigningConfig {
    fn default() -> Self {
        Self { period_s: 30 * 86_400, lead_s: 3_600, jwks_max_age_s: 300 }
    }
}

impl Config {
    /// The problems that forbid a start, each with what to do; empty when there are none. `database` is where the
    /// service keeps its data: the key ring must lie elsewhere.
    #[must_use]
    pub fn validate(&self, environment: Environment, database: &gatehouse_db::Config) -> Vec<String> {
        let mut problems = Vec::new();
        let mut within = |name: &str, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                problems.push(format!("{name}: must be from {low} to {high}"));
            }
        };
        within("access_token_lifetime_s", self.access_token_lifetime_s, 60, 3_600);
        within("service_token_lifetime_s", self.service_token_lifetime_s, 60, 900);
        within("refresh_retry_window_s", self.refresh_retry_window_s, 0, 300);
        within("session_lifetime_s", self.session_lifetime_s, 300, 31_536_000);
        within("max_sessions_per_person", self.max_sessions_per_person.into(), 1, 1_000);
        within("max_api_keys", self.max_api_keys.into(), 1, 500);
        within("max_tenants_per_person", self.max_tenants_per_person.into(), 1, 200);
        let least_memory = if environment.is_dev() { 8 } else { 7_168 };
        within("hashing.memory_kib", self.hashing.memory_kib.into(), least_memory, 1 << 20);
        within("hashing.passes", self.hashing.passes.into(), 1, 10);
        within("hashing.permits", self.hashing.permits.into(), 0, 256);
        within("hashing.queue", self.hashing.queue.into(), 0, 1_000);
        within("signing.period_s", self.signing.period_s, 3_600, 7_776_000);
        within(
            "signing.lead_s",
            self.signing.lead_s,
            60,
            86_400.min(self.signing.period_s.saturating_sub(1)),
        );
        within(
            "signing.jwks_max_age_s",
            self.signing.jwks_max_age_s,
            1,
            3_600.min(self.signing.lead_s.saturating_sub(1)),
        );
        if self.key_file.as_os_str().is_empty() {
            problems.push("key_file: name the file that holds auth's key ring".into());
        } else if !environment.is_dev()
            && let Some(database) = database.url.sqlite_path()
            && folder(&database) == folder(&self.key_file)
        {
            problems
                .push("key_file: keep the keys in another folder than the database that they protect".into());
        }
        problems.extend(self.clients.iter().enumerate().flat_map(|(place, client)| {
            client
                .problems(&self.clients[..place], environment)
                .into_iter()
                .map(move |problem| format!("clients[{place}].{problem}"))
        }));
        problems
    }

    /// What a password hash costs.
    #[must_use]
    pub const fn hash_cost(&self) -> Cost {
        Cost { memory_kib: self.hashing.memory_kib, passes: self.hashing.passes, lanes: 1 }
    }

    /// When signing keys change.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        Schedule {
            period: Duration::from_secs(self.signing.period_s),
            lead: Duration::from_secs(self.signing.lead_s),
            // A minute for clocks that differ.
            tail: self.longest_token() + Duration::from_mins(1),
        }
    }

    /// The longest that any access token lives.
    #[must_use]
    pub fn longest_token(&self) -> Duration {
        Duration::from_secs(self.access_token_lifetime_s.max(self.service_token_lifetime_s))
    }
}

fn folder(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

impl ClientConfig {
    fn problems(&self, earlier: &[Self], environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let named = (1..=32).contains(&self.name.len())
            && self.name.starts_with(|first: char| first.is_ascii_lowercase())
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !named {
            problems.push("name: must be 1 to 32 of a-z, 0-9 and -, a letter first".into());
        }
        if let Some(other) = earlier.iter().position(|other| other.name == self.name) {
            problems.push(format!("name: is that of clients[{other}] too"));
        }
        if self.secret_file.as_os_str().is_empty() {
            problems.push("secret_file: name the file with the client's secret".into());
        } else if !environment.is_dev()
            && let Some(problem) = file_problem(&self.secret_file)
        {
            // In dev `gatehouse up` makes those of its own services.
            problems.push(format!("secret_file: {problem}"));
        }
        for (place, permission) in self.permissions.iter().enumerate() {
            let known = audience_of(permission)
                .is_some_and(|audience| gatehouse_client::audience::SERVICES.contains(&audience.as_str()));
            if !known || permission.contains(char::is_whitespace) {
                problems.push(format!(
                    "permissions[{place}]: is not of the form service.noun.verb of a Gatehouse service"
                ));
            }
        }
        let holds = |wanted: &str| self.permissions.iter().any(|held| covers(held, wanted));
        let speaks_for_people = self.name == PERSONS_CLIENT;
        if holds(IMPERSONATE) && !speaks_for_people {
            problems.push(format!(
                "permissions: {IMPERSONATE} is for the client {PERSONS_CLIENT} alone; others are named when they act for people"
            ));
        }
        if speaks_for_people && holds("auth.tokens.exchange") && !holds(IMPERSONATE) {
            problems.push(format!(
                "permissions: add {IMPERSONATE}, without which the {PERSONS_CLIENT} can let nobody in"
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Config {
        Config { key_file: "keys/auth.json".into(), ..Config::default() }
    }

    fn problems(config: &Config, environment: Environment) -> Vec<String> {
        let database = gatehouse_db::Config { url: "sqlite:data/auth.db".into(), ..Default::default() };
        config.validate(environment, &database)
    }

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(problems(&sound(), Environment::Dev), Vec::<String>::new());
        assert_eq!(problems(&sound(), Environment::Prod), Vec::<String>::new());
    }

    #[test]
    fn the_gateway_alone_speaks_as_people() {
        let with = |name: &str, permissions: &[&str]| {
            let permissions = permissions.iter().map(|&permission| permission.to_owned()).collect();
            let client = ClientConfig { name: name.into(), secret_file: "Cargo.toml".into(), permissions };
            problems(&Config { clients: vec![client], ..sound() }, Environment::Prod)
        };
        for (name, permissions, refused) in [
            ("gateway", &["auth.tokens.exchange", "auth.tokens.impersonate"][..], false),
            ("gateway", &["auth.revocations.watch"], false),
            ("gateway", &["auth.tokens.exchange"], true),
            ("reporter", &["auth.tokens.exchange"], false),
            ("reporter", &["auth.tokens.exchange", "auth.tokens.impersonate"], true),
            ("reporter", &["auth.tokens.impersonate:x"], true),
        ] {
            let problems = with(name, permissions);
            assert_eq!(
                problems.iter().any(|problem| problem.contains(IMPERSONATE)),
                refused,
                "{name}: {problems:?}"
            );
        }
    }

    #[test]
    fn each_problem_is_named() {
        let client = ClientConfig {
            name: "Gateway".into(),
            secret_file: PathBuf::new(),
            permissions: vec!["everything".into(), "billing.invoices.read".into()],
        };
        let config = Config {
            key_file: "data/keys.json".into(),
            access_token_lifetime_s: 1,
            refresh_retry_window_s: 301,
            max_sessions_per_person: 1_001,
            hashing: HashingConfig { memory_kib: 64, passes: 0, permits: 257, queue: 1_001, pepper: true },
            signing: SigningConfig { period_s: 3_600, lead_s: 3_600, jwks_max_age_s: 3_600 },
            clients: vec![client],
            ..sound()
        };
        let problems = problems(&config, Environment::Prod);
        for field in [
            "key_file:",
            "access_token_lifetime_s:",
            "refresh_retry_window_s:",
            "max_sessions_per_person:",
            "hashing.memory_kib:",
            "hashing.passes:",
            "hashing.permits:",
            "hashing.queue:",
            "signing.lead_s:",
            "signing.jwks_max_age_s:",
            "clients[0].name:",
            "clients[0].secret_file:",
            "clients[0].permissions[0]: is not",
            "clients[0].permissions[1]: is not",
        ] {
            assert!(
                problems.iter().any(|problem| problem.starts_with(field)),
                "{field} is not among {problems:#?}"
            );
        }
        assert_eq!(problems.len(), 14, "{problems:#?}");
    }
}
