//! Writes what was measured: a page with tables, and its plots.

use super::{
    plot::{Axis, Chart, Look, Series},
    scale::{Curve, Disaster, Report},
};

/// The aim for hops, as a multiple of log2 of the number of members, with as many far links as
/// that.
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

fn line(name: &str, look: Look, values: Curve) -> Series {
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

/// One curve for each report.
fn each_size(reports: &[Report], of: impl Fn(&Report) -> &Curve) -> Vec<Series> {
    reports
        .iter()
        .map(|r| line(&format!("{} members", r.members), Look::Line, of(r).clone()))
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
        line("average", Look::Marked, by_size(reports, |r| r.hops.mean)),
        line(
            "99th percentile",
            Look::Marked,
            by_size(reports, |r| r.hops.p99),
        ),
        line(
            "aim for the average: 0.6 · log2 n",
            Look::Dashed,
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
    let series = vec![
        line(
            "average",
            Look::Marked,
            by_size(reports, |r| r.idle.bytes.mean),
        ),
        line(
            "99th percentile",
            Look::Marked,
            by_size(reports, |r| r.idle.bytes.p99),
        ),
        line(
            "aim at 10 000 members",
            Look::Dashed,
            by_size(reports, |_| IDLE_AIM),
        ),
    ];
    let title = "What a member sends when nothing happens";
    let y = Axis::linear("bytes a second, with all headers");
    ("idle.svg", chart(title, members(), y, series))
}

fn idle_messages(reports: &[Report]) -> Plot {
    let series = vec![
        line(
            "average",
            Look::Marked,
            by_size(reports, |r| r.idle.messages.mean),
        ),
        line(
            "99th percentile",
            Look::Marked,
            by_size(reports, |r| r.idle.messages.p99),
        ),
    ];
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
        let series = series.map(|d| line(&died(d), Look::Line, curve(d)));
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

/// The tables.
pub fn markdown(reports: &[Report]) -> String {
    let mut table = Table::new(reports);
    table.paths();
    table.joins();
    table.idle();
    table.deaths();
    table.costs();
    table.text
}

fn seconds(s: Option<f64>) -> String {
    s.map_or_else(|| "never".to_owned(), |s| format!("{s:.0} s"))
}

/// A table with a column for each report.
struct Table<'a> {
    reports: &'a [Report],
    text: String,
}

impl<'a> Table<'a> {
    fn new(reports: &'a [Report]) -> Self {
        let heads: String = reports
            .iter()
            .map(|r| format!(" {} |", r.members))
            .collect();
        let text = format!(
            "| members |{heads}\n|---|{}\n",
            "---|".repeat(reports.len())
        );
        Self { reports, text }
    }

    fn row(&mut self, name: &str, of: impl Fn(&Report) -> String) {
        self.text.push_str(&format!("| {name} |"));
        for report in self.reports {
            self.text.push_str(&format!(" {} |", of(report)));
        }
        self.text.push('\n');
    }

    fn paths(&mut self) {
        self.row("hops: average", |r| format!("{:.2}", r.hops.mean));
        self.row("hops: aim, 0.6 · log2 n", |r| {
            format!("{:.2}", hops_aim(r))
        });
        self.row("hops: p99, max", |r| {
            format!("{:.0}, {:.0}", r.hops.p99, r.hops.max)
        });
        self.row("paths that arrive", |r| {
            format!("{:.2} %", r.arrived * 100.0)
        });
        self.row("stretch before shortcuts: median, p99", |r| {
            format!("{:.2}, {:.1}", r.stretch.median, r.stretch.p99)
        });
        self.row("links of a member: mean, p99, max", |r| {
            let l = &r.links;
            format!("{:.1}, {:.0}, {:.0}", l.mean, l.p99, l.max)
        });
        self.row("links over a relay", |r| {
            format!("{:.1} %", r.relayed_links * 100.0)
        });
    }

    fn joins(&mut self) {
        self.row("join: median, p99", |r| {
            format!("{:.0} ms, {:.0} ms", r.join_ms.median, r.join_ms.p99)
        });
        self.row(
            "join in round trips of the joiner's average length: median, p99",
            |r| {
                let j = &r.join_round_trips;
                format!("{:.1}, {:.0}", j.median, j.p99)
            },
        );
        self.row("all near links right after the last arrival", |r| {
            seconds(r.settled_s)
        });
    }

    fn idle(&mut self) {
        self.row("idle: messages/s sent by a member: mean, p99, max", |r| {
            let m = &r.idle.messages;
            format!("{:.2}, {:.2}, {:.2}", m.mean, m.p99, m.max)
        });
        self.row("idle: bytes/s sent by a member: mean, p99, max", |r| {
            let b = &r.idle.bytes;
            format!("{:.0}, {:.0}, {:.0}", b.mean, b.p99, b.max)
        });
        self.row(
            "idle: the same without what it relays for two others",
            |r| {
                let b = &r.idle.own_bytes;
                format!("{:.0}, {:.0}, {:.0}", b.mean, b.p99, b.max)
            },
        );
        self.row("of the mean: upkeep, routed, linking, relayed", |r| {
            let i = &r.idle;
            format!(
                "{:.0}, {:.0}, {:.0}, {:.0}",
                i.upkeep_bytes, i.routed_bytes, i.linking_bytes, i.relayed_bytes
            )
        });
        self.row("idle: least share of right near links", |r| {
            format!("{:.3} %", r.idle_near * 100.0)
        });
        self.row("idle: least share of paths that arrive", |r| {
            format!("{:.2} %", r.idle_lookups * 100.0)
        });
        self.row(
            "idle: least share of lookups that end at the closest member",
            |r| format!("{:.2} %", r.idle_consistent * 100.0),
        );
    }

    fn deaths(&mut self) {
        let disasters = self.reports.first().map_or(&[][..], |r| &r.disasters);
        for (i, disaster) in disasters.iter().enumerate() {
            let died = disaster.share * 100.0;
            self.row(
                &format!("{died} % die: near links right, 99.9 % of lookups arrive"),
                |r| {
                    r.disasters.get(i).map_or_else(String::new, |d| {
                        format!("{}, {}", seconds(d.repaired_s), seconds(d.lookups_s))
                    })
                },
            );
            self.row(
                &format!("{died} % die: bytes/s of a survivor during repair"),
                |r| {
                    r.disasters
                        .get(i)
                        .map_or_else(String::new, |d| format!("{:.0}", d.repair_bytes_per_s))
                },
            );
        }
    }

    fn costs(&mut self) {
        self.row("coordinates: relative error, median", |r| {
            format!("{:.1} %", r.coordinates.median * 100.0)
        });
        self.row("believed log2 n ÷ true log2 n: mean", |r| {
            format!("{:.2}", r.size_estimate.mean)
        });
        self.row(
            "broken promises: the invariant at rest, loops, packets out of hops, runaways",
            |r| r.broken.len().to_string(),
        );
        self.row("virtual time, real time, processor time", |r| {
            format!("{:.0} s, {:.0} s, {:.0} s", r.virtual_s, r.real_s, r.cpu_s)
        });
        self.row("memory of the process until then", |r| {
            format!("{} MiB", r.memory_mib)
        });
        self.row("events", |r| {
            format!("{:.1} million", r.events as f64 / 1e6)
        });
    }
}

/// The whole page. `plots` is the way from the page to the plots, `command` what made it.
pub fn page(reports: &[Report], plots: &str, command: &str) -> String {
    let image = |file: &str, what: &str| format!("![{what}]({plots}/{file})\n");
    format!(
        "# The ring at scale\n\n\
        Made by `{command}`; do not edit. The members are the state machines of \
        `overlay/src/ring/`, the network between them is simulated\n\
        in virtual time (`lab/src/sim/`): {cities} cities with intercontinental round trips, a \
        last mile for each member, one datagram in\n\
        2 000 lost, delays that reorder, NATs (one pair in six has no direct path and uses a \
        relay), links that take a call over the\n\
        ring and a handshake to make. A dead member is noticed by its silence only. Bytes are \
        those of the ring's packets and 72 for the\n\
        headers below each. Same command, same figures, but for time and memory, which are those \
        of the machine, busy or not, that ran it.\n\n\
        ## The invariant\n\n\
        Once nobody has come, gone or been cut off for long enough, every living member has \
        working links with its true neighbours on\n\
        the ring and has them in its table, a packet to a member arrives there, and a lookup of a \
        place ends at the living member closest\n\
        to it, from wherever it starts: this is consistent routing. At no time does a packet \
        visit a member twice or run out of hops.\n\
        While the network is idle all of it is looked at every ten seconds (all near links, 1000 \
        paths, 1000 lookups of random places),\n\
        after deaths every second; a run in which it does not hold fails.\n\n\
        ## Figures\n\n{tables}\n\
        A lookup is a path from a random living member to another, followed in the tables as they \
        stand at that moment. A near link is right\n\
        if both ends have it in their table and can open what the other seals; a member must have \
        two on each side.\n\n\
        ## Paths\n\n{hops}\n{stretch}\n\
        The stretch is that of the first packets: traffic moves to a direct path as soon as there \
        is one.\n\n\
        ## Idle\n\n{idle}\n{messages}\n\
        ## Joining\n\n{join}\n\
        ## Repair\n\n{near}\n{lookups}",
        cities = super::world::cities(),
        tables = markdown(reports),
        hops = image(
            "hops.svg",
            "average and p99 of hops against the number of members"
        ),
        stretch = image("stretch.svg", "distribution of the stretch"),
        idle = image("idle.svg", "bytes a member sends in a second"),
        messages = image("idle-messages.svg", "messages a member sends in a second"),
        join = image("join.svg", "distribution of the time to join"),
        near = image("repair-near.svg", "share of correct near links over time"),
        lookups = image(
            "repair-lookups.svg",
            "share of lookups that arrive over time"
        ),
    )
}

/// The heading of the section on random faults.
pub const FAULTS: &str = "\n## Random faults\n";

/// That section. `command` is what was run, `result` a line on all seeds, `failures` what broke.
pub fn faults(command: &str, result: &str, failures: &[String]) -> String {
    let failures: String = failures
        .iter()
        .map(|f| format!("\n```text\n{f}\n```\n"))
        .collect();
    format!(
        "{FAULTS}\n\
        `{command}`: {result}.\n\n\
        Each seed draws a network of that many members and some of these faults, which overlap: \
        loss, duplication, reordering, one-way\n\
        cuts, partitions, crashes with and without return, machines that sleep, arrivals, clocks \
        that run wrong. Two minutes after the\n\
        last one the invariant must hold, and go on holding for another minute (six looks: all \
        near links, 100 paths, 100 lookups);\n\
        and every member must be in the ring, with an orderly table and a bounded number of \
        links, and route over none that does not\n\
        hear it. A seed that fails is printed with the command that runs it again.\n{failures}"
    )
}
