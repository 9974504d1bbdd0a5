//! `gatehouse admin secrets create`: what the processes of one host need on first start, each in a folder of its own.
//!
//! One process, one folder, so that each can be given its own and nothing else. What exists stays, whatever it holds:
//! a secret is renewed by removing its first copy and running this again.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use gatehouse_core::{Clock, Entropy, Environment, Secret};

use crate::cli::environment;
use crate::data_folder::read_secret;
use crate::output::say;
use crate::services::Service;

/// Its owner reads and writes it. Nobody else.
const OWNER: u32 = 0o600;
/// Its owner's group reads it too: PostgreSQL and Redis run as users of their own.
const GROUP: u32 = 0o640;

/// Who signs in to PostgreSQL. `migrate` owns the schemas; each service may use its own.
const DATABASE_USERS: [&str; 5] = ["migrate", "auth", "token-broker", "job", "audit"];

#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// Makes the passwords, client secrets and key files of a whole deployment; what exists is left as it is
    #[command(
        after_help = "Example:\n  GATEHOUSE_ENV=prod gatehouse admin secrets create --folder /secrets\n\nEach process has a folder below; give it that one alone. Keep copies of auth/keys.json, token-broker/keys.json and audit/checkpoint.key apart from the backups of the databases: without them the data can't be read."
    )]
    Create(CreateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Folder with one folder for each process
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Where the processes find Redis
    #[arg(long, value_name = "HOST:PORT", default_value = "redis:6379")]
    redis: String,
}

pub(crate) fn run(SecretsCommand::Create(args): &SecretsCommand) -> anyhow::Result<ExitCode> {
    let environment = environment()?;
    let made = create(args, environment)?;
    match made.as_slice() {
        [] => say!("Everything was there; nothing was made.")?,
        made => say!("Made {} files in {}: {}", made.len(), args.folder.display(), made.join(", "))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes what is missing; the names of what was made.
fn create(args: &CreateArgs, environment: Environment) -> anyhow::Result<Vec<String>> {
    let (clock, entropy) = (Clock::system(), Entropy::system());
    let mut folder = Folder { root: args.folder.clone(), entropy: entropy.clone(), made: Vec::new() };
    for service in Service::ALL {
        let name = service.name();
        folder.shared(&format!("auth/clients/{name}.secret"), OWNER, &format!("{name}/client.secret"))?;
    }
    for user in DATABASE_USERS {
        folder.shared(&format!("postgres/{user}.password"), GROUP, &format!("{user}/database.password"))?;
    }
    for service in Service::ALL.into_iter().filter(|service| *service != Service::Optimizer) {
        let name = service.name();
        let password = folder.random(&format!("redis/{name}.password"), GROUP)?;
        let url = format!("rediss://{name}:{}@{}", password.expose(), args.redis);
        folder.keep(&format!("{name}/redis.url"), OWNER, &url)?;
    }
    let made = folder.made_by("auth/keys.json", |path| {
        Ok(gatehouse_auth::key_file::create(path, environment, &clock, &entropy)?)
    })?;
    folder.made.extend(made);
    let made = folder.made_by("token-broker/keys.json", |path| {
        Ok(gatehouse_secrets::create_key_file(path, environment, &clock, &entropy)?)
    })?;
    folder.made.extend(made);
    if !folder.root.join("audit/checkpoint.key").exists() {
        folder.keep("audit/checkpoint.key", OWNER, &hex::encode(entropy.bytes::<32>()))?;
    }
    Ok(folder.made)
}

struct Folder {
    root: PathBuf,
    entropy: Entropy,
    made: Vec<String>,
}

impl Folder {
    /// A random secret (256 bits, base64url), made if it is not there.
    fn random(&mut self, name: &str, mode: u32) -> anyhow::Result<Secret<String>> {
        let path = self.root.join(name);
        if !path.exists() {
            let secret = URL_SAFE_NO_PAD.encode(self.entropy.bytes::<32>());
            self.keep(name, mode, &secret)?;
        }
        read_secret(&path)
    }

    /// A random secret and its copy for who shows it.
    fn shared(&mut self, name: &str, mode: u32, copy: &str) -> anyhow::Result<()> {
        let secret = self.random(name, mode)?;
        self.keep(copy, OWNER, secret.expose())
    }

    /// Sees to it that the file holds `text`: written whole under another name first.
    fn keep(&mut self, name: &str, mode: u32, text: &str) -> anyhow::Result<()> {
        let path = self.root.join(name);
        if fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        let fresh = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            parent(&path)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("{} can't be written", path.display()))?;
        self.made.push(name.to_owned());
        Ok(())
    }

    /// A file that another crate makes, unless it is there.
    fn made_by(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<String>> {
        let path = self.root.join(name);
        if path.exists() {
            return Ok(None);
        }
        parent(&path).with_context(|| format!("the folder of {} can't be made", path.display()))?;
        make(&path)?;
        Ok(Some(name.to_owned()))
    }
}

/// Makes the folder of `path`, which its owner's group may look into.
fn parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) => fs::DirBuilder::new().recursive(true).mode(0o750).create(folder),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;

    use gatehouse_service::config::{Sources, load};

    use super::*;
    use crate::config::Config;

    fn files(root: &Path, below: &Path, found: &mut Files) {
        for entry in fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(root, &path, found);
            } else {
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, (mode, fs::read(&path).unwrap()));
            }
        }
    }

    /// Modes and contents by name.
    type Files = BTreeMap<String, (u32, Vec<u8>)>;

    fn made(args: &CreateArgs) -> (Vec<String>, Files) {
        let made = create(args, Environment::Prod).unwrap();
        let mut found = BTreeMap::new();
        files(&args.folder, &args.folder, &mut found);
        (made, found)
    }

    /// What docker-compose.yml runs on.
    fn composed() -> Config {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/compose/gatehouse.toml");
        let host = [
            ("GATEHOUSE_ISSUER", "https://gatehouse.example"),
            ("GATEHOUSE_GATEWAY__PUBLIC_URL", "https://gatehouse.example"),
            ("GATEHOUSE_AUDIT__ORIGIN", "a.example"),
        ];
        let sources = Sources { file: Some(&file), ..Sources::default() };
        load(&sources, host).unwrap()
    }

    #[test]
    fn the_composed_configuration_is_sound_but_for_secrets_not_made_yet() {
        for environment in [Environment::Staging, Environment::Prod] {
            let problems = composed().validate(environment, &Service::ALL);
            assert!(composed().secrets.embedded.key_file.starts_with("/secrets"));
            // Of each service the database's password, of each client its secret, the broker's keys, the certificate for HTTPS.
            let to_make = |problem: &&String| {
                problem.contains("_file") && problem.contains("is not the path of a file")
            };
            let (missing, other): (Vec<_>, Vec<_>) = problems.iter().partition(to_make);
            assert!(other.is_empty(), "{other:?}");
            assert_eq!(missing.len(), 4 + Service::ALL.len() + 1 + 2, "{missing:?}");
        }
    }

    #[test]
    fn each_composed_client_may_do_what_its_service_needs_and_no_more() {
        let clients = composed().auth.clients;
        assert_eq!(clients.len(), Service::ALL.len());
        for service in Service::ALL {
            let client = clients.iter().find(|client| client.name == service.name()).unwrap();
            assert_eq!(client.permissions, service.permissions(), "{}", service.name());
            let file = format!("/secrets/clients/{}.secret", service.name());
            assert_eq!(client.secret_file, Path::new(&file));
        }
    }

    #[test]
    fn everything_is_made_once_and_each_has_its_own() {
        let place = tempfile::tempdir().unwrap();
        let args = CreateArgs { folder: place.path().to_owned(), redis: "redis:6379".to_owned() };
        let (first, before) = made(&args);
        assert_eq!(first.len(), before.len(), "{first:?}");
        let (second, after) = made(&args);
        assert_eq!((second, &after), (Vec::new(), &before));
        for (name, (mode, _)) in &before {
            let expected =
                if name.starts_with("postgres/") || name.starts_with("redis/") { GROUP } else { OWNER };
            assert_eq!(*mode, expected, "{name}");
        }
        assert_eq!(before["auth/clients/job.secret"].1, before["job/client.secret"].1);
        assert_eq!(before["postgres/job.password"].1, before["job/database.password"].1);
        assert_ne!(before["postgres/job.password"].1, before["postgres/audit.password"].1);
        let url = String::from_utf8(before["gateway/redis.url"].1.clone()).unwrap();
        let password = String::from_utf8(before["redis/gateway.password"].1.clone()).unwrap();
        assert_eq!(url, format!("rediss://gateway:{password}@redis:6379"));
        assert!(
            !before.contains_key("gateway/database.password") && !before.contains_key("optimizer/redis.url")
        );
    }

    #[test]
    fn a_secret_that_was_removed_is_renewed_for_both_sides() {
        let place = tempfile::tempdir().unwrap();
        let args = CreateArgs { folder: place.path().to_owned(), redis: "redis:6379".to_owned() };
        let (_, before) = made(&args);
        fs::remove_file(place.path().join("postgres/job.password")).unwrap();
        let (renewed, after) = made(&args);
        assert_eq!(renewed, ["postgres/job.password", "job/database.password"]);
        assert_ne!(before["postgres/job.password"].1, after["postgres/job.password"].1);
        assert_eq!(after["postgres/job.password"].1, after["job/database.password"].1);
    }
}
