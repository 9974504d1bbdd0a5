//! What a route must declare. The server is built from [`crate::routes::table`] alone, and a route can't be made
//! without a declaration, so there is none without.

use std::collections::BTreeMap;
use std::sync::{LazyLock, OnceLock};

use actix_web::HttpResponse;
use actix_web::http::Method;
use futures_util::future::LocalBoxFuture;
use gatehouse_client::audience;
use gatehouse_core::{ErrorCode, Result};
use gatehouse_proto::access::{self, Access as RpcAccess, Declared, Refusal};
use utoipa::__dev::{SchemaReferences, Tags};
use utoipa::Path;
use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::{RefOr, Schema};

use crate::context::Context;
use crate::refusals;

/// What the methods declare. Empty if one declares nothing usable, which [`problems`] tells.
static RULES: LazyLock<BTreeMap<String, Declared>> =
    LazyLock::new(|| access::access_table(access::PACKAGES).unwrap_or_default());

/// Which service a route speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    Auth,
    TokenBroker,
    Job,
    Audit,
}

impl Service {
    /// The `aud` of its tokens.
    pub(crate) const fn audience(self) -> &'static str {
        match self {
            Self::Auth => audience::AUTH,
            Self::TokenBroker => audience::TOKEN_BROKER,
            Self::Job => audience::JOB,
            Self::Audit => audience::AUDIT,
        }
    }
}

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing, and no limits: probes only.
    Probe,
    /// Nothing.
    Public,
    /// An OAuth client's id and secret, which the handler passes to auth (RFC 6749, section 2.3).
    OAuthClient,
    /// An access token or API key, exchanged for a token of this service.
    Caller(Service),
}

/// Which limits by address and person apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LimitClass {
    Read,
    Write,
    SignIn,
    Token,
    UpstreamToken,
    Submit,
    Stream,
}

impl LimitClass {
    /// The name in the rules of `gatehouse-ratelimit`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::SignIn => "sign-in",
            Self::Token => "token",
            Self::UpstreamToken => "upstream-token",
            Self::Submit => "job-create",
            Self::Stream => "stream",
        }
    }
}

/// How a route's failures read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorFormat {
    /// RFC 9457.
    Problem,
    /// RFC 6749, section 5.2.
    OAuth,
}

impl ErrorFormat {
    /// What the API's documentation calls the list of the names that tell one failure in this format from another.
    pub(crate) const fn names(self) -> &'static str {
        match self {
            Self::Problem => "x-reasons",
            Self::OAuth => "x-errors",
        }
    }
}

pub(crate) type Handler = fn(Context) -> LocalBoxFuture<'static, Result<HttpResponse>>;

/// Makes a [`Handler`] of an `async fn(Context) -> Result<HttpResponse>`.
macro_rules! handler {
    ($function:path) => {
        |context| Box::pin($function(context))
    };
}
pub(crate) use handler;

/// One route: method, path, who may call it, what it calls, how often, its documentation, its code.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Method and path template: the name in limits, spans and metrics.
    pub(crate) name: String,
    pub(crate) access: Access,
    /// The gRPC methods that the handler may call, and no other: `/package.Service/Method`.
    pub(crate) calls: &'static [&'static str],
    pub(crate) class: LimitClass,
    pub(crate) errors: ErrorFormat,
    /// Whether the answer goes on for as long as there is news.
    pub(crate) streams: bool,
    /// Whether only a signed-in person gets anything here, so that the documentation offers no API key.
    pub(crate) persons_only: bool,
    /// What the handler itself refuses for, beside what follows from all else that is declared here.
    pub(crate) own_refusals: &'static [(ErrorCode, &'static str)],
    refusals: OnceLock<Vec<Refusal>>,
    pub(crate) handler: Handler,
    pub(crate) operation: Operation,
    pub(crate) schemas: Vec<(String, RefOr<Schema>)>,
}

impl Route {
    /// The route that the annotation `P` documents; method and path are taken from there.
    pub(crate) fn new<P: Path + SchemaReferences + Tags<'static>>(
        access: Access,
        calls: &'static [&'static str],
        class: LimitClass,
        handler: Handler,
    ) -> Self {
        let method = match P::methods().first() {
            Some(HttpMethod::Post) => Method::POST,
            Some(HttpMethod::Put) => Method::PUT,
            Some(HttpMethod::Delete) => Method::DELETE,
            Some(HttpMethod::Patch) => Method::PATCH,
            _ => Method::GET,
        };
        let mut schemas = Vec::new();
        P::schemas(&mut schemas);
        let path = P::path();
        let mut operation = P::operation();
        operation.tags = Some(P::tags().into_iter().map(str::to_owned).collect());
        Self {
            name: format!("{method} {path}"),
            method,
            path,
            access,
            calls,
            class,
            errors: ErrorFormat::Problem,
            streams: false,
            persons_only: declared(calls).any(|rule| rule.persons_only),
            own_refusals: &[],
            refusals: OnceLock::new(),
            handler,
            operation,
            schemas,
        }
    }

    /// The same with failures in the format of RFC 6749.
    pub(crate) fn with_oauth_errors(mut self) -> Self {
        self.errors = ErrorFormat::OAuth;
        self
    }

    /// The same with an answer that streams.
    pub(crate) fn streaming(mut self) -> Self {
        self.streams = true;
        self
    }

    /// The same for persons only, though its methods may take an API key from a service that acts for it.
    pub(crate) fn for_persons_only(mut self) -> Self {
        self.persons_only = true;
        self
    }

    /// The same with a handler that refuses for these reasons too.
    pub(crate) fn refusing(mut self, own: &'static [(ErrorCode, &'static str)]) -> Self {
        self.own_refusals = own;
        self
    }

    /// Everything that it may refuse for. See [`refusals`].
    pub(crate) fn refusals(&self) -> &[Refusal] {
        self.refusals.get_or_init(|| refusals::of(self))
    }

    /// The permissions that the services behind it will ask for.
    pub(crate) fn permissions(&self) -> Vec<String> {
        let permission = |rule: &Declared| match &rule.access {
            RpcAccess::Permission(permission) => Some(permission.clone()),
            _ => None,
        };
        let mut permissions: Vec<String> = declared(self.calls).filter_map(permission).collect();
        permissions.dedup();
        permissions
    }
}

/// What `calls` declare.
pub(crate) fn declared(calls: &'static [&'static str]) -> impl Iterator<Item = &'static Declared> {
    calls.iter().filter_map(|call| RULES.get(*call))
}

/// What is wrong with the declarations, each as a sentence; empty if nothing is. A gateway with any does not start.
pub(crate) fn problems(routes: &[Route]) -> Vec<String> {
    let rules = match access::access_table(access::PACKAGES) {
        Ok(rules) => rules,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for route in routes {
        let name = &route.name;
        if !seen.insert(name) {
            problems.push(format!("{name}: declared twice"));
        }
        for call in route.calls {
            let Some(rule) = rules.get(*call) else {
                problems.push(format!("{name}: calls {call}, which no contract has"));
                continue;
            };
            let package = match route.access {
                Access::Caller(Service::Auth) => "/gatehouse.auth.",
                Access::Caller(Service::TokenBroker) => "/gatehouse.token_broker.",
                Access::Caller(Service::Job) => "/gatehouse.job.",
                Access::Caller(Service::Audit) => "/gatehouse.audit.",
                Access::Probe | Access::Public | Access::OAuthClient => "/",
            };
            if !rule.may_be_called_by("gateway", false) {
                problems.push(format!("{name}: calls {call}, which the gateway may not call"));
            }
            if !call.starts_with(package) {
                problems.push(format!("{name}: its tokens are not for the service of {call}"));
            }
            if matches!(route.access, Access::Public | Access::Probe) && rule.access != RpcAccess::Public {
                problems.push(format!("{name}: is public, but {call} is not"));
            }
            if matches!(route.access, Access::Caller(_)) && rule.access == RpcAccess::Public {
                problems.push(format!("{name}: asks for a credential, but {call} is public"));
            }
        }
        if route.persons_only && !matches!(route.access, Access::Caller(_)) {
            problems.push(format!("{name}: is for persons only, but asks for no credential that tells"));
        }
        if matches!(route.access, Access::Caller(_)) && route.calls.is_empty() {
            problems
                .push(format!("{name}: asks for a credential but calls nothing that checks a permission"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::config::Config;
    use crate::{docs, routes};

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    found.insert(target.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_table_contradicts_no_contract() {
        let table = routes::table();
        assert!(table.len() > 45, "only {} routes", table.len());
        assert_eq!(problems(&table), Vec::<String>::new());
    }

    /// A new public route must be a decision: it fails here until it is written down.
    #[test]
    fn the_routes_without_a_caller_are_these() {
        let table = routes::table();
        let open: Vec<_> = table
            .iter()
            .filter(|route| !matches!(route.access, Access::Caller(_)))
            .map(|route| route.name.as_str())
            .collect();
        assert_eq!(
            open,
            [
                "POST /v1/auth/register",
                "POST /v1/auth/sign-in",
                "POST /v1/auth/refresh",
                "POST /oauth2/token",
                "POST /oauth2/introspect",
                "POST /oauth2/revoke",
                "GET /.well-known/oauth-authorization-server",
                "GET /.well-known/oauth-authorization-server/{environment}",
                "GET /.well-known/jwks.json",
                "GET /openapi.json",
                "GET /docs",
                "GET /healthz",
                "GET /readyz",
            ]
        );
    }

    #[test]
    fn a_wrong_declaration_is_found() {
        let wrong = |change: fn(&mut Route)| {
            let mut table = routes::table();
            let index = table.iter().position(|route| route.name == "GET /v1/jobs").expect("there");
            change(&mut table[index]);
            problems(&table)
        };
        assert_eq!(wrong(|_| {}).len(), 0);
        assert_eq!(wrong(|route| route.access = Access::Public).len(), 1);
        assert_eq!(wrong(|route| route.access = Access::Caller(Service::Auth)).len(), 1);
        assert_eq!(wrong(|route| route.calls = &[]).len(), 1);
        let persons_of_the_public =
            |route: &mut Route| (route.persons_only, route.access) = (true, Access::Public);
        assert_eq!(wrong(persons_of_the_public).len(), 2);
        assert_eq!(wrong(|route| route.calls = &["/gatehouse.job.v1.JobService/NoSuch"]).len(), 1);
        assert_eq!(wrong(|route| route.name = "POST /v1/jobs".to_owned()).len(), 1);
    }

    #[test]
    fn the_document_and_the_table_say_the_same() {
        let table = routes::table();
        let document = docs::document(&table, &Config::default());
        let documented: BTreeSet<String> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("methods");
                methods.keys().map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let declared: BTreeSet<String> = table.iter().map(|route| route.name.clone()).collect();
        assert_eq!(documented, declared);
    }

    #[test]
    fn api_keys_are_offered_where_they_work() {
        let table = routes::table();
        let document = docs::document(&table, &Config::default());
        let page = docs::Documents::new(&table, &Config::default()).page;
        let rules = access::access_table(access::PACKAGES).expect("no gap");
        let mut persons = 0;
        for route in table.iter().filter(|route| matches!(route.access, Access::Caller(_))) {
            let operation = &document["paths"][&route.path][route.method.as_str().to_ascii_lowercase()];
            let offered = operation["security"].as_array().expect("security");
            assert!(offered.iter().any(|scheme| scheme.get("bearer").is_some()), "{}", route.name);
            let keys = offered.iter().any(|scheme| scheme.get("api_key").is_some());
            let of_persons = route.calls.iter().any(|call| rules[*call].persons_only);
            // The broker gives a key only what it gives the service that acts for it, and the gateway acts for nobody.
            let of_route = route.name == "POST /v1/connections/{upstream}/token";
            assert_eq!(keys, !of_persons && !of_route, "{}", route.name);
            persons += usize::from(!keys);
        }
        assert_eq!(page.matches("<dd>a signed-in person").count(), persons);
        assert_eq!(crate::routes_markdown().matches("| a person's access token |").count(), persons);
        assert!(persons > 15, "{persons}");
    }

    /// The parts of the OpenAPI 3.1 specification that a generator can get wrong.
    #[test]
    fn the_document_is_well_formed() {
        let table = routes::table();
        let document = docs::document(&table, &Config::default());
        assert_eq!(document["openapi"], "3.1.0");
        let mut targets = BTreeSet::new();
        references(&document, &mut targets);
        for target in &targets {
            let pointer = target.strip_prefix('#').expect("local");
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
        let mut ids = BTreeSet::new();
        for route in &table {
            let operation = &document["paths"][&route.path][route.method.as_str().to_ascii_lowercase()];
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} stands twice");
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{id} has no summary"
            );
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{id} has no tag");
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{id} never succeeds");
            let in_path: BTreeSet<&str> =
                route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let documented: BTreeSet<&str> = parameters
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| {
                    assert_eq!(parameter["required"], true, "{id}: a path parameter must be required");
                    parameter["name"].as_str().expect("a name")
                })
                .collect();
            assert_eq!(in_path, documented, "{id}");
            assert!(parameters.iter().all(|parameter| parameter["schema"].is_object()), "{id}");
            let has_body = operation["requestBody"]["content"].is_object();
            assert!(!has_body || route.method != Method::GET, "{id}: GET with a body");
        }
        for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
            assert!(schema.is_object(), "{name}");
            for required in schema["required"].as_array().into_iter().flatten() {
                let field = required.as_str().expect("a name");
                assert!(schema["properties"][field].is_object(), "{name}: {field} is required but not there");
            }
        }
    }
}
