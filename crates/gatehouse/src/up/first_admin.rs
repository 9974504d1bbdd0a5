//! The first admin's password lies in the data folder from before it is in force until it was shown: whatever ends the
//! first start (Ctrl-C, a closed terminal, a service that is never ready), the next one shows it.

use std::fs;
use std::io::ErrorKind;

use anyhow::Context as _;
use gatehouse_auth::app::{App, bootstrap};
use gatehouse_core::Secret;
use gatehouse_core::ids::TenantId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::data_folder::DataFolder;

const FILE: &str = "first-admin.json";

/// Who signs in first.
#[derive(Debug, Deserialize)]
pub(super) struct FirstAdmin {
    pub(super) email: String,
    pub(super) password: Secret<String>,
    tenant_id: TenantId,
}

impl FirstAdmin {
    /// With the password.
    pub(super) fn json(&self) -> Value {
        json!({"email": self.email, "password": self.password.expose(), "tenant_id": self.tenant_id})
    }
}

impl From<&bootstrap::FirstAdmin> for FirstAdmin {
    fn from(made: &bootstrap::FirstAdmin) -> Self {
        Self { email: made.email.clone(), password: made.password.clone(), tenant_id: made.tenant }
    }
}

/// Makes the first admin if there is none; the one who was not shown yet.
pub(super) async fn to_show(auth: &App, folder: &DataFolder) -> anyhow::Result<Option<FirstAdmin>> {
    let keep = |made: &bootstrap::FirstAdmin| {
        folder.write(FILE, &Secret::new(FirstAdmin::from(made).json().to_string()))
    };
    if let Some(made) = auth.bootstrap("admin@gatehouse.localhost", "First tenant", keep).await? {
        return Ok(Some(FirstAdmin::from(&made)));
    }
    let path = folder.path(FILE);
    match fs::read_to_string(&path).map(Secret::new) {
        Ok(text) => serde_json::from_str(text.expose()).map(Some).with_context(|| {
            format!("{} does not hold the first admin's password any more; delete it", path.display())
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("{} can't be read. Check who owns it.", path.display()))
        }
    }
}

/// The password was shown: it is kept no longer.
pub(super) fn shown(folder: &DataFolder) -> anyhow::Result<()> {
    let path = folder.path(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} holds a password and can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}
