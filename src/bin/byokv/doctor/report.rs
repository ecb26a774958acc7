//! What the doctor found.

use serde::Serialize;
use serde_json::json;

use super::super::failure::{Failure, Result};
use super::super::ui::{self, GREEN, RED, Ui, YELLOW};

/// Columns before what was found.
const INDENT: usize = 22;

/// One thing looked at.
#[derive(Serialize)]
struct Finding {
    level: Level,
    what: &'static str,
    found: String,
    /// What to do.
    advice: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Fine,
    Notice,
    /// Goes on only once somebody does something.
    Waits,
    Fault,
}

#[derive(Default)]
pub(super) struct Report(Vec<Finding>);

impl Report {
    pub(super) fn add(
        &mut self,
        level: Level,
        what: &'static str,
        found: impl Into<String>,
        advice: &str,
    ) {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        self.0.push(Finding { level, what, found: found.into(), advice });
    }

    pub(super) fn fine(&mut self, what: &'static str, found: impl Into<String>) {
        self.add(Level::Fine, what, found, "");
    }

    /// Prints all of it. An error says how much is wrong, or waits.
    pub(super) fn print(&self, ui: Ui) -> Result {
        let findings = &self.0;
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (faults, waiting) = (count(Level::Fault), count(Level::Waits));
        if ui.json {
            ui::object(&json!({"findings": findings, "faults": faults, "waiting": waiting}))?;
        }
        for Finding { level, what, found, advice } in findings.iter().filter(|_| !ui.json) {
            if ui.quiet && *level == Level::Fine {
                continue;
            }
            let (style, word) = match level {
                Level::Fine => (GREEN, "fine"),
                Level::Notice => (YELLOW, "notice"),
                Level::Waits => (YELLOW, "WAITS"),
                Level::Fault => (RED, "FAULT"),
            };
            let start = format!("{style}{word:6}{style:#}  {what:13} ");
            ui::indented(&start, INDENT, found)?;
            if let Some(advice) = advice {
                ui::indented(&format!("{:INDENT$}  do: ", ""), INDENT + 6, advice)?;
            }
        }
        match faults {
            0 if waiting > 0 => {
                let of =
                    if waiting == 1 { "1 thing waits" } else { &format!("{waiting} things wait") };
                Err(Failure::Waits(format!("{of} for you, and nothing is wrong")))
            }
            0 => Ok(()),
            1 => Err(Failure::Fault("1 fault found".to_owned())),
            _ => Err(Failure::Fault(format!("{faults} faults found"))),
        }
    }
}
