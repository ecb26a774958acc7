//! `byokv rotation throttle`: what rotations may use.

use byokv::{Store, Throttle};
use clap::Args;

use super::failure::Result;
use super::ui::Ui;

#[derive(Args)]
pub(super) struct Limits {
    /// Records opened per second, all orgs together
    #[arg(long)]
    records_per_second: Option<u32>,
    /// Bytes opened per second
    #[arg(long)]
    bytes_per_second: Option<u64>,
    /// Share of the time, 0.001 to 1
    #[arg(long)]
    share_of_time: Option<f64>,
    /// Share of one core, all threads together, 0.001 to 64
    #[arg(long)]
    share_of_core: Option<f64>,
    /// As much as leaves 99 of 100 reads and writes within this, such as 2ms
    #[arg(long, value_name = "TIME")]
    foreground_p99: Option<humantime::Duration>,
    /// No faster than it takes to end by then, such as 2026-12-31T23:00:00Z
    #[arg(long, value_name = "WHEN")]
    finish_by: Option<humantime::Timestamp>,
    /// No limit
    #[arg(long, conflicts_with_all = [
        "records_per_second", "bytes_per_second", "share_of_time", "share_of_core",
        "foreground_p99", "finish_by",
    ])]
    none: bool,
}

impl Limits {
    pub(super) fn run(&self, ui: Ui, store: &Store) -> Result {
        let keys = store.keys();
        let named = self.records_per_second.is_some()
            || self.bytes_per_second.is_some()
            || self.share_of_time.is_some()
            || self.share_of_core.is_some()
            || self.foreground_p99.is_some()
            || self.finish_by.is_some();
        if named || self.none {
            let mut throttle = Throttle::unlimited();
            if let Some(records) = self.records_per_second {
                throttle = throttle.with_records_per_second(records)?;
            }
            if let Some(bytes) = self.bytes_per_second {
                throttle = throttle.with_bytes_per_second(bytes)?;
            }
            if let Some(share) = self.share_of_time {
                throttle = throttle.with_share_of_time(share)?;
            }
            if let Some(share) = self.share_of_core {
                throttle = throttle.with_share_of_core(share)?;
            }
            if let Some(p99) = self.foreground_p99 {
                throttle = throttle.with_foreground_p99(p99.into())?;
            }
            if let Some(end) = self.finish_by {
                throttle = throttle.with_finish_by(end.into());
            }
            keys.set_throttle(throttle)?;
        }
        let throttle = keys.throttle();
        ui.result(&throttle, &throttle)
    }
}
