//! What is printed, and how: text or JSON, tables, progress.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use anstyle::{AnsiColor, Style};
use byokv::text::clean;
use byokv::{Phase, Progress};
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::failure::{Failure, Result};
use super::json;

#[derive(Clone, Copy)]
pub(super) struct Ui {
    pub(super) json: bool,
    pub(super) quiet: bool,
}

pub(super) const RED: Style = AnsiColor::Red.on_default().bold();
pub(super) const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
pub(super) const GREEN: Style = AnsiColor::Green.on_default().bold();

impl Ui {
    /// What the command was run for.
    pub(super) fn result(self, json: &impl Serialize, text: impl Display) -> Result {
        if self.json { object(json) } else { line(text) }
    }

    /// That something was done, which a quiet run does not say.
    pub(super) fn done(self, json: &impl Serialize, text: impl Display) -> Result {
        if self.quiet && !self.json { Ok(()) } else { self.result(json, text) }
    }

    /// One row for each item: a table, or one JSON object on each line.
    pub(super) fn rows<T: Serialize, const N: usize>(
        self,
        header: [&str; N],
        items: &[T],
        row: impl Fn(&T) -> [String; N],
    ) -> Result {
        if self.json {
            return items.iter().try_for_each(object);
        }
        if items.is_empty() {
            return Ok(());
        }
        line(table(header, items.iter().map(row)))
    }

    /// An aside for people.
    pub(super) fn note(self, text: impl Display) {
        if !self.quiet && !self.json {
            // Nobody is there to be told that stderr is gone.
            let _ = writeln!(anstream::stderr(), "{}", clean(&text.to_string()));
        }
    }

    pub(super) fn warn(self, text: impl Display) {
        let _ = if self.json {
            json_line(&json!({"warning": text.to_string()}))
        } else {
            let text = text.to_string();
            writeln!(anstream::stderr(), "{YELLOW}warning:{YELLOW:#} {}", clean(&text))
        };
    }

    pub(super) fn failure(self, failure: &Failure) {
        let (message, hint) = (failure.message(), failure.hint());
        let mut err = anstream::stderr();
        let _ = if self.json {
            let mut error = json!({"kind": failure.kind(), "message": message});
            if let Some(hint) = hint {
                error["hint"] = hint.into();
            }
            json_line(&json!({"error": error}))
        } else {
            let (style, word) = match failure {
                Failure::Waits(_) => (YELLOW, "waiting"),
                _ => (RED, "error"),
            };
            writeln!(err, "{style}{word}:{style:#} {}", clean(&message)).and_then(|()| match hint {
                Some(hint) => writeln!(err, " hint: {}", clean(&hint)),
                None => Ok(()),
            })
        };
    }

    /// The progress of something that takes its time, on stderr.
    pub(super) fn bar(self) -> Bar {
        let terminal = io::stderr().is_terminal();
        let bar = (terminal && !self.quiet).then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1).with_style(style)
        });
        Bar { bar, lines: !terminal && !self.quiet && !self.json, last: None }
    }
}

/// A bar on a terminal, now and then a line elsewhere. Gone when dropped.
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Option<(Phase, Instant)>,
}

impl Bar {
    pub(super) fn show(&mut self, progress: &Progress) {
        const BETWEEN_LINES: Duration = Duration::from_secs(5);
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("{}: {}", progress.org, progress.phase));
            bar.set_message(speed(progress));
            bar.set_length(progress.total.unwrap_or(progress.scanned + 1));
            bar.set_position(progress.scanned);
        }
        let due = self
            .last
            .is_none_or(|(phase, at)| phase != progress.phase || at.elapsed() > BETWEEN_LINES);
        if self.lines && due {
            let _ = writeln!(io::stderr(), "{progress}");
            self.last = Some((progress.phase, Instant::now()));
        }
    }

    /// Whether anybody sees it.
    pub(super) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// For work of our own.
    pub(super) fn count(&self, what: &str, done: u64, of: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(what.to_owned());
            bar.set_length(of);
            bar.set_position(done);
            let left = humantime::format_duration(Duration::from_secs(bar.eta().as_secs()));
            bar.set_message(format!("{:.0}/s, {left} left", bar.per_sec()));
        }
    }
}

fn speed(progress: &Progress) -> String {
    let mut parts = Vec::new();
    if progress.unreadable > 0 {
        parts.push(format!("{} unreadable", progress.unreadable));
    }
    if let Some(rate) = progress.rate {
        parts.push(format!("{rate:.0}/s"));
    }
    if let Some(left) = progress.time_left {
        let left = Duration::from_secs(left.as_secs().max(1));
        parts.push(format!("{} left", humantime::format_duration(left)));
    }
    parts.extend(progress.reason.clone());
    parts.join(", ")
}

/// Prints one JSON object on its line.
pub(super) fn object(json: &impl Serialize) -> Result {
    line(json::text(json).map_err(|e| Failure::Failed(format!("writing JSON: {e}")))?)
}

/// The same, on stderr.
fn json_line(json: &impl Serialize) -> io::Result<()> {
    writeln!(io::stderr(), "{}", json::text(json)?)
}

pub(super) fn line(text: impl Display) -> Result {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// How many columns there are: of the terminal, or as `COLUMNS` says. `None` for programs.
fn width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    Table::new().width().map(usize::from).or(told).filter(|width| *width > 0)
}

/// Prints `start`, which has `indent` columns, and `text` behind it, on as many lines as it needs. No
/// word is broken.
pub(super) fn indented(start: &str, indent: usize, text: &str) -> Result {
    // Where little room is left, the terminal breaks as well as we.
    const LEAST: usize = 20;
    let Some(room) =
        width().map(|width| width.saturating_sub(indent)).filter(|room| *room >= LEAST)
    else {
        return line(format_args!("{start}{text}"));
    };
    let options = textwrap::Options::new(room)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let lines = textwrap::wrap(text, options);
    line(format_args!("{start}{}", lines.join(&format!("\n{:indent$}", ""))))
}

/// Boxes for people, bare columns for programs. Nothing is broken into lines, because a fingerprint
/// or a time in pieces can be neither copied nor compared: where a row is too wide, each cell gets
/// a line.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<_> = rows.collect();
    let mut table = Table::new();
    table.set_header(header.map(str::to_uppercase));
    if io::stdout().is_terminal() {
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Disabled);
    } else {
        table.load_style(presets::NOTHING);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
    }
    for row in &rows {
        table.add_row(row);
    }
    let text = table.trim_fmt();
    let is_wide = |width| text.lines().any(|line| line.chars().count() > width);
    if width().is_some_and(is_wide) { blocks(header, &rows) } else { text }
}

/// Each row as lines of its own, without the cells that are empty.
fn blocks<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let names = header.iter().map(|name| name.len()).max().unwrap_or_default();
    let block = |row: &[String; N]| {
        let cells = header.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
        let lines: Vec<_> = cells.map(|(name, cell)| format!("{name:names$}  {cell}")).collect();
        lines.join("\n")
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n\n")
}

pub(super) fn time(unix_ms: u64) -> String {
    // The last second of the year 9999, where the format ends.
    let since = Duration::from_millis(unix_ms.min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

pub(super) fn records(count: u64) -> String {
    format!("{count} record{}", if count == 1 { "" } else { "s" })
}

/// A record's name for people, which `byokv::text::unescape` reads back.
pub(super) fn visible(name: &[u8]) -> String {
    byokv::text::escape(name)
}
