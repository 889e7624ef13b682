//! The figures of a run: those of each program, round by round, and the ratios of p2pvm to others.

use super::{LADDER, LOSSES, Point, Round, SIZES, TableRow, programs::ProgramName};
use crate::figures::Figure;

/// A value of each round, `None` where it was not measured.
type Getter<'a> = &'a dyn Fn(&Round) -> Option<f64>;

/// All figures; each name with its programs in the order of the run.
pub(super) fn figures(results: &[TableRow]) -> Vec<Figure> {
    let mut all = Vec::new();
    let versions = results.iter().filter(|row| !row.version.is_empty());
    all.extend(versions.map(|row| {
        Figure::new("version", "version", "", [row.version.as_str()]).of(row.name.as_str())
    }));
    all.extend(streams(results));
    all.extend(pings(results));
    all.extend(datagrams(results));
    for (n, percent) in LOSSES.into_iter().enumerate() {
        all.extend(each(
            results,
            &Figure::new(
                &format!("lossy-{percent}"),
                &format!("eight TCP streams where {percent} % is lost each way"),
                "Mbit/s",
                NONE,
            )
            .digits(1),
            &|round| round.lossy.get(n).copied(),
        ));
    }
    all.extend(beside_others(results));
    all.extend(failures(results));
    all
}

const NONE: [f64; 0] = [];

/// The figure of each program in whose rounds it was measured.
fn each(results: &[TableRow], figure: &Figure, of: Getter<'_>) -> Vec<Figure> {
    let measured = results.iter().filter_map(|row| {
        let rounds: Vec<f64> = row.rounds.iter().filter_map(of).collect();
        let made = Figure::new(&figure.name, &figure.what, &figure.unit, rounds)
            .of(row.name.as_str())
            .digits(figure.digits);
        (!made.rounds.is_empty()).then_some(made)
    });
    measured.collect()
}

fn streams(results: &[TableRow]) -> Vec<Figure> {
    let all: [(&str, &str, &str, usize, Getter<'_>); 7] = [
        ("tcp-1", "one TCP stream", "Gbit/s", 2, &|r| r.tcp_1),
        ("tcp-8", "eight TCP streams", "Gbit/s", 2, &|r| r.tcp_8),
        (
            "tcp-both",
            "a TCP stream in both directions",
            "Gbit/s",
            2,
            &|r| r.tcp_both,
        ),
        ("cpu", "both daemons' processor time", "s/GB", 1, &|r| {
            r.cpu_per_gb
        }),
        ("memory", "resident memory", "MB", 0, &|r| r.resident_mb),
        (
            "relayed",
            "one TCP stream through a third host",
            "Gbit/s",
            2,
            &|r| r.relayed,
        ),
        ("relay-cpu", "the relay's processor time", "s/GB", 1, &|r| {
            r.relay_cpu_per_gb
        }),
    ];
    all.into_iter()
        .flat_map(|(name, what, unit, digits, of)| {
            let figure = Figure::new(name, what, unit, NONE).digits(digits);
            each(results, &figure, of)
        })
        .collect()
}

fn pings(results: &[TableRow]) -> Vec<Figure> {
    let raw = results
        .iter()
        .find(|row| row.name == ProgramName::Raw.name())
        .map_or(&[][..], |row| row.rounds.as_slice());
    type Ping = fn(&Round) -> Option<(f64, f64)>;
    let kinds: [(&str, &str, Ping); 2] = [
        ("ping-idle", "round trip on an idle path", |r| r.ping_idle),
        ("ping-loaded", "round trip beside a bulk stream", |r| {
            r.ping_loaded
        }),
    ];
    let mut all = Vec::new();
    for (name, what, of) in kinds {
        let figure = |suffix: &str, which: &str| {
            Figure::new(
                &format!("{name}{suffix}"),
                &format!("{what}{which}"),
                "µs",
                NONE,
            )
        };
        all.extend(each(results, &figure("", ", median"), &|round| {
            of(round).map(|p| p.0)
        }));
        all.extend(each(results, &figure("-p99", ", p99"), &|round| {
            of(round).map(|p| p.1)
        }));
        let above = figure(
            "-over",
            ", median above that of the raw cable in the same round",
        );
        for row in results
            .iter()
            .filter(|row| row.name != ProgramName::Raw.name())
        {
            let rounds: Vec<f64> = row
                .rounds
                .iter()
                .zip(raw)
                .filter_map(|(here, raw)| Some(of(here)?.0 - of(raw)?.0))
                .collect();
            if !rounds.is_empty() {
                let (name, what) = (&above.name, &above.what);
                all.push(Figure::new(name, what, "µs", rounds).of(row.name.as_str()));
            }
        }
    }
    all
}

fn point(round: &Round, bytes: usize, wanted: f64) -> Option<&Point> {
    let (_, points) = round.udp.iter().find(|(size, _)| *size == bytes)?;
    points.iter().find(|point| point.wanted == wanted)
}

/// The most datagrams a second that came through at any rate offered, in thousands.
fn best(round: &Round, bytes: usize) -> Option<f64> {
    let (_, points) = round.udp.iter().find(|(size, _)| *size == bytes)?;
    let received = points.iter().map(|point| point.received / 1e3);
    received.max_by(f64::total_cmp)
}

fn datagrams(results: &[TableRow]) -> Vec<Figure> {
    let mut all = Vec::new();
    for (bytes, ladder) in SIZES.into_iter().zip(LADDER) {
        let most = Figure::new(
            &format!("udp-{bytes}"),
            &format!("most datagrams of {bytes} bytes that arrived"),
            "thousand/s",
            NONE,
        );
        all.extend(each(results, &most, &|round| best(round, bytes)));
        for wanted in ladder {
            let at = format!("at-{:.0}k", wanted / 1e3);
            let what = format!(
                "datagrams of {bytes} bytes, {:.0} thousand/s wanted",
                wanted / 1e3
            );
            let figure = |kind: &str, said: &str, unit: &str| {
                let (name, what) = (
                    format!("udp-{bytes}-{kind}-{at}"),
                    format!("{what}: {said}"),
                );
                Figure::new(&name, &what, unit, NONE)
            };
            all.extend(each(
                results,
                &figure("came", "arrived", "thousand/s"),
                &|round| point(round, bytes, *wanted).map(|p| p.received / 1e3),
            ));
            all.extend(each(
                results,
                &figure("lost", "lost of what the sender could bring in", "%"),
                &|round| {
                    let point = point(round, bytes, *wanted)?;
                    Some((1.0 - point.received / point.offered.max(1.0)).clamp(0.0, 1.0) * 100.0)
                },
            ));
        }
    }
    all
}

/// The ratios of p2pvm to others in the same rounds.
fn beside_others(results: &[TableRow]) -> Vec<Figure> {
    let rounds = |which: ProgramName| {
        let row = results.iter().find(|row| row.name == which.name());
        row.map_or(&[][..], |row| row.rounds.as_slice())
    };
    let own = rounds(ProgramName::P2pvm);
    let ratio = |other: &[Round], of: fn(&Round) -> Option<f64>, times: f64| -> Vec<f64> {
        let pairs = own.iter().zip(other);
        pairs
            .filter_map(|(own, other)| Some(of(own)? / of(other)? * times))
            .collect()
    };
    let wireguard = rounds(ProgramName::WireguardGo);
    let mut all = vec![
        Figure::new(
            "tcp-beside-wireguard-go",
            "one TCP stream beside wireguard-go",
            "times",
            ratio(wireguard, |r| r.tcp_1, 1.0),
        )
        .digits(1)
        .aim("≥ 4 times"),
        Figure::new(
            "tcp-beside-plain",
            "one TCP stream beside a forwarder without encryption",
            "%",
            ratio(rounds(ProgramName::Plain), |r| r.tcp_1, 100.0),
        )
        .aim("≥ 65 %"),
        Figure::new(
            "cpu-beside-wireguard-go",
            "processor time per byte beside wireguard-go",
            "times",
            ratio(wireguard, |r| r.cpu_per_gb, 1.0),
        )
        .digits(2)
        .aim("≤ 1/3"),
    ];
    let no_peers =
        [ProgramName::Raw, ProgramName::Plain, ProgramName::P2pvm].map(ProgramName::name);
    for bytes in SIZES {
        let of_peers = |n: usize| {
            let peers = results.iter().filter(|row| {
                let name = row.name.as_str();
                !no_peers.contains(&name)
                    && ProgramName::ALL.iter().any(|which| which.name() == name)
            });
            let rates = peers.filter_map(|row| best(row.rounds.get(n)?, bytes));
            rates.max_by(f64::total_cmp)
        };
        let ratios: Vec<f64> = own
            .iter()
            .enumerate()
            .filter_map(|(n, round)| Some(best(round, bytes)? / of_peers(n)?))
            .collect();
        let (name, what) = (
            format!("udp-{bytes}-beside-best"),
            format!("datagrams of {bytes} bytes beside the best other of the round"),
        );
        let figure = Figure::new(&name, &what, "times", ratios);
        all.push(figure.digits(1).aim("≥ 2 times"));
    }
    all.retain(|figure| !figure.rounds.is_empty());
    all
}

/// The measurements that failed: each reason with its count.
fn failures(results: &[TableRow]) -> Vec<Figure> {
    let failed = results.iter().filter_map(|row| {
        let mut reasons: Vec<&String> = row.rounds.iter().flat_map(|r| &r.failed).collect();
        reasons.sort();
        reasons.dedup();
        let told: Vec<String> = reasons
            .into_iter()
            .map(|why| {
                let times = row.rounds.iter().filter(|r| r.failed.contains(why)).count();
                let why = why.replace(['\n', '|'], " ");
                format!("{times} of {} rounds: {why}", row.rounds.len())
            })
            .collect();
        let figure = Figure::new("failed", "not measured", "", [told.join("; ")]);
        (!told.is_empty()).then(|| figure.of(row.name.as_str()))
    });
    failed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_figures::Amount;

    fn row(name: &str, rounds: Vec<Round>) -> TableRow {
        TableRow {
            name: name.into(),
            version: "1.0".into(),
            rounds,
        }
    }

    fn found<'a>(figures: &'a [Figure], name: &str, of: &str) -> Option<&'a Figure> {
        figures.iter().find(|f| f.name == name && f.of == of)
    }

    #[test]
    fn each_program_has_its_rounds_and_what_failed_is_named() {
        let fast = |gbit| Round {
            tcp_1: Some(gbit),
            ping_idle: Some((100.0, 200.0)),
            ..Round::default()
        };
        let cable = Round {
            ping_idle: Some((40.0, 60.0)),
            ..Round::default()
        };
        let absent = Round {
            failed: vec!["tincd is not installed".into()],
            ..Round::default()
        };
        let figures = figures(&[
            row("raw veth", vec![cable; 3]),
            row("p2pvm", vec![fast(3.0), fast(1.0), fast(2.0)]),
            row("tinc", vec![absent]),
        ]);
        let stream = found(&figures, "tcp-1", "p2pvm").unwrap();
        assert_eq!(stream.rounds, [3.0, 1.0, 2.0].map(Amount::from));
        let above = found(&figures, "ping-idle-over", "p2pvm").unwrap();
        assert_eq!(above.value, Amount::from(60.0));
        assert!(found(&figures, "ping-idle-over", "raw veth").is_none());
        assert!(found(&figures, "tcp-1", "tinc").is_none());
        let failed = found(&figures, "failed", "tinc").unwrap();
        assert_eq!(
            failed.value,
            Amount::from("1 of 1 rounds: tincd is not installed")
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
        let figures = figures(&[row("p2pvm", vec![round])]);
        for (name, value) in [
            ("udp-1200", 30.0),
            ("udp-1200-came-at-50k", 30.0),
            ("udp-1200-lost-at-50k", 25.0),
            ("udp-1200-lost-at-100k", 75.0),
        ] {
            let figure = found(&figures, name, "p2pvm").unwrap();
            assert_eq!(figure.value, Amount::from(value), "{name}");
        }
        assert!(found(&figures, "udp-1200-came-at-200k", "p2pvm").is_none());
    }

    #[test]
    fn p2pvm_is_compared_within_each_round() {
        let stream = |gbit: f64| Round {
            tcp_1: Some(gbit),
            ..Round::default()
        };
        let figures = figures(&[
            row("p2pvm", vec![stream(6.0), stream(8.0)]),
            row("wireguard-go", vec![stream(2.0), stream(4.0)]),
        ]);
        let beside = found(&figures, "tcp-beside-wireguard-go", "").unwrap();
        assert_eq!(beside.rounds, [3.0, 2.0].map(Amount::from));
        assert!(found(&figures, "tcp-beside-plain", "").is_none());
    }
}
