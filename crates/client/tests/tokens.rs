//! A service's own tokens while auth is slow or away.

#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use gatehouse_client::{
    Authorized, ChannelConfig, ClientCredentials, TokenSource, audience, channel, to_status,
};
use gatehouse_core::{Clock, Error, Secret, Timestamp};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::token_service_server::{TokenService, TokenServiceServer};
use gatehouse_proto::auth::v1::{
    ExchangeTokenRequest, ExchangeTokenResponse, GetJwksRequest, GetJwksResponse, IntrospectTokenRequest,
    IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, RevokeTokenRequest, RevokeTokenResponse,
    WatchRevocationsRequest, WatchRevocationsResponse,
};
use gatehouse_testkit::eventually;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

/// How long a token lives.
const LIFE: Duration = Duration::from_secs(100);
/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// What auth does with whoever asks.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Hangs,
    Refuses,
}

#[derive(Clone)]
struct Auth {
    clock: Clock,
    asked: Arc<AtomicUsize>,
    mood: watch::Receiver<Mood>,
    /// How any other call is refused, and what it showed.
    refusal: Arc<Mutex<Option<Status>>>,
    shown: Arc<Mutex<String>>,
}

#[tonic::async_trait]
impl TokenService for Auth {
    async fn issue_token(
        &self,
        _: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut mood = self.mood.clone();
        let mood = *mood.wait_for(|mood| *mood != Mood::Hangs).await.unwrap();
        if mood == Mood::Refuses {
            return Err(Status::unauthenticated("no"));
        }
        Ok(Response::new(IssueTokenResponse {
            access_token: format!("t{number}"),
            expires_at: self.clock.now().plus(LIFE).as_micros(),
            scope: String::new(),
        }))
    }

    async fn exchange_token(
        &self,
        _: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn introspect_token(
        &self,
        request: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        let shown = request.metadata().get("authorization").unwrap().to_str().unwrap();
        shown.trim_start_matches("Bearer ").clone_into(&mut self.shown.lock().unwrap());
        let refusal = self.refusal.lock().unwrap().clone();
        refusal.map_or_else(|| Ok(Response::new(IntrospectTokenResponse::default())), Err)
    }

    async fn revoke_token(
        &self,
        _: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_jwks(&self, _: Request<GetJwksRequest>) -> Result<Response<GetJwksResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    type WatchRevocationsStream = ReceiverStream<Result<WatchRevocationsResponse, Status>>;

    async fn watch_revocations(
        &self,
        _: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A source of tokens, and the auth that it asks.
struct World {
    tokens: TokenSource,
    clock: Clock,
    asked: Arc<AtomicUsize>,
    mood: watch::Sender<Mood>,
    refusal: Arc<Mutex<Option<Status>>>,
    shown: Arc<Mutex<String>>,
    client: TokenServiceClient<Authorized>,
}

impl World {
    async fn new(mood: Mood) -> Self {
        let clock = Clock::settable(Timestamp::from_seconds(1_790_000_000));
        let (mood, moods) = watch::channel(mood);
        let asked = Arc::<AtomicUsize>::default();
        let (refusal, shown) = (Arc::<Mutex<_>>::default(), Arc::<Mutex<_>>::default());
        let auth = Auth {
            clock: clock.clone(),
            asked: Arc::clone(&asked),
            mood: moods,
            refusal: Arc::clone(&refusal),
            shown: Arc::clone(&shown),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Server::builder().add_service(TokenServiceServer::new(auth));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let config = ChannelConfig {
            request_timeout_ms: u64::try_from(DEADLINE.as_millis()).unwrap(),
            ..ChannelConfig::to(format!("http://{address}"))
        };
        let credentials =
            ClientCredentials { client_id: "gateway".into(), client_secret: Secret::new("none".into()) };
        let channel = channel(&config).unwrap();
        let tokens = TokenSource::new(channel.clone(), credentials, clock.clone());
        let client = TokenServiceClient::new(Authorized::as_client(channel, tokens.clone(), audience::JOB));
        Self { tokens, clock, asked, mood, refusal, shown, client }
    }

    /// Calls a service that refuses, or not, and tells which token it showed.
    async fn shows(&self, refusal: Option<Status>) -> String {
        let is_refused = refusal.is_some();
        *self.refusal.lock().unwrap() = refusal;
        let answer = self.client.clone().introspect_token(IntrospectTokenRequest::default()).await;
        assert_eq!(answer.is_err(), is_refused, "{answer:?}");
        self.shown.lock().unwrap().clone()
    }

    async fn token(&self) -> gatehouse_core::Result<String> {
        self.tokens.token(audience::JOB).await.map(|token| token.expose().clone())
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// One after the other, the last of them would wait for twenty times the deadline of one call.
#[tokio::test]
async fn whoever_waits_for_an_auth_that_hangs_waits_for_one_call() {
    let world = World::new(Mood::Hangs).await;
    let all = join_all((0..20).map(|_| world.token()));
    let answers = tokio::time::timeout(DEADLINE * 5, all).await.expect("they waited one after the other");
    for answer in answers {
        assert_eq!(answer.unwrap_err().reason(), "DEADLINE_EXCEEDED");
    }
    // Whoever comes later asks anew.
    world.mood.send_replace(Mood::Answers);
    assert_eq!(world.token().await.unwrap(), format!("t{}", world.asked()));
    assert_eq!(world.token().await.unwrap(), format!("t{}", world.asked()));
}

#[tokio::test]
async fn a_token_is_renewed_behind_the_callers_backs() {
    let world = World::new(Mood::Answers).await;
    assert_eq!(world.token().await.unwrap(), "t1");
    world.clock.advance(LIFE / 2);
    assert_eq!((world.token().await.unwrap(), world.asked()), ("t1".to_owned(), 1));
    world.mood.send_replace(Mood::Hangs);
    world.clock.advance(LIFE * 35 / 100);
    // Nobody waits for auth: the token still lives.
    for _ in 0..20 {
        assert_eq!(world.token().await.unwrap(), "t1");
    }
    eventually(PATIENCE, || async { world.asked() == 2 }).await;
    world.mood.send_replace(Mood::Answers);
    eventually(PATIENCE, || async { world.token().await.unwrap() == "t2" }).await;
    assert_eq!(world.asked(), 2);
}

#[tokio::test]
async fn a_token_that_lives_is_used_although_auth_refuses_another() {
    let world = World::new(Mood::Answers).await;
    assert_eq!(world.token().await.unwrap(), "t1");
    world.mood.send_replace(Mood::Refuses);
    world.clock.advance(LIFE * 85 / 100);
    assert_eq!(world.token().await.unwrap(), "t1");
    eventually(PATIENCE, || async { world.asked() == 2 }).await;
    // It is asked for again, but not by each caller.
    for _ in 0..20 {
        assert_eq!(world.token().await.unwrap(), "t1");
    }
    assert!(world.asked() <= 3, "{}", world.asked());
    world.clock.advance(LIFE);
    assert_eq!(world.token().await.unwrap_err().code(), gatehouse_core::ErrorCode::Unauthenticated);
}

/// The one who began to ask leaves, and the call goes on: whoever stays waits for that one.
#[tokio::test]
async fn an_answer_belongs_to_all_who_wait_for_it_whoever_leaves() {
    let world = Arc::new(World::new(Mood::Hangs).await);
    let ask = || {
        tokio::spawn({
            let world = Arc::clone(&world);
            async move { world.token().await }
        })
    };
    let first = ask();
    eventually(PATIENCE, || async { world.asked() == 1 }).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let others: Vec<_> = (0..20).map(|_| ask()).collect();
    tokio::task::yield_now().await;
    world.mood.send_replace(Mood::Answers);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap(), "t1");
    }
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn a_token_that_may_end_on_its_way_is_not_shown() {
    let world = World::new(Mood::Answers).await;
    assert_eq!(world.token().await.unwrap(), "t1");
    world.mood.send_replace(Mood::Hangs);
    world.clock.advance(LIFE * 979 / 1000);
    assert_eq!(world.token().await.unwrap(), "t1");
    eventually(PATIENCE, || async { world.asked() == 2 }).await;
    // It lives, yet whoever wants one waits for the next.
    world.clock.advance(Duration::from_millis(200));
    let (token, _) = tokio::join!(world.token(), async { world.mood.send_replace(Mood::Answers) });
    assert_eq!(token.unwrap(), "t2");
}

/// Only a refusal of the token itself speaks against the token: not one of what a call carries, as of a wrong password.
#[tokio::test]
async fn a_token_is_forgotten_when_it_was_refused_itself() {
    let world = World::new(Mood::Answers).await;
    let refused = |reason: &'static str| Some(to_status(&Error::unauthenticated(reason, "No.")));
    let foreign = Some(Status::unauthenticated("no"));
    for other in [refused("SUBJECT_TOKEN_INVALID"), refused("CREDENTIAL_INVALID"), foreign, None] {
        assert_eq!(world.shows(other).await, "t1");
    }
    let denied = Error::permission_denied("TOKEN_INVALID", "No.");
    assert_eq!(world.shows(Some(to_status(&denied))).await, "t1");
    let mut number = 1;
    for reason in ["TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "TOKEN_MISSING"] {
        assert_eq!(world.shows(refused(reason)).await, format!("t{number}"));
        number += 1;
        assert_eq!(world.shows(None).await, format!("t{number}"));
    }
    assert_eq!(world.asked(), number);
    // What was renewed meanwhile stays.
    world.tokens.forget(audience::JOB, &Secret::new("t4".to_owned()));
    assert_eq!(world.token().await.unwrap(), "t5");
    world.tokens.forget(audience::JOB, &Secret::new("t5".to_owned()));
    assert_eq!(world.token().await.unwrap(), "t6");
}
