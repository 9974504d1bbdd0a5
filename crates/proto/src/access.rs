//! Who may call what, and why it refuses: read from the options that stand beside each method.

use std::collections::BTreeMap;

use gatehouse_core::ErrorCode;
use prost_reflect::{DynamicMessage, MethodDescriptor, Value};

use crate::descriptors::POOL;

/// What a method declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Who may call it.
    pub access: Access,
    /// Whether it refuses as soon as the news of revocations is late.
    pub privileged: bool,
    /// Whose certificates may call it: names of [`CALLERS`]. Never empty.
    pub callers: Vec<String>,
    /// Whether it refuses whoever is no person, whatever they hold: API keys, and services that act for nobody.
    pub persons_only: bool,
    /// The reasons of its own. [`Declared::refusals`] gives all.
    pub own_refusals: Vec<Refusal>,
}

/// A code and a reason that comes with it.
pub type Refusal = (ErrorCode, String);

/// What any method may refuse for.
const ANYWHERE: [(ErrorCode, &str); 6] = [
    (ErrorCode::InvalidArgument, "INVALID_FIELD"),
    (ErrorCode::InvalidArgument, "NUL_IN_TEXT"),
    (ErrorCode::PermissionDenied, "CALLER_NOT_ALLOWED"),
    (ErrorCode::Aborted, "TRANSACTION_CONFLICT"),
    (ErrorCode::Unavailable, "DATABASE_UNAVAILABLE"),
    (ErrorCode::Internal, "INTERNAL"),
];
/// What any method that asks for a token may refuse for.
const WITH_A_TOKEN: [(ErrorCode, &str); 6] = [
    (ErrorCode::Unauthenticated, "TOKEN_MISSING"),
    (ErrorCode::Unauthenticated, "TOKEN_INVALID"),
    (ErrorCode::Unauthenticated, "TOKEN_EXPIRED"),
    (ErrorCode::Unauthenticated, "TOKEN_REVOKED"),
    (ErrorCode::PermissionDenied, "TOKEN_OF_ANOTHER_SERVICE"),
    (ErrorCode::Unavailable, "REVOCATIONS_STALE"),
];
/// What any method with a permission may refuse for: permissions are held in a tenant.
const WITH_A_PERMISSION: [(ErrorCode, &str); 2] =
    [(ErrorCode::PermissionDenied, "PERMISSION_DENIED"), (ErrorCode::PermissionDenied, "TENANT_REQUIRED")];
/// What any method for persons only may refuse for.
const FOR_PERSONS: [(ErrorCode, &str); 1] = [(ErrorCode::PermissionDenied, "PERSON_REQUIRED")];

impl Declared {
    /// Everything that it may refuse for, sorted by code: what is its own, what follows from its rule, and what any
    /// method may refuse for.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut all = self.own_refusals.clone();
        let mut add = |more: &[(ErrorCode, &str)]| {
            all.extend(more.iter().map(|(code, reason)| (*code, (*reason).to_owned())));
        };
        add(&ANYWHERE);
        if self.access != Access::Public {
            add(&WITH_A_TOKEN);
        }
        if matches!(self.access, Access::Permission(_)) {
            add(&WITH_A_PERMISSION);
        }
        if self.persons_only {
            add(&FOR_PERSONS);
        }
        sort(&mut all);
        all
    }

    /// What [`Declared::refusals`] adds to a method's own reasons, and which methods it adds them to.
    #[must_use]
    pub fn common_refusals() -> [(&'static str, Vec<(ErrorCode, &'static str)>); 4] {
        [
            ("Any method", ANYWHERE.to_vec()),
            ("One that asks for a token", WITH_A_TOKEN.to_vec()),
            ("One that asks for a permission", WITH_A_PERMISSION.to_vec()),
            ("One for persons only", FOR_PERSONS.to_vec()),
        ]
    }

    /// Whether the service `name` may call it; `internal` says that the configuration lists it as one.
    #[must_use]
    pub fn may_be_called_by(&self, name: &str, internal: bool) -> bool {
        self.callers.iter().any(|caller| if caller == INTERNAL { internal } else { caller == name })
    }
}

/// In the order of [`ErrorCode::ALL`], then by name; each once.
pub fn sort(refusals: &mut Vec<Refusal>) {
    let place = |code: ErrorCode| ErrorCode::ALL.iter().position(|one| *one == code);
    refusals.sort_by(|(a, x), (b, y)| place(*a).cmp(&place(*b)).then_with(|| x.cmp(y)));
    refusals.dedup();
}

/// What [`Declared::callers`] calls the services that the configuration lists.
pub const INTERNAL: &str = "internal";

/// Whom a contract may name as a caller: Gatehouse's own services, and [`INTERNAL`].
pub const CALLERS: &[&str] = &["gateway", "auth", "token-broker", "job", "audit", "optimizer", INTERNAL];

/// Who may call a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without a credential.
    Public,
    /// Any valid token for this service.
    Authenticated,
    /// A token that holds this permission.
    Permission(String),
}

/// A method without a rule, or with a rule that says nothing. A server that has one must not start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccessError {
    /// The method has no `gatehouse.options.v1.access` option.
    #[error("the method {0} declares no access rule: add option (gatehouse.options.v1.access) beside it")]
    Undeclared(String),
    /// The option is there but empty, or `public: false`.
    #[error("the access rule of the method {0} says nothing: set public, authenticated or permission")]
    Empty(String),
    /// The permission is not of the form `service.noun.verb`.
    #[error("the permission {1:?} of the method {0} is not of the form service.noun.verb")]
    Malformed(String, String),
    /// No service may call it.
    #[error("the access rule of the method {0} names no callers: add those whose certificates may call it")]
    Uncalled(String),
    /// A caller that is no service.
    #[error("the method {0} may be called by {1:?}, which is neither a service of Gatehouse nor `internal`")]
    UnknownCaller(String, String),
    /// A reason that is not of the form of reasons.
    #[error("the method {0} may refuse with {1:?}, which is no reason: use A-Z, 0-9 and _, a letter first")]
    UnknownReason(String, String),
}

/// The rules of every method of the packages named (`gatehouse.job.v1`), by gRPC path
/// (`/gatehouse.job.v1.JobService/SubmitJob`), sorted.
///
/// # Errors
/// The first method without a usable rule.
pub fn access_table(packages: &[&str]) -> Result<BTreeMap<String, Declared>, AccessError> {
    POOL.services()
        .filter(|service| packages.contains(&service.package_name()))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            rule(&path, &method).map(|access| (path.clone(), access))
        })
        .collect()
}

/// Every package that Gatehouse serves.
pub const PACKAGES: &[&str] =
    &["gatehouse.auth.v1", "gatehouse.token_broker.v1", "gatehouse.job.v1", "gatehouse.audit.v1"];

fn rule(path: &str, method: &MethodDescriptor) -> Result<Declared, AccessError> {
    let undeclared = || AccessError::Undeclared(path.to_owned());
    let extension = POOL.get_extension_by_name("gatehouse.options.v1.access").ok_or_else(undeclared)?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return Err(undeclared());
    }
    let value = options.get_extension(&extension);
    let message = value.as_message().ok_or_else(undeclared)?;
    let flag = |name: &str| field(message, name).and_then(|value| value.as_bool()).unwrap_or(false);
    let callers: Vec<String> = field(message, "callers")
        .and_then(|value| {
            Some(value.as_list()?.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        })
        .unwrap_or_default();
    if callers.is_empty() {
        return Err(AccessError::Uncalled(path.to_owned()));
    }
    if let Some(unknown) = callers.iter().find(|caller| !CALLERS.contains(&caller.as_str())) {
        return Err(AccessError::UnknownCaller(path.to_owned(), unknown.clone()));
    }
    let (privileged, persons_only) = (flag("privileged"), flag("persons_only"));
    let own_refusals = own_refusals(path, method)?;
    let declared = |access| {
        let (callers, own_refusals) = (callers.clone(), own_refusals.clone());
        Ok(Declared { access, privileged, callers, persons_only, own_refusals })
    };
    if flag("public") {
        return declared(Access::Public);
    }
    if flag("authenticated") {
        return declared(Access::Authenticated);
    }
    let permission =
        field(message, "permission").and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    if permission.is_empty() {
        return Err(AccessError::Empty(path.to_owned()));
    }
    let well_formed = permission.split('.').count() == 3
        && permission.split('.').all(|part| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte == b'-')
        });
    if well_formed {
        declared(Access::Permission(permission))
    } else {
        Err(AccessError::Malformed(path.to_owned(), permission))
    }
}

/// The reasons that stand beside a method.
fn own_refusals(path: &str, method: &MethodDescriptor) -> Result<Vec<Refusal>, AccessError> {
    let Some(extension) = POOL.get_extension_by_name("gatehouse.options.v1.refusals") else {
        return Ok(Vec::new());
    };
    let options = method.options();
    let value = options.get_extension(&extension);
    let Some(message) = value.as_message() else { return Ok(Vec::new()) };
    let mut refusals = Vec::new();
    for code in ErrorCode::ALL {
        let listed = field(message, &code.as_str().to_ascii_lowercase());
        for reason in listed.as_ref().and_then(Value::as_list).into_iter().flatten() {
            let reason = reason.as_str().unwrap_or_default().to_owned();
            let of_the_form = reason.starts_with(|first: char| first.is_ascii_uppercase())
                && reason.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
            if !of_the_form {
                return Err(AccessError::UnknownReason(path.to_owned(), reason));
            }
            refusals.push((code, reason));
        }
    }
    Ok(refusals)
}

fn field(message: &DynamicMessage, name: &str) -> Option<Value> {
    message
        .has_field_by_name(name)
        .then(|| message.get_field_by_name(name).map(std::borrow::Cow::into_owned))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_declares_a_rule() {
        let table = access_table(PACKAGES).expect("no gap");
        assert!(table.len() > 40, "only {} methods were found", table.len());
        assert_eq!(table["/gatehouse.auth.v1.AccountService/SignIn"].access, Access::Public);
        assert_eq!(
            table["/gatehouse.job.v1.JobService/SubmitJob"].access,
            Access::Permission("job.jobs.submit".to_owned())
        );
    }

    #[test]
    fn what_a_method_refuses_for_is_its_own_and_what_its_rule_brings() {
        let table = access_table(PACKAGES).expect("no gap");
        let refusals = |method: &str| {
            let (_, declared) = table.iter().find(|(path, _)| path.ends_with(method)).expect("a method");
            declared.refusals()
        };
        let has = |method: &str, code, reason: &str| refusals(method).contains(&(code, reason.to_owned()));
        assert!(has("/SubmitJob", ErrorCode::NotFound, "KIND_NOT_FOUND"));
        assert!(has("/SubmitJob", ErrorCode::PermissionDenied, "PERMISSION_DENIED"));
        assert!(has("/Disconnect", ErrorCode::PermissionDenied, "PERSON_REQUIRED"));
        assert!(has("/SignIn", ErrorCode::FailedPrecondition, "TENANT_REQUIRED"));
        for (code, reason) in WITH_A_TOKEN {
            assert!(has("/WhoAmI", code, reason) && !has("/SignIn", code, reason), "{reason}");
        }
        let own: usize = table.values().map(|declared| declared.own_refusals.len()).sum();
        assert!(own > 80, "only {own} reasons stand beside methods");
    }

    /// Who may do the most dangerous things is written down twice, so that a change is a decision.
    #[test]
    fn few_may_call_what_gives_power() {
        let table = access_table(PACKAGES).expect("no gap");
        let callers = |method: &str| {
            let (_, found) =
                table.iter().find(|(path, _)| path.ends_with(method)).expect("there is such a method");
            found.callers.join(" ")
        };
        for method in
            ["/SignIn", "/Refresh", "/AddMember", "/SetMemberRole", "/CreateApiKey", "/CompleteConnection"]
        {
            assert_eq!(callers(method), "gateway", "{method}");
        }
        assert_eq!(callers("/ExchangeToken"), "gateway internal");
        assert_eq!(callers("/GetAccessToken"), "gateway internal");
        assert_eq!(callers("/Work"), "optimizer internal");
        assert_eq!(callers("/EraseSubject"), "internal");
    }

    #[test]
    fn internal_is_a_class_and_no_name() {
        let path = "/gatehouse.job.v1.WorkerService/Work";
        let work = &access_table(PACKAGES).expect("no gap")[path];
        assert!(work.may_be_called_by("optimizer", false) && work.may_be_called_by("mine", true));
        assert!(!work.may_be_called_by("mine", false) && !work.may_be_called_by("internal", false));
    }

    /// A new public method must be a decision, not an accident: it fails here until it is written down.
    #[test]
    fn the_public_methods_are_these() {
        let table = access_table(PACKAGES).expect("no gap");
        let public: Vec<_> = table
            .iter()
            .filter(|(_, access)| access.access == Access::Public)
            .filter_map(|(path, _)| path.rsplit('/').next())
            .collect();
        assert_eq!(public, ["Refresh", "Register", "SignIn", "GetJwks", "IssueToken", "RevokeToken"]);
    }

    /// What no API key can do is what its holders are told, and where a person must be there.
    #[test]
    fn the_methods_for_persons_only_are_these() {
        let table = access_table(PACKAGES).expect("no gap");
        let persons: Vec<_> = table.iter().filter(|(_, declared)| declared.persons_only).collect();
        // Of a caller who is nobody nothing can be asked.
        assert!(persons.iter().all(|(_, declared)| declared.access != Access::Public));
        let names: Vec<_> = persons.iter().filter_map(|(path, _)| path.rsplit('/').next()).collect();
        assert_eq!(
            names,
            [
                "ChangePassword",
                "ListSessions",
                "RevokeSession",
                "CreateApiKey",
                "RevokeApiKey",
                "RotateApiKey",
                "AddMember",
                "CreateTenant",
                "ListTenants",
                "RemoveMember",
                "SetMemberRole",
                "BeginConnection",
                "CompleteConnection",
                "CreateOfflineGrant",
                "Disconnect",
                "GetConnection",
                "ListConnections",
                "ListOfflineGrants",
                "RevokeOfflineGrant",
            ]
        );
    }
}
