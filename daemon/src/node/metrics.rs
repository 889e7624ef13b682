//! Figures for Prometheus in its text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), of this member or of all (a
//! question over the ring, see [`crate::cluster::ask`]). Names end with their unit; counters start
//! with the daemon. Every figure carries the member's name, so that one page can have those of all.

use super::service::Node;
use p2pvm_api::{Metrics, Sample, VmStateView, VmView};
use p2pvm_authority::Usage;
use p2pvm_overlay::{
    MemberId,
    plane::{Path, PathInfo},
};
use std::{collections::BTreeMap, fmt::Write};

/// How many labels a sample may have beside the member's name. Reason: this program writes no more.
const MAX_LABELS: usize = 8;

/// The meaning of a figure.
struct Family {
    name: &'static str,
    counter: bool,
    help: &'static str,
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        counter: false,
        help,
    }
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        counter: true,
        help,
    }
}

const FAMILIES: [Family; 35] = [
    gauge("p2pvm_info", "1, with the version of the program."),
    gauge("p2pvm_up_seconds", "Time since the daemon started."),
    gauge("p2pvm_resident_bytes", "Resident memory of the daemon."),
    gauge(
        "p2pvm_cpu_busy_ratio",
        "Load of the host's processors, 0 to 1.",
    ),
    gauge("p2pvm_vms", "Virtual machines held here, by state."),
    gauge(
        "p2pvm_control_connections",
        "Members with a live control connection.",
    ),
    gauge("p2pvm_links", "Packet links, by the kind of path they use."),
    gauge(
        "p2pvm_link_rtt_seconds",
        "Round trip to a member with a link.",
    ),
    gauge(
        "p2pvm_link_sent_bytes",
        "Bytes sent over the link to a member, since the link was made.",
    ),
    gauge(
        "p2pvm_link_received_bytes",
        "Bytes received over the link to a member, since the link was made.",
    ),
    gauge(
        "p2pvm_ring_joined",
        "1 if this member has its place on the ring.",
    ),
    gauge("p2pvm_ring_neighbours", "Neighbours on the ring, by kind."),
    gauge(
        "p2pvm_ring_size_estimate",
        "Members of the network, estimated from their spacing.",
    ),
    gauge(
        "p2pvm_ring_coordinate_error_ratio",
        "Expected relative error of this member's network coordinate.",
    ),
    counter(
        "p2pvm_ring_repairs_total",
        "Near neighbours replaced or found.",
    ),
    counter(
        "p2pvm_ring_carried_packets_total",
        "Packets of other pairs handed on over the ring.",
    ),
    counter(
        "p2pvm_relayed_bytes_total",
        "Bytes passed on for other members as their relay.",
    ),
    counter(
        "p2pvm_relay_refused_bytes_total",
        "Bytes not passed on because of the limit this member sets.",
    ),
    counter(
        "p2pvm_punches_total",
        "Tries to reach members through NATs that allow it.",
    ),
    counter(
        "p2pvm_punches_direct_total",
        "Of these, those that came through.",
    ),
    counter(
        "p2pvm_punches_first_try_total",
        "Of these, those that came through at the first try.",
    ),
    counter(
        "p2pvm_denied_packets_total",
        "Packets that the network's access rules kept out.",
    ),
    counter(
        "p2pvm_trace_spans_sent_total",
        "Spans of traces that the collector took.",
    ),
    counter(
        "p2pvm_trace_spans_dropped_total",
        "Spans of traces lost: too many waited, or the collector refused them.",
    ),
    gauge(
        "p2pvm_trace_spans_waiting",
        "Spans of traces that wait for the collector.",
    ),
    gauge(
        "p2pvm_vm_rpo_seconds",
        "Age of the newest whole replica of a VM's disk: what a loss of this host would cost.",
    ),
    gauge(
        "p2pvm_vm_rpo_limit_seconds",
        "Age of the newest replica above which it is late: twice the time between two.",
    ),
    counter(
        "p2pvm_vm_replica_bytes_total",
        "Bytes of new chunks in replicas of a VM's disk, which each holder fetches.",
    ),
    counter(
        "p2pvm_used_cpu_seconds_total",
        "Processor time that an owner's VMs used here.",
    ),
    counter(
        "p2pvm_used_memory_byte_seconds_total",
        "Memory promised to an owner's VMs here, times seconds.",
    ),
    counter("p2pvm_events_total", "Events recorded here, by kind."),
    gauge(
        "p2pvm_snapshots",
        "Snapshots of the VMs here, by whether as many members as wanted have them.",
    ),
    gauge(
        "p2pvm_voters_silent",
        "Voters of a VM here that have no control connection to this member.",
    ),
    gauge(
        "p2pvm_disk_free_bytes",
        "Room for others than root on the disk with this node's state.",
    ),
    gauge(
        "p2pvm_store_unrepaired",
        "Snapshots and images here that lack chunks no connected member could give.",
    ),
];

pub(super) fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> Sample {
    Sample {
        name: name.to_owned(),
        labels: labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        value,
    }
}

/// How many VMs here are in each state; a host without one says that none runs.
fn states(vms: &[VmView]) -> Vec<Sample> {
    let running = VmStateView::Running.to_string();
    let mut states: BTreeMap<String, u32> = BTreeMap::from([(running, 0)]);
    for vm in vms {
        *states.entry(vm.state.to_string()).or_default() += 1;
    }
    let of_state =
        |(state, n): (&String, &u32)| sample("p2pvm_vms", &[("state", state)], f64::from(*n));
    states.iter().map(of_state).collect()
}

/// How well the disks of the VMs here are replicated.
fn replicas(vms: &[VmView]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for vm in vms {
        let Some(replication) = &vm.replication else {
            continue;
        };
        let of_vm = |name: &str, value: u64| sample(name, &[("vm", &vm.name)], value as f64);
        samples.extend(
            replication
                .rpo_s
                .map(|age| of_vm("p2pvm_vm_rpo_seconds", age)),
        );
        let limit = replication.every_s.saturating_mul(2);
        samples.push(of_vm("p2pvm_vm_rpo_limit_seconds", limit));
        samples.push(of_vm("p2pvm_vm_replica_bytes_total", replication.new_bytes));
    }
    samples
}

impl Node {
    /// This member's figures.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let status = self.status();
        let plain = |name: &str, value: f64| sample(name, &[], value);
        let (relayed, refused) = self.parts.plane.relayed();
        let (ring, punches) = (&status.ring, &status.punches);
        let mut samples = vec![
            sample(
                "p2pvm_info",
                &[("version", &status.version), ("nat", &status.nat)],
                1.0,
            ),
            plain("p2pvm_up_seconds", status.up_seconds as f64),
            plain("p2pvm_resident_bytes", status.resident_bytes as f64),
            plain("p2pvm_cpu_busy_ratio", status.cpu),
            plain("p2pvm_control_connections", status.connected as f64),
            plain("p2pvm_ring_joined", f64::from(u8::from(ring.joined))),
            sample(
                "p2pvm_ring_neighbours",
                &[("kind", "near")],
                ring.near as f64,
            ),
            sample("p2pvm_ring_neighbours", &[("kind", "far")], ring.far as f64),
            sample(
                "p2pvm_ring_neighbours",
                &[("kind", "shortcut")],
                ring.shortcuts as f64,
            ),
            plain("p2pvm_ring_size_estimate", ring.size_estimate),
            plain(
                "p2pvm_ring_coordinate_error_ratio",
                f64::from(ring.coordinate_error),
            ),
            plain("p2pvm_ring_repairs_total", ring.repairs as f64),
            plain("p2pvm_ring_carried_packets_total", ring.carried as f64),
            plain("p2pvm_relayed_bytes_total", relayed as f64),
            plain("p2pvm_relay_refused_bytes_total", refused as f64),
            plain("p2pvm_punches_total", punches.tried as f64),
            plain("p2pvm_punches_direct_total", punches.direct as f64),
            plain("p2pvm_punches_first_try_total", punches.first_try as f64),
            plain(
                "p2pvm_denied_packets_total",
                self.parts.plane.denied() as f64,
            ),
        ];
        let vms = self.vms.here();
        samples.extend(states(&vms));
        samples.extend(replicas(&vms));
        if let Some(exporter) = &self.exporter {
            let counts = exporter.counts();
            samples.push(plain("p2pvm_trace_spans_sent_total", counts.sent as f64));
            samples.push(plain(
                "p2pvm_trace_spans_dropped_total",
                counts.dropped as f64,
            ));
            samples.push(plain("p2pvm_trace_spans_waiting", counts.waiting as f64));
        }
        samples.extend(used(&self.usage.totals()));
        samples.extend(self.kept());
        samples.extend(stored(self.usage.unrepaired()));
        samples.extend(links(&self.parts.plane.peers(), |member| {
            self.parts.name_of(member)
        }));
        samples
    }

    /// This member's figures.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            members: vec![(self.parts.name_of(self.parts.me()), self.samples())],
            remarks: Vec::new(),
        }
    }
}

fn stored(unrepaired: Option<f64>) -> Option<Sample> {
    unrepaired.map(|count| sample("p2pvm_store_unrepaired", &[], count))
}

fn used(totals: &[(String, Usage)]) -> Vec<Sample> {
    let of_owner = |(owner, used): &(String, Usage)| {
        let owner = [("owner", owner.as_str())];
        let memory = used.memory_mib_s as f64 * f64::from(1 << 20);
        [
            sample(
                "p2pvm_used_cpu_seconds_total",
                &owner,
                used.cpu_ms as f64 / 1e3,
            ),
            sample("p2pvm_used_memory_byte_seconds_total", &owner, memory),
        ]
    };
    totals.iter().flat_map(of_owner).collect()
}

fn links(peers: &[(MemberId, PathInfo)], name: impl Fn(MemberId) -> String) -> Vec<Sample> {
    let mut kinds: BTreeMap<&str, u32> = ["direct", "relayed", "ring", "stream"]
        .map(|kind| (kind, 0))
        .into();
    let mut samples = Vec::new();
    for (member, link) in peers {
        let kind = match link.path {
            Path::Direct(_) => "direct",
            Path::Relayed(_) => "relayed",
            Path::Ring => "ring",
            Path::Stream => "stream",
        };
        *kinds.entry(kind).or_default() += 1;
        let name = name(*member);
        let to = [("to", name.as_str())];
        samples.extend(
            link.rtt
                .map(|rtt| sample("p2pvm_link_rtt_seconds", &to, rtt.as_secs_f64())),
        );
        samples.push(sample("p2pvm_link_sent_bytes", &to, link.tx_bytes as f64));
        samples.push(sample(
            "p2pvm_link_received_bytes",
            &to,
            link.rx_bytes as f64,
        ));
    }
    samples.extend(
        kinds
            .iter()
            .map(|(kind, n)| sample("p2pvm_links", &[("path", kind)], f64::from(*n))),
    );
    samples
}

/// Whether Prometheus accepts a name. Reason: another member's text is not copied into the page
/// unchecked.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.as_bytes()[0].is_ascii_digit()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Figures as Prometheus reads them. Each family stands together, as the format asks; remarks are
/// comments at the end. What is of no family known here is left out.
pub fn prometheus_page(metrics: &Metrics) -> String {
    let mut lines: BTreeMap<usize, String> = BTreeMap::new();
    for (member, s) in metrics
        .members
        .iter()
        .flat_map(|(member, samples)| samples.iter().map(move |s| (member, s)))
    {
        let known = FAMILIES.iter().position(|family| family.name == s.name);
        let (Some(family), true) = (
            known,
            s.labels.len() <= MAX_LABELS && s.labels.iter().all(|(key, _)| is_name(key)),
        ) else {
            continue;
        };
        let text = lines.entry(family).or_default();
        let labels: String = s
            .labels
            .iter()
            .map(|(key, value)| format!(",{key}=\"{}\"", escaped(value)))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{}{{member=\"{}\"{labels}}} {}",
            s.name,
            escaped(member),
            s.value
        );
    }
    let mut page = String::new();
    for (family, text) in lines {
        let Family {
            name,
            counter,
            help,
        } = &FAMILIES[family];
        let kind = if *counter { "counter" } else { "gauge" };
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{text}");
    }
    for remark in &metrics.remarks {
        let _ = writeln!(page, "# {}", remark.replace('\n', " "));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_type_and_each_figure_its_member() {
        let of = |n: f64| {
            vec![
                sample("p2pvm_up_seconds", &[], n),
                sample("p2pvm_vms", &[("state", "running")], n),
            ]
        };
        let text = prometheus_page(&Metrics {
            members: vec![("a".to_owned(), of(1.0)), ("b".to_owned(), of(2.5))],
            remarks: vec!["c did not answer".to_owned()],
        });
        let expected = "# HELP p2pvm_up_seconds Time since the daemon started.\n# TYPE \
            p2pvm_up_seconds gauge\n\
            p2pvm_up_seconds{member=\"a\"} 1\np2pvm_up_seconds{member=\"b\"} 2.5\n\
            # HELP p2pvm_vms Virtual machines held here, by state.\n# TYPE p2pvm_vms gauge\n\
            p2pvm_vms{member=\"a\",state=\"running\"} \
            1\np2pvm_vms{member=\"b\",state=\"running\"} 2.5\n# c did not answer\n";
        assert_eq!(text, expected);
    }

    /// Every name in the dashboard's queries is exported, with rates taken of what grows only.
    #[test]
    fn the_dashboard_shows_only_figures_that_there_are() {
        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../../../packaging/grafana/p2pvm.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let targets = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let queries: Vec<&str> = targets
            .map(|target| target["expr"].as_str().unwrap())
            .collect();
        assert!(queries.len() > 20);
        let mut shown = std::collections::BTreeSet::new();
        for query in queries {
            let names = query
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .filter(|word| word.starts_with("p2pvm_"));
            for name in names {
                let family = FAMILIES
                    .iter()
                    .find(|f| f.name == name)
                    .unwrap_or_else(|| panic!("{query}: {name} is not exported"));
                let rated = query.contains(&format!("rate({name}"))
                    || query.contains(&format!("increase({name}"));
                assert!(!family.counter || rated, "{query}: {name} is a counter");
                shown.insert(family.name);
            }
        }
        assert_eq!(
            shown.len(),
            FAMILIES.len(),
            "the dashboard has a place for every figure"
        );
    }

    /// Every name in the shipped alerts is exported, and so is every kind of event.
    #[test]
    fn the_alerts_are_about_figures_that_there_are() {
        let rules = include_str!("../../../packaging/prometheus/p2pvm.rules.yml");
        let queries: Vec<&str> = rules
            .lines()
            .filter_map(|line| line.trim().strip_prefix("expr: "))
            .collect();
        assert!(queries.len() > 7);
        for query in queries {
            let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c)));
            for name in words.clone().filter(|word| word.starts_with("p2pvm_")) {
                let family = FAMILIES.iter().find(|family| family.name == name);
                let family = family.unwrap_or_else(|| panic!("{query}: {name} is not exported"));
                let is_rated = query.contains(&format!("increase({name}"));
                assert!(!family.counter || is_rated, "{query}: {name} is a counter");
            }
            let kind = query
                .split("kind=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let is_kind = |kind| {
                p2pvm_api::EventKind::KNOWN
                    .iter()
                    .any(|(_, word)| *word == kind)
            };
            assert!(
                kind.is_none_or(is_kind),
                "{query}: no event is of that kind"
            );
        }
    }

    #[test]
    fn use_is_told_by_owner() {
        let hour = Usage {
            cpu_ms: 1500,
            memory_mib_s: 2,
            ..Usage::default()
        };
        let metrics = Metrics {
            members: vec![("a".to_owned(), used(&[("b".to_owned(), hour)]))],
            remarks: Vec::new(),
        };
        let page = prometheus_page(&metrics);
        for line in [
            "p2pvm_used_cpu_seconds_total{member=\"a\",owner=\"b\"} 1.5",
            "p2pvm_used_memory_byte_seconds_total{member=\"a\",owner=\"b\"} 2097152",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[test]
    fn what_another_member_says_cannot_forge_a_line() {
        let evil = "x\"} 1\np2pvm_up_seconds{member=\"victim\"";
        let samples = vec![
            sample("p2pvm_up_seconds", &[("to", evil)], 1.0),
            sample("p2pvm_up_seconds", &[(evil, "x")], 1.0),
            sample(evil, &[], 1.0),
            sample("p2pvm_unheard_of", &[], 1.0),
        ];
        let text = prometheus_page(&Metrics {
            members: vec![(evil.to_owned(), samples)],
            remarks: vec!["a\nb".to_owned()],
        });
        assert_eq!(
            text.lines().filter(|line| !line.starts_with('#')).count(),
            1,
            "{text}"
        );
        assert_eq!(text.lines().count(), 4, "{text}");
    }
}
