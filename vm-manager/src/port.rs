//! The network as a VM's life needs it: an address of the VM's own, a port on this host, and
//! packets that find the VM after a move. The node implements it over DHCP-in-the-DHT and the
//! packet plane.

use crate::{Definition, Error, GuestAddress, hypervisor::MachineSpec};
use async_trait::async_trait;
use p2pvm_overlay::{Epoch, MemberId, VmId, identity::KeyPair};

/// The network's side of a VM's life. Each method may be called again with the same arguments.
#[async_trait]
pub trait Port: Send + Sync + 'static {
    /// Claims an address and the DNS name for a new VM.
    async fn claim(&self, keys: &KeyPair, name: &str, epoch: Epoch) -> Result<GuestAddress, Error>;

    /// Keeps the claim of a VM held here alive; called about every twenty minutes, whether the VM
    /// runs or not.
    async fn renew(&self, keys: &KeyPair, vm: &Definition, epoch: Epoch) -> Result<(), Error>;

    /// The VM has the name in its definition now, and no longer `old`, which is given back.
    async fn renamed(
        &self,
        keys: &KeyPair,
        vm: &Definition,
        epoch: Epoch,
        old: &str,
    ) -> Result<(), Error>;

    /// Gives address and name back: the VM was deleted.
    async fn release(&self, keys: &KeyPair, vm: &Definition) -> Result<(), Error>;

    /// Checks the addresses in the definition of a VM that another member brings here: whether they
    /// are the VM's by the network's records, and follow from its key.
    ///
    /// # Errors
    /// [`Error::Refused`] with whose they are, [`Error::Agreement`] if that cannot be found out.
    async fn owns(&self, vm: &Definition) -> Result<(), Error>;

    /// Joins the guest's TAP, which exists, to the overlay. Undoes an earlier [`Port::forward`] of
    /// its address here.
    async fn attach(
        &self,
        spec: &MachineSpec,
        address: &GuestAddress,
        epoch: Epoch,
    ) -> Result<(), Error>;

    /// Takes the guest's port away. Forwarding stays.
    async fn detach(&self, vm: VmId) -> Result<(), Error>;

    /// Lets nothing in or out of the port (a fenced VM), or lets it again.
    async fn frozen(&self, vm: VmId, frozen: bool) -> Result<(), Error>;

    /// Source, before RAM is sent: the guest is about to leave for `to`, which may prepare links to
    /// the guest's peers.
    async fn leaving(&self, _vm: VmId, _to: MemberId) {}

    /// Source: the guest stands still for the hand-over, and packets for it wait until
    /// [`Port::forward`]; or it stays, and gets those that waited.
    async fn held(&self, _vm: VmId, _held: bool) {}

    /// Source, at switch-over: packets that still arrive here for the guest go on to `to`, and
    /// their senders are told.
    async fn forward(
        &self,
        address: &GuestAddress,
        to: MemberId,
        epoch: Epoch,
    ) -> Result<(), Error>;

    /// Source, when the VM stays after all: packets for the guest are for this host again.
    async fn recall(&self, address: &GuestAddress, epoch: Epoch) -> Result<(), Error>;

    /// New holder, right after the guest runs (or got a new epoch): tells the DHT and the peers
    /// where it is now. Should return soon: the guest already waits for packets; slow parts go to a
    /// task.
    async fn announce(
        &self,
        keys: &KeyPair,
        vm: &Definition,
        holder: MemberId,
        epoch: Epoch,
    ) -> Result<(), Error>;
}
