//! `byokv completions` and `man`: for the shell and the manual; and what the shell sets.

use std::io::Write;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{Arg, Args, Command};
use clap_complete::Shell;
use serde_json::json;

use super::failure::{Failure, Result};
use super::ui::Ui;

#[derive(Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
pub(super) struct Man {
    /// The directory, which is made if needed
    dir: PathBuf,
}

/// Lets a variable that is empty count as one that is not set.
pub(super) fn without_empty_variables(command: Command) -> Command {
    let is_empty =
        |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg })
}

impl Completions {
    pub(super) fn run(self, ui: &Ui, mut command: Command) -> Result {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "byokv", &mut script);
        if ui.json {
            return super::ui::object(&json!({"script": String::from_utf8_lossy(&script)}));
        }
        Ok(std::io::stdout().lock().write_all(&script)?)
    }
}

impl Man {
    pub(super) fn run(self, ui: &Ui, command: Command) -> Result {
        let dir = &self.dir;
        std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command.name("byokv"), dir))
            .map_err(|e| Failure::Failed(format!("writing to {}: {e}", dir.display())))?;
        let dir = dir.display();
        ui.done(&json!({"dir": dir.to_string()}), format_args!("manual pages written to {dir}"))
    }
}
