//! The optimizer against the real service.

use std::time::Duration;

use gatehouse_core::Clock;
use gatehouse_job::{Config, MIGRATIONS};
use gatehouse_optimizer::Config as OptimizerConfig;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines};
use serde_json::{Value, json};

use crate::common::{Caller, RunningWorker, Service, assert_contiguous, at, config, steps, types};

fn optimizer(service: &Service, config: OptimizerConfig) -> RunningWorker {
    let channel = service.worker_channel(&["optimize:*"]);
    RunningWorker::spawn(|shutdown| gatehouse_optimizer::worker(channel, config).run(shutdown))
}

fn slow(max_iterations: u32, min_iteration_ms: u64) -> OptimizerConfig {
    let mut config = OptimizerConfig { max_iterations, min_iteration_ms, ..OptimizerConfig::default() };
    config.worker.reconnect_max_ms = 50;
    config
}

fn rosenbrock(more: &Value) -> String {
    let mut request = json!({
        "objective": "(1-x)^2 + 100*(y-x^2)^2",
        "variables": [{"name": "x", "lower": -5, "upper": 5}, {"name": "y", "lower": -5, "upper": 5}],
    });
    for (name, value) in more.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
        request[name] = value.clone();
    }
    request.to_string()
}

async fn submit(service: &Service, input: &str) -> (Caller, String) {
    let owner = service.owner();
    let job = owner.submit("optimize", input, "").await.unwrap().job.unwrap().job_id;
    (owner, job)
}

/// A service whose leases last a minute of `clock`, which stands.
async fn with_long_leases(db: &TestDb, clock: &Clock) -> Service {
    let config = Config { lease_ttl_ms: 60_000, sweep_interval_ms: 600_000, ..config() };
    Service::start_with(db, config, clock.clone(), "127.0.0.1:0").await
}

/// Has a worker that allows `max_iterations` do twenty of them, kills it, and lets the lease end and the pause before the
/// next attempt pass.
async fn run_and_kill(service: &Service, clock: &Clock, owner: &Caller, job: &str, max_iterations: u32) {
    let mut watching = owner.watch(job, 0).await.unwrap();
    let victim = optimizer(service, slow(max_iterations, 15));
    for _ in 0..20 {
        watching.until(JobEventType::Progress).await;
    }
    victim.kill();
    clock.advance(Duration::from_mins(1));
    service.app.sweep().await.unwrap();
    watching.until(JobEventType::Retrying).await;
    clock.advance(Duration::from_secs(1));
}

both_engines! {
    migrations: MIGRATIONS;

    async fn an_objective_is_minimised_and_the_clamp_is_told(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let worker = optimizer(&service, slow(150, 0));
        let (owner, job) = submit(&service, &rosenbrock(&json!({"max_iterations": 100_000, "seed": 7}))).await;
        owner.until(&job, JobState::Succeeded).await;
        let result: Value = serde_json::from_str(&owner.result(&job).await.unwrap()).unwrap();
        assert!(result["best"]["value"].as_f64().unwrap() < 1e-6, "{result}");
        assert_eq!(result["iterations"], json!({"requested": 100_000, "allowed": 150, "clamped": true}));
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(types(&events)[..3], [JobEventType::Queued, JobEventType::Started, JobEventType::Notice]);
        let notice: Value = serde_json::from_str(&events[2].data_json).unwrap();
        assert_eq!(notice["notice"], "ITERATIONS_CLAMPED");
        let ran = result["iteration"].as_u64().unwrap();
        assert_eq!(steps(&events, "iteration"), (1..=ran).collect::<Vec<_>>(), "one event an iteration");
        worker.drain().await;
        service.stop().await;
    }

    /// The killed run and the unbroken one tell the same story. The service's clock stands: nobody loses a lease but the one
    /// who is killed, however long the machine stands still.
    async fn a_killed_search_goes_on_where_it_was(db: TestDb) {
        let clock = at(0);
        let service = with_long_leases(&db, &clock).await;
        let input = rosenbrock(&json!({"seed": 3, "max_iterations": 60}));
        let (owner, job) = submit(&service, &input).await;
        run_and_kill(&service, &clock, &owner, &job, 60).await;
        let worker = optimizer(&service, slow(60, 0));
        assert_eq!(owner.until(&job, JobState::Succeeded).await.attempt, 2);
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "iteration"), (1..=60).collect::<Vec<_>>());
        let (other, unbroken) = submit(&service, &input).await;
        other.until(&unbroken, JobState::Succeeded).await;
        assert_eq!(owner.result(&job).await.unwrap(), other.result(&unbroken).await.unwrap());
        worker.drain().await;
        service.stop().await;
    }

    /// MAX_ITERATIONS may be another after a restart. A lower one ends the search, at the iteration that was told of; a
    /// higher one is not for a job that was told a lower.
    async fn a_limit_that_changed_contradicts_nothing_that_was_told(db: TestDb) {
        let clock = at(0);
        let service = with_long_leases(&db, &clock).await;
        for (before, after, asked) in [(200, 10, Some(1000)), (200, 10, None), (60, 500, Some(1000))] {
            let input = rosenbrock(&json!({"seed": 3, "tolerance": 0, "max_iterations": asked}));
            let (owner, job) = submit(&service, &input).await;
            run_and_kill(&service, &clock, &owner, &job, before).await;
            let worker = optimizer(&service, slow(after, 0));
            owner.until(&job, JobState::Succeeded).await;
            worker.drain().await;

            let events = owner.events(&job, 0).await;
            let told = |kind| {
                let data = events.iter().filter(move |event| event.r#type() == kind);
                data.map(|event| serde_json::from_str(&event.data_json).unwrap()).collect::<Vec<Value>>()
            };
            let (progress, notices) = (told(JobEventType::Progress), told(JobEventType::Notice));
            let result: Value = serde_json::from_str(&owner.result(&job).await.unwrap()).unwrap();
            let last = progress.last().unwrap();
            for field in ["iteration", "evaluations", "best"] {
                assert_eq!(result[field], last[field], "{field}: {result} after {last}");
            }
            let ran = u64::try_from(progress.len()).unwrap();
            assert_eq!(steps(&events, "iteration"), (1..=ran).collect::<Vec<_>>());
            let allowed: Vec<_> = notices.iter().map(|notice| &notice["iterations"]["allowed"]).collect();
            let expected: &[u64] = match asked {
                _ if after > before => &[u64::from(before)],
                Some(_) => &[u64::from(before), ran],
                None => &[ran],
            };
            assert_eq!(allowed, expected, "{notices:?}");
            assert_eq!(
                (&result["iterations"]["allowed"], &result["stopped"]),
                (&json!(expected.last()), &json!("max_iterations"))
            );
        }
        service.stop().await;
    }

    async fn a_search_stops_within_one_iteration_of_a_cancel(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let worker = optimizer(&service, slow(100_000, 5));
        let (owner, job) = submit(&service, &rosenbrock(&json!({"max_iterations": 100_000, "tolerance": 0}))).await;
        let mut watching = owner.watch(&job, 0).await.unwrap();
        for _ in 0..3 {
            watching.until(JobEventType::Progress).await;
        }
        owner.cancel(&job).await.unwrap();
        owner.until(&job, JobState::Cancelled).await;
        let found = types(&owner.events(&job, 0).await);
        let asked_at = found.iter().position(|found| *found == JobEventType::CancelRequested).unwrap();
        let later = found[asked_at..].iter().filter(|found| **found == JobEventType::Progress).count();
        assert!(later <= 1, "{later} iterations after the cancel");
        // And again from where it was.
        owner.retry(&job).await.unwrap();
        let mut watching = owner.watch(&job, 0).await.unwrap();
        watching.until(JobEventType::End).await;
        watching.until(JobEventType::Progress).await;
        owner.cancel(&job).await.unwrap();
        owner.until(&job, JobState::Cancelled).await;
        let iterations = steps(&owner.events(&job, 0).await, "iteration");
        assert_eq!(iterations, (1..=u64::try_from(iterations.len()).unwrap()).collect::<Vec<_>>());
        worker.drain().await;
        service.stop().await;
    }

    async fn a_bad_request_fails_once_and_says_why(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let worker = optimizer(&service, slow(100, 0));
        for (more, reason, words) in [
            (json!({"objective": "x +"}), "INVALID_OPTIMIZE_REQUEST", "character 4"),
            (json!({"objective": "x + z"}), "INVALID_OPTIMIZE_REQUEST", "\"z\" is no variable"),
            (json!({"objective": "(".repeat(4000)}), "INVALID_OPTIMIZE_REQUEST", "nested"),
            (json!({"objective": "x+".repeat(5000)}), "INVALID_OPTIMIZE_REQUEST", "bytes long"),
            (json!({"objective": 7}), "INVALID_OPTIMIZE_REQUEST", "objective"),
            (json!({"variables": []}), "INVALID_OPTIMIZE_REQUEST", "1 to 64"),
            (json!({"variables": [{"name": "x", "lower": 5, "upper": -5}]}), "INVALID_OPTIMIZE_REQUEST", "variables[0].upper"),
            (json!({"max_iterations": 0}), "INVALID_OPTIMIZE_REQUEST", "max_iterations"),
            (json!({"populations": 0}), "INVALID_OPTIMIZE_REQUEST", "unknown"),
            (json!({"objective": "ln(-1 - x^2)"}), "OBJECTIVE_NOT_FINITE", "no finite number"),
        ] {
            let (owner, job) = submit(&service, &rosenbrock(&more)).await;
            let failed = owner.until(&job, JobState::Failed).await;
            assert_eq!((failed.failure_reason.as_str(), failed.attempt), (reason, 1), "{more}");
            assert!(failed.failure_message.contains(words), "{more}: {}", failed.failure_message);
            let last = owner.events(&job, 0).await.pop().unwrap();
            assert!(last.r#type() == JobEventType::End && last.data_json.contains(reason));
        }
        let (owner, job) = submit(&service, &rosenbrock(&json!({"objective": "ln(x) + y"}))).await;
        owner.until(&job, JobState::Succeeded).await;
        worker.drain().await;
        tokio::time::timeout(Duration::from_secs(20), service.stop()).await.unwrap();
    }
}
