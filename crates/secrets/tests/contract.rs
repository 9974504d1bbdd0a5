//! The contract of a secrets backend, run unchanged on every implementation.
#![expect(clippy::unwrap_used, reason = "a test")]

use gatehouse_core::{Clock, Entropy, Environment, Secret, Timestamp};
use gatehouse_secrets::{
    BackendKind, Config, Error, IdempotencyToken, MAX_SEALED_BYTES, MAX_VALUE_BYTES, MAX_VERSIONS, SecretKey,
    Secrets, VersionId,
};
use gatehouse_testkit::OpenBao;

/// Opens the same backend again, as a restart or another replica does, in a given environment.
struct Place {
    config: Option<Config>,
    memory: Option<Secrets>,
    single_process: bool,
    _folder: tempfile::TempDir,
    _server: Option<OpenBao>,
}

impl Place {
    async fn open(&self, environment: Environment) -> Secrets {
        match (&self.config, &self.memory) {
            (Some(config), _) => {
                assert_eq!(config.validate(environment), Vec::<String>::new());
                Secrets::open(config, environment, Clock::system(), Entropy::system()).await.unwrap()
            }
            (None, Some(memory)) => memory.clone(),
            (None, None) => unreachable!("a place has one or the other"),
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "a place that needs a server may not be had")]
fn embedded() -> Option<Place> {
    let folder = folder();
    let mut config = Config::default();
    config.embedded.folder = folder.path().join("a folder/secrets");
    config.embedded.key_file = folder.path().join("keys/secrets.json");
    Some(Place { config: Some(config), memory: None, single_process: true, _folder: folder, _server: None })
}

#[expect(clippy::unnecessary_wraps, reason = "a place that needs a server may not be had")]
fn memory() -> Option<Place> {
    let memory = Secrets::in_memory(Environment::Dev, Clock::system(), Entropy::system());
    Some(Place { config: None, memory: Some(memory), single_process: true, _folder: folder(), _server: None })
}

/// None where there is no program, none can be installed, and tests may be left out.
fn vault() -> Option<Place> {
    let server = OpenBao::start_or_skip()?;
    let folder = folder();
    let mut config = Config { backend: BackendKind::Vault, ..Config::default() };
    config.vault.address = server.address();
    config.vault.token_file = folder.path().join("token");
    std::fs::write(&config.vault.token_file, format!("{}\n", OpenBao::token())).unwrap();
    Some(Place {
        config: Some(config),
        memory: None,
        single_process: false,
        _folder: folder,
        _server: Some(server),
    })
}

macro_rules! contract {
    ($backend:ident: $($name:ident),* $(,)?) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    if let Some(place) = super::$backend() {
                        super::$name(&place).await;
                    }
                }
            )*
        }
    };
}

macro_rules! on_every_backend {
    ($($tests:tt)*) => {
        contract! { embedded: $($tests)* }
        contract! { memory: $($tests)* }
        contract! { vault: $($tests)* }
    };
}

on_every_backend! {
    versions_go_from_pending_to_current,
    a_token_names_one_value,
    of_two_promotions_one_wins,
    promoting_again_succeeds,
    deleting_is_for_good_and_repeatable,
    bounds_are_kept,
    values_of_any_bytes_come_back,
    concurrent_writers_lose_nothing,
    racing_promotions_have_one_winner,
    sealed_values_open_for_their_purpose_only,
    rotated_keys_open_what_they_sealed,
    a_restart_changes_nothing,
    environments_are_apart,
    health_names_the_key,
}

fn key(text: &str) -> SecretKey {
    SecretKey::new(text).unwrap()
}

fn token(number: usize) -> IdempotencyToken {
    IdempotencyToken::new(format!("0190b5c2-7f3e-7a52-9d2c-{number:012}")).unwrap()
}

fn value(text: &str) -> Secret<Vec<u8>> {
    Secret::new(text.as_bytes().to_vec())
}

async fn current(secrets: &Secrets, key: &SecretKey) -> Option<(VersionId, Vec<u8>)> {
    secrets.get_current(key).await.unwrap().map(|version| (version.id, version.value.expose().clone()))
}

async fn versions_go_from_pending_to_current(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("token-broker/a"));
    assert!(secrets.get_current(&key).await.unwrap().is_none());
    assert!(secrets.list_versions(&key).await.unwrap().is_empty());

    let first = secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    assert!(secrets.get_current(&key).await.unwrap().is_none(), "a pending version was current");
    secrets.promote(&key, &first, None).await.unwrap();
    let second = secrets.put_pending(&key, &value("two"), &token(2)).await.unwrap();
    assert_eq!(current(&secrets, &key).await, Some((first.clone(), b"one".to_vec())));
    assert_eq!(secrets.get_version(&key, &second).await.unwrap().unwrap().value.expose(), b"two");
    secrets.promote(&key, &second, Some(&first)).await.unwrap();
    assert_eq!(current(&secrets, &key).await, Some((second.clone(), b"two".to_vec())));

    let listed = secrets.list_versions(&key).await.unwrap();
    let seen: Vec<_> = listed.iter().map(|info| (info.id.clone(), info.is_current)).collect();
    assert_eq!(seen, [(first, false), (second, true)]);
    assert!(listed.iter().all(|info| info.created_at > Timestamp::from_seconds(1_000_000_000)));
}

async fn a_token_names_one_value(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let first = secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    assert_eq!(secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap(), first);
    secrets.promote(&key, &first, None).await.unwrap();
    assert_eq!(secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap(), first);
    let other = secrets.put_pending(&key, &value("other"), &token(1)).await;
    assert!(matches!(other, Err(Error::TokenReused)), "{other:?}");
    assert_eq!(secrets.list_versions(&key).await.unwrap().len(), 1);
    assert_eq!(VersionId::parse(first.as_str()).unwrap(), first);
}

async fn of_two_promotions_one_wins(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(secrets.put_pending(&key, &value(&number.to_string()), &token(number)).await.unwrap());
    }
    secrets.promote(&key, &ids[0], None).await.unwrap();
    secrets.promote(&key, &ids[1], Some(&ids[0])).await.unwrap();
    for stale in [None, Some(&ids[0]), Some(&ids[2])] {
        match secrets.promote(&key, &ids[2], stale).await {
            Err(Error::Conflict { current }) => assert_eq!(current.as_ref(), Some(&ids[1])),
            other => panic!("a stale promotion gave {other:?}"),
        }
    }
    let missing = VersionId::parse(token(9).as_str()).unwrap();
    let promoted = secrets.promote(&key, &missing, Some(&ids[1])).await;
    assert!(matches!(promoted, Err(Error::VersionNotFound)), "{promoted:?}");
    assert_eq!(current(&secrets, &key).await.unwrap().0, ids[1]);
}

async fn promoting_again_succeeds(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let first = secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    for _ in 0..2 {
        secrets.promote(&key, &first, None).await.unwrap();
    }
}

async fn deleting_is_for_good_and_repeatable(place: &Place) {
    let (secrets, key, deeper) = (place.open(Environment::Dev).await, key("a"), key("a/b"));
    let first = secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    let second = secrets.put_pending(&key, &value("two"), &token(2)).await.unwrap();
    secrets.put_pending(&deeper, &value("deeper"), &token(1)).await.unwrap();
    secrets.promote(&key, &first, None).await.unwrap();
    let deleted = secrets.delete_version(&key, &first).await;
    assert!(matches!(deleted, Err(Error::IsCurrent)), "{deleted:?}");
    for _ in 0..2 {
        secrets.delete_version(&key, &second).await.unwrap();
        assert!(secrets.get_version(&key, &second).await.unwrap().is_none());
    }
    for _ in 0..2 {
        secrets.delete(&key).await.unwrap();
        assert!(secrets.get_current(&key).await.unwrap().is_none());
    }
    assert_eq!(secrets.list_versions(&deeper).await.unwrap().len(), 1);
    // The name can be used anew.
    let again = secrets.put_pending(&key, &value("three"), &token(3)).await.unwrap();
    secrets.promote(&key, &again, None).await.unwrap();
    assert_eq!(current(&secrets, &key).await.unwrap().1, b"three");
}

async fn bounds_are_kept(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let over = secrets.put_pending(&key, &Secret::new(vec![1; MAX_VALUE_BYTES + 1]), &token(1)).await;
    assert!(matches!(over, Err(Error::TooLarge { .. })), "{over:?}");
    assert!(secrets.put_pending(&key, &Secret::new(Vec::new()), &token(1)).await.is_err());
    for number in 0..MAX_VERSIONS {
        secrets.put_pending(&key, &Secret::new(vec![7; MAX_VALUE_BYTES]), &token(number)).await.unwrap();
    }
    let over = secrets.put_pending(&key, &value("x"), &token(99)).await;
    assert!(matches!(over, Err(Error::TooManyVersions)), "{over:?}");
    assert_eq!(secrets.list_versions(&key).await.unwrap().len(), MAX_VERSIONS);
    let over = secrets.seal("p", &Secret::new(vec![0; MAX_SEALED_BYTES + 1])).await;
    assert!(matches!(over, Err(Error::TooLarge { .. })));
    let sealed = secrets.seal("p", &Secret::new(vec![3; MAX_SEALED_BYTES])).await.unwrap();
    assert_eq!(secrets.unseal("p", &sealed).await.unwrap().expose().len(), MAX_SEALED_BYTES);
}

async fn values_of_any_bytes_come_back(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let bytes: Vec<u8> = (0..=255).collect();
    let id = secrets.put_pending(&key, &Secret::new(bytes.clone()), &token(1)).await.unwrap();
    let back = secrets.get_version(&key, &id).await.unwrap().unwrap();
    assert_eq!(back.value.expose(), &bytes);
    assert!(!format!("{back:?}").contains("1, 2, 3"), "a value was printed");
}

async fn concurrent_writers_lose_nothing(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let writers: Vec<_> = (0..MAX_VERSIONS)
        .map(|number| {
            let (secrets, key) = (secrets.clone(), key.clone());
            tokio::spawn(async move {
                secrets.put_pending(&key, &value(&number.to_string()), &token(number)).await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(secrets.list_versions(&key).await.unwrap().len(), MAX_VERSIONS);
}

async fn racing_promotions_have_one_winner(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    let mut ids = Vec::new();
    for number in 0..MAX_VERSIONS {
        ids.push(secrets.put_pending(&key, &value(&number.to_string()), &token(number)).await.unwrap());
    }
    secrets.promote(&key, &ids[0], None).await.unwrap();
    let racers: Vec<_> = ids[1..]
        .iter()
        .map(|id| {
            let (secrets, key, id, from) = (secrets.clone(), key.clone(), id.clone(), ids[0].clone());
            tokio::spawn(async move { secrets.promote(&key, &id, Some(&from)).await.map(|()| id) })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(id) => winners.push(id),
            Err(Error::Conflict { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(current(&secrets, &key).await.unwrap().0, winners[0]);
}

async fn sealed_values_open_for_their_purpose_only(place: &Place) {
    let secrets = place.open(Environment::Dev).await;
    let sealed = secrets.seal("escrow/1", &value("raw answer")).await.unwrap();
    assert!(!sealed.windows(10).any(|window| window == b"raw answer"));
    assert_eq!(secrets.unseal("escrow/1", &sealed).await.unwrap().expose(), b"raw answer");
    assert_ne!(
        secrets.seal("escrow/1", &value("raw answer")).await.unwrap(),
        sealed,
        "a nonce was used twice"
    );
    let mut altered = sealed.clone();
    *altered.last_mut().unwrap() ^= 1;
    for (purpose, bytes) in
        [("escrow/2", &sealed[..]), ("escrow/1", &altered), ("escrow/1", b""), ("escrow/1", &[1; 60])]
    {
        let opened = secrets.unseal(purpose, bytes).await;
        assert!(matches!(opened, Err(Error::DoesNotOpen)), "{purpose}: {opened:?}");
    }
}

async fn rotated_keys_open_what_they_sealed(place: &Place) {
    let (secrets, key) = (place.open(Environment::Dev).await, key("a"));
    secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    let mut sealed = Vec::new();
    let mut ids = vec![secrets.health().await.unwrap().sealing_key.id];
    for number in 0..3 {
        sealed.push(secrets.seal("p", &value(&number.to_string())).await.unwrap());
        ids.push(secrets.rotate_sealing_key().await.unwrap().id);
    }
    for (number, sealed) in sealed.iter().enumerate() {
        assert_eq!(secrets.unseal("p", sealed).await.unwrap().expose(), number.to_string().as_bytes());
    }
    ids.dedup();
    assert_eq!(ids.len(), 4, "a rotation gave no new key: {ids:?}");
    assert_eq!(secrets.list_versions(&key).await.unwrap().len(), 1);
    secrets.put_pending(&key, &value("two"), &token(2)).await.unwrap();
}

async fn a_restart_changes_nothing(place: &Place) {
    let secrets = place.open(Environment::Dev).await;
    let key = key("token-broker/connections/0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e");
    let first = secrets.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    secrets.promote(&key, &first, None).await.unwrap();
    secrets.put_pending(&key, &value("two"), &token(2)).await.unwrap();
    secrets.rotate_sealing_key().await.unwrap();
    let sealed = secrets.seal("p", &value("text")).await.unwrap();
    let listed = secrets.list_versions(&key).await.unwrap();
    drop(secrets);
    let secrets = place.open(Environment::Dev).await;
    assert_eq!(secrets.list_versions(&key).await.unwrap(), listed);
    assert_eq!(current(&secrets, &key).await, Some((first, b"one".to_vec())));
    assert_eq!(secrets.unseal("p", &sealed).await.unwrap().expose(), b"text");
}

async fn environments_are_apart(place: &Place) {
    if place.single_process {
        // One store belongs to one environment; the embedded store's own tests see the other refused.
        return;
    }
    let (dev, key) = (place.open(Environment::Dev).await, key("a"));
    dev.put_pending(&key, &value("one"), &token(1)).await.unwrap();
    let sealed = dev.seal("p", &value("text")).await.unwrap();
    let config = place.config.as_ref().unwrap();
    let staging =
        Secrets::open(config, Environment::Staging, Clock::system(), Entropy::system()).await.unwrap();
    assert!(staging.list_versions(&key).await.unwrap().is_empty());
    assert!(matches!(staging.unseal("p", &sealed).await, Err(Error::DoesNotOpen)));
}

async fn health_names_the_key(place: &Place) {
    let secrets = place.open(Environment::Dev).await;
    let health = secrets.health().await.unwrap();
    assert!(!health.sealing_key.id.is_empty());
    assert!(health.sealing_key.created_at > Timestamp::from_seconds(1_000_000_000));
}

#[tokio::test]
async fn a_server_that_is_away_or_refuses_is_told_apart() {
    let Some(server) = OpenBao::start_or_skip() else { return };
    let folder = folder();
    let mut config = Config { backend: BackendKind::Vault, ..Config::default() };
    config.vault.address = server.address();
    config.vault.token_file = folder.path().join("token");
    config.vault.timeout_ms = 1000;
    let open = || Secrets::open(&config, Environment::Dev, Clock::system(), Entropy::system());
    assert!(matches!(open().await, Err(Error::Unavailable(_))), "no token file");
    std::fs::write(&config.vault.token_file, "wrong").unwrap();
    assert!(matches!(open().await, Err(Error::Denied(_))), "a wrong token");
    std::fs::write(&config.vault.token_file, OpenBao::token()).unwrap();
    let staging = Secrets::open(&config, Environment::Staging, Clock::system(), Entropy::system()).await;
    assert!(
        matches!(staging, Err(Error::Setup(text)) if text.contains("bao write")),
        "outside dev no key is made"
    );
    let secrets = open().await.unwrap();
    secrets.put_pending(&key("a"), &value("one"), &token(1)).await.unwrap();
    // The agent renews the token in the file.
    std::fs::write(&config.vault.token_file, "expired").unwrap();
    assert!(matches!(secrets.get_current(&key("a")).await, Err(Error::Denied(_))));
    std::fs::write(&config.vault.token_file, OpenBao::token()).unwrap();
    assert_eq!(secrets.list_versions(&key("a")).await.unwrap().len(), 1);
    drop(server);
    let away = secrets.put_pending(&key("a"), &value("two"), &token(2)).await;
    assert!(matches!(away, Err(Error::Unavailable(_))), "{away:?}");
}
