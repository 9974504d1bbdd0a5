//! The steps, one file each, in the order in which a newcomer meets them.

mod audit;
mod broker;
mod optimize;
mod sign_in;

use crate::api::Api;
use crate::narrator::Narrator;
use crate::server::Server;

/// Runs every step; the first that does not do what it says ends the run.
pub(crate) async fn run(server: &Server, narrator: &mut Narrator) -> anyhow::Result<()> {
    let mut api = Api::new(&server.gateway)?;
    let account = sign_in::run(&mut api, narrator).await?;
    let job = optimize::run(&api, narrator).await?;
    broker::run(&api, server, narrator).await?;
    audit::run(&api, server, &account, &job, narrator).await
}
