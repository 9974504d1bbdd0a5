//! Rotation against a provider that misbehaves, beside other replicas and with callers who do not wait: one holder at a
//! time shows the token, and who was overtaken moves nothing.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gatehouse_client::from_status;
use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_testkit::oauth_provider::{Fault, Rotation};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use gatehouse_token_broker::{Step, Steps};
use support::stops::{
    EVERY_ROTATION, after_restart, arrived, assert_tidy, connected, death_at, dying_at, forgets_at_once,
    pausing_at,
};
use support::{LIFE, Person, UPSTREAM, World, get, reason};

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// Sixty callers on three replicas: one refresh, one token.
    async fn concurrent_callers_on_many_replicas_cause_one_refresh(db: TestDb) {
        let mut world = World::new(db, Rotation::StrictFamily).await;
        world.config.wait_ms = 20_000;
        let world = Arc::new(world);
        let (person, connection) = connected(&world).await;
        let mut replicas = Vec::new();
        for _ in 0..3 {
            replicas.push(Arc::new(world.start_with(Steps::default(), false).await));
        }
        for round in 1..=5 {
            let callers: Vec<_> = (0..60)
                .map(|number| {
                    let mut client = replicas[number % 3].client(&world.person_token(&person));
                    tokio::spawn(async move { get(&mut client).await.unwrap().access_token })
                })
                .collect();
            let mut tokens = Vec::new();
            for caller in callers {
                tokens.push(caller.await.unwrap());
            }
            tokens.dedup();
            assert_eq!(tokens.len(), 1, "callers got different tokens");
            assert_eq!(world.provider.counters().refresh_attempts, round);
            assert_tidy(&world, &person, &connection).await;
            world.expire_access_tokens();
        }
        for replica in replicas {
            replica.stop().await;
        }
    }

    /// A caller who looked before another's rotation ended, and comes to the lease after: it takes what is there.
    async fn a_rotation_that_just_ended_is_not_repeated(db: TestDb) {
        let world = World::new(db, Rotation::StrictFamily).await;
        let (person, connection) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::TokenWanted);
        let late = world.start_with(steps, false).await;
        let mut waiting = late.client(&world.person_token(&person));
        let call = tokio::spawn(async move { get(&mut waiting).await.unwrap().access_token });
        arrived(arrival).await;
        let other = world.start_with(Steps::default(), false).await;
        let token = get(&mut other.client(&world.person_token(&person))).await.unwrap().access_token;
        go.send(()).unwrap();
        assert_eq!(call.await.unwrap(), token);
        assert_eq!(world.provider.counters().refresh_attempts, 1, "the rotation was repeated");
        assert_tidy(&world, &person, &connection).await;
        late.stop().await;
        other.stop().await;
    }

    /// Whoever waits too long, for a slow upstream or for a dead replica, is told to come again; the renewal goes on.
    async fn a_caller_waits_no_longer_than_configured(db: TestDb) {
        let mut world = World::new(db, Rotation::StrictFamily).await;
        world.config.wait_ms = 400;
        let (person, connection) = connected(&world).await;
        let slow = world.start_with(Steps::default(), false).await;
        let mut client = slow.client(&world.person_token(&person));
        world.provider.inject(Fault::Delay(Duration::from_secs(3)));
        let began = Instant::now();
        assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        eventually(Duration::from_secs(20), || {
            let mut client = client.clone();
            async move { get(&mut client).await.is_ok() }
        })
        .await;
        assert_eq!(world.provider.counters().refresh_attempts, 1, "the renewal was begun again");
        assert_tidy(&world, &person, &connection).await;
        slow.stop().await;

        world.expire_access_tokens();
        let dead = world.start_with(dying_at(Step::IntentCommitted), false).await;
        assert_eq!(reason(get(&mut dead.client(&world.person_token(&person))).await), "INTERRUPTED");
        dead.stop().await;
        let other = world.start_with(Steps::default(), false).await;
        let began = Instant::now();
        assert_eq!(reason(get(&mut other.client(&world.person_token(&person))).await), "UPSTREAM_UNAVAILABLE");
        assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
        other.stop().await;
    }

    /// Between a caller's renewal and its token, another renewal finds the connection to be over: the caller is told what
    /// to do, and not that there is no connection.
    async fn a_connection_that_ends_while_its_token_is_handed_out_says_why(db: TestDb) {
        let mut world = World::new(db, Rotation::StrictFamily).await;
        world.config.wait_ms = 20_000;
        let (person, _) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::OldDeleted);
        let late = world.start_with(steps, false).await;
        let mut waiting = late.client(&world.person_token(&person));
        let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
        arrived(arrival).await;
        let other = world.start_with(Steps::default(), false).await;
        world.clock.advance(LIFE / 2);
        world.provider.inject(Fault::InvalidGrant);
        let request =
            pb::GetAccessTokenRequest { upstream: UPSTREAM.into(), min_remaining_seconds: 600, ..Default::default() };
        let ended = other.client(&world.person_token(&person)).get_access_token(request).await;
        assert_eq!(reason(ended.map_err(from_status)), "NEEDS_REAUTHORIZATION");
        go.send(()).unwrap();
        assert_eq!(call.await.unwrap(), "NEEDS_REAUTHORIZATION");
        late.stop().await;
        other.stop().await;
    }

    /// A sweep that comes to what somebody else has ended since it looked: rotating that again would help nobody, and
    /// with a strict provider each rotation is a risk.
    async fn what_somebody_else_ended_is_not_recovered_again(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let consents = world.start().await;
        let mut people = Vec::new();
        // One more than a sweep sees to at once, so that it comes to the last of them later.
        for _ in 0..9 {
            let person = Person::new();
            world.connect(&consents, &person).await.unwrap();
            people.push(person);
        }
        consents.stop().await;
        world.expire_access_tokens();
        let dying = world.start_with(Steps::watched(|reached| reached != Step::EscrowCommitted), true).await;
        for person in &people {
            assert_eq!(reason(get(&mut dying.client(&world.person_token(person))).await), "INTERRUPTED");
        }
        dying.stop().await;
        let (steps, arrival, go) = pausing_at(Step::LeaseTaken);
        let sweeping = world.start_with(steps, true).await;
        arrived(arrival).await;
        // Its sweep stands still at one connection; all others are seen to.
        let other = world.start_with(Steps::default(), false).await;
        eventually(Duration::from_secs(60), || async {
            let mut refused = 0;
            for person in &people {
                refused += usize::from(get(&mut other.client(&world.person_token(person))).await.is_err());
            }
            refused == 1
        })
        .await;
        other.stop().await;
        go.send(()).unwrap();
        sweeping.stop().await;
        assert_eq!(world.provider.counters().refresh_attempts, 9, "what was ended was rotated again");
    }

    /// Answers that break, vanish or say nothing.
    async fn a_lost_answer_is_asked_for_again_where_the_provider_allows(db: TestDb) {
        let world = World::new(db, Rotation::Grace(600_000)).await;
        let harmless = [Fault::ServerError, Fault::TooManyRequests];
        let losing = [Fault::DropAnswer, Fault::ServerErrorAfter, Fault::Garbage, Fault::Oversized(100_000)];
        for rotation in EVERY_ROTATION {
            world.provider.set_rotation(rotation);
            for fault in harmless.iter().chain(&losing) {
                let (person, connection) = connected(&world).await;
                let replica = world.start().await;
                let mut client = replica.client(&world.person_token(&person));
                let before = world.provider.counters().refresh_attempts;
                world.provider.inject(fault.clone());
                assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE", "{rotation:?} {fault:?}");
                assert_eq!(world.provider.counters().refresh_attempts, before + 1, "a refresh was repeated blindly");
                // Nobody hammers a provider that is unwell.
                assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
                assert_eq!(world.provider.counters().refresh_attempts, before + 1);
                world.clock.advance(Duration::from_secs(2));
                let outcome = reason(get(&mut client).await);
                if forgets_at_once(rotation) && losing.contains(fault) {
                    assert_eq!(outcome, "NEEDS_REAUTHORIZATION", "{rotation:?} {fault:?}");
                } else {
                    assert_eq!(outcome, "", "{rotation:?} {fault:?}");
                    assert_tidy(&world, &person, &connection).await;
                }
                replica.stop().await;
            }
        }
        let failed = world.actions().await.iter().filter(|action| action.starts_with("token-broker.tokens.rotate ")).count();
        assert_eq!(failed, 36, "a failed rotation was not audited");
    }

    /// A holder that stood still while another took over: it finds itself fenced, and what it got is not lost.
    async fn an_overtaken_holder_leaves_a_candidate_and_moves_nothing(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for step in [Step::Answered, Step::EscrowCommitted, Step::PendingPut] {
            let (person, connection) = connected(&world).await;
            let (steps, arrival, go) = pausing_at(step);
            let slow = world.start_with(steps, false).await;
            let mut waiting = slow.client(&world.person_token(&person));
            let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
            arrived(arrival).await;

            // Its lease runs out; another replica takes over.
            world.clock.advance(Duration::from_secs(11));
            let other = world.start_with(Steps::default(), false).await;
            let mut client = other.client(&world.person_token(&person));
            let outcome = reason(get(&mut client).await);
            if step == Step::Answered {
                // The one live token is in the slow holder's memory.
                assert_eq!(outcome, "NEEDS_REAUTHORIZATION");
            } else {
                assert_eq!(outcome, "", "{step:?}: the escrow was not used");
            }
            go.send(()).unwrap();
            let _ = call.await.unwrap();
            slow.stop().await;
            // Whatever it left is found.
            other.broker.sweep().await.unwrap();
            assert_eq!(reason(get(&mut client).await), "", "{step:?}");
            world.expire_access_tokens();
            assert_eq!(reason(get(&mut client).await), "", "{step:?}: the next rotation");
            assert_tidy(&world, &person, &connection).await;
            other.stop().await;
        }
    }

    /// A holder that stood still between its intent and the request, while another took over and used the token up: it
    /// shows nothing. Once by the wall clock alone, as after a system's suspend, in which no monotonic clock goes on.
    async fn a_holder_paused_before_it_shows_its_token_shows_nothing(db: TestDb) {
        let mut world = World::new(db, Rotation::StrictFamily).await;
        world.config.wait_ms = 20_000;
        let (person, connection) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::IntentCommitted);
        let slow = world.start_with(steps, false).await;
        let mut waiting = slow.client(&world.person_token(&person));
        let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
        arrived(arrival).await;
        // Its lease runs out; another rotates twice. The first token is two generations old when it goes on.
        let other = world.start_with(Steps::default(), false).await;
        let mut client = other.client(&world.person_token(&person));
        for _ in 0..2 {
            world.expire_access_tokens();
            assert_eq!(reason(get(&mut client).await), "");
        }
        go.send(()).unwrap();
        // It looks again, and finds what the other left.
        assert_eq!(call.await.unwrap(), "");
        slow.stop().await;
        let counters = world.provider.counters();
        assert_eq!((counters.refresh_attempts, counters.reuse_refused), (2, 0), "a token was shown after its successor");
        assert_tidy(&world, &person, &connection).await;
        world.expire_access_tokens();
        assert_eq!(reason(get(&mut client).await), "");
        other.stop().await;
    }

    /// The same where the wall clock says that nothing happened: the holder measures by a clock that nobody sets. It still
    /// has the lease, gives it back, and its caller gets a token by another attempt.
    async fn a_holder_paused_too_long_by_its_own_clock_begins_again(db: TestDb) {
        let mut world = World::new(db, Rotation::StrictFamily).await;
        // Shorter than is allowed: the pause is in real time.
        world.config.lease_ms = 2_000;
        world.config.upstreams.get_mut(UPSTREAM).unwrap().timeout_ms = 1_000;
        world.config.wait_ms = 20_000;
        let (person, connection) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::IntentCommitted);
        let slow = world.start_with(steps, false).await;
        let mut waiting = slow.client(&world.person_token(&person));
        let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
        arrived(arrival).await;
        let paused = Instant::now();
        eventually(Duration::from_secs(20), || async { paused.elapsed() > Duration::from_secs(1) }).await;
        assert_eq!(world.provider.counters().refresh_attempts, 0);
        go.send(()).unwrap();
        assert_eq!(call.await.unwrap(), "");
        assert_eq!(world.provider.counters().refresh_attempts, 1);
        assert_tidy(&world, &person, &connection).await;
        let states = world.rotation_states().await;
        assert_eq!(states, ["failed not_shown", "done"], "the first attempt is not on record as one that showed nothing");
        slow.stop().await;
    }

    /// A process that died before it deleted a token that it had replaced: it is no candidate when its successor is refused.
    async fn a_replaced_token_that_was_not_deleted_is_not_shown_again(db: TestDb) {
        let world = World::new(db, Rotation::StrictFamily).await;
        let (person, connection) = connected(&world).await;
        let replica = world.start_with(dying_at(Step::Finished), true).await;
        assert_eq!(reason(get(&mut replica.client(&world.person_token(&person))).await), "INTERRUPTED");
        replica.stop().await;
        let key = World::secret_key(&person, &connection);
        assert_eq!(world.secrets.list_versions(&key).await.unwrap().len(), 2);
        world.expire_access_tokens();
        let replica = world.start().await;
        let mut client = replica.client(&world.person_token(&person));
        world.provider.inject(Fault::DropAnswer);
        assert_eq!(reason(get(&mut client).await), "UPSTREAM_UNAVAILABLE");
        world.clock.advance(Duration::from_secs(2));
        assert_eq!(reason(get(&mut client).await), "NEEDS_REAUTHORIZATION");
        // The first, its successor, and that once more, since nobody knew what came of it.
        assert_eq!(world.provider.counters().refresh_attempts, 3, "a token was shown after its successor");
        replica.stop().await;
    }

    /// A new consent beside a rotation that was found the newest and then stood still, each let go at every place: the
    /// consent's token is the current one, and lives.
    async fn a_new_consent_is_not_undone_by_a_rotation_under_way(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for stands_at in [None, Some(Step::ConsentFenced), Some(Step::FirstPut), Some(Step::FirstPromoted)] {
            let (person, connection) = connected(&world).await;
            let (steps, arrival, go) = pausing_at(Step::HolderChecked);
            let slow = world.start_with(steps, false).await;
            let mut waiting = slow.client(&world.person_token(&person));
            let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
            arrived(arrival).await;
            let outcome = match stands_at {
                None => {
                    let other = world.start_with(Steps::default(), false).await;
                    world.connect(&other, &person).await.unwrap();
                    go.send(()).unwrap();
                    let outcome = call.await.unwrap();
                    other.stop().await;
                    outcome
                }
                Some(step) => {
                    let (steps, arrival, go_on) = pausing_at(step);
                    let other = world.start_with(steps, false).await;
                    let consents = async { world.connect(&other, &person).await.unwrap() };
                    let between = async {
                        arrived(arrival).await;
                        go.send(()).unwrap();
                        let outcome = call.await.unwrap();
                        go_on.send(()).unwrap();
                        outcome
                    };
                    let (_, outcome) = tokio::join!(consents, between);
                    other.stop().await;
                    outcome
                }
            };
            slow.stop().await;
            // It is overtaken: waits for the consent in vain, or takes what the consent brought.
            assert!(["", "UPSTREAM_UNAVAILABLE"].contains(&outcome.as_str()), "{stands_at:?}: {outcome}");
            let consented = world.provider.issued().last().unwrap().refresh_token.clone().unwrap();
            assert_eq!(world.current(&person, &connection).await.unwrap(), consented, "{stands_at:?}");
            assert!(world.provider.would_accept_refresh_token(&consented), "{stands_at:?}: the new token is dead");
            world.expire_access_tokens();
            assert_eq!(after_restart(&world, &person).await, "", "{stands_at:?}");
            assert_tidy(&world, &person, &connection).await;
        }
    }

    /// A holder that was found the newest and then stood still past its lease, while others rotated on: it moves nothing.
    async fn a_holder_paused_past_its_lease_promotes_nothing(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (person, connection) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::HolderChecked);
        let slow = world.start_with(steps, false).await;
        let mut waiting = slow.client(&world.person_token(&person));
        let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
        arrived(arrival).await;
        // Its lease runs out; others settle what it got, and rotate that too. What it holds stays there, a candidate.
        for last in [Step::OldDeleted, Step::Finished] {
            world.expire_access_tokens();
            let (steps, died) = death_at(last);
            let other = world.start_with(steps, false).await;
            // It may die in its first sweep already, with a token for whoever asks then.
            let _ = get(&mut other.client(&world.person_token(&person))).await;
            other.stop().await;
            assert!(died.load(Ordering::SeqCst), "{last:?} is never reached");
        }
        let newest = world.current(&person, &connection).await.unwrap();
        assert!(world.provider.would_accept_refresh_token(&newest));
        go.send(()).unwrap();
        let _ = call.await.unwrap();
        slow.stop().await;
        assert_eq!(world.current(&person, &connection).await.unwrap(), newest, "an older token came back");
        world.expire_access_tokens();
        assert_eq!(after_restart(&world, &person).await, "");
        assert_tidy(&world, &person, &connection).await;
    }

    /// The caller hangs up; the rotation goes on, and drain waits for it.
    async fn a_rotation_ends_though_its_caller_went_away(db: TestDb) {
        let world = World::new(db, Rotation::StrictFamily).await;
        let (person, connection) = connected(&world).await;
        let replica = world.start().await;
        world.provider.inject(Fault::Delay(Duration::from_millis(400)));
        let mut client = replica.client(&world.person_token(&person));
        let call = tokio::spawn(async move { get(&mut client).await });
        let provider = &world.provider;
        eventually(Duration::from_secs(10), || async { provider.counters().refreshes == 1 }).await;
        call.abort();
        replica.stop().await;
        assert_tidy(&world, &person, &connection).await;
        assert_eq!(after_restart(&world, &person).await, "");
        assert_eq!(world.provider.counters().refreshes, 2, "the finished rotation was not used");
    }

    /// A person disconnects in the middle of a rotation: nothing of it stays.
    async fn disconnecting_in_the_middle_of_a_rotation_leaves_no_secret(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for step in [Step::IntentCommitted, Step::Answered, Step::EscrowCommitted, Step::PendingPut, Step::Promoted] {
            let (person, connection) = connected(&world).await;
            let (steps, arrival, go) = pausing_at(step);
            let replica = world.start_with(steps, false).await;
            let mut waiting = replica.client(&world.person_token(&person));
            let call = tokio::spawn(async move { reason(get(&mut waiting).await) });
            arrived(arrival).await;
            let mut client = replica.client(&world.person_token(&person));
            let request = pb::DisconnectRequest { connection_id: connection };
            client.disconnect(request).await.map_err(from_status).unwrap();
            go.send(()).unwrap();
            let outcome = call.await.unwrap();
            assert!(["CONNECTION_NOT_FOUND", "UPSTREAM_UNAVAILABLE"].contains(&outcome.as_str()), "{step:?}: {outcome}");
            world.clock.advance(Duration::from_secs(11));
            replica.broker.sweep().await.unwrap();
            assert!(world.secrets.census().is_empty(), "{step:?}: {:?}", world.secrets.census());
            let last = world.provider.issued().last().unwrap().refresh_token.clone().unwrap();
            // The provider's answer had not been stored when the row was shredded: that token nobody has.
            assert!(step == Step::Answered || !world.provider.would_accept_refresh_token(&last), "{step:?}");
            replica.stop().await;
        }
    }
}
