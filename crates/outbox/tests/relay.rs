//! The relay against an audit service that goes away, loses answers and refuses events.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatehouse_client::{Authorized, ChannelConfig, channel, to_status};
use gatehouse_core::{Clock, Entropy, Error};
use gatehouse_db::{Migrations, run_tx};
use gatehouse_outbox::{Config, MIGRATION, Outbox, Relay, Status, all_sql};
use gatehouse_proto::audit::v1::audit_service_server::{AuditService, AuditServiceServer};
use gatehouse_proto::audit::v1::{
    AppendEventsRequest, AppendEventsResponse, EraseSubjectRequest, EraseSubjectResponse,
    ExportLeavesRequest, ExportLeavesResponse, GetCheckpointRequest, GetCheckpointResponse,
    GetConsistencyProofRequest, GetConsistencyProofResponse, GetEventRequest, GetEventResponse,
    GetInclusionProofRequest, GetInclusionProofResponse, ListEventsRequest, ListEventsResponse,
    ListLogsRequest, ListLogsResponse,
};
use gatehouse_service::Lifecycle;
use gatehouse_testkit::{TestDb, both_engines};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status as GrpcStatus};

const MIGRATIONS: Migrations = Migrations::new(&[("0001_init", MIGRATION)]);

/// Takes events as the real one does, each id once, and fails on demand.
#[derive(Clone, Default)]
struct FakeAudit(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    actions: Vec<String>,
    payloads: Vec<String>,
    /// Fails on each event of `test.damaged`.
    damaged: bool,
    ids: HashSet<String>,
    calls: u32,
    /// The answer to this many calls is lost after the events were taken.
    lose_answers: u32,
    away: bool,
}

#[tonic::async_trait]
impl AuditService for FakeAudit {
    async fn append_events(
        &self,
        request: Request<AppendEventsRequest>,
    ) -> Result<Response<AppendEventsResponse>, GrpcStatus> {
        let mut log = self.0.lock().unwrap();
        log.calls += 1;
        if log.away {
            return Err(GrpcStatus::unavailable("away"));
        }
        let events = request.into_inner().events;
        if let Some(place) = events.iter().position(|event| event.reason == "POISON") {
            let error = Error::invalid_argument("EVENT_INVALID", "not of the list");
            return Err(to_status(
                &error.with_violation(format!("events[{place}].reason"), "not of the list"),
            ));
        }
        if events.iter().any(|event| event.action == "test.hopeless") {
            return Err(to_status(&Error::invalid_argument("EVENT_INVALID", "nothing in particular")));
        }
        if log.damaged && events.iter().any(|event| event.action == "test.damaged") {
            return Err(to_status(&Error::internal("a key is damaged")));
        }
        for event in events {
            if log.ids.insert(event.event_id.clone()) {
                log.actions.push(event.action);
                log.payloads.push(event.payload_json);
            }
        }
        if log.lose_answers > 0 {
            log.lose_answers -= 1;
            return Err(GrpcStatus::unavailable("the answer was lost"));
        }
        Ok(Response::new(AppendEventsResponse::default()))
    }

    async fn list_events(
        &self,
        _: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn get_event(&self, _: Request<GetEventRequest>) -> Result<Response<GetEventResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn list_logs(&self, _: Request<ListLogsRequest>) -> Result<Response<ListLogsResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn get_checkpoint(
        &self,
        _: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn get_inclusion_proof(
        &self,
        _: Request<GetInclusionProofRequest>,
    ) -> Result<Response<GetInclusionProofResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn get_consistency_proof(
        &self,
        _: Request<GetConsistencyProofRequest>,
    ) -> Result<Response<GetConsistencyProofResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    type ExportLeavesStream = tokio_stream::Empty<Result<ExportLeavesResponse, GrpcStatus>>;
    async fn export_leaves(
        &self,
        _: Request<ExportLeavesRequest>,
    ) -> Result<Response<Self::ExportLeavesStream>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
    async fn erase_subject(
        &self,
        _: Request<EraseSubjectRequest>,
    ) -> Result<Response<EraseSubjectResponse>, GrpcStatus> {
        Err(GrpcStatus::unimplemented(""))
    }
}

impl FakeAudit {
    fn actions(&self) -> Vec<String> {
        self.0.lock().unwrap().actions.clone()
    }

    async fn serve(&self, address: SocketAddr, lifecycle: &Lifecycle) -> SocketAddr {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (service, stopping) = (self.clone(), lifecycle.stopping());
        lifecycle.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(AuditServiceServer::new(service))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopping.cancelled_owned())
                .await
                .unwrap();
        });
        address
    }
}

struct Setup {
    db: TestDb,
    outbox: Outbox,
}

impl Setup {
    fn on(db: TestDb) -> Self {
        Self { db, outbox: Outbox::new(Clock::system(), Entropy::system()) }
    }

    async fn emit(&self, action: &str) {
        let event = self.outbox.event(action).payload(json!({"ip": "192.0.2.1"}));
        run_tx!(self.db, "test.emit", |tx| {
            self.outbox.emit(tx, &event).await?;
            // A block that runs again emits again.
            self.outbox.emit(tx, &event).await
        })
        .unwrap();
    }

    fn relay(&self, address: SocketAddr, batch: u32) -> Relay {
        let audit = Authorized::anonymous(channel(&ChannelConfig::to(format!("http://{address}"))).unwrap());
        let config = Config { batch, poll_ms: 20, max_backoff_ms: 50, ..Config::default() };
        Relay::new(
            "test",
            (*self.db).clone(),
            audit,
            &self.outbox,
            config,
            Clock::system(),
            Entropy::system(),
        )
    }
}

async fn until<F: AsyncFn() -> bool>(what: &str, condition: F) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| format!("test.n{number}")).collect()
}

async fn is_empty(relay: &Relay) -> bool {
    relay.status().await.unwrap() == Status::default()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn every_statement_prepares(db: TestDb) {
        db.prepare_all(&all_sql()).await.unwrap();
    }

    async fn events_wait_while_the_audit_service_is_away_and_arrive_once_and_in_order(db: TestDb) {
        let setup = Setup::on(db);
        let fake = FakeAudit::default();
        let servers = Lifecycle::new();
        let address = fake.serve(([127, 0, 0, 1], 0).into(), &servers).await;
        servers.drain(Duration::from_secs(5)).await;

        let relay = setup.relay(address, 7);
        let lifecycle = Lifecycle::new();
        relay.clone().start(&lifecycle);
        for action in numbered(0..40) {
            setup.emit(&action).await;
        }
        let status = relay.status().await.unwrap();
        assert_eq!((status.waiting, status.refused), (40, 0));
        assert!(status.oldest_age > Duration::ZERO);

        fake.0.lock().unwrap().lose_answers = 3;
        let servers = Lifecycle::new();
        fake.serve(address, &servers).await;
        until("all arrived", async || is_empty(&relay).await).await;
        assert_eq!(fake.actions(), numbered(0..40));

        // The bell, not the poll, brings the next one; and what comes last is sent before the end.
        setup.emit("test.n40").await;
        until("the next arrived", async || fake.actions().len() == 41).await;
        setup.emit("test.n41").await;
        assert!(lifecycle.drain(Duration::from_secs(10)).await);
        assert_eq!(fake.actions(), numbered(0..42));
        servers.drain(Duration::from_secs(5)).await;
    }

    async fn a_transaction_that_rolls_back_leaves_no_event(db: TestDb) {
        let setup = Setup::on(db);
        let event = setup.outbox.event("test.never");
        let result: gatehouse_db::Result<()> = run_tx!(setup.db, "test.emit", |tx| {
            setup.outbox.emit(tx, &event).await?;
            Err(gatehouse_core::Error::internal("on purpose").into())
        });
        assert!(result.is_err());
        assert!(is_empty(&setup.relay(([127, 0, 0, 1], 1).into(), 1)).await);
    }

    async fn a_refused_event_is_set_aside_and_the_others_arrive(db: TestDb) {
        let setup = Setup::on(db);
        let fake = FakeAudit::default();
        let servers = Lifecycle::new();
        let address = fake.serve(([127, 0, 0, 1], 0).into(), &servers).await;
        setup.emit("test.n0").await;
        let poison = setup.outbox.event("test.poison").denied("POISON").payload(json!({"ip": "192.0.2.1"}));
        run_tx!(setup.db, "test.emit", |tx| { setup.outbox.emit(tx, &poison).await }).unwrap();
        setup.emit("test.hopeless").await;
        setup.emit("test.n1").await;
        let relay = setup.relay(address, 100);
        let lifecycle = Lifecycle::new();
        relay.clone().start(&lifecycle);
        until("all were dealt with", async || relay.status().await.unwrap().waiting == 0).await;
        // It arrived without the field that was refused, and says so.
        assert_eq!(fake.actions(), ["test.n0", "test.poison", "test.n1"]);
        let payload = fake.0.lock().unwrap().payloads[1].clone();
        assert_eq!(payload, r#"{"ip":"192.0.2.1","left_out_fields":["reason"]}"#);
        // Both stay for a person to look at.
        assert_eq!(relay.status().await.unwrap().refused, 2);
        lifecycle.drain(Duration::from_secs(5)).await;
        servers.drain(Duration::from_secs(5)).await;
    }

    async fn an_event_that_the_audit_service_fails_on_keeps_no_other(db: TestDb) {
        let setup = Setup::on(db);
        let fake = FakeAudit::default();
        fake.0.lock().unwrap().damaged = true;
        let servers = Lifecycle::new();
        let address = fake.serve(([127, 0, 0, 1], 0).into(), &servers).await;
        for action in ["test.n0", "test.damaged", "test.n1", "test.damaged", "test.n2"] {
            setup.emit(action).await;
        }
        // Batches that the stuck ones would fill.
        let relay = setup.relay(address, 2);
        let lifecycle = Lifecycle::new();
        relay.clone().start(&lifecycle);
        until("the others arrived", async || fake.actions().len() == 3).await;
        setup.emit("test.n3").await;
        until("later ones arrive", async || fake.actions() == numbered(0..4)).await;
        // An event leaves the table after its answer came, so a moment after it is in the log.
        until("only those are left", async || relay.status().await.unwrap().waiting == 2).await;
        assert_eq!(relay.status().await.unwrap().refused, 0);
        fake.0.lock().unwrap().damaged = false;
        until("they arrived in the end", async || is_empty(&relay).await).await;
        assert_eq!(fake.actions().len(), 6);
        lifecycle.drain(Duration::from_secs(5)).await;
        servers.drain(Duration::from_secs(5)).await;
    }

    async fn one_of_several_replicas_relays_and_another_goes_on_after_it(db: TestDb) {
        let setup = Setup::on(db);
        let fake = FakeAudit::default();
        let servers = Lifecycle::new();
        let address = fake.serve(([127, 0, 0, 1], 0).into(), &servers).await;
        let replicas: Vec<Lifecycle> = (0..3).map(|_| Lifecycle::new()).collect();
        for lifecycle in &replicas {
            setup.relay(address, 3).start(lifecycle);
        }
        let mut expected = 0;
        for replica in &replicas {
            for number in expected..expected + 20 {
                setup.emit(&format!("test.n{number}")).await;
            }
            expected += 20;
            until("all arrived", async || fake.actions().len() == expected as usize).await;
            assert!(replica.drain(Duration::from_secs(10)).await);
        }
        assert_eq!(fake.actions(), numbered(0..expected));
        servers.drain(Duration::from_secs(5)).await;
    }

    async fn an_event_with_words_that_no_log_takes_fails_where_it_is_made(db: TestDb) {
        let setup = Setup::on(db);
        let event = setup.outbox.event("Not An Action");
        let result = run_tx!(setup.db, "test.emit", |tx| { setup.outbox.emit(tx, &event).await });
        assert!(result.is_err());
    }
}
