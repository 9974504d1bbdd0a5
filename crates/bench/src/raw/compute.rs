//! What cores can do.

use anyhow::Result;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use ed25519_dalek::{Signer as _, SigningKey, Verifier as _};
use sha2::{Digest as _, Sha256};

use crate::figure::Sample;
use crate::load::{Times, spin};

/// As auth's hasher counts: all cores but one, at least one.
pub(crate) fn permits() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

pub(crate) async fn argon2(times: Times) -> Result<Sample> {
    let params = Params::new(19_456, 2, 1, Some(32)).map_err(|error| anyhow::anyhow!("{error}"))?;
    spin(permits(), times, || {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
        let mut memory = vec![Block::new(); 19_456];
        move || {
            let mut out = [0; 32];
            let done =
                argon2.hash_password_into_with_memory(b"correct horse", &[7; 16], &mut out, &mut memory);
            std::hint::black_box((done.is_ok(), out));
        }
    })
    .await
}

pub(crate) async fn sha256(times: Times) -> Result<Sample> {
    let message = [7_u8; 512];
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    spin(cores, times, || {
        move || {
            std::hint::black_box(Sha256::digest(std::hint::black_box(message)));
        }
    })
    .await
}

/// As long as what is signed in an access token.
const TOKEN_BYTES: usize = 700;

pub(crate) async fn ed25519(times: Times) -> Result<Sample> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let signature = key.sign(&[7; TOKEN_BYTES]);
    let public = key.verifying_key();
    spin(1, times, || {
        move || {
            std::hint::black_box(public.verify(&[7; TOKEN_BYTES], &signature).is_ok());
        }
    })
    .await
}

pub(crate) async fn ed25519_sign(times: Times) -> Result<Sample> {
    spin(1, times, || {
        let key = SigningKey::from_bytes(&[7; 32]);
        move || {
            std::hint::black_box(key.sign(&[7; TOKEN_BYTES]));
        }
    })
    .await
}
