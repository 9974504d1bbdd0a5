//! One piece of work a key at a time in this process: who comes later waits for the one that is under way.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use gatehouse_service::Lifecycle;
use tokio::sync::watch;

/// Work under way, by key.
pub(crate) struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

/// Takes the entry away however the work ends, a panic included.
struct Landing<K: Hash + Eq, V> {
    key: K,
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the work of `key`; begins it, in a task that drain waits for, if it is not under way. `None` if the
    /// work broke off.
    pub(crate) async fn join<F>(&self, key: K, lifecycle: &Lifecycle, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut landed = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(landed) = under_way.get(&key) {
                landed.clone()
            } else {
                let (send, landed) = watch::channel(None);
                under_way.insert(key, landed.clone());
                let landing = Landing { key, under_way: self.under_way.clone() };
                let work = work();
                lifecycle.spawn(async move {
                    let value = work.await;
                    // First away, then told: whoever was told and finds the work to be done anew can begin it.
                    drop(landing);
                    send.send_replace(Some(value));
                });
                landed
            }
        };
        landed.wait_for(Option::is_some).await.ok()?.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_callers_share_one_run_and_a_panic_frees_the_key() {
        let (flights, lifecycle) = (Arc::new(Flights::<u8, usize>::default()), Lifecycle::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (flights, lifecycle, runs, gate) =
                    (flights.clone(), lifecycle.clone(), runs.clone(), gate.clone());
                tokio::spawn(async move {
                    let work = || async move {
                        let run = runs.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        run
                    };
                    flights.join(1, &lifecycle, work).await
                })
            })
            .collect();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(20);
        for caller in callers {
            assert!(caller.await.unwrap().is_some());
        }
        let broken = flights.join(2, &lifecycle, || async { panic!("as a test") }).await;
        assert_eq!(broken, None);
        assert_eq!(flights.join(2, &lifecycle, || async { 7 }).await, Some(7));
    }
}
