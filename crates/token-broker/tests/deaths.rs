//! A process that dies at every step, of a rotation and of a new consent: no connection is lost, but where a strict
//! provider's answer itself was.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use gatehouse_core::Entropy;
use gatehouse_testkit::oauth_provider::{Fault, Rotation};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use gatehouse_token_broker::Step;
use support::stops::{
    EVERY_ROTATION, after_restart, assert_tidy, connected, death_at, dying_at, forgets_at_once,
};
use support::{Replica, World, get, reason};

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// Every class of provider, a death at every step.
    async fn dying_at_any_step_loses_nothing_but_a_strict_providers_unstored_answer(db: TestDb) {
        let world = World::new(db, Rotation::Grace(600_000)).await;
        let mut lost = 0;
        for rotation in EVERY_ROTATION {
            world.provider.set_rotation(rotation);
            for step in Step::ROTATION {
                if step == Step::PendingPut && rotation == Rotation::NoRotate {
                    // Nothing new comes that could be put.
                    continue;
                }
                let (person, connection) = connected(&world).await;
                let replica = world.start_with(dying_at(step), true).await;
                let died = get(&mut replica.client(&world.person_token(&person))).await;
                assert_eq!(reason(died), "INTERRUPTED", "{rotation:?} at {step:?}: that step is never reached");
                replica.stop().await;
                let refused = after_restart(&world, &person).await;
                if step == Step::Answered && forgets_at_once(rotation) {
                    assert_eq!(refused, "NEEDS_REAUTHORIZATION", "{rotation:?} at {step:?}");
                    lost += 1;
                } else {
                    assert_eq!(refused, "", "{rotation:?} at {step:?}");
                    assert_tidy(&world, &person, &connection).await;
                }
            }
        }
        assert_eq!(lost, 2);
    }

    /// The recovery dies too, at every step of it.
    async fn dying_again_while_recovering_loses_nothing(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for first in [Step::IntentCommitted, Step::EscrowCommitted, Step::PendingPut, Step::Promoted] {
            for second in Step::ROTATION {
                if second == Step::Answered && first == Step::IntentCommitted {
                    // The answer itself is lost then.
                    continue;
                }
                let (person, connection) = connected(&world).await;
                for step in [first, second] {
                    let replica = world.start_with(dying_at(step), true).await;
                    let _ = get(&mut replica.client(&world.person_token(&person))).await;
                    replica.stop().await;
                }
                assert_eq!(after_restart(&world, &person).await, "", "{first:?}, then {second:?}");
                assert_tidy(&world, &person, &connection).await;
            }
        }
    }

    /// A consent to what is connected already dies at every step: the old token or the new one serves on.
    async fn a_new_consent_that_dies_loses_neither_token(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for step in [Step::CodeExchanged, Step::ConsentFenced, Step::FirstPut, Step::FirstPromoted] {
            for old_is_refused in [false, true] {
                let (person, connection) = connected(&world).await;
                if old_is_refused {
                    world.provider.revoke_all();
                } else {
                    // The old token is used up: its successor lies in an interrupted rotation's escrow.
                    let replica = world.start_with(dying_at(Step::EscrowCommitted), true).await;
                    let _ = get(&mut replica.client(&world.person_token(&person))).await;
                    replica.stop().await;
                }
                let replica = world.start_with(dying_at(step), false).await;
                assert_eq!(reason(world.connect(&replica, &person).await), "INTERRUPTED", "{step:?}");
                replica.stop().await;
                let stored = [Step::FirstPut, Step::FirstPromoted].contains(&step);
                let mut outcome = after_restart(&world, &person).await;
                if old_is_refused && !stored {
                    assert_eq!(outcome, "NEEDS_REAUTHORIZATION", "{step:?}");
                    let replica = world.start().await;
                    world.connect(&replica, &person).await.unwrap();
                    replica.stop().await;
                    outcome = after_restart(&world, &person).await;
                }
                assert_eq!(outcome, "", "{step:?}, old refused: {old_is_refused}");
                assert_tidy(&world, &person, &connection).await;
            }
        }
    }

    /// Deaths and faults by chance; the seed is printed with a failure.
    async fn deaths_and_faults_by_chance_lose_nothing(db: TestDb) {
        let seed = std::env::var("GATEHOUSE_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from_le_bytes(Entropy::system().bytes()));
        let chance = Entropy::seeded(seed);
        // Each round takes minutes on the clock; a grace of days outlasts them.
        let grace = Rotation::Grace(1_000_000_000);
        let world = World::new(db, grace).await;
        let forgiving = [Rotation::NoRotate, Rotation::KeepOld, grace, Rotation::UntilUsed];
        let steps = Step::ROTATION.len();
        let place = |count: usize| usize::try_from(chance.below(count as u64)).unwrap();
        let (person, connection) = connected(&world).await;
        let mut deaths = 0;
        for round in 0..60 {
            // Of the classes that forgive a lost answer: with the others, loss is the right outcome.
            world.provider.set_rotation(forgiving[place(4)]);
            let dies = Step::ROTATION[place(steps)];
            let faults = [None, Some(Fault::DropAnswer), Some(Fault::Garbage), Some(Fault::ServerErrorAfter)];
            if let Some(fault) = &faults[place(4)] {
                world.provider.inject(fault.clone());
            }
            let (at_step, died) = death_at(dies);
            let replica = world.start_with(at_step, true).await;
            let outcome = reason(get(&mut replica.client(&world.person_token(&person))).await);
            assert_ne!(outcome, "NEEDS_REAUTHORIZATION", "seed {seed}, round {round}");
            replica.stop().await;
            // Whether the caller's renewal died or the first sweep's.
            deaths += usize::from(died.load(Ordering::SeqCst));
            world.expire_access_tokens();
            world.provider.inject_always(None);
        }
        let replica: Replica = world.start().await;
        let mut client = replica.client(&world.person_token(&person));
        eventually(Duration::from_secs(30), || {
            world.clock.advance(Duration::from_secs(61));
            let mut client = client.clone();
            async move { get(&mut client).await.is_ok() }
        })
        .await;
        world.expire_access_tokens();
        assert!(get(&mut client).await.is_ok(), "seed {seed}");
        assert_tidy(&world, &person, &connection).await;
        assert!(deaths > 10, "seed {seed}: only {deaths} deaths");
        replica.stop().await;
    }
}
