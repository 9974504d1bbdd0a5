//! The two secrets of an authorization request: `state` and the PKCE verifier (RFC 7636).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::{Entropy, Secret};
use sha2::{Digest, Sha256};

/// A fresh value of 256 bits, 43 characters: fit for `state` and as a `code_verifier` (section 4.1).
#[must_use]
pub fn fresh(entropy: &Entropy) -> Secret<String> {
    Secret::new(URL_SAFE_NO_PAD.encode(entropy.bytes::<32>()))
}

/// The `code_challenge` of `verifier` by the method S256 (section 4.2).
#[must_use]
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier))
}

/// What is stored of a `state`: whoever reads the database can't complete an authorization with it. It has no key: of 256
/// random bits there is nothing to guess (decision 0098).
#[must_use]
pub fn state_digest(state: &str) -> [u8; 32] {
    Sha256::digest(state).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(challenge(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}
