//! Password hashing behind permits.
//!
//! A hash costs tens of milliseconds of a core and 19 MiB. The only honest bound is on how many run at once: as many
//! as there are cores but one, so that a flood of sign-ins slows nothing but sign-ins; their memory is used again; a
//! short queue waits, and who finds it full is refused at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gatehouse_core::{Clock, Entropy, Error, Result, Secret};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::HashingConfig;
use crate::domain::password_hash::{Buffer, Cost, PasswordHash};
use crate::key_file::Keys;

/// Hashes and checks passwords. Cheap to clone; clones share the permits.
#[derive(Clone)]
pub struct Hasher(Arc<Shared>);

struct Shared {
    /// A hash that runs.
    running: Arc<Semaphore>,
    /// A hash that runs or waits.
    admitted: Arc<Semaphore>,
    buffers: Mutex<Vec<Buffer>>,
    cost: Cost,
    pepper: bool,
    keys: Keys,
    clock: Clock,
    entropy: Entropy,
    computed: AtomicU64,
    /// `computed` when idle memory was last looked for.
    computed_before: AtomicU64,
    buffers_made: AtomicU64,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hasher({:?}, {} computed)", self.0.cost, self.computed())
    }
}

impl Hasher {
    /// A hasher as `config` says.
    #[must_use]
    pub fn new(config: &HashingConfig, cost: Cost, keys: Keys, clock: Clock, entropy: Entropy) -> Self {
        let permits = match config.permits {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1)),
            permits => permits as usize,
        };
        Self(Arc::new(Shared {
            running: Arc::new(Semaphore::new(permits)),
            admitted: Arc::new(Semaphore::new(permits + config.queue as usize)),
            buffers: Mutex::default(),
            cost,
            pepper: config.pepper,
            keys,
            clock,
            entropy,
            computed: AtomicU64::new(0),
            computed_before: AtomicU64::new(0),
            buffers_made: AtomicU64::new(0),
        }))
    }

    /// Hashes a password that was chosen.
    ///
    /// # Errors
    /// `HASHING_BUSY` if the queue is full.
    pub async fn hash(&self, password: Secret<String>) -> Result<PasswordHash> {
        self.run(move |shared, buffer| Ok(shared.make(password.expose(), buffer))).await
    }

    /// Whether `password` is that of `stored`, the account's hash as it stands in the database; `None` where there is
    /// no account. Costs one hash in every case.
    ///
    /// # Errors
    /// `HASHING_BUSY` if the queue is full.
    pub async fn verify(&self, password: Secret<String>, stored: Option<String>) -> Result<bool> {
        let (hash, known) = match stored {
            Some(text) => (PasswordHash::parse(&text).map_err(Error::internal)?, true),
            // The same work, never the right answer.
            None => (self.0.unguessable(), false),
        };
        let right = self
            .run(move |shared, buffer| {
                hash.verify(password.expose(), &shared.keys.ring(), buffer).map_err(Error::internal)
            })
            .await?;
        Ok(right & known)
    }

    /// Whether `stored` should be made anew at the next sign-in.
    #[must_use]
    pub fn is_outdated(&self, stored: &str) -> bool {
        let ring = self.0.keys.ring();
        let pepper = self.0.pepper.then(|| &ring.current(self.0.clock.now()).id);
        PasswordHash::parse(stored).is_ok_and(|hash| hash.is_outdated(self.0.cost, pepper))
    }

    /// How many hashes were computed so far.
    #[must_use]
    pub fn computed(&self) -> u64 {
        self.0.computed.load(Ordering::Relaxed)
    }

    /// How many buffers were made so far; at most as many as permits exist at one time.
    #[must_use]
    pub fn buffers_made(&self) -> u64 {
        self.0.buffers_made.load(Ordering::Relaxed)
    }

    /// Gives back the memory that is kept for the next hash, if no hash runs. For when nobody signed in for a while.
    pub fn release_idle(&self) {
        let now = self.computed();
        if self.0.computed_before.swap(now, Ordering::Relaxed) == now {
            self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &mut Buffer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let busy = || {
            Error::resource_exhausted("HASHING_BUSY", "Too many sign-ins at the moment. Try again shortly.")
                .retry_after(Duration::from_secs(1))
        };
        let admitted = Arc::clone(&self.0.admitted).try_acquire_owned().map_err(|_| busy())?;
        let running = Arc::clone(&self.0.running).acquire_owned().await.map_err(Error::internal)?;
        let shared = Arc::clone(&self.0);
        // The permits go with the work: a caller who went away frees no core.
        let permits: (OwnedSemaphorePermit, OwnedSemaphorePermit) = (admitted, running);
        tokio::task::spawn_blocking(move || {
            let mut buffer = shared.take_buffer();
            let result = work(&shared, &mut buffer);
            shared.computed.fetch_add(1, Ordering::Relaxed);
            shared.return_buffer(buffer);
            drop(permits);
            result
        })
        .await
        .map_err(Error::internal)?
    }
}

impl Shared {
    fn unguessable(&self) -> PasswordHash {
        let ring = self.keys.ring();
        let pepper = self.pepper.then(|| (&*ring, self.clock.now()));
        PasswordHash::unguessable(self.cost, pepper, &self.entropy)
    }

    fn make(&self, password: &str, buffer: &mut Buffer) -> PasswordHash {
        let ring = self.keys.ring();
        let pepper = self.pepper.then(|| (&*ring, self.clock.now()));
        PasswordHash::make(password, self.cost, pepper, &self.entropy, buffer)
    }

    fn take_buffer(&self) -> Buffer {
        let kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| {
            self.buffers_made.fetch_add(1, Ordering::Relaxed);
            Buffer::new(self.cost)
        })
    }

    /// Keeps the buffer while others wait for it, and one in any case; the rest goes back, so that an idle service
    /// holds little.
    fn return_buffer(&self, buffer: Buffer) {
        let waiting = self.running.available_permits() == 0;
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting || kept.is_empty() {
            kept.push(buffer);
        }
    }
}
