//! Hosts that are not clean: p2pvm beside the real other programs that see to a host's network, and on odd machines.
//!
//! Each test has three members: `a` founded the network, `b` has the other program and a root file system of its own, `c` is
//! the provider's name server too. What p2pvm promises ([`hosts::Stage::silent`]) must hold whichever comes first, and after
//! `down` the host must be as it was before.

mod common;
mod hosts;

use hosts::{Stage, container_of};
use p2pvm_tests::hosts::{
    DHCP_REWRITES, DOCKER, FIREWALLD, IPTABLES_LEGACY, IPTABLES_NFT, KUBERNETES, LIBVIRT, OPENRESOLV, Program, RESOLVED, UFW, probe::within,
};
use std::time::Duration;

/// Until what was put back or started again works.
const BACK: Duration = Duration::from_secs(20);
/// What p2pvm's coming and going must not disturb works at once.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The whole life of p2pvm on a host where that program runs: all is reached, whatever starts again meanwhile; what was
/// reached without p2pvm is reached at each moment; and nothing stays.
fn beside(program: Program) {
    let Some(stage) = Stage::raise(program.name) else { return };
    // At its second start it finds what its first one made, which stays.
    program.start(&stage.lab, "b").unwrap();
    program.stop(&stage.lab, "b").unwrap();
    program.start(&stage.lab, "b").unwrap();
    let container = container_of(program, &stage.lab);
    let goes_out_within = |limit: Duration, when: &str| {
        if let Some(container) = &container {
            let out = within(limit, || container.from().pings(&stage.outside) && container.from().connects(&stage.outside, 80));
            assert!(out.is_some(), "{}'s container is cut off {when}\n{}", program.name, stage.report());
        }
    };
    let goes_out = |when: &str| goes_out_within(AT_ONCE, when);
    // A bridge with a spanning tree takes some seconds to let anybody through.
    goes_out_within(BACK, "before p2pvm comes");
    let before = stage.state();

    stage.up();
    stage.offer();
    assert_eq!(stage.silent(program, BACK), Vec::<String>::new(), "{} was there first\n{}", program.name, stage.report());
    goes_out("while p2pvm runs");

    program.stop(&stage.lab, "b").unwrap();
    assert_eq!(stage.silent(program, BACK), Vec::<String>::new(), "{} was stopped\n{}", program.name, stage.report());
    program.start(&stage.lab, "b").unwrap();
    if let (Some(container), Some((bridge, ..))) = (&container, hosts::bridge_of(program)) {
        container.plug(bridge).unwrap();
    }
    assert_eq!(stage.silent(program, BACK), Vec::<String>::new(), "{} started while p2pvm ran\n{}", program.name, stage.report());
    goes_out_within(BACK, "after it started again");

    stage.lab.kill_daemon("b").unwrap();
    goes_out("after p2pvm was killed");
    let found = within(AT_ONCE, || stage.finds_other_names());
    assert!(found.is_some(), "{}: other names are not found, or slowly, after p2pvm was killed\n{}", program.name, stage.report());
    stage.up();
    assert_eq!(stage.silent(program, BACK), Vec::<String>::new(), "{} after a kill\n{}", program.name, stage.report());
    stage.withdraw();
    goes_out("after the offer was withdrawn");
    stage.down();
    goes_out("after p2pvm has gone");
    let left = before.difference(&stage.state());
    assert!(left.is_empty(), "beside {} p2pvm leaves the host changed:\n{left}", program.name);
    drop(container);
    stage.lab.down().unwrap();
}

#[test]
fn docker_and_its_containers_work_beside_p2pvm_and_p2pvm_beside_docker() {
    beside(DOCKER);
}

#[test]
fn firewalld_lets_p2pvm_work_or_doctor_says_what_it_drops() {
    beside(FIREWALLD);
}

#[test]
fn ufw_lets_p2pvm_work_or_doctor_says_what_it_drops() {
    beside(UFW);
}

#[test]
fn libvirts_guests_and_p2pvm_work_beside_each_other() {
    beside(LIBVIRT);
}

#[test]
fn a_firewall_by_iptables_legacy_lets_p2pvm_work_or_doctor_says_what_it_drops() {
    beside(IPTABLES_LEGACY);
}

#[test]
fn a_firewall_by_iptables_nft_lets_p2pvm_work_or_doctor_says_what_it_drops() {
    beside(IPTABLES_NFT);
}

#[test]
fn the_pods_of_a_kubernetes_node_and_p2pvm_work_beside_each_other() {
    beside(KUBERNETES);
}

#[test]
fn names_are_found_while_resolved_comes_and_goes_and_its_files_are_as_before() {
    beside(RESOLVED);
}

#[test]
fn names_are_found_beside_openresolv_and_its_files_are_as_before() {
    beside(OPENRESOLV);
}

#[test]
fn names_are_found_while_a_dhcp_client_rewrites_resolv_conf() {
    beside(DHCP_REWRITES);
}
