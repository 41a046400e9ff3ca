//! Rows beside their physical limits, as a table and as a plot that reads at a glance.

use std::fmt::Write as _;

use crate::svg::shown;

/// A measured row.
pub struct Row {
    pub what: String,
    /// Physical limit, in words.
    pub limit: &'static str,
    /// Value of the limit in this run, with its unit.
    pub at: String,
    /// Value of headwater in this run, with its unit.
    pub ours: String,
    /// Value of headwater as a multiple of the limit.
    pub times: f64,
    /// Largest multiple that meets the target; `None` without a target.
    pub target: Option<f64>,
}

impl Row {
    fn is_met(&self) -> bool {
        self.target.is_none_or(|target| self.times <= target)
    }
}

pub fn table(rows: &[Row], plot: &str) -> String {
    let mut out = format!(
        "\n## How far from the physical limit\n\n![multiples of the limit]({plot})\n\n| row | physical limit | limit | headwater | \
         × limit | target | met |\n|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let target = row
            .target
            .map_or(String::new(), |target| format!("≤ {}", shown(target)));
        let met = match row.target {
            None => "",
            Some(_) if row.is_met() => "yes",
            Some(_) => "**no**",
        };
        let Row {
            what, limit, at, ours, ..
        } = row;
        let times = shown(row.times);
        let _infallible = writeln!(out, "| {what} | {limit} | {at} | {ours} | {times} | {target} | {met} |");
    }
    out
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 320.0;
const ROW: f64 = 24.0;
const TOP: f64 = 64.0;
/// Left end of the scale: half of the limit's cost.
const FLOOR: f64 = 0.5;
const MET: &str = "#2f7d4f";
const MISSED: &str = "#c8553d";
const WITHOUT_TARGET: &str = "#8a8a8a";

/// Draws a bar from the limit to headwater for each row, on a logarithmic scale, and a mark at its target.
pub fn plot(rows: &[Row]) -> String {
    let values = rows.iter().flat_map(|row| [Some(row.times), row.target]).flatten();
    let most = values.filter(|value| value.is_finite()).fold(2.0, f64::max);
    let x = |times: f64| {
        let share = (times.clamp(FLOOR, most) / FLOOR).ln() / (most / FLOOR).ln();
        LABELS + share * (WIDTH - LABELS - 70.0)
    };
    let bottom = TOP + ROW * rows.len() as f64;
    let mut body = String::new();
    for (number, row) in rows.iter().filter(|row| row.times.is_finite()).enumerate() {
        let y = TOP + ROW * number as f64;
        let (from, to) = (x(1.0).min(x(row.times)), x(1.0).max(x(row.times)));
        let colour = match row.target {
            None => WITHOUT_TARGET,
            Some(_) if row.is_met() => MET,
            Some(_) => MISSED,
        };
        let _infallible = writeln!(
            body,
            r#"<text x="10" y="{:.0}">{}</text><rect x="{from:.0}" y="{:.0}" width="{:.0}" height="12" fill="{colour}"/><text x="{:.0}" y="{:.0}">{} ×</text>"#,
            y + 15.0,
            row.what,
            y + 5.0,
            (to - from).max(2.0),
            to.max(row.target.map_or(0.0, &x)) + 6.0,
            y + 15.0,
            shown(row.times),
        );
        if let Some(target) = row.target {
            let at = x(target);
            let _infallible = writeln!(
                body,
                r##"<line x1="{at:.0}" x2="{at:.0}" y1="{:.0}" y2="{:.0}" stroke="#222222" stroke-width="2"/>"##,
                y + 2.0,
                y + 20.0,
            );
        }
    }
    let limit = x(1.0);
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0}" font-family="sans-serif" font-size="12">"#,
            "\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            r#"<text x="10" y="20" font-size="14">headwater as a multiple of the physical limit (logarithmic)</text>"#,
            r#"<rect x="10" y="32" width="12" height="12" fill="{met}"/><text x="26" y="42">target met</text>"#,
            r#"<rect x="110" y="32" width="12" height="12" fill="{missed}"/><text x="126" y="42">missed</text>"#,
            r#"<rect x="190" y="32" width="12" height="12" fill="{without}"/><text x="206" y="42">no target</text>"#,
            r##"<line x1="280" x2="280" y1="31" y2="45" stroke="#222222" stroke-width="2"/><text x="288" y="42">target</text>"##,
            r##"<line x1="{limit:.0}" x2="{limit:.0}" y1="52" y2="{bottom:.0}" stroke="#8a8a8a" stroke-dasharray="3 3"/>"##,
            r##"<text x="{limit:.0}" y="48" text-anchor="middle" fill="#555555">limit</text>"##,
            "\n{body}</svg>\n",
        ),
        width = WIDTH,
        height = bottom + 10.0,
        met = MET,
        missed = MISSED,
        without = WITHOUT_TARGET,
        limit = limit,
        bottom = bottom,
        body = body,
    )
}
