//! Style as a test, after TigerBeetle's `tidy`: what a reader of this tree may rely on, held over
//! all its files.
//!
//! Source is read as text: comments and literals are blanked, then braces are counted. Macros are
//! not expanded, and nothing is compiled or run. What `cargo fmt`, clippy and `cargo deny` hold is
//! theirs (`scripts/lint.sh`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// How many lines a Rust file has at most.
/// Reason: one subject, read in one go.
const FILE_LINES: usize = 600;
/// How many lines a function has at most, its signature and last brace included.
/// Reason: it fits on a screen.
const FUNCTION_LINES: usize = 70;
/// How many columns a line of a Rust file has at most.
/// Reason: two files fit beside each other.
const COLUMNS: usize = 100;
/// Files and functions that were longer when the rules came, with their lines. An entry only
/// shrinks or goes; there are no new ones.
const LONG_FILES: &[(&str, usize)] = &[
    ("autonomic/src/manager.rs", 690),
    ("dhcp/src/claim.rs", 609),
    ("host/tests/kernel.rs", 681),
    ("node/src/cli/args.rs", 669),
    ("node/src/cli/network.rs", 777),
    ("node/src/daemon/proof.rs", 649),
    ("node/src/daemon/status.rs", 635),
    ("node/src/daemon/subnets.rs", 674),
    ("node/src/doctor/judge.rs", 704),
    ("node/src/membership.rs", 641),
    ("node/tests/e2e_dashboard.rs", 767),
    ("node/tests/e2e_policy.rs", 719),
    ("overlay/src/connect.rs", 711),
    ("overlay/src/connect/nat.rs", 663),
    ("overlay/src/control.rs", 630),
    ("overlay/src/control/driver.rs", 794),
    ("overlay/src/control/shared.rs", 652),
    ("overlay/src/control/tests.rs", 811),
    ("overlay/src/membership/trust_tests.rs", 643),
    ("tests/src/netbench/programs.rs", 666),
    ("tests/src/sim/engine.rs", 641),
    ("tests/src/testbed.rs", 608),
    ("tests/tests/tidy.rs", 930),
    ("vm-manager/src/host/guard.rs", 647),
    ("vm-manager/src/host/mod.rs", 625),
    ("vm-manager/src/migrate/source.rs", 767),
    ("vm-manager/src/migrate/target.rs", 662),
];
/// Files with wider lines, by their number: tables, addresses and settings that cannot be broken.
const WIDE_FILES: &[(&str, usize)] = &[
    ("console/src/health.rs", 1),
    ("dhcp/src/subnet.rs", 1),
    ("dhcp/tests/churn.rs", 1),
    ("dhcp/tests/host/resolved.rs", 3),
    ("dht/src/votes/voter.rs", 2),
    ("dht/tests/it/liars.rs", 1),
    ("host/src/firewall_tests.rs", 1),
    ("host/src/journal.rs", 1),
    ("host/src/plan_tests.rs", 4),
    ("host/src/rules.rs", 2),
    ("host/src/ruleset.rs", 2),
    ("node/src/api/types/moves.rs", 2),
    ("node/src/api/types/policy.rs", 1),
    ("node/src/api/types/vms.rs", 4),
    ("node/src/cli/network.rs", 1),
    ("node/src/daemon/reach.rs", 1),
    ("node/src/daemon/subnets/judge.rs", 1),
    ("node/src/succession.rs", 1),
    ("node/src/top/feed.rs", 1),
    ("node/src/web/view.rs", 1),
    ("node/tests/docs/session.rs", 1),
    ("node/tests/e2e_absent.rs", 1),
    ("node/tests/e2e_hosts.rs", 1),
    ("node/tests/e2e_odd_hosts.rs", 1),
    ("node/tests/e2e_vm.rs", 1),
    ("node/tests/iso_boot.rs", 1),
    ("node/tests/iso_members.rs", 2),
    ("node/tests/slow_hosts.rs", 3),
    ("overlay/src/connect/nat.rs", 2),
    ("overlay/src/control/gate.rs", 1),
    ("overlay/src/coordinates_tests.rs", 1),
    ("overlay/src/link/state/tests.rs", 1),
    ("overlay/src/link/wire.rs", 1),
    ("overlay/src/membership/policy/tests.rs", 2),
    ("overlay/src/ring/table.rs", 2),
    ("overlay/tests/plane/ring.rs", 1),
    ("snapshot-sync/src/exchange/fetch.rs", 1),
    ("snapshot-sync/src/exchange/plan/tests.rs", 1),
    ("snapshot-sync/src/store.rs", 1),
    ("tests/src/forwarder/cut.rs", 2),
    ("tests/src/forwarder/mtu.rs", 1),
    ("tests/src/host_state.rs", 1),
    ("tests/src/hosts/tree.rs", 3),
    ("tests/src/sim/plot.rs", 8),
    ("tests/src/sites.rs", 2),
    ("tests/tests/tidy.rs", 8),
    ("vm-manager/src/migrate/handover.rs", 1),
    ("vm-manager/src/migrate/source.rs", 1),
    ("vm-manager/src/qemu/command.rs", 2),
    ("vm-manager/src/qemu/image.rs", 2),
    ("vm-manager/src/qemu/relay.rs", 1),
];
const LONG_FUNCTIONS: &[(&str, usize)] = &[
    ("console/src/health.rs: fn health", 82),
    (
        "console/tests/screens.rs: fn health_is_one_word_with_its_reason",
        104,
    ),
    ("dhcp/src/dns/forward.rs: fn ask_in_order", 80),
    ("dhcp/tests/churn.rs: fn live", 124),
    (
        "dhcp/tests/guest.rs: fn a_real_guest_gets_its_address_gateway_names_and_mtu",
        106,
    ),
    ("dht/src/coordinate.rs: fn outcome", 76),
    ("dht/src/dht.rs: fn write", 73),
    (
        "host/src/firewall_tests.rs: fn \
            firewallds_closing_reject_is_met_by_an_interface_in_no_zone",
        82,
    ),
    ("host/src/keeper/report.rs: fn of", 93),
    ("host/src/look.rs: fn look", 112),
    ("host/src/names/proof.rs: fn by_list", 88),
    ("host/src/opening.rs: fn survey", 82),
    (
        "host/src/plan_tests.rs: fn \
            networks_on_one_machine_get_what_they_want_and_leave_what_they_found",
        121,
    ),
    (
        "host/src/tun.rs: fn each_step_that_fails_names_its_cause_and_its_own_remedy",
        104,
    ),
    (
        "host/tests/kernel.rs: fn \
            own_sockets_go_around_accepted_routes_and_everything_else_takes_them",
        124,
    ),
    (
        "host/tests/kernel_firewalls.rs: fn \
            dockers_and_ufws_chains_are_opened_put_back_and_left_as_they_were",
        73,
    ),
    (
        "host/tests/kernel_firewalls.rs: fn \
            rules_that_somebody_saved_and_loaded_again_are_there_once_and_none_when_p2pvm_has_gone",
        79,
    ),
    (
        "host/tests/kernel_firewalls.rs: fn \
            what_drops_packets_at_any_other_hook_is_named_left_alone_and_its_command_helps",
        87,
    ),
    ("node/src/bench/traces.rs: fn traces", 77),
    ("node/src/cli/netcheck.rs: fn show", 104),
    ("node/src/cli/network.rs: fn join", 88),
    ("node/src/config.rs: fn load", 73),
    ("node/src/daemon/open.rs: fn open", 231),
    ("node/src/daemon/policy.rs: fn end", 92),
    ("node/src/daemon/subnets.rs: fn settle", 94),
    (
        "node/src/doctor/judge.rs: fn what_only_works_less_well_is_a_warning",
        81,
    ),
    (
        "node/src/web/access.rs: fn a_request_for_another_name_or_from_another_page_is_refused",
        75,
    ),
    (
        "node/tests/deb.rs: fn \
            the_package_installs_on_a_clean_debian_and_an_upgrade_keeps_state_settings_and_the_running_vm",
        160,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            a_host_is_emptied_two_at_a_time_whatever_one_vm_does_and_ctrl_c_lets_those_that_move_arrive",
        102,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            the_vms_of_a_dead_host_stay_listed_with_what_can_be_done_until_it_returns",
        104,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            two_vms_of_one_name_made_in_two_halves_of_a_network_both_live_on_and_can_be_deleted",
        97,
    ),
    (
        "node/tests/e2e_console.rs: fn \
            a_report_holds_what_a_developer_needs_and_no_key_and_no_invite",
        80,
    ),
    (
        "node/tests/e2e_console.rs: fn \
            the_screen_shows_members_says_when_the_daemon_is_away_and_comes_back_by_itself",
        80,
    ),
    (
        "node/tests/e2e_console.rs: fn \
            with_the_units_capabilities_guests_run_and_outlive_an_upgrade_of_the_daemon",
        90,
    ),
    (
        "node/tests/e2e_dashboard.rs: fn \
            a_guests_console_echoes_over_a_websocket_and_the_page_moves_its_vm_from_any_member",
        93,
    ),
    (
        "node/tests/e2e_dashboard.rs: fn \
            the_dashboard_is_off_until_switched_on_and_answers_who_shows_the_token_what_is_on_its_list",
        254,
    ),
    (
        "node/tests/e2e_doctor.rs: fn \
            beside_a_daemon_that_hangs_every_command_says_so_within_seconds_and_force_ends_it",
        135,
    ),
    (
        "node/tests/e2e_doctor.rs: fn health_doctor_and_commands_say_what_is_so",
        115,
    ),
    (
        "node/tests/e2e_doctor.rs: fn \
            what_joining_needs_is_checked_before_the_invite_is_used_and_names_come_out_usable",
        140,
    ),
    (
        "node/tests/e2e_full_disk.rs: fn \
            a_guest_on_a_full_disk_is_paused_with_the_reason_and_loses_nothing",
        159,
    ),
    ("node/tests/e2e_hosts.rs: fn beside_with", 85),
    (
        "node/tests/e2e_mobility.rs: fn \
            a_network_that_is_started_anew_finds_together_without_those_it_joined_through",
        71,
    ),
    (
        "node/tests/e2e_mobility.rs: fn \
            a_relay_that_dies_is_replaced_under_a_tcp_stream_and_the_unwilling_are_not_asked",
        72,
    ),
    (
        "node/tests/e2e_mobility.rs: fn \
            every_link_is_back_within_ten_seconds_of_a_move_and_tcp_goes_on",
        77,
    ),
    (
        "node/tests/e2e_odd_hosts.rs: fn \
            in_a_rootless_container_a_member_joins_and_the_doctor_says_what_is_so",
        89,
    ),
    (
        "node/tests/e2e_odd_hosts.rs: fn \
            on_a_disk_that_takes_seconds_for_a_sync_packets_and_control_do_not_wait_for_it",
        101,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_guest_is_reached_over_ipv6_has_a_name_and_is_guarded_by_it",
        94,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_hosts_programs_find_names_and_addresses_and_resolv_conf_is_as_it_was_afterwards",
        145,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_lan_is_reached_through_the_member_that_offers_it_for_as_long_as_it_may_and_does",
        125,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            rules_hold_where_packets_arrive_and_acl_check_says_what_happens",
        125,
    ),
    (
        "node/tests/e2e_routes.rs: fn a_host_is_after_down_and_after_a_kill_as_it_was_before",
        104,
    ),
    (
        "node/tests/e2e_traces.rs: fn \
            one_migration_is_one_trace_over_both_hosts_and_a_collector_that_is_away_hinders_none",
        231,
    ),
    (
        "node/tests/e2e_truth.rs: fn \
            a_guests_interface_that_passes_nothing_is_named_with_what_drops_its_packets",
        143,
    ),
    (
        "node/tests/e2e_truth.rs: fn \
            both_networks_of_a_machine_say_that_one_holds_the_address_of_a_member_of_the_other",
        72,
    ),
    (
        "node/tests/e2e_truth.rs: fn \
            members_whose_control_port_alone_is_blocked_are_not_called_unreachable",
        84,
    ),
    (
        "node/tests/e2e_twins.rs: fn \
            of_two_daemons_with_one_state_the_later_becomes_a_member_of_its_own_and_its_vms_are_branches",
        118,
    ),
    (
        "node/tests/e2e_vm.rs: fn \
            what_cannot_be_a_vms_disk_is_refused_with_the_reason_and_leaves_nothing",
        87,
    ),
    (
        "node/tests/iso_members.rs: fn \
            a_machine_installs_unattended_by_command_line_boots_from_its_disk_as_the_same_member_and_a_clone_becomes_another",
        87,
    ),
    (
        "node/tests/iso_members.rs: fn \
            two_appliances_join_and_a_guest_that_is_started_in_one_from_outside_moves_out_and_back_while_a_client_counts",
        95,
    ),
    ("node/tests/slow_hosts.rs: fn beside", 77),
    (
        "node/tests/slow_paths.rs: fn \
            a_path_is_direct_again_whatever_its_routers_forget_or_become",
        142,
    ),
    (
        "node/tests/slow_ring.rs: fn \
            a_dead_member_is_routed_around_and_two_rings_become_one_after_a_partition",
        75,
    ),
    (
        "node/tests/slow_routers.rs: fn \
            another_router_with_another_nat_is_followed_whichever_comes_first",
        81,
    ),
    ("overlay/src/connect/mobility.rs: fn watch_mapping", 76),
    ("overlay/src/connect/nat.rs: fn learn", 81),
    ("overlay/src/connect/netcheck.rs: fn netcheck", 84),
    ("overlay/src/control.rs: fn start", 85),
    ("overlay/src/control/driver.rs: fn on_proved", 73),
    ("overlay/src/control/driver.rs: fn on_swarm", 99),
    ("overlay/src/control/driver/gossip.rs: fn on_gossip", 84),
    ("overlay/src/control/gate.rs: fn on_connection_event", 79),
    (
        "overlay/src/control/tests.rs: fn \
            a_connection_that_proved_nothing_is_served_nothing_else",
        95,
    ),
    (
        "overlay/src/control/tests/large.rs: fn \
            forty_members_find_and_reach_each_other_with_few_connections_each",
        99,
    ),
    (
        "overlay/src/control/tests/nat.rs: fn \
            members_behind_every_kind_of_nat_are_reached_by_all",
        90,
    ),
    (
        "overlay/src/link/session.rs: fn \
            an_envelope_opens_once_and_neither_its_address_nor_its_kind_can_be_changed",
        72,
    ),
    ("overlay/src/membership/policy/read.rs: fn parse", 100),
    (
        "overlay/src/membership/policy/tests.rs: fn \
            a_bad_document_is_refused_with_its_line_and_what_would_be_right",
        76,
    ),
    (
        "overlay/src/membership/trust_tests.rs: fn \
            with_a_revoked_member_fall_those_that_grew_out_of_copies_of_its_state_whoever_admitted_them",
        98,
    ),
    ("overlay/src/plane/core.rs: fn start", 102),
    ("overlay/src/plane/cut.rs: fn cut", 97),
    (
        "overlay/src/plane/idle_tests.rs: fn a_thousand_idle_links_cost_some_megabytes",
        83,
    ),
    ("overlay/src/plane/receive.rs: fn handshake", 80),
    ("overlay/src/ring/near.rs: fn plan_near", 78),
    (
        "overlay/src/ring/tests.rs: fn \
            nothing_that_a_neighbour_sends_panics_or_grows_memory_without_bound",
        91,
    ),
    (
        "overlay/tests/plane/main.rs: fn a_guest_talks_moves_and_is_fenced",
        80,
    ),
    (
        "overlay/tests/plane/mend.rs: fn \
            a_tap_that_was_deleted_or_moved_away_is_made_anew_on_the_descriptor_that_its_guest_holds",
        81,
    ),
    ("overlay/tests/plane/world.rs: fn start", 81),
    (
        "snapshot-sync/src/exchange/replicate.rs: fn replicate_to",
        76,
    ),
    ("tests/src/cli.rs: fn run_as", 143),
    ("tests/src/guest_client.rs: fn run", 95),
    ("tests/src/hosts/booted.rs: fn start", 78),
    ("tests/src/nat.rs: fn translate", 74),
    ("tests/src/netbench/mod.rs: fn run", 91),
    ("tests/src/netbench/programs.rs: fn wireguard", 107),
    ("tests/src/netbench/report.rs: fn page", 84),
    ("tests/src/root.rs: fn raise", 72),
    ("tests/src/sim/cli.rs: fn measure", 85),
    ("tests/src/sim/cli.rs: fn search", 77),
    ("tests/src/sim/report.rs: fn plots", 141),
    ("tests/src/sim/report.rs: fn tables", 133),
    ("tests/src/soak.rs: fn send_one", 73),
    ("tests/src/soak.rs: fn soak", 77),
    ("vm-manager/src/checkpoint/restore.rs: fn bring_back", 76),
    ("vm-manager/src/host/guard.rs: fn adopt", 90),
    (
        "vm-manager/src/migrate/handover.rs: fn \
            the_source_never_counts_on_a_target_that_still_runs",
        75,
    ),
    ("vm-manager/src/migrate/source.rs: fn after_hand_over", 108),
    ("vm-manager/src/migrate/source.rs: fn lead", 104),
    ("vm-manager/src/migrate/source.rs: fn until_paused", 94),
    ("vm-manager/src/qemu/command.rs: fn arguments", 83),
    ("vm-manager/src/qemu/migration.rs: fn start_mirror", 71),
    ("vm-manager/src/qemu/mod.rs: fn spawn", 83),
    ("vm-manager/src/qemu/probe.rs: fn boots", 77),
    ("vm-manager/src/qemu/relay.rs: fn start", 99),
    (
        "vm-manager/tests/mobility_traces.rs: fn a_move_is_one_trace_over_both_hosts",
        106,
    ),
    (
        "vm-manager/tests/qemu_adopt.rs: fn \
            a_move_whose_daemon_was_killed_can_be_given_up_and_made_again",
        165,
    ),
    (
        "vm-manager/tests/qemu_hosts.rs: fn \
            a_move_by_post_copy_is_one_trace_over_both_hosts_that_says_when_it_began",
        121,
    ),
    (
        "vm-manager/tests/qemu_hosts.rs: fn \
            a_vm_moves_live_and_survives_the_loss_of_its_host_with_its_memory",
        117,
    ),
    (
        "vm-manager/tests/qemu_moves.rs: fn \
            a_move_given_up_at_any_step_leaves_the_guest_running_here",
        92,
    ),
];

/// The workspace's crates, lowest layer first. A crate depends only on crates of lower layers.
const LAYERS: [&[&str]; 5] = [
    &["p2pvm-host", "p2pvm-console"],
    &["p2pvm-overlay"],
    &[
        "p2pvm-dht",
        "p2pvm-snapshot-sync",
        "p2pvm-autonomic",
        "p2pvm-tests",
    ],
    &["p2pvm-dhcp", "p2pvm-vm-manager"],
    &["p2pvm"],
];

/// Directories that are made, not written.
const MADE: [&str; 3] = ["target", "node_modules", "dist"];
/// Ends of names of files, where a page names one without a directory.
const ENDS: [&str; 4] = [".rs", ".md", ".toml", ".sh"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every Rust file below a directory, by its path from the root.
fn rust_files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let entry = entry.expect("an entry of a directory that was opened");
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        let kind = entry.file_type().expect("a file's type");
        if kind.is_dir() && !name.starts_with('.') && !MADE.contains(&name.as_str()) {
            rust_files(&path, found);
        } else if kind.is_file() && name.ends_with(".rs") {
            let path = path.strip_prefix(root()).expect("it is below the root");
            found.insert(path.to_string_lossy().into_owned());
        }
    }
}

fn all_rust_files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    rust_files(&root(), &mut found);
    assert!(
        found.len() > 100,
        "the walk from {} finds hardly any Rust file",
        root().display()
    );
    found
}

/// Fails with every sentence at once.
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}\n", broken.join("\n  "));
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first place from `at` on that is so, or the end.
fn first(source: &[char], at: usize, is_so: impl Fn(usize) -> bool) -> usize {
    (at..source.len())
        .find(|i| is_so(*i))
        .unwrap_or(source.len())
}

fn is_pair(source: &[char], at: usize, pair: [char; 2]) -> bool {
    source.get(at..at + 2) == Some(pair.as_slice())
}

/// Behind a block comment, which may hold others.
fn comment_end(source: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (1, at + 2);
    while i < source.len() && depth > 0 {
        if is_pair(source, i, ['/', '*']) {
            (depth, i) = (depth + 1, i + 2);
        } else if is_pair(source, i, ['*', '/']) {
            (depth, i) = (depth - 1, i + 2);
        } else {
            i += 1;
        }
    }
    i
}

/// Behind the next quote that no backslash takes away.
fn quoted_end(source: &[char], at: usize, quote: char) -> usize {
    let mut i = at;
    while i < source.len() && source[i] != quote {
        i += if source[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Behind a raw string whose `r` stands at `at`, if one does.
fn raw_end(source: &[char], at: usize) -> Option<usize> {
    let open = first(source, at + 1, |i| source[i] != '#');
    let hashes = open - at - 1;
    let closes = |i: usize| {
        let marks = source.get(i + 1..i + 1 + hashes);
        source[i] == '"' && marks.is_some_and(|marks| marks.iter().all(|c| *c == '#'))
    };
    (source.get(open) == Some(&'"')).then(|| first(source, open + 1, closes) + 1 + hashes)
}

/// Behind the comment, string or character that begins at `at`, if one does.
fn blank_end(source: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map_or(' ', |i| source[i]);
    let ahead = |n: usize| source.get(at + n).copied().unwrap_or_default();
    let end = match (source[at], ahead(1)) {
        ('/', '/') => first(source, at, |i| source[i] == '\n'),
        ('/', '*') => comment_end(source, at),
        ('"', _) => quoted_end(source, at + 1, '"'),
        ('r', '"' | '#') if !is_word(before) || ['b', 'c'].contains(&before) => {
            raw_end(source, at)?
        }
        ('\'', '\\') => quoted_end(source, at + 1, '\''),
        // Not a lifetime.
        ('\'', _) if ahead(2) == '\'' => at + 3,
        _ => return None,
    };
    Some(end.min(source.len()))
}

/// The text with comments, strings and characters blanked; lines stay where they are.
fn code_only(text: &str) -> Vec<char> {
    let source: Vec<char> = text.chars().collect();
    let mut code = Vec::with_capacity(source.len());
    while code.len() < source.len() {
        let at = code.len();
        match blank_end(&source, at) {
            Some(end) => code.extend(
                source[at..end]
                    .iter()
                    .map(|c| if *c == '\n' { '\n' } else { ' ' }),
            ),
            None => code.push(source[at]),
        }
    }
    code
}

/// The name and the lines of the function whose `fn` stands at `at`, if one with a body does.
fn function_at(code: &[char], at: usize) -> Option<(String, usize)> {
    let begins_a_word = at.checked_sub(1).is_none_or(|i| !is_word(code[i]));
    if !begins_a_word
        || !is_pair(code, at, ['f', 'n'])
        || code.get(at + 2).is_none_or(|c| !c.is_whitespace())
    {
        return None;
    }
    let begin = first(code, at + 2, |i| !code[i].is_whitespace());
    let name: String = code[begin..].iter().take_while(|c| is_word(**c)).collect();
    if name.is_empty() {
        return None;
    }
    // An array's length has a semicolon too.
    let (mut brackets, mut braces) = (0, 0);
    for (i, c) in code.iter().enumerate().skip(begin) {
        match c {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' if braces > 0 || brackets == 0 => braces += 1,
            '}' if braces > 0 => braces -= 1,
            _ => continue,
        }
        if *c == '}' && braces == 0 {
            let lines = 1 + code[at..i].iter().filter(|c| **c == '\n').count();
            return Some((name, lines));
        }
    }
    panic!(
        "the braces of fn {name} do not close: tidy.rs misreads a literal or a comment of this file"
    )
}

/// Every function of a text that has a body, those in others and in tests too.
fn functions(text: &str) -> Vec<(String, usize)> {
    let code = code_only(text);
    (0..code.len())
        .filter_map(|at| function_at(&code, at))
        .collect()
}

/// The paths in the tables of a page that are not there. Behind a path of its row one may be named
/// from its directory, or from one above.
fn missing_paths(page: &str, is_there: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    for (n, line) in page
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|'))
    {
        let mut places = BTreeSet::from([PathBuf::new()]);
        for name in line.split('`').skip(1).step_by(2) {
            let looks_like_one = name.contains('/') || ENDS.iter().any(|end| name.ends_with(end));
            // Patterns, placeholders and commands are no paths, and what begins at the machine's
            // root is not of this tree.
            if !looks_like_one || name.starts_with('/') || name.contains([' ', '*', '<', ':']) {
                continue;
            }
            let found = places
                .iter()
                .rev()
                .map(|place| place.join(name))
                .find(|path| is_there(path));
            match found {
                Some(path) => {
                    let dir = if name.ends_with('/') {
                        Some(path.as_path())
                    } else {
                        path.parent()
                    };
                    places.extend(
                        dir.into_iter()
                            .flat_map(Path::ancestors)
                            .map(Path::to_owned),
                    );
                }
                None => missing.push(format!("line {}: {name}", n + 1)),
            }
        }
    }
    missing
}

/// The keys of a manifest's tables of dependencies, those for one target too.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let tables = |of: &toml::Table| -> Vec<String> {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        kinds
            .iter()
            .filter_map(|kind| of.get(*kind)?.as_table())
            .flat_map(|t| t.keys().cloned())
            .collect()
    };
    let targets = manifest
        .get("target")
        .and_then(|t| t.as_table())
        .into_iter()
        .flat_map(|t| t.values());
    tables(manifest)
        .into_iter()
        .chain(targets.filter_map(|t| t.as_table()).flat_map(tables))
        .collect()
}

/// The manifests of the workspace's members: directory, name, names of dependencies.
fn members() -> Vec<(String, String, Vec<String>)> {
    let workspace: toml::Table = read("Cargo.toml")
        .parse()
        .expect("the workspace's manifest");
    let listed = workspace["workspace"]["members"]
        .as_array()
        .expect("members are a list");
    let of = |dir: &toml::Value| {
        let dir = dir.as_str().expect("a member is a directory").to_owned();
        let manifest: toml::Table = read(&format!("{dir}/Cargo.toml"))
            .parse()
            .expect("a member's manifest");
        let name = manifest["package"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        (dir, name, dependencies(&manifest))
    };
    listed.iter().map(of).collect()
}

/// What is longer than `most` lines and not listed so, and entries of the list that are not as they
/// were.
fn too_long(
    most: usize,
    listed: &[(&str, usize)],
    found: impl Iterator<Item = (String, usize)>,
) -> Vec<String> {
    let mut long: BTreeMap<String, usize> = BTreeMap::new();
    for (name, lines) in found.filter(|(_, lines)| *lines > most) {
        let longest = long.entry(name).or_default();
        *longest = lines.max(*longest);
    }
    let judge = |(name, before): &(&str, usize), now: Option<usize>| match now {
        None => Some(format!(
            "{name} is no exception any more: remove it from the list"
        )),
        Some(now) if now < *before => Some(format!(
            "{name} has shrunk: write {now} for {before} in the list"
        )),
        Some(now) if now > *before => Some(format!(
            "{name} has grown from {before} to {now} lines: split it, or move out what was added"
        )),
        Some(_) => None,
    };
    let mut broken: Vec<String> = listed
        .iter()
        .filter_map(|entry| judge(entry, long.remove(entry.0)))
        .collect();
    broken.extend(
        long.into_iter()
            .map(|(name, lines)| format!("{name} has {lines} lines: split it")),
    );
    broken
}

#[test]
fn no_rust_file_is_longer_than_one_subject_needs() {
    let files = all_rust_files()
        .into_iter()
        .map(|path| (path.clone(), read(&path).lines().count()));
    let broken = too_long(FILE_LINES, LONG_FILES, files);
    none(
        &format!(
            "A Rust file has one subject and at most {FILE_LINES} lines (exceptions: LONG_FILES \
                in tests/tests/tidy.rs):"
        ),
        &broken,
    );
}

#[test]
fn no_line_is_wider_than_100_columns_and_exceptions_only_shrink() {
    let wide = |path: String| {
        let text = read(&path);
        let wide = text.lines().filter(|line| line.chars().count() > COLUMNS);
        let count = wide.count();
        (path, count)
    };
    let broken = too_long(0, WIDE_FILES, all_rust_files().into_iter().map(wide));
    none(
        &format!(
            "A line has at most {COLUMNS} columns (exceptions, by the number of wider lines: \
                WIDE_FILES in tests/tests/tidy.rs):"
        ),
        &broken,
    );
}

#[test]
fn no_function_is_longer_than_a_screen_and_exceptions_only_shrink() {
    let of = |path: String| {
        functions(&read(&path))
            .into_iter()
            .map(move |(name, lines)| (format!("{path}: fn {name}"), lines))
    };
    let broken = too_long(
        FUNCTION_LINES,
        LONG_FUNCTIONS,
        all_rust_files().into_iter().flat_map(of),
    );
    none(
        &format!(
            "A function has at most {FUNCTION_LINES} lines (exceptions: LONG_FUNCTIONS in \
                tests/tests/tidy.rs):"
        ),
        &broken,
    );
}

#[test]
fn every_path_in_the_tables_of_architecture_exists() {
    let page = read("docs/ARCHITECTURE.md");
    let is_there = |path: &Path| root().join(path).exists();
    let broken = missing_paths(&page, is_there);
    none(
        "docs/ARCHITECTURE.md names what is not there. Write where it is now, from the root or \
            from a path before it:",
        &broken,
    );
}

#[test]
fn crates_depend_only_on_crates_of_lower_layers() {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let members = members();
    let mut broken = Vec::new();
    for (dir, name, needs) in &members {
        let Some(own) = layer(name) else {
            broken.push(format!(
                "{dir}/Cargo.toml: {name} has no layer: add it to LAYERS and to \
                the table of docs/ARCHITECTURE.md"
            ));
            continue;
        };
        let upward = needs
            .iter()
            .filter(|needed| layer(needed).is_some_and(|theirs| theirs >= own));
        broken.extend(upward.map(|needed| {
            format!(
                "{dir}/Cargo.toml: {name} needs {needed}, of its layer or one above: move \
                what both need into a lower crate"
            )
        }));
    }
    let gone = LAYERS
        .concat()
        .into_iter()
        .filter(|name| !members.iter().any(|(_, member, _)| member == name));
    broken.extend(
        gone.map(|name| format!("{name} is no member of the workspace: remove it from LAYERS")),
    );
    none(
        "Crates build on lower crates only (LAYERS in tests/tests/tidy.rs):",
        &broken,
    );
}

#[test]
fn braces_in_comments_and_literals_do_not_count() {
    let text = r##"
fn one(a: [u8; 2], f: fn(u8) -> u8) -> &'static str {
    // } and "
    /* } /* } */ } */
    let _ = ('}', '\'', '"', b'{', "}\"}", r#"}"}"#, '\u{7d}');
    "}"
}
trait T { fn without(&self) -> [u8; 3]; fn two<'a>(&'a self) {
    fn within() {}
} }
"##;
    let found = functions(text);
    let wanted = [("one", 6), ("two", 3), ("within", 1)];
    assert_eq!(found, wanted.map(|(name, lines)| (name.to_owned(), lines)));
}

#[test]
fn an_exception_may_shrink_and_go_and_nothing_else() {
    let of = |found: &[(&str, usize)]| {
        too_long(
            5,
            &[("a", 9)],
            found
                .iter()
                .map(|(name, lines)| ((*name).to_owned(), *lines)),
        )
    };
    assert_eq!(of(&[("a", 9), ("a", 6), ("b", 5)]), Vec::<String>::new());
    for (now, said) in [
        (10, "a has grown from 9 to 10"),
        (7, "write 7 for 9"),
        (5, "remove it"),
    ] {
        let broken = of(&[("a", now)]);
        assert!(broken.len() == 1 && broken[0].contains(said), "{broken:?}");
    }
    assert_eq!(of(&[("a", 9), ("b", 6)]), ["b has 6 lines: split it"]);
}

#[test]
fn a_path_of_a_table_is_found_from_the_paths_before_it() {
    let there = ["a/src", "a/src/x.rs", "a/src/deep/y.rs", "b/z.rs"];
    let is_there = |path: &Path| there.iter().any(|known| path == Path::new(known));
    let page = "`no/table.rs`\n| x | `a/src/`: `x.rs`, `deep/y.rs` (`handle`, `slow_*.rs`); \
        `b/z.rs` |\n| y | `x.rs`, `b/gone.rs` |\n";
    assert_eq!(
        missing_paths(page, is_there),
        ["line 3: x.rs", "line 3: b/gone.rs"]
    );
}
