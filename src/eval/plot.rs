//! Plots as SVG, without any other program: score against speed-up, and where needles are found.
//!
//! Colours follow the reader's preference for light or dark. Coordinates are pixels, the origin at the top left.

use std::fmt::Write;

use super::statistics::Estimate;
use crate::printable::printable;

/// Both schemes' colours: text, lines, background, and the marks.
const STYLE: &str = "<style>\
text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-size:14px;font-weight:600}.s{fill:#59636e}\
.b{fill:#ffffff}.g{stroke:#d1d9e0}.a{stroke:#59636e}.m{fill:#0969da}.e{stroke:#0969da}.c{fill:#ffffff}\
.l{stroke:#ffffff;stroke-width:3px;paint-order:stroke}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b{fill:#0d1117}.g{stroke:#3d444d}.a{stroke:#9198a1}\
.m{fill:#4493f8}.e{stroke:#4493f8}.l{stroke:#0d1117}}</style>";

/// Width of a character of the labels, about.
const CHARACTER: f64 = 6.6;

/// A configuration in a plot of score against speed-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its name.
    pub label: String,
    /// Times as fast as the first configuration.
    pub speed_up: Estimate,
    /// From 0 to 1.
    pub score: Estimate,
}

/// A rectangle: left, top, right, bottom.
type Rectangle = [f64; 4];

/// A scale from values to pixels, with round ticks.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// Spans the values, rounded outwards to whole steps of 1, 2 or 5 times a power of ten.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        values.filter(|v| v.is_finite()).for_each(|v| {
            low = low.min(v);
            high = high.max(v);
        });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let raw = ((high - low) / 5.0).max(1e-3);
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
        let (mut low, mut high) = ((low / step).floor() * step, (high / step).ceil() * step);
        if high - low < step {
            (low, high) = (low - step, high + step);
        }
        Axis { low, high, from, to, step }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// The ticks, with the digits that their step needs.
    fn ticks(&self) -> Vec<(f64, String)> {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        let n = ((self.high - self.low) / self.step).round() as usize;
        (0..=n).map(|i| self.low + i as f64 * self.step).map(|v| (v, format!("{v:.digits$}"))).collect()
    }
}

/// Score in % against measured speed-up: a point for each configuration, with the intervals of both.
pub fn score_against_speed_up(title: &str, points: &[Point]) -> String {
    let (width, height) = (title_width(title).max(760.0), 480.0);
    let (left, right, top, bottom) = (64.0, width - 150.0, 48.0, height - 56.0);
    let ends = |e: &Estimate, unit: f64| e.interval.unwrap_or([e.value; 2]).map(|v| unit * v);
    let x = Axis::new(points.iter().flat_map(|p| ends(&p.speed_up, 1.0)), left, right);
    let y = Axis::new(points.iter().flat_map(|p| ends(&p.score, 100.0)), bottom, top);
    let mut out = open(width, height, title);
    // Writing to a String cannot fail.
    for (value, text) in x.ticks() {
        let at = x.at(value);
        let _ = write!(out, "<line class=\"g\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>");
        let _ = write!(
            out,
            "<text class=\"s\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            bottom + 18.0
        );
    }
    for (value, text) in y.ticks() {
        let at = y.at(value);
        let _ = write!(out, "<line class=\"g\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ = write!(
            out,
            "<text class=\"s\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            left - 8.0,
            at + 4.0
        );
    }
    let _ = write!(
        out,
        "<path class=\"a\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">speed-up, time to the first token</text>\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">score, %</text>",
        (left + right) / 2.0,
        height - 16.0,
        (top + bottom) / 2.0
    );
    let place = |p: &Point| (x.at(p.speed_up.value), y.at(100.0 * p.score.value));
    let mut taken: Vec<Rectangle> =
        points.iter().map(place).map(|(x, y)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
    for p in points {
        let (px, py) = place(p);
        let [y1, y2] = ends(&p.score, 100.0).map(|v| y.at(v));
        let [x1, x2] = ends(&p.speed_up, 1.0).map(|v| x.at(v));
        let _ = write!(
            out,
            "<path class=\"e\" opacity=\"0.55\" d=\"M{px:.1} {y1:.1}V{y2:.1}M{x1:.1} {py:.1}H{x2:.1}\"/>\
             <circle class=\"m\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4.5\"/>"
        );
    }
    for p in points {
        let (px, py) = place(p);
        let (tx, ty) = free_place(px, py, CHARACTER * p.label.chars().count() as f64, width, &mut taken);
        if (ty - py).abs() > 12.0 {
            let _ = write!(out, "<path class=\"a\" opacity=\"0.5\" d=\"M{px:.1} {py:.1}L{tx:.1} {ty:.1}\"/>");
        }
        let _ = write!(out, "<text class=\"l\" x=\"{tx:.1}\" y=\"{:.1}\">{}</text>", ty + 4.0, escaped(&p.label));
    }
    out + "</svg>\n"
}

/// Where a label of this width lies beside a point without covering another label or point: its left end and its middle height.
fn free_place(px: f64, py: f64, width: f64, image_width: f64, taken: &mut Vec<Rectangle>) -> (f64, f64) {
    let covers = |r: &Rectangle, x: f64, y: f64| r[0] < x + width && x < r[2] && r[1] < y + 7.0 && y - 7.0 < r[3];
    let sides = [px + 9.0, px - 9.0 - width].map(|x| x.clamp(2.0, (image_width - width - 2.0).max(2.0)));
    let offsets = (0..40).flat_map(|i| [f64::from(i) * -7.0, f64::from(i) * 7.0]);
    let places = offsets.flat_map(|dy| sides.map(|x| (x, py + dy)));
    let place = places.into_iter().find(|&(x, y)| !taken.iter().any(|r| covers(r, x, y)));
    let (x, y) = place.unwrap_or((sides[0], py));
    taken.push([x, y - 7.0, x + width, y + 7.0]);
    (x, y)
}

/// Shares by depth and length.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// What it shows.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// For each row the share of each column, from 0 to 1; `None` where nothing was measured.
    pub shares: Vec<Vec<Option<f64>>>,
}

/// Heat maps side by side, in rows of three, with a legend of the colours below them.
pub fn heat_maps(title: &str, x: &str, y: &str, maps: &[HeatMap]) -> String {
    const ACROSS: usize = 3;
    let cell = (46.0, 22.0);
    let columns = maps.iter().map(|m| m.columns.len()).max().unwrap_or(0) as f64;
    let rows = maps.iter().map(|m| m.rows.len()).max().unwrap_or(0) as f64;
    let label = maps.iter().map(|m| CHARACTER * m.title.chars().count() as f64).fold(0.0, f64::max);
    let panel = ((columns * cell.0).max(label) + 64.0, rows * cell.1 + 74.0);
    let across = maps.len().clamp(1, ACROSS);
    let down = maps.len().div_ceil(across);
    let width = (across as f64 * panel.0 + 40.0).max(title_width(title));
    let bottom = down as f64 * panel.1 + 56.0;
    let mut out = open(width, bottom + 32.0, title);
    legend(&mut out, 76.0, bottom);
    for (i, map) in maps.iter().enumerate() {
        let (left, top) = ((i % across) as f64 * panel.0 + 76.0, (i / across) as f64 * panel.1 + 72.0);
        let _ = write!(out, "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>", top - 10.0, escaped(&map.title));
        for (r, name) in map.rows.iter().enumerate() {
            let middle = top + (r as f64 + 0.5) * cell.1 + 4.0;
            let _ = write!(
                out,
                "<text class=\"s\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                escaped(name)
            );
            for (c, share) in map.shares[r].iter().enumerate() {
                let Some(share) = share else { continue };
                let (x, y) = (left + c as f64 * cell.0, top + r as f64 * cell.1);
                let _ = write!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>\
                     <text class=\"c\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"middle\">{:.0}</text>",
                    cell.0 - 1.0,
                    cell.1 - 1.0,
                    colour(*share),
                    x + cell.0 / 2.0,
                    100.0 * share
                );
            }
        }
        let below = top + map.rows.len() as f64 * cell.1;
        for (c, name) in map.columns.iter().enumerate() {
            let middle = left + (c as f64 + 0.5) * cell.0;
            let _ = write!(
                out,
                "<text class=\"s\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                below + 15.0,
                escaped(name)
            );
        }
        let _ = write!(
            out,
            "<text class=\"s\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"s\" transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"end\">{}</text>",
            below + 31.0,
            escaped(x),
            left - 52.0,
            top,
            escaped(y)
        );
    }
    out + "</svg>\n"
}

/// The colours of the shares from none to all, with its left end and its upper edge.
fn legend(out: &mut String, left: f64, top: f64) {
    let (width, height) = (120.0, 10.0);
    let middle = top + height - 1.0;
    let _ = write!(
        out,
        "<defs><linearGradient id=\"shares\"><stop offset=\"0\" stop-color=\"{}\"/><stop offset=\"1\" stop-color=\"{}\"/>\
         </linearGradient></defs><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width}\" height=\"{height}\" fill=\"url(#shares)\"/>\
         <text class=\"s\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">0 %</text>\
         <text class=\"s\" x=\"{:.1}\" y=\"{middle:.1}\">100 %</text>",
        colour(0.0),
        colour(1.0),
        left - 6.0,
        left + width + 6.0
    );
}

/// From orange (nothing) to blue (all), dark enough for white numbers, and told apart by colour-blind readers.
fn colour(share: f64) -> String {
    let (none, all) = ([0xb3, 0x4a, 0x00], [0x1f, 0x5f, 0xb4]);
    let mix = |i: usize| {
        let (a, b): (f64, f64) = (f64::from(none[i]), f64::from(all[i]));
        (a + (b - a) * share.clamp(0.0, 1.0)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

/// Width of an image whose title is not cut off.
fn title_width(title: &str) -> f64 {
    9.5 * title.chars().count() as f64 + 32.0
}

fn open(width: f64, height: f64, title: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\
         <title>{title}</title>{STYLE}<rect class=\"b\" width=\"100%\" height=\"100%\"/><text class=\"t\" x=\"16\" y=\"26\">{title}</text>"
    )
}

/// Text that XML does not take for markup: control characters and marks that turn the writing direction escaped as on a terminal,
/// and what else XML does not know left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, x: f64, y: f64) -> Point {
        let around = |v: f64, w: f64| Estimate { value: v, interval: Some([v - w, v + w]) };
        Point { label: label.into(), speed_up: around(x, 0.05), score: around(y, 0.03) }
    }

    #[test]
    fn ticks_are_round_and_span_the_values() {
        let texts = |values: &[f64]| {
            let axis = Axis::new(values.iter().copied(), 0.0, 100.0);
            let finite = || values.iter().filter(|v| v.is_finite());
            assert!(finite().all(|v| (-1e-9..=100.0 + 1e-9).contains(&axis.at(*v))), "{values:?}");
            axis.ticks().into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[0.95, 2.6]), ["0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]);
        assert_eq!(texts(&[20.0, 73.0]), ["20", "40", "60", "80"]);
        assert!(texts(&[1.0]).len() > 1 && texts(&[]).len() > 1 && texts(&[f64::NAN, 3.0]).len() > 1);
    }

    #[test]
    fn labels_cover_nothing() {
        let mut taken = vec![[95.0, 95.0, 105.0, 105.0]];
        for _ in 0..12 {
            let n = taken.len();
            let (x, y) = free_place(100.0, 100.0, 60.0, 400.0, &mut taken);
            let new = [x, y - 7.0, x + 60.0, y + 7.0];
            for r in &taken[..n] {
                assert!(r[0] >= new[2] || new[0] >= r[2] || r[1] >= new[3] || new[1] >= r[3], "{r:?} {new:?}");
            }
        }
    }

    #[test]
    fn a_plot_names_every_configuration() {
        let svg = score_against_speed_up("m & m", &[point("dense", 1.0, 0.7), point("a<b", 2.1, 0.65)]);
        assert!(svg.contains("m &amp; m") && svg.contains(">a&lt;b</text>") && svg.contains(">dense</text>"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
        assert!(!score_against_speed_up("", &[]).contains("NaN"));
    }

    /// Fails unless every element is closed in its place, every attribute quoted, and no text taken for markup.
    fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg.trim_end();
        while let Some(tag) = rest.strip_prefix('<') {
            let (tag, behind) = tag.split_once('>').expect("the tag ends");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                let name = tag.split([' ', '/']).next().unwrap_or_default();
                let quoted: Vec<&str> = tag.strip_suffix('/').unwrap_or(tag).split('"').collect();
                assert!(quoted.len() % 2 == 1, "quotes: {tag}");
                assert!(quoted.iter().step_by(2).skip(1).all(|s| s.is_empty() || s.starts_with(' ')), "attributes: {tag}");
                assert!(!tag.contains('<'), "{tag}");
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
            let (text, next) = behind.split_at(behind.find('<').unwrap_or(behind.len()));
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;"];
            assert!(text.match_indices('&').all(|(i, _)| entities.iter().any(|e| text[i..].starts_with(e))), "{text}");
            assert!(!text.contains('>') && !text.chars().any(char::is_control), "{text:?}");
            rest = next;
        }
        assert!(rest.is_empty() && open.is_empty(), "left: {rest:?}, open: {open:?}");
    }

    fn map(title: &str) -> HeatMap {
        HeatMap {
            title: title.into(),
            columns: vec!["4K".into(), "8K".into()],
            rows: vec!["10 %".into(), "50 %".into()],
            shares: vec![vec![Some(1.0), Some(0.0)], vec![None, Some(0.5)]],
        }
    }

    #[test]
    fn a_heat_map_has_a_cell_for_each_share() {
        let svg = heat_maps("needles", "tokens", "depth", &[map("dense")]);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("fill=\"#").count(), 3);
        for text in ["0", "50", "100", "dense", "tokens", "depth", "4K", "8K", "10 %", "50 %", "0 %", "100 %"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}: {svg}");
        }
        let filled = |share: f64| format!("fill=\"{}\"", colour(share));
        assert!([0.0, 0.5, 1.0].into_iter().all(|share| svg.matches(&filled(share)).count() == 1), "{svg}");
    }

    #[test]
    fn every_configuration_has_a_heat_map_within_the_image() {
        let maps = ["a", "b", "c", "d"].map(map);
        let svg = heat_maps("t", "x", "y", &maps);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("fill=\"#").count(), 4 * 3);
        let number = |text: &str, key: &str| {
            let value = text.split_once(&format!("{key}=\"")).and_then(|(_, rest)| rest.split('"').next());
            value.and_then(|v| v.parse::<f64>().ok()).expect("a number")
        };
        let (width, height) = (number(&svg, " width"), number(&svg, " height"));
        let cells: Vec<[f64; 2]> =
            svg.split("<rect ").skip(2).map(|cell| [number(cell, "x"), number(cell, "y")]).collect();
        assert_eq!(cells.len(), 1 + 4 * 3, "the legend and the cells");
        for (i, [x, y]) in cells.iter().enumerate() {
            assert!((0.0..width - 45.0).contains(x) && (40.0..height - 10.0).contains(y), "{x} {y}");
            assert!(!cells[..i].contains(&[*x, *y]), "one on the other: {x} {y}");
        }
        assert_well_formed(&heat_maps("", "", "", &[]));
    }

    #[test]
    fn texts_are_no_markup() {
        let odd = "a<b & \"c\">\u{1}\u{202e}\u{ffff}";
        let map = HeatMap { columns: vec![odd.into(); 2], rows: vec![odd.into(); 2], ..map(odd) };
        let svg = heat_maps(odd, odd, odd, &[map]);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("a&lt;b &amp; &quot;c&quot;&gt;\\u{1}\\u{202e}<").count(), 2 + 1 + 2 + 2 + 2);
        assert_well_formed(&score_against_speed_up(odd, &[point(odd, 1.0, 0.5), point("plain", 2.0, 0.4)]));
    }
}
