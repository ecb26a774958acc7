//! Latency by second over the share of the records that is under the new key, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Outcome;

const QUANTILES: [(&str, f64, RGBColor); 4] = [
    ("p50", 0.5, RGBColor(52, 140, 78)),
    ("p99", 0.99, RGBColor(11, 107, 203)),
    ("p99.9", 0.999, RGBColor(221, 132, 22)),
    ("max", 1.0, RGBColor(190, 50, 50)),
];
const GREY: RGBColor = RGBColor(110, 118, 126);

type Done = Result<(), Box<dyn std::error::Error>>;

#[allow(clippy::cast_precision_loss)]
pub(crate) fn draw(path: &Path, outcomes: &[&Outcome], title: &str) -> Done {
    const PANEL: (u32, u32) = (900, 300);
    let panels = u32::try_from(outcomes.len())?;
    let root = SVGBackend::new(path, (PANEL.0, 36 + PANEL.1 * panels)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 16))?;
    let all = || outcomes.iter().flat_map(|o| &o.seen.seconds).filter(|second| !second.is_empty());
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let lowest = all().map(|s| micros(s.value_at_quantile(0.5))).fold(f64::MAX, f64::min);
    let highest = all().map(|s| micros(s.max())).fold(0.0, f64::max);
    let range = 10f64.powf(lowest.log10().floor())..10f64.powf(highest.log10().ceil());
    // The last second of a run is not whole.
    let whole = |outcome: &Outcome| outcome.seen.seconds.len().saturating_sub(1);
    let longest = outcomes.iter().map(|outcome| whole(outcome)).max().unwrap_or(0) as f64;
    for (area, outcome) in root.split_evenly((outcomes.len(), 1)).iter().zip(outcomes) {
        let mut chart = ChartBuilder::on(area)
            .caption(&outcome.name, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .right_y_label_area_size(52)
            .build_cartesian_2d(0.0..longest, range.clone().log_scale())?
            .set_secondary_coord(0.0..longest, 0.0..100.0);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .x_desc("seconds")
            .x_label_formatter(&|second| format!("{second:.0}"))
            .y_desc("latency")
            .y_label_formatter(&|micros| spoken(*micros))
            .label_style(("sans-serif", 12))
            .draw()?;
        chart
            .configure_secondary_axes()
            .y_desc("% rewritten")
            .y_label_formatter(&|percent| format!("{percent:.0}"))
            .label_style(("sans-serif", 12))
            .draw()?;
        let (began, ended) = outcome.rotation;
        let rewritten = outcome.rewritten.iter().map(|(at, share)| (*at, share * 100.0));
        chart.draw_secondary_series(AreaSeries::new(rewritten, 0.0, GREY.mix(0.22)))?;
        for at in [began, ended] {
            let edge = [(at, 0.0), (at, 100.0)];
            chart.draw_secondary_series(LineSeries::new(edge, GREY.mix(0.8)))?;
        }
        for (name, quantile, color) in QUANTILES {
            let points = outcome.seen.seconds.iter().take(whole(outcome)).enumerate();
            let points = points
                .map(|(second, of)| (second as f64 + 0.5, micros(of.value_at_quantile(quantile))));
            let legend =
                move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(name)
                .legend(legend);
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(GREY.mix(0.4))
            .label_font(("sans-serif", 12))
            .draw()?;
    }
    Ok(root.present()?)
}

pub(crate) fn spoken(micros: f64) -> String {
    match micros {
        m if m >= 999_500.0 => format!("{} s", digits(m / 1e6)),
        m if m >= 999.5 => format!("{} ms", digits(m / 1e3)),
        m => format!("{} µs", digits(m)),
    }
}

fn digits(number: f64) -> String {
    if number >= 9.95 || (number - number.round()).abs() < 1e-9 {
        format!("{number:.0}")
    } else {
        format!("{number:.1}")
    }
}
