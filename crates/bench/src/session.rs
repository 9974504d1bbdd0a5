//! One session of measuring: the throwaway servers, the processes under load, and how hard to load them.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result};
use gatehouse_testkit::{OAuthProvider, Postgres, Redis};
use tempfile::TempDir;

use crate::cluster::{Cluster, Engine};
use crate::figure::Run;
use crate::load::Times;
use crate::people::Person;
use crate::processes::Processes;
use crate::raw::{self, BareServers};

/// As an installed server has it: a commit that was answered survives a power cut.
const DURABLE: &[&str] =
    &["fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=256MB"];

/// A PostgreSQL of our own.
pub(crate) struct Database {
    pub(crate) url: String,
    _server: Postgres,
}

/// What is running, and how it is loaded.
pub(crate) struct Session {
    pub(crate) times: Times,
    /// Callers at once, where nothing else is said.
    pub(crate) callers: usize,
    /// Connections that the callers of one gRPC service share.
    pub(crate) connections: usize,
    /// Streams that events are delivered to.
    pub(crate) streams: usize,
    /// Streams that only stand there, for their memory.
    pub(crate) idle_streams: usize,
    place: TempDir,
    database: Option<Database>,
    redis: Option<Redis>,
    bare: Option<BareServers>,
    provider: Option<OAuthProvider>,
    clusters: BTreeMap<Engine, Cluster>,
    people: Mutex<BTreeMap<Engine, Vec<Person>>>,
    processes: OnceLock<Processes>,
}

/// What a session needs to be running.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) database: bool,
    pub(crate) redis: bool,
    pub(crate) bare: bool,
    /// Which services; the separate ones bring PostgreSQL and Redis.
    pub(crate) services: &'static [Engine],
    /// Settings of PostgreSQL beyond the durable ones.
    pub(crate) settings: &'static [&'static str],
}

impl Needs {
    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            database: self.database || other.database,
            redis: self.redis || other.redis,
            bare: self.bare || other.bare,
            services: if self.services.len() < other.services.len() { other.services } else { self.services },
            settings: if self.settings.is_empty() { other.settings } else { self.settings },
        }
    }
}

impl Session {
    /// Starts what is needed.
    ///
    /// # Errors
    /// What did not start, and why.
    pub(crate) async fn start(times: Times, idle_streams: usize, needs: Needs) -> Result<Self> {
        let place = tempfile::tempdir()?;
        let separate = needs.services.contains(&Engine::Postgres);
        let database = if needs.database || separate {
            let settings = [DURABLE, needs.settings].concat();
            let server = tokio::task::spawn_blocking(move || Postgres::start_with(&settings)).await??;
            Some(Database { url: server.url().to_owned(), _server: server })
        } else {
            None
        };
        let redis = (needs.redis || separate).then(Redis::start).transpose()?;
        let mut session = Self {
            times,
            callers: 64,
            connections: 4,
            streams: 256,
            idle_streams,
            place,
            database,
            redis,
            bare: if needs.bare { Some(BareServers::start().await?) } else { None },
            provider: None,
            clusters: BTreeMap::new(),
            people: Mutex::default(),
            processes: OnceLock::new(),
        };
        if !needs.services.is_empty() {
            session.provider = Some(OAuthProvider::start(crate::cluster::provider_options()).await?);
        }
        for engine in needs.services {
            let provider = session.provider.as_ref().context("there is no provider")?;
            let folder = session.place.path().join(engine.name());
            let stores = session.database.as_ref().zip(session.redis.as_ref());
            let stores = stores.map(|(database, redis)| (database.url.as_str(), redis.url()));
            let cluster = Cluster::start(*engine, &folder, stores, provider).await?;
            session.clusters.insert(*engine, cluster);
        }
        Ok(session)
    }

    /// The processes whose time is told apart.
    pub(crate) fn processes(&self) -> &Processes {
        self.processes.get_or_init(|| {
            let mut processes = Processes::default();
            for cluster in self.clusters.values() {
                cluster.name_processes(&mut processes);
            }
            if let Some((Some(rpc), Some(proxy))) = self.bare.as_ref().map(BareServers::ids) {
                processes.name(rpc, "bare-rpc");
                processes.name(proxy, "bare-proxy");
            }
            processes
        })
    }

    /// The PostgreSQL.
    ///
    /// # Errors
    /// If the session has none.
    pub(crate) fn postgres(&self) -> Result<&Database> {
        self.database.as_ref().context("this session has no PostgreSQL")
    }

    /// The address of Redis.
    ///
    /// # Errors
    /// If the session has none.
    pub(crate) fn redis_url(&self) -> Result<&str> {
        self.redis.as_ref().map(Redis::url).context("this session has no Redis")
    }

    /// The bare servers.
    ///
    /// # Panics
    /// If the session was started without.
    pub(crate) fn bare(&self) -> &BareServers {
        self.bare.as_ref().expect("whoever measures bare servers asks for them")
    }

    /// The services on `engine`.
    ///
    /// # Errors
    /// If the session has none.
    pub(crate) fn cluster(&self, engine: Engine) -> Result<&Cluster> {
        self.clusters.get(&engine).with_context(|| format!("no services run on {}", engine.name()))
    }

    /// So many people on `engine`: hashing their passwords takes seconds, so they are made once.
    ///
    /// # Errors
    /// What auth answered.
    pub(crate) async fn people(&self, engine: Engine, count: usize) -> Result<Vec<Person>> {
        let mut people = self.known(|known| known.get(&engine).cloned().unwrap_or_default());
        if people.len() < count {
            let more = Person::several(self.cluster(engine)?, count - people.len()).await?;
            people.extend(more);
            self.known(|known| known.insert(engine, people.clone()));
        }
        people.truncate(count);
        Ok(people)
    }

    /// Keeps the refresh tokens that people have now: those from before end their sessions.
    pub(crate) fn keep_refresh_tokens(&self, engine: Engine, tokens: impl Iterator<Item = String>) {
        self.known(|known| {
            for (person, token) in known.entry(engine).or_default().iter_mut().zip(tokens) {
                person.refresh_token = token;
            }
        });
    }

    fn known<T>(&self, look: impl FnOnce(&mut BTreeMap<Engine, Vec<Person>>) -> T) -> T {
        look(&mut self.people.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Measures the limit `key`, unless this run has it.
    ///
    /// # Errors
    /// If it can't be measured here.
    pub(crate) async fn limit(&self, key: &'static str, run: &mut Run) -> Result<()> {
        if run.contains_key(key) {
            return Ok(());
        }
        for (key, sample) in raw::measure(self, key).await? {
            crate::progress::measured(key, &sample);
            run.insert(key, sample);
        }
        Ok(())
    }

    /// Stops the services in order.
    ///
    /// # Errors
    /// One that did not end by itself, or not well.
    pub(crate) async fn stop(self) -> Result<()> {
        for cluster in self.clusters.into_values() {
            cluster.stop().await?;
        }
        Ok(())
    }
}
