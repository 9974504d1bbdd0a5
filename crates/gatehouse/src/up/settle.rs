//! What `up` fills in where the configuration says nothing, and what it makes for it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gatehouse_auth::config::ClientConfig;
use gatehouse_core::Entropy;
use gatehouse_db::DatabaseUrl;
use toml::{Table, Value};

use crate::config::Config;
use crate::data_folder::DataFolder;
use crate::services::Service;

/// Where `up` serves HTTPS, with a certificate of its own, unless told otherwise.
const DEV_TLS_ADDRESS: &str = "127.0.0.1:8443";

/// How long `up` keeps the jobs of a worker that is out of touch, unless told otherwise, milliseconds: the worker dies
/// with the process, so its jobs need not wait long for another.
const UP_LEASE_TTL_MS: i64 = 3_000;

/// How long `up` keeps the relay of audit events for a process that was killed, unless told otherwise, milliseconds: no
/// other process relays, so none has to be kept out while a call to the audit service lasts.
const UP_RELAY_LEASE_MS: i64 = 3_000;

/// The defaults of `up`, with its data in `place`. They lie beneath file and environment, so that whatever these say
/// holds, also where it is what the default of a process by itself is.
pub(super) fn defaults(place: &Path) -> Table {
    let path = |relative: &str| Value::String(place.join(relative).to_string_lossy().into_owned());
    let table = |keys: Vec<(&str, Value)>| {
        Value::Table(keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let embedded = table(vec![("folder", path("secrets")), ("key_file", path("keys/secrets.json"))]);
    let sections = [
        ("gateway", table(vec![("tls_address", Value::String(DEV_TLS_ADDRESS.to_owned()))])),
        ("job", table(vec![("lease_ttl_ms", Value::Integer(UP_LEASE_TTL_MS))])),
        ("outbox", table(vec![("lease_ms", Value::Integer(UP_RELAY_LEASE_MS))])),
        ("secrets", table(vec![("embedded", embedded)])),
        (
            "audit",
            table(vec![
                ("subject_keys_dir", path("keys/audit-subjects")),
                ("checkpoint_key_file", path("keys/audit-checkpoint.key")),
            ]),
        ),
    ];
    sections.into_iter().map(|(section, keys)| (section.to_owned(), keys)).collect()
}

/// What differs in `up`, for the page of the settings.
pub(crate) fn defaults_text() -> String {
    format!(
        "Where neither file nor environment says anything, `gatehouse up` keeps databases, keys and secrets below its \
         data folder, and has `gateway.tls_address` at `{DEV_TLS_ADDRESS}`, `job.lease_ttl_ms` at {UP_LEASE_TTL_MS} and \
         `outbox.lease_ms` at {UP_RELAY_LEASE_MS}. It is one process, so it refuses the section `tls`, `redis.url_file` \
         and `client.secret_file`, and finds its own services whatever `peers` says."
    )
}

/// Refuses what has a meaning for services in processes of their own only: it would have no effect.
///
/// # Errors
/// Names it.
pub(super) fn check_is_for_one_process(config: &Config) -> anyhow::Result<()> {
    for (name, is_set) in [
        ("the section tls", config.tls.is_on()),
        ("redis.url_file", !config.redis.url_file.as_os_str().is_empty()),
        ("client.secret_file", !config.client.secret_file.as_os_str().is_empty()),
    ] {
        anyhow::ensure!(
            !is_set,
            "{name} is for services in processes of their own; `gatehouse up` is one process and needs none. Leave it out."
        );
    }
    Ok(())
}

/// What is to be made in the data folder before the services start: the rest they make themselves.
#[derive(Default)]
pub(super) struct ToMake {
    folders: Vec<&'static str>,
    secrets: Vec<String>,
}

impl ToMake {
    /// Makes it, and notes in `made` what was not there before.
    pub(super) fn make(&self, folder: &DataFolder, made: &mut Made) -> anyhow::Result<()> {
        for name in &self.folders {
            made.note(folder.path(name));
            folder.folder(name)?;
        }
        for name in &self.secrets {
            made.note(folder.path(name));
            folder.secret_file(name, &Entropy::system())?;
        }
        Ok(())
    }
}

/// What a start made.
#[derive(Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    fn note(&mut self, path: PathBuf) {
        // A link that leads nowhere is there too, and so may be what this process may not look at.
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            self.0.push(path);
        }
    }

    /// A start that was refused leaves nothing of it behind but folders that others have put something in.
    pub(super) fn take_back(self) {
        for path in self.0.into_iter().rev() {
            // What can't be removed is only superfluous.
            let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Fills in everything below the data folder at `place`, and a client with its own secret for each service. Nothing is
/// made yet: a start that is refused leaves nothing behind.
pub(super) fn settle(config: &mut Config, place: &Path, free_ports: bool) -> ToMake {
    let mut to_make = ToMake { folders: vec!["keys"], secrets: Vec::new() };
    let databases = &mut config.databases;
    for (database, name) in [
        (&mut databases.auth, "auth"),
        (&mut databases.token_broker, "token-broker"),
        (&mut databases.job, "job"),
        (&mut databases.audit, "audit"),
    ] {
        if database.url.to_string().is_empty() {
            to_make.folders.push(name);
            database.url = DatabaseUrl::sqlite(&place.join(name).join(format!("{name}.db")));
        }
    }
    if config.auth.key_file.as_os_str().is_empty() {
        config.auth.key_file = place.join("keys/auth.json");
    }
    for service in Service::ALL {
        if config.auth.clients.iter().all(|client| client.name != service.name()) {
            let secret = format!("clients/{}.secret", service.name());
            config.auth.clients.push(ClientConfig {
                name: service.name().to_owned(),
                secret_file: place.join(&secret),
                permissions: service.permissions(),
            });
            to_make.secrets.push(secret);
        }
    }
    if !to_make.secrets.is_empty() {
        to_make.folders.push("clients");
    }
    if free_ports {
        let free = || "127.0.0.1:0".to_owned();
        config.gateway.address = free();
        config.gateway.tls_address = free();
        config.probes.address = free();
        for address in [
            &mut config.listen.auth,
            &mut config.listen.token_broker,
            &mut config.listen.job,
            &mut config.listen.audit,
        ] {
            *address = free();
        }
    }
    if config.token_broker.callback_url.is_empty() {
        config.token_broker.callback_url = callback(&config.gateway.address);
    }
    to_make
}

/// Whether there is data without one of the keys that it goes with: somebody lost it, or restores one thing after the
/// other.
pub(super) fn lacks_a_key(config: &Config) -> bool {
    let databases = [
        &config.databases.auth,
        &config.databases.token_broker,
        &config.databases.job,
        &config.databases.audit,
    ];
    let keys = [&config.auth.key_file, &config.secrets.embedded.key_file, &config.audit.checkpoint_key_file];
    let is_there = |path: Option<PathBuf>| path.is_none_or(|path| path.exists());
    databases.into_iter().any(|database| is_there(database.url.sqlite_path()))
        && keys.into_iter().any(|key| !key.exists())
}

/// Names the files that `up` would make, for a check that makes none.
pub(crate) fn assume_files(config: &mut Config) {
    let databases = &mut config.databases;
    for database in
        [&mut databases.auth, &mut databases.token_broker, &mut databases.job, &mut databases.audit]
    {
        if database.url.to_string().is_empty() {
            database.url = DatabaseUrl::sqlite(Path::new("gatehouse-data/gatehouse.db"));
        }
    }
    if config.auth.key_file.as_os_str().is_empty() {
        config.auth.key_file = "gatehouse-data/keys/auth.json".into();
    }
    if config.token_broker.callback_url.is_empty() {
        config.token_broker.callback_url = callback(&config.gateway.address);
    }
}

pub(super) fn callback(gateway: &str) -> String {
    format!("http://{gateway}/v1/connections/callback")
}

/// The file of the secret that `service` shows: that which auth knows it by.
pub(super) fn client_secret(config: &Config, service: Service) -> anyhow::Result<PathBuf> {
    let client = config.auth.clients.iter().find(|client| client.name == service.name());
    Ok(client.with_context(|| format!("auth.clients lacks {}", service.name()))?.secret_file.clone())
}

#[cfg(test)]
mod tests {
    use gatehouse_service::config::{Sources, load};

    use super::*;

    /// It leads to a volume that is not mounted, say.
    #[test]
    fn a_link_that_leads_nowhere_is_not_what_a_start_made() {
        let place = tempfile::tempdir().unwrap();
        let (link, folder) = (place.path().join("keys"), place.path().join("clients"));
        std::os::unix::fs::symlink(place.path().join("nowhere"), &link).unwrap();
        let mut made = Made::default();
        made.note(link.clone());
        made.note(folder.clone());
        fs::create_dir(&folder).unwrap();
        made.take_back();
        assert!(link.is_symlink() && !folder.exists());
    }

    fn config(place: &Path, text: &str, variables: &[(&str, &str)]) -> Config {
        let file = place.join("gatehouse.toml");
        fs::write(&file, text).unwrap();
        let sources =
            Sources { defaults: defaults(&place.join("data")), file: Some(&file), ..Sources::default() };
        let mut config: Config = load(&sources, variables.iter().copied()).unwrap();
        settle(&mut config, &place.join("data"), false);
        config
    }

    #[test]
    fn what_is_said_holds_also_where_it_is_what_a_process_by_itself_has() {
        let place = tempfile::tempdir().unwrap();
        let own = config(place.path(), "", &[]);
        assert_eq!((own.job.lease_ttl_ms, own.outbox.lease_ms), (3_000, 3_000));
        assert_eq!(own.gateway.tls_address, DEV_TLS_ADDRESS);
        assert_eq!(own.secrets.embedded.key_file, place.path().join("data/keys/secrets.json"));
        assert_eq!(own.audit.subject_keys_dir, place.path().join("data/keys/audit-subjects"));
        let process = Config::default();
        let text = toml::to_string(&process).unwrap();
        let variables = [("GATEHOUSE_JOB__LEASE_TTL_MS", "15000"), ("GATEHOUSE_OUTBOX__LEASE_MS", "30000")];
        for said in [config(place.path(), &text, &[]), config(place.path(), "", &variables)] {
            assert_eq!(said.job.lease_ttl_ms, process.job.lease_ttl_ms);
            assert_eq!(said.outbox.lease_ms, process.outbox.lease_ms);
        }
        let said = config(place.path(), &text, &[]);
        assert_eq!(said.gateway.tls_address, "", "no HTTPS was asked for");
        assert_eq!(said.secrets.embedded.folder, process.secrets.embedded.folder);
        assert_eq!(said.audit.checkpoint_key_file, process.audit.checkpoint_key_file);
        // One of two is said: the other is still `up`'s own.
        let half = config(place.path(), "secrets.embedded.key_file = \"mine.json\"\n", &[]);
        assert_eq!(half.secrets.embedded.key_file, Path::new("mine.json"));
        assert_eq!(half.secrets.embedded.folder, place.path().join("data/secrets"));
    }

    #[test]
    fn a_service_shows_the_secret_that_auth_was_told_of() {
        let place = tempfile::tempdir().unwrap();
        let text = "[[auth.clients]]\nname = \"job\"\nsecret_file = \"mine\"\n";
        let config = config(place.path(), text, &[]);
        assert_eq!(client_secret(&config, Service::Job).unwrap(), Path::new("mine"));
        let other = place.path().join("data/clients/audit.secret");
        assert_eq!(client_secret(&config, Service::Audit).unwrap(), other);
    }

    #[test]
    fn a_start_takes_back_what_it_made_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(place.path()).unwrap();
        folder.secret_file("clients/job.secret", &Entropy::system()).unwrap();
        let to_make = ToMake {
            folders: vec!["keys", "auth", "clients"],
            secrets: vec!["clients/job.secret".to_owned(), "clients/auth.secret".to_owned()],
        };
        let mut made = Made::default();
        to_make.make(&folder, &mut made).unwrap();
        fs::write(folder.path("auth/auth.db"), "").unwrap();
        made.take_back();
        let left = ["clients/job.secret", "auth/auth.db"];
        assert!(left.iter().all(|name| folder.path(name).exists()));
        assert!(["keys", "clients/auth.secret"].iter().all(|name| !folder.path(name).exists()));
    }
}
