//! Whether a member that keeps a replica still has it. An honest member may have lost chunks since:
//! its disk was replaced, or its whole state was lost.

use super::{Exchange, wire::MAX_IDS};
use crate::{Error, ManifestId, error::blocking};
use p2pvm_overlay::MemberId;
use std::time::Duration;

/// How long before the next part of one question is sent. Reason: a snapshot of 100 GB has more
/// than a million chunks, whose names in one burst would fill an uplink.
const PACE: Duration = Duration::from_secs(1);

impl Exchange {
    /// How many of the chunks that `manifest` names `member` says that it lacks. Nodes of the
    /// manifest that are not here are fetched from `providers`: a host that a VM has moved to need
    /// not have its snapshots.
    ///
    /// # Errors
    /// `Peer` if the member does not answer; `NoProvider` if no other has the nodes.
    pub async fn lacking(
        &self,
        manifest: ManifestId,
        member: MemberId,
        providers: &[MemberId],
    ) -> Result<usize, Error> {
        let nodes = self.fetch_nodes(manifest, providers).await?;
        let store = self.store().clone();
        let ids = blocking("listing the chunks of a replica", move || {
            let mut ids = Vec::new();
            store.walk(manifest, |chunk| {
                ids.push(chunk);
                true
            })?;
            Ok(ids)
        })
        .await?;
        drop(nodes);
        let mut lacking = 0;
        for (part, ids) in ids.chunks(MAX_IDS).enumerate() {
            if part > 0 {
                tokio::time::sleep(PACE).await;
            }
            let has = self.has(member, ids).await?;
            lacking += has.iter().filter(|has| !**has).count();
        }
        Ok(lacking)
    }
}
