//! The `[secrets]` section.

use std::path::{Path, PathBuf};

use gatehouse_core::{Environment, file_problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::embedded::resolved;

/// Which implementation keeps the secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// Encrypted files below a folder; one process.
    #[default]
    Embedded,
    /// `HashiCorp` Vault or OpenBao: KV version 2 and Transit.
    Vault,
}

/// Where long-lived secrets (upstream refresh tokens, upstream API keys) are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `embedded` or `vault`. Default: `embedded`.
    pub backend: BackendKind,
    /// Settings of the embedded store; used if `backend` is `embedded`.
    pub embedded: EmbeddedConfig,
    /// Settings of Vault or OpenBao; used if `backend` is `vault`.
    pub vault: VaultConfig,
}

/// The embedded encrypted store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedConfig {
    /// Folder of the encrypted files, made if missing (mode 0700). Default: `data/secrets`.
    pub folder: PathBuf,
    /// File of the master keys (mode 0600). In dev it is made on first start. Outside dev it must exist, and lie
    /// neither in `folder` nor in the folder around it, so that no copy of the data carries its key. Default:
    /// `data/keys/secrets.json`.
    pub key_file: PathBuf,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self { folder: "data/secrets".into(), key_file: "data/keys/secrets.json".into() }
    }
}

/// Vault or OpenBao. The token needs: create, read, update, delete on `<kv_mount>/data/<prefix>/<environment>/*`
/// and `<kv_mount>/metadata/<prefix>/<environment>/*`; update on `<transit_mount>/encrypt/<transit_key>`,
/// `…/decrypt/…` and `…/keys/<transit_key>/rotate`; read on `…/keys/<transit_key>`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VaultConfig {
    /// Base address, such as `https://vault.internal:8200`. Plain `http` in dev only. No default.
    pub address: String,
    /// File that holds the token, as an agent renews it; read again for each call. No default.
    pub token_file: PathBuf,
    /// Namespace (`X-Vault-Namespace`). Default: none.
    pub namespace: String,
    /// Mount of the KV version 2 engine. Default: `secret`.
    pub kv_mount: String,
    /// Path below the mount; the environment's name follows it. Default: `gatehouse`.
    pub prefix: String,
    /// Mount of the Transit engine. Default: `transit`.
    pub transit_mount: String,
    /// Transit key that seals, of an AEAD type such as `aes256-gcm96`; made if missing in dev. Use one for each
    /// environment. Default: `gatehouse`.
    pub transit_key: String,
    /// PEM file of the authority that signed the server's certificate. Default: none (public authorities).
    pub ca_file: Option<PathBuf>,
    /// Time that one call may take, in milliseconds, 100 to 30000. Default: 5000.
    pub timeout_ms: u64,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            token_file: PathBuf::new(),
            namespace: String::new(),
            kv_mount: "secret".into(),
            prefix: "gatehouse".into(),
            transit_mount: "transit".into(),
            transit_key: "gatehouse".into(),
            ca_file: None,
            timeout_ms: 5000,
        }
    }
}

impl Config {
    /// Every problem of the chosen backend's section, each saying what to change; none if it may be used in
    /// `environment`.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        match self.backend {
            BackendKind::Embedded => self.embedded.validate(environment),
            BackendKind::Vault => self.vault.validate(environment),
        }
    }
}

impl EmbeddedConfig {
    fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        if self.folder.as_os_str().is_empty() {
            problems.push("secrets.embedded.folder is empty; name a folder".to_owned());
        }
        if self.key_file.as_os_str().is_empty() {
            problems.push("secrets.embedded.key_file is empty; name a file".to_owned());
        }
        if !problems.is_empty() {
            return problems;
        }
        let (folder, key_file) = (resolved(&self.folder), resolved(&self.key_file));
        if key_file.starts_with(&folder) {
            problems.push(
                "secrets.embedded.key_file lies in the folder that it opens (secrets.embedded.folder); keep it elsewhere"
                    .to_owned(),
            );
        } else if !environment.is_dev() {
            let around = folder.parent().filter(|around| *around != Path::new("/"));
            if around.is_some_and(|around| key_file.starts_with(around)) {
                problems.push(
                    "secrets.embedded.key_file lies beside the data that it opens; outside dev keep it on another volume, \
                     or at least outside of the folder in which secrets.embedded.folder is"
                        .to_owned(),
                );
            }
            if let Some(problem) = file_problem(&key_file) {
                // Made once, and never in the place of one that can't be seen.
                let advice = match key_file.try_exists() {
                    Ok(false) => "; make it once with `gatehouse admin secrets-key create`",
                    _ => "",
                };
                problems.push(format!("secrets.embedded.key_file {problem}{advice}"));
            }
        }
        problems
    }
}

impl VaultConfig {
    fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let plain = self.address.starts_with("http://");
        if !plain && !self.address.starts_with("https://") {
            problems.push(
                "secrets.vault.address must be the server's address, such as https://vault.internal:8200"
                    .into(),
            );
        } else if plain && !environment.is_dev() {
            problems.push("secrets.vault.address must use https outside dev".into());
        } else if self.address.contains('@') {
            problems.push("secrets.vault.address may carry no user name or password".into());
        }
        if self.token_file.as_os_str().is_empty() {
            problems.push("secrets.vault.token_file is missing; name the file that holds the token".into());
        } else if !environment.is_dev()
            && let Some(problem) = file_problem(&self.token_file)
        {
            problems.push(format!("secrets.vault.token_file {problem}"));
        }
        if let Some(problem) = self.ca_file.as_deref().and_then(file_problem) {
            problems.push(format!("secrets.vault.ca_file {problem}"));
        }
        let names = [
            ("kv_mount", &self.kv_mount),
            ("prefix", &self.prefix),
            ("transit_mount", &self.transit_mount),
            ("transit_key", &self.transit_key),
        ];
        for (name, value) in names {
            let fits = value.split('/').all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            });
            if !fits {
                problems
                    .push(format!("secrets.vault.{name} may hold letters, digits, -, _ and single / only"));
            }
        }
        if !(100..=30_000).contains(&self.timeout_ms) {
            problems.push("secrets.vault.timeout_ms must be from 100 to 30000".into());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_dev_a_key_beside_its_data_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut config = Config::default();
        config.embedded.folder = data.join("secrets");
        for (key_file, dev, prod) in [
            (data.join("secrets/key.json"), 1, 2),
            (data.join("keys/key.json"), 0, 2),
            (data.join("keys/../../data/secrets/../key.json"), 0, 2),
            (folder.path().join("elsewhere/key.json"), 0, 1),
        ] {
            config.embedded.key_file = key_file.clone();
            assert_eq!(config.validate(Environment::Dev).len(), dev, "{key_file:?}");
            let problems = config.validate(Environment::Prod).len();
            assert!(problems <= prod && problems >= 1, "{key_file:?}: {problems}");
        }
        let right = folder.path().join("elsewhere.json");
        std::fs::write(&right, "").unwrap();
        config.embedded.key_file = right.clone();
        assert_eq!(config.validate(Environment::Prod), Vec::<String>::new());
        // A link does not hide where the key lies.
        std::fs::create_dir_all(&data).unwrap();
        std::fs::rename(&right, data.join("real.json")).unwrap();
        std::os::unix::fs::symlink(data.join("real.json"), &right).unwrap();
        assert_eq!(config.validate(Environment::Prod).len(), 1);
    }

    #[test]
    fn vault_needs_an_address_a_token_and_tls_outside_dev() {
        let mut config = Config { backend: BackendKind::Vault, ..Config::default() };
        assert_eq!(config.validate(Environment::Dev).len(), 2);
        config.vault.address = "http://127.0.0.1:8200".into();
        config.vault.token_file = "/nowhere/token".into();
        assert_eq!(config.validate(Environment::Dev), Vec::<String>::new());
        assert_eq!(config.validate(Environment::Prod).len(), 2);
        config.vault.address = "http://me:hunter2@127.0.0.1:8200".into();
        let problems = config.validate(Environment::Dev);
        assert!(problems.len() == 1 && !problems[0].contains("hunter2"), "{problems:?}");
        config.vault.address = "http://127.0.0.1:8200".into();
        config.vault.kv_mount = "a/../b".into();
        assert_eq!(config.validate(Environment::Dev).len(), 1);
    }
}
