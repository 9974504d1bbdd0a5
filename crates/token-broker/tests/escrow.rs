//! Answers in escrow that can't be opened for a time: OpenBao's Transit key opens nothing of before, until it does again.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use gatehouse_core::{Clock, Entropy, Environment};
use gatehouse_secrets::{BackendKind, Config, Secrets};
use gatehouse_testkit::oauth_provider::Rotation;
use gatehouse_testkit::{OpenBao, TestDb, both_engines};
use gatehouse_token_broker::{Step, Steps};
use serde_json::json;
use support::{Person, World, get, reason, works};

struct Bao {
    server: OpenBao,
    config: Config,
    _folder: tempfile::TempDir,
}

impl Bao {
    /// None where skipping is allowed.
    fn start() -> Option<Self> {
        let server = OpenBao::start_or_skip()?;
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { backend: BackendKind::Vault, ..Config::default() };
        config.vault.address = server.address();
        config.vault.token_file = folder.path().join("token");
        std::fs::write(&config.vault.token_file, OpenBao::token()).unwrap();
        Some(Self { server, config, _folder: folder })
    }

    async fn post(&self, path: &str, body: serde_json::Value) {
        let key = &self.config.vault.transit_key;
        let address = format!("{}/v1/transit/keys/{key}/{path}", self.server.address());
        let request = reqwest::Client::new().post(address).header("X-Vault-Token", OpenBao::token());
        let answer = request.json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// What was sealed before does not open any more.
    async fn close(&self) {
        self.post("rotate", json!({})).await;
        let health = self.secrets(&Clock::system()).await.health().await.unwrap();
        let newest: u64 = health.sealing_key.id.trim_start_matches('v').parse().unwrap();
        self.post("config", json!({ "min_decryption_version": newest })).await;
    }

    async fn reopen(&self) {
        self.post("config", json!({ "min_decryption_version": 1 })).await;
    }

    async fn secrets(&self, clock: &Clock) -> Secrets {
        Secrets::open(&self.config, Environment::Dev, clock.clone(), Entropy::system()).await.unwrap()
    }

    async fn world(&self, db: TestDb) -> World {
        let clock = Clock::settable(Clock::system().now());
        let secrets = self.secrets(&clock).await;
        let mut world = World::with_secrets(db, Rotation::StrictFamily, clock, secrets).await;
        world.config.wait_ms = 20_000;
        world
    }
}

/// A connection of a fresh person whose newest tokens lie in escrow: their process died.
async fn left_in_escrow(world: &World) -> (Person, String) {
    let (replica, person) = (world.start().await, Person::new());
    let connection = world.connect(&replica, &person).await.unwrap().connection_id;
    replica.stop().await;
    world.expire_access_tokens();
    let dying = world.start_with(Steps::watched(|reached| reached != Step::EscrowCommitted), true).await;
    assert_eq!(reason(get(&mut dying.client(&world.person_token(&person))).await), "INTERRUPTED");
    dying.stop().await;
    assert_eq!(world.rotation_states().await.last().unwrap(), "answered");
    (person, connection)
}

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// It is kept, the token that it replaces is not shown again, and once it opens its tokens are used.
    async fn an_escrow_that_does_not_open_now_is_kept_until_it_does(db: TestDb) {
        let Some(bao) = Bao::start() else { return };
        let world = bao.world(db).await;
        let (person, connection) = left_in_escrow(&world).await;
        bao.close().await;
        let replica = world.start().await;
        let mut client = replica.client(&world.person_token(&person));
        for _ in 0..3 {
            assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
            replica.broker.sweep().await.unwrap();
            world.clock.advance(Duration::from_secs(20));
        }
        assert_eq!(world.provider.counters().refresh_attempts, 1, "the token that was used up was shown again");
        assert_eq!(world.rotation_states().await, ["answered"], "the escrow was given up");
        let told = world.actions().await;
        assert!(told.iter().any(|action| action == "token-broker.tokens.rotate ESCROW_UNREADABLE"), "{told:?}");

        bao.reopen().await;
        world.clock.advance(Duration::from_secs(60));
        let token = get(&mut client).await.unwrap().access_token;
        assert!(works(&world.provider, &token).await);
        assert_eq!(world.provider.counters().refresh_attempts, 1, "the escrow's tokens were not used");
        let current = world.current(&person, &connection).await.unwrap();
        assert!(world.provider.would_accept_refresh_token(&current));
        world.expire_access_tokens();
        assert_eq!(reason(get(&mut client).await), "");
        assert_eq!(world.rotation_states().await, ["done", "done"]);
        replica.stop().await;
    }

    /// Where the key is gone for good the person connects again, or disconnects: that gives the escrow up.
    async fn a_new_consent_gives_up_an_escrow_that_does_not_open(db: TestDb) {
        let Some(bao) = Bao::start() else { return };
        let world = bao.world(db).await;
        let (person, connection) = left_in_escrow(&world).await;
        bao.close().await;
        let replica = world.start().await;
        let mut client = replica.client(&world.person_token(&person));
        assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
        assert_eq!(world.connect(&replica, &person).await.unwrap().connection_id, connection);
        assert_eq!(world.rotation_states().await, ["superseded"]);
        assert!(works(&world.provider, &get(&mut client).await.unwrap().access_token).await);
        bao.reopen().await;
        world.expire_access_tokens();
        assert!(works(&world.provider, &get(&mut client).await.unwrap().access_token).await);
        let current = world.current(&person, &connection).await.unwrap();
        assert!(world.provider.would_accept_refresh_token(&current), "the consent's token was replaced");
        replica.stop().await;

        let (person, connection) = left_in_escrow(&world).await;
        bao.close().await;
        let replica = world.start().await;
        let mut client = replica.client(&world.person_token(&person));
        assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
        let key = World::secret_key(&person, &connection);
        let request = gatehouse_proto::token_broker::v1::DisconnectRequest { connection_id: connection };
        client.disconnect(request).await.unwrap();
        assert!(world.secrets.list_versions(&key).await.unwrap().is_empty());
        assert_eq!(reason(get(&mut client).await), "CONNECTION_NOT_FOUND");
        replica.stop().await;
    }
}
