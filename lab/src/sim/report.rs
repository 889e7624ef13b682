//! The figures of the simulations, and the plots of docs/scale.md.

use super::{
    faults::Outcome,
    plot::{Axis, Chart, LineStyle, Series},
    scale::{Curve, Disaster, Report, Spread},
};
use crate::figures::{Amount, Figure};

/// The aim for the mean of hops, as a multiple of log2 of the number of members, which is also
/// the number of a member's far links.
const HOPS_AIM: f64 = 0.6;
/// The aim for idle traffic at 10 000 members, in bytes a second.
const IDLE_AIM: f64 = 1000.0;

/// A plot: the name of its file and the SVG.
type Plot = (&'static str, String);

/// The plots, each with its file name.
pub fn plots(reports: &[Report]) -> Vec<Plot> {
    let mut files = vec![
        hops(reports),
        stretch(reports),
        idle(reports),
        idle_messages(reports),
        join(reports),
    ];
    if let Some(greatest) = reports.iter().max_by_key(|r| r.members) {
        files.extend(repairs(greatest));
    }
    files
}

fn chart(title: &str, x: Axis, y: Axis, series: Vec<Series>) -> String {
    let title = title.to_owned();
    Chart {
        title,
        x,
        y,
        series,
    }
    .svg()
}

fn line(name: &str, look: LineStyle, values: Curve) -> Series {
    Series {
        name: name.to_owned(),
        look,
        values,
    }
}

/// One figure of each report over its number of members.
fn by_size(reports: &[Report], of: impl Fn(&Report) -> f64) -> Curve {
    reports.iter().map(|r| (r.members as f64, of(r))).collect()
}

/// Two curves: a spread's average and its 99th percentile.
fn mean_and_p99(reports: &[Report], of: impl Fn(&Report) -> &Spread) -> Vec<Series> {
    let curve = |name, values| line(name, LineStyle::Marked, values);
    vec![
        curve("average", by_size(reports, |r| of(r).mean)),
        curve("99th percentile", by_size(reports, |r| of(r).p99)),
    ]
}

/// One curve for each report.
fn each_size(reports: &[Report], of: impl Fn(&Report) -> &Curve) -> Vec<Series> {
    reports
        .iter()
        .map(|r| {
            line(
                &format!("{} members", r.members),
                LineStyle::Line,
                of(r).clone(),
            )
        })
        .collect()
}

fn members() -> Axis {
    Axis::log("members (logarithmic)")
}

fn share(label: &str) -> Axis {
    Axis::linear(label).over(0.0, 1.0)
}

fn hops_aim(report: &Report) -> f64 {
    HOPS_AIM * (report.members as f64).log2()
}

fn hops(reports: &[Report]) -> Plot {
    let series = vec![
        line(
            "average",
            LineStyle::Marked,
            by_size(reports, |r| r.hops.mean),
        ),
        line(
            "99th percentile",
            LineStyle::Marked,
            by_size(reports, |r| r.hops.p99),
        ),
        line(
            "aim for the average: 0.6 · log2 n",
            LineStyle::Dashed,
            by_size(reports, hops_aim),
        ),
    ];
    let title = "Hops between two random members";
    (
        "hops.svg",
        chart(title, members(), Axis::linear("hops"), series),
    )
}

fn stretch(reports: &[Report]) -> Plot {
    let title = "Round trip over the ring compared with the direct path";
    let x = Axis::log("round trip over the ring ÷ direct round trip (logarithmic)");
    let series = each_size(reports, |r| &r.stretch_curve);
    let y = share("share of pairs");
    ("stretch.svg", chart(title, x.over(1.0, 100.0), y, series))
}

fn idle(reports: &[Report]) -> Plot {
    let mut series = mean_and_p99(reports, |r| &r.idle.bytes);
    series.push(line(
        "aim at 10 000 members",
        LineStyle::Dashed,
        by_size(reports, |_| IDLE_AIM),
    ));
    let title = "What a member sends when nothing happens";
    let y = Axis::linear("bytes a second, with all headers");
    ("idle.svg", chart(title, members(), y, series))
}

fn idle_messages(reports: &[Report]) -> Plot {
    let series = mean_and_p99(reports, |r| &r.idle.messages);
    let title = "Messages of a member when nothing happens";
    let y = Axis::linear("messages a second");
    ("idle-messages.svg", chart(title, members(), y, series))
}

fn join(reports: &[Report]) -> Plot {
    let title = "From start to a place in the ring";
    let x = Axis::log("round trips, of the joiner's average length (logarithmic)");
    let series = each_size(reports, |r| &r.join_curve);
    let y = share("share of joiners");
    ("join.svg", chart(title, x.over(1.0, 100.0), y, series))
}

/// How the largest network repairs itself after deaths.
fn repairs(greatest: &Report) -> [Plot; 2] {
    let plot = |what: &str, of: &dyn Fn(&Disaster) -> &Curve| {
        let curve = |d: &Disaster| of(d).iter().copied().filter(|v| v.0 <= 120.0).collect();
        let died = |d: &Disaster| format!("{} % died", d.share * 100.0);
        let series = greatest.disasters.iter();
        let series = series.map(|d| line(&died(d), LineStyle::Line, curve(d)));
        let title = format!(
            "{what} after a part of {} members died at once",
            greatest.members
        );
        let x = Axis::linear("seconds since they died").over(0.0, 120.0);
        chart(&title, x, share("share"), series.collect())
    };
    [
        ("repair-near.svg", plot("Correct near links", &|d| &d.near)),
        (
            "repair-lookups.svg",
            plot("Lookups that arrive", &|d| &d.lookups),
        ),
    ]
}

/// The figures of some networks.
pub fn figures(reports: &[Report]) -> Vec<Figure> {
    let mut all = Figures {
        reports,
        figures: Vec::new(),
    };
    add_paths(&mut all);
    add_joins(&mut all);
    add_idle(&mut all);
    add_deaths(&mut all);
    add_costs(&mut all);
    all.figures
}

/// Figures by the number of members.
struct Figures<'a> {
    reports: &'a [Report],
    figures: Vec<Figure>,
}

impl Figures<'_> {
    /// A figure of each network; `None` means never.
    fn add(&mut self, figure: (&str, &str, &str, usize), of: impl Fn(&Report) -> Option<f64>) {
        self.add_where(figure, |report| Some(of(report).into()));
    }

    /// A figure of each network that has it.
    fn add_where(
        &mut self,
        (name, what, unit, digits): (&str, &str, &str, usize),
        of: impl Fn(&Report) -> Option<Amount>,
    ) {
        for report in self.reports {
            if let Some(amount) = of(report) {
                let figure = Figure::new(name, what, unit, [amount]).digits(digits);
                self.figures.push(figure.of(report.members.to_string()));
            }
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

fn add_paths(all: &mut Figures<'_>) {
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

fn add_joins(all: &mut Figures<'_>) {
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

fn add_idle(all: &mut Figures<'_>) {
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
    type Getter = fn(&Report) -> f64;
    let parts: [(&str, &str, Getter); 4] = [
        ("idle-upkeep", "upkeep", |r| r.idle.upkeep_bytes),
        ("idle-routed", "routed", |r| r.idle.routed_bytes),
        ("idle-linking", "linking", |r| r.idle.linking_bytes),
        ("idle-relayed", "relayed", |r| r.idle.relayed_bytes),
    ];
    for (name, part, of) in parts {
        let what = format!("idle: of the mean of bytes/s, {part}");
        all.add((name, &what, "", 0), |r| Some(of(r)));
    }
    let shares: [(&str, &str, usize, Getter); 3] = [
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

fn add_deaths(all: &mut Figures<'_>) {
    // Of two members one is left after the first disaster, and the others do not happen.
    let reports = all.reports.iter();
    let longest = reports.map(|r| &r.disasters[..]).max_by_key(|d| d.len());
    let shares = longest.unwrap_or_default().iter().map(|d| d.share * 100.0);
    for (i, died) in shares.enumerate() {
        let (name, what) = (format!("die-{died}"), format!("{died} % die"));
        let figure = |part: &str, said: &str| (format!("{name}-{part}"), format!("{what}: {said}"));
        let (name, what) = figure("near", "near links right");
        all.add_where((&name, &what, "s", 0), |r| {
            Some(r.disasters.get(i)?.repaired_s.into())
        });
        let (name, what) = figure("lookups", "99.9 % of lookups arrive");
        all.add_where((&name, &what, "s", 0), |r| {
            Some(r.disasters.get(i)?.lookups_s.into())
        });
        let (name, what) = figure("bytes", "bytes/s of a survivor during repair");
        all.add_where((&name, &what, "", 0), |r| {
            Some(r.disasters.get(i)?.repair_bytes_per_s.into())
        });
    }
}

fn add_costs(all: &mut Figures<'_>) {
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

    #[test]
    fn each_network_gives_its_figures_and_the_aim_for_its_size() {
        let reports = [2, 10].map(|n| super::super::scale::run(n, 1, 10_000_000, &|_| ()));
        let figures = figures(&reports);
        let found = |name: &str, of: &str| figures.iter().find(|f| f.name == name && f.of == of);
        let hops = found("hops-mean", "10").unwrap();
        assert_eq!(hops.aim.as_deref(), Some("1.99"));
        assert_eq!(found("broken", "10").unwrap().value, Amount::from(0.0));
        assert!(found("idle-bytes-p99", "10").is_some() && found("die-50-near", "10").is_some());
        let dies = ["die-1-near", "die-50-near"].map(|name| found(name, "2").is_some());
        assert_eq!(dies, [true, false], "one of two members is left");
    }
}
