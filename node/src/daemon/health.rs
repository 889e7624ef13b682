//! How this node is: what the parts of the daemon found wrong with the machine, and the word that follows from it.

use super::Daemon;
use crate::{
    api::types::{FindingView, HealthView, Status},
    cli::netcheck,
    web::view,
};
use p2pvm_host::Level;

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
        let put_back = self.parts.plane.mend().await.into_iter();
        self.parts.plane.rouse();
        self.parts.notices.touch();
        self.prove(0).await;
        let after = self.findings();
        let put_back =
            put_back.map(|found| FindingView { area: "interface".to_owned(), level: Level::Failed, found, advice: String::new() });
        put_back.chain(before.into_iter().filter(|finding| !after.contains(finding))).collect()
    }

    /// The health by the rules of the status screen, as far as this node knows without asking others: of VMs those that are here,
    /// and those of dead hosts whose records it holds.
    pub(super) fn health(&self, status: &Status) -> HealthView {
        let vms = [self.vms_here(), self.absent_here()].concat();
        view::health(!netcheck::local_addresses().is_empty(), status, &self.peers(), &vms, &[])
    }
}
