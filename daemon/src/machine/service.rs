//! This machine for the control API: the findings about it, and repairing it.

use super::proof::Proofs;
use crate::parts::Parts;
use p2pvm_api::FindingView;
use p2pvm_host::Level;
use std::sync::Arc;

/// This machine.
pub(crate) struct Machine {
    parts: Arc<Parts>,
    proofs: Arc<Proofs>,
}

impl Machine {
    pub(crate) fn new(parts: Arc<Parts>, proofs: Arc<Proofs>) -> Arc<Self> {
        Arc::new(Self { parts, proofs })
    }

    /// The present findings about this machine, by area.
    pub fn findings(&self) -> Vec<FindingView> {
        let all = self.parts.board.all().into_iter();
        all.map(|(area, finding)| FindingView {
            area: area.to_owned(),
            level: finding.level,
            found: finding.found,
            advice: finding.advice,
        })
        .collect()
    }

    /// The findings, after all ways were proved again.
    pub async fn examine(&self) -> Vec<FindingView> {
        self.proofs.prove().await;
        self.findings()
    }

    /// Makes all parts repair their own settings, proves the ways again, and returns the findings
    /// that are settled.
    pub async fn mend(&self) -> Vec<FindingView> {
        let before = self.findings();
        let put_back = self.parts.plane.mend().await.into_iter();
        self.parts.plane.rouse();
        self.parts.notices.touch();
        self.proofs.prove().await;
        let after = self.findings();
        let put_back = put_back.map(|found| FindingView {
            area: "interface".to_owned(),
            level: Level::Failed,
            found,
            advice: String::new(),
        });
        put_back
            .chain(
                before
                    .into_iter()
                    .filter(|finding| !after.contains(finding)),
            )
            .collect()
    }
}
