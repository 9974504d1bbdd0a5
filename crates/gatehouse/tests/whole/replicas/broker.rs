//! Two token brokers on PostgreSQL, Redis and `OpenBao`, and providers that rotate refresh tokens: one kills a family whose
//! token is shown twice, the other allows it for a minute. The brokers restart one by one and nobody notices; they are
//! killed and frozen at the worst moments while the providers are slow, fail and lose answers, and what must hold then holds.
//!
//! `GATEHOUSE_SEED=n` replays a round. `GATEHOUSE_BROKER_KILLS` says how often a round kills or freezes (4), `GATEHOUSE_BROKER_SECONDS`
//! for how long rounds go on (one). docs/faults.md says what must hold.

mod account;
mod people;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gatehouse_core::Entropy;
use gatehouse_testkit::oauth_provider::{Fault, Options, Rotation};
use gatehouse_testkit::traces::{self, Look, Overheard};
use gatehouse_testkit::{Cluster, OAuthProvider, Traces, eventually};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::load::timed;
use crate::support::{PATIENCE, ended, program};
use account::{Escrowed, Happened, Killed, check_owners, check_presented, check_trail, query};
use people::{ASSISTANT, Call, Connection, Doors, Told, Way};

const BROKERS: [&str; 2] = ["token-broker-1", "token-broker-2"];
/// The upstreams, and how they treat a refresh token that was used.
const STRICT: &str = "strict";
const LENIENT: &str = "lenient";
/// How long a provider may take, as the brokers know it.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer is held back while its broker is killed.
const HELD: Duration = Duration::from_millis(1_200);
/// How long a broker has a connection to itself.
const LEASE: Duration = Duration::from_secs(7);
/// Connections to each upstream.
const PEOPLE: usize = 3;

/// What is done to brokers, and when.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// A kill, whatever is going on.
    Any,
    /// A kill when the provider has taken a refresh token and holds its answer back: nobody will ever know the successor.
    AnswerHeld,
    /// A kill of both when an answer lies in escrow and is not dealt with.
    AnswerInEscrow,
    /// SIGSTOP for longer than a lease: in the middle of a renewal, or when an answer is held back.
    Frozen,
}

struct World {
    cluster: Cluster,
    doors: Arc<Doors>,
    providers: BTreeMap<&'static str, Arc<OAuthProvider>>,
    deeds: Deeds,
    look: Look,
    overheard: Overheard,
    /// The client secrets.
    _folder: tempfile::TempDir,
}

/// What was done since the cluster started: a provider's notes reach back as far.
#[derive(Debug, Default)]
struct Deeds {
    killed: Vec<Killed>,
    frozen: Vec<Killed>,
    escrowed: Vec<Escrowed>,
    moments: Vec<Moment>,
}

impl World {
    /// `None` where there is no `OpenBao`, none can be installed, and tests may be left out.
    async fn start(seed: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("provider.secret");
        let assistant = folder.path().join("assistant.secret");
        let password = traces::sha256(&format!("the assistant's, {seed}"));
        std::fs::write(&secret, Options::default().client_secret).unwrap();
        std::fs::write(&assistant, &password).unwrap();
        let mut layout = super::layout(1)
            .with_openbao()
            .replicas("token-broker", 2)
            .replicas("gateway", 2)
            .replicas("optimizer", 0)
            .set("GATEHOUSE_TOKEN_BROKER__LEASE_MS", LEASE.as_millis().to_string())
            .set("GATEHOUSE_TOKEN_BROKER__WAIT_MS", "5000")
            .set("GATEHOUSE_TOKEN_BROKER__SWEEP_MS", "200")
            // Whoever asks for more than the providers give has a renewal each time.
            .set("GATEHOUSE_TOKEN_BROKER__RENEW_AFTER_PERCENT", "0")
            .tables(&format!(
                "[[auth.clients]]\nname = \"{ASSISTANT}\"\nsecret_file = {}\n\
                 permissions = [\"auth.tokens.exchange\", \"token-broker.tokens.get\"]\n\
                 [token_broker]\ncallback_url = \"http://127.0.0.1/connected\"\n",
                json!(assistant)
            ));
        let mut providers = BTreeMap::new();
        let rotations = [
            (STRICT, Rotation::StrictFamily, "strict_family"),
            (LENIENT, Rotation::Grace(60_000), "grace(60)"),
        ];
        for (number, (name, rotation, class)) in rotations.into_iter().enumerate() {
            let options = Options { rotation, seed: seed + number as u64, ..Options::default() };
            let provider = OAuthProvider::start(options).await.unwrap();
            for broker in BROKERS {
                layout = layout.tables_of(
                    broker,
                    &format!(
                        "[token_broker.upstreams.{name}]\nauthorization_endpoint = \"{}\"\n\
                         token_endpoint = \"{}?{}\"\nrevocation_endpoint = \"{}\"\nclient_id = \"gatehouse\"\n\
                         client_secret_file = {}\nscopes = [\"read\"]\nrotation = \"{class}\"\ntimeout_ms = {}\n\
                         allow = [{{ client = \"person\", scopes = [\"*\"] }}, {{ client = \"gateway\", scopes = [\"*\"] }}, \
                         {{ client = \"{ASSISTANT}\", scopes = [\"*\"] }}]\n",
                        provider.authorization_endpoint(),
                        provider.token_endpoint(),
                        query(broker),
                        provider.revocation_endpoint(),
                        json!(secret),
                        TIMEOUT.as_millis(),
                    ),
                );
            }
            providers.insert(name, Arc::new(provider));
        }
        let cluster = match timed("start", Cluster::start(layout)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                gatehouse_testkit::skip(&error);
                return None;
            }
            started => started.unwrap(),
        };
        let doors = Arc::new(Doors::of(&cluster, &password));
        let look = Look::into(cluster.postgres_url()).await.unwrap();
        let overheard = Overheard::from(cluster.redis_url()).unwrap();
        Some(Self { cluster, doors, providers, deeds: Deeds::default(), look, overheard, _folder: folder })
    }

    /// People with a connection each, as many to each upstream.
    async fn people(&self, name: &str) -> Vec<Arc<Connection>> {
        let mut connections = Vec::new();
        for (upstream, provider) in &self.providers {
            for number in 0..PEOPLE {
                let name = format!("{name}-{upstream}-{number}");
                connections.push(Arc::new(self.doors.person(&name, upstream, provider).await));
            }
        }
        connections
    }

    fn load(&self, connections: &[Arc<Connection>], seed: u64) -> Load {
        let (book, stop) = (Arc::<Mutex<Vec<Call>>>::default(), CancellationToken::new());
        let mut tasks = Vec::new();
        for (place, connection) in connections.iter().enumerate() {
            for (number, way) in [Way::Gateway, Way::Acting, Way::Offline].into_iter().enumerate() {
                let random = Entropy::seeded(seed ^ (((place * 3 + number + 1) as u64) << 32));
                let (doors, connection) = (self.doors.clone(), connection.clone());
                let (provider, book, stop) =
                    (self.providers[connection.upstream].clone(), book.clone(), stop.clone());
                tasks.push(tokio::spawn(async move {
                    doors.keep_asking(place, &connection, &provider, (way, random), &book, &stop).await;
                }));
            }
        }
        Load { book, stop, tasks }
    }

    /// Kills and freezes brokers at the worst moments.
    async fn kill(&mut self, random: &Entropy, kills: usize) -> anyhow::Result<()> {
        self.deeds.moments.clear();
        // Each moment comes as often as the others.
        let mut moments = Vec::new();
        while self.deeds.moments.len() < kills {
            if moments.is_empty() {
                moments = vec![Moment::Any, Moment::AnswerHeld, Moment::AnswerInEscrow, Moment::Frozen];
            }
            let moment = moments.swap_remove(usize::try_from(random.below(moments.len() as u64))?);
            self.deeds.moments.push(moment);
            self.trouble(random);
            tokio::time::sleep(Duration::from_millis(random.below(400))).await;
            let chosen = match moment {
                Moment::Any => vec![BROKERS[usize::from(random.below(2) == 1)]],
                Moment::AnswerHeld => {
                    let upstream = [STRICT, LENIENT][usize::from(random.below(3) == 0)];
                    vec![self.answer_held(upstream).await]
                }
                Moment::AnswerInEscrow => {
                    self.in_state("answered").await?;
                    BROKERS.to_vec()
                }
                Moment::Frozen => {
                    self.freeze(random).await?;
                    continue;
                }
            };
            for broker in &chosen {
                let from = Instant::now();
                self.cluster.kill9(broker)?;
                self.deeds.killed.push(Killed { broker: (*broker).to_owned(), from, to: Instant::now() });
            }
            if chosen.len() == BROKERS.len() {
                let at = Instant::now();
                let left = self.shown_in("answered").await?;
                self.deeds.escrowed.extend(left.into_iter().map(|token| Escrowed { token, at }));
            }
            tokio::time::sleep(Duration::from_millis(random.below(800))).await;
            for broker in &chosen {
                self.cluster.launch(broker)?;
            }
            for broker in &chosen {
                self.cluster.ready(broker, PATIENCE).await?;
            }
        }
        Ok(())
    }

    /// Stops a broker for longer than its leases, and lets it go on where it stood.
    async fn freeze(&mut self, random: &Entropy) -> anyhow::Result<()> {
        let broker = if random.below(2) == 0 {
            self.answer_held([STRICT, LENIENT][usize::from(random.below(3) == 0)]).await
        } else {
            self.in_state("intent").await?;
            BROKERS[usize::from(random.below(2) == 1)]
        };
        let from = Instant::now();
        self.cluster.pause(broker)?;
        tokio::time::sleep(LEASE + Duration::from_millis(random.below(1_500))).await;
        self.cluster.resume(broker)?;
        self.deeds.frozen.push(Killed { broker: broker.to_owned(), from, to: Instant::now() });
        Ok(())
    }

    /// Orders a few things that go wrong at the providers.
    fn trouble(&self, random: &Entropy) {
        for provider in self.providers.values() {
            for _ in 0..random.below(3) {
                provider.inject(match random.below(8) {
                    0 => Fault::DropAnswer,
                    1 => Fault::ServerErrorAfter,
                    2 => Fault::ServerError,
                    3 => Fault::TooManyRequests,
                    4 => Fault::Delay(TIMEOUT + Duration::from_millis(500)),
                    _ => Fault::Delay(Duration::from_millis(random.below(600))),
                });
            }
        }
    }

    /// Waits until a provider has carried out a refresh and holds the answer back; who waits for it.
    async fn answer_held(&self, upstream: &str) -> &'static str {
        let provider = &self.providers[upstream];
        let mut asked: Option<Instant> = None;
        eventually(PATIENCE, || {
            if asked.is_none_or(|asked| asked.elapsed() >= HELD) {
                // Some other request may have come to the fault, or a consent.
                provider.inject(Fault::Delay(HELD));
                asked = Some(Instant::now());
            }
            let held = provider.presented().into_iter().rev().find_map(|shown| {
                let held =
                    shown.accepted && shown.answered_at.is_none() && shown.fault == Some(Fault::Delay(HELD));
                (held && shown.at.elapsed() < HELD / 2).then_some(shown.query)
            });
            async move { held.and_then(|held| BROKERS.into_iter().find(|broker| query(broker) == held)) }
        })
        .await
    }

    /// Waits until some attempt is in a state.
    async fn in_state(&mut self, state: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.shown_in(state).await?.is_empty() {
            ensure!(began.elapsed() < PATIENCE, "no attempt was ever seen in state {state}");
        }
        Ok(())
    }

    /// Digests of the refresh tokens of attempts in a state.
    async fn shown_in(&mut self, state: &str) -> anyhow::Result<Vec<String>> {
        let table = format!("{}.rotations", self.cluster.schema("token-broker"));
        let statement = format!("SELECT encode(token_hash, 'hex') FROM {table} WHERE state = '{state}'");
        Ok(self.look.column(&statement).await?)
    }

    /// Everything is well again: each connection gives tokens again and again, or says that it needs a consent and gives tokens after it.
    /// Those that said so.
    async fn settle(
        &self,
        connections: &[Arc<Connection>],
        book: &Mutex<Vec<Call>>,
    ) -> anyhow::Result<BTreeSet<usize>> {
        let mut ended = BTreeSet::new();
        for (place, connection) in connections.iter().enumerate() {
            let (began, mut given) = (Instant::now(), 0);
            // The first may be of an answer that was late in escrow; the second shows whether its refresh token lives.
            while given < 2 {
                let told = self.doors.ask(connection, Way::Gateway, true).await;
                let call = Call {
                    connection: place,
                    way: Way::Gateway,
                    forced: true,
                    began,
                    took: began.elapsed(),
                    told: told.clone(),
                };
                book.lock().unwrap().push(call);
                match told {
                    Told::Token(_) => given += 1,
                    Told::NeedsConsent => {
                        ended.insert(place);
                        let path = format!("/v1/connections/{}", connection.id);
                        let shown = self.doors.call(Method::GET, &path, &connection.access, None).await;
                        let shown = shown.map_err(anyhow::Error::msg)?.1;
                        ensure!(shown["state"] == "needs_reauthorization", "{shown}");
                        let again =
                            self.doors.connect(connection, &self.providers[connection.upstream]).await;
                        let id = again.map_err(anyhow::Error::msg).context("connecting again")?;
                        ensure!(id == connection.id, "a connection that was made again is another one");
                    }
                    Told::PutOff(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    other => anyhow::bail!("all is well, and connection {place} is told: {other:?}"),
                }
                ensure!(began.elapsed() < PATIENCE, "connection {place} neither works nor says why not");
            }
        }
        Ok(ended)
    }

    /// Checks all that providers, callers and tables tell of these connections.
    async fn account(&self, connections: &[Arc<Connection>], calls: &[Call]) -> anyhow::Result<String> {
        let deeds = &self.deeds;
        let (mut owners, mut grants, mut lost) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::<usize>::new());
        for (place, connection) in connections.iter().enumerate() {
            let provider = &self.providers[connection.upstream];
            for code in connection.codes.lock().unwrap().iter() {
                grants
                    .extend(provider.grant_of_code(code).map(|grant| ((connection.upstream, grant), place)));
            }
        }
        for (upstream, provider) in &self.providers {
            for issued in provider.issued() {
                if let Some(place) = grants.get(&(*upstream, issued.grant)) {
                    owners.insert(issued.access_token, *place);
                }
            }
        }
        let given = check_owners(calls, &owners, &deeds.frozen)?;
        // Who is frozen knows as little as the dead until it goes on, which may be too late.
        let silenced = [&deeds.killed[..], &deeds.frozen].concat();
        let mut happened = vec![Happened::default(); connections.len()];
        for (upstream, provider) in &self.providers {
            let presented = provider.presented();
            for grant in check_presented(&presented, &silenced, &deeds.escrowed, TIMEOUT)? {
                ensure!(*upstream == STRICT, "a family was lost that allows a token to be shown again");
                lost.extend(grants.get(&(*upstream, grant)));
            }
            let known: BTreeSet<_> = presented.iter().map(|shown| shown.token.as_str()).collect();
            for shown in &presented {
                let Some(place) = shown.grant.and_then(|grant| grants.get(&(*upstream, grant))) else {
                    continue;
                };
                happened[*place].refreshed += usize::from(shown.accepted);
                let put =
                    shown.successor.as_ref().is_some_and(|successor| known.contains(successor.as_str()));
                happened[*place].rotated += usize::from(put);
            }
        }
        for call in calls {
            let happened = &mut happened[call.connection];
            happened.disturbed += usize::from(silenced.iter().any(|silenced| silenced.met(call)));
            match call.told {
                Told::Token(_) => happened.given += 1,
                Told::Lost(_) | Told::PutOff(_) | Told::Late(_) => happened.lost += 1,
                Told::NeedsConsent => happened.expired = true,
                Told::Wrong(_) => {}
            }
        }
        // Told so because it was so, and told whenever it was so.
        for (place, happened) in happened.iter().enumerate() {
            ensure!(
                happened.expired == lost.contains(&place),
                "connection {place}: told to connect again: {}; its family was lost: {}",
                happened.expired,
                lost.contains(&place)
            );
        }
        for (connection, happened) in connections.iter().zip(&happened) {
            self.trail(connection, happened).await?;
        }
        self.no_traces().await?;
        Ok(format!(
            "{} calls, {given} tokens, {} refreshes, {} kills and {} freezes until now ({:?}), {} answers found in escrow, {} families lost",
            calls.len(),
            happened.iter().map(|happened| happened.refreshed).sum::<usize>(),
            deeds.killed.len(),
            deeds.frozen.len(),
            deeds.moments,
            deeds.escrowed.len(),
            lost.len()
        ))
    }

    /// Waits until a connection's audit trail is complete.
    async fn trail(&self, connection: &Connection, happened: &Happened) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let (mut events, mut next) = (BTreeMap::<_, usize>::new(), String::new());
            loop {
                let path = format!(
                    "/v1/audit/events?target=connection/{}&page_size=200&page_token={next}",
                    connection.id
                );
                let page = self.doors.call(Method::GET, &path, &connection.access, None).await;
                let (status, page) = page.map_err(anyhow::Error::msg)?;
                ensure!(status == 200, "{page}");
                for event in page["events"].as_array().context("a page without events")? {
                    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                    *events.entry((text("action"), text("outcome"))).or_default() += 1;
                }
                match page["next_page_token"].as_str() {
                    Some(token) if !token.is_empty() => token.clone_into(&mut next),
                    _ => break,
                }
            }
            let Some(missing) = check_trail(&events, happened)? else { return Ok(()) };
            ensure!(began.elapsed() < PATIENCE, "the audit trail misses {missing}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// No token of any provider stands in a table, a file of any process, or in Redis.
    async fn no_traces(&self) -> anyhow::Result<()> {
        let issued: Vec<_> = self.providers.values().flat_map(|provider| provider.issued()).collect();
        let refresh = issued.iter().filter_map(|issued| issued.refresh_token.as_deref());
        let traces = Traces::of(issued.iter().map(|issued| issued.access_token.as_str()).chain(refresh));
        let schema = self.cluster.schema("");
        let (tables, seen_tables) = traces.in_tables(self.cluster.postgres_url(), &schema).await?;
        let said = self.overheard.text();
        let redis = traces.stand_in(&said).then(|| "what was sent to Redis".to_owned());
        let (files, seen_files) = traces.in_files(self.cluster.folder())?;
        ensure!(
            seen_tables > 10 && said.len() > 1_000 && seen_files > 10,
            "{seen_tables} tables, {seen_files} files, {} bytes",
            said.len()
        );
        let found = [tables, files, Vec::from_iter(redis)].concat();
        ensure!(found.is_empty(), "upstream tokens stand in {found:?}");
        Ok(())
    }

    /// The audit log is one chain, as far as can be said without a checkpoint, and nothing panicked.
    async fn verify(&self) -> anyhow::Result<()> {
        let config = self.cluster.config().to_str().context("a path of another kind")?;
        let mut command = program();
        command.args(["verify-audit-chain", "--config", config]).env("GATEHOUSE_ENV", "dev");
        let ended = ended(&mut command).await;
        ensure!(ended.stdout.contains("the entries agree with each other; tail not proven"), "{ended:?}");
        for name in self.cluster.names() {
            let log = std::fs::read_to_string(self.cluster.node(&name).log())?;
            let panic = log.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{name}: {panic:?}");
        }
        Ok(())
    }
}

/// People who ask.
struct Load {
    book: Arc<Mutex<Vec<Call>>>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn calls(&self) -> Vec<Call> {
        self.book.lock().unwrap().clone()
    }

    /// Waits until `more` tokens were given from now on.
    async fn goes_on(&self, more: usize) {
        let given = || self.calls().iter().filter(|call| matches!(call.told, Told::Token(_))).count();
        let target = given() + more;
        eventually(PATIENCE, || async { given() >= target }).await;
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number; it is {text:?}")))
}

/// Both brokers are replaced under load: no call fails, no family is lost.
async fn roll(world: &mut World) -> anyhow::Result<String> {
    let connections = world.people("roll").await;
    let mut load = world.load(&connections, 1);
    load.goes_on(30).await;
    for broker in BROKERS {
        let status = world.cluster.restart(broker, PATIENCE).await?;
        ensure!(status.success(), "{broker}: {status}");
        world.cluster.ready(broker, PATIENCE).await?;
        load.goes_on(30).await;
    }
    load.stop().await;
    let calls = load.calls();
    let failed: Vec<_> = calls.iter().filter(|call| !matches!(call.told, Told::Token(_))).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    for (upstream, provider) in &world.providers {
        let counters = provider.counters();
        ensure!(counters.reuse_refused + counters.grants_revoked == 0, "{upstream}: {counters:?}");
        for broker in BROKERS {
            let asked = provider.presented().iter().filter(|shown| shown.query == query(broker)).count();
            ensure!(asked > 0, "{broker} never refreshed at {upstream}");
        }
    }
    world.account(&connections, &calls).await
}

/// A round of kills and freezes.
async fn round(world: &mut World, seed: u64, kills: usize) -> anyhow::Result<String> {
    let random = Entropy::seeded(seed);
    let connections = world.people(&format!("round-{seed}-{}", Entropy::system().below(1 << 32))).await;
    let mut load = world.load(&connections, seed);
    load.goes_on(20).await;
    world.kill(&random, kills).await?;
    for provider in world.providers.values() {
        provider.forget_faults();
    }
    load.stop().await;
    let ended = world.settle(&connections, &load.book).await?;
    let told = world.account(&connections, &load.calls()).await?;
    Ok(format!("{told}, {} connected again in the end", ended.len()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_token_brokers_come_and_go_and_lose_no_token() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _alone = super::ALONE.lock().await;
    let (replayed, limit) = (number("GATEHOUSE_SEED"), number("GATEHOUSE_BROKER_SECONDS"));
    let kills = usize::try_from(number("GATEHOUSE_BROKER_KILLS").unwrap_or(4)).unwrap();
    let mut seed = replayed.unwrap_or_else(|| Entropy::system().below(1 << 32));
    let Some(mut world) = World::start(seed).await else { return };
    let told = timed("rolling restart", roll(&mut world)).await.unwrap();
    eprintln!("{told}");
    let began = Instant::now();
    loop {
        match timed(&format!("seed {seed}"), round(&mut world, seed, kills)).await {
            Ok(told) => eprintln!("GATEHOUSE_SEED={seed}: {told}"),
            Err(error) => panic!("{error:#}\nAgain with: GATEHOUSE_SEED={seed} make broker-faults"),
        }
        if replayed.is_some() || limit.is_none_or(|limit| began.elapsed().as_secs() >= limit) {
            break;
        }
        seed = Entropy::system().below(1 << 32);
    }
    timed("audit chain", world.verify()).await.unwrap();
}
