//! How this node is: what the parts of the daemon found wrong with the machine, and the word that follows from it.

use super::Daemon;
use crate::{
    api::types::{FindingView, HealthView, Status},
    cli::netcheck,
    web::view,
};

impl Daemon {
    /// What is found wrong with this machine now, by area.
    pub fn findings(&self) -> Vec<FindingView> {
        let all = self.parts.board.all().into_iter();
        all.map(|(area, finding)| FindingView { area: area.to_owned(), level: finding.level, found: finding.found, advice: finding.advice })
            .collect()
    }

    /// Asks all parts to put their own things in order, proves the ways anew and says what is settled by that.
    pub async fn mend(&self) -> Vec<FindingView> {
        let before = self.findings();
        self.parts.plane.rouse();
        self.parts.notices.touch();
        self.prove(0).await;
        let after = self.findings();
        before.into_iter().filter(|finding| !after.contains(finding)).collect()
    }

    /// The health by the rules of the status screen, as far as this node knows without asking others: of VMs those that are here.
    pub(super) fn health(&self, status: &Status) -> HealthView {
        view::health(!netcheck::local_addresses().is_empty(), status, &self.peers(), &self.vms_here(), &[])
    }
}
