//! No refresh token outside the secrets backend: not in the database, not in a log line, not in an answer.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use gatehouse_client::from_status;
use gatehouse_core::{Clock, Entropy, Environment};
use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_secrets::{EmbeddedConfig, Secrets};
use gatehouse_testkit::TestDb;
use gatehouse_testkit::oauth_provider::{Fault, Rotation};
use gatehouse_token_broker::{Step, Steps};
use prost::Message;
use support::{Person, UPSTREAM, World, consent, get};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn files_below(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

fn holds(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_is_nowhere_but_in_the_secrets_backend() {
    let log = Captured::default();
    let sink = log.clone();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || sink.clone()).init();

    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::settable(Clock::system().now());
    let embedded = EmbeddedConfig {
        folder: folder.path().join("secrets"),
        key_file: folder.path().join("keys/secrets.json"),
    };
    let config = gatehouse_secrets::Config { embedded, ..gatehouse_secrets::Config::default() };
    let secrets = Secrets::open(&config, Environment::Dev, clock.clone(), Entropy::system()).await.unwrap();
    let db = TestDb::sqlite(&gatehouse_token_broker::MIGRATIONS).await;
    let database = db.config().url.sqlite_path().unwrap();
    let world = World::with_secrets(db, Rotation::Grace(600_000), clock, secrets).await;
    let person = Person::new();

    // Everything that a broker answers, in success and failure, with escrows and pending versions left behind.
    let mut answers: Vec<(&str, Vec<u8>)> = Vec::new();
    let replica = world.start().await;
    let mut client = replica.client(&world.person_token(&person));
    let request = pb::BeginConnectionRequest { upstream: UPSTREAM.into(), scopes: vec![] };
    let begun = client.begin_connection(request).await.unwrap().into_inner();
    answers.push(("BeginConnection", begun.encode_to_vec()));
    let callback = consent(&begun.authorization_url).await;
    let code = callback.code.clone();
    let completed = client.complete_connection(callback).await.unwrap().into_inner();
    answers.push(("CompleteConnection", completed.encode_to_vec()));
    let connection_id = completed.connection.unwrap().connection_id;
    let issued = get(&mut client).await.unwrap();
    let first_access_token = issued.access_token.clone();
    answers.push(("GetAccessToken", issued.encode_to_vec()));
    for fault in [Fault::DropAnswer, Fault::Garbage, Fault::ServerErrorAfter, Fault::InvalidGrant] {
        world.expire_access_tokens();
        world.provider.inject(fault);
        let request = pb::GetAccessTokenRequest { upstream: UPSTREAM.into(), ..Default::default() };
        if let Err(status) = client.get_access_token(request).await {
            answers.push(("an error", format!("{status:?} {:?}", from_status(status.clone())).into_bytes()));
        }
        world.connect(&replica, &person).await.unwrap();
    }
    replica.stop().await;
    for step in [Step::EscrowCommitted, Step::PendingPut, Step::Promoted] {
        world.expire_access_tokens();
        let replica = world.start_with(Steps::watched(move |reached| reached != step), true).await;
        let error = get(&mut replica.client(&world.person_token(&person))).await.unwrap_err();
        answers.push(("an interruption", format!("{error:?}").into_bytes()));
        replica.stop().await;
    }
    let mut places = Vec::new();
    files_below(database.parent().unwrap(), &mut places);
    let replica = world.start().await;
    let mut client = replica.client(&world.person_token(&person));
    answers.push(("GetAccessToken", get(&mut client).await.unwrap().encode_to_vec()));
    let list = client.list_connections(pb::ListConnectionsRequest {}).await.unwrap().into_inner();
    answers.push(("ListConnections", list.encode_to_vec()));
    let ended = client.disconnect(pb::DisconnectRequest { connection_id }).await.unwrap().into_inner();
    answers.push(("Disconnect", ended.encode_to_vec()));
    replica.stop().await;

    // At rest: the database in the middle of it and after, the secrets backend's files, the log.
    files_below(database.parent().unwrap(), &mut places);
    files_below(folder.path(), &mut places);
    places.push(("the log".into(), log.0.lock().unwrap().clone()));
    assert!(places.iter().any(|(_, text)| holds(text, b"audit_outbox")), "the database was not looked at");
    assert!(holds(&places.last().unwrap().1, b"a rotation failed"), "the log was not looked at");

    let issued = world.provider.issued();
    let refresh: Vec<String> = issued.iter().filter_map(|issued| issued.refresh_token.clone()).collect();
    assert!(refresh.len() >= 8, "only {} refresh tokens were issued", refresh.len());
    for token in &refresh {
        for (place, text) in places
            .iter()
            .map(|(place, text)| (place.as_str(), text))
            .chain(answers.iter().map(|(place, text)| (*place, text)))
        {
            for form in [token.clone(), STANDARD.encode(token), URL_SAFE.encode(token)] {
                assert!(
                    !holds(text, form.trim_end_matches('=').as_bytes()),
                    "a refresh token stands in {place}"
                );
            }
        }
    }
    // Access tokens and codes may be in answers, but at rest nowhere.
    for (place, text) in &places {
        for secret in
            issued.iter().map(|issued| issued.access_token.as_str()).chain([code.as_str(), "only-a-test"])
        {
            assert!(!holds(text, secret.as_bytes()), "a secret stands in {place}");
        }
    }
    assert!(
        answers.iter().any(|(_, text)| holds(text, first_access_token.as_bytes())),
        "the search finds nothing"
    );
}
