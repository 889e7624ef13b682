//! What a node believes of the addresses that members tell it.

use super::*;
use crate::wiring::alone::Alone;
use p2pvm_overlay::identity::KeyPair;

/// How a VM is called whose address is told of.
const NAME: &str = "web";

fn member(n: u8) -> MemberId {
    MemberId(KeyPair::from_seed(&[n; 32]).public())
}

/// A member that is alone and knows from the DHT that a VM is with member 1 in epoch 1.
async fn with_vm() -> (Alone, KeyPair, IpAddr) {
    let (alone, vm) = (Alone::start().await, KeyPair::from_seed(&[9; 32]));
    let addresses = alone.reach.addresses();
    let lease = addresses.claim_vm(&vm, member(1), Epoch(1), NAME).await;
    let ip = IpAddr::V4(lease.unwrap().v4);
    alone.reach.resolve(ip).await;
    assert_eq!(route(&alone, ip), Some((member(1), 1)));
    (alone, vm, ip)
}

fn route(alone: &Alone, ip: IpAddr) -> Option<(MemberId, u64)> {
    let routes = alone.reach.plane().routes();
    let found = routes.into_iter().find(|(addr, _)| *addr == ip);
    found.map(|(_, route)| (route.member, route.epoch.0))
}

/// Member `n` tells that an address is with it.
async fn tell(alone: &Alone, n: u8, keys: &KeyPair, ip: IpAddr, epoch: u64) {
    let records = alone
        .reach
        .addresses()
        .records_of(keys, &[ip], member(n), Epoch(epoch), NAME);
    let message = postcard::to_allocvec(&ReachMessage::Here(records)).unwrap();
    let answers = Answers(alone.reach.clone());
    answers.serve(member(n), message).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_a_new_key_takes_no_address() {
    let (alone, vm, ip) = with_vm().await;
    let stranger = KeyPair::from_seed(&[7; 32]);
    for epoch in [1, 2, u64::from(u32::MAX), u64::MAX] {
        tell(&alone, 2, &stranger, ip, epoch).await;
        assert_eq!(route(&alone, ip), Some((member(1), 1)), "epoch {epoch}");
    }
    let owner = alone.reach.parts.book.owner(&ip);
    assert_eq!(owner, Some(p2pvm_dhcp::Subject::Vm(vm.vm_id())));
    // Nor an address that this node knows nothing of.
    let free = "10.83.77.77".parse().unwrap();
    tell(&alone, 2, &stranger, free, 1).await;
    assert_eq!(route(&alone, free), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_moved_is_believed_with_one_message() {
    let (alone, vm, ip) = with_vm().await;
    tell(&alone, 2, &vm, ip, 2).await;
    assert_eq!(route(&alone, ip), Some((member(2), 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_far_ahead_is_not_believed() {
    let (alone, vm, ip) = with_vm().await;
    for epoch in [100, u64::from(u32::MAX), u64::MAX] {
        tell(&alone, 2, &vm, ip, epoch).await;
        assert_eq!(route(&alone, ip), Some((member(1), 1)), "epoch {epoch}");
    }
    // Nor in many small steps.
    for epoch in 2..100 {
        tell(&alone, 2, &vm, ip, epoch).await;
    }
    let (_, reached) = route(&alone, ip).unwrap();
    assert!(reached < 20, "epoch {reached}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_new_here_is_asked_for_and_then_followed() {
    let (alone, vm) = (Alone::start().await, KeyPair::from_seed(&[9; 32]));
    let addresses = alone.reach.addresses();
    let lease = addresses.claim_vm(&vm, member(1), Epoch(1), NAME).await;
    let ip = IpAddr::V4(lease.unwrap().v4);
    // It has moved since, and its new host tells it before the DHT has heard of it.
    tell(&alone, 2, &vm, ip, 2).await;
    assert_eq!(route(&alone, ip), None);
    assert_eq!(alone.reach.asks().take_new(), [ip]);
    alone.reach.ask(ip).await;
    assert_eq!(route(&alone, ip), Some((member(2), 2)));
}
