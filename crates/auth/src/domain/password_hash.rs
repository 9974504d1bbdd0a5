//! Argon2id (RFC 9106) and the text a hash is stored as: the PHC string format, with the pepper's key id.
//!
//! `$argon2id$v=19$m=19456,t=2,p=1,keyid=<base64 of the key id>$<salt>$<hash>`. The pepper is a key of the ring
//! that enters the hash as Argon2's secret `K`: a database dump alone gives a guesser nothing to try against.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use gatehouse_core::{Entropy, Timestamp};
use subtle::ConstantTimeEq;

use super::keys::{KeyId, KeyRing, Purpose};

/// What a hash costs. The defaults are OWASP's first choice: 19 MiB, 2 passes, 1 lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// 19 MiB, 2 passes, 1 lane.
    pub const DEFAULT: Self = Self { memory_kib: 19_456, passes: 2, lanes: 1 };

    fn params(self) -> Option<Params> {
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }

    /// Whether Argon2 takes it and one hash stays below `max_kib`.
    #[must_use]
    pub fn is_valid(self, max_kib: u32) -> bool {
        self.params().is_some() && self.memory_kib <= max_kib
    }
}

/// The least that a buffer reserves, in blocks of 1 KiB; of it, only what a hash needs is ever touched.
///
/// What is above 32 MiB, glibc's allocator maps apart and gives back when it is freed. The first thing below that is
/// freed raises the size from which it maps: every further buffer of 19 MiB would come from the heap of the thread that
/// wanted it and stay there for ever, and twice as much of everybody's free memory would no longer be given back.
const LEAST_RESERVED_BLOCKS: usize = 33 * 1024;

/// The memory of one hash, to be used again for the next.
pub struct Buffer(Vec<Block>);

impl Buffer {
    /// Memory for one hash at `cost`.
    #[must_use]
    pub fn new(cost: Cost) -> Self {
        let mut buffer = Self(Vec::new());
        buffer.make_room(cost);
        buffer
    }

    fn make_room(&mut self, cost: Cost) {
        let blocks = cost.memory_kib as usize;
        if self.0.len() >= blocks {
            return;
        }
        if self.0.capacity() < blocks.max(LEAST_RESERVED_BLOCKS) {
            // Nothing of the old one is needed: without it there is nothing to copy.
            self.0 = Vec::with_capacity(blocks.max(LEAST_RESERVED_BLOCKS));
        }
        self.0.resize(blocks, Block::new());
    }
}

/// A stored password hash.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    cost: Cost,
    pepper: Option<KeyId>,
    salt: [u8; 16],
    hash: [u8; 32],
}

/// The stored text is no hash of ours, or its key is gone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HashError {
    /// Not `$argon2id$v=19$m=…,t=…,p=…[,keyid=…]$…$…`.
    #[error("the stored password hash is not in the PHC format that this service writes")]
    Malformed,
    /// The pepper that it was made with is not in the key ring.
    #[error("the key ring lacks the pepper {0} of a stored password hash")]
    UnknownKey(String),
}

impl PasswordHash {
    /// Hashes `password` at `cost`, peppered with the ring's current key where `ring` is given.
    #[must_use]
    pub fn make(
        password: &str,
        cost: Cost,
        ring: Option<(&KeyRing, Timestamp)>,
        entropy: &Entropy,
        buffer: &mut Buffer,
    ) -> Self {
        let pepper = ring.map(|(ring, now)| ring.current(now).id.clone());
        let mut made = Self { cost, pepper, salt: entropy.bytes(), hash: [0; 32] };
        // A key that `current` just named is in the ring.
        made.hash = made.compute(password, ring.map(|(ring, _)| ring), buffer).unwrap_or_default();
        made
    }

    /// A hash that no password has: random. Checking a password against it costs what checking a real one does.
    #[must_use]
    pub fn unguessable(cost: Cost, ring: Option<(&KeyRing, Timestamp)>, entropy: &Entropy) -> Self {
        let pepper = ring.map(|(ring, now)| ring.current(now).id.clone());
        Self { cost, pepper, salt: entropy.bytes(), hash: entropy.bytes() }
    }

    /// Whether `password` is the one. Costs one hash, whatever the answer.
    pub fn verify(&self, password: &str, ring: &KeyRing, buffer: &mut Buffer) -> Result<bool, HashError> {
        let computed = self.compute(password, Some(ring), buffer)?;
        Ok(computed.ct_eq(&self.hash).into())
    }

    /// Whether it should be made anew at the next sign-in: other cost, or another pepper than `pepper`.
    #[must_use]
    pub fn is_outdated(&self, cost: Cost, pepper: Option<&KeyId>) -> bool {
        self.cost != cost || self.pepper.as_ref() != pepper
    }

    fn compute(
        &self,
        password: &str,
        ring: Option<&KeyRing>,
        buffer: &mut Buffer,
    ) -> Result<[u8; 32], HashError> {
        let pepper = match &self.pepper {
            None => None,
            Some(id) => {
                let unknown = || HashError::UnknownKey(id.to_string());
                let ring = ring.ok_or_else(unknown)?;
                Some(ring.derive(ring.lookup(id).ok_or_else(unknown)?, Purpose::PasswordPepper))
            }
        };
        let params = self.cost.params().ok_or(HashError::Malformed)?;
        let secret = pepper.as_ref().map_or(&[][..], |pepper| &pepper.expose()[..]);
        let argon2 = Argon2::new_with_secret(secret, Algorithm::Argon2id, Version::V0x13, params)
            .map_err(|_| HashError::Malformed)?;
        buffer.make_room(self.cost);
        let mut out = [0; 32];
        argon2
            .hash_password_into_with_memory(password.as_bytes(), &self.salt, &mut out, &mut buffer.0[..])
            .map_err(|_| HashError::Malformed)?;
        Ok(out)
    }

    /// Reads the stored text.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        Self::read(text).ok_or(HashError::Malformed)
    }

    fn read(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("$argon2id$v=19$")?;
        let mut fields = rest.split('$');
        let (params, salt, hash) = (fields.next()?, fields.next()?, fields.next()?);
        let mut params = params.split(',');
        let mut number = |name: &str| params.next()?.strip_prefix(name)?.parse::<u32>().ok();
        let cost = Cost { memory_kib: number("m=")?, passes: number("t=")?, lanes: number("p=")? };
        let pepper = match params.next() {
            None => None,
            Some(keyid) => {
                let bytes = STANDARD_NO_PAD.decode(keyid.strip_prefix("keyid=")?).ok()?;
                Some(KeyId::parse(std::str::from_utf8(&bytes).ok()?)?)
            }
        };
        let bytes = |text| STANDARD_NO_PAD.decode(text).ok();
        let (salt, hash) = (bytes(salt)?.try_into().ok()?, bytes(hash)?.try_into().ok()?);
        let whole = params.next().is_none() && fields.next().is_none();
        // A row that asks for more memory than any cost of ours is damage, not a reason to allocate it.
        (whole && cost.is_valid(1 << 20)).then_some(Self { cost, pepper, salt, hash })
    }
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { memory_kib, passes, lanes } = self.cost;
        write!(f, "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}")?;
        if let Some(kid) = &self.pepper {
            write!(f, ",keyid={}", STANDARD_NO_PAD.encode(kid.as_str()))?;
        }
        write!(f, "${}${}", STANDARD_NO_PAD.encode(self.salt), STANDARD_NO_PAD.encode(self.hash))
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use gatehouse_core::Environment;

    use super::super::keys::tests::ring;
    use super::*;

    /// The least that Argon2 takes, for tests that are about something else.
    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    #[test]
    fn a_hash_verifies_its_password_only() {
        let (ring, entropy) = (ring(Environment::Dev, 1), Entropy::seeded(1));
        let mut buffer = Buffer::new(CHEAP);
        let now = Timestamp::from_seconds(2_000);
        let made = PasswordHash::make("the owl reads", CHEAP, Some((&ring, now)), &entropy, &mut buffer);
        let text = made.to_string();
        assert!(text.starts_with("$argon2id$v=19$m=8,t=1,p=1,keyid="), "{text}");
        let read = PasswordHash::parse(&text).unwrap();
        assert_eq!(read, made);
        assert_eq!(read.verify("the owl reads", &ring, &mut buffer), Ok(true));
        assert_eq!(read.verify("the owl read", &ring, &mut buffer), Ok(false));
        assert!(!read.is_outdated(CHEAP, Some(&ring.keys()[0].id)));
        assert!(read.is_outdated(CHEAP, None));
        assert!(read.is_outdated(Cost::DEFAULT, Some(&ring.keys()[0].id)));
    }

    #[test]
    fn a_pepper_of_another_environment_does_not_fit() {
        let (dev, prod) = (ring(Environment::Dev, 1), ring(Environment::Prod, 1));
        let mut buffer = Buffer::new(CHEAP);
        let now = Timestamp::from_seconds(2_000);
        let made =
            PasswordHash::make("the owl reads", CHEAP, Some((&dev, now)), &Entropy::seeded(1), &mut buffer);
        assert_eq!(made.verify("the owl reads", &prod, &mut buffer), Ok(false));
        let other = super::super::keys::tests::ring(Environment::Dev, 2);
        assert!(matches!(made.verify("the owl reads", &other, &mut buffer), Err(HashError::UnknownKey(_))));
    }

    /// What the reference implementation's command line makes of `-id -v 13 -m 19456 KiB -t 2 -p 1`, salt
    /// `somesaltsomesalt`: a check that ours is the standard's Argon2id.
    #[test]
    fn an_unpeppered_hash_is_plain_argon2id() {
        let ring = ring(Environment::Dev, 1);
        let mut buffer = Buffer::new(Cost::DEFAULT);
        let made =
            PasswordHash { cost: Cost::DEFAULT, pepper: None, salt: *b"somesaltsomesalt", hash: [0; 32] };
        let computed = made.compute("password", None, &mut buffer).unwrap();
        let mut expected = [0; 32];
        Argon2::default().hash_password_into(b"password", b"somesaltsomesalt", &mut expected).unwrap();
        assert_eq!(computed, expected);
        // The buffer is used again: nothing of the last hash enters the next.
        assert_eq!(made.compute("password", Some(&ring), &mut buffer).unwrap(), expected);
    }

    /// The address is asked for, not how much memory the process has: other tests run beside this one.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn the_memory_of_a_hash_is_given_back_each_time() {
        let is_mapped = |address: usize| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| {
                let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let bound = |text: &str| usize::from_str_radix(text, 16).unwrap();
                (bound(from)..bound(to)).contains(&address)
            })
        };
        let is_given_back = || {
            let buffer = Buffer::new(Cost::DEFAULT);
            let middle = buffer.0[buffer.0.len() / 2..].as_ptr().addr();
            assert!(is_mapped(middle));
            drop(buffer);
            !is_mapped(middle)
        };
        // The first always is. Another test may map its own memory there at once, but not each time.
        is_given_back();
        assert!((0..10).any(|_| is_given_back()), "it stays with the process after the first");
    }

    #[test]
    fn damaged_rows_are_refused() {
        let good =
            "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert!(PasswordHash::parse(good).is_ok());
        for (from, to) in [
            ("argon2id", "argon2i"),
            ("v=19", "v=16"),
            ("m=8", "m=4000000000"),
            ("m=8", "m=-8"),
            ("p=1", "p=1,keyid=!"),
            ("p=1", "p=1,keyid=YWJj,x=1"),
            ("c29tZXNhbHRzb21lc2FsdA", "c29tZQ"),
            ("AAA$", "$"),
        ] {
            let bad = if from == "AAA$" { format!("{good}$") } else { good.replace(from, to) };
            assert_eq!(PasswordHash::parse(&bad), Err(HashError::Malformed), "{bad}");
        }
    }
}
