//! The steps, one file each, in the order in which a newcomer meets them.

mod audit;
mod broker;
mod optimize;
pub(crate) mod sign_in;

use crate::api::Api;
use crate::narrator::Narrator;
use crate::tour::Tour;

/// Runs every step; the first that does not do what it says ends the run.
pub(crate) async fn run(tour: &Tour, narrator: &mut Narrator) -> anyhow::Result<()> {
    let mut api = Api::new(&tour.gateway, &tour.authorities)?;
    let account = sign_in::run(&mut api, tour, narrator).await?;
    let job = optimize::run(&api, narrator).await?;
    broker::run(&api, tour, narrator).await?;
    audit::run(&api, tour, &account, &job, narrator).await
}
