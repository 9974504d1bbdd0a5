//! Roles and what each may do (requirement C3).
//!
//! A person has one role in each tenant. `platform_admin` is no role in a tenant but a mark on a person: it adds
//! the administration of the installation and nothing of any tenant's data. Services are not people: each internal
//! client's permissions stand in the configuration.

use std::fmt;
use std::str::FromStr;

/// A role in a tenant, or the platform's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Works: runs jobs, connects upstreams.
    Member,
    /// Also manages people, keys and the audit trail of the tenant.
    Admin,
    /// Also makes and unmakes owners.
    Owner,
    /// Runs the installation.
    PlatformAdmin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Member, Self::Admin, Self::Owner, Self::PlatformAdmin];

    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
            Self::PlatformAdmin => "platform_admin",
        }
    }

    /// Whether a membership can have it.
    #[must_use]
    pub const fn is_of_a_tenant(self) -> bool {
        !matches!(self, Self::PlatformAdmin)
    }

    /// Whether someone with this role may give `other` to, or take it from, a member: only up to their own.
    #[must_use]
    pub fn may_grant(self, other: Self) -> bool {
        other.is_of_a_tenant()
            && match self {
                Self::Owner => true,
                Self::Admin => other <= Self::Admin,
                Self::Member | Self::Viewer | Self::PlatformAdmin => false,
            }
    }

    /// What it may do, at every service.
    pub fn permissions(self) -> impl Iterator<Item = &'static str> {
        TABLE.iter().filter(move |(_, roles)| roles.contains(&self)).map(|(permission, _)| *permission)
    }

    /// Whether it holds `permission`.
    #[must_use]
    pub fn holds(self, permission: &str) -> bool {
        self.permissions().any(|held| held == permission)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of owner, admin, member, viewer")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

const ALL_MEMBERS: &[Role] = &[Role::Viewer, Role::Member, Role::Admin, Role::Owner];
const WORKERS: &[Role] = &[Role::Member, Role::Admin, Role::Owner];
const ADMINS: &[Role] = &[Role::Admin, Role::Owner];
const PLATFORM: &[Role] = &[Role::PlatformAdmin];

/// Permission by permission, who has it. What only internal services do (`job.jobs.work`, `audit.events.append`,
/// `auth.revocations.watch`, …) stands for no role.
const TABLE: &[(&str, &[Role])] = &[
    ("auth.tenants.read", ALL_MEMBERS),
    ("auth.members.read", ADMINS),
    ("auth.members.manage", ADMINS),
    ("auth.api_keys.read", ADMINS),
    ("auth.api_keys.manage", ADMINS),
    ("job.jobs.submit", WORKERS),
    ("job.jobs.cancel", WORKERS),
    ("job.jobs.read", ALL_MEMBERS),
    ("token-broker.connections.manage", WORKERS),
    ("token-broker.connections.read", WORKERS),
    ("token-broker.tokens.get", WORKERS),
    ("audit.events.read", ADMINS),
    ("audit.checkpoints.read", ALL_MEMBERS),
    // Beyond any one tenant: the leaves of all, and a person's data wherever it is.
    ("audit.log.export", PLATFORM),
    ("audit.subjects.erase", PLATFORM),
];

/// Whether the permission `held` covers the one that a method asks for: the part before the first `:` must be it.
#[must_use]
pub fn covers(held: &str, asked: &str) -> bool {
    held.split(':').next() == Some(asked)
}

/// What remains of the permission `held` for whoever asks for `wanted` of it: part by part between colons, what both say;
/// where `held` has a `*`, what is wanted; where `wanted` has ended, all that is held. `None` if that is nothing.
#[must_use]
pub fn narrow(held: &str, wanted: &str) -> Option<String> {
    let mut wanted_parts = wanted.split(':');
    let mut parts = Vec::new();
    for (place, held) in held.split(':').enumerate() {
        parts.push(match wanted_parts.next() {
            Some(wanted) if wanted == held => held,
            Some(wanted) if held == "*" && place > 0 && is_scope(wanted) => wanted,
            None if place > 0 => held,
            _ => return None,
        });
    }
    wanted_parts.next().is_none().then(|| parts.join(":"))
}

/// Whether `part` can stand in a permission's scope: a kind of job, the id of a tenant.
fn is_scope(part: &str) -> bool {
    (1..=64).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Whether `permission` is one that a role of a tenant has.
#[must_use]
pub fn is_known(permission: &str) -> bool {
    Role::Owner.holds(permission)
}

/// What only a signed-in person can do, whatever else they hold: every method that asks for it is `persons_only`. All others that a role of a
/// tenant has are of use to an API key; `token-broker.tokens.get` with upstreams that take a key of the installation.
/// Managing keys is a person's, so that a key that got out ends with its time or its revocation, and leaves none behind.
const OF_PERSONS: &[&str] =
    &["auth.members.manage", "auth.api_keys.manage", "token-broker.connections.manage"];

/// Whether an API key can use `permission`.
#[must_use]
pub fn is_for_keys(permission: &str) -> bool {
    is_known(permission) && !OF_PERSONS.contains(&permission)
}

/// The audience (`gatehouse.<service>`) at which `permission` means something.
#[must_use]
pub fn audience_of(permission: &str) -> Option<String> {
    permission.split_once('.').map(|(service, _)| format!("gatehouse.{service}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for wrong in ["", "Owner", "superuser", "owner "] {
            assert_eq!(wrong.parse::<Role>(), Err(UnknownRole));
        }
    }

    #[test]
    fn each_tenant_role_holds_all_that_the_one_below_does() {
        for pair in [[Role::Viewer, Role::Member], [Role::Member, Role::Admin], [Role::Admin, Role::Owner]] {
            assert!(pair[0].permissions().all(|permission| pair[1].holds(permission)), "{pair:?}");
        }
    }

    #[test]
    fn a_platform_admin_has_no_tenants_data() {
        for permission in Role::PlatformAdmin.permissions() {
            assert!(!Role::Owner.holds(permission), "{permission} is a tenant's");
        }
        assert!(!Role::PlatformAdmin.may_grant(Role::Viewer));
    }

    /// A permission that no method asks for is a mistake of spelling.
    #[test]
    fn every_permission_is_one_that_a_method_asks_for() {
        use gatehouse_proto::access::{Access, PACKAGES, access_table};
        let asked: Vec<_> =
            access_table(PACKAGES).unwrap().into_values().map(|declared| declared.access).collect();
        for (permission, _) in TABLE {
            assert!(asked.contains(&Access::Permission((*permission).to_owned())), "{permission}");
        }
    }

    #[test]
    fn what_no_tenant_gives_is_known_at_the_door() {
        use gatehouse_proto::access::{Access, PACKAGES, access_table};
        for declared in access_table(PACKAGES).unwrap().into_values() {
            if let Access::Permission(permission) = declared.access {
                let beyond = gatehouse_service::identity::BEYOND_TENANTS.contains(&permission.as_str());
                assert_ne!(is_known(&permission), beyond, "{permission}");
            }
        }
    }

    #[test]
    fn what_keys_cannot_use_is_spelled_as_what_roles_have() {
        for permission in OF_PERSONS {
            assert!(is_known(permission) && !is_for_keys(permission), "{permission}");
        }
        assert!(is_for_keys("job.jobs.submit") && !is_for_keys("audit.log.export"));
    }

    #[test]
    fn a_permission_is_for_keys_where_a_method_takes_it_from_one() {
        use gatehouse_proto::access::{Access, PACKAGES, access_table};
        for (permission, _) in TABLE {
            let mut methods = access_table(PACKAGES).unwrap();
            methods.retain(|_, declared| declared.access == Access::Permission((*permission).to_owned()));
            if OF_PERSONS.contains(permission) {
                assert!(methods.values().all(|declared| declared.persons_only), "{permission}: {methods:?}");
            } else {
                assert!(methods.values().any(|declared| !declared.persons_only), "{permission}: {methods:?}");
            }
        }
    }

    #[test]
    fn nobody_grants_above_themselves() {
        for (role, grants) in [
            (Role::Viewer, vec![]),
            (Role::Member, vec![]),
            (Role::Admin, vec![Role::Viewer, Role::Member, Role::Admin]),
            (Role::Owner, vec![Role::Viewer, Role::Member, Role::Admin, Role::Owner]),
            (Role::PlatformAdmin, vec![]),
        ] {
            let may: Vec<_> = Role::ALL.into_iter().filter(|other| role.may_grant(*other)).collect();
            assert_eq!(may, grants, "{role}");
        }
    }

    #[test]
    fn a_permission_is_narrowed_and_never_widened() {
        let tenant = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e";
        let one = format!("job.jobs.work:optimize:{tenant}");
        for (held, wanted, expected) in [
            ("job.jobs.read", "job.jobs.read", Some("job.jobs.read")),
            ("job.jobs.work:optimize:*", "job.jobs.work", Some("job.jobs.work:optimize:*")),
            ("job.jobs.work:optimize:*", "job.jobs.work:optimize", Some("job.jobs.work:optimize:*")),
            ("job.jobs.work:optimize:*", "job.jobs.work:optimize:*", Some("job.jobs.work:optimize:*")),
            ("job.jobs.work:optimize:*", one.as_str(), Some(one.as_str())),
            ("job.jobs.work:*:*", "job.jobs.work:optimize", Some("job.jobs.work:optimize:*")),
            ("job.jobs.work:*:*", one.as_str(), Some(one.as_str())),
            (one.as_str(), "job.jobs.work:optimize", Some(one.as_str())),
            (one.as_str(), "job.jobs.work:optimize:*", None),
            ("job.jobs.work:optimize:*", "job.jobs.work:*", None),
            ("job.jobs.work:optimize:*", "job.jobs.work:render", None),
            ("job.jobs.work:optimize:*", "job.jobs.work:optimize:", None),
            ("job.jobs.work:optimize:*", "job.jobs.work:optimize:*:x", None),
            ("job.jobs.work:optimize:*", "job.jobs.work:optimize:a\"b", None),
            ("job.jobs.work", "job.jobs.work:optimize", None),
            ("job.jobs.work:optimize:*", "job.jobs", None),
            ("job.jobs.work:optimize:*", "", None),
        ] {
            assert_eq!(narrow(held, wanted).as_deref(), expected, "{wanted} of {held}");
        }
    }

    #[test]
    fn a_scoped_permission_covers_its_method_only() {
        assert!(covers("job.jobs.work:optimize:*", "job.jobs.work"));
        assert!(covers("job.jobs.read", "job.jobs.read"));
        assert!(!covers("job.jobs.worker", "job.jobs.work"));
        assert!(!covers("job.jobs", "job.jobs.work"));
        assert_eq!(audience_of("token-broker.tokens.get").as_deref(), Some("gatehouse.token-broker"));
    }
}
