//! The page: tables of medians with their spread, the loss curves, and the failures.

use super::{FAR_MS, LOSSES, LOSSY_STREAMS, Measure, Measured, Options, Round, programs::Which};
use clap::ValueEnum;
use std::{fmt::Write as _, fs, time::Duration};

/// A value of each round, `None` where it was not measured.
type Of<'a> = &'a dyn Fn(&Round) -> Option<f64>;

fn values(row: &Measured, of: Of<'_>) -> Vec<f64> {
    let mut values: Vec<f64> = row.rounds.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(row: &Measured, of: Of<'_>) -> Option<f64> {
    let values = values(row, of);
    values.get(values.len() / 2).copied()
}

fn cell(row: &Measured, of: Of<'_>, digits: usize) -> String {
    match &values(row, of)[..] {
        [] => "–".into(),
        [only] => format!("{only:.digits$}"),
        all => format!(
            "{:.digits$} ({:.digits$}–{:.digits$})",
            all[all.len() / 2],
            all[0],
            all[all.len() - 1]
        ),
    }
}

/// The most datagrams a second that came through at any rate offered.
fn best(round: &Round, bytes: usize) -> Option<f64> {
    let (_, points) = round.udp.iter().find(|(size, _)| *size == bytes)?;
    points
        .iter()
        .map(|p| p.received / 1e3)
        .max_by(f64::total_cmp)
}

fn over(row: &Measured, raw: Option<&Measured>, of: Of<'_>) -> String {
    match (median(row, of), raw.and_then(|raw| median(raw, of))) {
        (Some(value), Some(raw)) if row.name != "raw veth" => {
            format!("{} (+{:.0})", cell(row, of, 0), value - raw)
        }
        _ => cell(row, of, 0),
    }
}

fn title(row: &Measured) -> String {
    format!("{} {}", row.name, row.version).trim().to_owned()
}

struct Table {
    text: String,
}

impl Table {
    fn new(columns: &[&str]) -> Self {
        let rule: String = columns.iter().map(|_| "---|").collect();
        Self {
            text: format!("| {} |\n|{rule}\n", columns.join(" | ")),
        }
    }

    fn row(&mut self, cells: &[String]) {
        if cells[1..].iter().any(|cell| cell != "–") {
            let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        }
    }
}

/// The command that makes this page.
fn made_by(only: &[Which], measure: &[Measure], rounds: u32) -> String {
    let only = (!only.is_empty()).then(|| names(only));
    let make = only
        .as_ref()
        .map(|only| format!(" ONLY={only}"))
        .unwrap_or_default();
    let only = only
        .map(|only| format!(" --only {only}"))
        .unwrap_or_default();
    let command = format!("p2pvm testbed bench-net --rounds {rounds}{only}");
    if measure.is_empty() {
        format!("`make bench-net ROUNDS={rounds}{make}` (`{command} --out docs/speed.md`)")
    } else {
        // `make` would also measure what is missing here.
        format!("`{command} --measure {}`", names(measure))
    }
}

fn names<T: ValueEnum>(values: &[T]) -> String {
    let names: Vec<String> = values
        .iter()
        .filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned()))
        .collect();
    names.join(",")
}

/// The tables of medians.
struct Tables {
    tcp: Table,
    ping: Table,
    loss: Table,
    udp: Table,
}

impl Tables {
    fn new() -> Self {
        let [loss_1, loss_2] = LOSSES.map(|percent| format!("{percent} %, Mbit/s"));
        Self {
            tcp: Table::new(&[
                "program",
                "TCP 1 stream, Gbit/s",
                "8 streams",
                "both directions",
                "daemons' CPU s per GB",
                "resident MB",
                "relayed, Gbit/s",
                "relay's CPU s per GB",
            ]),
            ping: Table::new(&[
                "program",
                "idle: median, µs (over raw)",
                "p99",
                "under a bulk stream: median",
                "p99",
            ]),
            loss: Table::new(&["program", &loss_1, &loss_2]),
            udp: Table::new(&["program", "1 200 bytes, thousand/s", "64 bytes, thousand/s"]),
        }
    }

    /// Adds a program's row to each table.
    fn add(&mut self, row: &Measured, raw: Option<&Measured>) {
        let name = title(row);
        self.tcp.row(&[
            name.clone(),
            cell(row, &|r| r.tcp_1, 2),
            cell(row, &|r| r.tcp_8, 2),
            cell(row, &|r| r.tcp_both, 2),
            cell(row, &|r| r.cpu_per_gb, 1),
            cell(row, &|r| r.resident_mb, 0),
            cell(row, &|r| r.relayed, 2),
            cell(row, &|r| r.relay_cpu_per_gb, 1),
        ]);
        self.ping.row(&[
            name.clone(),
            over(row, raw, &|r| r.ping_idle.map(|p| p.0)),
            cell(row, &|r| r.ping_idle.map(|p| p.1), 0),
            over(row, raw, &|r| r.ping_loaded.map(|p| p.0)),
            cell(row, &|r| r.ping_loaded.map(|p| p.1), 0),
        ]);
        self.loss.row(&[
            name.clone(),
            cell(row, &|r| r.lossy.first().copied(), 1),
            cell(row, &|r| r.lossy.get(1).copied(), 1),
        ]);
        self.udp.row(&[
            name,
            cell(row, &|r| best(r, 1200), 0),
            cell(row, &|r| best(r, 64), 0),
        ]);
    }
}

/// The whole page.
pub(super) fn page(results: &[Measured], options: &Options, took: Duration) -> String {
    let rounds = options.rounds;
    let raw = results.iter().find(|row| row.name == "raw veth");
    let mut tables = Tables::new();
    for row in results {
        tables.add(row, raw);
    }
    let Tables {
        tcp,
        ping,
        loss,
        udp,
    } = tables;
    let mut text = format!(
        "# How fast packets go\n\nMade by {}; every figure comes from that run, which took {:.0} \
            min. {}\n\n\
        Two hosts in network namespaces on one veth cable. Senders, receivers, both daemons and \
        both kernels share the machine's processors.\n\
        Medians of {rounds} rounds (smallest–largest); each round goes over all programs.\n\n## \
        TCP\n\n{}\n",
        made_by(&options.only, &options.measure, rounds),
        took.as_secs_f64() / 60.0,
        machine(),
        tcp.text,
    );
    let _ = write!(
        text,
        "Relayed: through a third host that joins two cables. Raw: it routes. WireGuard has no \
            relays: its third host decrypts, routes and encrypts.\n\n\
        ## Round trips of `ping`\n\n{}\n## UDP\n\nThe most datagrams a second that arrived, \
        whatever was offered.\n\n{}\n",
        ping.text, udp.text
    );
    text.push_str(&curves(results));
    let _ = write!(
        text,
        "\n## TCP where packets are lost\n\n{LOSSY_STREAMS} streams (CUBIC) together over \
            {FAR_MS} ms of round trip, that share of packets lost each way.\n\n{}",
        loss.text
    );
    text.push_str(&failures(results));
    text
}

/// For each size and rate offered: what arrived and what share was lost, medians.
fn curves(results: &[Measured]) -> String {
    let mut text = String::new();
    let Some(sizes) = results
        .iter()
        .flat_map(|row| &row.rounds)
        .find(|r| !r.udp.is_empty())
        .map(|r| &r.udp)
    else {
        return text;
    };
    for (which, (bytes, points)) in sizes.iter().enumerate() {
        let wanted: Vec<String> = points
            .iter()
            .map(|p| format!("{:.0}", p.wanted / 1e3))
            .collect();
        let _ = write!(
            text,
            "\nLoss curve at {bytes} bytes: thousand/s arrived (share lost of what the sender \
                could bring in), by thousand/s wanted.\n\n"
        );
        let mut columns = vec!["program"];
        columns.extend(wanted.iter().map(String::as_str));
        let mut table = Table::new(&columns);
        for row in results {
            let mut cells = vec![title(row)];
            for step in 0..points.len() {
                let point = |r: &Round| r.udp.get(which)?.1.get(step).copied();
                let lost = |r: &Round| {
                    point(r)
                        .map(|p| (1.0 - p.received / p.offered.max(1.0)).clamp(0.0, 1.0) * 100.0)
                };
                cells.push(
                    match (
                        median(row, &|r| point(r).map(|p| p.received / 1e3)),
                        median(row, &lost),
                    ) {
                        (Some(came), Some(lost)) => format!("{came:.0} ({lost:.0} %)"),
                        _ => "–".into(),
                    },
                );
            }
            table.row(&cells);
        }
        text.push_str(&table.text);
    }
    text
}

fn failures(results: &[Measured]) -> String {
    let mut text = String::new();
    for row in results {
        let mut reasons: Vec<&String> = row.rounds.iter().flat_map(|r| &r.failed).collect();
        reasons.sort();
        reasons.dedup();
        for why in reasons {
            let times = row.rounds.iter().filter(|r| r.failed.contains(why)).count();
            let _ = writeln!(
                text,
                "- {}, {times} of {} rounds: {}",
                title(row),
                row.rounds.len(),
                why.replace('\n', " ")
            );
        }
    }
    if text.is_empty() {
        text
    } else {
        format!("\n## Not measured\n\n{text}")
    }
}

/// Processors and kernel.
fn machine() -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .and_then(|l| l.split_once(':'))
        .map_or("", |(_, name)| name.trim());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cpus} processors ({model}), Linux {}.",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Point, *};
    use clap::{Args, Command, FromArgMatches};

    fn options(arguments: &[&str]) -> Options {
        let command = Options::augment_args(Command::new("bench-net").no_binary_name(true));
        Options::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }

    #[test]
    fn the_page_names_the_command_that_makes_it() {
        let all = page(&[], &options(&[]), Duration::from_secs(60));
        assert!(
            all.contains(
                "Made by `make bench-net ROUNDS=3` (`p2pvm testbed bench-net \
            --rounds 3 --out docs/speed.md`);"
            ),
            "{all}"
        );
        let some = page(
            &[],
            &options(&["--only", "raw,wireguard-go", "--rounds", "5"]),
            Duration::from_secs(60),
        );
        assert!(
            some.contains(
                "`make bench-net ROUNDS=5 ONLY=raw,wireguard-go` (`p2pvm testbed \
                bench-net --rounds 5 --only raw,wireguard-go"
            ),
            "{some}"
        );
        let part = page(
            &[],
            &options(&["--only", "raw", "--measure", "tcp,ping"]),
            Duration::from_secs(60),
        );
        assert!(
            part.contains("`p2pvm testbed bench-net --rounds 3 --only raw --measure tcp,ping`"),
            "{part}"
        );
    }

    fn row(name: &str, rounds: Vec<Round>) -> Measured {
        Measured {
            name: name.into(),
            version: "1.0".into(),
            rounds,
        }
    }

    #[test]
    fn the_page_has_medians_with_their_spread_and_names_what_failed() {
        let fast = |gbit| Round {
            tcp_1: Some(gbit),
            ping_idle: Some((100.0, 200.0)),
            ..Round::default()
        };
        let raw = row(
            "raw veth",
            vec![Round {
                ping_idle: Some((40.0, 60.0)),
                ..Round::default()
            }],
        );
        let absent = row(
            "tinc",
            vec![Round {
                failed: vec!["tincd is not installed".into()],
                ..Round::default()
            }],
        );
        let page = page(
            &[
                raw,
                row("p2pvm", vec![fast(3.0), fast(1.0), fast(2.0)]),
                absent,
            ],
            &options(&[]),
            Duration::from_secs(60),
        );
        assert!(page.contains("| p2pvm 1.0 | 2.00 (1.00–3.00) |"), "{page}");
        assert!(page.contains("(+60)"), "over raw: {page}");
        assert!(
            page.contains("- tinc 1.0, 1 of 1 rounds: tincd is not installed"),
            "{page}"
        );
        assert!(
            !page.contains("| tinc"),
            "a row without a figure is no row: {page}"
        );
    }

    #[test]
    fn the_loss_curve_shows_what_arrived_of_what_the_sender_brought_in() {
        let points = vec![
            Point {
                wanted: 50e3,
                offered: 40e3,
                received: 30e3,
            },
            Point {
                wanted: 100e3,
                offered: 80e3,
                received: 20e3,
            },
        ];
        let round = Round {
            udp: vec![(1200, points)],
            ..Round::default()
        };
        let page = page(
            &[row("p2pvm", vec![round])],
            &options(&[]),
            Duration::from_secs(1),
        );
        assert!(
            page.contains("| p2pvm 1.0 | 30 (25 %) | 20 (75 %) |"),
            "{page}"
        );
        assert!(
            page.contains("| p2pvm 1.0 | 30 | – |"),
            "the most that arrived: {page}"
        );
    }
}
