//! The limits as data: how much for whom, replaceable while running.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gatehouse_core::Environment;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bucket::{Bucket, Dimension};
use crate::decision::Decision;
use crate::lease::LeaseOptions;
use crate::limiter::Limiter;
use crate::quota::{InvalidQuota, Quota, QuotaConfig};
use crate::redis::RedisOptions;

/// How rate limits work. Everything but `rules` takes effect at the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How much for whom. Read again at SIGHUP; wrong ones change nothing.
    pub rules: Rules,
    /// Milliseconds that Redis has to answer a check before it counts as away. 1 to 5000. Default 50.
    pub timeout_ms: u64,
    /// Replicas of the gateway, 1 to 1000: while Redis is away each enforces its part of every limit. Not set, it counts as
    /// 1, and then two replicas together let in twice the limit for as long; set it, even if to 1. Default: none.
    pub replicas: Option<u32>,
    /// Lease large buckets in batches: fewer calls to Redis, and all replicas together may admit up to a tenth of
    /// a burst more than the limit. Default false.
    pub leases: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { rules: Rules::default(), timeout_ms: 50, replicas: None, leases: false }
    }
}

impl Config {
    /// Problems, each one sentence that names its field.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = self.rules.validate(environment);
        if !(1..=5000).contains(&self.timeout_ms) {
            problems.push("timeout_ms must be from 1 to 5000".to_owned());
        }
        if self.replicas.is_some_and(|replicas| !(1..=1000).contains(&replicas)) {
            problems.push("replicas must be from 1 to 1000".to_owned());
        }
        problems
    }

    /// The options for [`Limiter::redis`]: `url` is Redis's address, `environment` goes into the keys.
    #[must_use]
    pub fn redis_options(
        &self,
        url: &str,
        ca_file: Option<PathBuf>,
        environment: Environment,
    ) -> RedisOptions {
        RedisOptions {
            ca_file,
            timeout: Duration::from_millis(self.timeout_ms),
            replicas: self.replicas.unwrap_or(1),
            leases: self.leases.then(LeaseOptions::default),
            ..RedisOptions::new(url, format!("gatehouse-{environment}-ratelimit"))
        }
    }
}

/// How much for whom. Read, it stands key by key over the defaults (see the module `written`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Requests that may come within `interval_s`, over everything and again for each route. 1 to 1000000000.
    /// Default 100000.
    #[schemars(extend("x-env" = "RATE_LIMIT_CAPACITY"))]
    pub capacity: u64,
    /// Seconds in which `capacity` comes back. 1 to 2592000. Default 60.
    #[schemars(extend("x-env" = "RATE_LIMIT_INTERVAL"))]
    pub interval_s: u64,
    /// Each address (IPv6: each /64). Default 1200 in 60 s.
    pub ip: QuotaConfig,
    /// Each person. Default 1200 in 60 s.
    pub person: QuotaConfig,
    /// Each API key. Default 10 in 1 s.
    pub api_key: QuotaConfig,
    /// Each tenant. Default 6000 in 60 s.
    pub tenant: QuotaConfig,
    /// Routes with another limit than `capacity` in `interval_s`, by their name. Of a limit, here and below, the half that
    /// is not written is as for all others.
    pub routes: BTreeMap<String, QuotaConfig>,
    /// Classes of endpoints with stricter limits for each address and person. Default: `job-create` 30 in 60 s
    /// for each address, `sign-in` 20 in 60 s for each address, `upstream-token` 120 in 60 s for each person, over all
    /// upstreams; a limit of the class `token` does not hold there. A tenant's own limit for each person counts instead where
    /// it is stricter, and beside it where it is stricter in one of two ways only: at once, or in the long run. What is not
    /// written here stays: a class loses its limits by an empty table only (`sign-in = {}`; `classes = {}` frees all).
    pub classes: BTreeMap<String, ClassRules>,
    /// Tenants with limits of their own, by their id.
    #[schemars(with = "BTreeMap<String, TenantRules>")]
    pub tenants: BTreeMap<Uuid, TenantRules>,
}

/// Limits of a class of endpoints; what is absent is as for all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClassRules {
    /// Each address.
    pub ip: Option<QuotaConfig>,
    /// Each person.
    pub person: Option<QuotaConfig>,
}

/// Limits of one tenant; what is absent is as for all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantRules {
    /// The tenant as a whole.
    pub tenant: Option<QuotaConfig>,
    /// Each of its API keys.
    pub api_key: Option<QuotaConfig>,
    /// Each person acting in it.
    pub person: Option<QuotaConfig>,
}

impl Default for Rules {
    fn default() -> Self {
        let quota = |capacity| Some(QuotaConfig::new(capacity, 60));
        Self {
            capacity: 100_000,
            interval_s: 60,
            ip: QuotaConfig::new(1200, 60),
            person: QuotaConfig::new(1200, 60),
            api_key: QuotaConfig::new(10, 1),
            tenant: QuotaConfig::new(6000, 60),
            routes: BTreeMap::new(),
            classes: [
                ("job-create".to_owned(), ClassRules { ip: quota(30), person: None }),
                ("sign-in".to_owned(), ClassRules { ip: quota(20), person: None }),
                ("upstream-token".to_owned(), ClassRules { ip: None, person: quota(120) }),
            ]
            .into(),
            tenants: BTreeMap::new(),
        }
    }
}

/// Who and what a request is, as far as it is known. What is `None` is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects<'a> {
    /// The address it came from.
    pub ip: Option<IpAddr>,
    /// The person acting.
    pub person: Option<&'a str>,
    /// The API key's id.
    pub api_key: Option<&'a str>,
    /// The tenant acted in; also chooses its own limits.
    pub tenant: Option<Uuid>,
    /// The route's name or pattern, never the path as sent.
    pub route: Option<&'a str>,
    /// Whether the limit over everything is counted.
    pub global: bool,
    /// The class of the endpoint, such as `job-create`.
    pub class: Option<&'a str>,
}

impl Rules {
    /// Problems, each one sentence that names its field.
    #[must_use]
    pub fn validate(&self, _environment: Environment) -> Vec<String> {
        self.all_quotas()
            .into_iter()
            .filter_map(|(field, quota)| Some(format!("rules.{field}: {}", quota.checked().err()?)))
            .collect()
    }

    fn all_quotas(&self) -> Vec<(String, QuotaConfig)> {
        let mut all = vec![
            ("capacity, rules.interval_s".to_owned(), self.general()),
            ("ip".to_owned(), self.ip),
            ("person".to_owned(), self.person),
            ("api_key".to_owned(), self.api_key),
            ("tenant".to_owned(), self.tenant),
        ];
        all.extend(self.routes.iter().map(|(name, quota)| (format!("routes.{name:?}"), *quota)));
        for (name, class) in &self.classes {
            all.extend(class.ip.map(|quota| (format!("classes.{name:?}.ip"), quota)));
            all.extend(class.person.map(|quota| (format!("classes.{name:?}.person"), quota)));
        }
        for (id, tenant) in &self.tenants {
            all.extend(tenant.tenant.map(|quota| (format!("tenants.{id}.tenant"), quota)));
            all.extend(tenant.api_key.map(|quota| (format!("tenants.{id}.api_key"), quota)));
            all.extend(tenant.person.map(|quota| (format!("tenants.{id}.person"), quota)));
        }
        all
    }

    fn general(&self) -> QuotaConfig {
        QuotaConfig::new(self.capacity, self.interval_s)
    }

    /// The buckets of one request, in the order of [`Dimension::ALL`]; a person may have two.
    ///
    /// # Errors
    /// A quota is out of its bounds, which [`Rules::validate`] would have said.
    pub fn buckets(&self, subjects: &Subjects<'_>) -> Result<Vec<Bucket>, InvalidQuota> {
        let class = subjects.class.and_then(|name| Some((name, self.classes.get(name)?)));
        let tenant = subjects.tenant.and_then(|id| self.tenants.get(&id));
        let mut buckets = Vec::with_capacity(Dimension::ALL.len() + 1);
        let mut add = |dimension, subject: String, quota: QuotaConfig| -> Result<(), InvalidQuota> {
            let quota: Quota = quota.checked()?;
            buckets.push(Bucket::new(dimension, subject, quota));
            Ok(())
        };
        if let Some(ip) = subjects.ip {
            let network = network(ip);
            match class.and_then(|(name, rules)| Some((name, rules.ip?))) {
                Some((name, quota)) => add(Dimension::Ip, format!("{network}|{name}"), quota)?,
                None => add(Dimension::Ip, network.to_string(), self.ip)?,
            }
        }
        if let Some(person) = subjects.person {
            let of_class = class.and_then(|(name, rules)| Some((rules.person?, format!("{person}|{name}"))));
            // Within a tenant of its own limits, a person's bucket is that tenant's.
            let of_tenant = tenant
                .and_then(|tenant| tenant.person)
                .zip(subjects.tenant)
                .map(|(quota, id)| (quota, format!("{person}|{id}")));
            // A class is for what costs more: nobody gets more by it than their tenant leaves them, nor more at once by
            // a tenant that counts over a longer time.
            let counted = match (of_class, of_tenant) {
                (Some(class), Some(tenant)) if class.0.is_within(tenant.0) => [Some(class), None],
                (Some(class), Some(tenant)) if tenant.0.is_within(class.0) => [Some(tenant), None],
                (None, None) => [Some((self.person, person.to_owned())), None],
                both => both.into(),
            };
            for (quota, subject) in counted.into_iter().flatten() {
                add(Dimension::Person, subject, quota)?;
            }
        }
        if let Some(key) = subjects.api_key {
            add(Dimension::ApiKey, key.to_owned(), tenant.and_then(|t| t.api_key).unwrap_or(self.api_key))?;
        }
        if let Some(id) = subjects.tenant {
            add(Dimension::Tenant, id.to_string(), tenant.and_then(|t| t.tenant).unwrap_or(self.tenant))?;
        }
        if let Some(route) = subjects.route {
            let quota = self.routes.get(route).copied().unwrap_or(self.general());
            add(Dimension::Route, route.to_owned(), quota)?;
        }
        if subjects.global {
            add(Dimension::Global, String::new(), self.general())?;
        }
        Ok(buckets)
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one subscriber gets (RFC 6177).
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A limiter with its rules. Cheap to clone; clones share both.
#[derive(Clone, Debug)]
pub struct RateLimits {
    limiter: Limiter,
    rules: Arc<RwLock<Arc<Rules>>>,
}

impl RateLimits {
    /// `limiter` under `rules`.
    ///
    /// # Errors
    /// The problems of the rules, as [`Rules::validate`] says them.
    pub fn new(limiter: Limiter, rules: Rules, environment: Environment) -> Result<Self, Vec<String>> {
        let problems = rules.validate(environment);
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { limiter, rules: Arc::new(RwLock::new(Arc::new(rules))) })
    }

    /// Puts new rules in force for every check that starts from now on. Buckets keep what was taken from them.
    ///
    /// # Errors
    /// The problems of the new rules; the old ones then stay in force.
    pub fn replace_rules(&self, rules: Rules, environment: Environment) -> Result<(), Vec<String>> {
        let problems = rules.validate(environment);
        if !problems.is_empty() {
            return Err(problems);
        }
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        Ok(())
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The limiter itself.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Counts one request against everything that `subjects` names.
    #[expect(clippy::missing_panics_doc, reason = "the rules in force were validated")]
    pub async fn check(&self, subjects: &Subjects<'_>) -> Decision {
        let buckets =
            self.rules().buckets(subjects).expect("rules are validated before they come into force");
        self.limiter.check(&buckets).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_those_of_the_requirements() {
        let config = Config::default();
        assert_eq!(config.validate(Environment::Prod), Vec::<String>::new());
        let buckets = config
            .rules
            .buckets(&Subjects {
                api_key: Some("k"),
                route: Some("GET /v1/jobs"),
                global: true,
                ..Subjects::default()
            })
            .unwrap();
        let shape: Vec<_> =
            buckets.iter().map(|b| (b.dimension(), b.quota().capacity(), b.quota().interval())).collect();
        assert_eq!(
            shape,
            [
                (Dimension::ApiKey, 10, Duration::from_secs(1)),
                (Dimension::Route, 100_000, Duration::from_mins(1)),
                (Dimension::Global, 100_000, Duration::from_mins(1)),
            ]
        );
    }

    #[test]
    fn the_environment_names_stand_in_the_schema() {
        let schema = serde_json::to_string(&schemars::schema_for!(Config)).unwrap();
        assert!(schema.contains(r#""x-env":"RATE_LIMIT_CAPACITY""#), "{schema}");
        assert!(schema.contains(r#""x-env":"RATE_LIMIT_INTERVAL""#), "{schema}");
    }

    #[test]
    fn problems_name_their_field_and_unknown_fields_are_refused() {
        let mut rules = Rules { capacity: 0, ..Rules::default() };
        rules.routes.insert("POST /x".into(), QuotaConfig::new(1, 0));
        let problems = rules.validate(Environment::Dev).join("\n");
        assert!(problems.contains("rules.capacity"), "{problems}");
        assert!(problems.contains("rules.routes.\"POST /x\""), "{problems}");
        assert!(serde_json::from_str::<Config>(r#"{"rules":{"capacityy":1}}"#).is_err());
    }

    #[test]
    fn classes_and_tenants_have_their_own_buckets() {
        let id = Uuid::from_u128(7);
        let mut rules = Rules::default();
        rules.tenants.insert(
            id,
            TenantRules {
                api_key: Some(QuotaConfig::new(99, 1)),
                tenant: Some(QuotaConfig::new(5, 1)),
                person: None,
            },
        );
        let ip = "10.0.0.1".parse().ok();
        let plain = rules.buckets(&Subjects { ip, ..Subjects::default() }).unwrap();
        let class =
            rules.buckets(&Subjects { ip, class: Some("job-create"), ..Subjects::default() }).unwrap();
        assert_ne!(plain, class);
        assert_eq!(class[0].quota().capacity(), 30);
        let asks = |person, class| {
            let subjects = Subjects { ip, person: Some(person), class: Some(class), ..Subjects::default() };
            rules.buckets(&subjects).unwrap()
        };
        let (token, read) = (asks("a", "upstream-token"), asks("a", "read"));
        // The address is counted as everywhere, the person apart.
        assert_eq!((token[0] == read[0], token[1] == read[1]), (true, false));
        assert_eq!((token[1].quota().capacity(), read[1].quota().capacity()), (120, 1200));
        assert_ne!(token[1], asks("b", "upstream-token")[1]);
        // Of a tenant's own limit and the class's, the stricter one; where one has the smaller burst and the other the
        // lower rate, both.
        for (capacity, interval_s, counted) in [
            (30, 60, &[30][..]),
            (120, 61, &[120]),
            (5000, 3600, &[120, 5000]),
            (239, 120, &[120, 239]),
            (240, 120, &[120]),
            (241, 120, &[120]),
            (2, 1, &[2]),
            (30, 10, &[120, 30]),
        ] {
            let own = TenantRules {
                person: Some(QuotaConfig::new(capacity, interval_s)),
                ..TenantRules::default()
            };
            let rules = Rules { tenants: [(id, own)].into(), ..Rules::default() };
            let subjects = Subjects {
                person: Some("a"),
                tenant: Some(id),
                class: Some("upstream-token"),
                ..Subjects::default()
            };
            let buckets = rules.buckets(&subjects).unwrap();
            let of_person = buckets.iter().filter(|bucket| bucket.dimension() == Dimension::Person);
            let capacities: Vec<_> = of_person.map(|bucket| bucket.quota().capacity()).collect();
            assert_eq!(capacities, counted, "{capacity} in {interval_s} s");
        }
        let subjects = Subjects { api_key: Some("k"), tenant: Some(id), ..Subjects::default() };
        let capacities: Vec<_> =
            rules.buckets(&subjects).unwrap().iter().map(|b| b.quota().capacity()).collect();
        assert_eq!(capacities, [99, 5]);
    }

    #[test]
    fn one_ipv6_subscriber_is_one_address() {
        assert_eq!(
            network("2001:db8:1:2:3::4".parse().unwrap()),
            network("2001:db8:1:2::9".parse().unwrap())
        );
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[tokio::test]
    async fn rules_are_replaced_while_running_and_bad_ones_are_not() {
        let clock = gatehouse_core::Clock::settable(gatehouse_core::Timestamp::from_seconds(1));
        let limiter = Limiter::memory(clock, crate::SubjectKey::new([1]));
        let limits = RateLimits::new(limiter, Rules::default(), Environment::Prod).unwrap();
        let subjects = Subjects { api_key: Some("k"), ..Subjects::default() };
        let admitted = async |tries: usize| {
            let mut admitted = 0;
            for _ in 0..tries {
                admitted += usize::from(limits.check(&subjects).await.allowed);
            }
            admitted
        };
        assert_eq!(admitted(12).await, 10);
        let bad = Rules { api_key: QuotaConfig::new(0, 1), ..Rules::default() };
        assert!(limits.replace_rules(bad, Environment::Prod).is_err());
        assert_eq!(admitted(2).await, 0);
        let twice = Rules { api_key: QuotaConfig::new(20, 1), ..Rules::default() };
        limits.replace_rules(twice, Environment::Prod).unwrap();
        // What was taken stays taken: the debt is a second of waiting, whatever a token costs now.
        assert_eq!(admitted(30).await, 0);
        let wider = Rules { api_key: QuotaConfig::new(20, 2), ..Rules::default() };
        limits.replace_rules(wider, Environment::Prod).unwrap();
        assert_eq!(admitted(30).await, 10);
    }
}
