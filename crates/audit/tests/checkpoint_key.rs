//! The key that checkpoints are signed with: what it signed goes on only with it, or with a word about the one before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::note::VerifierKey;
use gatehouse_audit::domain::verify::Verdict;
use gatehouse_audit::verify_log::Trust;
use gatehouse_audit::{LogConfig, MIGRATIONS};
use gatehouse_core::{Clock, Timestamp};
use gatehouse_db::{params, run_tx, sql};
use gatehouse_proto::audit::v1::{GetCheckpointRequest, GetCheckpointResponse};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use world::{Replica, World, append};

sql! {
    SPOIL = "UPDATE audit_checkpoints SET note = 'no note'";
}

/// A log with a checkpoint, whose service has stopped.
async fn signed(db: TestDb) -> World {
    let world = World::new(db);
    let replica = world.replica().await;
    append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
    world.keep_checkpoint(&replica).await;
    replica.stop().await;
    world
}

async fn refusal(world: &World) -> gatehouse_core::Error {
    match world.try_replica().await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

/// Another key in the place of the one that there is.
fn replace_key(world: &World) {
    std::fs::write(&world.config.checkpoint_key_file, "ab".repeat(32)).unwrap();
}

async fn checkpoint(world: &World, replica: &Replica, fresh: bool) -> GetCheckpointResponse {
    let request = GetCheckpointRequest { log: String::new(), fresh };
    world.operator(replica).get_checkpoint(request).await.unwrap().into_inner()
}

fn key_of(answer: &GetCheckpointResponse) -> VerifierKey {
    answer.verifier_key.parse().unwrap()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_key_that_is_gone_is_not_made_anew(db: TestDb) {
        let world = signed(db).await;
        std::fs::remove_file(&world.config.checkpoint_key_file).unwrap();
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "CHECKPOINT_KEY_MISSING");
        let text = error.to_string();
        assert!(text.contains("checkpoint.key") && text.contains("Restore it"), "{text}");
        assert!(!world.config.checkpoint_key_file.exists(), "a key was made");
    }

    async fn another_key_is_refused(db: TestDb) {
        let world = signed(db).await;
        replace_key(&world);
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "CHECKPOINT_KEY_REPLACED");
        let text = error.to_string();
        assert!(text.contains("checkpoint.key") && text.contains("Restore it"), "{text}");
    }

    /// That is not the key's fault, and must not keep events from being written down.
    async fn a_checkpoint_that_was_tampered_with_does_not_keep_it_from_starting(db: TestDb) {
        let world = signed(db).await;
        run_tx!(&*world.db, "test.tamper", |tx| { tx.execute(&SPOIL, params![]).await }).unwrap();
        let replica = world.replica().await;
        append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
        let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
        assert_eq!(world.operator(&replica).get_checkpoint(fresh).await.unwrap_err().code(), tonic::Code::Internal);
        replica.stop().await;
    }

    async fn a_key_that_is_replaced_on_purpose_continues_the_log(db: TestDb) {
        let mut world = signed(db).await;
        world.config.logs = vec![LogConfig { name: "long".into(), days: 365 }];
        let replica = world.replica().await;
        let old = checkpoint(&world, &replica, false).await;
        replica.stop().await;
        replace_key(&world);
        world.config.accepted_verifier_keys = vec![old.verifier_key.clone()];
        let replica = world.replica().await;
        // The key that is answered is that of the checkpoint which is answered.
        assert_eq!(checkpoint(&world, &replica, false).await, old);
        let same = checkpoint(&world, &replica, true).await;
        assert_eq!(same.size, old.size);
        assert_ne!(key_of(&same), key_of(&old));
        let read = Checkpoint::open(&same.checkpoint, &key_of(&same)).unwrap();
        // It is the one that whoever has the old key knows.
        assert_eq!(Checkpoint::open(&same.checkpoint, &key_of(&old)), Ok(read.clone()));
        assert_eq!(Checkpoint::open(&old.checkpoint, &key_of(&old)), Ok(read));
        assert_eq!(checkpoint(&world, &replica, true).await, same, "it is countersigned once");
        append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
        let next = checkpoint(&world, &replica, true).await;
        assert_eq!((next.size, key_of(&next)), (old.size + 1, key_of(&same)));
        Checkpoint::open(&next.checkpoint, &key_of(&next)).unwrap();
        assert!(Checkpoint::open(&next.checkpoint, &key_of(&old)).is_err());
        for (answer, keys, proven) in [(&old, [&next, &old], 1), (&next, [&old, &next], 2)] {
            let keys = keys.map(key_of).to_vec();
            let trust = Trust { checkpoints: vec![answer.checkpoint.clone()], keys, ..Trust::default() };
            assert_eq!(world.verify(&trust).await.verdict, Verdict::Verified { proven });
        }
        replica.stop().await;
        // By now nothing needs the old one any more; without it, a restored key is another one.
        world.config.accepted_verifier_keys.clear();
        world.replica().await.stop().await;
    }

    async fn a_name_that_is_changed_on_purpose_continues_the_log(db: TestDb) {
        let mut world = signed(db).await;
        let replica = world.replica().await;
        let old = checkpoint(&world, &replica, true).await;
        replica.stop().await;
        world.config.origin = "gatehouse.example".into();
        assert_eq!(refusal(&world).await.reason(), "CHECKPOINT_KEY_REPLACED");
        world.config.accepted_verifier_keys = vec![old.verifier_key.clone()];
        let replica = world.replica().await;
        assert_eq!(checkpoint(&world, &replica, true).await, old, "there is nothing to sign under the new name yet");
        append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
        let next = checkpoint(&world, &replica, true).await;
        assert_eq!(key_of(&next).name(), "gatehouse.example/dev/audit/default");
        Checkpoint::open(&next.checkpoint, &key_of(&next)).unwrap();
        replica.stop().await;
    }

    async fn what_was_pruned_is_signed_with_the_new_key_too(db: TestDb) {
        let mut world = World::new(db);
        world.clock = Clock::settable(Timestamp::from_seconds(1_790_000_000));
        world.config.prune_interval_ms = 1_000;
        let replica = world.replica().await;
        append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
        world.clock.advance(Duration::from_secs(31 * 86_400));
        let size = || async { checkpoint(&world, &replica, true).await.size };
        // The pruning is itself an event.
        eventually(Duration::from_secs(20), || async { size().await == 2 }).await;
        let old = checkpoint(&world, &replica, true).await;
        replica.stop().await;
        replace_key(&world);
        world.config.accepted_verifier_keys = vec![old.verifier_key.clone()];
        let replica = world.replica().await;
        let new = checkpoint(&world, &replica, true).await;
        assert_ne!(key_of(&new), key_of(&old));
        for answer in [old, new] {
            let keys = vec![key_of(&answer)];
            let trust = Trust { checkpoints: vec![answer.checkpoint], keys, ..Trust::default() };
            eventually(Duration::from_secs(20), || async {
                world.verify(&trust).await.verdict == Verdict::Verified { proven: 2 }
            })
            .await;
        }
        replica.stop().await;
    }
}
