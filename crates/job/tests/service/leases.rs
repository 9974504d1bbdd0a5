//! Who may write to a job, and what becomes of jobs whose worker does not.

use std::time::Duration;

use gatehouse_core::ids::TenantId;
use gatehouse_core::{Clock, Entropy, ErrorCode};
use gatehouse_job::{Config, MIGRATIONS};
use gatehouse_proto::job::v1::work_finish::Outcome;
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines};

use crate::common::{RawWorker, Service, assert_contiguous, at, config, steps, types};

const ANY: &[&str] = &["count:*"];
const COUNT: &[&str] = &["count"];

/// A message that breaks the protocol, and the reason that the job fails for.
type Breach = (Box<dyn Fn(&WorkLease) -> Message>, &'static str);

async fn lost(worker: &mut RawWorker, lease: &WorkLease) {
    loop {
        match worker.answer().await.unwrap() {
            Answer::LeaseLost(lost) if (&lost.job_id, lost.epoch) == (&lease.job_id, lease.epoch) => return,
            // Told unasked, when the service looked by itself.
            Answer::LeaseLost(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn next_lease(worker: &mut RawWorker) -> WorkLease {
    loop {
        match worker.answer().await.unwrap() {
            Answer::Lease(lease) => return lease,
            Answer::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn ack(worker: &mut RawWorker) -> WorkAck {
    loop {
        match worker.answer().await.unwrap() {
            Answer::Ack(ack) => return ack,
            Answer::HeartbeatAck(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

both_engines! {
    migrations: MIGRATIONS;

    /// No look by the clock, so each lease must have come by the queue's bell, or by what the last look left there.
    async fn every_job_is_handed_out_without_a_look_by_the_clock(db: TestDb) {
        let config = Config { poll_interval_ms: 60_000, lease_ttl_ms: 600_000, lease_batch: 2, ..config() };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        let owner = service.owner();
        let started = std::time::Instant::now();
        let mut jobs = Vec::new();
        for steps in 1..=3 {
            jobs.push(owner.submit_count(steps).await);
        }
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let mut done = Vec::new();
        // What waited before the worker came; then what came while it had no credit.
        for round in 0..5 {
            let lease = worker.lease().await;
            if round >= 2 {
                jobs.push(owner.submit_count(1).await);
            }
            worker.finish(&lease, 1, Outcome::ResultJson("1".into()));
            assert_eq!(ack(&mut worker).await.job_id, lease.job_id);
            done.push(lease.job_id);
        }
        // More credit than one look may take.
        for _ in 0..3 {
            jobs.push(owner.submit_count(1).await);
        }
        worker.send(Message::Credit(WorkCredit { leases: 5 }));
        // What is given back may be the same worker's again.
        let back = next_lease(&mut worker).await;
        worker.send(Message::Release(WorkRelease { job_id: back.job_id, epoch: back.epoch }));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(next_lease(&mut worker).await);
        }
        done.extend(held.into_iter().map(|lease| lease.job_id));
        done.sort_unstable();
        jobs.sort_unstable();
        assert_eq!(done, jobs);
        assert!(started.elapsed() < Duration::from_secs(45), "a job waited for the clock");
        drop(worker);
        service.stop().await;
    }

    /// Two replicas; the zombie is connected to one, its successor to the other.
    async fn a_zombie_writes_nothing(db: TestDb) {
        let clock = at(0);
        let here = Service::with_clock(&db, &clock).await;
        let there = Service::with_clock(&db.another_replica().await, &clock).await;
        let owner = here.owner();
        let job = owner.submit_count(3).await;
        let mut zombie = here.raw_worker(COUNT, ANY, "").await.unwrap();
        let old = zombie.lease().await;
        zombie.progress(&old, 1, 1);
        assert_eq!(ack(&mut zombie).await.sequence, 3);

        clock.advance(Duration::from_millis(config().lease_ttl_ms));
        there.app.sweep().await.unwrap();
        clock.advance(Duration::from_millis(1));
        let mut successor = there.raw_worker(COUNT, ANY, "").await.unwrap();
        let new = successor.lease().await;
        assert_eq!((new.attempt, new.epoch, &new.checkpoint[..]), (2, old.epoch + 1, &b"1"[..]));

        for number in 2..4 {
            zombie.progress(&old, number, 66);
            lost(&mut zombie, &old).await;
        }
        // Neither the successor's epoch nor an end helps: the lease belongs to a session.
        let stolen = WorkLease { epoch: new.epoch, ..old.clone() };
        zombie.progress(&stolen, 1, 66);
        lost(&mut zombie, &stolen).await;
        zombie.finish(&old, 4, Outcome::ResultJson("\"zombie\"".into()));
        lost(&mut zombie, &old).await;
        zombie.send(Message::Checkpoint(WorkCheckpoint { job_id: job.clone(), epoch: old.epoch, checkpoint: vec![6].into(), write_number: 5 }));
        lost(&mut zombie, &old).await;
        zombie.send(Message::Release(WorkRelease { job_id: job.clone(), epoch: old.epoch }));
        lost(&mut zombie, &old).await;

        successor.progress(&new, 1, 2);
        ack(&mut successor).await;
        successor.finish(&new, 2, Outcome::ResultJson("\"successor\"".into()));
        ack(&mut successor).await;
        assert_eq!(owner.result(&job).await.unwrap(), "\"successor\"");
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "step"), [1, 2]);
        assert_eq!(
            types(&events),
            [
                JobEventType::Queued, JobEventType::Started, JobEventType::Progress, JobEventType::Retrying,
                JobEventType::Started, JobEventType::Progress, JobEventType::End,
            ]
        );
        here.stop().await;
        there.stop().await;
    }

    /// The race itself: both write at the same moment, again and again; the epoch decides.
    async fn a_lease_that_is_taken_back_in_the_middle_of_writes_leaves_no_gap(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        for _ in 0..5 {
            let job = owner.submit_count(0).await;
            let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
            let lease = worker.lease().await;
            for number in 1..=100 {
                worker.progress(&lease, number, 1);
            }
            clock.advance(Duration::from_secs(10));
            service.app.sweep().await.unwrap();
            loop {
                match worker.answer().await.unwrap() {
                    Answer::Ack(WorkAck { write_number: 100, .. }) | Answer::LeaseLost(_) => break,
                    _ => {}
                }
            }
            owner.cancel(&job).await.unwrap();
            clock.advance(Duration::from_secs(10));
            let events = owner.events(&job, 0).await;
            assert_contiguous(&events, 0);
            assert_eq!(events.last().unwrap().r#type(), JobEventType::End);
        }
        service.stop().await;
    }

    async fn a_write_that_is_sent_again_counts_once(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(3).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let lease = worker.lease().await;
        for (number, sequence) in [(1, 3), (1, 0), (2, 4), (1, 0), (2, 0)] {
            worker.progress(&lease, number, u32::try_from(number).unwrap());
            assert_eq!(ack(&mut worker).await.sequence, sequence);
        }
        let worker_id = worker.welcome.worker_id.clone();
        drop(worker);
        let mut again = service.raw_worker(COUNT, ANY, &worker_id).await.unwrap();
        assert_eq!(again.welcome.worker_id, worker_id);
        let held = again.welcome.held.clone();
        assert_eq!((held.len(), held[0].epoch, held[0].last_write_number), (1, lease.epoch, 2));
        again.finish(&lease, 3, Outcome::ResultJson("1".into()));
        ack(&mut again).await;
        assert_eq!(steps(&owner.events(&job, 0).await, "step"), [1, 2]);
        service.stop().await;
    }

    /// More than one transaction takes, all there at once: a burst is cut into several, and nothing falls between them.
    async fn a_burst_of_writes_is_stored_whole(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        // The first that is left of 600, of the finish alone, and of none.
        for writes in [600, 255, 254] {
            let job = owner.submit_count(0).await;
            let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
            let lease = worker.lease().await;
            // While this is looked at, the rest arrives.
            worker.send(Message::Heartbeat(WorkHeartbeat::default()));
            for number in 1..=writes {
                worker.progress(&lease, number, u32::try_from(number).unwrap());
            }
            worker.finish(&lease, writes + 1, Outcome::ResultJson("1".into()));
            for number in 1..=writes + 1 {
                assert_eq!(ack(&mut worker).await.write_number, number);
            }
            assert_eq!(owner.get(&job).await.unwrap().state(), JobState::Succeeded);
            let events = owner.events(&job, 0).await;
            assert_contiguous(&events, 0);
            assert_eq!(steps(&events, "step"), (1..=u64::try_from(writes).unwrap()).collect::<Vec<_>>());
        }
        service.stop().await;
    }

    /// A write that is lost on the way must not vanish under numbers without a gap.
    async fn a_write_after_one_that_is_missing_breaks_the_stream(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(0).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let lease = worker.lease().await;
        let id = worker.welcome.worker_id.clone();
        let checkpoint = Message::Checkpoint(WorkCheckpoint {
            job_id: job.clone(), epoch: lease.epoch, checkpoint: vec![1].into(), write_number: 3,
        });
        worker.progress(&lease, 1, 1);
        ack(&mut worker).await;
        worker.progress(&lease, 3, 3);
        let refused = worker.answer().await.unwrap_err();
        assert_eq!((refused.code(), refused.reason()), (ErrorCode::Aborted, "WRITE_MISSING"));
        worker = service.raw_worker(COUNT, ANY, &id).await.unwrap();
        assert_eq!(worker.welcome.held[0].last_write_number, 1);
        worker.send(checkpoint);
        assert_eq!(worker.answer().await.unwrap_err().reason(), "WRITE_MISSING");
        // An end would hide it for good.
        for number in [3, 1] {
            worker = service.raw_worker(COUNT, ANY, &id).await.unwrap();
            worker.finish(&lease, number, Outcome::ResultJson("1".into()));
            assert_eq!(worker.answer().await.unwrap_err().reason(), "WRITE_MISSING", "{number}");
        }
        // What is there again is taken, with a repeat before it.
        worker = service.raw_worker(COUNT, ANY, &id).await.unwrap();
        for number in 1..=3 {
            worker.progress(&lease, number, u32::try_from(number).unwrap());
            assert_eq!(ack(&mut worker).await.write_number, number);
        }
        worker.finish(&lease, 4, Outcome::ResultJson("1".into()));
        ack(&mut worker).await;
        let events = owner.events(&job, 0).await;
        assert_contiguous(&events, 0);
        assert_eq!(steps(&events, "step"), [1, 2, 3]);
        service.stop().await;
    }

    /// The acknowledgement was lost with the stream: the worker says it again, and hears what it would have heard.
    async fn an_ending_that_is_sent_again_is_acknowledged_again(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let retryable =
            WorkFailure { reason: "UPSTREAM_AWAY".into(), message: "It is away.".into(), retryable: true };
        for outcome in [Outcome::ResultJson("\"done\"".into()), Outcome::Failure(retryable)] {
            let job = owner.submit_count(1).await;
            let mut first = service.raw_worker(COUNT, ANY, "").await.unwrap();
            let lease = first.lease().await;
            first.finish(&lease, 1, outcome.clone());
            ack(&mut first).await;
            let state = owner.get(&job).await.unwrap().state();
            let worker_id = first.welcome.worker_id.clone();
            drop(first);
            // Whether its session is there to take up or not.
            for session in [worker_id.as_str(), ""] {
                let mut again = service.raw_worker(COUNT, ANY, session).await.unwrap();
                again.finish(&lease, 1, outcome.clone());
                let told = ack(&mut again).await;
                assert_eq!((told.epoch, told.write_number, told.sequence), (lease.epoch, 1, 0));
                // Anything else about that lease is not what was stored.
                for (number, other) in [(2, outcome.clone()), (1, Outcome::ResultJson("\"other\"".into()))] {
                    again.finish(&lease, number, other);
                    lost(&mut again, &lease).await;
                }
            }
            assert_eq!(owner.get(&job).await.unwrap().state(), state);
            owner.cancel(&job).await.unwrap();
        }
        // A lease that was given back is over in the same way.
        let job = owner.submit_count(1).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let lease = worker.lease().await;
        assert_eq!(lease.job_id, job);
        let release = || Message::Release(WorkRelease { job_id: lease.job_id.clone(), epoch: lease.epoch });
        for _ in 0..2 {
            worker.send(release());
            assert_eq!(ack(&mut worker).await.write_number, 0);
        }
        service.stop().await;
    }

    async fn a_session_belongs_to_its_client_and_its_newest_stream(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        owner.submit_count(1).await;
        let mut old = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let lease = old.lease().await;
        let id = old.welcome.worker_id.clone();
        let mut new = service.raw_worker(COUNT, ANY, &id).await.unwrap();
        assert_eq!((new.welcome.worker_id.as_str(), new.welcome.held.len()), (id.as_str(), 1));
        old.send(Message::Heartbeat(WorkHeartbeat::default()));
        assert_eq!(old.answer().await.unwrap_err().reason(), "SESSION_OVER");
        new.progress(&lease, 1, 1);
        ack(&mut new).await;
        // After its time it is gone, whoever asks; so is the lease.
        clock.advance(Duration::from_mins(1));
        let late = service.raw_worker(COUNT, ANY, &id).await.unwrap();
        assert_ne!(late.welcome.worker_id, id);
        assert!(late.welcome.held.is_empty());
        let nonsense = service.raw_worker(COUNT, ANY, "me").await.map(drop).unwrap_err();
        assert_eq!(nonsense.code(), ErrorCode::InvalidArgument);
        service.stop().await;
    }

    /// An answer to a heartbeat means that the lease was renewed; one to a write does not.
    async fn a_heartbeat_is_answered_when_the_leases_are_renewed(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        assert!(worker.welcome.answers_heartbeats);
        let lease = worker.lease().await;
        let ttl = Duration::from_millis(config().lease_ttl_ms);
        for number in [1, 2, 7] {
            clock.advance(ttl * 2 / 3);
            worker.send(Message::Heartbeat(WorkHeartbeat { number }));
            match worker.answer().await.unwrap() {
                Answer::HeartbeatAck(ack) => assert_eq!(ack.number, number),
                other => panic!("{other:?}"),
            }
        }
        clock.advance(ttl * 2 / 3);
        worker.progress(&lease, 1, 1);
        ack(&mut worker).await;
        service.app.sweep().await.unwrap();
        assert_eq!(owner.get(&job).await.unwrap().state(), JobState::Running);
        clock.advance(ttl / 3 + Duration::from_millis(1));
        service.app.sweep().await.unwrap();
        assert_eq!(owner.get(&job).await.unwrap().state(), JobState::Queued);
        worker.send(Message::Heartbeat(WorkHeartbeat { number: 8 }));
        let refused = loop {
            match worker.answer().await {
                Ok(Answer::LeaseLost(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.reason(), "SESSION_OVER");
        service.stop().await;
    }

    async fn heartbeats_keep_a_silent_worker_alive_and_its_job_stalls(db: TestDb) {
        let clock = at(0);
        let service = Service::with_clock(&db, &clock).await;
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let lease = worker.lease().await;
        for _ in 0..130 {
            clock.advance(Duration::from_millis(500));
            worker.send(Message::Heartbeat(WorkHeartbeat::default()));
            // Answered in order: the acknowledgement of a repeat shows that the heartbeat was taken.
            worker.send(Message::Checkpoint(WorkCheckpoint {
                job_id: job.clone(), epoch: lease.epoch, checkpoint: vec![1].into(), write_number: 1,
            }));
            ack(&mut worker).await;
            worker.progress(&lease, 1, 0);
            ack(&mut worker).await;
            service.app.sweep().await.unwrap();
        }
        let stalled = owner.get(&job).await.unwrap();
        assert_eq!((stalled.state(), stalled.stalled, stalled.attempt), (JobState::Running, true, 1));
        worker.progress(&lease, 2, 1);
        ack(&mut worker).await;
        assert!(!owner.get(&job).await.unwrap().stalled);
        worker.finish(&lease, 3, Outcome::ResultJson("1".into()));
        ack(&mut worker).await;
        let events = owner.events(&job, 0).await;
        assert_eq!(types(&events).iter().filter(|found| **found == JobEventType::Stalled).count(), 1, "told once");
        assert!(crate::common::audited(&db).await.contains(&"job.jobs.stall".to_owned()));
        service.stop().await;
    }

    async fn attempts_end(db: TestDb) {
        let clock = at(0);
        let mut config = Config { sweep_interval_ms: 600_000, ..config() };
        config.kinds.get_mut("count").unwrap().attempt_timeout_ms = 500;
        let service = Service::start_with(&db, config, clock.clone(), "127.0.0.1:0").await;
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        for attempt in 1..=5 {
            let lease = worker.lease().await;
            assert_eq!(lease.attempt, attempt);
            let failure = WorkFailure { reason: "UPSTREAM_AWAY".into(), message: "It is away.".into(), retryable: true };
            worker.finish(&lease, 1, Outcome::Failure(failure));
            ack(&mut worker).await;
            clock.advance(Duration::from_millis(20));
        }
        let failed = owner.get(&job).await.unwrap();
        assert_eq!((failed.state(), failed.failure_reason.as_str()), (JobState::Failed, "UPSTREAM_AWAY"));
        let error = owner.result(&job).await.unwrap_err();
        assert_eq!(error.reason(), "JOB_FAILED");
        assert!(error.message().contains("It is away."));
        let retried = owner.retry(&job).await.unwrap();
        assert_eq!((retried.attempt, retried.max_attempts), (5, 10));

        // An attempt over its time is taken away although its worker lives.
        let lease = worker.lease().await;
        clock.advance(Duration::from_millis(500));
        service.app.sweep().await.unwrap();
        lost(&mut worker, &lease).await;
        let events = owner.watch(&job, 0).await.unwrap().until(JobEventType::Retrying).await;
        assert!(events.data_json.contains("UPSTREAM_AWAY"));
        assert_eq!(owner.get(&job).await.unwrap().state(), JobState::Queued);
        service.stop().await;
    }

    async fn what_breaks_the_protocol_fails_the_job(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let event = |lease: &WorkLease, r#type: JobEventType, data: &str, checkpoint: usize| {
            Message::Event(WorkEvent {
                job_id: lease.job_id.clone(), epoch: lease.epoch, r#type: r#type.into(), data_json: data.into(),
                write_number: 1, checkpoint: vec![0; checkpoint].into(),
            })
        };
        let numbered = |lease: &WorkLease, write_number: i64| {
            Message::Event(WorkEvent {
                job_id: lease.job_id.clone(), epoch: lease.epoch, r#type: JobEventType::Progress.into(),
                data_json: "{}".into(), write_number, checkpoint: prost::bytes::Bytes::new(),
            })
        };
        let finish = |lease: &WorkLease, outcome: Option<Outcome>| {
            Message::Finish(WorkFinish { job_id: lease.job_id.clone(), epoch: lease.epoch, write_number: 1, outcome })
        };
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(17_000));
        let large = format!("\"{}\"", "x".repeat(1_100_000));
        let cases: Vec<Breach> = vec![
            (Box::new(move |lease| event(lease, JobEventType::End, "{}", 0)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| event(lease, JobEventType::Progress, "[]", 0)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| event(lease, JobEventType::Progress, "{", 0)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| event(lease, JobEventType::Progress, &long, 0)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| event(lease, JobEventType::Notice, "{}", 65_537)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| numbered(lease, 0)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| numbered(lease, -1)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| {
                let (job_id, epoch) = (lease.job_id.clone(), lease.epoch);
                Message::Checkpoint(WorkCheckpoint { job_id, epoch, checkpoint: vec![1].into(), write_number: 0 })
            }), "WORKER_PROTOCOL"),
            (Box::new(move |lease| finish(lease, None)), "WORKER_PROTOCOL"),
            (Box::new(move |lease| finish(lease, Some(Outcome::Cancelled(false)))), "WORKER_PROTOCOL"),
            (Box::new(move |lease| finish(lease, Some(Outcome::ResultJson("{".into())))), "WORKER_PROTOCOL"),
            (Box::new(move |lease| finish(lease, Some(Outcome::ResultJson(large.clone())))), "RESULT_TOO_LARGE"),
        ];
        for (message, reason) in cases {
            let job = owner.submit_count(1).await;
            let lease = worker.lease().await;
            worker.send(message(&lease));
            ack(&mut worker).await;
            let failed = owner.get(&job).await.unwrap();
            assert_eq!((failed.state(), failed.failure_reason.as_str()), (JobState::Failed, reason));
        }
        service.stop().await;
    }

    async fn a_worker_gets_the_jobs_of_its_scope_only(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let (owner, other) = (service.owner(), service.owner());
        let (theirs, mine) = (other.submit_count(1).await, owner.submit_count(1).await);
        owner.submit("other", "1", "").await.unwrap();
        let scope = format!("count:{}", owner.tenant);
        let mut worker = service.raw_worker(COUNT, &[&scope], "").await.unwrap();
        worker.send(Message::Credit(WorkCredit { leases: 10 }));
        let Answer::Lease(lease) = worker.answer().await.unwrap() else { panic!() };
        assert_eq!((&lease.job_id, &lease.tenant_id), (&mine, &owner.tenant.to_string()));
        worker.progress(&lease, 1, 1);
        ack(&mut worker).await;
        assert_eq!(other.get(&theirs).await.unwrap().state(), JobState::Queued);
        // Not theirs by guessing either.
        let guess = WorkLease { job_id: theirs.clone(), epoch: 1, ..WorkLease::default() };
        worker.finish(&guess, 1, Outcome::ResultJson("1".into()));
        lost(&mut worker, &guess).await;

        let nobody = TenantId::new(&service.clock, &Entropy::system());
        for (kinds, scopes, reason) in [
            (&["other"][..], ANY, "PERMISSION_DENIED"),
            (&["count", "other"], ANY, "PERMISSION_DENIED"),
            (COUNT, &[][..], "PERMISSION_DENIED"),
            (COUNT, &["count"], "PERMISSION_DENIED"),
            (&["render"], &["render:*"], "KIND_NOT_FOUND"),
            (&[], ANY, "INVALID_FIELD"),
        ] {
            let refused = service.raw_worker(kinds, scopes, "").await.map(drop).unwrap_err();
            assert_eq!(refused.reason(), reason, "{kinds:?} {scopes:?}");
        }
        let scope = format!("count:{nobody}");
        service.raw_worker(COUNT, &[&scope], "").await.unwrap();
        service.stop().await;
    }

    async fn a_flood_of_one_tenant_does_not_starve_another(db: TestDb) {
        // Far more than a submission takes, on a busy machine too: else it is no flood.
        let config = Config { fair_share_ms: 60_000, lease_ttl_ms: 60_000, ..config() };
        let service = Service::start_with(&db, config, gatehouse_core::Clock::system(), "127.0.0.1:0").await;
        let (flood, single) = (service.owner(), service.owner());
        for _ in 0..40 {
            flood.submit_count(1).await;
        }
        let wanted = single.submit_count(1).await;
        let mut worker = service.raw_worker(COUNT, ANY, "").await.unwrap();
        let mut before = 0;
        loop {
            let lease = worker.lease().await;
            if lease.job_id == wanted {
                break;
            }
            before += 1;
        }
        assert!(before < 30, "{before} jobs of the flood came first");
        service.stop().await;
    }
}
