//! One manager and its peer, message by message: what moves when answers are lost, late or
//! negative.

use p2pvm_autonomic::{
    Decision, Input, LoadReport, LoadVector, LocalLoad, Manager, Message, MigrationEnd, Millis,
    Offer, OfferRefusal, Output, Placement, VmLoad,
};
use p2pvm_overlay::{MemberId, VmId};

const ME: MemberId = MemberId([1; 32]);
const PEER: MemberId = MemberId([2; 32]);
const OTHER: MemberId = MemberId([3; 32]);
const VM: VmId = VmId([9; 32]);

fn local(cpu: f64, vms: &[VmId]) -> LocalLoad {
    let vms = vms
        .iter()
        .map(|vm| VmLoad {
            vm: *vm,
            cpu: 0.4,
            memory_mib: 512,
            movable: true,
            talks: Vec::new(),
        })
        .collect();
    LocalLoad {
        cpu,
        cpus: 4,
        memory_used_mib: 2048,
        memory_total_mib: 8192,
        vms,
        place: None,
    }
}

fn vector(member: MemberId, seq: u64, cpu: f32) -> LoadVector {
    LoadVector {
        member,
        seq,
        cpu,
        cpus: 4,
        memory_used_mib: 2048,
        memory_total_mib: 8192,
        vms: 0,
        place: None,
    }
}

fn outputs(manager: &mut Manager) -> Vec<Output> {
    std::iter::from_fn(|| manager.poll()).collect()
}

fn offers(outputs: &[Output]) -> Vec<(MemberId, Offer)> {
    let offer = |output: &Output| match output {
        Output::Send(to, Message::Offer(offer)) => Some((*to, offer.clone())),
        _ => None,
    };
    outputs.iter().filter_map(offer).collect()
}

fn migrations(outputs: &[Output]) -> Vec<(VmId, MemberId)> {
    let migration = |output: &Output| match output {
        Output::Migrate { vm, to, .. } => Some((*vm, *to)),
        _ => None,
    };
    outputs.iter().filter_map(migration).collect()
}

fn releases(outputs: &[Output]) -> usize {
    outputs
        .iter()
        .filter(|o| matches!(o, Output::Send(_, Message::Release { .. })))
        .count()
}

/// Measures and ticks each second from `from` up to and including `to` seconds.
fn run(manager: &mut Manager, from: u64, to: u64, cpu: f64, vms: &[VmId]) -> Vec<Output> {
    let mut all = Vec::new();
    for second in from..=to {
        manager.handle(Millis(second * 1000), Input::LocalLoad(local(cpu, vms)));
        manager.handle(Millis(second * 1000), Input::Tick);
        all.extend(outputs(manager));
    }
    all
}

fn tell(manager: &mut Manager, second: u64, from: MemberId, message: Message) -> Vec<Output> {
    manager.handle(Millis(second * 1000), Input::Received(from, message));
    outputs(manager)
}

/// An overloaded node with `peers` in its view, which has made an offer by second 5.
fn offering(peers: &[(MemberId, f32)]) -> (Manager, MemberId, Offer) {
    let mut manager = Manager::new(ME, Placement::default(), 1);
    let entries = peers
        .iter()
        .map(|(peer, cpu)| LoadReport {
            load: vector(*peer, 1, *cpu),
            age_ms: 0,
        })
        .collect();
    tell(&mut manager, 1, PEER, Message::ShuffleReply(entries));
    let made = offers(&run(&mut manager, 1, 5, 1.0, &[VM]));
    let [(to, offer)] = &made[..] else {
        panic!("one offer, not {made:?}")
    };
    (manager, *to, offer.clone())
}

fn accept(offer: &Offer) -> Message {
    Message::Accept {
        id: offer.id,
        predicted: 0.2,
    }
}

#[test]
fn nothing_moves_before_the_peer_has_agreed_and_then_once() {
    let (mut manager, to, offer) = offering(&[(PEER, 0.1)]);
    assert_eq!((to, offer.vm), (PEER, VM));
    assert_eq!(
        migrations(&tell(&mut manager, 6, OTHER, accept(&offer))),
        [],
        "an answer of another member does not count"
    );
    assert_eq!(
        migrations(&tell(&mut manager, 6, PEER, accept(&offer))),
        [(VM, PEER)]
    );
    assert_eq!(
        migrations(&tell(&mut manager, 6, PEER, accept(&offer))),
        [],
        "a doubled answer starts nothing"
    );
    assert_eq!(
        offers(&run(&mut manager, 7, 60, 1.0, &[VM])),
        [],
        "one at a time"
    );
}

#[test]
fn a_late_agreement_is_released() {
    let (mut manager, _, offer) = offering(&[(PEER, 0.1)]);
    let silent = run(&mut manager, 6, 12, 1.0, &[VM]);
    assert_eq!((releases(&silent), migrations(&silent)), (1, vec![]));
    let late = tell(&mut manager, 13, PEER, accept(&offer));
    assert_eq!((releases(&late), migrations(&late)), (1, vec![]));
    assert!(
        manager
            .explain(VM)
            .iter()
            .any(|e| e.decision == Decision::Unanswered)
    );
}

#[test]
fn after_a_refusal_the_next_best_peer_is_asked() {
    let (mut manager, first, offer) = offering(&[(PEER, 0.1), (OTHER, 0.3)]);
    assert_eq!(first, PEER);
    let refusal = Message::Reject {
        id: offer.id,
        why: OfferRefusal::Busy,
        load: vector(PEER, 2, 0.9),
    };
    let next = offers(&tell(&mut manager, 6, PEER, refusal));
    assert!(matches!(&next[..], [(OTHER, again)] if again.vm == VM && again.id != offer.id));
    assert!(
        manager
            .explain(VM)
            .iter()
            .any(|e| e.decision == Decision::Refused(OfferRefusal::Busy))
    );
}

#[test]
fn a_vm_that_became_unmovable_meanwhile_stays() {
    let (mut manager, _, offer) = offering(&[(PEER, 0.1)]);
    manager.handle(Millis(6000), Input::LocalLoad(local(1.0, &[])));
    let answer = tell(&mut manager, 6, PEER, accept(&offer));
    assert_eq!((releases(&answer), migrations(&answer)), (1, vec![]));
}

/// Whether it failed or was cancelled.
#[test]
fn an_unsuccessful_migration_frees_the_target_and_the_vm_rests() {
    for (end, decision) in [
        (MigrationEnd::Failed, Decision::Failed),
        (MigrationEnd::Cancelled, Decision::Cancelled),
    ] {
        let (mut manager, _, offer) = offering(&[(PEER, 0.1)]);
        tell(&mut manager, 6, PEER, accept(&offer));
        manager.handle(Millis(8000), Input::MigrationDone { vm: VM, end });
        assert_eq!(releases(&outputs(&mut manager)), 1);
        assert_eq!(
            manager.explain(VM).last().map(|e| e.decision),
            Some(decision)
        );
        let fresh = |seq| {
            Message::ShuffleReply(vec![LoadReport {
                load: vector(PEER, seq, 0.1),
                age_ms: 0,
            }])
        };
        let rested = Placement::default().vm_cooldown_ms / 1000;
        tell(&mut manager, 9, PEER, fresh(2));
        assert_eq!(
            offers(&run(&mut manager, 9, 8 + rested - 1, 1.0, &[VM])),
            []
        );
        tell(&mut manager, 8 + rested, PEER, fresh(3));
        assert_eq!(
            offers(&run(&mut manager, 8 + rested, 14 + rested, 1.0, &[VM])).len(),
            1
        );
    }
}

fn target(cpu: f64) -> Manager {
    let mut manager = Manager::new(ME, Placement::default(), 1);
    run(&mut manager, 0, 5, cpu, &[]);
    manager
}

fn offer(id: u64, vm: u8, cpu: f32, memory_mib: u64) -> Message {
    Message::Offer(Offer {
        id,
        vm: VmId([vm; 32]),
        cpu,
        memory_mib,
        source_cpu: 1.0,
    })
}

fn answer(outputs: &[Output]) -> Option<Result<u64, OfferRefusal>> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, Message::Accept { id, .. }) => Some(Ok(*id)),
        Output::Send(_, Message::Reject { why, .. }) => Some(Err(*why)),
        _ => None,
    })
}

#[test]
fn a_peer_agrees_by_its_own_load_memory_and_promises() {
    assert_eq!(
        answer(&tell(&mut target(0.1), 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Ok(1))
    );
    assert_eq!(
        answer(&tell(&mut target(0.6), 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Err(OfferRefusal::Busy))
    );
    assert_eq!(
        answer(&tell(&mut target(0.1), 6, PEER, offer(1, 1, 1.0, 6000))),
        Some(Err(OfferRefusal::Memory))
    );
    let cool = Message::Offer(Offer {
        id: 1,
        vm: VM,
        cpu: 1.0,
        memory_mib: 512,
        source_cpu: 0.4,
    });
    assert_eq!(
        answer(&tell(&mut target(0.1), 6, PEER, cool)),
        Some(Err(OfferRefusal::LittleGain))
    );
    let mut unmeasured = Manager::new(ME, Placement::default(), 1);
    assert_eq!(
        answer(&tell(&mut unmeasured, 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Err(OfferRefusal::Unavailable))
    );
    let mut drained = target(0.1);
    drained.handle(Millis(6000), Input::Draining(true));
    assert_eq!(
        answer(&tell(&mut drained, 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Err(OfferRefusal::Unavailable))
    );
}

#[test]
fn a_node_that_offers_nothing_is_not_gossiped_about() {
    let mut manager = target(0.1);
    let mut hears = |offering| {
        manager.handle(Millis(6000), Input::Offering(offering));
        let outputs = tell(&mut manager, 6, PEER, Message::Shuffle(vec![]));
        outputs.iter().any(|output| {
            let Output::Send(PEER, Message::ShuffleReply(entries)) = output else {
                return false;
            };
            entries.iter().any(|entry| entry.load.member == ME)
        })
    };
    assert!(hears(true) && !hears(false) && hears(true));
}

#[test]
fn a_promise_counts_until_it_is_withdrawn_or_expires() {
    let mut manager = target(0.1);
    assert_eq!(
        answer(&tell(&mut manager, 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Ok(1))
    );
    assert_eq!(
        answer(&tell(&mut manager, 6, PEER, offer(1, 1, 1.0, 512))),
        Some(Ok(1)),
        "an offer heard twice is one promise"
    );
    assert_eq!(
        answer(&tell(&mut manager, 6, OTHER, offer(2, 2, 1.6, 512))),
        Some(Err(OfferRefusal::Busy)),
        "0.1 + 1/4 + 1.6/4 > 0.65"
    );
    assert_eq!(
        answer(&tell(&mut manager, 6, OTHER, offer(3, 3, 0.4, 512))),
        Some(Ok(3))
    );
    assert_eq!(
        answer(&tell(&mut manager, 6, OTHER, offer(4, 4, 0.1, 512))),
        Some(Err(OfferRefusal::Occupied))
    );
    assert_eq!(manager.load_vector().memory_used_mib, 2048 + 1024);
    tell(&mut manager, 7, OTHER, Message::Release { id: 1 });
    assert_eq!(
        manager.status(Millis(7000)).expected.len(),
        2,
        "only the source that was promised may withdraw"
    );
    tell(&mut manager, 7, PEER, Message::Release { id: 1 });
    assert_eq!(manager.status(Millis(7000)).expected.len(), 1);
    run(
        &mut manager,
        8,
        8 + Placement::default().reservation_ms / 1000,
        0.1,
        &[],
    );
    assert_eq!(manager.status(Millis(0)).expected.len(), 0);
}

#[test]
fn a_disabled_or_drained_node_moves_nothing_by_itself() {
    for (enabled, draining) in [(false, false), (true, true)] {
        let mut manager = Manager::new(
            ME,
            Placement {
                enabled,
                ..Placement::default()
            },
            1,
        );
        manager.handle(Millis(0), Input::Draining(draining));
        tell(
            &mut manager,
            1,
            PEER,
            Message::ShuffleReply(vec![LoadReport {
                load: vector(PEER, 1, 0.1),
                age_ms: 0,
            }]),
        );
        assert_eq!(offers(&run(&mut manager, 1, 20, 1.0, &[VM])), []);
        assert_eq!(
            manager.places_for(VM).first().map(|p| p.member),
            Some(PEER),
            "a drain still gets its candidates"
        );
    }
}

#[test]
fn status_and_reasons_are_json() {
    let (mut manager, to, offer) = offering(&[(PEER, 0.1)]);
    let moved = tell(&mut manager, 6, to, accept(&offer));
    let reason = moved
        .iter()
        .find_map(|o| {
            if let Output::Migrate { reason, .. } = o {
                Some(reason)
            } else {
                None
            }
        })
        .unwrap();
    let json = serde_json::to_value(reason).unwrap();
    assert_eq!(
        (json["decision"].as_str(), json["peer"].as_str()),
        (Some("migrating"), Some(PEER.to_string().as_str()))
    );
    assert!(reason.to_string().contains("which agreed"), "{reason}");
    let status = serde_json::to_value(manager.status(Millis(6000))).unwrap();
    assert_eq!(status["giving"][0], VM.to_string());
}
