//! Proofs that packets pass from stack to stack, and what they say where they do not.

use crate::world::{Nat, World, introduce};
use p2pvm_overlay::plane::{AnswerKind, ProofFailure};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_own_stack_is_proved_without_any_member() {
    let mut world = World::new(Duration::from_millis(2));
    let a = world.host(Nat::None);
    let nft = |rules: &str| {
        let done = a.exec(&format!("nft '{rules}'"));
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let input = |verdict: &str| {
        nft(&format!(
            "table inet t; delete table inet t; table inet t {{ chain i {{ type filter hook input \
                priority 0; {verdict} }}; }}"
        ));
    };
    let proof = a.plane.prove_host(LIMIT).await.expect("it answers");
    assert_eq!(proof.by, AnswerKind::Echo);
    assert!(proof.rtt < Duration::from_millis(300), "{proof:?}");
    // A host that ignores echo requests answers in other ways.
    input("icmp type echo-request drop;");
    let proof = a.plane.prove_host(LIMIT).await.expect("it answers");
    assert_ne!(proof.by, AnswerKind::Echo);
    input("iifname p2pvm0 drop;");
    assert_eq!(
        a.plane.prove_host(LIMIT).await,
        Err(ProofFailure::Silent {
            device: "p2pvm0".into()
        })
    );
    input("iifname p2pvm0 reject with icmpx admin-prohibited;");
    assert_eq!(
        a.plane.prove_host(LIMIT).await,
        Err(ProofFailure::Refused {
            device: "p2pvm0".into()
        })
    );
    nft("delete table inet t");
    assert!(a.plane.prove_host(LIMIT).await.is_ok());
    // Answers that leave elsewhere.
    let led = a.exec(
        "sh -c 'ip link add name other type veth peer name peer && ip link set other \
        up && ip link set peer up && ip route add 10.77.0.0/24 dev other'",
    );
    assert!(
        led.status.success(),
        "{}",
        String::from_utf8_lossy(&led.stderr)
    );
    let elsewhere = a.plane.prove_host(LIMIT).await;
    assert!(
        matches!(&elsewhere, Err(ProofFailure::Elsewhere { through, .. }) if through == "other"),
        "{elsewhere:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_stack_is_proved_by_more_than_a_live_link() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    for addr in [b.overlay().parse().expect("an address"), b.v6().into()] {
        let proof = a
            .plane
            .prove_member(b.member, addr, LIMIT)
            .await
            .expect("it answers");
        assert_eq!(proof.by, AnswerKind::Echo);
    }
    let shut = b.exec(
        "nft 'table inet t { chain i { type filter hook input priority 0; iifname \
        p2pvm0 drop; }; }'",
    );
    assert!(shut.status.success());
    let addr = b.overlay().parse().expect("an address");
    assert!(
        a.plane.ping(b.member, LIMIT).await.is_ok(),
        "the link lives"
    );
    assert_eq!(
        a.plane.prove_member(b.member, addr, LIMIT).await,
        Err(ProofFailure::MemberSilent { addr })
    );
    // One that ignores echo requests alone is reached by TCP.
    let some = b.exec("nft 'flush chain inet t i; add rule inet t i icmp type echo-request drop'");
    assert!(some.status.success());
    assert_eq!(
        a.plane
            .prove_member(b.member, addr, LIMIT)
            .await
            .map(|proof| proof.by),
        Ok(AnswerKind::Tcp)
    );
}
