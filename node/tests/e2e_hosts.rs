//! Hosts that are not clean: p2pvm beside the real other programs that see to a host's network, and
//! on odd machines.
//!
//! Each test has three members: `a` founded the network, `b` has the other program and a root file
//! system of its own, `c` is the provider's name server too. Whichever comes first, either all that
//! p2pvm promises ([`hosts::Stage::broken`]) holds, or exactly what the test names does not,
//! `doctor` says why, and the command that it gives helps. After `down` the host is as it was
//! before.

mod common;
mod hosts;

use hosts::{GUEST_TCP, LAN_PING, LAN_TCP, Named, Stage, TCP, TCP6, container_of, guest::Guest};
use p2pvm_lab::hosts::{
    DHCP_REWRITES, DOCKER, FIREWALLD, IPTABLES_LEGACY, IPTABLES_NFT, KUBERNETES, LIBVIRT, NETAVARK,
    NFTABLES, OPENRESOLV, Program, RESOLVED, UFW, probe::within,
};
use std::{path::Path, time::Duration};

/// Until what was put back or started again works.
const BACK: Duration = Duration::from_secs(20);
/// What p2pvm's coming and going must not disturb works at once.
const AT_ONCE: Duration = Duration::from_secs(3);
/// What a firewall drops is dropped after this; all else works by then.
const DROPPED: Duration = Duration::from_secs(10);

/// The commands that let p2pvm's interface in.
const TRUSTED: &str = "firewall-cmd --zone=trusted --add-interface=p2pvm0";
const UFW_IN: &str = "ufw allow in on p2pvm0";
const NFT_IN: &str = "nft insert rule inet filter input iifname \"p2pvm0\" accept";

/// Beside this program all works, whatever `node.toml` forbids.
fn beside(program: Program) {
    beside_with(program, None, None);
}

/// The whole life of p2pvm on a host where that program runs: all is reached, whatever starts again
/// meanwhile, or what is `named` is not; what was reached without p2pvm is reached at each moment;
/// and nothing stays. `off` is named where `firewall = "off"` forbids p2pvm to open anything.
fn beside_with(program: Program, named: Option<Named>, off: Option<Named>) {
    let Some(stage) = Stage::raise(program.name) else {
        return;
    };
    // At its second start it finds what its first one made, which stays.
    program.start(&stage.lab, "b").unwrap();
    program.stop(&stage.lab, "b").unwrap();
    program.start(&stage.lab, "b").unwrap();
    let container = container_of(program, &stage.lab);
    let goes_out_within = |limit: Duration, when: &str| {
        if let Some(container) = &container {
            let out = within(limit, || {
                container.from().pings(&stage.outside)
                    && container.from().connects(&stage.outside, 80)
            });
            assert!(
                out.is_some(),
                "{}'s container is cut off {when}\n{}",
                program.name,
                stage.report()
            );
        }
    };
    let goes_out = |when: &str| goes_out_within(AT_ONCE, when);
    let hold = |named: Option<Named>, when: &str| {
        let limit = if named.is_some() { DROPPED } else { BACK };
        stage
            .hold(named, limit)
            .unwrap_or_else(|wrong| panic!("{} {when}: {wrong}\n{}", program.name, stage.report()));
    };
    let hold_and_help = |named: Option<Named>, when: &str| {
        hold(named, when);
        if named.is_some() {
            stage.follow_advice();
            hold(None, &format!("{when}, and what doctor advises is done"));
        }
    };
    // A bridge with a spanning tree takes some seconds to let anybody through.
    goes_out_within(BACK, "before p2pvm comes");
    let before = stage.state();

    stage.up();
    stage.offer();
    hold_and_help(named, "was there first");
    goes_out("while p2pvm runs");

    program.stop(&stage.lab, "b").unwrap();
    hold(None, "was stopped");
    program.start(&stage.lab, "b").unwrap();
    if let (Some(container), Some((bridge, ..))) = (&container, hosts::bridge_of(program)) {
        container.plug(bridge).unwrap();
    }
    hold(named, "started while p2pvm ran");
    goes_out_within(BACK, "after it started again");

    stage.lab.kill_daemon("b").unwrap();
    goes_out("after p2pvm was killed");
    let found = within(AT_ONCE, || stage.finds_other_names());
    assert!(
        found.is_some(),
        "{}: other names are not found, or slowly, after p2pvm was killed\n{}",
        program.name,
        stage.report()
    );
    stage.up();
    hold(named, "after a kill");
    stage.withdraw();
    goes_out("after the offer was withdrawn");
    stage.down();
    goes_out("after p2pvm has gone");
    let left = before.difference(&stage.state());
    assert!(
        left.is_empty(),
        "beside {} p2pvm leaves the host changed:\n{left}",
        program.name
    );

    stage.configure("firewall = \"off\"\n");
    stage.up();
    stage.offer();
    hold_and_help(off, "may not be opened");
    stage.down();
    drop(container);
    stage.lab.down().unwrap();
}

#[test]
fn docker_and_its_containers_work_beside_p2pvm_and_p2pvm_beside_docker() {
    beside_with(
        DOCKER,
        None,
        Some(Named {
            broken: &[LAN_PING, LAN_TCP],
            findings: &[(
                "chain FORWARD of table ip filter",
                "nft insert rule ip filter DOCKER-USER iifname \"p2pvm0\" accept && nft insert \
                    rule ip filter DOCKER-USER iifname \"lan0\" oifname \"p2pvm0\" accept",
            )],
        }),
    );
}

#[test]
fn firewalld_is_opened_or_doctor_says_what_it_drops_and_what_helps() {
    beside_with(
        FIREWALLD,
        None,
        Some(Named {
            broken: &[TCP, TCP6, LAN_PING, LAN_TCP],
            findings: &[
                ("chain filter_INPUT of table inet firewalld", TRUSTED),
                ("chain filter_FORWARD of table inet firewalld", TRUSTED),
            ],
        }),
    );
}

#[test]
fn ufw_is_opened_or_doctor_says_what_it_drops_and_what_helps() {
    beside_with(
        UFW,
        None,
        Some(Named {
            broken: &[TCP, TCP6, LAN_TCP],
            findings: &[
                ("chain INPUT of table ip filter", UFW_IN),
                ("chain INPUT of table ip6 filter", UFW_IN),
                (
                    "chain FORWARD of table ip filter",
                    "ufw route allow in on p2pvm0 && ufw route allow in on lan0 out on p2pvm0",
                ),
            ],
        }),
    );
}

#[test]
fn libvirts_guests_and_p2pvm_work_beside_each_other() {
    beside(LIBVIRT);
}

#[test]
fn a_firewall_by_iptables_legacy_is_opened_or_doctor_says_what_helps() {
    beside_with(
        IPTABLES_LEGACY,
        None,
        Some(Named {
            broken: &[TCP, TCP6, LAN_PING, LAN_TCP],
            findings: &[
                (
                    "chain INPUT of table iptables-legacy filter",
                    "iptables-legacy -I INPUT -i p2pvm0 -j ACCEPT",
                ),
                (
                    "chain INPUT of table ip6tables-legacy filter",
                    "ip6tables-legacy -I INPUT -i p2pvm0 -j ACCEPT",
                ),
                (
                    "chain FORWARD of table iptables-legacy filter",
                    "iptables-legacy -I FORWARD -i p2pvm0 -j ACCEPT && iptables-legacy -I FORWARD \
                        -i lan0 -o p2pvm0 -j ACCEPT",
                ),
            ],
        }),
    );
}

#[test]
fn a_firewall_by_iptables_nft_is_opened_or_doctor_says_what_helps() {
    beside_with(
        IPTABLES_NFT,
        None,
        Some(Named {
            broken: &[TCP, TCP6, LAN_PING, LAN_TCP],
            findings: &[
                (
                    "chain INPUT of table ip filter",
                    "nft insert rule ip filter INPUT iifname \"p2pvm0\" accept",
                ),
                (
                    "chain INPUT of table ip6 filter",
                    "nft insert rule ip6 filter INPUT iifname \"p2pvm0\" accept",
                ),
                (
                    "chain FORWARD of table ip filter",
                    "nft insert rule ip filter FORWARD iifname \"p2pvm0\" accept && nft insert \
                        rule ip filter FORWARD iifname \"lan0\" oifname \"p2pvm0\" accept",
                ),
            ],
        }),
    );
}

#[test]
fn a_firewall_by_nft_is_left_alone_and_named_with_what_helps() {
    let named = Named {
        broken: &[TCP, TCP6, LAN_PING, LAN_TCP],
        findings: &[
            ("chain input of table inet filter", NFT_IN),
            (
                "chain forward of table inet filter",
                "nft insert rule inet filter forward iifname \"p2pvm0\" accept && nft insert rule \
                    inet filter forward iifname \"lan0\" oifname \"p2pvm0\" accept",
            ),
        ],
    };
    beside_with(NFTABLES, Some(named), Some(named));
}

#[test]
fn podmans_containers_and_p2pvm_work_beside_each_other() {
    beside(NETAVARK);
}

#[test]
fn the_pods_of_a_kubernetes_node_and_p2pvm_work_beside_each_other() {
    beside_with(
        KUBERNETES,
        None,
        Some(Named {
            broken: &[LAN_PING, LAN_TCP],
            findings: &[(
                "chain FORWARD of table ip filter",
                "nft insert rule ip filter FORWARD iifname \"p2pvm0\" accept && nft insert rule \
                    ip filter FORWARD iifname \"lan0\" oifname \"p2pvm0\" accept",
            )],
        }),
    );
}

#[test]
fn names_are_found_while_resolved_comes_goes_and_keeps_its_files() {
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

/// A guest's packets meet no chain of its host's IP stack, also where bridges send theirs through
/// iptables: with p2pvm forbidden to open anything, a guest is cut off from nothing but the host
/// itself, and `doctor` says by what.
#[test]
fn guests_are_reached_beside_every_firewall_and_doctor_names_what_blocks() {
    let image = common::image();
    let Some(stage) = Stage::with_files("guests", "firewall = \"off\"\n", &[Path::new(image)])
    else {
        return;
    };
    stage.up();
    let guest = Guest::boot(&stage, image);
    const INPUT: &[&str] = &[GUEST_TCP];
    for (program, named) in [
        (DOCKER, None),
        (
            FIREWALLD,
            Some(Named {
                broken: INPUT,
                findings: &[("chain filter_INPUT of table inet firewalld", TRUSTED)],
            }),
        ),
        (
            UFW,
            Some(Named {
                broken: INPUT,
                findings: &[
                    ("chain INPUT of table ip filter", UFW_IN),
                    ("chain INPUT of table ip6 filter", UFW_IN),
                ],
            }),
        ),
        (LIBVIRT, None),
        (
            NFTABLES,
            Some(Named {
                broken: INPUT,
                findings: &[("chain input of table inet filter", NFT_IN)],
            }),
        ),
    ] {
        let name = program.name;
        program.start(&stage.lab, "b").unwrap();
        // Docker switches it on where its kernel has it; so do Kubernetes' instructions.
        stage
            .lab
            .testbed()
            .run(
                "b",
                &[
                    "sh",
                    "-c",
                    "sysctl -qe -w net.bridge.bridge-nf-call-iptables=1",
                ],
            )
            .unwrap();
        let hold = |named: Option<Named>, when: &str| {
            let limit = if named.is_some() { DROPPED } else { BACK };
            let held = stage.hold_all(named, limit, guest.broken(&stage, limit));
            held.unwrap_or_else(|wrong| panic!("{name} {when}: {wrong}\n{}", stage.report()));
        };
        hold(named, "was started");
        if named.is_some() {
            stage.follow_advice();
            hold(None, "after what doctor advises");
        }
        program.stop(&stage.lab, "b").unwrap();
    }
    drop(guest);
    stage.lab.down().unwrap();
}
