//! A tenant, its first admin, a session, and a refresh.

use anyhow::{Context as _, ensure};
use gatehouse_core::{Clock, Entropy};
use serde_json::{Value, json};

use crate::api::{Api, text};
use crate::narrator::Narrator;
use crate::tour::{Tour, Visitor};

/// Who signed in.
pub(crate) struct Account {
    pub(crate) person_id: String,
}

pub(crate) async fn run(api: &mut Api, tour: &Tour, narrator: &mut Narrator) -> anyhow::Result<Account> {
    let (credentials, registered) = match &tour.visitor {
        Visitor::New => {
            narrator.step("Create a tenant and its first admin, and sign in");
            register(api, narrator).await?
        }
        Visitor::Known { email, password } => {
            narrator.step("Sign in as the first admin");
            (json!({"email": email, "password": password}), None)
        }
    };
    let wrong = json!({"email": credentials["email"], "password": "not the password at all"});
    let (status, problem) = api.post_status("/v1/auth/sign-in", &wrong).await?;
    ensure!(status.as_u16() == 401, "a wrong password was answered {status}");
    narrator.say(&format!("a wrong password is refused: {}", text(&problem, "/title")?));

    let session = api.post("/v1/auth/sign-in", &credentials).await?;
    let refresh = text(&session, "/refresh_token")?;
    let renewed = api.post("/v1/auth/refresh", &json!({"refresh_token": refresh})).await?;
    ensure!(text(&renewed, "/refresh_token")? != refresh, "the refresh token did not rotate");
    narrator.say("the refresh token rotated");
    api.sign_in(text(&renewed, "/access_token")?);

    let me = api.get("/v1/auth/me").await?;
    let person_id = text(&me, "/subject")?.to_owned();
    ensure!(registered.is_none_or(|registered| registered == person_id), "signed in as somebody else");
    let role = me["roles"].get(0).and_then(|role| role.as_str()).context("no role")?.to_owned();
    narrator.done(&format!("signed in as {role}"));
    Ok(Account { person_id })
}

/// Credentials of somebody new, and what they register with to have a tenant of their own.
pub(crate) fn newcomer() -> (Value, Value) {
    // New names at each run: a second run finds the first one's data.
    let run = gatehouse_core::ids::new_uuid(&Clock::system(), &Entropy::system()).simple().to_string();
    let credentials =
        json!({"email": format!("ada.{run}@example.com"), "password": format!("correct horse {run}")});
    let mut registration = credentials.clone();
    registration["tenant_name"] = json!(format!("Analytical Engines {run}"));
    registration["display_name"] = json!("Ada");
    (credentials, registration)
}

/// Somebody new, with a tenant of their own: their credentials and who they are.
async fn register(api: &Api, narrator: &Narrator) -> anyhow::Result<(Value, Option<String>)> {
    let (credentials, registration) = newcomer();
    let registered = api.post("/v1/auth/register", &registration).await?;
    let person_id = text(&registered, "/person_id")?.to_owned();
    narrator.say(&format!("tenant {}, admin {person_id}", text(&registered, "/tenant_id")?));
    Ok((credentials, Some(person_id)))
}
