//! Chance as an argument.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::SysRng;
use rand::{Rng, SeedableRng, TryRng};
use rand_chacha::ChaCha20Rng;

/// Where random bytes come from: the operating system in every running service, a seed in tests that must
/// replay. Cheap to clone; clones of a seeded source share one stream.
#[derive(Clone, Debug)]
pub struct Entropy(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Seeded(Arc<Mutex<ChaCha20Rng>>),
}

impl Entropy {
    /// The operating system's generator, fit for keys and tokens.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A stream settled by `seed`. For tests only: whoever knows the seed knows every byte.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(ChaCha20Rng::seed_from_u64(seed)))))
    }

    /// Fills `buffer`.
    ///
    /// # Panics
    /// If the operating system has no random bytes to give. No safe way on exists: a process that can't draw
    /// a key must not run, and the kernels we support never return this after boot.
    pub fn fill(&self, buffer: &mut [u8]) {
        match &self.0 {
            Source::System => SysRng.try_fill_bytes(buffer).expect("the operating system gives random bytes"),
            Source::Seeded(stream) => {
                stream.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(buffer);
            }
        }
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A number in `0..bound`, uniform to within 2^-64 of itself; 0 if `bound` is 0. For jitter and choices.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        let drawn = u128::from(u64::from_le_bytes(self.bytes()));
        // Multiply-shift (Lemire, "Fast Random Integer Generation in an Interval", 2019) without rejection.
        u64::try_from((drawn * u128::from(bound)) >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream() {
        assert_eq!(Entropy::seeded(7).bytes::<16>(), Entropy::seeded(7).bytes::<16>());
        assert_ne!(Entropy::seeded(7).bytes::<16>(), Entropy::seeded(8).bytes::<16>());
        assert_ne!(Entropy::system().bytes::<16>(), Entropy::system().bytes::<16>());
    }

    #[test]
    fn below_stays_below() {
        let entropy = Entropy::seeded(1);
        assert!((0..1000).all(|_| entropy.below(10) < 10));
        assert_eq!(entropy.below(0), 0);
    }
}
