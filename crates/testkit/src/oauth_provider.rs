//! A small OAuth 2.0 authorization server that can be made to misbehave.
//!
//! It speaks the authorization code grant with PKCE (RFC 6749, RFC 7636), refresh tokens that rotate in each of the
//! ways that real providers do ([`Rotation`]), token revocation (RFC 7009), server metadata (RFC 8414) and a
//! protected resource, `GET /api/me`. Tests make it fail as networks and providers do ([`Fault`]), count what it
//! did ([`Counters`]) and see every token that it issued ([`OAuthProvider::issued`]).
//!
//! Tokens are settled by [`Options::seed`] and time by [`Options::clock`], so that a run can be replayed. It
//! listens on loopback unless told otherwise, and knows one client and one person: it protects nothing.

mod http;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use gatehouse_core::Clock;

use state::State;
pub use state::{Counters, Issued, Presented};

/// What happens to a refresh token when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It stays, and no other is issued.
    NoRotate,
    /// Another is issued; both work.
    KeepOld,
    /// Another is issued; the old one works for so many milliseconds more (Atlassian: 10 minutes).
    Grace(u64),
    /// Another is issued; the old one works until a successor of it is used.
    UntilUsed,
    /// Another is issued; the old one is refused from then on.
    Strict,
    /// Another is issued; presenting the old one again revokes the whole grant (RFC 9700, section 4.14.2).
    StrictFamily,
}

/// What the authorization endpoint does with a well-formed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Agrees in the person's name.
    Auto,
    /// Shows a page with two buttons.
    Page,
    /// Refuses in the person's name: `access_denied`.
    Deny,
}

/// What goes wrong with one request to the token endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is carried out, and the connection breaks before the answer.
    DropAnswer,
    /// The request is carried out at once, and answered after so long.
    Delay(Duration),
    /// Nothing is done; status 500.
    ServerError,
    /// The request is carried out; status 500.
    ServerErrorAfter,
    /// The request is carried out; status 200, and a body that is no JSON.
    Garbage,
    /// The request is carried out; status 200, and so many bytes before the JSON ends.
    Oversized(usize),
    /// Nothing is done; `invalid_grant`.
    InvalidGrant,
    /// Nothing is done; status 429 with `Retry-After: 1`.
    TooManyRequests,
}

/// How a provider behaves from the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// What happens to refresh tokens.
    pub rotation: Rotation,
    /// What the authorization endpoint does.
    pub consent: Consent,
    /// How long an access token works.
    pub access_token_lifetime: Duration,
    /// The one client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Its redirect URIs, compared as text (RFC 9700, section 2.1); none: any on loopback.
    pub redirect_uris: Vec<String>,
    /// The one person.
    pub subject: String,
    /// Settles every token.
    pub seed: u64,
    /// Settles every expiry.
    pub clock: Clock,
}

impl Default for Options {
    /// Strict rotation, automatic consent, access tokens of 5 minutes, seed 1, the system's clock.
    fn default() -> Self {
        Self {
            rotation: Rotation::Strict,
            consent: Consent::Auto,
            access_token_lifetime: Duration::from_mins(5),
            client_id: "gatehouse".into(),
            client_secret: "only-a-test".into(),
            redirect_uris: Vec::new(),
            subject: "person@example.org".into(),
            seed: 1,
            clock: Clock::system(),
        }
    }
}

/// A running provider. Dropping it stops it.
pub struct OAuthProvider {
    base_url: String,
    shared: Shared,
    server: ServerHandle,
}

/// What the endpoints and the test share.
#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OAuthProvider {
    /// Starts a provider on a free loopback port. Needs a tokio runtime, and lives no longer than it.
    ///
    /// # Errors
    /// No port could be bound.
    #[expect(clippy::unused_async, reason = "a caller without a runtime then finds out when compiling")]
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let base_url = format!("http://{}", listener.local_addr()?);
        Self::serve(options, listener, &base_url, None)
    }

    /// Starts a provider on `listener`, over HTTPS if there is `tls`, that is known as `base_url` (no slash at its
    /// end). Needs a tokio runtime, and lives no longer than it.
    ///
    /// # Errors
    /// The listener can't be used.
    pub fn serve(
        options: Options,
        listener: std::net::TcpListener,
        base_url: &str,
        tls: Option<rustls::ServerConfig>,
    ) -> io::Result<Self> {
        let base_url = base_url.to_owned();
        let shared = Shared(Arc::new(Mutex::new(State::new(options, base_url.clone()))));
        let app_state = shared.clone();
        let server = HttpServer::new(move || {
            App::new().app_data(web::Data::new(app_state.clone())).configure(http::routes)
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(0);
        let server = match tls {
            Some(tls) => server.listen_rustls_0_23(listener, tls)?,
            None => server.listen(listener)?,
        };
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Ok(Self { base_url, shared, server: handle })
    }

    /// The issuer, and the base of every endpoint; no slash at its end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Where the person's browser is sent.
    #[must_use]
    pub fn authorization_endpoint(&self) -> String {
        format!("{}/authorize", self.base_url)
    }

    /// Where codes and refresh tokens are exchanged.
    #[must_use]
    pub fn token_endpoint(&self) -> String {
        format!("{}/token", self.base_url)
    }

    /// Where tokens are revoked.
    #[must_use]
    pub fn revocation_endpoint(&self) -> String {
        format!("{}/revoke", self.base_url)
    }

    /// The protected resource.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("{}/api/me", self.base_url)
    }

    /// Lets the next request to the token endpoint that has no fault yet go wrong. Faults are used up in turn.
    pub fn inject(&self, fault: Fault) {
        self.shared.lock().faults.push_back(fault);
    }

    /// Lets every request to the token endpoint go wrong (`None`: no longer). Injected faults come first.
    pub fn inject_always(&self, fault: Option<Fault>) {
        self.shared.lock().standing_fault = fault;
    }

    /// Forgets the faults that were ordered and have not come yet.
    pub fn forget_faults(&self) {
        let mut state = self.shared.lock();
        state.faults.clear();
        state.standing_fault = None;
    }

    /// Changes what happens to refresh tokens from now on.
    pub fn set_rotation(&self, rotation: Rotation) {
        self.shared.lock().options.rotation = rotation;
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// Everything that it issued, oldest first, whether the answer arrived or not.
    #[must_use]
    pub fn issued(&self) -> Vec<Issued> {
        self.shared.lock().issued.clone()
    }

    /// Every refresh token that was shown to the token endpoint, oldest first.
    #[must_use]
    pub fn presented(&self) -> Vec<Presented> {
        self.shared.lock().presented.clone()
    }

    /// Number of the grant that was made of a code, if it was exchanged.
    #[must_use]
    pub fn grant_of_code(&self, code: &str) -> Option<u64> {
        self.shared.lock().grant_of_code(code)
    }

    /// Whether a refresh with this token would be granted now. Changes nothing.
    #[must_use]
    pub fn would_accept_refresh_token(&self, token: &str) -> bool {
        self.shared.lock().would_accept(token)
    }

    /// Revokes every grant, as a person does in the provider's own settings.
    pub fn revoke_all(&self) {
        self.shared.lock().revoke_all();
    }
}

impl Drop for OAuthProvider {
    fn drop(&mut self) {
        // The stop is sent by the call; awaiting it would only wait for its end.
        drop(self.server.stop(false));
    }
}

#[cfg(test)]
mod tests;
