//! Processes that die or stand still at a step, and what one that was started again makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use gatehouse_testkit::oauth_provider::Rotation;
use gatehouse_token_broker::{Step, Steps};

use super::{Person, World, get, reason, works};

pub(crate) const EVERY_ROTATION: [Rotation; 6] = [
    Rotation::NoRotate,
    Rotation::KeepOld,
    Rotation::Grace(600_000),
    Rotation::UntilUsed,
    Rotation::Strict,
    Rotation::StrictFamily,
];

/// Whether a provider of this class lets nobody ask again.
pub(crate) fn forgets_at_once(rotation: Rotation) -> bool {
    matches!(rotation, Rotation::Strict | Rotation::StrictFamily)
}

/// A process that dies when it comes to `step`, and stays dead; whether it did.
pub(crate) fn death_at(step: Step) -> (Steps, Arc<AtomicBool>) {
    let died = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&died);
    let steps = Steps::watched(move |reached| {
        if reached == step {
            dead.store(true, Ordering::SeqCst);
        }
        !dead.load(Ordering::SeqCst)
    });
    (steps, died)
}

pub(crate) fn dying_at(step: Step) -> Steps {
    death_at(step).0
}

/// A process that stands still when it first comes to `step`: says so, and goes on when told.
pub(crate) fn pausing_at(step: Step) -> (Steps, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (arrived, arrival) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    let (gone, paused) = (std::sync::Mutex::new(gone), AtomicBool::new(false));
    let steps = Steps::watched(move |reached| {
        if reached == step && !paused.swap(true, Ordering::SeqCst) {
            arrived.send(()).unwrap();
            tokio::task::block_in_place(|| gone.lock().unwrap().recv().unwrap());
        }
        true
    });
    (steps, arrival, go)
}

pub(crate) async fn arrived(arrival: mpsc::Receiver<()>) {
    tokio::task::spawn_blocking(move || arrival.recv_timeout(Duration::from_secs(20)).unwrap())
        .await
        .unwrap();
}

/// Connects a fresh person and lets their access token end.
pub(crate) async fn connected(world: &World) -> (Person, String) {
    let (replica, person) = (world.start().await, Person::new());
    let connection = world.connect(&replica, &person).await.unwrap().connection_id;
    replica.stop().await;
    world.expire_access_tokens();
    (person, connection)
}

/// What a restarted process gives: the reason of its refusal, or nothing.
pub(crate) async fn after_restart(world: &World, person: &Person) -> String {
    let replica = world.start().await;
    let mut client = replica.client(&world.person_token(person));
    let outcome = get(&mut client).await;
    if let Ok(token) = &outcome {
        assert!(works(&world.provider, &token.access_token).await, "a token that does not work");
        // And the connection goes on living.
        world.expire_access_tokens();
        let next = get(&mut client).await;
        assert!(
            next.is_ok(),
            "the next rotation failed: {next:?}, {:?}",
            world.actions().await.iter().rev().take(4).collect::<Vec<_>>()
        );
    }
    replica.stop().await;
    reason(outcome)
}

pub(crate) async fn assert_tidy(world: &World, person: &Person, connection: &str) {
    let key = World::secret_key(person, connection);
    let versions = world.secrets.list_versions(&key).await.unwrap();
    assert_eq!(versions.len(), 1, "old versions stayed: {versions:?}");
    let current = world.current(person, connection).await.unwrap();
    assert!(world.provider.would_accept_refresh_token(&current), "the current token is dead");
}
