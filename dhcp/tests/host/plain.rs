//! Hosts with a list of name servers and nothing that manages it.

use crate::machine::{
    Machine, Network, OTHER, QUICK, SILENT, glibc, musl, musl_program, on, run, until,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket,
    sockopt::ReuseAddr,
};
use std::{
    fs,
    net::UdpSocket,
    os::{fd::AsRawFd, unix::fs::symlink},
};

const NSSWITCH: (&str, &str) = ("nsswitch.conf", "hosts: files dns\n");
/// Lists as people and programs write them; all lead to the one server that knows anything, first
/// or after one that is silent.
const LISTS: [&str; 12] = [
    "nameserver 192.0.2.53\n",
    "# ours\nsearch example.org\nnameserver 192.0.2.53",
    "nameserver 192.0.2.53\r\noptions edns0 trust-ad\r\n",
    "options rotate timeout:1\nnameserver 192.0.2.53\n",
    "nameserver 192.0.2.53\noptions single-request\n",
    "nameserver 192.0.2.53\noptions single-request-reopen attempts:1\n",
    "nameserver\t192.0.2.53 # with a word\noptions ndots:4 attempts:1\nsearch a.example b.example \
        c.example d.example\n",
    "domain lan\nnameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver 192.0.2.53\nnameserver \
        192.0.2.53\n",
    "nameserver fe80::1%lo\nnameserver 192.0.2.53\n",
    "\u{feff}; bytes that are no text \u{0}\nnameserver 192.0.2.53\n",
    "nameserver 192.0.2.54\nnameserver 192.0.2.53\n",
    "options rotate\nnameserver 192.0.2.54\nnameserver 192.0.2.53\noptions rotate timeout:2\n",
];

fn is_ours_first(machine: &Machine) -> bool {
    let text = machine.resolv_conf();
    let first = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver"))
        .unwrap_or_default()
        .trim()
        .to_owned();
    first.starts_with("127.") && first != "127.0.0.1"
}

#[test]
fn with_any_list_both_libraries_find_the_networks_names_and_others() {
    for with_musl in [false, true] {
        on(
            &[NSSWITCH, ("resolv.conf", LISTS[0])],
            with_musl,
            |machine| {
                let network = machine.network("lab", 9);
                let program = musl_program().filter(|_| with_musl);
                for list in LISTS {
                    machine.rewrite(list);
                    until("our line in it", || is_ours_first(machine));
                    until("the VM", || network.is_found());
                    // Several look-ups of one process: it asks by turns where it is told to.
                    let name = network.name("web.vm");
                    let found = run("getent", &["ahostsv4", &name, &name, &name, &name]);
                    assert!(
                        found.is_ok_and(|said| said.matches("STREAM").count() == 4),
                        "{}",
                        machine.resolv_conf()
                    );
                    let slow = list.contains("192.0.2.54");
                    // What is known of a silent server is known after the first question.
                    let _ = slow.then(|| (glibc("other.example"), glibc(OTHER.0)));
                    let (found, took) = glibc(OTHER.0);
                    assert_eq!(found, [OTHER.1], "{list}");
                    assert!(took < QUICK, "{took:?} {list}");
                    assert!(glibc(&network.name("nobody")).0.is_empty());
                    if let Some(program) = program {
                        for _ in 0..5 {
                            assert_eq!(
                                musl(program, &network.name("web.vm")).0,
                                [network.address(80)],
                                "{}",
                                machine.resolv_conf()
                            );
                            assert_eq!(musl(program, OTHER.0).0, [OTHER.1]);
                        }
                    }
                }
                network.end();
                assert_eq!(machine.resolv_conf(), LISTS[11], "as it was last");
            },
        );
    }
}

#[test]
fn programs_that_use_tcp_alone_or_search_find_the_networks_names() {
    let list = "search vm.lab.p2p lab.p2p example.net\nnameserver 192.0.2.53\noptions use-vc\n";
    on(&[NSSWITCH, ("resolv.conf", list)], false, |machine| {
        let network = machine.network("lab", 9);
        until("the VM by TCP", || network.is_found());
        assert_eq!(glibc("web").0, [network.address(80)]);
        assert_eq!(glibc("me").0, [network.address(1)]);
        machine.rewrite(&list.replace("options use-vc\n", ""));
        until("our line in it", || is_ours_first(machine));
        assert_eq!(
            glibc("elsewhere").0,
            [OTHER.1],
            "the search list goes on to the old server's names"
        );
        let named = run("getent", &["hosts", &network.address(80)]).unwrap();
        assert!(named.ends_with("web.vm.lab.p2p\n"), "{named}");
        network.end();
    });
}

#[test]
fn a_missing_empty_or_dangling_list_is_so_again_at_the_end() {
    on(&[NSSWITCH], false, |machine| {
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        network.says(&["no name server"]);
        network.end();
        assert!(!fs::exists("/etc/resolv.conf").unwrap());
        fs::write("/etc/resolv.conf", "").unwrap();
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        network.end();
        assert_eq!(fs::read("/etc/resolv.conf").unwrap(), b"");
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink(
            "../run/systemd/resolve/stub-resolv.conf",
            "/etc/resolv.conf",
        )
        .unwrap();
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        network.end();
        assert!(
            fs::symlink_metadata("/etc/resolv.conf")
                .unwrap()
                .is_symlink()
                && !fs::exists("/run/systemd").unwrap()
        );
    });
}

#[test]
fn after_a_kill_no_look_up_waits_and_the_list_comes_back() {
    let list = "nameserver 192.0.2.53\noptions rotate\n";
    on(&[NSSWITCH, ("resolv.conf", list)], false, |machine| {
        let network = machine.network("lab", 9);
        until("the VM", || network.is_found());
        network.kill();
        assert!(is_ours_first(machine));
        for _ in 0..5 {
            let (found, took) = glibc(OTHER.0);
            assert_eq!(found, [OTHER.1]);
            assert!(took < QUICK, "{took:?}");
        }
        Network::restore("labid/lab0");
        assert_eq!(machine.resolv_conf(), list);
    });
}

#[test]
fn two_networks_names_resolve_and_leave_in_any_order() {
    for (with_musl, first_goes) in [(false, true), (false, false), (true, true), (true, false)] {
        let list = "nameserver 192.0.2.53\n";
        on(&[NSSWITCH, ("resolv.conf", list)], with_musl, |machine| {
            let (lab, home) = (machine.network("lab", 9), machine.network("home", 8));
            until("both", || lab.is_found() && home.is_found());
            let program = musl_program().filter(|_| with_musl);
            let all_find = |networks: &[&Network]| {
                for network in networks {
                    assert!(network.is_found(), "{}", machine.resolv_conf());
                    let named = run("getent", &["hosts", &network.address(80)]).unwrap_or_default();
                    assert!(named.contains(&network.name("web.vm")), "{named}");
                    if let Some(program) = program {
                        assert_eq!(
                            musl(program, &network.name("web.vm")).0,
                            [network.address(80)],
                            "{}",
                            machine.resolv_conf()
                        );
                    }
                }
                assert_eq!(glibc(OTHER.0).0, [OTHER.1]);
            };
            until("both in the list", || {
                machine.resolv_conf().matches("# p2pvm ").count() == 2
            });
            all_find(&[&lab, &home]);
            let (stops, stays) = if first_goes { (lab, home) } else { (home, lab) };
            stops.end();
            all_find(&[&stays]);
            assert_eq!(machine.resolv_conf().matches("# p2pvm ").count(), 1);
            let again = machine.network("other", 7);
            until("both", || again.is_found() && stays.is_found());
            // One is killed: the other's names, and the rest, are as quick as before.
            again.kill();
            until("the other alone", || {
                stays.is_found() && glibc(OTHER.0).1 < QUICK
            });
            all_find(&[&stays]);
            Network::restore("otherid/other0");
            stays.end();
            assert_eq!(machine.resolv_conf(), list);
        });
    }
}

#[test]
fn a_taken_port_is_told_with_its_program_and_used_once_free() {
    on(
        &[NSSWITCH, ("resolv.conf", "nameserver 192.0.2.55\n")],
        false,
        |machine| {
            // Nobody can listen on one address beside a program that has all and does not allow it.
            machine.free_port_53();
            let taken = UdpSocket::bind("0.0.0.0:53").unwrap();
            let network = machine.network("lab", 9);
            network.says(&[
                "no port 53",
                "has it on all addresses",
                &std::process::id().to_string(),
            ]);
            drop(taken);
            until("the VM", || network.is_found());
            until("nothing about our own names", || {
                network
                    .findings()
                    .iter()
                    .all(|f| f.found.contains("outside"))
            });
            network.end();
        },
    );
}

#[test]
fn a_program_sharing_the_port_on_all_addresses_leaves_us_ours() {
    on(
        &[NSSWITCH, ("resolv.conf", "nameserver 192.0.2.53\n")],
        false,
        |machine| {
            // As dnsmasq and unbound open theirs.
            let flags = SockFlag::SOCK_CLOEXEC;
            let shared = socket(
                AddressFamily::Inet,
                SockType::Datagram,
                flags,
                SockProtocol::Udp,
            )
            .unwrap();
            setsockopt(&shared, ReuseAddr, &true).unwrap();
            machine.free_port_53();
            bind(shared.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 53)).unwrap();
            let network = machine.network("lab", 9);
            until("the VM", || network.is_found());
            assert!(
                network
                    .findings()
                    .iter()
                    .all(|finding| finding.found.contains("outside")),
                "{:?}",
                network.findings()
            );
            network.end();
        },
    );
}

#[test]
fn what_does_not_resolve_is_said_with_its_cause_and_remedy() {
    on(
        &[
            ("nsswitch.conf", "hosts: files\n"),
            ("resolv.conf", "nameserver 192.0.2.54\n"),
        ],
        false,
        |machine| {
            let network = machine.network("lab", 9);
            network.says(&[
                "/etc/nsswitch.conf names neither dns nor resolve",
                "add 'dns'",
            ]);
            fs::write("/etc/nsswitch.conf", "hosts: files dns\n").unwrap();
            network.says(&["outside", &SILENT.to_string(), "none answers"]);
            assert!(network.is_found());
            until("nothing about our own names", || {
                network.findings().len() == 1
            });
            machine.rewrite("nameserver 192.0.2.53\n");
            until("nothing at all", || network.findings().is_empty());
            network.end();
        },
    );
}
