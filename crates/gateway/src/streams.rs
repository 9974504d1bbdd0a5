//! Open event streams: who has how many, and which connection each goes over.
//!
//! Invariants: nobody has more streams than one of the bounds says, however many replicas of the job service there are;
//! no connection carries more than it was made for; a stream that ends, in whichever way, gives back all that it held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gatehouse_client::Channel;
use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_core::{Error, Result};
use gatehouse_service::{Caller, Subject};

use crate::config::SseConfig;
use crate::upstream::StreamChannels;

/// The event streams of this process. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: SseConfig,
    channels: Vec<Channel>,
    streams_each: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_connection: Vec<usize>,
    by_holder: HashMap<Holder, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Caller(Subject),
    Tenant(TenantId),
    /// With the tenant that asks: whoever may not read a job must not keep those out who may.
    Job(Option<TenantId>, JobId),
}

impl Holder {
    const fn most(&self, config: &SseConfig) -> usize {
        match self {
            Self::Caller(_) => config.max_streams_per_caller,
            Self::Tenant(_) => config.max_streams_per_tenant,
            Self::Job(..) => config.max_streams_per_job,
        }
    }

    const fn refusal(&self) -> &'static str {
        match self {
            Self::Caller(_) => "You have too many event streams open. Close one first.",
            Self::Tenant(_) => "The tenant has too many event streams open. Close one first.",
            Self::Job(..) => "Too many event streams of this job are open. Close one first.",
        }
    }
}

/// A place for one stream, held until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    streams: Streams,
    connection: usize,
    holders: Vec<Holder>,
}

fn too_many(message: &'static str) -> Error {
    Error::resource_exhausted("TOO_MANY_STREAMS", message)
}

impl Streams {
    /// # Errors
    /// A sentence that begins with the field, if `channels` are too few for what `config` allows.
    pub(crate) fn new(config: &SseConfig, channels: StreamChannels) -> Result<Self, String> {
        if channels.capacity() < config.max_streams {
            return Err(format!(
                "sse.max_streams: is {}, but the connections for event streams carry {}",
                config.max_streams,
                channels.capacity()
            ));
        }
        let (channels, streams_each) = channels.into_parts();
        let open = Open { by_connection: vec![0; channels.len()], ..Open::default() };
        Ok(Self(Arc::new(Shared { config: config.clone(), channels, streams_each, open: Mutex::new(open) })))
    }

    /// A place for a stream of `job` to `caller`.
    ///
    /// # Errors
    /// `TOO_MANY_STREAMS`.
    pub(crate) fn open(&self, caller: &Caller, job: JobId) -> Result<StreamPermit> {
        let tenant = caller.claims().tid;
        let mut holders = vec![Holder::Caller(caller.subject().clone()), Holder::Job(tenant, job)];
        holders.extend(tenant.map(Holder::Tenant));
        let shared = &self.0;
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in &holders {
            if open.by_holder.get(holder).is_some_and(|held| *held >= holder.most(&shared.config)) {
                return Err(too_many(holder.refusal()));
            }
        }
        // The first that has room: few streams then need few connections.
        let connection = open.by_connection.iter().position(|carried| *carried < shared.streams_each);
        let Some(connection) = connection.filter(|_| open.all < shared.config.max_streams) else {
            return Err(too_many("Too many event streams are open. Try again in a moment."));
        };
        open.all += 1;
        open.by_connection[connection] += 1;
        for holder in &holders {
            *open.by_holder.entry(holder.clone()).or_default() += 1;
        }
        drop(open);
        Ok(StreamPermit { streams: self.clone(), connection, holders })
    }
}

impl StreamPermit {
    /// The connection that the stream is to go over.
    pub(crate) fn channel(&self) -> Channel {
        self.streams.0.channels[self.connection].clone()
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = self.streams.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        open.by_connection[self.connection] -= 1;
        for holder in &self.holders {
            if let Some(held) = open.by_holder.get_mut(holder) {
                *held -= 1;
                if *held == 0 {
                    open.by_holder.remove(holder);
                }
            }
        }
    }
}
