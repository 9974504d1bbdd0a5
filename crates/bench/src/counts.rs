//! What each operation asks of the stores: counted, not guessed.
//!
//! Operations run one after the other on servers that do nothing else. What the background does in that time
//! (relays, polls, sweeps, heartbeats) is in the counts, as it is in the load; statements that come less than once in
//! two operations are summed, not listed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sqlx::{PgPool, Row as _};

use crate::cluster::Engine;
use crate::load::{Caller, Times};
use crate::people::Person;
use crate::progress;
use crate::session::{Needs, Session};
use crate::suites::{audit, auth, broker, gateway, job};

const NEEDS: Needs = Needs {
    database: true,
    redis: true,
    bare: false,
    services: &[Engine::Postgres],
    settings: &[
        "shared_preload_libraries=pg_stat_statements",
        "pg_stat_statements.max=10000",
        "track_wal_io_timing=on",
        "track_io_timing=on",
    ],
};
const BEGIN: &str = "<!-- counts: written by `make bench-counts`, do not edit -->";
const END: &str = "<!-- end of counts -->";
/// After an operation: it is not over before its event is in the log.
const BEHIND: Duration = Duration::from_secs(1);
/// How long PostgreSQL's processes may keep their counts of syncs to themselves: once a second while they are busy, and
/// after ten seconds without anything to do. Statements and the log's end are everybody's at once.
const SYNCS_KNOWN: Duration = Duration::from_secs(12);

/// Sums since the server started.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// Calls by text.
    statements: BTreeMap<String, f64>,
    wal_bytes: f64,
    redis: BTreeMap<String, f64>,
}

/// Counts `operations` of each kind and prints them.
///
/// # Errors
/// A call that failed.
pub(crate) async fn run(operations: u32, markdown: Option<&Path>) -> Result<()> {
    let times = Times { warm: Duration::ZERO, measure: Duration::ZERO };
    progress::step("starting PostgreSQL (with pg_stat_statements), Redis, the services");
    let session = Session::start(times, 0, NEEDS).await?;
    let cluster = session.cluster(Engine::Postgres)?;
    let watch = Watch::new(&session).await?;
    let mut text = String::new();
    let person = Person::new(cluster).await?;
    let mut refresher = auth::Refresher::new(cluster.channel("auth")?, &person);
    watch.count(&mut text, "refresh", operations, &mut refresher).await?;
    let another = Person::new(cluster).await?;
    watch.count(&mut text, "sign-in", operations, &mut auth::SignerIn::new(cluster, &another)?).await?;
    watch
        .count(&mut text, "token exchange", operations, &mut auth::Exchanger::new(cluster, &person)?)
        .await?;
    let mut connections = gateway::callers(cluster, std::slice::from_ref(&person), 1).await?;
    watch.count(&mut text, "pipeline request", operations, &mut connections[0]).await?;
    watch
        .count(
            &mut text,
            "broker token, cached",
            operations,
            &mut broker::Asker::connected(cluster, 0).await?,
        )
        .await?;
    watch
        .count(
            &mut text,
            "broker token, with a refresh",
            operations,
            &mut broker::Asker::connected(cluster, 600).await?,
        )
        .await?;
    let (mut submitters, hands) = job::submitters(cluster, std::slice::from_ref(&person), 1).await?;
    watch
        .count(
            &mut text,
            "job, from submission to the end that its owner sees",
            operations,
            &mut submitters[0],
        )
        .await?;
    hands.stop().await?;
    watch
        .count(&mut text, "audit append, one event", operations, &mut audit::Teller::new(cluster, 1).await?)
        .await?;
    watch
        .count(
            &mut text,
            "audit append, 200 events",
            operations.div_ceil(10),
            &mut audit::Teller::new(cluster, 200).await?,
        )
        .await?;
    session.stop().await?;
    if let Some(file) = markdown {
        let whole = std::fs::read_to_string(file)?;
        let (before, rest) = whole.split_once(BEGIN).context("the file has no region for counts")?;
        let (_, after) = rest.split_once(END).context("the file has no region for counts")?;
        std::fs::write(file, format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim_end()))?;
    }
    println!("{text}");
    Ok(())
}

struct Watch {
    pool: PgPool,
    redis: redis::aio::MultiplexedConnection,
}

impl Watch {
    async fn new(session: &Session) -> Result<Self> {
        let pool = crate::raw::postgres_pool(&session.postgres()?.url, 1).await?;
        sqlx::query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").execute(&pool).await?;
        let redis = redis::Client::open(session.redis_url()?)?.get_multiplexed_async_connection().await?;
        Ok(Self { pool, redis })
    }

    async fn count(
        &self,
        text: &mut String,
        name: &str,
        operations: u32,
        caller: &mut impl Caller,
    ) -> Result<()> {
        progress::step(&format!("counting: {name}"));
        for _ in 0..10 {
            caller.call().await?;
        }
        // What the warm-up left to the background.
        tokio::time::sleep(SYNCS_KNOWN).await;
        let (before, syncs) = (self.sums().await?, self.syncs().await?);
        for _ in 0..operations {
            caller.call().await?;
        }
        tokio::time::sleep(BEHIND).await;
        let after = self.sums().await?;
        tokio::time::sleep(SYNCS_KNOWN).await;
        let syncs = self.syncs().await? - syncs;
        tell(text, name, f64::from(operations), (&before, &after), syncs);
        Ok(())
    }

    /// Syncs of the log.
    async fn syncs(&self) -> Result<f64> {
        let version: i32 = sqlx::query("SELECT current_setting('server_version_num')::INT AS version")
            .fetch_one(&self.pool)
            .await?
            .get("version");
        // Since 18 they are counted with all other writes.
        let syncs = if version >= 180_000 {
            "SELECT SUM(fsyncs)::FLOAT8 AS syncs FROM pg_stat_io WHERE object = 'wal'"
        } else {
            "SELECT wal_sync::FLOAT8 AS syncs FROM pg_stat_wal"
        };
        Ok(sqlx::query(syncs).fetch_one(&self.pool).await?.get("syncs"))
    }

    async fn sums(&self) -> Result<Sums> {
        let end = "SELECT (pg_current_wal_insert_lsn() - '0/0')::FLOAT8 AS bytes";
        let wal_bytes = sqlx::query(end).fetch_one(&self.pool).await?.get("bytes");
        let calls = "SELECT query, SUM(calls)::FLOAT8 AS calls FROM pg_stat_statements GROUP BY query";
        let calls = sqlx::query(calls).fetch_all(&self.pool).await?;
        let statements = calls.iter().map(|row| (short(row.get("query")), row.get("calls"))).fold(
            BTreeMap::<String, f64>::new(),
            |mut sums, (query, calls): (String, f64)| {
                *sums.entry(query).or_default() += calls;
                sums
            },
        );
        let mut redis = self.redis.clone();
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await?;
        let redis = info
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
            .filter_map(|(name, rest)| Some((name.to_owned(), rest.split(',').next()?.parse().ok()?)))
            .collect();
        Ok(Sums { statements, wal_bytes, redis })
    }
}

/// On one line, and no longer than a line.
fn short(query: &str) -> String {
    let line = query.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 100 { line } else { line.chars().take(99).chain(['…']).collect() }
}

fn tell(text: &mut String, name: &str, operations: f64, (before, after): (&Sums, &Sums), syncs: f64) {
    let each = |before: f64, after: f64| (after - before) / operations;
    let grown = |before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>| {
        let mut grown: Vec<(String, f64)> = after
            .iter()
            .map(|(what, calls)| (what.clone(), each(before.get(what).copied().unwrap_or(0.0), *calls)))
            .filter(|(what, calls)| *calls >= 0.05 && !what.contains("pg_stat") && what != "info")
            .collect();
        grown.sort_unstable_by(|left, right| right.1.total_cmp(&left.1));
        grown
    };
    let statements = grown(&before.statements, &after.statements);
    let whole: f64 = statements.iter().map(|(_, calls)| calls).sum();
    // Each transaction says how it begins.
    let begun = |how: &str| {
        let begins = statements.iter().filter(|(what, _)| what.starts_with("BEGIN") && what.ends_with(how));
        // The sum of nothing is -0.
        begins.map(|(_, calls)| calls).sum::<f64>() + 0.0
    };
    let redis = grown(&before.redis, &after.redis);
    let redis: Vec<_> = redis.into_iter().map(|(what, calls)| format!("{what} {calls:.2}")).collect();
    let _ = writeln!(
        text,
        "**{name}**: {whole:.1} statements in {:.2} transactions that write and {:.2} that read, {:.2} syncs of the log, \
         {:.0} bytes of log; Redis: {}\n",
        begun("READ WRITE"),
        begun("READ ONLY"),
        syncs / operations,
        each(before.wal_bytes, after.wal_bytes),
        if redis.is_empty() { "none".to_owned() } else { redis.join(", ") }
    );
    for (what, calls) in statements.into_iter().filter(|(_, calls)| *calls >= 0.5) {
        let _ = writeln!(text, "- {calls:.2} × `{}`", what.replace('`', "'"));
    }
    text.push('\n');
}
