//! The folder of subject keys is the one that the logs were sealed from, or the service does not start.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::fs;

use gatehouse_audit::MIGRATIONS;
use gatehouse_core::Error;
use gatehouse_db::{params, run_tx, sql};
use gatehouse_testkit::{TestDb, both_engines};
use world::{World, append};

sql! {
    FORGET_FOLDER = "DELETE FROM subject_key_folder";
}

/// A world whose log has an entry, and no replica.
async fn begun(db: TestDb) -> World {
    let world = World::new(db);
    let replica = world.replica().await;
    append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
    replica.stop().await;
    world
}

async fn refusal(world: &World) -> Error {
    match world.try_replica().await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

/// Moves the folder away, as where a volume is not mounted; its path before.
fn take_away(world: &mut World) -> std::path::PathBuf {
    let before = world.config.subject_keys_dir.clone();
    world.config.subject_keys_dir = before.with_file_name("elsewhere");
    before
}

/// The id that a refusal names, to be written into the configuration.
fn id_in(text: &str) -> String {
    text.split("audit.lost_subject_keys to ").nth(1).unwrap().split(':').next().unwrap().to_owned()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_folder_that_is_not_there_is_refused_and_not_made(db: TestDb) {
        let mut world = begun(db).await;
        let before = take_away(&mut world);
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "SUBJECT_KEYS_MISSING");
        assert!(error.to_string().contains("elsewhere"), "{error}");
        assert!(!world.config.subject_keys_dir.exists(), "a folder was made");
        // An empty one, as the place where a volume belongs, is no better.
        fs::create_dir(&world.config.subject_keys_dir).unwrap();
        assert_eq!(refusal(&world).await.reason(), "SUBJECT_KEYS_MISSING");
        assert_eq!(fs::read_dir(&world.config.subject_keys_dir).unwrap().count(), 0);
        world.config.subject_keys_dir = before;
        world.replica().await.stop().await;
    }

    async fn a_second_replica_with_a_folder_of_its_own_is_refused(db: TestDb) {
        let mut world = World::new(db);
        let replica = world.replica().await;
        take_away(&mut world);
        // Made by another installation, or by nobody.
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "SUBJECT_KEYS_MISSING");
        fs::create_dir(&world.config.subject_keys_dir).unwrap();
        let marker = world.config.subject_keys_dir.join("folder-id");
        fs::write(&marker, "gatehouse-audit-subject-keys 1\n4d6f8a1e-0f5c-4b8e-9d53-0a9a6f6f2b11\n").unwrap();
        let error = refusal(&world).await;
        assert!(error.to_string().contains("is another folder (id 4d6f8a1e"), "{error}");
        for damaged in ["", "gatehouse-audit-subject-keys 1\n", "4d6f8a1e-0f5c-4b8e-9d53-0a9a6f6f2b11"] {
            fs::write(&marker, damaged).unwrap();
            assert_eq!(refusal(&world).await.reason(), "SUBJECT_KEYS_UNUSABLE", "{damaged:?}");
        }
        replica.stop().await;
    }

    /// Root reads what is closed to others; a folder that leads to itself nobody reads.
    async fn a_folder_that_can_not_be_read_is_to_be_let_be(db: TestDb) {
        let mut world = begun(db).await;
        take_away(&mut world);
        std::os::unix::fs::symlink(&world.config.subject_keys_dir, &world.config.subject_keys_dir).unwrap();
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "SUBJECT_KEYS_UNUSABLE");
        assert!(error.message().contains("symbolic links"), "{error}");
        assert!(error.message().contains("check its owner and mode"), "{error}");
        assert!(!error.message().contains("Name a folder"), "{error}");
    }

    async fn a_folder_that_is_lost_is_given_up_on_purpose_only(db: TestDb) {
        let mut world = begun(db).await;
        take_away(&mut world);
        let lost = id_in(&refusal(&world).await.to_string());
        world.config.lost_subject_keys = Some("4d6f8a1e-0f5c-4b8e-9d53-0a9a6f6f2b11".into());
        assert_eq!(refusal(&world).await.reason(), "SUBJECT_KEYS_MISSING");
        world.config.lost_subject_keys = Some(lost.clone());
        let replica = world.replica().await;
        append(&mut world.emitter(&replica, "job"), vec![world.event("test.things.do")]).await;
        replica.stop().await;
        // It worked once: what is lost next is refused again.
        world.config.subject_keys_dir = world.config.subject_keys_dir.with_file_name("third");
        assert_ne!(id_in(&refusal(&world).await.to_string()), lost);
    }

    /// Before the folder had an id.
    async fn an_older_installation_is_taken_as_it_is_if_it_has_keys(db: TestDb) {
        let mut world = begun(db).await;
        let forget = async || run_tx!(&*world.db, "test.forget", |tx| { tx.execute(&FORGET_FOLDER, params![]).await }).unwrap();
        forget().await;
        fs::remove_file(world.config.subject_keys_dir.join("folder-id")).unwrap();
        world.replica().await.stop().await;
        assert!(world.config.subject_keys_dir.join("folder-id").exists());
        forget().await;
        take_away(&mut world);
        let nobody = id_in(&refusal(&world).await.to_string());
        assert_eq!(nobody, "00000000-0000-0000-0000-000000000000");
        world.config.lost_subject_keys = Some(nobody);
        world.replica().await.stop().await;
    }

    async fn replicas_that_start_at_once_agree_on_one_folder(db: TestDb) {
        let world = World::new(db);
        let (one, two) = tokio::join!(world.replica(), world.replica());
        one.stop().await;
        two.stop().await;
    }
}
