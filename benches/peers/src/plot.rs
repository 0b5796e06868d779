//! A plot of latency against the number of keys, both on logarithmic axes, as SVG.

use std::fmt::Write;

/// A curve of the plot.
pub(crate) struct Series {
    pub(crate) name: String,
    /// The points of the curve: a number of keys, and the latency in nanoseconds.
    pub(crate) points: Vec<(u64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 290.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Colours that colour-blind people can distinguish (Okabe and Ito). Curves after the last colour are dashed.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666", "#e69f00",
];
/// The smallest vertical distance between two labels at the right edge: 16 SVG units, the height of a line of
/// text.
const LINE: f64 = 16.0;

/// A logarithmic axis.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    length: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, start: f64, length: f64) -> Self {
        let least = values.clone().fold(f64::MAX, f64::min);
        let most = values.fold(f64::MIN_POSITIVE, f64::max);
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        Self {
            from,
            to: to.max(from + 1.0),
            start,
            length,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.from) / (self.to - self.from) * self.length
    }

    fn powers(&self) -> impl Iterator<Item = f64> + use<> {
        let (from, to) = (self.from as i32, self.to as i32);
        (from..=to).map(|power| 10_f64.powi(power))
    }
}

fn time(nanos: f64) -> String {
    match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        1e3..1e6 => format!("{:.0} µs", nanos / 1e3),
        1e6..1e9 => format!("{:.0} ms", nanos / 1e6),
        _ => format!("{:.0} s", nanos / 1e9),
    }
}

fn count(keys: f64) -> String {
    match keys {
        ..1e3 => format!("{keys:.0}"),
        1e3..1e6 => format!("{:.0}k", keys / 1e3),
        _ => format!("{:.0}M", keys / 1e6),
    }
}

/// Moves overlapping labels apart and keeps their order. No label is below `bottom`.
fn apart(mut places: Vec<(usize, f64)>, bottom: f64) -> Vec<(usize, f64)> {
    places.sort_by(|a, b| a.1.total_cmp(&b.1));
    for at in 1..places.len() {
        places[at].1 = places[at].1.max(places[at - 1].1 + LINE);
    }
    let mut lowest = bottom;
    for place in places.iter_mut().rev() {
        place.1 = place.1.min(lowest);
        lowest = place.1 - LINE;
    }
    places
}

pub(crate) fn svg(all: &[Series]) -> String {
    let points = || all.iter().flat_map(|series| series.points.iter());
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let across = Axis::over(points().map(|p| p.0 as f64), LEFT, right - LEFT);
    // The vertical axis.
    let up = Axis::over(points().map(|p| p.1), bottom, TOP - bottom);
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="28" font-size="16">Verifying a valid key, drawn at random: time against number of keys</text>
"#
    );
    let mut line = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    for power in up.powers() {
        let y = up.at(power);
        line(format!(
            r##"<path d="M{LEFT} {y:.1}H{right}" stroke="#dddddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT - 8.0,
            y + 4.0,
            time(power)
        ));
    }
    for power in across.powers() {
        let x = across.at(power);
        line(format!(
            r##"<path d="M{x:.1} {TOP}V{bottom}" stroke="#dddddd"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
            bottom + 18.0,
            count(power)
        ));
    }
    line(format!(
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">keys</text>"#,
        f64::midpoint(LEFT, right),
        bottom + 42.0
    ));
    let mut ends = Vec::new();
    for (place, series) in all.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let path: Vec<_> = series
            .points
            .iter()
            .map(|&(keys, nanos)| format!("{:.1},{:.1}", across.at(keys as f64), up.at(nanos)))
            .collect();
        let width = if place == 0 { 3 } else { 2 };
        let dashes = if place < COLOURS.len() { "none" } else { "6 4" };
        line(format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>"#,
            path.join(" ")
        ));
        for point in &path {
            let (x, y) = point.split_once(',').unwrap_or_default();
            line(format!(
                r#"<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>"#
            ));
        }
        if let Some(&(_, nanos)) = series.points.last() {
            ends.push((place, up.at(nanos)));
        }
    }
    for (place, y) in apart(ends, bottom) {
        let dashed = if place < COLOURS.len() { "" } else { "- - " };
        line(format!(
            r#"<text x="{:.1}" y="{:.1}" fill="{}">{dashed}{}</text>"#,
            right + 12.0,
            y + 4.0,
            COLOURS[place % COLOURS.len()],
            all[place].name.replace('&', "&amp;").replace('<', "&lt;")
        ));
    }
    svg + "</svg>\n"
}
