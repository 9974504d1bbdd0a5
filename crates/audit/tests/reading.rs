//! Reading, proofs, export, erasure, retention.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::HashSet;
use std::time::Duration;

use gatehouse_audit::MIGRATIONS;
use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::digest::Digest;
use gatehouse_audit::domain::merkle::leaf_hash;
use gatehouse_audit::domain::note::VerifierKey;
use gatehouse_audit::domain::proof::{proves_consistency, proves_inclusion};
use gatehouse_audit::domain::verify::Verdict;
use gatehouse_audit::verify_log::{ExitCode, Retention, Trust, verify_export};
use gatehouse_core::{Clock, Timestamp};
use gatehouse_proto::audit::v1::{
    AppendEventsRequest, EraseSubjectRequest, ExportLeavesRequest, GetCheckpointRequest,
    GetConsistencyProofRequest, GetEventRequest, GetInclusionProofRequest, ListEventsRequest,
    ListLogsRequest, NewEvent, Outcome,
};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use tonic::Code;
use world::{World, append};

fn digests(hashes: &[prost::bytes::Bytes]) -> Vec<Digest> {
    hashes.iter().map(|hash| Digest::from_slice(hash).unwrap()).collect()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_tenant_sees_its_own_events_and_no_others(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let (ours, theirs) = (world.tenant(), world.tenant());
        let person = world.person();
        let event = NewEvent {
            tenant_id: ours.to_string(),
            actor: person.to_string(),
            target: "session/0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e".into(),
            // As no id of ours is written: it is the client's own text, which the leaf holds none of.
            request_id: "0190B5C2-7F3E-7A52-9D2C-0B1D7CBB0002".into(),
            trace_id: "t1".into(),
            outcome: Outcome::Denied.into(),
            reason: "INVALID_PASSWORD".into(),
            delegate: "gateway".into(),
            ..world.event("auth.sessions.create")
        };
        let foreign = NewEvent { tenant_id: theirs.to_string(), ..world.event("auth.sessions.create") };
        append(&mut world.emitter(&replica, "auth"), vec![event.clone(), foreign.clone()]).await;

        let mut reader = world.reader(&replica, ours);
        let found = reader.list_events(ListEventsRequest::default()).await.unwrap().into_inner().events;
        assert_eq!(found.len(), 1);
        let found = &found[0];
        assert_eq!(found.event_id, event.event_id);
        assert_eq!((found.service.as_str(), found.actor.as_str()), ("auth", event.actor.as_str()));
        assert_eq!((found.target.as_str(), found.reason.as_str()), (event.target.as_str(), "INVALID_PASSWORD"));
        assert_eq!((found.delegate.as_str(), found.payload_json.as_str()), ("gateway", r#"{"ip":"192.0.2.1"}"#));
        assert_eq!(found.request_id, event.request_id);
        assert!(!found.erased && found.outcome == i32::from(Outcome::Denied));

        let get = |id: &str| GetEventRequest { event_id: id.to_owned() };
        let one = reader.get_event(get(&event.event_id)).await.unwrap().into_inner();
        assert_eq!(one.event.unwrap(), *found);
        let leaf = String::from_utf8(one.leaf.to_vec()).unwrap();
        assert!(!leaf.to_lowercase().contains(&event.request_id.to_lowercase()), "{leaf}");
        assert!(!leaf.contains(&person.to_string()) && !leaf.contains("192.0.2.1"), "{leaf}");
        for id in [foreign.event_id.as_str(), "x"] {
            assert_eq!(reader.get_event(get(id)).await.unwrap_err().code(), Code::NotFound);
            let proof = GetInclusionProofRequest { event_id: id.to_owned(), size: 0 };
            assert_eq!(reader.get_inclusion_proof(proof).await.unwrap_err().code(), Code::NotFound);
        }
        replica.stop().await;
    }

    async fn filters_and_pages(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let tenant = world.tenant();
        let (person, job) = (world.person().to_string(), world.event("job.jobs.submit").event_id);
        let events: Vec<NewEvent> = (0..25)
            .map(|number| NewEvent {
                tenant_id: tenant.to_string(),
                occurred_at: 1_000 + number / 2,
                actor: match number % 5 {
                    0 => "client:optimizer".into(),
                    1 => person.clone(),
                    _ => String::new(),
                },
                target: if number == 7 { format!("job/{job}") } else { String::new() },
                request_id: format!("0190b5c2-7f3e-7a52-9d2c-0000000000{number:02}"),
                ..world.event(if number % 2 == 0 { "job.jobs.submit" } else { "job.results.read" })
            })
            .collect();
        append(&mut world.emitter(&replica, "job"), events.clone()).await;
        let mut reader = world.reader(&replica, tenant);
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListEventsRequest { page_size: 7, page_token: token, ..ListEventsRequest::default() };
            let page = reader.list_events(request).await.unwrap().into_inner();
            seen.extend(page.events.iter().map(|event| event.event_id.clone()));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen.len(), 25);
        assert_eq!(seen.iter().collect::<HashSet<_>>(), events.iter().map(|event| &event.event_id).collect());

        for (filter, expected) in [
            (ListEventsRequest { action: "job.jobs.submit".into(), ..ListEventsRequest::default() }, 13),
            (ListEventsRequest { action: "job.".into(), ..ListEventsRequest::default() }, 25),
            (ListEventsRequest { action: "job.jobs.".into(), ..ListEventsRequest::default() }, 13),
            (ListEventsRequest { action: "job.jobs".into(), ..ListEventsRequest::default() }, 0),
            (ListEventsRequest { actor: "client:optimizer".into(), ..ListEventsRequest::default() }, 5),
            (ListEventsRequest { request_id: "0190b5c2-7f3e-7a52-9d2c-000000000003".into(), ..ListEventsRequest::default() }, 1),
            (ListEventsRequest { occurred_from: 1_002, occurred_to: 1_004, ..ListEventsRequest::default() }, 4),
            (ListEventsRequest { target: "job/x".into(), ..ListEventsRequest::default() }, 0),
            (ListEventsRequest { actor: person.clone(), ..ListEventsRequest::default() }, 5),
            (ListEventsRequest { actor: person.to_uppercase(), ..ListEventsRequest::default() }, 5),
            (ListEventsRequest { actor: format!(":{person}"), ..ListEventsRequest::default() }, 0),
            (ListEventsRequest { target: format!("job/{job}"), ..ListEventsRequest::default() }, 1),
            (
                ListEventsRequest { target: format!("job/{}", job.to_uppercase()), ..ListEventsRequest::default() },
                1,
            ),
        ] {
            let found = reader.list_events(filter.clone()).await.unwrap().into_inner().events.len();
            assert_eq!(found, expected, "{filter:?}");
        }
        for wrong in [
            ListEventsRequest { page_size: 201, ..ListEventsRequest::default() },
            ListEventsRequest { page_size: -1, ..ListEventsRequest::default() },
            ListEventsRequest { page_token: "x".into(), ..ListEventsRequest::default() },
            ListEventsRequest { action: "a\0".into(), ..ListEventsRequest::default() },
        ] {
            assert_eq!(reader.list_events(wrong).await.unwrap_err().code(), Code::InvalidArgument);
        }
        for (field, wrong) in [
            ("action", ListEventsRequest { action: "a".repeat(201), ..ListEventsRequest::default() }),
            ("actor", ListEventsRequest { actor: "é".repeat(101), ..ListEventsRequest::default() }),
            ("target", ListEventsRequest { target: "a\0".into(), ..ListEventsRequest::default() }),
            ("request_id", ListEventsRequest { request_id: "a".repeat(201), ..ListEventsRequest::default() }),
            ("occurred_from", ListEventsRequest { occurred_from: -1, ..ListEventsRequest::default() }),
            ("occurred_to", ListEventsRequest { occurred_to: -1, ..ListEventsRequest::default() }),
        ] {
            let refused = gatehouse_client::from_status(reader.list_events(wrong).await.unwrap_err());
            assert_eq!((refused.reason(), refused.violations()[0].field.as_str()), ("INVALID_FIELD", field));
        }
        replica.stop().await;
    }

    async fn only_who_may(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let person = world.person();
        let tenant = Some(world.tenant());
        let request = || AppendEventsRequest { events: vec![world.event("test.things.do")] };
        // A person can't write the log, whatever permission they hold; nor can a client without it.
        let mut forger = world.client(&replica, &person.to_string(), tenant, &["audit.events.append"]);
        assert_eq!(forger.append_events(request()).await.unwrap_err().code(), Code::PermissionDenied);
        let mut client = world.client(&replica, "client:job", None, &["audit.events.read"]);
        assert_eq!(client.append_events(request()).await.unwrap_err().code(), Code::PermissionDenied);
        // To erase takes the platform's permission, which no tenant's role and no key has.
        let key = format!("api_key:{person}");
        for (subject, permissions) in [(person.to_string(), "audit.events.read"), (key, "audit.subjects.erase")] {
            let mut caller = world.client(&replica, &subject, tenant, &[permissions]);
            let erase = EraseSubjectRequest { subject_id: person.to_string() };
            assert_eq!(caller.erase_subject(erase).await.unwrap_err().code(), Code::PermissionDenied);
        }
        let mut homeless = world.client(&replica, &person.to_string(), None, &["audit.events.read"]);
        let list = ListEventsRequest::default();
        assert_eq!(homeless.list_events(list).await.unwrap_err().code(), Code::PermissionDenied);
        // Nothing of all that was taken; a wrong event is refused with its field, and too many or none are.
        let mut emitter = world.emitter(&replica, "job");
        for events in [vec![], vec![world.event("test.things.do"); 501], vec![world.event("No!")]] {
            let refused = emitter.append_events(AppendEventsRequest { events }).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
        assert_eq!(world.verify(&Trust::default()).await.size, 0);
        replica.stop().await;
    }

    async fn an_erased_person_is_gone_and_the_chain_still_verifies(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let (tenant, ada, bob) = (world.tenant(), world.person(), world.person());
        let of = |person: &str, action: &str| NewEvent {
            tenant_id: tenant.to_string(),
            actor: person.to_owned(),
            ..world.event(action)
        };
        let about_ada = NewEvent {
            subject_id: ada.to_string(),
            target: format!("person/{ada}"),
            actor_json: r#"{"ip":"198.51.100.7"}"#.into(),
            ..of(&bob.to_string(), "auth.members.remove")
        };
        let (by_ada, by_bob) = (of(&ada.to_string(), "job.jobs.submit"), of(&bob.to_string(), "job.jobs.submit"));
        let mut emitter = world.emitter(&replica, "auth");
        append(&mut emitter, vec![by_ada.clone(), by_bob.clone(), about_ada.clone()]).await;
        let trust = world.keep_checkpoint(&replica).await;

        let erase = EraseSubjectRequest { subject_id: ada.to_string() };
        world.operator(&replica).erase_subject(erase.clone()).await.unwrap();
        world.operator(&replica).erase_subject(erase).await.unwrap();

        let mut reader = world.reader(&replica, tenant);
        let mut read = async |id: &str| {
            let request = GetEventRequest { event_id: id.to_owned() };
            reader.get_event(request).await.unwrap().into_inner().event.unwrap()
        };
        let gone = read(&by_ada.event_id).await;
        assert!(gone.erased && gone.payload_json.is_empty() && !gone.actor.contains(&ada.to_string()), "{gone:?}");
        let there = read(&by_bob.event_id).await;
        assert!(!there.erased && there.actor == bob.to_string() && !there.payload_json.is_empty());
        let half = read(&about_ada.event_id).await;
        assert!(half.erased && half.payload_json.is_empty() && !half.target.contains(&ada.to_string()), "{half:?}");
        assert_eq!(half.actor_json, r#"{"ip":"198.51.100.7"}"#);

        // What arrives late does not bring her back.
        let late = of(&ada.to_string(), "job.jobs.cancel");
        append(&mut emitter, vec![late.clone()]).await;
        let late = read(&late.event_id).await;
        assert!(late.erased && late.payload_json.is_empty() && !late.actor.contains(&ada.to_string()), "{late:?}");

        let report = world.verify(&trust).await;
        assert_eq!(report.verdict, Verdict::Verified { proven: 3 });
        // Both erasures are in the log themselves.
        let platform = world.operator(&replica).list_events(ListEventsRequest::default()).await.unwrap();
        let actions: Vec<String> = platform.into_inner().events.into_iter().map(|event| event.action).collect();
        assert_eq!(actions, ["audit.subjects.erase"; 2]);
        replica.stop().await;
    }

    async fn a_platform_administrator_erases_in_their_own_name(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let (admin, ada) = (world.person(), world.person());
        let event = NewEvent { actor: ada.to_string(), ..world.event("auth.sessions.create") };
        append(&mut world.emitter(&replica, "auth"), vec![event.clone()]).await;
        let mut as_admin = world.client(&replica, &admin.to_string(), None, &["audit.subjects.erase"]);
        as_admin.erase_subject(EraseSubjectRequest { subject_id: ada.to_string() }).await.unwrap();
        let listed = world.operator(&replica).list_events(ListEventsRequest::default()).await.unwrap().into_inner().events;
        let of_ada = listed.iter().find(|listed| listed.event_id == event.event_id).unwrap();
        assert!(of_ada.erased && !of_ada.actor.contains(&ada.to_string()), "{of_ada:?}");
        let told = listed.iter().find(|listed| listed.action == "audit.subjects.erase").unwrap();
        assert_eq!(told.actor, admin.to_string());
        replica.stop().await;
    }

    /// Its events are there, and nobody can tell why they should not be read.
    async fn a_log_that_is_configured_no_more_is_still_read(db: TestDb) {
        let mut world = World::new(db);
        world.config.logs = vec![gatehouse_audit::LogConfig { name: "long".into(), days: 365 }];
        let replica = world.replica().await;
        let tenant = world.tenant();
        let event = NewEvent {
            tenant_id: tenant.to_string(),
            retention_class: "long".into(),
            ..world.event("test.things.do")
        };
        let placed = append(&mut world.emitter(&replica, "job"), vec![event.clone()]).await;
        assert_eq!(placed[0].log, "long");
        replica.stop().await;
        world.config.logs.clear();
        let replica = world.replica().await;
        let mut reader = world.reader(&replica, tenant);
        let listed = reader.list_events(ListEventsRequest::default()).await.unwrap().into_inner().events;
        assert_eq!((listed.len(), listed[0].payload_json.as_str()), (1, event.payload_json.as_str()));
        let get = GetEventRequest { event_id: event.event_id.clone() };
        assert_eq!(reader.get_event(get).await.unwrap().into_inner().event.unwrap(), listed[0]);
        let proof = GetInclusionProofRequest { event_id: event.event_id, size: 0 };
        assert_eq!(gatehouse_client::from_status(reader.get_inclusion_proof(proof).await.unwrap_err()).reason(), "LOG_NOT_FOUND");
        replica.stop().await;
    }

    async fn proofs_and_checkpoints_hold(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let mut emitter = world.emitter(&replica, "job");
        let mut operator = world.operator(&replica);
        let first: Vec<NewEvent> = (0..300).map(|_| world.event("test.things.do")).collect();
        append(&mut emitter, first.clone()).await;
        let fresh = || GetCheckpointRequest { log: "default".into(), fresh: true };
        let old = operator.get_checkpoint(fresh()).await.unwrap().into_inner();
        append(&mut emitter, (0..100).map(|_| world.event("test.things.do")).collect()).await;
        let new = operator.get_checkpoint(fresh()).await.unwrap().into_inner();
        let again = operator.get_checkpoint(GetCheckpointRequest::default()).await.unwrap().into_inner();
        assert_eq!(new, again);
        let key: VerifierKey = new.verifier_key.parse().unwrap();
        assert_eq!(key.name(), "gatehouse.test/dev/audit/default");
        let (old, new) =
            (Checkpoint::open(&old.checkpoint, &key).unwrap(), Checkpoint::open(&new.checkpoint, &key).unwrap());
        assert_eq!((old.size, new.size), (300, 400));

        let request = GetConsistencyProofRequest { log: "default".into(), from_size: 300, to_size: 400 };
        let proof = operator.get_consistency_proof(request).await.unwrap().into_inner();
        assert!(proves_consistency(300, old.root, 400, new.root, &digests(&proof.hashes)));
        for (place, size, root) in [(0, 300, old.root), (255, 0, new.root), (299, 0, new.root)] {
            let request = GetInclusionProofRequest { event_id: first[place].event_id.clone(), size };
            let proof = operator.get_inclusion_proof(request).await.unwrap().into_inner();
            let index = u64::try_from(proof.index).unwrap();
            assert_eq!(index, place as u64);
            let size = u64::try_from(proof.size).unwrap();
            assert!(proves_inclusion(leaf_hash(&proof.leaf), index, size, root, &digests(&proof.hashes)));
            assert_eq!(Checkpoint::open(&proof.checkpoint, &key).unwrap().root, root);
        }
        for wrong in [(-1, 1), (2, 1), (0, 401)] {
            let request =
                GetConsistencyProofRequest { log: "default".into(), from_size: wrong.0, to_size: wrong.1 };
            assert_eq!(operator.get_consistency_proof(request).await.unwrap_err().code(), Code::InvalidArgument);
        }
        let unknown = GetCheckpointRequest { log: "other".into(), fresh: false };
        assert_eq!(operator.get_checkpoint(unknown).await.unwrap_err().code(), Code::NotFound);
        replica.stop().await;
    }

    async fn an_export_verifies_elsewhere(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let events: Vec<NewEvent> = (0..500).map(|_| world.event("test.things.do")).collect();
        let mut emitter = world.emitter(&replica, "job");
        append(&mut emitter, events.clone()).await;
        append(&mut emitter, (0..100).map(|_| world.event("test.things.do")).collect()).await;
        let trust = world.keep_checkpoint(&replica).await;
        let mut operator = world.operator(&replica);
        let report = verify_export(&mut operator, "default", &trust).await.unwrap();
        let here = world.verify(&trust).await;
        assert_eq!((report.size, report.root, &report.verdict), (here.size, here.root, &here.verdict));
        assert_eq!(report.verdict, Verdict::Verified { proven: 600 });
        let other = Trust { checkpoints: vec!["nonsense".into()], ..Trust::default() };
        assert_eq!(
            verify_export(&mut operator, "default", &other).await.unwrap_err().reason(),
            "CHECKPOINT_INVALID"
        );
        let mut stream =
            operator.export_leaves(ExportLeavesRequest { log: "default".into(), from_index: 590 }).await.unwrap().into_inner();
        let mut leaves = 0;
        while let Some(message) = stream.message().await.unwrap() {
            leaves += message.leaves.len();
        }
        assert_eq!(leaves, 10);
        replica.stop().await;
    }

    async fn what_is_past_its_time_goes_and_the_rest_verifies(db: TestDb) {
        let mut world = World::new(db);
        world.clock = Clock::settable(Timestamp::from_seconds(1_790_000_000));
        world.config.prune_interval_ms = 20;
        // Not even the first 270 go at once: in three parts, each of which is said.
        world.config.max_prune = 100;
        let replica = world.replica().await;
        let mut emitter = world.emitter(&replica, "job");
        let tenant = world.tenant();
        let batch = |count: usize| {
            let event = || NewEvent { tenant_id: tenant.to_string(), ..world.event("test.things.do") };
            (0..count).map(|_| event()).collect::<Vec<_>>()
        };
        append(&mut emitter, batch(270)).await;
        let early = world.keep_checkpoint(&replica).await;
        world.clock.advance(Duration::from_secs(20 * 86_400));
        append(&mut emitter, batch(30)).await;
        let late = world.keep_checkpoint(&replica).await;
        let mut operator = world.operator(&replica);
        let logs = operator.list_logs(ListLogsRequest {}).await.unwrap().into_inner().logs;
        assert_eq!((logs[0].first_index, logs[0].size, logs[0].retention_days), (0, 300, 30));

        world.clock.advance(Duration::from_secs(11 * 86_400));
        let pruned = async || {
            let logs = world.operator(&replica).list_logs(ListLogsRequest {}).await.unwrap().into_inner().logs;
            (logs[0].first_index, logs[0].size)
        };
        eventually(Duration::from_secs(20), || async { pruned().await == (270, 303) }).await;
        let list = ListEventsRequest { page_size: 200, ..ListEventsRequest::default() };
        let left = world.reader(&replica, tenant).list_events(list).await.unwrap().into_inner().events;
        assert_eq!(left.len(), 30);
        for (trust, proven) in [(&early, 270), (&late, 300)] {
            let report = world.verify(trust).await;
            assert_eq!((report.first, report.size, &report.verdict), (270, 303, &Verdict::Verified { proven }));
            let exported = verify_export(&mut operator, "default", trust).await.unwrap();
            assert_eq!(exported.verdict, report.verdict);
            // Without the key nobody can tell a pruned front from one that was removed.
            let keyless = Trust { keys: Vec::new(), ..trust.clone() };
            let report = world.verify(&keyless).await;
            assert_eq!(report.verdict, Verdict::PrefixNotProven { proven: Some(proven) });
            assert_eq!(ExitCode::from(&report), ExitCode::NotProven);
            let exported = verify_export(&mut operator, "default", &keyless).await.unwrap();
            assert_eq!(exported.verdict, report.verdict);
        }
        // The statement says until when: what is younger than the retention was removed too soon.
        for (days, verdict) in
            [(31, Verdict::Verified { proven: 300 }), (32, Verdict::PrefixNotProven { proven: Some(300) })]
        {
            let retention = Some(Retention { days, now: world.clock.now() });
            let trust = Trust { retention, ..late.clone() };
            let report = world.verify(&trust).await;
            assert_eq!(report.verdict, verdict, "{report:?}");
            assert!(report.notes[0].starts_with("what was pruned had been recorded until 20"), "{report:?}");
            assert_eq!(verify_export(&mut operator, "default", &trust).await.unwrap().verdict, verdict);
        }
        // And the rest: a log may be empty in the end, but never begins anew.
        world.clock.advance(Duration::from_secs(40 * 86_400));
        eventually(Duration::from_secs(20), || async { pruned().await.0 >= 303 }).await;
        let report = world.verify(&late).await;
        assert!(report.first >= 303 && report.size >= report.first, "{report:?}");
        assert_eq!(report.verdict, Verdict::Verified { proven: report.first });
        replica.stop().await;
    }
}
