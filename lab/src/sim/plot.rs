//! Charts as SVG: lines with or without marks over linear or logarithmic axes, for docs/scale.md.
//!
//! One writer of a few hundred lines instead of a plotting crate: the output is plain SVG with text
//! as text, light background, the colours of Okabe and Ito (2008) that colour-blind readers can
//! tell apart, and the same bytes for the same data.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 60.0;
const INK: &str = "#222222";
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444",
];

/// How values are mapped to an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equal differences.
    Linear,
    /// Equal steps are equal ratios; values below the axis' least positive one are drawn at its
    /// start.
    Log,
}

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Its label, with the unit.
    pub label: String,
    /// Its scale.
    pub scale: Scale,
    /// Its range; `None` for that of the data.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// A linear axis over the data and zero.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            scale: Scale::Linear,
            range: None,
        }
    }

    /// A logarithmic axis over the data.
    pub fn log(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            scale: Scale::Log,
            range: None,
        }
    }

    /// The same axis from `from` to `to`.
    pub fn over(self, from: f64, to: f64) -> Self {
        Self {
            range: Some((from, to)),
            ..self
        }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineStyle {
    /// A line.
    Line,
    /// A line with a mark at each value.
    Marked,
    /// A dashed line: an aim or a bound.
    Dashed,
}

/// A series of values.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// How it is drawn.
    pub look: LineStyle,
    /// The values, by rising x.
    pub values: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Title above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The curves.
    pub series: Vec<Series>,
}

/// An axis with its range known, `start` to `end` in pixels.
struct Ruler {
    scale: Scale,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Ruler {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let usable = values.filter(|v| v.is_finite() && (axis.scale == Scale::Linear || *v > 0.0));
        let (least, most) = usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| {
            (a.min(v), b.max(v))
        });
        let (from, to) = axis.range.unwrap_or(match axis.scale {
            Scale::Linear => (least.min(0.0), most.max(0.0) * 1.05),
            Scale::Log => (least, most),
        });
        let sound = from.is_finite() && to.is_finite() && to > from;
        let (from, to) = match (sound, axis.scale) {
            (true, _) => (from, to),
            (false, Scale::Linear) => (0.0, 1.0),
            (false, Scale::Log) => (1.0, 10.0),
        };
        Self {
            scale: axis.scale,
            from,
            to,
            start,
            end,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value.max(self.from) / self.from).ln() / (self.to / self.from).ln(),
        };
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let rough = (self.to - self.from) / 6.0;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .into_iter()
                    .map(|m| m * power)
                    .find(|s| *s >= rough)
                    .unwrap_or(10.0 * power);
                let first = (self.from / step).ceil() as i64;
                (first..)
                    .map(|i| i as f64 * step)
                    .take_while(|v| *v <= self.to * (1.0 + 1e-9))
                    .collect()
            }
            Scale::Log => {
                let (low, high) = (
                    self.from.log10().floor() as i32,
                    self.to.log10().ceil() as i32,
                );
                let steps: &[f64] = if high - low <= 2 {
                    &[1.0, 2.0, 5.0]
                } else {
                    &[1.0]
                };
                let all = (low..=high).flat_map(|e| steps.iter().map(move |m| m * 10f64.powi(e)));
                all.filter(|v| *v >= self.from * 0.999 && *v <= self.to * 1.001)
                    .collect()
            }
        }
    }
}

/// The shortest text of a number.
fn number(value: f64) -> String {
    let rounded = if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    };
    let short = if rounded.contains('.') {
        rounded.trim_end_matches('0').trim_end_matches('.')
    } else {
        &rounded
    };
    let digits = short.trim_start_matches('-');
    if digits.len() > 4 && !digits.contains('.') {
        // A thin space separates thousands.
        let mut spaced = String::new();
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                spaced.push('\u{2009}');
            }
            spaced.push(c);
        }
        return if short.starts_with('-') {
            format!("-{spaced}")
        } else {
            spaced
        };
    }
    short.to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Chart {
    /// The chart as an SVG file.
    pub fn svg(&self) -> String {
        let values = || self.series.iter().flat_map(|s| s.values.iter());
        let x = Ruler::new(&self.x, values().map(|v| v.0), LEFT, WIDTH - RIGHT);
        let y = Ruler::new(&self.y, values().map(|v| v.1), HEIGHT - BOTTOM, TOP);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.frame(&mut out, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            let _ = draw(&mut out, series, COLOURS[i % COLOURS.len()], &x, &y);
        }
        let _ = self.legend(&mut out, &x, &y);
        out.push_str("</svg>\n");
        out
    }

    fn frame(&self, out: &mut String, x: &Ruler, y: &Ruler) -> std::fmt::Result {
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">"#
        )?;
        writeln!(
            out,
            r##"<rect width="100%" height="100%" fill="#ffffff"/>"##
        )?;
        writeln!(
            out,
            r#"<text x="{LEFT}" y="26" font-size="16" font-weight="bold">{}</text>"#,
            escape(&self.title)
        )?;
        let (left, right, top, bottom) = (x.start, x.end, y.end, y.start);
        for value in x.ticks() {
            let at = x.place(value);
            writeln!(
                out,
                r##"<line x1="{at:.1}" y1="{top:.1}" x2="{at:.1}" y2="{bottom:.1}" stroke="#e4e4e4"/>"##
            )?;
            writeln!(
                out,
                r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                bottom + 19.0,
                number(value)
            )?;
        }
        for value in y.ticks() {
            let at = y.place(value);
            writeln!(
                out,
                r##"<line x1="{left:.1}" y1="{at:.1}" x2="{right:.1}" y2="{at:.1}" stroke="#e4e4e4"/>"##
            )?;
            writeln!(
                out,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                left - 8.0,
                at + 4.5,
                number(value)
            )?;
        }
        writeln!(
            out,
            r##"<path d="M{left:.1} {top:.1}V{bottom:.1}H{right:.1}" fill="none" stroke="#666666"/>"##
        )?;
        let (middle_x, middle_y) = ((left + right) / 2.0, (top + bottom) / 2.0);
        writeln!(
            out,
            r#"<text x="{middle_x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            HEIGHT - 18.0,
            escape(&self.x.label)
        )?;
        writeln!(
            out,
            r#"<text transform="translate(20 {middle_y:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            escape(&self.y.label)
        )
    }

    /// The legend goes to the corner of the plot that holds the fewest values.
    fn legend(&self, out: &mut String, x: &Ruler, y: &Ruler) -> std::fmt::Result {
        let longest = self
            .series
            .iter()
            .map(|s| s.name.chars().count())
            .max()
            .unwrap_or(0);
        let (width, height) = (
            longest as f64 * 6.9 + 50.0,
            self.series.len() as f64 * 20.0 + 10.0,
        );
        let corners = [
            (x.end - width - 8.0, y.start - height - 8.0),
            (x.end - width - 8.0, y.end + 8.0),
            (x.start + 10.0, y.end + 8.0),
            (x.start + 10.0, y.start - height - 8.0),
        ];
        let covered = |&(left, top): &(f64, f64)| {
            let inside = |px: f64, py: f64| {
                px > left - 6.0
                    && px < left + width + 6.0
                    && py > top - 6.0
                    && py < top + height + 6.0
            };
            let points = self.series.iter().flat_map(|s| {
                // Points along each segment too: a long line between two far values covers as much
                // as many values do.
                s.values
                    .windows(2)
                    .flat_map(|w| (0..=20).map(move |i| (w[0], w[1], f64::from(i) / 20.0)))
            });
            points
                .filter(|(a, b, t)| {
                    let (ax, ay, bx, by) = (x.place(a.0), y.place(a.1), x.place(b.0), y.place(b.1));
                    inside(ax + (bx - ax) * t, ay + (by - ay) * t)
                })
                .count()
        };
        let Some((left, top)) = corners.into_iter().min_by_key(covered) else {
            return Ok(());
        };
        writeln!(
            out,
            r##"<rect x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}" fill="#ffffff" fill-opacity="0.85" stroke="#cccccc"/>"##
        )?;
        for (i, series) in self.series.iter().enumerate() {
            let (at, colour) = (top + 15.0 + i as f64 * 20.0, COLOURS[i % COLOURS.len()]);
            let dash = if series.look == LineStyle::Dashed {
                r#" stroke-dasharray="6 4""#
            } else {
                ""
            };
            writeln!(
                out,
                r#"<line x1="{:.1}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="{colour}" stroke-width="2.5"{dash}/>"#,
                left + 8.0,
                left + 32.0
            )?;
            writeln!(
                out,
                r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
                left + 40.0,
                at + 4.5,
                escape(&series.name)
            )?;
        }
        Ok(())
    }
}

fn draw(out: &mut String, series: &Series, colour: &str, x: &Ruler, y: &Ruler) -> std::fmt::Result {
    let places: Vec<(f64, f64)> = series
        .values
        .iter()
        .filter(|v| v.0.is_finite() && v.1.is_finite())
        .map(|v| (x.place(v.0), y.place(v.1)))
        .collect();
    let mut path = String::new();
    for (i, (px, py)) in places.iter().enumerate() {
        write!(path, "{}{px:.1} {py:.1}", if i == 0 { 'M' } else { 'L' })?;
    }
    let dash = if series.look == LineStyle::Dashed {
        r#" stroke-dasharray="6 4""#
    } else {
        ""
    };
    writeln!(
        out,
        r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.2" stroke-linejoin="round"{dash}/>"#
    )?;
    if series.look == LineStyle::Marked {
        for (px, py) in places {
            writeln!(
                out,
                r#"<circle cx="{px:.1}" cy="{py:.1}" r="4" fill="{colour}"/>"#
            )?;
        }
    }
    Ok(())
}

/// The cumulative distribution of `values`, as at most 200 points for a chart.
pub fn distribution(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let step = n.div_ceil(200).max(1);
    let mut points: Vec<(f64, f64)> = (0..n)
        .step_by(step)
        .map(|i| (sorted[i], (i + 1) as f64 / n as f64))
        .collect();
    if let (Some(last), Some(point)) = (sorted.last(), points.last())
        && point.1 < 1.0
    {
        points.push((*last, 1.0));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: Vec<(f64, f64)>) -> String {
        let series = vec![Series {
            name: "a < b & c".into(),
            look: LineStyle::Marked,
            values,
        }];
        Chart {
            title: "T".into(),
            x: Axis::log("members"),
            y: Axis::linear("hops"),
            series,
        }
        .svg()
    }

    #[test]
    fn every_value_is_a_mark_and_text_is_escaped() {
        let svg = chart(vec![(10.0, 1.0), (100.0, 2.0), (1000.0, 3.5)]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(
            svg.contains("a &lt; b &amp; c") && svg.contains("1\u{2009}000")
                || svg.contains(">1000<")
        );
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn no_data_and_absurd_data_still_make_a_chart() {
        for values in [
            vec![],
            vec![(f64::NAN, f64::INFINITY)],
            vec![(5.0, 0.0)],
            vec![(-1.0, -1.0), (0.0, 0.0)],
        ] {
            let svg = chart(values);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn a_distribution_ends_at_one_with_the_greatest_value() {
        let points = distribution(&(0..1001).map(f64::from).collect::<Vec<_>>());
        assert!(points.len() <= 201);
        assert_eq!(points.last(), Some(&(1000.0, 1.0)));
    }
}
