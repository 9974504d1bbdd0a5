//! People at work, through the balancer: they sign in, refresh, list, submit and follow, and write down whatever fails.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gatehouse_testkit::eventually;
use reqwest::{Certificate, Client, Method, Request, RequestBuilder, Response, Version};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;

const PASSWORD: &str = "nine purple teapots in a row";
/// Steps of the search that followers follow.
const STEPS: u64 = 20;

/// A request that did not go as it should.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Whose it was.
    pub(crate) who: String,
    pub(crate) began: Instant,
    #[expect(dead_code, reason = "a failed test shows all of it")]
    pub(crate) what: String,
    /// The status of the answer; none if there was no whole answer.
    pub(crate) status: Option<u16>,
    /// Whether nothing of an answer had come.
    pub(crate) is_unanswered: bool,
    pub(crate) retry_after: bool,
    #[expect(dead_code, reason = "a failed test shows all of it")]
    pub(crate) reason: String,
}

/// A request that is over, however it went.
#[derive(Clone, Debug)]
pub(crate) struct Over {
    /// Whose it was.
    pub(crate) who: String,
    #[expect(dead_code, reason = "a failed test shows all of it")]
    pub(crate) what: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) is_well: bool,
}

#[derive(Default)]
pub(crate) struct Book {
    pub(crate) failures: Mutex<Vec<Failure>>,
    /// All requests but event streams.
    pub(crate) over: Mutex<Vec<Over>>,
    pub(crate) answered: AtomicUsize,
    /// Jobs that were followed from the first event to the last.
    pub(crate) followed: AtomicUsize,
    /// Event streams that ended before the job did, by a word of the gateway.
    pub(crate) closed: AtomicUsize,
    /// Jobs that were accepted.
    pub(crate) jobs: Mutex<Vec<(Session, String)>>,
}

impl Book {
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.failures.lock().unwrap().clone()
    }

    pub(crate) fn forget_failures(&self) {
        self.failures.lock().unwrap().clear();
    }

    /// Takes those out that `forgiven` says.
    pub(crate) fn forgive(&self, forgiven: impl Fn(&Failure) -> bool) -> Vec<Failure> {
        self.failures.lock().unwrap().extract_if(.., |failure| forgiven(failure)).collect()
    }

    /// All requests that are over since then.
    pub(crate) fn over_since(&self, then: Instant) -> Vec<Over> {
        self.over.lock().unwrap().iter().filter(|over| over.ended >= then).cloned().collect()
    }

    pub(crate) fn count(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }
}

/// Whoever talks to the balancer.
#[derive(Clone)]
pub(crate) struct Api {
    who: String,
    base: String,
    http: Client,
    pub(crate) book: Arc<Book>,
}

/// Someone who signed in.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) access: String,
    refresh: String,
}

impl Api {
    pub(crate) fn new(base: String) -> Self {
        let http = Client::builder()
            .timeout(Duration::from_secs(20))
            // Shorter than a drain's delay, as a client of servers that come and go should have it.
            .pool_idle_timeout(Duration::from_millis(250))
            .no_proxy()
            .build()
            .unwrap();
        Self { who: String::new(), base, http, book: Arc::default() }
    }

    /// The same over HTTPS, at `base`, for which the authority at `certificate` vouches: over HTTP/2, whose connections are
    /// kept for as long as the server does.
    fn over_https(&self, base: String, certificate: &Path) -> Self {
        let certificate = Certificate::from_pem(&std::fs::read(certificate).unwrap()).unwrap();
        let http = Client::builder()
            .timeout(Duration::from_secs(20))
            .no_proxy()
            .tls_certs_only([certificate])
            .build()
            .unwrap();
        Self { base, http, ..self.clone() }
    }

    fn check_version(&self, answer: &Response) {
        let http2 = self.base.starts_with("https:");
        assert_eq!(answer.version() == Version::HTTP_2, http2, "{:?} at {}", answer.version(), self.base);
    }

    /// The same, as somebody.
    fn of(&self, who: &str) -> Self {
        Self { who: who.to_owned(), ..self.clone() }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends it; `None` if it failed, which is written down. Who is told to come again later does so.
    pub(crate) async fn call(&self, request: RequestBuilder) -> Option<Value> {
        let began = Instant::now();
        let request = request.build().unwrap();
        let what = format!("{} {}", request.method(), request.url().path());
        let answer = self.send(request).await;
        let over = Over {
            who: self.who.clone(),
            what: what.clone(),
            began,
            ended: Instant::now(),
            is_well: answer.is_ok(),
        };
        self.book.over.lock().unwrap().push(over);
        match answer {
            Ok(answer) => {
                self.book.answered.fetch_add(1, Ordering::SeqCst);
                Some(answer)
            }
            Err(Unwell { status, is_unanswered, wait, reason }) => {
                let retry_after = wait.is_some();
                let who = self.who.clone();
                let failure = Failure { who, began, what, status, is_unanswered, retry_after, reason };
                self.book.failures.lock().unwrap().push(failure);
                tokio::time::sleep(wait.unwrap_or_default()).await;
                None
            }
        }
    }

    /// The body.
    async fn send(&self, request: Request) -> Result<Value, Unwell> {
        let broken = |is_unanswered| {
            move |error: reqwest::Error| Unwell {
                status: None,
                is_unanswered,
                wait: None,
                reason: format!("{error:?}"),
            }
        };
        let answer = self.http.execute(request).await.map_err(broken(true))?;
        self.check_version(&answer);
        let (status, wait) = (answer.status(), wait(&answer));
        let text = answer.text().await.map_err(broken(false))?;
        if status.is_success() {
            Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
        } else {
            Err(Unwell { status: Some(status.as_u16()), is_unanswered: false, wait, reason: text })
        }
    }

    /// Makes an account and signs in.
    pub(crate) async fn account(&self, name: &str) -> Session {
        let credentials = credentials(name);
        let mut registration = credentials.clone();
        registration["tenant_name"] = json!(format!("Tenant of {name}"));
        self.call(self.request(Method::POST, "/v1/auth/register").json(&registration))
            .await
            .expect("an account");
        self.sign_in(name).await.expect("a session")
    }

    async fn sign_in(&self, name: &str) -> Option<Session> {
        self.call(self.request(Method::POST, "/v1/auth/sign-in").json(&credentials(name)))
            .await
            .map(|tokens| session(&tokens))
    }

    async fn get(&self, session: &Session, path: &str) -> Option<Value> {
        self.call(self.request(Method::GET, path).bearer_auth(&session.access)).await
    }

    async fn submit(&self, session: &Session, steps: u64) -> Option<String> {
        let search = json!({
            "objective": "(x - 1)^2 + (y + x)^4 + sin(x * y)", "max_iterations": steps, "seed": 7, "tolerance": 0,
            "variables": [{"name": "x", "lower": -5.0, "upper": 5.0}, {"name": "y", "lower": -5.0, "upper": 5.0}],
        });
        let request = self.request(Method::POST, "/optimize").bearer_auth(&session.access).json(&search);
        let job = self.call(request).await?["job_id"].as_str().unwrap().to_owned();
        self.book.jobs.lock().unwrap().push((session.clone(), job.clone()));
        Some(job)
    }

    /// Refreshes, lists, reads and submits until stopped. A refresh whose answer was lost is sent again.
    async fn work(self, name: String, stop: CancellationToken) {
        let mut session = self.account(&name).await;
        while !stop.is_cancelled() {
            let refresh = json!({"refresh_token": session.refresh});
            if let Some(next) = self.call(self.request(Method::POST, "/v1/auth/refresh").json(&refresh)).await
            {
                session = self::session(&next);
            }
            self.get(&session, "/v1/jobs?page_size=5").await;
            self.get(&session, "/v1/auth/me").await;
            if let Some(job) = self.submit(&session, 1).await {
                self.get(&session, &format!("/v1/jobs/{job}")).await;
            }
            self.get(&session, "/v1/audit/events?page_size=5").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn knock(self, name: String, stop: CancellationToken) {
        self.account(&name).await;
        while !stop.is_cancelled() {
            self.sign_in(&name).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Submits jobs of a few seconds and follows each to its end.
    async fn follow(self, name: String, stop: CancellationToken) {
        let session = self.account(&name).await;
        while !stop.is_cancelled() {
            let Some(job) = self.submit(&session, STEPS).await else { continue };
            if self.follow_job(&session, &job).await {
                self.book.followed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Reads a job's events to `end`, taking them up again where they stopped. Panics at a gap or a repeat.
    async fn follow_job(&self, session: &Session, job: &str) -> bool {
        let (mut last, began) = (0_u64, Instant::now());
        while began.elapsed() < PATIENCE {
            let opened = Instant::now();
            let request = self
                .request(Method::GET, &format!("/v1/jobs/{job}/events"))
                .bearer_auth(&session.access)
                .header("last-event-id", last.to_string())
                .timeout(PATIENCE);
            let after = last;
            let fail = |status, is_unanswered, retry_after, reason: String| {
                let what = format!("GET events of {job} after {after}");
                let who = self.who.clone();
                let failure =
                    Failure { who, began: opened, what, status, is_unanswered, retry_after, reason };
                self.book.failures.lock().unwrap().push(failure);
            };
            let mut answer = match request.send().await {
                Ok(answer) if answer.status() == 200 => answer,
                Ok(answer) => {
                    let (status, wait) = (answer.status().as_u16(), wait(&answer));
                    fail(Some(status), false, wait.is_some(), answer.text().await.unwrap_or_default());
                    tokio::time::sleep(wait.unwrap_or_default()).await;
                    continue;
                }
                Err(error) => {
                    fail(None, true, false, format!("{error:?}"));
                    continue;
                }
            };
            self.check_version(&answer);
            let mut text = String::new();
            loop {
                match answer.chunk().await {
                    Ok(Some(chunk)) => text.push_str(&String::from_utf8_lossy(&chunk)),
                    Ok(None) => {
                        // The gateway goes away, and says so.
                        assert!(
                            text.contains("event: closed"),
                            "the events of {job} after {after}, opened {:?} ago at {last}, ended without a word: {text:?}",
                            opened.elapsed()
                        );
                        self.book.closed.fetch_add(1, Ordering::SeqCst);
                        // As `retry` asks of whoever reads events, if not for quite as long.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        break;
                    }
                    Err(error) => {
                        fail(None, false, false, format!("{error:?}"));
                        break;
                    }
                }
                while let Some(end) = text.find("\n\n") {
                    let event: String = text.drain(..end + 2).collect();
                    if let Some(id) = event.lines().find_map(|line| line.strip_prefix("id: ")) {
                        let id: u64 = id.parse().unwrap();
                        assert_eq!(id, last + 1, "a gap or a repeat in the events of {job}");
                        last = id;
                    }
                    if event.contains("event: end\n") {
                        assert!(event.contains("succeeded"), "{event}");
                        return true;
                    }
                    if event.contains("event: closed") {
                        text.insert_str(0, "event: closed");
                        break;
                    }
                }
            }
        }
        panic!("the events of {job} did not end")
    }
}

/// What went wrong with a request.
struct Unwell {
    status: Option<u16>,
    is_unanswered: bool,
    wait: Option<Duration>,
    reason: String,
}

/// What `Retry-After` says.
fn wait(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn credentials(name: &str) -> Value {
    json!({"email": format!("{name}@example.org"), "password": PASSWORD})
}

fn session(tokens: &Value) -> Session {
    let text = |name: &str| tokens[name].as_str().unwrap().to_owned();
    Session { access: text("access_token"), refresh: text("refresh_token") }
}

/// Who is at work: two who do a bit of everything, two who follow jobs, and one who only signs in.
pub(crate) const PEOPLE: [&str; 5] = ["ada", "bob", "cleo", "dan", "eve"];

/// Who comes over HTTPS, where there is any: one who does a bit of everything, one who follows jobs.
const OVER_HTTPS: [&str; 2] = ["fay", "gil"];

/// Some people at work.
pub(crate) struct Load {
    pub(crate) api: Api,
    stop: CancellationToken,
    people: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(url: String) -> Self {
        let (api, stop) = (Api::new(url), CancellationToken::new());
        let mut people = Vec::new();
        for name in ["ada", "bob"] {
            people.push(tokio::spawn(api.of(name).work(name.to_owned(), stop.clone())));
        }
        for name in ["cleo", "dan"] {
            people.push(tokio::spawn(api.of(name).follow(name.to_owned(), stop.clone())));
        }
        people.push(tokio::spawn(api.of("eve").knock("eve".to_owned(), stop.clone())));
        Self { api, stop, people }
    }

    /// Some more people, over HTTPS at `base`, for which the authority at `certificate` vouches.
    pub(crate) fn also_over_https(&mut self, base: String, certificate: &Path) {
        let api = self.api.over_https(base, certificate);
        let [worker, follower] = OVER_HTTPS.map(|name| api.of(name));
        self.people.push(tokio::spawn(worker.work(OVER_HTTPS[0].to_owned(), self.stop.clone())));
        self.people.push(tokio::spawn(follower.follow(OVER_HTTPS[1].to_owned(), self.stop.clone())));
    }

    pub(crate) fn book(&self) -> &Book {
        &self.api.book
    }

    /// Waits until each who came over HTTPS has been well answered to something that began from now on.
    pub(crate) async fn https_goes_on(&self) {
        let now = Instant::now();
        eventually(PATIENCE, || async {
            let over = self.book().over_since(now);
            OVER_HTTPS
                .iter()
                .all(|who| over.iter().any(|over| over.who == *who && over.began > now && over.is_well))
        })
        .await;
    }

    /// Waits until `more` requests were answered from now on.
    pub(crate) async fn goes_on(&self, more: usize) {
        let target = Book::count(&self.book().answered) + more;
        eventually(PATIENCE, || async { Book::count(&self.book().answered) >= target }).await;
    }

    /// Ends the load: what people are at they finish.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        for person in self.people.drain(..) {
            person.await.unwrap();
        }
    }

    /// Waits until every job that was accepted has succeeded.
    pub(crate) async fn all_jobs_succeed(&self) -> usize {
        let jobs = self.book().jobs.lock().unwrap().clone();
        let count = jobs.len();
        for (session, job) in jobs {
            let path = format!("/v1/jobs/{job}");
            eventually(PATIENCE, || async {
                let job = self.api.get(&session, &path).await?;
                (job["state"] == "succeeded").then_some(())
            })
            .await;
        }
        count
    }

    /// Waits until the audit log has one event of each job that was accepted, as the newest pages tell.
    pub(crate) async fn all_jobs_are_audited(&self) {
        let jobs = self.book().jobs.lock().unwrap().clone();
        for (session, job) in jobs {
            let path = format!("/v1/audit/events?action=job.jobs.submit&target=job/{job}");
            eventually(PATIENCE, || async {
                let page = self.api.get(&session, &path).await?;
                let events = page["events"].as_array().unwrap().len();
                assert!(events <= 1, "{job} was audited {events} times: {page}");
                (events == 1).then_some(())
            })
            .await;
        }
    }
}

/// What takes how long; for the log of the test.
pub(crate) async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    eprintln!("{:>6.2} s  {what}", began.elapsed().as_secs_f64());
    done
}
