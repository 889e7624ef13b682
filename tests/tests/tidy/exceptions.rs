//! What the rules of `tidy` do not hold for yet.

/// Files and functions that were longer when the rules came, with their lines. An entry only
/// shrinks or goes; there are no new ones.
pub const LONG_FILES: &[(&str, usize)] = &[
    ("node/src/cli/network.rs", 752),
    ("node/src/doctor/judge.rs", 697),
    ("node/tests/e2e_dashboard.rs", 751),
    ("node/tests/e2e_policy.rs", 671),
    ("overlay/src/membership/trust_tests.rs", 643),
];
/// Files with wider lines, by their number: tables, addresses and settings that cannot be broken.
pub const WIDE_FILES: &[(&str, usize)] = &[
    ("daemon/src/routes/subnets/judge.rs", 1),
    ("daemon/src/succession.rs", 1),
    ("dhcp/tests/host/resolved.rs", 3),
    ("lab/src/host_state.rs", 1),
    ("lab/src/sim/plot.rs", 8),
    ("lab/src/sites.rs", 2),
    ("node/tests/docs/session.rs", 1),
    ("node/tests/e2e_absent.rs", 1),
    ("node/tests/e2e_hosts.rs", 1),
    ("node/tests/e2e_odd_hosts.rs", 1),
    ("node/tests/e2e_vm.rs", 1),
    ("node/tests/iso_boot.rs", 1),
    ("node/tests/iso_members.rs", 2),
    ("node/tests/slow_hosts.rs", 3),
    ("overlay/src/control/gate.rs", 1),
    ("overlay/src/coordinates_tests.rs", 1),
    ("overlay/src/link/state/tests.rs", 1),
    ("overlay/src/link/wire.rs", 1),
    ("overlay/src/membership/policy/tests.rs", 2),
    ("overlay/src/ring/table.rs", 2),
    ("tests/tests/tidy/exceptions.rs", 7),
];
pub const LONG_FUNCTIONS: &[(&str, usize)] = &[
    (
        "daemon/src/web/access.rs: fn a_request_for_another_name_or_from_another_page_is_refused",
        75,
    ),
    ("node/src/cli/netcheck.rs: fn show", 104),
    ("node/src/cli/network.rs: fn join", 87),
    (
        "node/src/doctor/judge.rs: fn what_only_works_less_well_is_a_warning",
        81,
    ),
    (
        "node/tests/deb.rs: fn \
            the_package_installs_on_a_clean_debian_and_an_upgrade_keeps_state_settings_and_the_running_vm",
        159,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            a_host_is_emptied_two_at_a_time_whatever_one_vm_does_and_ctrl_c_lets_those_that_move_arrive",
        94,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            the_vms_of_a_dead_host_stay_listed_with_what_can_be_done_until_it_returns",
        99,
    ),
    (
        "node/tests/e2e_absent.rs: fn \
            two_vms_of_one_name_made_in_two_halves_of_a_network_both_live_on_and_can_be_deleted",
        95,
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
        87,
    ),
    (
        "node/tests/e2e_dashboard.rs: fn \
            a_guests_console_echoes_over_a_websocket_and_the_page_moves_its_vm_from_any_member",
        93,
    ),
    (
        "node/tests/e2e_dashboard.rs: fn \
            the_dashboard_is_off_until_switched_on_and_answers_who_shows_the_token_what_is_on_its_list",
        238,
    ),
    (
        "node/tests/e2e_doctor.rs: fn \
            beside_a_daemon_that_hangs_every_command_says_so_within_seconds_and_force_ends_it",
        135,
    ),
    (
        "node/tests/e2e_doctor.rs: fn health_doctor_and_commands_say_what_is_so",
        113,
    ),
    (
        "node/tests/e2e_doctor.rs: fn \
            what_joining_needs_is_checked_before_the_invite_is_used_and_names_come_out_usable",
        140,
    ),
    (
        "node/tests/e2e_full_disk.rs: fn \
            a_guest_on_a_full_disk_is_paused_with_the_reason_and_loses_nothing",
        142,
    ),
    ("node/tests/e2e_hosts.rs: fn beside_with", 85),
    (
        "node/tests/e2e_mobility.rs: fn \
            a_network_that_is_started_anew_finds_together_without_those_it_joined_through",
        71,
    ),
    (
        "node/tests/e2e_mobility.rs: fn \
            every_link_is_back_within_ten_seconds_of_a_move_and_tcp_goes_on",
        77,
    ),
    (
        "node/tests/e2e_odd_hosts.rs: fn \
            in_a_rootless_container_a_member_joins_and_the_doctor_says_what_is_so",
        86,
    ),
    (
        "node/tests/e2e_odd_hosts.rs: fn \
            on_a_disk_that_takes_seconds_for_a_sync_packets_and_control_do_not_wait_for_it",
        101,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_guest_is_reached_over_ipv6_has_a_name_and_is_guarded_by_it",
        80,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_hosts_programs_find_names_and_addresses_and_resolv_conf_is_as_it_was_afterwards",
        144,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            a_lan_is_reached_through_the_member_that_offers_it_for_as_long_as_it_may_and_does",
        113,
    ),
    (
        "node/tests/e2e_policy.rs: fn \
            rules_hold_where_packets_arrive_and_acl_check_says_what_happens",
        108,
    ),
    (
        "node/tests/e2e_routes.rs: fn a_host_is_after_down_and_after_a_kill_as_it_was_before",
        104,
    ),
    (
        "node/tests/e2e_traces.rs: fn \
            one_migration_is_one_trace_over_both_hosts_and_a_collector_that_is_away_hinders_none",
        227,
    ),
    (
        "node/tests/e2e_truth.rs: fn \
            a_guests_interface_that_passes_nothing_is_named_with_what_drops_its_packets",
        135,
    ),
    (
        "node/tests/e2e_truth.rs: fn \
            members_whose_control_port_alone_is_blocked_are_not_called_unreachable",
        79,
    ),
    (
        "node/tests/e2e_twins.rs: fn \
            of_two_daemons_with_one_state_the_later_becomes_a_member_of_its_own_and_its_vms_are_branches",
        98,
    ),
    (
        "node/tests/e2e_vm.rs: fn \
            what_cannot_be_a_vms_disk_is_refused_with_the_reason_and_leaves_nothing",
        77,
    ),
    (
        "node/tests/iso_members.rs: fn \
            a_machine_installs_unattended_by_command_line_boots_from_its_disk_as_the_same_member_and_a_clone_becomes_another",
        85,
    ),
    (
        "node/tests/iso_members.rs: fn \
            two_appliances_join_and_a_guest_that_is_started_in_one_from_outside_moves_out_and_back_while_a_client_counts",
        93,
    ),
    ("node/tests/slow_hosts.rs: fn beside", 77),
    (
        "node/tests/slow_paths.rs: fn \
            a_path_is_direct_again_whatever_its_routers_forget_or_become",
        142,
    ),
    (
        "node/tests/slow_routers.rs: fn \
            another_router_with_another_nat_is_followed_whichever_comes_first",
        81,
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
    ("overlay/src/ring/near.rs: fn plan_near", 78),
    (
        "overlay/src/ring/tests.rs: fn \
            nothing_that_a_neighbour_sends_panics_or_grows_memory_without_bound",
        91,
    ),
];
