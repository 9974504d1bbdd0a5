//! What is measured, one file a service.

pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod broker;
pub(crate) mod gateway;
pub(crate) mod job;
pub(crate) mod ratelimit;
pub(crate) mod streams;

use anyhow::Result;
use clap::ValueEnum;

use crate::catalogue::FIGURES;
use crate::cluster::Engine;
use crate::figure::{Run, Sample};
use crate::session::{Needs, Session};

/// A group of figures that can be asked for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    Auth,
    Gateway,
    Ratelimit,
    Broker,
    Job,
    Audit,
    /// The limits alone.
    Raw,
}

/// All that `all` measures, limits as they are needed.
pub(crate) const ALL: [Suite; 7] =
    [Suite::Raw, Suite::Auth, Suite::Gateway, Suite::Ratelimit, Suite::Broker, Suite::Job, Suite::Audit];

impl Suite {
    /// What must run.
    pub(crate) fn needs(self) -> Needs {
        let services =
            Needs { services: &[Engine::Postgres, Engine::Sqlite], bare: true, ..Needs::default() };
        match self {
            Self::Raw => Needs { database: true, redis: true, bare: true, ..Needs::default() },
            Self::Ratelimit => Needs { redis: true, ..Needs::default() },
            _ => services,
        }
    }

    /// Measures it once.
    ///
    /// # Errors
    /// A call that failed, or a limit that can't be measured.
    pub(crate) async fn measure(self, session: &Session, run: &mut Run) -> Result<()> {
        match self {
            Self::Raw => {
                for meta in FIGURES.iter().filter(|meta| meta.limit.is_none()) {
                    session.limit(meta.key, run).await?;
                }
                Ok(())
            }
            Self::Auth => auth::measure(session, run).await,
            Self::Gateway => gateway::measure(session, run).await,
            Self::Ratelimit => ratelimit::measure(session, run).await,
            Self::Broker => broker::measure(session, run).await,
            Self::Job => {
                job::measure(session, run).await?;
                streams::measure(session, run).await
            }
            Self::Audit => audit::measure(session, run).await,
        }
    }
}

/// Both modes, and the key of the figure `separate` in each.
pub(crate) const fn modes(separate: &'static str, embedded: &'static str) -> [(Engine, &'static str); 2] {
    [(Engine::Postgres, separate), (Engine::Sqlite, embedded)]
}

/// Measures the limit of `key` if this run has not, then takes the figure itself.
///
/// # Errors
/// As `measure`.
pub(crate) async fn held(
    session: &Session,
    run: &mut Run,
    key: &'static str,
    measure: impl Future<Output = Result<Sample>>,
) -> Result<()> {
    if let Some(limit) = crate::catalogue::find(key).and_then(|meta| meta.limit) {
        session.limit(limit, run).await?;
    }
    let sample = measure.await?;
    crate::progress::measured(key, &sample);
    run.insert(key, sample);
    Ok(())
}
