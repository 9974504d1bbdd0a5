//! The gateway: a request through the whole pipeline, to an answer that costs nothing.

use anyhow::{Context as _, Result, ensure};

use super::{held, modes};
use crate::cluster::{Cluster, Engine};
use crate::figure::{Run, Sample};
use crate::http::{Connection, get};
use crate::load::drive;
use crate::people::Person;
use crate::session::Session;

/// Answered from the configuration: what is measured is the way there and back.
const PATH: &str = "/v1/upstreams";

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    session.limit("raw.http", run).await?;
    for (engine, key) in modes("gateway.pipeline", "gateway.pipeline@sqlite") {
        held(session, run, key, pipeline(session, engine)).await?;
    }
    let own = run
        .get("gateway.pipeline")
        .and_then(|sample| sample.cpu_us.get("gateway"))
        .copied()
        .context("the gateway's time is not known")?;
    held(session, run, "gateway.pipeline-cpu", async { Ok(Sample { value: own, ..Sample::default() }) }).await
}

/// So many connections of these people.
pub(crate) async fn callers(cluster: &Cluster, people: &[Person], callers: usize) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for place in 0..callers {
        let token = &people[place % people.len()].access_token;
        let mut connection =
            Connection::open(cluster.gateway, get(cluster.gateway, PATH, Some(token))).await?;
        let body = connection.ask().await?;
        ensure!(body.starts_with(b"{\"upstreams\""), "the gateway answered something else");
        connections.push(connection);
    }
    Ok(connections)
}

async fn pipeline(session: &Session, engine: Engine) -> Result<Sample> {
    let people = session.people(engine, 8).await?;
    let callers = callers(session.cluster(engine)?, &people, session.callers).await?;
    Ok(drive(callers, session.times, session.processes()).await?.0)
}
