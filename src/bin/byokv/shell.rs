//! `byokv completions` and `man`: for the shell and the manual; and what the shell sets.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use byokv::text;
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
        Ok(io::stdout().lock().write_all(&script)?)
    }
}

impl Man {
    pub(super) fn run(self, ui: &Ui, command: Command) -> Result {
        let dir = text::path(&self.dir);
        generate(command.name("byokv"), &self.dir)
            .map_err(|e| Failure::Failed(format!("writing to {dir}: {e}")))?;
        ui.done(&json!({"dir": dir}), format_args!("manual pages written to {dir}"))
    }
}

/// Each page takes the place of what has its name, also of a link, and is never written through
/// one: pages are made in a new directory and moved.
fn generate(command: Command, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = dir.join(format!(".byokv-man-{}", std::process::id()));
    fs::create_dir(&new)?;
    let made = clap_mangen::generate_to(command, &new).and_then(|()| {
        fs::read_dir(&new)?.try_for_each(|page| {
            let page = page?;
            fs::rename(page.path(), dir.join(page.file_name()))
        })
    });
    made.and(fs::remove_dir_all(&new))
}
