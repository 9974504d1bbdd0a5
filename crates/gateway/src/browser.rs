//! What browsers need to be told, and what they tell: CORS (Fetch standard), CSRF, security headers.

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::uri::{Authority, Uri};
use gatehouse_core::{Environment, Error, Result};
use url::Url;

use crate::client_address::ClientAddress;
use crate::config::Config;

const ALLOWED_HEADERS: &str =
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Key, X-Request-ID, Traceparent";
const EXPOSED_HEADERS: &str =
    "Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-ID";
const API_CSP: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const PERMISSIONS_POLICY: &str = "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), \
     interest-cohort=(), magnetometer=(), microphone=(), midi=(), payment=(), usb=()";

/// Which origins may do what.
#[derive(Clone, Debug)]
pub(crate) struct BrowserRules {
    allowed: Vec<String>,
    any: bool,
    csrf: bool,
    public_origin: Option<String>,
}

impl BrowserRules {
    pub(crate) fn new(config: &Config, environment: Environment) -> Self {
        let mut allowed = config.cors_allowed_origins.clone();
        if allowed.is_empty() && environment.is_dev() {
            allowed.push("http://localhost:3000".to_owned());
        }
        Self {
            any: allowed.iter().any(|origin| origin == "*"),
            allowed,
            csrf: config.csrf,
            public_origin: (!config.public_url.is_empty()).then(|| config.public_url.clone()),
        }
    }

    /// Whether pages of `origin` may read our answers.
    pub(crate) fn allows(&self, origin: &str) -> bool {
        self.any || self.allowed.iter().any(|allowed| allowed == origin)
    }

    /// Adds the CORS headers to an answer for a page of `origin`.
    pub(crate) fn add_cors_headers(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin.filter(|value| value.to_str().is_ok_and(|text| self.allows(text))) else {
            return;
        };
        // No Access-Control-Allow-Credentials: the API takes no cookies.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    }

    /// The headers that answer a preflight for a path that has `methods`.
    pub(crate) fn preflight_headers(methods: &str) -> [(HeaderName, String); 3] {
        [
            (header::ACCESS_CONTROL_ALLOW_METHODS, methods.to_owned()),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS.to_owned()),
            (header::ACCESS_CONTROL_MAX_AGE, "600".to_owned()),
        ]
    }

    /// Refuses a state-changing request that a page of a foreign origin made a browser send (requirement P9).
    ///
    /// # Errors
    /// `CROSS_SITE_REQUEST`.
    pub(crate) fn check_origin(
        &self,
        method: &Method,
        headers: &HeaderMap,
        client: ClientAddress,
    ) -> Result<()> {
        if !self.csrf || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(());
        }
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("null"));
        let from = match (text(header::ORIGIN), text(header::REFERER)) {
            (Some(origin), _) => Some(origin.to_owned()),
            (None, Some(referer)) => Some(
                Url::parse(referer)
                    .map_or_else(|_| "null".to_owned(), |url| url.origin().ascii_serialization()),
            ),
            // Neither: no browser of today sends a cross-site POST so, unless told to hide its referrer.
            (None, None) => None,
        };
        let allowed = match &from {
            Some(origin) => self.is_own(origin, headers, client) || self.allows(origin),
            None => {
                !headers.contains_key(header::COOKIE)
                    && headers
                        .get("sec-fetch-site")
                        .is_none_or(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Error::permission_denied(
            "CROSS_SITE_REQUEST",
            "A page of another origin may not do this. Ask the operator to list the origin in CORS_ALLOWED_ORIGINS.",
        ))
    }

    fn is_own(&self, origin: &str, headers: &HeaderMap, client: ClientAddress) -> bool {
        if let Some(own) = &self.public_origin {
            return own == origin;
        }
        // In dev only, and there the gateway listens on loopback. A page of another name that was made to lead here is
        // no page of ours (DNS rebinding).
        let scheme = if client.https { "https" } else { "http" };
        headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .is_some_and(|host| format!("{scheme}://{host}") == origin && is_loopback(origin))
    }
}

/// Whether the request calls us by a name that means its sender's own machine.
pub(crate) fn names_this_machine(uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(Authority::as_str));
    host.is_some_and(|host| is_loopback(&format!("https://{host}")))
}

fn is_loopback(origin: &str) -> bool {
    match Url::parse(origin).ok().as_ref().and_then(Url::host) {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name.ends_with(".localhost")
        }
        None => false,
    }
}

/// Adds what every answer carries (requirement C5). What the answer has set already stays. `keep_https` tells browsers to
/// come by HTTPS alone from now on (RFC 6797), to every port of this host: for a host that is the deployment's own.
pub(crate) fn add_security_headers(headers: &mut HeaderMap, keep_https: bool) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, API_CSP),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::PERMISSIONS_POLICY, PERMISSIONS_POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if keep_https {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000; includeSubDomains"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(headers: &[(&str, &str)], config: &Config) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        let client = ClientAddress { ip: [127, 0, 0, 1].into(), https: false };
        BrowserRules::new(config, Environment::Prod).check_origin(&Method::POST, &map, client).is_ok()
    }

    #[test]
    fn foreign_pages_change_nothing() {
        let config = Config {
            cors_allowed_origins: vec!["https://app.example".into()],
            public_url: "http://api.example".into(),
            ..Config::default()
        };
        let host = ("host", "api.example");
        for (headers, passes) in [
            (vec![host], true),
            (vec![host, ("origin", "http://api.example")], true),
            (vec![host, ("origin", "https://app.example")], true),
            (vec![host, ("origin", "https://evil.example")], false),
            (vec![host, ("origin", "null")], false),
            (vec![host, ("referer", "https://evil.example/api.example")], false),
            (vec![host, ("referer", "http://api.example/docs")], true),
            (vec![host, ("cookie", "a=b")], false),
            (vec![host, ("sec-fetch-site", "cross-site")], false),
            (vec![host, ("sec-fetch-site", "none")], true),
        ] {
            assert_eq!(verdict(&headers, &config), passes, "{headers:?}");
        }
        // Without an address of our own, in dev, a name that was made to lead here is not ours.
        let dev = Config::default();
        for (host, origin, passes) in [
            ("localhost:8080", "http://localhost:8080", true),
            ("127.0.0.1:8080", "http://127.0.0.1:8080", true),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("evil.example:8080", "http://evil.example:8080", false),
            ("localhost:8080", "http://localhost:9090", false),
        ] {
            assert_eq!(verdict(&[("host", host), ("origin", origin)], &dev), passes, "{origin}");
        }
        let off = Config { csrf: false, ..Config::default() };
        assert!(verdict(&[("origin", "https://evil.example")], &off));
    }
}
