//! `byokv clock`: what the store makes of this machine's clock, and an operator's word about it.

use std::time::Duration;

use byokv::{ClockStatus, Store};
use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::erase;
use super::failure::Result;
use super::ui::{self, Ui};

const ABOUT: &str = "\
Holds, the age of keys and the end of import tokens are counted by time that the store has observed:
time in which it was open, and of each gap between two openings a day at most. So nobody ends a hold by
setting this machine's clock. If the machine was really off for longer, confirm it.";

#[derive(Subcommand)]
#[command(after_help = ABOUT)]
pub(super) enum Command {
    /// Show the clocks, and how much time is not counted
    Status,
    /// Count time that passed by this machine's clock alone: the machine was off for so long
    Confirm {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| match self {
            Self::Status => {
                let clock = store.keys().clock();
                ui.result(&clock, text(&clock))
            }
            Self::Confirm { yes } => confirm(ui, store, yes),
        })
    }
}

fn text(clock: &ClockStatus) -> String {
    let shows = clock.unix_ms.map_or_else(|| "before 1970".to_owned(), ui::time);
    let mut text = format!(
        "clock        {shows}\nobserved     {}\nnot counted  {}",
        length(clock.observed_ms),
        length(clock.uncounted_ms)
    );
    if clock.behind_log_ms > 0 {
        text += &format!(
            "\naudit log    {} ahead: entries repeat its last time until the clock has caught up",
            length(clock.behind_log_ms)
        );
    }
    text
}

fn confirm(ui: Ui, store: &Store, yes: bool) -> Result {
    let uncounted = store.keys().clock().uncounted_ms;
    if uncounted == 0 {
        let json = json!({"counted_ms": 0});
        return ui.done(&json, "nothing to confirm: all time that passed is counted");
    }
    let what = format!(
        "{} passed by this machine's clock while nobody watched. Counted, they may end holds: keys \
         under which no record is left are destroyed then",
        length(uncounted)
    );
    erase::confirm_by(ui, ("Say what to do, `count` to go on", "count"), &what, yes)?;
    let counted = store.keys().confirm_clock()?;
    let counted_ms = u64::try_from(counted.as_millis()).unwrap_or(u64::MAX);
    ui.done(&json!({"counted_ms": counted_ms}), format_args!("{} counted", length(counted_ms)))
}

/// A length of time for people, to the minute where it is longer than that.
pub(super) fn length(ms: u64) -> String {
    let seconds = ms / 1000;
    let whole = if seconds >= 60 { seconds - seconds % 60 } else { seconds };
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}
