//! The end of a rotated API key's old text.
//!
//! What is exchanged for the old text during the overlap ends with it by itself. What was exchanged before the rotation,
//! and the streams that were opened by it, know of no overlap: a revocation ends them, whose date tells them from what was
//! exchanged for the new text. It is written when the overlap ends and not before, for it counts as soon as it is read.

use std::time::Duration;

use gatehouse_core::{Result, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::store::api_keys;
use crate::store::revocations::{self, Revoked};

/// How often it is looked for overlaps that end before the next look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl App {
    /// Ends overlaps when they are over, until the process stops. Each replica does; one finds each.
    pub(crate) async fn end_overlaps_in_time(self, stopping: CancellationToken) {
        loop {
            let next = self.end_overlaps().await.unwrap_or_else(|error| {
                tracing::warn!(?error, "old texts of rotated API keys can't be ended; trying again");
                None
            });
            let pause = next.map_or(LOOK_EVERY, |end| end.since(self.now()).min(LOOK_EVERY));
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pause.max(Duration::from_millis(10))) => {}
            }
        }
    }

    /// Ends the overlaps that are over; when the next one is.
    async fn end_overlaps(&self) -> Result<Option<Timestamp>> {
        let now = self.now();
        let next =
            read_tx!(self.0.db, "auth.api_key.next_end", |tx| { api_keys::next_end_of_overlap(tx).await })?;
        if next.is_none_or(|end| now < end) {
            return Ok(next);
        }
        run_tx!(self.0.db, "auth.api_key.end_overlaps", |tx| {
            let ended = api_keys::end_overlaps(tx, now).await?;
            let revoked: Vec<_> =
                ended.into_iter().map(|(key, not_before)| (Revoked::Credential(key), not_before)).collect();
            revocations::add_dated(tx, &revoked, now, self.0.config.longest_token()).await
        })?;
        self.revoked();
        Ok(None)
    }
}
