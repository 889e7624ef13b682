//! What was measured: figures, and plots.

use super::{
    faults::Outcome,
    plot::{Axis, Chart, Look, Series},
    scale::{Curve, Report, Spread},
};
use crate::figures::Figure;

/// The aim for hops: this many times log2 of the number of members, with as many far links as that.
const HOPS_AIM: f64 = 0.6;
/// The aim for idle traffic at 10 000 members, in bytes a second.
const IDLE_AIM: f64 = 1000.0;

/// The plots, each with its file name.
pub fn plots(reports: &[Report]) -> Vec<(&'static str, String)> {
    let chart = |title: &str, x: Axis, y: Axis, series: Vec<Series>| {
        Chart {
            title: title.to_owned(),
            x,
            y,
            series,
        }
        .svg()
    };
    let line = |name: &str, look: Look, values: Curve| Series {
        name: name.to_owned(),
        look,
        values,
    };
    let by_size = |of: &dyn Fn(&Report) -> f64| -> Curve {
        reports.iter().map(|r| (r.members as f64, of(r))).collect()
    };
    let each = |of: &dyn Fn(&Report) -> Curve| -> Vec<Series> {
        reports
            .iter()
            .map(|r| line(&format!("{} members", r.members), Look::Line, of(r)))
            .collect()
    };
    let members = || Axis::log("members (logarithmic)");
    let share = |label: &str| Axis::linear(label).over(0.0, 1.0);
    let aim = by_size(&|r| HOPS_AIM * (r.members as f64).log2());
    let mut files = vec![
        (
            "hops.svg",
            chart(
                "Hops between two random members",
                members(),
                Axis::linear("hops"),
                vec![
                    line("average", Look::Marked, by_size(&|r| r.hops.mean)),
                    line("99th percentile", Look::Marked, by_size(&|r| r.hops.p99)),
                    line("aim for the average: 0.6 · log2 n", Look::Dashed, aim),
                ],
            ),
        ),
        (
            "stretch.svg",
            chart(
                "Round trip over the ring compared with the direct path",
                Axis::log("round trip over the ring ÷ direct round trip (logarithmic)")
                    .over(1.0, 100.0),
                share("share of pairs"),
                each(&|r| r.stretch_curve.clone()),
            ),
        ),
        (
            "idle.svg",
            chart(
                "What a member sends when nothing happens",
                members(),
                Axis::linear("bytes a second, with all headers"),
                vec![
                    line("average", Look::Marked, by_size(&|r| r.idle.bytes.mean)),
                    line(
                        "99th percentile",
                        Look::Marked,
                        by_size(&|r| r.idle.bytes.p99),
                    ),
                    line(
                        "aim at 10 000 members",
                        Look::Dashed,
                        by_size(&|_| IDLE_AIM),
                    ),
                ],
            ),
        ),
        (
            "idle-messages.svg",
            chart(
                "Messages of a member when nothing happens",
                members(),
                Axis::linear("messages a second"),
                vec![
                    line("average", Look::Marked, by_size(&|r| r.idle.messages.mean)),
                    line(
                        "99th percentile",
                        Look::Marked,
                        by_size(&|r| r.idle.messages.p99),
                    ),
                ],
            ),
        ),
        (
            "join.svg",
            chart(
                "From start to a place in the ring",
                Axis::log("round trips, of the joiner's average length (logarithmic)")
                    .over(1.0, 100.0),
                share("share of joiners"),
                each(&|r| r.join_curve.clone()),
            ),
        ),
    ];
    if let Some(greatest) = reports.iter().max_by_key(|r| r.members) {
        let deaths = |of: &dyn Fn(&super::scale::Disaster) -> &Curve| {
            let series = greatest.disasters.iter();
            series
                .map(|d| {
                    line(
                        &format!("{} % died", d.share * 100.0),
                        Look::Line,
                        of(d).iter().copied().filter(|v| v.0 <= 120.0).collect(),
                    )
                })
                .collect()
        };
        let title = |what: &str| {
            format!(
                "{what} after a part of {} members died at once",
                greatest.members
            )
        };
        let seconds = || Axis::linear("seconds since they died").over(0.0, 120.0);
        let y = || share("share");
        files.push((
            "repair-near.svg",
            chart(
                &title("Correct near links"),
                seconds(),
                y(),
                deaths(&|d| &d.near),
            ),
        ));
        files.push((
            "repair-lookups.svg",
            chart(
                &title("Lookups that arrive"),
                seconds(),
                y(),
                deaths(&|d| &d.lookups),
            ),
        ));
    }
    files
}

/// The figures of some networks.
pub fn figures(reports: &[Report]) -> Vec<Figure> {
    let mut all = Figures {
        reports,
        figures: Vec::new(),
    };
    paths(&mut all);
    joining(&mut all);
    idle(&mut all);
    deaths(&mut all);
    cost(&mut all);
    all.figures
}

/// Figures by the number of members.
struct Figures<'a> {
    reports: &'a [Report],
    figures: Vec<Figure>,
}

impl Figures<'_> {
    /// A figure of each network that has it.
    fn add(
        &mut self,
        (name, what, unit, digits): (&str, &str, &str, usize),
        of: impl Fn(&Report) -> Option<f64>,
    ) {
        for report in self.reports {
            let figure = Figure::new(name, what, unit, [of(report)]).digits(digits);
            self.figures.push(figure.of(report.members.to_string()));
        }
    }

    /// Some of mean, median, p99 and max of a quantity.
    fn spread(
        &mut self,
        (name, what, unit): (&str, &str, &str),
        which: &[(&str, usize)],
        of: impl Fn(&Report) -> Spread,
    ) {
        for (part, digits) in which {
            let (name, what) = (format!("{name}-{part}"), format!("{what}: {part}"));
            self.add((&name, &what, unit, *digits), |report| {
                let spread = of(report);
                Some(match *part {
                    "mean" => spread.mean,
                    "median" => spread.median,
                    "p99" => spread.p99,
                    _ => spread.max,
                })
            });
        }
    }
}

fn paths(all: &mut Figures<'_>) {
    let three = [("mean", 2), ("p99", 0), ("max", 0)];
    all.spread(("hops", "hops", ""), &three, |r| r.hops);
    for figure in &mut all.figures {
        let members: f64 = figure.of.parse().unwrap_or(1.0);
        if figure.name == "hops-mean" {
            figure.aim = Some(format!("{:.2}", HOPS_AIM * members.log2()));
        }
    }
    all.add(("arrived", "paths that arrive", "%", 2), |r| {
        Some(r.arrived * 100.0)
    });
    let stretch = ("stretch", "stretch before shortcuts", "");
    all.spread(stretch, &[("median", 2), ("p99", 1)], |r| r.stretch);
    let links = ("links", "links of a member", "");
    let three = [("mean", 1), ("p99", 0), ("max", 0)];
    all.spread(links, &three, |r| r.links);
    all.add(("links-relayed", "links over a relay", "%", 1), |r| {
        Some(r.relayed_links * 100.0)
    });
    let error = ("coordinates", "relative error of coordinates, %", "%");
    all.spread(error, &[("median", 1)], |r| Spread {
        median: r.coordinates.median * 100.0,
        ..r.coordinates
    });
    let size = ("size", "believed log2 n ÷ true log2 n", "");
    all.spread(size, &[("mean", 2)], |r| r.size_estimate);
}

fn joining(all: &mut Figures<'_>) {
    let both = [("median", 0), ("p99", 0)];
    all.spread(("join", "time to join", "ms"), &both, |r| r.join_ms);
    let trips = (
        "join-trips",
        "join in round trips of the joiner's average length",
        "",
    );
    let both = [("median", 1), ("p99", 0)];
    all.spread(trips, &both, |r| r.join_round_trips);
    all.add(
        (
            "settled",
            "all near links right after the last arrival",
            "s",
            0,
        ),
        |r| r.settled_s,
    );
}

fn idle(all: &mut Figures<'_>) {
    let three = [("mean", 2), ("p99", 2), ("max", 2)];
    let messages = ("idle-messages", "idle: messages/s sent by a member", "");
    all.spread(messages, &three, |r| r.idle.messages);
    let three = [("mean", 0), ("p99", 0), ("max", 0)];
    let bytes = ("idle-bytes", "idle: bytes/s sent by a member", "");
    all.spread(bytes, &three, |r| r.idle.bytes);
    let own = (
        "idle-own",
        "idle: bytes/s without what it relays for two others",
        "",
    );
    all.spread(own, &three, |r| r.idle.own_bytes);
    type Of = fn(&Report) -> f64;
    let parts: [(&str, &str, Of); 4] = [
        ("idle-upkeep", "upkeep", |r| r.idle.upkeep_bytes),
        ("idle-routed", "routed", |r| r.idle.routed_bytes),
        ("idle-linking", "linking", |r| r.idle.linking_bytes),
        ("idle-relayed", "relayed", |r| r.idle.relayed_bytes),
    ];
    for (name, part, of) in parts {
        let what = format!("idle: of the mean of bytes/s, {part}");
        all.add((name, &what, "", 0), |r| Some(of(r)));
    }
    let shares: [(&str, &str, usize, Of); 3] = [
        ("idle-near", "right near links", 3, |r| r.idle_near),
        ("idle-paths", "paths that arrive", 2, |r| r.idle_lookups),
        (
            "idle-lookups",
            "lookups that end at the closest member",
            2,
            |r| r.idle_consistent,
        ),
    ];
    for (name, what, digits, of) in shares {
        let what = format!("idle: least share of {what}");
        all.add((name, &what, "%", digits), |r| Some(of(r) * 100.0));
    }
}

fn deaths(all: &mut Figures<'_>) {
    let shares: Vec<f64> = all.reports.first().map_or_else(Vec::new, |report| {
        report.disasters.iter().map(|d| d.share * 100.0).collect()
    });
    for (i, died) in shares.into_iter().enumerate() {
        let (name, what) = (format!("die-{died}"), format!("{died} % die"));
        let figure = |part: &str, said: &str| (format!("{name}-{part}"), format!("{what}: {said}"));
        let (name, what) = figure("near", "near links right");
        all.add((&name, &what, "s", 0), |r| r.disasters.get(i)?.repaired_s);
        let (name, what) = figure("lookups", "99.9 % of lookups arrive");
        all.add((&name, &what, "s", 0), |r| r.disasters.get(i)?.lookups_s);
        let (name, what) = figure("bytes", "bytes/s of a survivor during repair");
        all.add((&name, &what, "", 0), |r| {
            Some(r.disasters.get(i)?.repair_bytes_per_s)
        });
    }
}

fn cost(all: &mut Figures<'_>) {
    let broken = "broken promises: the invariant at rest, loops, packets out of hops, runaways";
    all.add(("broken", broken, "", 0), |r| Some(r.broken.len() as f64));
    all.add(("virtual-time", "virtual time", "s", 0), |r| {
        Some(r.virtual_s)
    });
    all.add(("real-time", "real time", "s", 0), |r| Some(r.real_s));
    all.add(("cpu-time", "processor time", "s", 0), |r| Some(r.cpu_s));
    let memory = ("memory", "memory of the process until then", "MiB", 0);
    all.add(memory, |r| Some(r.memory_mib as f64));
    all.add(("events", "events", "million", 1), |r| {
        Some(r.events as f64 / 1e6)
    });
}

/// The figures of a search for faults that took so many seconds.
pub fn faults(outcomes: &[Outcome], seconds: f64) -> Vec<Figure> {
    let healed = Spread::of(outcomes.iter().filter_map(|o| o.healed_after).collect());
    let failed = outcomes.iter().filter(|o| !o.broken.is_empty()).count();
    let events = outcomes.iter().map(|o| o.events).sum::<u64>() as f64 / 1e6;
    let after = "near links right after the last fault";
    let figure =
        |name: &str, what: &str, unit: &str, value: f64| Figure::new(name, what, unit, [value]);
    vec![
        figure("seeds", "seeds", "", outcomes.len() as f64),
        figure("failed", "seeds that broke the ring", "", failed as f64),
        figure(
            "healed-median",
            &format!("{after}: median"),
            "s",
            healed.median,
        ),
        figure("healed-p99", &format!("{after}: p99"), "s", healed.p99),
        figure("healed-max", &format!("{after}: max"), "s", healed.max),
        figure("events", "events", "million", events).digits(1),
        figure("real-time", "real time", "s", seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_figures::Amount;

    #[test]
    fn a_network_gives_every_figure_and_the_aim_for_its_size() {
        let report = super::super::scale::run(10, 1, 10_000_000, &|_| ());
        let figures = figures(&[report]);
        let found = |name: &str| figures.iter().find(|f| f.name == name);
        let hops = found("hops-mean").unwrap();
        assert_eq!(
            (hops.of.as_str(), hops.aim.as_deref()),
            ("10", Some("1.99"))
        );
        assert_eq!(found("broken").unwrap().value, Amount::from(0.0));
        assert!(found("die-50-near").is_some() && found("idle-bytes-p99").is_some());
    }
}
