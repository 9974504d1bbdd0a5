use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::Timestamp;
use reqwest::{Client, StatusCode, redirect};
use serde_json::Value;
use sha2::{Digest, Sha256};
use url::Url;

use super::*;

const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters-x";
const CALLBACK: &str = "http://127.0.0.1:1/callback";

struct Browser {
    provider: OAuthProvider,
    http: Client,
}

impl Browser {
    async fn new(options: Options) -> Self {
        // Fails only where another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Self { provider: OAuthProvider::start(options).await.unwrap(), http }
    }

    async fn with(rotation: Rotation) -> Self {
        Self::new(Options { rotation, ..Options::default() }).await
    }

    fn authorize_url(&self) -> Url {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let mut url = Url::parse(&self.provider.authorization_endpoint()).unwrap();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", "gatehouse")
            .append_pair("redirect_uri", CALLBACK)
            .append_pair("scope", "read:me offline_access")
            .append_pair("state", "a state & more")
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        url
    }

    async fn location(&self, url: Url) -> Url {
        let answer = self.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FOUND);
        Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap()
    }

    async fn token(&self, form: &[(&str, &str)]) -> reqwest::Result<(u16, Value)> {
        let answer = self
            .http
            .post(self.provider.token_endpoint())
            .basic_auth("gatehouse", Some("only-a-test"))
            .form(form)
            .send()
            .await?;
        let status = answer.status().as_u16();
        let body = answer.text().await?;
        Ok((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
    }

    async fn exchange(&self, code: &str, verifier: &str) -> (u16, Value) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", verifier),
        ];
        self.token(&form).await.unwrap()
    }

    async fn refresh(&self, token: &str) -> reqwest::Result<(u16, Value)> {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    /// A refresh that is granted; the new refresh token, if any.
    async fn refreshed(&self, token: &str) -> Option<String> {
        assert!(self.provider.would_accept_refresh_token(token));
        let (status, body) = self.refresh(token).await.unwrap();
        assert_eq!(status, 200, "{body}");
        body["refresh_token"].as_str().map(str::to_owned)
    }

    async fn refused(&self, token: &str) {
        assert!(!self.provider.would_accept_refresh_token(token));
        let (status, body) = self.refresh(token).await.unwrap();
        assert_eq!((status, body["error"].as_str()), (400, Some("invalid_grant")));
    }

    async fn connect(&self) -> (String, String) {
        let code = query(&self.location(self.authorize_url()).await, "code").unwrap();
        let (status, body) = self.exchange(&code, VERIFIER).await;
        assert_eq!(status, 200, "{body}");
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        (text("access_token"), text("refresh_token"))
    }

    async fn api(&self, access_token: &str) -> u16 {
        let url = self.provider.api_url();
        self.http.get(url).bearer_auth(access_token).send().await.unwrap().status().as_u16()
    }
}

fn query(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[tokio::test]
async fn a_code_buys_tokens_once_and_with_its_verifier_only() {
    let browser = Browser::with(Rotation::Strict).await;
    let back = browser.location(browser.authorize_url()).await;
    assert_eq!(query(&back, "state").unwrap(), "a state & more");
    assert_eq!(query(&back, "iss").unwrap(), browser.provider.base_url());
    let code = query(&back, "code").unwrap();
    assert_eq!(browser.exchange(&code, "another verifier").await.0, 400);
    let (status, body) = browser.exchange(&code, VERIFIER).await;
    assert_eq!(status, 200);
    let access_token = body["access_token"].as_str().unwrap();
    assert_eq!(browser.api(access_token).await, 200);
    assert_eq!(browser.api("at_forged").await, 401);
    // A code shown twice was stolen: what it bought is revoked.
    assert_eq!(browser.exchange(&code, VERIFIER).await.0, 400);
    assert_eq!(browser.api(access_token).await, 401);
}

#[tokio::test]
async fn wrong_requests_are_refused_where_the_rfc_says() {
    let browser = Browser::with(Rotation::Strict).await;
    let without = |name: &str, value: &str| {
        let mut url = browser.authorize_url();
        let pairs: Vec<_> = url.query_pairs().into_owned().collect();
        url.query_pairs_mut().clear().extend_pairs(
            pairs.iter().map(|(key, old)| (key.as_str(), if key == name { value } else { old.as_str() })),
        );
        url
    };
    for (name, value) in [("client_id", "x"), ("redirect_uri", "https://evil.example/")] {
        let answer = browser.http.get(without(name, value)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{name}");
    }
    let back = browser.location(without("code_challenge_method", "plain")).await;
    assert_eq!(query(&back, "error").unwrap(), "invalid_request");
    let wrong_secret = browser
        .http
        .post(browser.provider.token_endpoint())
        .basic_auth("gatehouse", Some("wrong"))
        .form(&[("grant_type", "refresh_token"), ("refresh_token", "x")])
        .send()
        .await
        .unwrap();
    assert_eq!(wrong_secret.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_person_can_be_asked() {
    let browser = Browser::new(Options { consent: Consent::Page, ..Options::default() }).await;
    for (decision, answer) in [("allow", "code"), ("deny", "error")] {
        let page = browser.http.get(browser.authorize_url()).send().await.unwrap().text().await.unwrap();
        let ticket = page.split("value=\"").nth(1).unwrap().split('"').next().unwrap();
        let answered = browser
            .http
            .post(format!("{}/authorize/decision", browser.provider.base_url()))
            .form(&[("ticket", ticket), ("decision", decision)])
            .send()
            .await
            .unwrap();
        let back = Url::parse(answered.headers()["location"].to_str().unwrap()).unwrap();
        assert!(query(&back, answer).is_some(), "{back}");
    }
}

#[tokio::test]
async fn norotate_keeps_the_one_token() {
    let browser = Browser::with(Rotation::NoRotate).await;
    let (_, token) = browser.connect().await;
    assert_eq!(browser.refreshed(&token).await, None);
    assert_eq!(browser.refreshed(&token).await, None);
}

#[tokio::test]
async fn keepold_lets_every_generation_work() {
    let browser = Browser::with(Rotation::KeepOld).await;
    let (_, first) = browser.connect().await;
    let second = browser.refreshed(&first).await.unwrap();
    browser.refreshed(&second).await.unwrap();
    browser.refreshed(&first).await.unwrap();
}

#[tokio::test]
async fn grace_lets_the_old_token_work_for_its_time() {
    let clock = Clock::settable(Timestamp::from_seconds(1_700_000_000));
    let options = Options { rotation: Rotation::Grace(600_000), clock: clock.clone(), ..Options::default() };
    let browser = Browser::new(options).await;
    let (access_token, first) = browser.connect().await;
    let second = browser.refreshed(&first).await.unwrap();
    clock.advance(Duration::from_millis(599_999));
    browser.refreshed(&first).await.unwrap();
    clock.advance(Duration::from_millis(1));
    browser.refused(&first).await;
    browser.refreshed(&second).await.unwrap();
    assert_eq!(browser.api(&access_token).await, 401, "an access token lives for 5 minutes");
}

#[tokio::test]
async fn until_used_lets_the_old_token_work_until_its_successor_is_used() {
    let browser = Browser::with(Rotation::UntilUsed).await;
    let (_, first) = browser.connect().await;
    let lost = browser.refreshed(&first).await.unwrap();
    let second = browser.refreshed(&first).await.unwrap();
    assert_ne!(lost, second);
    browser.refreshed(&second).await.unwrap();
    browser.refused(&first).await;
}

#[tokio::test]
async fn strict_refuses_the_old_token_and_keeps_the_new_one() {
    let browser = Browser::with(Rotation::Strict).await;
    let (_, first) = browser.connect().await;
    let second = browser.refreshed(&first).await.unwrap();
    browser.refused(&first).await;
    browser.refreshed(&second).await.unwrap();
    assert_eq!(browser.provider.counters().reuse_refused, 1);
    assert_eq!(browser.provider.counters().refreshes, 2);
}

#[tokio::test]
async fn strict_family_revokes_everything_on_reuse() {
    let browser = Browser::with(Rotation::StrictFamily).await;
    let (access_token, first) = browser.connect().await;
    let second = browser.refreshed(&first).await.unwrap();
    browser.refused(&first).await;
    browser.refused(&second).await;
    assert_eq!(browser.api(&access_token).await, 401);
    assert_eq!(browser.provider.counters().grants_revoked, 1);
}

#[tokio::test]
async fn revoking_a_refresh_token_ends_its_grant() {
    let browser = Browser::with(Rotation::Strict).await;
    let (access_token, token) = browser.connect().await;
    let revoke = |token: String| {
        browser
            .http
            .post(browser.provider.revocation_endpoint())
            .form(&[("token", token.as_str()), ("client_id", "gatehouse"), ("client_secret", "only-a-test")])
            .send()
    };
    assert_eq!(revoke("unknown".into()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(browser.api(&access_token).await, 200);
    assert_eq!(revoke(token.clone()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(browser.api(&access_token).await, 401);
    browser.refused(&token).await;
}

#[tokio::test]
async fn a_dropped_answer_has_rotated_all_the_same() {
    let browser = Browser::with(Rotation::Strict).await;
    let (_, token) = browser.connect().await;
    browser.provider.inject(Fault::DropAnswer);
    assert!(browser.refresh(&token).await.is_err());
    browser.refused(&token).await;
    let lost = browser.provider.issued().last().unwrap().refresh_token.clone().unwrap();
    browser.refreshed(&lost).await.unwrap();
}

#[tokio::test]
async fn every_other_fault_does_what_it_says() {
    let browser = Browser::with(Rotation::KeepOld).await;
    let (_, token) = browser.connect().await;
    let cases = [
        (Fault::ServerError, 500, false),
        (Fault::ServerErrorAfter, 500, true),
        (Fault::InvalidGrant, 400, false),
        (Fault::TooManyRequests, 429, false),
        (Fault::Garbage, 200, true),
        (Fault::Oversized(3_000_000), 200, true),
        (Fault::Delay(Duration::from_millis(50)), 200, true),
    ];
    for (fault, expected, carried_out) in cases {
        let before = browser.provider.counters().refreshes;
        browser.provider.inject(fault.clone());
        let (status, body) = browser.refresh(&token).await.unwrap();
        assert_eq!(status, expected, "{fault:?}");
        assert_eq!(browser.provider.counters().refreshes > before, carried_out, "{fault:?}");
        assert_eq!(body.is_object(), !matches!(status, 500 | 429) && fault != Fault::Garbage, "{fault:?}");
        // Used up.
        assert_eq!(browser.refresh(&token).await.unwrap().0, 200);
    }
    browser.provider.inject_always(Some(Fault::ServerError));
    assert_eq!(browser.refresh(&token).await.unwrap().0, 500);
    assert_eq!(browser.refresh(&token).await.unwrap().0, 500);
    browser.provider.inject_always(None);
    browser.provider.revoke_all();
    browser.refused(&token).await;
}

#[tokio::test]
async fn one_seed_gives_one_sequence_of_tokens() {
    let (one, two) = (Browser::with(Rotation::Strict).await, Browser::with(Rotation::Strict).await);
    assert_eq!(one.connect().await, two.connect().await);
}
