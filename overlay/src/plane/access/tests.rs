//! What comes in under which policy.

use super::*;
use crate::{MemberId, VmId, membership::Groups};
use etherparse::PacketBuilder;
use std::net::Ipv4Addr;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));

/// A is a member of the group "ops", B a VM named "db".
struct Book;

impl Directory for Book {
    fn owner_of(&self, addr: &IpAddr) -> AddressOwner {
        match *addr {
            A => AddressOwner::Member {
                id: MemberId([1; 32]),
                name: "a".into(),
                groups: Groups::new(["ops"]).unwrap(),
            },
            B => AddressOwner::Vm {
                id: VmId([2; 32]),
                name: Some("db".into()),
            },
            _ => AddressOwner::Unknown,
        }
    }
}

fn access(policy: &str) -> Access {
    let access = Access::default();
    set(&access, policy);
    access
}

fn set(access: &Access, policy: &str) {
    access.set(Some((
        Arc::new(NetworkPolicy::parse(policy).unwrap()),
        Arc::new(Book),
    )));
}

#[test]
fn nothing_comes_in_before_the_rules_are_known() {
    let (now, ping) = (Instant::now(), echo(A, B, 1, false));
    let access = Access::default();
    access.close();
    assert!(!access.admits(&ping, &A, &B, now));
    assert_eq!(access.denied(), 1);
    access.set(None);
    assert!(access.admits(&ping, &A, &B, now));
    access.close();
    set(&access, OPS_TO_DB);
    assert!(access.admits(&ping, &A, &B, now) && !access.admits(&ping, &B, &A, now));
}

const OPS_TO_DB: &str = "default = 'deny'\n[[rule]]\naction = 'allow'\nfrom = 'ops'\nto = \
    'vm:db'\nports = ['tcp/22', 'udp/53', 'icmp']";

fn octets(addr: IpAddr) -> [u8; 4] {
    let IpAddr::V4(v4) = addr else {
        panic!("an IPv4 test")
    };
    v4.octets()
}

fn built(
    src: IpAddr,
    dst: IpAddr,
    build: impl FnOnce(etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8>,
) -> Vec<u8> {
    build(PacketBuilder::ipv4(octets(src), octets(dst), 9))
}

fn tcp(src: IpAddr, dst: IpAddr, ports: (u16, u16), syn: bool, ack: bool) -> Vec<u8> {
    built(src, dst, |ip| {
        let (mut packet, mut step) = (Vec::new(), ip.tcp(ports.0, ports.1, 1, 9));
        if syn {
            step = step.syn();
        }
        if ack {
            step = step.ack(1);
        }
        step.write(&mut packet, b"").unwrap();
        packet
    })
}

fn udp(src: IpAddr, dst: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    built(src, dst, |ip| {
        let mut packet = Vec::new();
        ip.udp(ports.0, ports.1).write(&mut packet, b"x").unwrap();
        packet
    })
}

fn echo(src: IpAddr, dst: IpAddr, id: u16, reply: bool) -> Vec<u8> {
    built(src, dst, |ip| {
        let mut packet = Vec::new();
        let step = if reply {
            ip.icmpv4_echo_reply(id, 1)
        } else {
            ip.icmpv4_echo_request(id, 1)
        };
        step.write(&mut packet, b"x").unwrap();
        packet
    })
}

/// "Fragmentation needed", about `packet`.
fn too_big(src: IpAddr, dst: IpAddr, packet: &[u8]) -> Vec<u8> {
    built(src, dst, |ip| {
        let mut error = Vec::new();
        ip.icmpv4_raw(3, 4, [0; 4])
            .write(&mut error, &packet[..packet.len().min(28)])
            .unwrap();
        error
    })
}

#[test]
fn without_a_policy_everything_comes_in_and_with_one_what_it_allows() {
    let (access, now) = (Access::default(), Instant::now());
    assert!(access.admits(&tcp(A, B, (9, 23), true, false), &A, &B, now));
    set(&access, OPS_TO_DB);
    assert!(!access.admits(&tcp(A, B, (9, 23), true, false), &A, &B, now));
    assert!(access.admits(&tcp(A, B, (9, 22), true, false), &A, &B, now));
    assert!(
        !access.admits(&tcp(B, A, (9, 22), true, false), &B, &A, now),
        "the other way is another matter"
    );
    assert!(
        !access.admits(b"\x45", &A, &B, now),
        "what cannot be read is not let in"
    );
    assert_eq!(access.denied(), 3);
    access.set(None);
    assert!(access.admits(&tcp(A, B, (9, 23), true, false), &A, &B, now));
}

#[test]
fn an_allowed_tcp_connection_is_answered_though_nobody_saw_it_begin() {
    let (access, now) = (access(OPS_TO_DB), Instant::now());
    assert!(
        access.admits(&tcp(B, A, (22, 4000), true, true), &B, &A, now),
        "the answer to a SYN"
    );
    assert!(access.admits(&tcp(B, A, (22, 4000), false, true), &B, &A, now));
    assert!(
        !access.admits(&tcp(B, A, (22, 4000), true, false), &B, &A, now),
        "but it opens none from the same port"
    );
    assert!(
        !access.admits(&tcp(B, A, (23, 4000), false, true), &B, &A, now),
        "nor speaks from another"
    );
}

#[test]
fn udp_and_echo_answers_come_in_only_shortly_after_a_request() {
    let (access, now) = (access(OPS_TO_DB), Instant::now());
    let later = |s| now + Duration::from_secs(s);
    assert!(!access.admits(&udp(B, A, (53, 4000)), &B, &A, now));
    access.sent(&udp(A, B, (4000, 53)), &A, &B, now);
    assert!(access.admits(&udp(B, A, (53, 4000)), &B, &A, later(3)));
    assert!(!access.admits(&udp(B, A, (53, 4001)), &B, &A, later(3)));
    assert!(!access.admits(&udp(B, A, (53, 4000)), &B, &A, later(310)));
    assert!(!access.admits(&echo(B, A, 7, true), &B, &A, now));
    access.sent(&echo(A, B, 7, false), &A, &B, later(3));
    assert!(access.admits(&echo(B, A, 7, true), &B, &A, later(4)));
    assert!(!access.admits(&echo(B, A, 8, true), &B, &A, later(4)));
    assert!(
        !access.admits(&echo(B, A, 7, false), &B, &A, later(4)),
        "a request is no answer"
    );
}

#[test]
fn an_icmp_error_about_an_allowed_conversation_comes_in() {
    let (access, now) = (access(OPS_TO_DB), Instant::now());
    let router = IpAddr::from([10, 9, 0, 9]);
    let error = |about: &[u8]| too_big(router, A, about);
    assert!(access.admits(
        &error(&tcp(A, B, (4000, 22), false, true)),
        &router,
        &A,
        now
    ));
    assert!(!access.admits(
        &error(&tcp(A, B, (4000, 23), false, true)),
        &router,
        &A,
        now
    ));
    assert!(
        !access.admits(
            &error(&tcp(B, A, (4000, 22), false, true)),
            &router,
            &A,
            now
        ),
        "we did not send that"
    );
    assert!(!access.admits(&error(&udp(A, B, (4000, 9))), &router, &A, now));
    access.sent(&udp(A, B, (4000, 9)), &A, &B, now);
    assert!(access.admits(
        &error(&udp(A, B, (4000, 9))),
        &router,
        &A,
        now + Duration::from_secs(3)
    ));
}

#[test]
fn a_new_policy_judges_anew_what_is_under_way() {
    let (access, now) = (access(OPS_TO_DB), Instant::now());
    let segment = tcp(A, B, (9, 22), false, true);
    assert!(access.admits(&segment, &A, &B, now));
    set(&access, "default = 'deny'");
    assert!(!access.admits(&segment, &A, &B, now));
}
