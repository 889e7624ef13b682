//! The keeper beside other firewalls, on real kernels. Needs root, ip, nft, iptables.

mod stage;

use p2pvm_host::{Finding, Level};
use stage::{Elsewhere, Network, inside, sh, snapshot, until};

/// What members answer comes in; without connection tracking, which iptables does not read any more
/// when nft has loaded it.
const ANSWERS: &str = "iptables -A INPUT -p udp -j ACCEPT";

fn passages_are_in(forward_chain: &str) -> bool {
    let rules = sh("iptables-nft -S");
    rules.contains(&format!(
        "-A {forward_chain} -i p2pvm0 -m comment --comment \"p2pvm p2pvm0 in\" -j ACCEPT"
    )) && rules.contains(&format!("-A {forward_chain} -i lan0 -o p2pvm0"))
}

/// What the keeper finds about firewalls.
fn firewall_findings(network: &Network) -> Vec<Finding> {
    network
        .board
        .all()
        .into_iter()
        .filter(|(area, _)| *area == "firewall")
        .map(|(_, finding)| finding)
        .collect()
}

/// Runs the advised commands, after which the keeper finds nothing more.
fn advice_helps(network: &Network, advice: impl IntoIterator<Item = String>) {
    for command in advice {
        sh(&command);
    }
    until("the commands to have helped", || {
        firewall_findings(network).is_empty()
    });
}

#[test]
fn dockers_and_ufws_chains_are_opened_and_put_back() {
    for (chains, forward_chain) in [
        (
            "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j \
                DOCKER-USER; iptables -A DOCKER-USER -j RETURN",
            "DOCKER-USER",
        ),
        (
            "iptables -P FORWARD DROP; iptables -P INPUT DROP; iptables -N ufw-before-input; \
                iptables -A INPUT -j ufw-before-input;
          iptables -A ufw-before-input -i lo -j ACCEPT;
          iptables -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
          iptables -A INPUT -j REJECT",
            "FORWARD",
        ),
    ] {
        inside(move || {
            let _lan = Elsewhere::new(
                &forward_chain.to_lowercase()[..3],
                "lan0",
                "192.168.77.1/24",
                "192.168.77.9/24",
            );
            sh(&chains.replace("iptables ", "iptables-nft "));
            let before = snapshot();
            let mut network = Network::start(0);
            network.offer(&["192.168.77.0/24"]);
            let open = || passages_are_in(forward_chain);
            assert!(open(), "{}", snapshot());
            assert_eq!(
                sh("iptables-nft -S").contains(
                    "-A INPUT -i \
                p2pvm0"
                ),
                forward_chain == "FORWARD"
            );
            assert_eq!(
                network.board.worst(),
                Level::Ok,
                "{:?}",
                network.board.all()
            );
            // The owner loads its rules anew.
            let input = if forward_chain == "FORWARD" {
                "iptables-nft -F INPUT"
            } else {
                ""
            };
            sh(&format!("iptables-nft -F {forward_chain}; {input}"));
            until("the passages to be back", open);
            sh(&format!("iptables-nft -I {forward_chain} -j DROP"));
            until("the passages to be first again", || {
                let rules = sh(&format!("iptables-nft -S {forward_chain}"));
                rules.find("p2pvm0 in").unwrap_or(usize::MAX) < rules.find("-j DROP").unwrap()
            });
            network.end();
            assert!(!sh("nft list ruleset").contains("p2pvm"), "{}", snapshot());
            sh(&format!("iptables-nft -D {forward_chain} -j DROP"));
            if forward_chain == "DOCKER-USER" {
                sh("iptables-nft -A DOCKER-USER -j RETURN");
            } else {
                sh("iptables-nft -A INPUT -j ufw-before-input; iptables-nft -A INPUT -j REJECT");
            }
            assert_eq!(snapshot(), before);
        });
    }
}

/// The passages' comments in the rules as iptables and nft list them, in order.
fn passages_there() -> Vec<String> {
    let listed = sh("iptables-nft-save; iptables-legacy-save 2>/dev/null || true");
    let mut found: Vec<String> = listed
        .lines()
        .filter(|line| line.contains("\"p2pvm "))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

/// Rules that are loaded when p2pvm has gone are gone at its next start, or with 'doctor --fix'.
fn check_revived_rules_are_removed(firewall: &str, saved: &str, dump: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (file, again) = (dir.path().join("f"), dir.path().join("g"));
    std::fs::write(&file, saved).unwrap();
    std::fs::write(&again, dump).unwrap();
    sh(&format!("iptables-{firewall}-restore <{}", file.display()));
    if firewall == "nft" {
        sh(&format!("nft -f {}", again.display()));
    }
    assert_ne!(passages_there(), Vec::<String>::new());
    assert!(p2pvm_host::undo::remove_revived().unwrap() >= 3);
    assert_eq!(passages_there(), Vec::<String>::new());
    assert!(!sh("nft list ruleset").contains("p2pvm"), "{}", snapshot());
    assert_eq!(p2pvm_host::undo::remove_revived().unwrap(), 0);
}

#[test]
fn saved_and_reloaded_rules_are_there_once_and_none_after_p2pvm() {
    let iptables = "iptables-nft-save >DIR/f; iptables-nft-restore <DIR/f";
    let beside = "iptables-nft-save >DIR/f; iptables-nft-restore --noflush <DIR/f";
    let nft = "nft list ruleset >DIR/f; nft -f DIR/f";
    let both = "iptables-nft-save >DIR/f; iptables-nft-restore <DIR/f; sleep 1; nft list ruleset \
        >DIR/f; nft -f DIR/f";
    let legacy = "iptables-legacy-save >DIR/f; iptables-legacy-restore --noflush <DIR/f";
    for (n, firewall, load) in [
        (0, "nft", iptables),
        (1, "nft", beside),
        (2, "nft", nft),
        (3, "nft", both),
        (4, "legacy", legacy),
    ] {
        inside(move || {
            let _lan = Elsewhere::new(
                &format!("save{n}"),
                "lan0",
                "192.168.77.1/24",
                "192.168.77.9/24",
            );
            let dir = tempfile::tempdir().unwrap();
            let load = load.replace("DIR", dir.path().to_str().unwrap());
            let answers = ANSWERS.replace("iptables", &format!("iptables-{firewall}"));
            sh(&format!(
                "iptables-{firewall} -P FORWARD DROP; iptables-{firewall} -P INPUT DROP; \
                 iptables-{firewall} -A INPUT -i lo -j ACCEPT; {answers}"
            ));
            let mut network = Network::start(n);
            network.offer(&["192.168.77.0/24"]);
            let (there, table) = (passages_there(), format!("p2pvm_p2pvm{n}"));
            let whole = sh(&format!("nft list table ip {table}"));
            assert_eq!(there.len(), 3, "{there:?}");
            for _ in 0..2 {
                sh(&load);
                // With the comment that nft saves.
                let told = || {
                    firewall == "legacy"
                        || sh("nft list ruleset").matches("comment \"p2pvm ").count() == there.len()
                };
                let as_before = || {
                    passages_there() == there
                        && told()
                        && sh(&format!("nft list table ip {table}")) == whole
                };
                until(&load, as_before);
                assert_eq!(
                    network.board.worst(),
                    Level::Ok,
                    "{:?}",
                    network.board.all()
                );
            }
            let saved = sh(&format!("iptables-{firewall}-save"));
            let dump = sh("nft list ruleset");
            // In a chain that p2pvm never opened as well.
            let rule =
                format!("-A mine -i p2pvm{n} -m comment --comment \"p2pvm p2pvm{n} in\" -j ACCEPT");
            sh(&format!(
                "iptables-{firewall} -N mine; iptables-{firewall} {rule}"
            ));
            network.end();
            assert_eq!(passages_there(), Vec::<String>::new());
            check_revived_rules_are_removed(firewall, &saved, &dump);
        });
    }
}

#[test]
fn removing_a_gone_networks_rules_leaves_the_others() {
    inside(|| {
        let _lan = Elsewhere::new("stay", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh("iptables-nft -P FORWARD DROP; iptables-nft -P INPUT DROP");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let before = snapshot();
        sh(
            "iptables-nft -I INPUT -i p2pvm9 -m comment --comment \"p2pvm p2pvm9 in\" -j ACCEPT; \
                nft add table ip p2pvm_p2pvm9",
        );
        assert_eq!(p2pvm_host::undo::remove_revived().unwrap(), 2);
        assert_eq!(snapshot(), before);
        network.end();
    });
}

#[test]
fn iptables_legacy_is_opened_and_left_as_it_was() {
    inside(|| {
        let _lan = Elsewhere::new("legacy", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh(&ANSWERS.replace("iptables", "iptables-legacy"));
        sh(
            "iptables-legacy -P FORWARD DROP; iptables-legacy -A INPUT -j REJECT; \
                ip6tables-legacy -P INPUT DROP",
        );
        let before = snapshot();
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let open = || {
            let rules = sh("iptables-legacy -S");
            let six = sh("ip6tables-legacy -S").contains("-A INPUT -i p2pvm0");
            six && rules.contains("-A INPUT -i p2pvm0")
                && rules.contains("-A FORWARD -i p2pvm0")
                && rules.contains("-A FORWARD -i lan0 -o p2pvm0")
        };
        assert!(open(), "{}", snapshot());
        assert_eq!(
            network.board.worst(),
            Level::Ok,
            "{:?}",
            network.board.all()
        );
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn an_unopenable_firewall_is_named_with_the_command_that_helps() {
    inside(|| {
        let _lan = Elsewhere::new("named", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh("nft -f - <<E
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10; policy accept; ct state \
  established,related accept; iifname lo accept; reject with icmpx admin-prohibited; }
}
table inet mine {
  chain through { type filter hook forward priority 0; policy drop; }
}
E");
        let before = sh("nft list ruleset");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let all = firewall_findings(&network);
        assert!(
            all.iter().any(|f| f
                .found
                .contains("chain filter_INPUT of table inet firewalld")),
            "{all:?}"
        );
        assert!(
            all.iter().any(|f| f.level == Level::Failed
                && f.found
                    .contains("chain through of table inet mine (policy drop)")),
            "{all:?}"
        );
        assert_eq!(network.keeper.report().blocked.len(), 1);
        let ours = sh("nft list ruleset");
        assert!(
            ours.contains(
                "chain through {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}"
            ),
            "left alone: {ours}"
        );
        advice_helps(&network, all.into_iter().map(|finding| finding.advice));
        network.end();
        sh("nft flush chain inet mine through");
        assert!(before.contains("inet mine") && !sh("nft list ruleset").contains("p2pvm_"));
    });
}

/// The chains of the next test and what they drop.
const DROPPED_AT_HOOKS: [(&str, &str); 8] = [
    (
        "chain pre of table inet mine (",
        "hook prerouting, drops what comes in by p2pvm0",
    ),
    (
        "chain PREROUTING of table ip raw (",
        "hook prerouting, drops what comes in by p2pvm0",
    ),
    (
        "chain out of table inet mine (",
        "hook output, drops what goes out by p2pvm0",
    ),
    (
        "chain OUTPUT of table iptables-legacy mangle (",
        "hook output, drops what goes out by p2pvm0",
    ),
    (
        "chain out of table inet mine (",
        "drops members' packets from UDP port 4002 by lan0",
    ),
    (
        "chain in of table netdev own (",
        "hook ingress, drops members' packets to UDP port 4001 by lan0",
    ),
    (
        "chain post of table inet mine (",
        "hook postrouting, drops what p2pvm0 forwards into the offered",
    ),
    (
        "chain out of table netdev own (",
        "hook egress, drops what p2pvm0 forwards into the offered",
    ),
];

#[test]
fn a_drop_at_another_hook_is_named_and_its_command_helps() {
    inside(|| {
        let _lan = Elsewhere::new("hooks", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh("nft -f - <<E
table inet mine {
  chain pre { type filter hook prerouting priority -300; policy accept; iifname \"p2pvm0\" drop; }
  chain out { type filter hook output priority 0; policy accept; oifname \"p2pvm0\" drop; udp \
  sport 4002 drop; }
  chain post { type filter hook postrouting priority 0; policy accept; oifname \"lan0\" drop; }
}
table netdev own {
  chain in { type filter hook ingress device lan0 priority 0; policy accept; udp dport 4001 drop; }
  chain out { type filter hook egress device lan0 priority 0; policy accept; ip daddr \
  192.168.77.0/24 drop; }
}
E
iptables-legacy -t mangle -A OUTPUT -o p2pvm0 -j DROP; iptables-nft -t raw -A PREROUTING -s \
10.90.0.0/16 -j DROP");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let all = firewall_findings(&network);
        for (chain, dropped) in DROPPED_AT_HOOKS {
            let is_it = |said: &str| said.starts_with(chain) && said.contains(dropped);
            assert!(
                all.iter().any(|finding| is_it(&finding.found)),
                "{chain} {dropped}: {all:#?}"
            );
        }
        let blocked = network.keeper.report().blocked;
        assert!(
            blocked.iter().all(|(said, _)| said.contains("offered")) && blocked.len() == 2,
            "{blocked:?}"
        );
        assert_eq!(
            sh("nft list table inet mine").matches(" accept\n").count(),
            0,
            "a person's rules are left alone"
        );
        advice_helps(&network, all.into_iter().map(|finding| finding.advice));
        network.end();
    });
}

#[test]
fn a_closed_firewall_is_named_with_commands_that_help_as_typed() {
    for (name, chains, programs) in [
        (
            "dock",
            "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD \
                -j DOCKER-USER",
            &["filter DOCKER-USER"][..],
        ),
        (
            "nftv",
            "iptables-nft -P INPUT DROP; ip6tables-nft -P INPUT DROP",
            &["rule ip filter INPUT", "rule ip6 filter INPUT"],
        ),
        (
            "old",
            "iptables-legacy -P FORWARD DROP; iptables-legacy -A INPUT -j REJECT; \
                ip6tables-legacy -P INPUT DROP",
            &[
                "iptables-legacy -I INPUT",
                "ip6tables-legacy -I INPUT",
                "iptables-legacy -I FORWARD -i lan0 -o p2pvm0",
            ],
        ),
    ] {
        inside(move || {
            let _lan = Elsewhere::new(name, "lan0", "192.168.77.1/24", "192.168.77.9/24");
            sh(chains);
            let before = snapshot();
            let mut network = Network::start(0);
            network.wanted.open_firewalls = false;
            network.offer(&["192.168.77.0/24"]);
            let advice: Vec<String> = firewall_findings(&network)
                .into_iter()
                .map(|finding| finding.advice)
                .collect();
            for program in programs {
                assert!(
                    advice.iter().any(|command| command.contains(program)),
                    "{program}: {advice:?}"
                );
            }
            advice_helps(&network, advice.clone());
            // They are the administrator's now: nobody takes them away.
            network.end();
            let after = snapshot();
            let stays =
                |rule: &&str| rule.contains("p2pvm0") && rule.to_lowercase().contains("accept");
            let persons = after.lines().filter(stays).count();
            let commands = advice.iter().flat_map(|commands| commands.split(" && "));
            assert_eq!(
                persons,
                commands
                    .filter(|command| command.contains("p2pvm0"))
                    .count(),
                "{after}"
            );
            assert!(
                before.lines().all(|line| after.contains(line)),
                "{before}\n{after}"
            );
        });
    }
}
