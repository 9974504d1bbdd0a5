//! The internal services that may ask for tokens: from configuration, read at start.

use std::collections::BTreeMap;
use std::fs;

use gatehouse_core::{Entropy, Error, Result, shown_path};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::config::ClientConfig;

/// The shortest secret that is taken, characters.
const MIN_SECRET: usize = 32;

/// The known clients.
#[derive(Debug)]
pub struct Clients {
    by_name: BTreeMap<String, Client>,
    /// Compared with where no client has the name.
    nobody: [u8; 32],
}

/// An internal service.
#[derive(Debug)]
pub struct Client {
    /// Its name.
    pub name: String,
    /// What it may do, each perhaps with scope.
    pub permissions: Vec<String>,
    /// SHA-256 of each of its secrets, for a comparison of equal lengths. Without a key: they are never stored, and stand
    /// beside nothing that could be kept apart from them (decision 0098).
    secrets: Vec<[u8; 32]>,
}

impl Clients {
    /// Reads each client's secret.
    ///
    /// # Errors
    /// `CLIENT_SECRET_INVALID`, naming the client and what to do.
    pub fn load(configs: &[ClientConfig], entropy: &Entropy) -> Result<Self> {
        let by_name = configs
            .iter()
            .map(|config| {
                let invalid = |what: String| {
                    let message = format!(
                        "The secret file {} of client {} (auth.clients) {what}.",
                        shown_path(&config.secret_file),
                        config.name
                    );
                    Error::failed_precondition("CLIENT_SECRET_INVALID", message)
                };
                let text = fs::read_to_string(&config.secret_file)
                    .map(Zeroizing::new)
                    .map_err(|error| invalid(format!("can't be read: {error}")))?;
                let secrets: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                if !(1..=2).contains(&secrets.len()) || secrets.iter().any(|secret| secret.len() < MIN_SECRET)
                {
                    return Err(invalid(format!(
                        "must hold one secret, or two, of at least {MIN_SECRET} characters, one a line"
                    )));
                }
                let client = Client {
                    name: config.name.clone(),
                    permissions: config.permissions.clone(),
                    secrets: secrets.into_iter().map(|secret| Sha256::digest(secret).into()).collect(),
                };
                Ok((config.name.clone(), client))
            })
            .collect::<Result<_>>()?;
        Ok(Self { by_name, nobody: entropy.bytes() })
    }

    /// The client called `name`.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<&Client> {
        self.by_name.get(name)
    }

    /// `name` where a client is called so; what is nobody's name may be a secret in the wrong place.
    #[must_use]
    pub fn name_for_logs(&self, name: &str) -> &str {
        self.lookup(name).map_or("unknown", |client| &client.name)
    }

    /// The client called `name`, if `secret` is one of its secrets. Unknown names and wrong secrets cost the same.
    #[must_use]
    pub fn authenticate(&self, name: &str, secret: &str) -> Option<&Client> {
        let shown: [u8; 32] = Sha256::digest(secret).into();
        let client = self.by_name.get(name);
        let nobody = [self.nobody];
        let right = client
            .map_or(&nobody[..], |client| &client.secrets[..])
            .iter()
            .fold(Choice::from(0), |right, known| right | shown.ct_eq(known));
        client.filter(|_| right.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_names_clients_and_nothing_else_that_was_shown_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, secret_file) = ("d9-x".repeat(10), folder.path().join("secret"));
        fs::write(&secret_file, &secret).unwrap();
        let config = ClientConfig { name: "worker".into(), secret_file, permissions: Vec::new() };
        let clients = Clients::load(&[config], &Entropy::seeded(1)).unwrap();
        assert_eq!(clients.name_for_logs("worker"), "worker");
        for shown in [secret.as_str(), "eyJhbGciOiJFZERTQSJ9.e30.c2ln", "", "work"] {
            assert_eq!(clients.name_for_logs(shown), "unknown");
        }
    }
}
