//! The offer as the control API shows it.

use super::service::Offers;
use p2pvm_api::{OfferLimits, OfferShare, OfferTenant, OfferView};
use p2pvm_vm_manager::offer::Share;

impl Offers {
    /// What is promised, what is used and by whom, and why nothing is accepted at the moment.
    pub(crate) fn show(&self) -> OfferView {
        let tenants = self.host.tenants();
        let used = tenants.iter().map(|tenant| tenant.share);
        let used = used.fold(Share::default(), Share::plus);
        let state = self.state();
        let offer = state.kept.now();
        let limits = offer.limits();
        let mut view = OfferView {
            all_cpus: (offer.all_cpus > 0).then_some(offer.all_cpus.into()),
            all_memory_mib: self.host.memory_limit_mib(),
            bits_per_second: offer.bandwidth.limit(),
            changed: state.kept.is_changed(),
            closed: state.closed.as_ref().map(ToString::to_string),
            evacuating: state.evacuating,
            host: self.parts.certificate.name().to_owned(),
            hours: offer.hours.clone(),
            idle_after_s: offer.idle.after_s,
            idle_only: offer.idle_only,
            images: Vec::new(),
            limits: OfferLimits {
                cpus: limits.cpus,
                disk_mib: limits.disk_bytes.map(|bytes| bytes >> 20),
                memory_mib: limits.memory_mib,
                vms: limits.vms,
            },
            off: offer.off,
            run: offer.run.clone(),
            tenants: Vec::new(),
            used: share(used),
        };
        let dirs = offer.image_dirs();
        view.images = dirs.iter().map(|dir| dir.display().to_string()).collect();
        drop(state);
        view.tenants = tenants
            .into_iter()
            .map(|tenant| OfferTenant {
                member: self.parts.name_of(tenant.owner),
                share: share(tenant.share),
            })
            .collect();
        view
    }
}

fn share(of: Share) -> OfferShare {
    OfferShare {
        cpus: of.cpus,
        disk_mib: of.disk_bytes.div_ceil(1 << 20),
        memory_mib: of.memory_mib,
        vms: of.vms,
    }
}
