//! The six kinds of rate limits: address, person, API key, tenant, route, everything (requirements P10, T2, L5, C7). A
//! request has a person or an API key, so it meets five of them, and a person may be counted in two buckets.
//!
//! Invariant: one request is charged in one round trip wherever who sends it is known beforehand, and otherwise
//! in two: what protects the exchange (address, everything) before it, the rest after.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use gatehouse_core::{Error, Result};
use gatehouse_ratelimit::{Decision, Dimension, RateLimits, Subjects};
use gatehouse_service::{Caller, Subject};

use crate::client_address::ClientAddress;
use crate::route::LimitClass;

/// What a request is counted by, apart from who sent it.
pub(crate) struct Charge<'a> {
    pub(crate) limits: &'a RateLimits,
    pub(crate) client: ClientAddress,
    pub(crate) class: LimitClass,
    /// Method and path template, or "unrouted".
    pub(crate) route: &'a str,
}

impl Charge<'_> {
    /// Everything at once, for a request whose sender is known, or has none.
    pub(crate) async fn all(&self, caller: Option<&Caller>) -> Outcome {
        self.check(true, true, caller).await
    }

    /// Address and everything, before an exchange.
    pub(crate) async fn before_exchange(&self) -> Outcome {
        self.check(true, false, None).await
    }

    /// The rest, after an exchange.
    pub(crate) async fn after_exchange(&self, caller: &Caller) -> Outcome {
        self.check(false, true, Some(caller)).await
    }

    async fn check(&self, outer: bool, inner: bool, caller: Option<&Caller>) -> Outcome {
        let (person, api_key) = match caller.map(Caller::subject) {
            Some(Subject::Person(id)) => (Some(id.to_string()), None),
            Some(Subject::ApiKey(id)) => (None, Some(id.to_string())),
            Some(Subject::Client(name)) => (Some(format!("client:{name}")), None),
            None => (None, None),
        };
        let subjects = Subjects {
            ip: outer.then_some(self.client.ip),
            global: outer,
            person: person.as_deref(),
            api_key: api_key.as_deref(),
            tenant: caller.and_then(|caller| caller.claims().tid).map(Into::into),
            route: inner.then_some(self.route),
            class: Some(self.class.as_str()),
        };
        Outcome(self.limits.check(&subjects).await)
    }
}

/// What was decided.
pub(crate) struct Outcome(Decision);

impl Outcome {
    /// # Errors
    /// `RATE_LIMITED` with the wait.
    pub(crate) fn permit(&self) -> Result<()> {
        if self.0.allowed {
            return Ok(());
        }
        let by = self.0.denied_by.map_or("rate", Dimension::as_str);
        let error = Error::resource_exhausted(
            "RATE_LIMITED",
            format!("Over the {by} limit. Wait for as long as Retry-After says, then try again."),
        );
        Err(match self.0.retry_after {
            Some(wait) => error.retry_after(wait),
            None => error,
        })
    }

    /// `RateLimit` and `RateLimit-Policy` for the tightest limit, into `headers`.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in
            [("ratelimit", self.0.rate_limit_field()), ("ratelimit-policy", self.0.rate_limit_policy_field())]
        {
            if let Some(Ok(value)) = value.map(|text| HeaderValue::from_str(&text)) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}
