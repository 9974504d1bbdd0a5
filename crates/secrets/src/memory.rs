//! Secrets in the process's memory: for tests that restart a service around a backend that stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use gatehouse_core::{Clock, Entropy, Environment, Secret};

use crate::backend::SealingKey;
use crate::document::{Document, Mutation};
use crate::embedded::ring::KeyRing;
use crate::{Result, SecretKey};

#[derive(Debug)]
pub(crate) struct Memory {
    documents: Mutex<HashMap<SecretKey, Document>>,
    ring: Mutex<KeyRing>,
    clock: Clock,
    entropy: Entropy,
}

impl Memory {
    pub(crate) fn new(environment: Environment, clock: Clock, entropy: Entropy) -> Self {
        let ring = KeyRing::generate(environment, &clock, &entropy);
        Self { documents: Mutex::default(), ring: Mutex::new(ring), clock, entropy }
    }

    pub(crate) fn load(&self, key: &SecretKey) -> Option<Document> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn update(&self, key: &SecretKey, mutation: &Mutation) -> Result<()> {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let mut document = documents.get(key).cloned().unwrap_or_default();
        if document.apply(mutation)? {
            documents.insert(key.clone(), document);
        }
        Ok(())
    }

    pub(crate) fn delete(&self, key: &SecretKey) {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn seal(&self, aad: &[u8], plaintext: &Secret<Vec<u8>>) -> Result<Vec<u8>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).seal(aad, plaintext.expose(), &self.entropy)
    }

    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).open(aad, sealed)
    }

    pub(crate) fn rotate(&self) -> SealingKey {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.add(&self.clock, &self.entropy);
        ring.primary()
    }

    pub(crate) fn sealing_key(&self) -> SealingKey {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).primary()
    }

    pub(crate) fn dump(&self) -> BTreeMap<String, usize> {
        let documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents.iter().map(|(key, document)| (key.to_string(), document.list().len())).collect()
    }
}
