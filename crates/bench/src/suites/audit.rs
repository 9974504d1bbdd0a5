//! The audit log: appending and proving.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gatehouse_client::{Authorized, audience};
use gatehouse_core::Clock;
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::audit::v1::{AppendEventsRequest, NewEvent, Outcome};
use tokio::process::Command;

use super::{held, modes};
use crate::cluster::{Cluster, Engine};
use crate::figure::{Run, Sample};
use crate::load::{Caller, count, drive};
use crate::people::Person;
use crate::people::fresh_id;
use crate::session::Session;

/// As the outbox's relay sends them.
const BATCH: usize = 200;
const RELAYS: usize = 4;
/// A log shorter than this would measure the start of the program.
const ENOUGH: u64 = 20_000;

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    for (engine, key) in modes("audit.append", "audit.append@sqlite") {
        held(session, run, key, append(session, engine, 1, session.callers)).await?;
    }
    held(session, run, "audit.append-batch", append(session, Engine::Postgres, BATCH, RELAYS)).await?;
    held(session, run, "audit.verify", verify(session)).await
}

/// Somebody whose service has something to tell.
#[derive(Clone)]
pub(crate) struct Teller {
    log: AuditServiceClient<Authorized>,
    event: NewEvent,
    batch: usize,
}

impl Teller {
    /// Events about a new person, so many in a call.
    pub(crate) async fn new(cluster: &Cluster, batch: usize) -> Result<Self> {
        let person = Person::new(cluster).await?;
        let event = NewEvent {
            occurred_at: Clock::system().now().as_micros(),
            action: "bench.things.do".into(),
            outcome: Outcome::Success.into(),
            tenant_id: person.tenant,
            actor: person.id.clone(),
            subject_id: person.id,
            target: format!("thing/{}", fresh_id()),
            payload_json:
                r#"{"ip":"203.0.113.7","user_agent":"Mozilla/5.0 (X11; Linux x86_64)","bytes":1234}"#.into(),
            ..NewEvent::default()
        };
        let log = AuditServiceClient::new(cluster.as_client("audit", audience::AUDIT)?);
        Ok(Self { log, event, batch })
    }
}

impl Caller for Teller {
    async fn call(&mut self) -> Result<u64> {
        let events = (0..self.batch)
            .map(|_| NewEvent { event_id: fresh_id().to_string(), ..self.event.clone() })
            .collect();
        let answer = self.log.append_events(AppendEventsRequest { events }).await?.into_inner();
        ensure!(answer.events.len() == self.batch, "not all events were stored");
        Ok(self.batch as u64)
    }
}

async fn append(session: &Session, engine: Engine, batch: usize, callers: usize) -> Result<Sample> {
    let cluster = session.cluster(engine)?;
    let mut tellers = Vec::new();
    for _ in 0..session.connections {
        tellers.push(Teller::new(cluster, batch).await?);
    }
    let callers = (0..callers).map(|place| tellers[place % tellers.len()].clone()).collect();
    Ok(drive(callers, session.times, session.processes()).await?.0)
}

/// The program itself, on the log of this session: its start and its connection included.
async fn verify(session: &Session) -> Result<Sample> {
    let cluster = session.cluster(Engine::Postgres)?;
    let mut teller = Teller::new(cluster, BATCH).await?;
    let mut size = 0;
    while size < ENOUGH {
        // A log that the run before filled is long enough already.
        size = places(cluster).await?;
        if size < ENOUGH {
            for _ in 0..(ENOUGH - size).div_ceil(BATCH as u64) {
                teller.call().await?;
            }
        }
    }
    let spent = session.processes().spent()?;
    let began = Instant::now();
    let entries = places(cluster).await?;
    let took = began.elapsed();
    let cpu_us = crate::load::each(&spent, &session.processes().spent()?, entries);
    Ok(Sample { value: count(entries) / took.as_secs_f64(), cpu_us, ..Sample::default() })
}

/// Runs `verify-audit-chain` and says how many entries it verified.
async fn places(cluster: &Cluster) -> Result<u64> {
    let mut command = Command::new(cluster.program());
    command
        .args(["verify-audit-chain", "--json", "--log", "default", "--config"])
        .arg(&cluster.config)
        .env_clear()
        .env("GATEHOUSE_ENV", "dev")
        .current_dir(cluster.folder())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(300), command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    // 3: all agrees, and without a checkpoint from elsewhere the tail is not proven.
    ensure!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}: {text} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    let (size, first) = (report["size"].as_u64(), report["first"].as_u64());
    Ok(size.context("the report has no size")? - first.unwrap_or(0))
}
