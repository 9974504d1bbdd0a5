//! Grants, codes and tokens, and the rules of rotation.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::{Entropy, Timestamp};
use sha2::{Digest, Sha256};

use super::{Fault, Options, Rotation};

/// How long a code may wait (RFC 6749, section 4.1.2, advises 10 minutes at most).
const CODE_LIFETIME: std::time::Duration = std::time::Duration::from_mins(1);

/// What a provider did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Codes issued.
    pub authorizations: u64,
    /// Codes exchanged for tokens.
    pub code_exchanges: u64,
    /// Requests with `grant_type=refresh_token`, whatever became of them.
    pub refresh_attempts: u64,
    /// Those that were carried out, whether the answer arrived or not.
    pub refreshes: u64,
    /// Those refused because the token had been used before.
    pub reuse_refused: u64,
    /// Grants revoked, for any reason.
    pub grants_revoked: u64,
    /// Requests to the revocation endpoint.
    pub revocation_requests: u64,
    /// Requests to `/api/me` that were let in.
    pub api_calls: u64,
    /// Requests to `/api/me` that were refused.
    pub api_refusals: u64,
}

/// One answer of the token endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Number of the grant, from 1.
    pub grant: u64,
    /// The access token.
    pub access_token: String,
    /// The refresh token, where one was issued.
    pub refresh_token: Option<String>,
}

/// A refresh token that was shown to the token endpoint.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The token.
    pub token: String,
    /// Number of its grant, if it is one that was issued.
    pub grant: Option<u64>,
    /// The query of the request: whoever tells several clients apart gives each an endpoint with a query of its own.
    pub query: String,
    /// When.
    pub at: Instant,
    /// Whether it had been used before.
    pub was_used: bool,
    /// What went wrong with the request by order.
    pub fault: Option<Fault>,
    /// The refresh token that was issued for it; none if it was refused, or stays.
    pub successor: Option<String>,
    /// Whether it was accepted.
    pub accepted: bool,
    /// When the answer was ready to leave; none before, and where the client went away first.
    pub answered_at: Option<Instant>,
}

/// An error answer (RFC 6749, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) &'static str);

/// A well-formed authorization request that waits for the person.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) redirect_uri: String,
    pub(super) state: Option<String>,
    pub(super) scope: String,
    pub(super) challenge: String,
}

struct Code {
    asked: Asked,
    expires: Timestamp,
    /// The grant made of it; presenting the code again revokes that (RFC 6749, section 4.1.2).
    grant: Option<u64>,
}

struct Grant {
    scope: String,
    revoked: bool,
}

struct Refresh {
    grant: u64,
    parent: Option<String>,
    used_at: Option<Timestamp>,
    successor_used: bool,
}

struct Access {
    grant: u64,
    expires: Timestamp,
    revoked: bool,
}

pub(super) struct State {
    pub(super) options: Options,
    pub(super) base_url: String,
    pub(super) faults: VecDeque<Fault>,
    pub(super) standing_fault: Option<Fault>,
    pub(super) counters: Counters,
    pub(super) issued: Vec<Issued>,
    pub(super) presented: Vec<Presented>,
    entropy: Entropy,
    waiting: HashMap<String, Asked>,
    codes: HashMap<String, Code>,
    grants: HashMap<u64, Grant>,
    refresh_tokens: HashMap<String, Refresh>,
    access_tokens: HashMap<String, Access>,
}

impl State {
    pub(super) fn new(options: Options, base_url: String) -> Self {
        Self {
            entropy: Entropy::seeded(options.seed),
            options,
            base_url,
            faults: VecDeque::new(),
            standing_fault: None,
            counters: Counters::default(),
            issued: Vec::new(),
            presented: Vec::new(),
            waiting: HashMap::new(),
            codes: HashMap::new(),
            grants: HashMap::new(),
            refresh_tokens: HashMap::new(),
            access_tokens: HashMap::new(),
        }
    }

    pub(super) fn next_fault(&mut self) -> Option<Fault> {
        self.faults.pop_front().or_else(|| self.standing_fault.clone())
    }

    /// Keeps a request until the person has answered the page; returns its number for the form.
    pub(super) fn wait_for_person(&mut self, asked: Asked) -> String {
        let ticket = self.random("ask_");
        self.waiting.insert(ticket.clone(), asked);
        ticket
    }

    pub(super) fn answer_of_person(&mut self, ticket: &str) -> Option<Asked> {
        self.waiting.remove(ticket)
    }

    pub(super) fn issue_code(&mut self, asked: Asked) -> String {
        let code = self.random("code_");
        let expires = self.options.clock.now().plus(CODE_LIFETIME);
        self.codes.insert(code.clone(), Code { asked, expires, grant: None });
        self.counters.authorizations += 1;
        code
    }

    pub(super) fn is_client(&self, id: &str, secret: &str) -> bool {
        id == self.options.client_id && secret == self.options.client_secret
    }

    pub(super) fn exchange_code(
        &mut self,
        code: &str,
        redirect_uri: &str,
        verifier: &str,
    ) -> Result<Issued, Refusal> {
        let now = self.options.clock.now();
        let known = self.codes.get(code).ok_or(Refusal("invalid_grant"))?;
        if let Some(grant) = known.grant {
            self.revoke_grant(grant);
            return Err(Refusal("invalid_grant"));
        }
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        if now >= known.expires
            || known.asked.redirect_uri != redirect_uri
            || known.asked.challenge != challenge
        {
            return Err(Refusal("invalid_grant"));
        }
        let scope = known.asked.scope.clone();
        let grant = self.grants.len() as u64 + 1;
        self.grants.insert(grant, Grant { scope, revoked: false });
        if let Some(known) = self.codes.get_mut(code) {
            known.grant = Some(grant);
        }
        self.counters.code_exchanges += 1;
        let refresh_token = self.issue_refresh_token(grant, None);
        Ok(self.issue(grant, Some(refresh_token)))
    }

    pub(super) fn refresh(&mut self, token: &str) -> Result<Issued, Refusal> {
        let now = self.options.clock.now();
        let known = self.refresh_tokens.get(token).ok_or(Refusal("invalid_grant"))?;
        let (grant, parent) = (known.grant, known.parent.clone());
        if !self.would_accept(token) {
            let reused = known.used_at.is_some();
            if reused {
                self.counters.reuse_refused += 1;
            }
            if reused && self.options.rotation == Rotation::StrictFamily {
                self.revoke_grant(grant);
            }
            return Err(Refusal("invalid_grant"));
        }
        self.counters.refreshes += 1;
        if let Some(parent) = parent.and_then(|parent| self.refresh_tokens.get_mut(&parent)) {
            parent.successor_used = true;
        }
        if self.options.rotation == Rotation::NoRotate {
            return Ok(self.issue(grant, None));
        }
        if let Some(known) = self.refresh_tokens.get_mut(token) {
            // A leeway counts from the first use.
            known.used_at.get_or_insert(now);
        }
        let successor = self.issue_refresh_token(grant, Some(token.to_owned()));
        Ok(self.issue(grant, Some(successor)))
    }

    /// Notes that a refresh token was shown; its place among those.
    pub(super) fn note_presented(&mut self, token: &str, query: &str, fault: Option<Fault>) -> usize {
        let known = self.refresh_tokens.get(token);
        self.presented.push(Presented {
            token: token.to_owned(),
            grant: known.map(|known| known.grant),
            query: query.to_owned(),
            at: Instant::now(),
            was_used: known.is_some_and(|known| known.used_at.is_some()),
            fault,
            successor: None,
            accepted: false,
            answered_at: None,
        });
        self.presented.len() - 1
    }

    /// The grant that was made of a code.
    pub(super) fn grant_of_code(&self, code: &str) -> Option<u64> {
        self.codes.get(code)?.grant
    }

    pub(super) fn would_accept(&self, token: &str) -> bool {
        let Some(known) = self.refresh_tokens.get(token) else { return false };
        if self.grants.get(&known.grant).is_none_or(|grant| grant.revoked) {
            return false;
        }
        let Some(used_at) = known.used_at else { return true };
        match self.options.rotation {
            Rotation::NoRotate | Rotation::KeepOld => true,
            Rotation::Grace(leeway_ms) => {
                self.options.clock.now() < used_at.plus(std::time::Duration::from_millis(leeway_ms))
            }
            Rotation::UntilUsed => !known.successor_used,
            Rotation::Strict | Rotation::StrictFamily => false,
        }
    }

    /// RFC 7009: a refresh token takes its whole grant along, an access token only itself.
    pub(super) fn revoke(&mut self, token: &str) {
        self.counters.revocation_requests += 1;
        if let Some(known) = self.refresh_tokens.get(token) {
            let grant = known.grant;
            self.revoke_grant(grant);
        } else if let Some(known) = self.access_tokens.get_mut(token) {
            known.revoked = true;
        }
    }

    pub(super) fn revoke_all(&mut self) {
        let grants: Vec<u64> = self.grants.keys().copied().collect();
        for grant in grants {
            self.revoke_grant(grant);
        }
    }

    /// The scope of an access token that works now.
    pub(super) fn use_access_token(&mut self, token: &str) -> Option<String> {
        let now = self.options.clock.now();
        let scope = self
            .access_tokens
            .get(token)
            .filter(|known| !known.revoked && now < known.expires)
            .and_then(|known| self.grants.get(&known.grant))
            .filter(|grant| !grant.revoked)
            .map(|grant| grant.scope.clone());
        match scope {
            Some(_) => self.counters.api_calls += 1,
            None => self.counters.api_refusals += 1,
        }
        scope
    }

    pub(super) fn scope_of(&self, grant: u64) -> &str {
        self.grants.get(&grant).map_or("", |grant| &grant.scope)
    }

    fn revoke_grant(&mut self, grant: u64) {
        if let Some(grant) = self.grants.get_mut(&grant).filter(|grant| !grant.revoked) {
            grant.revoked = true;
            self.counters.grants_revoked += 1;
        }
    }

    fn issue_refresh_token(&mut self, grant: u64, parent: Option<String>) -> String {
        let token = self.random("rt_");
        self.refresh_tokens
            .insert(token.clone(), Refresh { grant, parent, used_at: None, successor_used: false });
        token
    }

    fn issue(&mut self, grant: u64, refresh_token: Option<String>) -> Issued {
        let access_token = self.random("at_");
        let expires = self.options.clock.now().plus(self.options.access_token_lifetime);
        self.access_tokens.insert(access_token.clone(), Access { grant, expires, revoked: false });
        let issued = Issued { grant, access_token, refresh_token };
        self.issued.push(issued.clone());
        issued
    }

    fn random(&self, prefix: &str) -> String {
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(self.entropy.bytes::<24>()))
    }
}
