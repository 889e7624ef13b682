//! Guests' ports on this host: the network's side of a VM's life. A guest's questions about the
//! network (ARP, ND, DHCP, DNS) are answered here; its packets never pass this module, the packet
//! plane carries them.

use super::questions::Questions;
use crate::{addresses::reach::Reach, parts::Parts};
use async_trait::async_trait;
use p2pvm_dhcp::{
    DnsQuestion, NameKind, PortConfig, Resolver, Responder, Subject, responder::GATEWAY_MAC,
};
use p2pvm_host::chain;
use p2pvm_host::lock;
use p2pvm_overlay::{
    Epoch, MemberId, VmId,
    identity::KeyPair,
    membership::{policy::AddressOwner, vm_mac},
    plane::{Directory, GuestPort, Leaving, Route},
};
use p2pvm_vm_manager::{Definition, Error, GuestAddress, hypervisor::MachineSpec, port::Port};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant},
};

/// How often due advertisements are looked for. Reason: unasked ones are minutes apart.
const TICK: Duration = Duration::from_secs(2);

/// The guests' ports.
pub struct Ports {
    parts: Arc<Parts>,
    reach: Arc<Reach>,
    resolver: Arc<Resolver>,
    guests: Mutex<HashMap<VmId, Guest>>,
    limits: OnceLock<Limits>,
}

/// How much a guest may send, and how much receive, bits a second.
type Limits = Box<dyn Fn(VmId) -> Option<u64> + Send + Sync>;

/// What answers one guest.
struct Guest {
    responder: Responder,
    questions: Questions,
}

fn failed(step: &'static str) -> impl FnOnce(p2pvm_overlay::plane::Error) -> Error {
    move |error| Error::Agreement {
        step,
        source: error.into(),
    }
}

fn agreed(step: &'static str) -> impl FnOnce(p2pvm_dhcp::Error) -> Error {
    move |error| match error {
        p2pvm_dhcp::Error::NameTaken { name, .. } => {
            Error::Refused(format!("the name '{name}' is taken: choose another"))
        }
        other => Error::Agreement {
            step,
            source: other.into(),
        },
    }
}

fn both(address: &GuestAddress) -> [IpAddr; 2] {
    [IpAddr::V4(address.v4), IpAddr::V6(address.v6)]
}

impl Ports {
    /// Ports of this node.
    pub fn new(parts: Arc<Parts>, reach: Arc<Reach>, resolver: Resolver) -> Arc<Self> {
        Arc::new(Self {
            parts,
            reach,
            resolver: Arc::new(resolver),
            guests: Mutex::default(),
            limits: OnceLock::new(),
        })
    }

    /// Bounds each guest that comes from now on.
    pub(crate) fn limit_by(&self, limits: Limits) {
        // Only the first counts: the wiring calls it once.
        let _ = self.limits.set(limits);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Guest>> {
        lock(&self.guests)
    }

    /// Takes a frame that the packet plane leaves to the daemon.
    pub fn frame(self: &Arc<Self>, vm: VmId, frame: &[u8]) {
        let now = Instant::now();
        let answers = {
            let mut guests = self.lock();
            let Some(Guest {
                responder,
                questions,
            }) = guests.get_mut(&vm)
            else {
                return;
            };
            if let Some(question) = responder.dns_question(frame) {
                let ports = self.clone();
                questions.begin(now, async move { ports.name(vm, question).await });
            }
            responder.handle(now, frame)
        };
        for answer in answers {
            self.parts.plane.send_to_guest(vm, answer);
        }
    }

    async fn name(&self, vm: VmId, question: DnsQuestion) {
        let answer = self
            .resolver
            .answer(&question.query, self.parts.names.as_ref())
            .await;
        let frame = self
            .lock()
            .get(&vm)
            .filter(|_| !answer.is_empty())
            .map(|guest| guest.responder.dns_answer(&question, &answer));
        if let Some(frame) = frame {
            self.parts.plane.send_to_guest(vm, frame);
        }
    }

    /// Sends what is due unasked, until the daemon ends.
    pub async fn tick(&self) {
        let mut every = tokio::time::interval(TICK);
        loop {
            every.tick().await;
            let now = Instant::now();
            let due: Vec<_> = self
                .lock()
                .iter_mut()
                .map(|(vm, guest)| (*vm, guest.responder.tick(now)))
                .collect();
            for (vm, frames) in due {
                for frame in frames {
                    self.parts.plane.send_to_guest(vm, frame);
                }
            }
        }
    }

    fn forward_both(&self, address: &GuestAddress, to: Option<Route>) {
        for ip in both(address) {
            self.parts.plane.set_forward(ip, to);
        }
    }
}

#[async_trait]
impl Port for Ports {
    async fn claim(&self, keys: &KeyPair, name: &str, epoch: Epoch) -> Result<GuestAddress, Error> {
        let lease = self
            .parts
            .addresses
            .claim_vm(keys, self.parts.me(), epoch, name)
            .await
            .map_err(agreed("claiming an address for the VM"))?;
        let vm = keys.vm_id();
        Ok(GuestAddress {
            v4: lease.v4,
            prefix: lease.prefix,
            v6: self.parts.network.vm_v6(vm),
            mac: vm_mac(vm),
            mtu: crate::parts::MTU,
        })
    }

    async fn renew(&self, keys: &KeyPair, vm: &Definition, epoch: Epoch) -> Result<(), Error> {
        let moved = self
            .parts
            .addresses
            .claim_vm(keys, self.parts.me(), epoch, &vm.name)
            .await;
        moved
            .map(|_| ())
            .map_err(agreed("renewing the VM's address"))
    }

    async fn renamed(
        &self,
        keys: &KeyPair,
        vm: &Definition,
        epoch: Epoch,
        old: &str,
    ) -> Result<(), Error> {
        self.renew(keys, vm, epoch).await?;
        self.parts
            .addresses
            .release_name(keys, NameKind::Vm, old)
            .await
            .map_err(agreed("giving the VM's old name back"))
    }

    async fn owns(&self, vm: &Definition) -> Result<(), Error> {
        let (parts, address, id) = (&self.parts, &vm.address, vm.vm);
        let refused = |why: String| {
            let name = &vm.name;
            Error::Refused(format!("'{name}' cannot come to this host: {why}"))
        };
        let derived = (parts.network.vm_v6(id), vm_mac(id));
        if (address.v6, address.mac) != derived {
            return Err(refused(
                "its IPv6 or Ethernet address is not its own".into(),
            ));
        }
        let (v4, prefix) = (IpAddr::V4(address.v4), parts.addresses.subnet().prefix);
        if address.prefix != prefix {
            return Err(refused(format!("its subnet is not of {prefix} bits")));
        }
        let is_its_own = |owner| matches!(owner, AddressOwner::Vm { id: known, .. } if known == id);
        match parts.addresses.resolve(v4).await {
            Ok(Some(holder)) if holder.subject() == Subject::Vm(id) => Ok(()),
            Ok(Some(holder)) => Err(refused(format!("its address {v4} is {}'s", holder.name))),
            Ok(None) => Err(refused(format!(
                "nobody has its address {v4} by the records"
            ))),
            // Members that answer nothing now have said before whose it is.
            Err(_) if is_its_own(parts.book.owner_of(&v4)) => Ok(()),
            Err(e) => Err(agreed("asking whose the VM's address is")(e)),
        }
    }

    async fn release(&self, keys: &KeyPair, vm: &Definition) -> Result<(), Error> {
        for ip in both(&vm.address) {
            self.reach.forget(ip);
        }
        let lease =
            self.parts
                .addresses
                .lease_of(keys, vm.address.v4, self.parts.me(), Epoch(0), &vm.name);
        self.parts
            .addresses
            .release(keys, &lease)
            .await
            .map_err(agreed("giving the VM's address back"))
    }

    async fn attach(
        &self,
        spec: &MachineSpec,
        address: &GuestAddress,
        epoch: Epoch,
    ) -> Result<(), Error> {
        let parts = &self.parts;
        let subnet = parts.addresses.subnet();
        let config = PortConfig::new(
            address.mac,
            address.v4,
            subnet,
            &spec.name,
            &parts.domain(),
            address.mtu,
        )
        .with_v6(parts.network.vm_prefix());
        let guest = Guest {
            responder: Responder::new(config),
            questions: Questions::new(Instant::now()),
        };
        self.lock().insert(spec.vm, guest);
        self.forward_both(address, None);
        for ip in both(address) {
            parts.book.note(ip, Subject::Vm(spec.vm));
        }
        let port = GuestPort {
            vm: spec.vm,
            ifname: spec.tap.clone(),
            mac: address.mac,
            gateway_mac: GATEWAY_MAC,
            gateway: subnet.gateway(),
            v4: address.v4,
            v6: vec![address.v6],
            epoch,
            bits_per_second: self.limits.get().and_then(|limit| limit(spec.vm)),
        };
        parts
            .plane
            .attach_port(port)
            .map_err(failed("attaching the guest's port"))
    }

    async fn detach(&self, vm: VmId) -> Result<(), Error> {
        self.parts.plane.detach_port(vm);
        self.lock().remove(&vm);
        Ok(())
    }

    async fn frozen(&self, vm: VmId, frozen: bool) -> Result<(), Error> {
        self.parts.plane.freeze_port(vm, frozen);
        Ok(())
    }

    async fn leaving(&self, vm: VmId, to: MemberId) {
        self.parts.plane.hold_port(vm, Leaving::Soon);
        self.reach.prepare_links(to);
    }

    async fn held(&self, vm: VmId, held: bool) {
        self.parts.plane.hold_port(
            vm,
            if held {
                Leaving::StandsStill
            } else {
                Leaving::Not
            },
        );
    }

    async fn forward(
        &self,
        address: &GuestAddress,
        to: MemberId,
        epoch: Epoch,
    ) -> Result<(), Error> {
        let there = Route { member: to, epoch };
        for ip in both(address) {
            self.reach.forget_here(ip);
            self.reach.note_moved(ip, there);
        }
        self.forward_both(address, Some(there));
        Ok(())
    }

    async fn recall(&self, address: &GuestAddress, epoch: Epoch) -> Result<(), Error> {
        self.forward_both(address, None);
        let here = Route {
            member: self.parts.me(),
            epoch,
        };
        for ip in both(address) {
            self.reach.note_moved(ip, here);
            self.parts.plane.set_route(ip, here);
        }
        Ok(())
    }

    async fn announce(
        &self,
        keys: &KeyPair,
        vm: &Definition,
        holder: MemberId,
        epoch: Epoch,
    ) -> Result<(), Error> {
        let route = Route {
            member: holder,
            epoch,
        };
        for ip in both(&vm.address) {
            self.reach.note(ip, Subject::Vm(vm.vm), route);
            self.parts.plane.set_route(ip, route);
        }
        let records =
            self.parts
                .addresses
                .records_of(keys, &both(&vm.address), holder, epoch, &vm.name);
        self.reach.tell_here(records);
        let (parts, keys, v4, name) = (
            self.parts.clone(),
            KeyPair::from_seed(&keys.seed()),
            vm.address.v4,
            vm.name.clone(),
        );
        tokio::spawn(async move {
            if let Err(error) = parts
                .addresses
                .move_vm(&keys, v4, holder, epoch, &name)
                .await
            {
                tracing::warn!(error = %chain(&error), vm = %name, "the DHT does not know yet \
                    where the VM is; it is told again with the next renewal");
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::plane::Error as PlaneError;
    use std::io;

    #[test]
    fn what_the_kernel_says_of_a_guests_port_reaches_the_user() {
        let cause = io::Error::from_raw_os_error(16);
        let error = failed("attaching the guest's port")(PlaneError::Port {
            ifname: "pv1".into(),
            cause,
        });
        let said = "attaching the guest's port: cannot open the guest port pv1: Device or \
            resource busy (os error 16)";
        assert_eq!(crate::failure::vm(error).message, said);
    }
}
