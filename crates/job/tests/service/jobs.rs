//! Submitting, reading, cancelling, retrying and forgetting jobs.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{PATIENCE, Service, assert_contiguous, at, types};
use gatehouse_core::{Clock, ErrorCode};
use gatehouse_job::{Config, KindConfig, MIGRATIONS, all_sql};
use gatehouse_proto::job::v1::work_finish::Outcome;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines};

both_engines! {
    migrations: MIGRATIONS;

    async fn every_statement_is_sound(db: TestDb) {
        db.prepare_all(&all_sql()).await.unwrap();
        db.prepare_all(&gatehouse_outbox::all_sql()).await.unwrap();
    }

    async fn one_key_makes_one_job(db: TestDb) {
        let service = Service::start(&db).await;
        let owner = service.owner();
        let many = (0..20).map(|_| {
            let owner = owner.clone();
            tokio::spawn(async move { owner.submit("count", "{\"steps\":1}", "k-1").await.unwrap() })
        });
        let mut ids = BTreeSet::new();
        let mut made = 0;
        for answer in many.collect::<Vec<_>>() {
            let answer = answer.await.unwrap();
            made += u32::from(!answer.existed);
            ids.insert(answer.job.unwrap().job_id);
        }
        assert_eq!((ids.len(), made), (1, 1));
        for (kind, input) in [("count", "{\"steps\":2}"), ("other", "{\"steps\":1}")] {
            let error = owner.submit(kind, input, "k-1").await.unwrap_err();
            assert_eq!((error.code(), error.reason()), (ErrorCode::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"));
        }
        // A key belongs to its submitter: another's is another, and without a key each request is its own.
        let colleague = service.member(owner.tenant);
        let theirs = colleague.submit("count", "{\"steps\":1}", "k-1").await.unwrap();
        assert!(!theirs.existed && !ids.contains(&theirs.job.unwrap().job_id));
        let (first, second) = (owner.submit_count(1).await, owner.submit_count(1).await);
        assert_ne!(first, second);
        service.stop().await;
    }

    async fn what_is_no_job_is_refused_with_its_reason(db: TestDb) {
        let kind = KindConfig { max_input_bytes: 100, max_queued_per_tenant: 2, ..KindConfig::default() };
        let config = Config { kinds: [("count".to_owned(), kind)].into(), ..crate::common::config() };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        let owner = service.owner();
        let deep = "[".repeat(99);
        for (kind, input, key, reason) in [
            ("render", "{}", "", "KIND_NOT_FOUND"),
            ("", "{}", "", "KIND_NOT_FOUND"),
            ("count", "", "", "INPUT_INVALID"),
            ("count", "{\"steps\":", "", "INPUT_INVALID"),
            ("count", "{} {}", "", "INPUT_INVALID"),
            ("count", "{\"a\":\"\u{0}\"}", "", "INPUT_INVALID"),
            ("count", &deep, "", "INPUT_INVALID"),
            ("count", &format!("\"{}\"", "x".repeat(99)), "", "INPUT_TOO_LARGE"),
            ("count", "{}", "has space", "INVALID_FIELD"),
            ("count", "{}", &"k".repeat(129), "INVALID_FIELD"),
        ] {
            assert_eq!(owner.submit(kind, input, key).await.unwrap_err().reason(), reason, "{kind} {input} {key}");
        }
        let waiting = owner.submit_count(1).await;
        owner.submit_count(1).await;
        let full = owner.submit("count", "{}", "").await.unwrap_err();
        assert_eq!((full.code(), full.reason()), (ErrorCode::ResourceExhausted, "QUEUE_FULL"));
        // A retry waits in the same queue, so it asks for a place there too.
        owner.cancel(&waiting).await.unwrap();
        owner.submit_count(1).await;
        let full = owner.retry(&waiting).await.unwrap_err();
        assert_eq!((full.code(), full.reason()), (ErrorCode::ResourceExhausted, "QUEUE_FULL"));
        assert!(full.retry_after_hint().is_some());
        service.owner().submit("count", "{}", "").await.expect("another tenant's queue is its own");
        service.stop().await;
    }

    async fn a_full_queue_takes_no_more_however_many_ask_at_once(db: TestDb) {
        let kind = KindConfig { max_queued_per_tenant: 3, ..KindConfig::default() };
        let config = Config { kinds: [("count".to_owned(), kind)].into(), ..crate::common::config() };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        let owner = service.owner();
        let mut over = Vec::new();
        for _ in 0..4 {
            let job = owner.submit_count(1).await;
            owner.cancel(&job).await.unwrap();
            over.push(job);
        }
        // Submitted and tried again, at once, by many.
        let many = (0..12).map(|place| {
            let (owner, again) = (owner.clone(), over.get(place).cloned());
            tokio::spawn(async move {
                match again {
                    Some(job) => owner.retry(&job).await.map(drop),
                    None => owner.submit("count", "{\"steps\":1}", "").await.map(drop),
                }
            })
        });
        let mut taken = 0;
        for answer in many.collect::<Vec<_>>() {
            match answer.await.unwrap() {
                Ok(()) => taken += 1,
                Err(error) => assert_eq!(error.reason(), "QUEUE_FULL"),
            }
        }
        let waiting = ListJobsRequest { state: JobState::Queued.into(), ..Default::default() };
        assert_eq!((taken, owner.list(waiting).await.unwrap().jobs.len()), (3, 3));
        service.stop().await;
    }

    async fn one_key_makes_one_job_in_the_last_place_too(db: TestDb) {
        let kind = KindConfig { max_queued_per_tenant: 1, ..KindConfig::default() };
        let config = Config { kinds: [("count".to_owned(), kind)].into(), ..crate::common::config() };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        // Not each time do two meet at the last place.
        for _ in 0..20 {
            let owner = service.owner();
            let many = (0..6).map(|_| {
                let owner = owner.clone();
                tokio::spawn(async move { owner.submit("count", "{\"steps\":1}", "k-1").await.unwrap().job.unwrap().job_id })
            });
            let mut ids = BTreeSet::new();
            for answer in many.collect::<Vec<_>>() {
                ids.insert(answer.await.unwrap());
            }
            assert_eq!(ids.len(), 1);
            assert_eq!(owner.submit("count", "{}", "k-2").await.unwrap_err().reason(), "QUEUE_FULL");
        }
        service.stop().await;
    }

    async fn pages_hold_every_job_once(db: TestDb) {
        let service = Service::start(&db).await;
        let owner = service.owner();
        let mut made = Vec::new();
        for _ in 0..7 {
            made.push(owner.submit_count(1).await);
        }
        let other = owner.submit("other", "1", "").await.unwrap().job.unwrap().job_id;
        owner.cancel(&made[0]).await.unwrap();
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let request = ListJobsRequest { page_size: 3, page_token: token, kind: "count".into(), state: 0 };
            let page = owner.list(request).await.unwrap();
            seen.extend(page.jobs.into_iter().map(|job| job.job_id));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let newest_first = |ids: &[String]| { let mut ids = ids.to_vec(); ids.sort(); ids.reverse(); ids };
        assert_eq!(seen, newest_first(&made));
        let list = |request| async { owner.list(request).await.unwrap().jobs.into_iter().map(|job| job.job_id).collect::<Vec<_>>() };
        assert_eq!(list(ListJobsRequest { kind: "other".into(), ..Default::default() }).await, [other]);
        let cancelled = ListJobsRequest { state: JobState::Cancelled.into(), ..Default::default() };
        assert_eq!(list(cancelled).await, [made[0].clone()]);
        for wrong in [
            ListJobsRequest { page_size: 201, ..Default::default() },
            ListJobsRequest { page_size: -1, ..Default::default() },
            ListJobsRequest { page_token: "?".into(), ..Default::default() },
            ListJobsRequest { page_token: "AAAA".into(), ..Default::default() },
            ListJobsRequest { state: 99, ..Default::default() },
        ] {
            assert_eq!(owner.list(wrong).await.unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        service.stop().await;
    }

    async fn a_waiting_job_is_cancelled_at_once_and_can_be_retried(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(3).await;
        assert_eq!(owner.retry(&job).await.unwrap_err().reason(), "JOB_NOT_FINISHED");
        assert_eq!(owner.result(&job).await.unwrap_err().reason(), "JOB_NOT_FINISHED");
        assert_eq!(owner.cancel(&job).await.unwrap().state(), JobState::Cancelled);
        let again = owner.cancel(&job).await.unwrap();
        assert_eq!((again.state(), again.last_sequence), (JobState::Cancelled, 2));
        assert_eq!(owner.result(&job).await.unwrap_err().reason(), "JOB_CANCELLED");
        let events = owner.events(&job, 0).await;
        assert_eq!(types(&events), [JobEventType::Queued, JobEventType::End]);
        assert!(owner.events(&job, 2).await.is_empty(), "the end was seen");
        let retried = owner.retry(&job).await.unwrap();
        assert_eq!((retried.state(), retried.cancel_requested), (JobState::Queued, false));
        let worker = service.counter(Duration::ZERO);
        owner.until(&job, JobState::Succeeded).await;
        assert_eq!(owner.result(&job).await.unwrap(), "{\"counted\":3}");
        assert_eq!(owner.retry(&job).await.unwrap_err().reason(), "JOB_SUCCEEDED");
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(
            types(&events)[..4],
            [JobEventType::Queued, JobEventType::End, JobEventType::Queued, JobEventType::Started]
        );
        worker.drain().await;
        service.stop().await;
    }

    /// L12, T12: clock-driven.
    async fn a_finished_job_is_forgotten_when_its_time_is_over(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        let (done, waiting) = (owner.submit_count(1).await, owner.submit("other", "1", "").await.unwrap().job.unwrap());
        let mut worker = service.raw_worker(&["count"], &["count:*"], "").await.unwrap();
        let lease = worker.lease().await;
        worker.finish(&lease, 1, Outcome::ResultJson("7".into()));
        worker.answer().await.unwrap();
        let job = owner.get(&done).await.unwrap();
        assert_eq!(job.expires_at - job.finished_at, 24 * 3600 * 1_000_000);
        clock.advance(Duration::from_secs(24 * 3600 - 1));
        service.app.sweep().await.unwrap();
        assert_eq!(owner.result(&done).await.unwrap(), "7");
        clock.advance(Duration::from_secs(1));
        service.app.sweep().await.unwrap();
        for error in [
            owner.get(&done).await.map(drop).unwrap_err(),
            owner.result(&done).await.map(drop).unwrap_err(),
            owner.watch(&done, 0).await.map(drop).unwrap_err(),
            owner.retry(&done).await.map(drop).unwrap_err(),
            owner.cancel(&done).await.map(drop).unwrap_err(),
        ] {
            assert_eq!((error.code(), error.reason()), (ErrorCode::NotFound, "JOB_NOT_FOUND"));
        }
        assert_eq!(owner.get(&waiting.job_id).await.unwrap().state(), JobState::Queued, "a waiting job is kept");
        service.stop().await;
    }

    async fn a_tenant_sees_nothing_of_another(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let (owner, stranger) = (service.owner(), service.owner());
        let job = owner.submit("count", "{\"steps\":1}", "k").await.unwrap().job.unwrap().job_id;
        for error in [
            stranger.get(&job).await.map(drop).unwrap_err(),
            stranger.cancel(&job).await.map(drop).unwrap_err(),
            stranger.retry(&job).await.map(drop).unwrap_err(),
            stranger.result(&job).await.map(drop).unwrap_err(),
            stranger.watch(&job, 0).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(error.reason(), "JOB_NOT_FOUND");
        }
        assert!(stranger.list(ListJobsRequest::default()).await.unwrap().jobs.is_empty());
        assert!(!stranger.submit("count", "{\"steps\":1}", "k").await.unwrap().existed);
        assert_eq!(owner.get(&job).await.unwrap().state(), JobState::Queued);

        let reader = service.caller(Some(owner.tenant), &["job.jobs.read"]);
        assert_eq!(reader.get(&job).await.unwrap().job_id, job);
        assert_eq!(reader.submit("count", "{}", "").await.unwrap_err().reason(), "PERMISSION_DENIED");
        assert_eq!(reader.cancel(&job).await.unwrap_err().reason(), "PERMISSION_DENIED");
        assert_eq!(reader.retry(&job).await.unwrap_err().reason(), "PERMISSION_DENIED");
        let nowhere = service.caller(None, &["job.jobs.read", "job.jobs.submit", "job.jobs.cancel"]);
        assert_eq!(nowhere.get(&job).await.unwrap_err().reason(), "TENANT_REQUIRED");
        assert_eq!(nowhere.submit("count", "{}", "").await.unwrap_err().reason(), "TENANT_REQUIRED");
        assert_eq!(nowhere.list(ListJobsRequest::default()).await.unwrap_err().reason(), "TENANT_REQUIRED");
        assert_eq!(owner.get("nonsense").await.unwrap_err().code(), ErrorCode::InvalidArgument);
        service.stop().await;
    }

    async fn every_change_is_audited_in_its_transaction(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        let (done, cancelled) = (owner.submit_count(1).await, owner.submit("other", "1", "").await.unwrap().job.unwrap());
        owner.cancel(&cancelled.job_id).await.unwrap();
        let mut worker = service.raw_worker(&["count"], &["count:*"], "").await.unwrap();
        let lease = worker.lease().await;
        worker.finish(&lease, 1, Outcome::ResultJson("7".into()));
        worker.answer().await.unwrap();
        clock.advance(Duration::from_hours(25));
        service.app.sweep().await.unwrap();
        let actions = crate::common::audited(&db).await;
        let mut expected = vec![
            "job.jobs.submit", "job.jobs.submit", "job.jobs.cancel", "job.jobs.start", "job.jobs.finish",
            "job.jobs.purge", "job.jobs.purge",
        ];
        let mut found: Vec<_> = actions.iter().map(String::as_str).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(owner.get(&done).await.unwrap_err().reason(), "JOB_NOT_FOUND");
        service.stop().await;
    }
}

#[test]
fn the_migration_holds_the_outbox_as_its_crate_has_it() {
    let migration = include_str!("../../../../migrations/job/0001_init.sql");
    assert!(migration.contains(gatehouse_outbox::MIGRATION.trim()));
    assert!(PATIENCE > Duration::ZERO);
}

#[tokio::test]
async fn a_job_that_is_cancelled_twice_is_counted_once() {
    let registry = prometheus::Registry::new();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build().unwrap();
    let meters = opentelemetry_sdk::metrics::SdkMeterProvider::builder().with_reader(exporter).build();
    opentelemetry::global::set_meter_provider(meters);
    let db = TestDb::sqlite(&MIGRATIONS).await;
    let kinds = [("counted".to_owned(), KindConfig::default())].into();
    let config = Config { kinds, ..crate::common::config() };
    let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
    let owner = service.owner();
    let job = owner.submit("counted", "{}", "").await.unwrap().job.unwrap().job_id;
    for _ in 0..3 {
        assert_eq!(owner.cancel(&job).await.unwrap().state(), JobState::Cancelled);
    }
    let families = registry.gather();
    let finished =
        families.iter().find(|family| family.name().starts_with("gatehouse_job_finished")).unwrap();
    let counted = |metric: &&prometheus::proto::Metric| {
        metric.get_label().iter().any(|label| label.value() == "counted")
    };
    let counted = finished.get_metric().iter().find(counted).unwrap();
    assert!((counted.get_counter().get_value() - 1.0).abs() < f64::EPSILON, "{counted:?}");
    service.stop().await;
}
