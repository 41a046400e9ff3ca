//! Bar charts drawn by hand, without a plotting library.

use std::fmt::Write as _;

/// Groups of bars, one bar per series, on a logarithmic scale from `floor`: equal lengths are equal factors.
pub struct Bars<'a> {
    pub title: &'a str,
    pub floor: f64,
    pub series: &'a [&'a str],
    /// Pairs of a label and one value per series; `None` leaves the bar out.
    pub groups: Vec<(String, Vec<Option<f64>>)>,
}

const WIDTH: f64 = 720.0;
const LABELS: f64 = 210.0;
const BAR: f64 = 16.0;
const COLOURS: [&str; 4] = ["#1f6f8b", "#c8553d", "#8a8a8a", "#d9a441"];

impl Bars<'_> {
    pub fn draw(&self) -> String {
        let decades = |value: f64| (value / self.floor).log10().max(0.0);
        let values = self.groups.iter().flat_map(|(_, values)| values).flatten();
        let longest = values.map(|value| decades(*value)).fold(0.1, f64::max);
        let mut body = String::new();
        let mut y = 60.0;
        for (label, values) in &self.groups {
            let middle = y + BAR * values.len() as f64 / 2.0 + 4.0;
            let _infallible = writeln!(body, r#"<text x="10" y="{middle:.0}">{label}</text>"#);
            for (value, colour) in values.iter().zip(COLOURS) {
                if let Some(value) = value {
                    let length = (decades(*value) / longest * (WIDTH - LABELS - 80.0)).max(2.0);
                    let (end, base) = (LABELS + length + 6.0, y + BAR - 4.0);
                    let (height, shown) = (BAR - 2.0, shown(*value));
                    let _infallible = writeln!(
                        body,
                        r#"<rect x="{LABELS}" y="{y:.0}" width="{length:.0}" height="{height}" fill="{colour}"/><text x="{end:.0}" y="{base:.0}">{shown}</text>"#,
                    );
                }
                y += BAR;
            }
            y += 10.0;
        }
        let mut legend = String::new();
        for (at, (name, colour)) in self.series.iter().zip(COLOURS).enumerate() {
            let x = LABELS + 150.0 * at as f64;
            let text = x + 16.0;
            let _infallible = writeln!(
                legend,
                r#"<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/><text x="{text}" y="44">{name}</text>"#,
            );
        }
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0}" font-family="sans-serif" font-size="12">"#,
                "\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
                r#"<text x="10" y="20" font-size="14">{title}</text>"#,
                "\n{legend}{body}</svg>\n",
            ),
            width = WIDTH,
            height = y,
            title = self.title,
            legend = legend,
            body = body,
        )
    }
}

/// Formats a value with three digits, or more from 1,000 on.
pub fn shown(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
