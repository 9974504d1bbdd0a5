//! Rules as an operator writes them: only what differs. Key by key they stand over the defaults, so that what is not
//! named stays as it was; limits are taken away only by an empty table: of a class, or of all classes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use crate::quota::QuotaConfig;
use crate::rules::{ClassRules, Rules, TenantRules};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRules {
    capacity: Option<u64>,
    interval_s: Option<u64>,
    ip: WrittenQuota,
    person: WrittenQuota,
    api_key: WrittenQuota,
    tenant: WrittenQuota,
    routes: BTreeMap<String, WrittenQuota>,
    classes: Option<BTreeMap<String, WrittenClass>>,
    tenants: BTreeMap<Uuid, WrittenTenant>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenQuota {
    capacity: Option<u64>,
    interval_s: Option<u64>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenClass {
    ip: Option<WrittenQuota>,
    person: Option<WrittenQuota>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenTenant {
    tenant: Option<WrittenQuota>,
    api_key: Option<WrittenQuota>,
    person: Option<WrittenQuota>,
}

impl WrittenQuota {
    fn over(self, default: QuotaConfig) -> QuotaConfig {
        QuotaConfig {
            capacity: self.capacity.unwrap_or(default.capacity),
            interval_s: self.interval_s.unwrap_or(default.interval_s),
        }
    }
}

/// `written` over what stands there, else over what holds for all others.
fn set(quota: &mut Option<QuotaConfig>, written: Option<WrittenQuota>, general: QuotaConfig) {
    if let Some(written) = written {
        *quota = Some(written.over(quota.unwrap_or(general)));
    }
}

impl WrittenClass {
    fn over(self, default: ClassRules, rules: &Rules) -> ClassRules {
        let mut class = default;
        if self.ip.is_none() && self.person.is_none() {
            return ClassRules::default();
        }
        set(&mut class.ip, self.ip, rules.ip);
        set(&mut class.person, self.person, rules.person);
        class
    }
}

impl From<WrittenRules> for Rules {
    fn from(written: WrittenRules) -> Self {
        let mut rules = Self::default();
        rules.capacity = written.capacity.unwrap_or(rules.capacity);
        rules.interval_s = written.interval_s.unwrap_or(rules.interval_s);
        rules.ip = written.ip.over(rules.ip);
        rules.person = written.person.over(rules.person);
        rules.api_key = written.api_key.over(rules.api_key);
        rules.tenant = written.tenant.over(rules.tenant);
        let general = QuotaConfig::new(rules.capacity, rules.interval_s);
        rules.routes.extend(written.routes.into_iter().map(|(name, quota)| (name, quota.over(general))));
        if written.classes.as_ref().is_some_and(BTreeMap::is_empty) {
            rules.classes.clear();
        }
        for (name, class) in written.classes.unwrap_or_default() {
            let class = class.over(rules.classes.get(&name).copied().unwrap_or_default(), &rules);
            rules.classes.insert(name, class);
        }
        for (id, own) in written.tenants {
            let mut tenant = TenantRules::default();
            set(&mut tenant.tenant, own.tenant, rules.tenant);
            set(&mut tenant.api_key, own.api_key, rules.api_key);
            set(&mut tenant.person, own.person, rules.person);
            rules.tenants.insert(id, tenant);
        }
        rules
    }
}

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        WrittenRules::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(rules: Value) -> Rules {
        serde_json::from_value(rules).unwrap()
    }

    #[test]
    fn what_is_not_written_stays() {
        assert_eq!(read(json!({})), Rules::default());
        let defaults = Rules::default();
        let rules = read(json!({"classes": {"job-create": {"ip": {"capacity": 5}}}}));
        assert_eq!(rules.classes["job-create"].ip, Some(QuotaConfig::new(5, 60)));
        assert_eq!(rules.classes["sign-in"], defaults.classes["sign-in"], "another class lost its limit");
        let rules = read(
            json!({"classes": {"sign-in": {"person": {"capacity": 3}}, "token": {"ip": {"interval_s": 9}}}}),
        );
        assert_eq!(rules.classes["sign-in"].ip, defaults.classes["sign-in"].ip, "the address lost its limit");
        assert_eq!(rules.classes["sign-in"].person, Some(QuotaConfig::new(3, 60)));
        assert_eq!(rules.classes["token"].ip, Some(QuotaConfig::new(1200, 9)));
        assert_eq!(rules.classes["upstream-token"], defaults.classes["upstream-token"]);
        assert_eq!(rules.classes.len(), 4);
    }

    #[test]
    fn half_a_quota_takes_the_other_half_from_the_default() {
        let rules = read(json!({"ip": {"capacity": 5}, "api_key": {"interval_s": 7}, "capacity": 9}));
        assert_eq!((rules.ip, rules.api_key), (QuotaConfig::new(5, 60), QuotaConfig::new(10, 7)));
        assert_eq!((rules.capacity, rules.interval_s), (9, 60));
        let id = Uuid::from_u128(1);
        let rules = read(json!({
            "routes": {"GET /a": {"capacity": 5}},
            "tenant": {"interval_s": 30},
            "tenants": {id.to_string(): {"tenant": {"capacity": 8}}},
        }));
        assert_eq!(rules.routes["GET /a"], QuotaConfig::new(5, 60));
        assert_eq!(rules.tenants[&id].tenant, Some(QuotaConfig::new(8, 30)));
        for wrong in
            [json!({"ip": {"capacty": 5}}), json!({"ipp": {}}), json!({"classes": {"a": {"tenant": {}}}})]
        {
            assert!(serde_json::from_value::<Rules>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_class_is_freed_by_an_empty_table_and_what_is_shown_reads_as_it_was() {
        let rules = read(json!({"classes": {"sign-in": {}}}));
        assert_eq!(rules.classes["sign-in"], ClassRules::default());
        assert!(rules.classes["job-create"].ip.is_some());
        assert_eq!(read(serde_json::to_value(&rules).unwrap()), rules);
        let rules = read(json!({"classes": {}}));
        assert!(rules.classes.is_empty());
        assert_eq!(read(serde_json::to_value(&rules).unwrap()), rules);
        assert_eq!(read(serde_json::to_value(Rules::default()).unwrap()), Rules::default());
    }
}
