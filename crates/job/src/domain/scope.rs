//! Which jobs a worker may hold.

use std::collections::BTreeSet;

use gatehouse_core::ids::TenantId;

/// The permission that carries a worker's scope: `job.jobs.work:<kind>:<tenant or *>`.
const PERMISSION: &str = "job.jobs.work";

/// The tenants whose jobs of one kind a worker may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkScope {
    /// Every tenant's.
    AnyTenant,
    /// Those of these tenants.
    Tenants(BTreeSet<TenantId>),
}

impl WorkScope {
    /// The scope that `permissions` give for `kind`; `None` if none does.
    #[must_use]
    pub fn of<'a>(permissions: impl IntoIterator<Item = &'a str>, kind: &str) -> Option<Self> {
        let mut tenants = BTreeSet::new();
        for permission in permissions {
            let mut parts = permission.splitn(3, ':');
            let (Some(PERMISSION), Some(of_kind), Some(tenant)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if of_kind != kind && of_kind != "*" {
                continue;
            }
            if tenant == "*" {
                return Some(Self::AnyTenant);
            }
            // A scope that names no tenant gives nothing.
            tenants.extend(tenant.parse::<TenantId>());
        }
        (!tenants.is_empty()).then_some(Self::Tenants(tenants))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e";

    #[test]
    fn a_scope_is_what_the_permissions_say_and_no_more() {
        let one = Some(WorkScope::Tenants(BTreeSet::from([TENANT.parse().unwrap()])));
        let of_tenant = format!("job.jobs.work:optimize:{TENANT}");
        for (permissions, expected) in [
            (vec!["job.jobs.work:optimize:*"], Some(WorkScope::AnyTenant)),
            (vec!["job.jobs.work:*:*"], Some(WorkScope::AnyTenant)),
            (vec![of_tenant.as_str()], one.clone()),
            (vec!["job.jobs.work:render:*", of_tenant.as_str()], one),
            (vec!["job.jobs.work:render:*"], None),
            (vec!["job.jobs.work"], None),
            (vec!["job.jobs.work:optimize"], None),
            (vec!["job.jobs.work:optimize:"], None),
            (vec!["job.jobs.work:optimize:nobody"], None),
            (vec!["job.jobs.worker:optimize:*"], None),
            (vec!["audit.events.append", "job.jobs.submit:optimize:*"], None),
            (vec![], None),
        ] {
            assert_eq!(WorkScope::of(permissions.iter().copied(), "optimize"), expected, "{permissions:?}");
        }
    }
}
