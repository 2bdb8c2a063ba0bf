//! The figures as a picture: for each scenario and who answers a bar up to the 50th percentile, and a line to the 99th.

use std::fmt::Write as _;

use crate::results::{KINDS, Results};
use crate::scenario::{Scenario, Via};

const ROW: f64 = 16.0;
const LEFT: f64 = 260.0;
const WIDTH: f64 = 640.0;
const COLOURS: [&str; 3] = ["#3b6ea5", "#7aa6d0", "#c08a3e"];

/// The plot. Time is logarithmic, from 1 µs to 1 ms.
pub(crate) fn svg(results: &Results, scenarios: &[&Scenario]) -> String {
    let x = |ns: f64| LEFT + (ns.max(1e3) / 1e3).log10().min(3.0) / 3.0 * WIDTH;
    let mut body = String::new();
    let mut y = 40.0;
    for scenario in scenarios {
        y += ROW;
        let _ = writeln!(
            body,
            r#"<text x="8" y="{y}" font-weight="bold">{}: {}</text>"#,
            scenario.name, scenario.what
        );
        y += ROW / 2.0;
        for via in scenario.vias() {
            let _ = writeln!(body, r#"<text x="24" y="{}">{}</text>"#, y + ROW, via.name());
            for (kind, colour) in KINDS.iter().zip(COLOURS) {
                y = bar(&mut body, results, (scenario.name, via, kind), (y, colour), x);
            }
        }
    }
    let mut axis = String::new();
    for (ns, label) in [(1e3, "1 µs"), (1e4, "10 µs"), (1e5, "100 µs"), (1e6, "1 ms")] {
        let at = x(ns);
        let _ = writeln!(axis, "<line x1=\"{at}\" x2=\"{at}\" y1=\"30\" y2=\"{y}\" stroke=\"#ddd\"/>");
        let _ = writeln!(axis, r#"<text x="{at}" y="24" text-anchor="middle">{label}</text>"#);
    }
    for (kind, (colour, at)) in KINDS.iter().zip(COLOURS.iter().zip([8.0, 60.0, 112.0])) {
        let _ = writeln!(axis, r#"<rect x="{at}" y="14" width="8" height="8" fill="{colour}"/>"#);
        let _ = writeln!(axis, r#"<text x="{}" y="22">{kind}</text>"#, at + 12.0);
    }
    let (width, height) = (LEFT + WIDTH + 90.0, y + ROW);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{axis}{body}</svg>\n"
    )
}

/// One bar at height `y`; where the next goes.
fn bar(
    body: &mut String,
    results: &Results,
    (scenario, via, kind): (&'static str, Via, &str),
    (y, colour): (f64, &str),
    x: impl Fn(f64) -> f64,
) -> f64 {
    let (p50, p99) = (results.time(scenario, via, kind, 50), results.time(scenario, via, kind, 99));
    let (end, far, height) = (x(p50), x(p99), ROW / 2.0);
    let _ = writeln!(
        body,
        r#"<rect x="{LEFT}" y="{}" width="{:.1}" height="{height}" fill="{colour}"/>"#,
        y + 2.0,
        end - LEFT
    );
    let middle = y + 2.0 + height / 2.0;
    let _ = writeln!(
        body,
        "<line x1=\"{end:.1}\" x2=\"{far:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#333\"/>"
    );
    let _ = writeln!(body, r#"<text x="{:.1}" y="{}">{:.2}</text>"#, far + 4.0, middle + 4.0, p50 / 1e3);
    y + height + 2.0
}
