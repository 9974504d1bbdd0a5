//! Workers of the client crate: killed, drained, cut off, many at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gatehouse_client::worker::{Failure, Worker, WorkerConfig};
use gatehouse_core::Clock;
use gatehouse_job::MIGRATIONS;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::common::{PATIENCE, RunningWorker, Service, assert_contiguous, config, steps, types};

both_engines! {
    migrations: MIGRATIONS;

    async fn a_killed_workers_job_is_finished_by_another(db: TestDb) {
        let service = Service::start(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(40).await;
        let mut watching = owner.watch(&job, 0).await.unwrap();
        let mut victims = Vec::new();
        for victim in 0..2 {
            let worker = service.counter(Duration::from_millis(20));
            watching.until(JobEventType::Started).await;
            for _ in 0..5 {
                watching.until(JobEventType::Progress).await;
            }
            worker.kill();
            let retrying = watching.until(JobEventType::Retrying).await;
            assert!(retrying.data_json.contains("WORKER_LOST"), "{}", retrying.data_json);
            victims.push(victim);
        }
        let worker = service.counter(Duration::ZERO);
        let done = owner.until(&job, JobState::Succeeded).await;
        assert_eq!(done.attempt, 3);
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "step"), (1..=40).collect::<Vec<_>>(), "no step twice, none left out");
        worker.drain().await;
        service.stop().await;
    }

    async fn a_drained_worker_gives_its_jobs_back(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(30).await;
        let mut watching = owner.watch(&job, 0).await.unwrap();
        let worker = service.counter(Duration::from_millis(20));
        for _ in 0..3 {
            watching.until(JobEventType::Progress).await;
        }
        worker.drain().await;
        let queued = owner.get(&job).await.unwrap();
        assert_eq!((queued.state(), queued.attempt), (JobState::Queued, 0), "the attempt is not counted");
        let next = service.counter(Duration::ZERO);
        assert_eq!(owner.until(&job, JobState::Succeeded).await.attempt, 1);
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "step"), (1..=30).collect::<Vec<_>>());
        next.drain().await;
        service.stop().await;
    }

    /// The service goes away and comes back; the worker keeps its lease and goes on.
    async fn a_worker_outlives_a_restart_of_the_service(db: TestDb) {
        let config = gatehouse_job::Config { lease_ttl_ms: 20_000, ..config() };
        let service = Service::start_with(&db, config.clone(), Clock::system(), "127.0.0.1:0").await;
        let address = service.address.to_string();
        let owner = service.owner();
        let job = owner.submit_count(60).await;
        let mut watching = owner.watch(&job, 0).await.unwrap();
        let worker = service.counter(Duration::from_millis(10));
        for _ in 0..3 {
            watching.until(JobEventType::Progress).await;
        }
        drop(watching);
        service.stop().await;
        let service = Service::start_with(&db, config, Clock::system(), &address).await;
        let done = owner.until(&job, JobState::Succeeded).await;
        assert_eq!(done.attempt, 1, "the lease was kept");
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "step"), (1..=60).collect::<Vec<_>>());
        assert_eq!(worker.begun.load(std::sync::atomic::Ordering::SeqCst), 1);
        worker.drain().await;
        service.stop().await;
    }

    /// The same for a job that has written nothing for longer than its lease: it lives by heartbeats.
    async fn a_quiet_job_outlives_a_restart_of_the_service(db: TestDb) {
        let lease_ttl = Duration::from_secs(8);
        let config = gatehouse_job::Config { lease_ttl_ms: 8_000, ..config() };
        let service = Service::start_with(&db, config.clone(), Clock::system(), "127.0.0.1:0").await;
        let address = service.address.to_string();
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let may_end = tokio_util::sync::CancellationToken::new();
        let end = may_end.clone();
        let worker = RunningWorker::start(service.worker_channel(&["count:*"]), move |job| {
            let may_end = may_end.clone();
            async move {
                tokio::select! {
                    () = may_end.cancelled() => Ok("1".to_owned()),
                    stop = job.stopped() => Err(stop.into()),
                }
            }
        });
        owner.until(&job, JobState::Running).await;
        // The time itself is what is tried.
        tokio::time::sleep(lease_ttl + Duration::from_secs(1)).await;
        service.stop().await;
        let service = Service::start_with(&db, config, Clock::system(), &address).await;
        eventually(PATIENCE, || async { owner.get(&job).await.is_ok() }).await;
        end.cancel();
        assert_eq!(owner.until(&job, JobState::Succeeded).await.attempt, 1, "the lease was kept");
        assert_eq!(worker.begun.load(std::sync::atomic::Ordering::SeqCst), 1);
        worker.drain().await;
        service.stop().await;
    }

    async fn a_running_job_is_cancelled(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(100_000).await;
        let worker = service.counter(Duration::from_millis(2));
        let mut watching = owner.watch(&job, 0).await.unwrap();
        watching.until(JobEventType::Progress).await;
        let asked = owner.cancel(&job).await.unwrap();
        assert!(asked.cancel_requested && asked.state() == JobState::Running);
        owner.cancel(&job).await.unwrap();
        owner.until(&job, JobState::Cancelled).await;
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        let found = types(&events);
        assert_eq!(found.iter().filter(|found| **found == JobEventType::CancelRequested).count(), 1);
        let asked_at = found.iter().position(|found| *found == JobEventType::CancelRequested).unwrap();
        let later = found[asked_at..].iter().filter(|found| **found == JobEventType::Progress).count();
        assert!(later <= 9, "{later} steps after the cancel");
        worker.drain().await;
        service.stop().await;
    }

    async fn a_panic_is_a_failed_attempt(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let worker = RunningWorker::start(service.worker_channel(&["count:*"]), |job| async move {
            assert!(job.attempt > 1, "the first attempt panics");
            if job.input == "2" {
                return Err(Failure { reason: "NO_WAY".into(), message: "It can't be done.".into(), retryable: false }.into());
            }
            Ok("1".to_owned())
        });
        let good = owner.submit("count", "1", "").await.unwrap().job.unwrap().job_id;
        let bad = owner.submit("count", "2", "").await.unwrap().job.unwrap().job_id;
        assert_eq!(owner.until(&good, JobState::Succeeded).await.attempt, 2);
        let failed = owner.until(&bad, JobState::Failed).await;
        assert_eq!((failed.attempt, failed.failure_reason.as_str()), (2, "NO_WAY"));
        let events = owner.events(&good, 0).await;
        assert!(events.iter().any(|event| event.data_json.contains("WORKER_PANICKED")));
        worker.drain().await;
        service.stop().await;
    }

    async fn a_worker_without_permission_says_so_and_ends(db: TestDb) {
        let service = Service::start(&db).await;
        let channel = service.worker_channel(&["other:*"]);
        let worker = Worker::new(channel, WorkerConfig::default()).handle("count", |_| async { Ok("1".to_owned()) });
        let error = worker.run(tokio_util::sync::CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.reason(), "PERMISSION_DENIED");
        service.stop().await;
    }

    /// Many workers at two replicas: every job is done exactly once.
    async fn every_job_is_done_exactly_once(db: TestDb) {
        const JOBS: usize = 300;
        // A lease that ends because the machine is busy is done again, as it should be; not what this is about.
        let config = gatehouse_job::Config { lease_ttl_ms: 60_000, ..config() };
        let second = db.another_replica().await;
        let replicas = [
            Service::start_with(&db, config.clone(), Clock::system(), "127.0.0.1:0").await,
            Service::start_with(&second, config, Clock::system(), "127.0.0.1:0").await,
        ];
        let owner = replicas[0].owner();
        let submitted = Instant::now();
        for _ in 0..JOBS / 20 {
            let batch = (0..20).map(|_| { let owner = owner.clone(); tokio::spawn(async move { owner.submit_count(1).await }) });
            for job in batch.collect::<Vec<_>>() {
                job.await.unwrap();
            }
        }
        let submitted = submitted.elapsed();
        let done: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let started = Instant::now();
        let workers: Vec<_> = (0..6)
            .map(|index| {
                let done = Arc::clone(&done);
                RunningWorker::start(replicas[index % 2].worker_channel(&["count:*"]), move |job| {
                    *done.lock().unwrap().entry(job.id.to_string()).or_default() += 1;
                    async { Ok("1".to_owned()) }
                })
            })
            .collect();
        gatehouse_testkit::eventually(Duration::from_mins(1), || async {
            let request = ListJobsRequest { state: JobState::Succeeded.into(), page_size: 200, ..Default::default() };
            let page = owner.list(request.clone()).await.unwrap();
            let rest = owner.list(ListJobsRequest { page_token: page.next_page_token.clone(), ..request }).await.unwrap();
            page.jobs.len() == 200 && rest.jobs.len() == JOBS - 200
        })
        .await;
        let per_second = |elapsed: Duration| f64::from(u32::try_from(JOBS).unwrap()) / elapsed.as_secs_f64();
        println!("submitted {:.0} jobs/s, done {:.0} jobs/s", per_second(submitted), per_second(started.elapsed()));
        let done = done.lock().unwrap();
        assert_eq!(done.len(), JOBS);
        assert!(done.values().all(|times| *times == 1), "a job was done twice");
        drop(workers);
    }
}
