//! What was measured, for people: Markdown tables, and bars in SVG.

use std::fmt::Write;

use crate::engine::{Data, Peer};
use crate::run::{Column, Figures};

pub(crate) struct Report<'a> {
    pub(crate) peers: &'a [&'a Peer],
    pub(crate) figures: &'a [Figures],
    pub(crate) data: &'a Data,
}

fn median(of: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut of: Vec<_> = of.into_iter().filter(|figure| !figure.is_nan()).collect();
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied()
}

impl Report<'_> {
    fn speed(&self, peer: usize, column: Column) -> Option<f64> {
        median(self.figures[peer].speed[column as usize].iter().copied())
    }

    /// To the first engine in the same round; the median of those.
    fn ratio(&self, peer: usize, column: Column) -> Option<f64> {
        let of = |peer: usize| self.figures[peer].speed[column as usize].iter();
        median(of(peer).zip(of(0)).map(|(this, first)| this / first))
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "Records per second:\n");
        self.table(&mut text, |peer, column| self.speed(peer, column).map(rate));
        let _ = writeln!(
            text,
            "\nRatios to bare sled in the same round (medians, not quotients of the rates above):\n"
        );
        self.table(&mut text, |peer, column| self.ratio(peer, column).map(|r| format!("{r:.2}")));
        let _ = writeln!(text, "\nBytes on disk per byte of names and values:\n");
        let _ = writeln!(text, "| | after load | after re-encryption | after its own clean-up |");
        let _ = writeln!(text, "|---|---|---|---|");
        #[allow(clippy::cast_precision_loss)]
        let stored = (self.data.count * (self.data.size + self.data.name(0).len())) as f64;
        for (peer, figures) in self.peers.iter().zip(self.figures) {
            let cells = figures.space.each_ref().map(|space| {
                let space = median(space.iter().copied());
                space.map_or("–".to_owned(), |bytes| format!("{:.2}", bytes / stored))
            });
            let _ = writeln!(text, "| {} | {} |", peer.name, cells.join(" | "));
        }
        for (peer, figures) in self.peers.iter().zip(self.figures) {
            for failure in &figures.failures {
                let _ = writeln!(text, "\n{} failed and sat out the rest: {failure}.", peer.name);
            }
        }
        text
    }

    fn table(&self, text: &mut String, cell: impl Fn(usize, Column) -> Option<String>) {
        let titles = Column::ALL.map(Column::title).join(" | ");
        let _ = writeln!(text, "| | {titles} |\n|{}", "---|".repeat(Column::ALL.len() + 1));
        for (i, peer) in self.peers.iter().enumerate() {
            let cells = Column::ALL.map(|column| cell(i, column).unwrap_or("–".to_owned()));
            let _ = writeln!(text, "| {} | {} |", peer.name, cells.join(" | "));
        }
    }

    /// A panel per column, a bar per engine, as long as its ratio.
    pub(crate) fn svg(&self) -> String {
        const PANEL: (usize, usize) = (300, 26);
        const ACROSS: usize = 3;
        const LABELS: usize = 120;
        const LINE: usize = 17;
        let high = PANEL.1 + LINE * self.peers.len() + 22;
        let (width, height) = (PANEL.0 * ACROSS, 58 + high * Column::ALL.len().div_ceil(ACROSS));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">byokv beside other engines, \
             {} records of {} bytes</text>\n\
             <text x=\"12\" y=\"40\" fill=\"#555\">Bars: records per second as a ratio to bare sled \
             (dashed line). Longer is faster.</text>\n",
            grouped(self.data.count),
            self.data.size
        );
        for (panel, column) in Column::ALL.into_iter().enumerate() {
            let (left, top) = (panel % ACROSS * PANEL.0 + 12, 58 + panel / ACROSS * high);
            let title = match column {
                Column::ReEncryptDurable => "re-encrypt all, durable",
                other => other.title(),
            };
            let _ = writeln!(
                svg,
                "<text x=\"{left}\" y=\"{}\" font-size=\"13\" font-weight=\"bold\">{title}</text>",
                top + 14
            );
            let ratios: Vec<_> =
                (0..self.peers.len()).map(|peer| self.ratio(peer, column)).collect();
            let longest = ratios.iter().flatten().copied().fold(1.0, f64::max);
            #[allow(clippy::cast_precision_loss)]
            let room = (PANEL.0 - LABELS - 105) as f64;
            #[allow(clippy::cast_precision_loss)]
            let one = (left + LABELS) as f64 + room / longest;
            let mut labels = String::new();
            for (i, ratio) in ratios.iter().enumerate() {
                let y = top + PANEL.1 + i * LINE;
                let peer = self.peers[i].name;
                let color = match peer {
                    "byokv" => "#0b6bcb",
                    "bare sled" => "#8a8a8a",
                    _ => "#c2c8ce",
                };
                let ratio = ratio.unwrap_or_default();
                let long = room * ratio / longest;
                let speed = self.speed(i, column).map_or("–".to_owned(), rate);
                let x = left + LABELS;
                #[allow(clippy::cast_precision_loss)]
                let after = x as f64 + long + 4.0;
                let _ = writeln!(
                    svg,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{peer}</text>\
                     <rect x=\"{x}\" y=\"{y}\" width=\"{long:.1}\" height=\"12\" fill=\"{color}\"/>",
                    x - 5,
                    y + 10
                );
                // The white edge keeps it readable over the dashed line.
                let _ = writeln!(
                    labels,
                    "<text x=\"{after:.1}\" y=\"{}\" fill=\"#555\" stroke=\"#fff\" stroke-width=\"4\" \
                     paint-order=\"stroke\">{ratio:.2} · {speed}/s</text>",
                    y + 10
                );
            }
            let _ = writeln!(
                svg,
                "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#444\" \
                 stroke-dasharray=\"2 3\"/>",
                top + PANEL.1 - 3,
                top + PANEL.1 + LINE * self.peers.len()
            );
            svg.push_str(&labels);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Three digits, with k and M.
fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 999_500.0 => format!("{:.2}M", r / 1e6),
        r if r >= 99_950.0 => format!("{:.0}k", r / 1e3),
        r if r >= 9_995.0 => format!("{:.1}k", r / 1e3),
        r if r >= 999.5 => format!("{:.2}k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
