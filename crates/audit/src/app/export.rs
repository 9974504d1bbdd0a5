//! Every leaf of a log, for verification elsewhere.

use gatehouse_core::{Error, Result};
use gatehouse_db::read_tx;
use gatehouse_proto::audit::v1::{ExportHeader, ExportLeavesResponse, ExportedLeaf};
use tokio::sync::mpsc;

use super::App;
use crate::domain::digest::Digest;
use crate::domain::tiles::tiles_of;
use crate::sequencer::damaged;
use crate::store::{events, heads, stored, tiles};

/// Entries in one message: well under the 4 MiB that gRPC clients take by default.
const PAGE: u32 = 500;

impl App {
    /// Sends the head and then the leaves from `from` (or from the first kept, if that is later) to the end that the
    /// head states. A receiver that went away ends it.
    pub(crate) async fn export(
        &self,
        name: &str,
        from: u64,
        out: mpsc::Sender<Result<ExportLeavesResponse>>,
    ) -> Result<()> {
        let log = self.log(name)?;
        let (head, tree) = read_tx!(self.db, "audit.export_head", |tx| {
            let head =
                heads::lookup(tx, &log.id).await?.ok_or_else(|| Error::internal("the log has no head"))?;
            let tree = tiles::load(tx, &log.id, &tiles_of([(0, head.first_seq)])).await?;
            Ok((head, tree))
        })?;
        let frontier = tree.frontier(head.first_seq).map_err(damaged)?;
        let header = ExportHeader {
            log: log.id.to_string(),
            size: stored(head.size),
            chain: head.chain.as_bytes().to_vec().into(),
            first_index: stored(head.first_seq),
            first_chain: head.first_chain.as_bytes().to_vec().into(),
            frontier: frontier.subtrees().iter().map(|hash| hash.as_bytes().to_vec().into()).collect(),
            pruned_note: head.pruned_note.unwrap_or_default(),
            verifier_key: log.signer.verifier().to_string(),
        };
        let message = ExportLeavesResponse { header: Some(header), leaves: Vec::new() };
        if out.send(Ok(message)).await.is_err() {
            return Ok(());
        }
        let mut next = from.max(head.first_seq);
        while next < head.size {
            let page =
                read_tx!(self.db, "audit.export", |tx| { events::list(tx, &log.id, next, PAGE).await })?;
            let leaves: Vec<ExportedLeaf> = page
                .iter()
                .take_while(|entry| entry.seq < head.size)
                .map(|entry| ExportedLeaf {
                    index: stored(entry.seq),
                    leaf: entry.leaf.clone().into(),
                    payload_digest: Digest::of_payload(&entry.payload).as_bytes().to_vec().into(),
                })
                .collect();
            let Some(last) = leaves.last() else { break };
            next = u64::try_from(last.index).unwrap_or(u64::MAX).saturating_add(1);
            if out.send(Ok(ExportLeavesResponse { header: None, leaves })).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}
