//! Doorbells: "something changed, look again", across replicas.
//!
//! A ring carries nothing but its topic; the truth is always read from where it is kept. Rings may be lost (Redis
//! away) and may be many or one, so whoever listens also looks by itself now and then. Rings of one topic that come
//! quickly are one.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use gatehouse_client::Backoff;
use gatehouse_core::{Entropy, Environment, Error, Result, Secret};
use redis::IntoConnectionInfo as _;
use redis::io::tcp::TcpSettings;
use tokio::sync::{Notify, watch};
use tokio_stream::StreamExt as _;

use crate::Lifecycle;

/// The bells of one process, joined with those of all others where Redis is configured. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    topics: Mutex<HashMap<String, Weak<watch::Sender<u64>>>>,
    // Topics to tell other processes of; `None` where there are none.
    outgoing: Option<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    topics: Mutex<BTreeSet<String>>,
    wake: Notify,
    // Goes with each ring, so that this process does not hear its own a second time: each would be another look.
    origin: String,
}

/// Where Redis is.
#[derive(Clone, Debug)]
pub struct RedisAddress {
    /// `redis://` or `rediss://`, with its password.
    pub url: Secret<String>,
    /// PEM file with the authorities that vouch for a `rediss://` server, read at each connection; without it the
    /// system's.
    pub ca_file: Option<PathBuf>,
}

impl RedisAddress {
    fn client(&self) -> redis::RedisResult<redis::Client> {
        // Whoever asks next does not wait until the answer to who asked before is acknowledged.
        let settings = TcpSettings::default().set_nodelay(true);
        let place = self.url.expose().as_str().into_connection_info()?.set_tcp_settings(settings);
        match &self.ca_file {
            None => redis::Client::open(place),
            Some(file) => {
                let root_cert = Some(std::fs::read(file)?);
                redis::Client::build_with_tls(place, redis::TlsCertificates { client_tls: None, root_cert })
            }
        }
    }
}

/// One listener of one topic.
#[derive(Debug)]
pub struct Bell {
    rings: watch::Receiver<u64>,
    // Keeps the topic alive for as long as somebody listens.
    _sender: Arc<watch::Sender<u64>>,
}

impl Bell {
    /// Resolves at the next ring since the last call (at once if there was one in between).
    pub async fn rung(&mut self) {
        // The sender is held by `self`.
        let _ = self.rings.changed().await;
    }

    /// As [`Bell::rung`], but after `patience` in any case: the look that makes up for lost rings.
    pub async fn rung_or_after(&mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.rung()).await;
    }
}

impl Doorbell {
    /// Bells within this process.
    #[must_use]
    pub fn local() -> Self {
        Self(Arc::default())
    }

    /// Bells shared through Redis pub/sub. While Redis is away, rings reach this process only.
    ///
    /// # Errors
    /// `REDIS_URL_INVALID` if the text is no Redis address, or the file of its authorities can't be used.
    pub fn redis(
        address: &RedisAddress,
        environment: Environment,
        lifecycle: &Lifecycle,
        entropy: &Entropy,
    ) -> Result<Self> {
        address.client().map_err(|error| {
            Error::invalid_argument(
                "REDIS_URL_INVALID",
                "The Redis address or redis.ca_file can't be used; an address looks like rediss://host:6379, and only \
                 such a one has a ca_file.",
            )
            .caused_by(error)
        })?;
        let origin = format!("{:032x}", u128::from_le_bytes(entropy.bytes()));
        let outgoing = Outgoing { topics: Mutex::default(), wake: Notify::new(), origin };
        let bell = Self(Arc::new(Inner { outgoing: Some(outgoing), ..Inner::default() }));
        let prefix = format!("gatehouse:{environment}:bell:");
        let backoff = || Backoff::new(Duration::from_millis(50), Duration::from_secs(2), entropy.clone());
        lifecycle.spawn(listen(
            bell.clone(),
            address.clone(),
            prefix.clone(),
            backoff(),
            lifecycle.stopping(),
        ));
        lifecycle.spawn(tell(bell.clone(), address.clone(), prefix, backoff(), lifecycle.stopping()));
        Ok(bell)
    }

    /// Rings the bell of `topic`, here at once and elsewhere soon. Never waits.
    pub fn ring(&self, topic: &str) {
        self.ring_here(topic);
        if let Some(outgoing) = &self.0.outgoing {
            outgoing.topics.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned());
            outgoing.wake.notify_one();
        }
    }

    /// Listens to `topic` from now on.
    #[must_use]
    pub fn subscribe(&self, topic: &str) -> Bell {
        let mut topics = self.0.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = topics.get(topic).and_then(Weak::upgrade).unwrap_or_else(|| {
            // A new topic is a good moment to forget those that nobody listens to any more.
            topics.retain(|_, sender| sender.strong_count() > 0);
            let sender = Arc::new(watch::Sender::new(0));
            topics.insert(topic.to_owned(), Arc::downgrade(&sender));
            sender
        });
        Bell { rings: sender.subscribe(), _sender: sender }
    }

    fn ring_here(&self, topic: &str) {
        let topics = self.0.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(topic).and_then(Weak::upgrade) {
            sender.send_modify(|rings| *rings = rings.wrapping_add(1));
        }
    }

    fn ring_all(&self) {
        let topics = self.0.topics.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in topics.values().filter_map(Weak::upgrade) {
            sender.send_modify(|rings| *rings = rings.wrapping_add(1));
        }
    }
}

async fn listen(
    bell: Doorbell,
    address: RedisAddress,
    prefix: String,
    mut backoff: Backoff,
    stopping: tokio_util::sync::CancellationToken,
) {
    let own = bell.0.outgoing.as_ref().map_or("", |outgoing| &outgoing.origin);
    loop {
        let session = async {
            let mut subscription = address.client()?.get_async_pubsub().await?;
            subscription.psubscribe(format!("{prefix}*")).await?;
            // Rings may have been lost until now.
            bell.ring_all();
            let mut messages = subscription.into_on_message();
            while let Some(message) = messages.next().await {
                // Its own rings were heard when they were rung.
                if message.get_payload_bytes() == own.as_bytes() {
                    continue;
                }
                if let Some(topic) = message.get_channel_name().strip_prefix(&prefix) {
                    bell.ring_here(topic);
                }
            }
            Ok::<_, redis::RedisError>(())
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            ended = session => tracing::warn!(error = ?ended.err(), "doorbells from other replicas are silent: Redis is away"),
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = backoff.wait() => {}
        }
    }
}

async fn tell(
    bell: Doorbell,
    address: RedisAddress,
    prefix: String,
    mut backoff: Backoff,
    stopping: tokio_util::sync::CancellationToken,
) {
    let Some(outgoing) = &bell.0.outgoing else { return };
    let mut connection = None;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = outgoing.wake.notified() => {}
        }
        let topics = std::mem::take(&mut *outgoing.topics.lock().unwrap_or_else(PoisonError::into_inner));
        let mut rings = redis::pipe();
        for topic in &topics {
            rings.publish(format!("{prefix}{topic}"), &outgoing.origin).ignore();
        }
        let told = async {
            let mut live = match connection.take() {
                Some(live) => live,
                None => address.client()?.get_multiplexed_async_connection().await?,
            };
            rings.query_async::<()>(&mut live).await?;
            Ok::<_, redis::RedisError>(live)
        };
        match tokio::time::timeout(Duration::from_secs(1), told).await {
            Ok(Ok(live)) => {
                connection = Some(live);
                backoff.reset();
            }
            // The rings are lost, as documented; others look by themselves.
            Ok(Err(_)) | Err(_) => backoff.wait().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ring_wakes_the_listeners_of_its_topic_only() {
        let doorbell = Doorbell::local();
        let (mut here, mut there) = (doorbell.subscribe("a"), doorbell.subscribe("b"));
        doorbell.ring("a");
        doorbell.ring("a");
        tokio::time::timeout(Duration::from_secs(5), here.rung()).await.expect("the ring was heard");
        assert!(
            tokio::time::timeout(Duration::from_millis(20), here.rung()).await.is_err(),
            "two quick rings are one"
        );
        assert!(tokio::time::timeout(Duration::from_millis(20), there.rung()).await.is_err());
    }

    #[tokio::test]
    async fn topics_that_nobody_listens_to_are_forgotten() {
        let doorbell = Doorbell::local();
        for topic in 0..100 {
            drop(doorbell.subscribe(&topic.to_string()));
        }
        let _kept = doorbell.subscribe("kept");
        assert_eq!(doorbell.0.topics.lock().unwrap().len(), 1);
    }
}
