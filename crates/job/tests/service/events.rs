//! Following a job: every event once, in order, whoever writes and however slowly one reads.

use std::time::Duration;

use gatehouse_core::{Clock, Error, ErrorCode};
use gatehouse_job::{Config, MIGRATIONS};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_proto::job::v1::work_finish::Outcome;
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::*;
use gatehouse_testkit::{TestDb, both_engines};
use serde_json::json;

use crate::common::{Service, Watching, assert_contiguous, config, steps};

/// Reads what is left of a stream; the error that it ends with.
async fn cut_off(mut watching: Watching) -> Error {
    let mut last = None;
    loop {
        match watching.next().await {
            Ok(Some(event)) => last = Some(event.sequence),
            Ok(None) => panic!("the stream ended well after {last:?}"),
            Err(error) => return error,
        }
    }
}

both_engines! {
    migrations: MIGRATIONS;

    /// Readers attach at every cursor, on the writer's replica and on another, while events are written.
    async fn readers_at_every_cursor_miss_nothing_and_see_nothing_twice(db: TestDb) {
        let here = Service::start_patient(&db).await;
        let there = Service::start_patient(&db.another_replica().await).await;
        let owner = here.owner();
        let afar = there.member(owner.tenant);
        let job = owner.submit_count(60).await;
        let worker = here.counter(Duration::from_millis(3));
        let mut readers = Vec::new();
        let mut live = owner.watch(&job, 0).await.unwrap();
        // 1 queued, 2 started, 60 steps, the end.
        for cursor in 0..=63 {
            while owner.get(&job).await.unwrap().last_sequence < cursor {
                live.next().await.unwrap();
            }
            for caller in [owner.clone(), afar.clone()] {
                let job = job.clone();
                readers.push((cursor, tokio::spawn(async move { caller.events(&job, cursor).await })));
            }
        }
        for (cursor, reader) in readers {
            let events = reader.await.unwrap();
            assert_contiguous(&events, cursor);
            assert_eq!(i64::try_from(events.len()).unwrap(), 63 - cursor);
        }
        assert_eq!(steps(&owner.events(&job, 0).await, "step"), (1..=60).collect::<Vec<_>>());
        worker.drain().await;
        there.stop().await;
        here.stop().await;
    }

    /// L8: cut off with a reason, and resumed without a gap.
    async fn a_slow_reader_is_cut_off_and_can_resume(db: TestDb) {
        let config = Config {
            sse_queue_maxsize: 4,
            sse_backpressure_fail_timeout_s: 1,
            lease_ttl_ms: 60_000,
            ..config()
        };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        let owner = service.owner();
        let job = owner.submit_count(0).await;
        let mut slow = owner.watch(&job, 0).await.unwrap();
        let mut worker = service.raw_worker(&["count"], &["count:*"], "").await.unwrap();
        let lease = worker.lease().await;
        // More than the windows of the connection hold.
        let filler = "x".repeat(16_000);
        for number in 1..=400 {
            worker.send(Message::Event(WorkEvent {
                job_id: job.clone(),
                epoch: lease.epoch,
                r#type: JobEventType::Progress.into(),
                data_json: json!({"step": number, "filler": filler}).to_string(),
                write_number: number,
                ..WorkEvent::default()
            }));
            assert!(matches!(worker.answer().await.unwrap(), Answer::Ack(_)));
        }
        worker.finish(&lease, 401, Outcome::ResultJson("1".into()));
        assert!(matches!(worker.answer().await.unwrap(), Answer::Ack(_)));
        // A reader that keeps up is not touched by the slow one.
        let all = owner.events(&job, 0).await;
        assert_eq!(all.len(), 403);
        // Nothing shows to a reader that does not read: this is the time after which it counts as behind.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let mut seen = Vec::new();
        let reason = loop {
            match slow.next().await {
                Ok(Some(event)) => seen.push(event),
                Ok(None) => panic!("the stream ended as if all was told, after {} events", seen.len()),
                Err(error) => break error,
            }
        };
        assert_eq!((reason.code(), reason.reason()), (ErrorCode::ResourceExhausted, "SLOW_CONSUMER"));
        assert!(!seen.is_empty() && seen.len() < 403);
        let cursor = seen.last().unwrap().sequence;
        seen.extend(owner.events(&job, cursor).await);
        assert_contiguous(&seen, 0);
        assert_eq!(seen, all);
        service.stop().await;
    }

    /// All of a log is queued for a reader who does not read. Whatever ends its stream before it has read the end
    /// says so: a stream that ends well has told of the end.
    async fn a_stream_ends_well_only_after_the_end(db: TestDb) {
        // Longer than a busy machine stands still: only the first reader is to count as slow.
        let config = Config { sse_backpressure_fail_timeout_s: 10, lease_ttl_ms: 60_000, ..config() };
        let service = Service::start_with(&db, config, Clock::system(), "127.0.0.1:0").await;
        let mut readers = Vec::new();
        for _ in 0..3 {
            let owner = service.owner();
            let job = owner.submit_count(0).await;
            let mut worker = service.raw_worker(&["count"], &["count:*"], "").await.unwrap();
            let lease = worker.lease().await;
            // More than the windows of the connection hold, and less than the queue.
            for number in 1..=600 {
                worker.send(Message::Event(WorkEvent {
                    job_id: job.clone(),
                    epoch: lease.epoch,
                    r#type: JobEventType::Progress.into(),
                    data_json: json!({"step": number, "filler": "x".repeat(16_000)}).to_string(),
                    write_number: number,
                    ..WorkEvent::default()
                }));
                assert!(matches!(worker.answer().await.unwrap(), Answer::Ack(_)));
            }
            worker.finish(&lease, 601, Outcome::ResultJson("1".into()));
            assert!(matches!(worker.answer().await.unwrap(), Answer::Ack(_)));
            readers.push((owner, job));
        }
        let [(slow, slow_job), (revoked, revoked_job), (stopped, stopped_job)] = readers.try_into().map_err(drop).unwrap();

        let watching = slow.watch(&slow_job, 0).await.unwrap();
        // Nothing shows to a reader that does not read: this is the time after which it counts as behind.
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        assert_eq!(cut_off(watching).await.reason(), "SLOW_CONSUMER");

        let mut watching = revoked.watch(&revoked_job, 0).await.unwrap();
        let first = watching.next().await.unwrap().unwrap().sequence;
        let now = service.clock.now();
        let tenant = Revocation {
            kind: RevocationKind::Tenant.into(),
            id: revoked.tenant.to_string(),
            not_before: now.as_micros() + 1_000_000,
            expires_at: now.as_micros() + 60_000_000,
            ..Revocation::default()
        };
        service.revocations.apply(&[tenant], 1, true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((first, cut_off(watching).await.reason()), (1, "TOKEN_REVOKED"));

        let mut watching = stopped.watch(&stopped_job, 0).await.unwrap();
        watching.next().await.unwrap();
        let stopping = tokio::spawn(service.stop());
        // As long as a stopping replica waits for a reader, and more.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let error = cut_off(watching).await;
        // A connection that was reset took the last words with it; anything else must say them.
        let said = format!("{error:?}");
        assert!(error.reason() == "SERVICE_STOPPING" || said.contains("ConnectionReset"), "{said}");
        stopping.await.unwrap();
    }

    /// Who has only the rest to read reads it, although the replica goes.
    async fn a_replica_that_stops_lets_readers_have_the_end(db: TestDb) {
        let service = Service::start_patient(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(0).await;
        let mut worker = service.raw_worker(&["count"], &["count:*"], "").await.unwrap();
        let lease = worker.lease().await;
        for number in 1..=300 {
            worker.progress(&lease, number, 1);
        }
        worker.finish(&lease, 301, Outcome::ResultJson("1".into()));
        while owner.get(&job).await.unwrap().state() != JobState::Succeeded {
            worker.answer().await.unwrap();
        }
        let mut watching = owner.watch(&job, 0).await.unwrap();
        watching.next().await.unwrap();
        let stopping = tokio::spawn(service.stop());
        watching.until(JobEventType::End).await;
        assert!(watching.next().await.unwrap().is_none());
        stopping.await.unwrap();
    }

    async fn a_reader_of_a_running_job_sees_the_end_of_its_life(db: TestDb) {
        let service = Service::start(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut first = owner.watch(&job, 0).await.unwrap();
        assert_eq!(first.next().await.unwrap().unwrap().r#type(), JobEventType::Queued);
        owner.cancel(&job).await.unwrap();
        assert_eq!(first.next().await.unwrap().unwrap().data_json, "{\"state\":\"cancelled\"}");
        assert!(first.next().await.unwrap().is_none());
        assert_eq!(owner.watch(&job, -1).await.map(drop).unwrap_err().code(), ErrorCode::InvalidArgument);
        // A cursor beyond the end of a finished job has nothing to wait for.
        assert!(owner.events(&job, 1_000).await.is_empty());
        service.stop().await;
    }

    async fn a_stream_ends_when_its_caller_is_revoked_and_when_the_service_stops(db: TestDb) {
        let service = Service::start(&db).await;
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut watching = owner.watch(&job, 1).await.unwrap();
        let now = service.clock.now();
        let tenant = Revocation {
            kind: RevocationKind::Tenant.into(),
            id: owner.tenant.to_string(),
            not_before: now.as_micros() + 1_000_000,
            expires_at: now.as_micros() + 60_000_000,
            ..Revocation::default()
        };
        service.revocations.apply(&[tenant], 1, true);
        assert_eq!(watching.next().await.unwrap_err().reason(), "TOKEN_REVOKED");
        let owner = service.owner();
        let job = owner.submit_count(1).await;
        let mut watching = owner.watch(&job, 1).await.unwrap();
        service.stop().await;
        assert_eq!(watching.next().await.unwrap_err().code(), ErrorCode::Unavailable);
    }
}
