//! The tool as it runs where somebody has set the clock of the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::common::shell::{Shell, run};

/// The shared object that shifts the wall clock, built once per process.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clock/shift.c");
        let name = format!("shift-{}.so", std::process::id());
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status = Command::new(cc)
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&built, &source])
            .status()
            .unwrap();
        assert!(status.success(), "the shifted clock does not compile");
        built
    })
}

/// One command, by a wall clock that is `seconds` ahead.
pub(crate) fn command(shell: &Shell, seconds: i64, line: &str) -> Command {
    let mut command = shell.command(line);
    command.env("LD_PRELOAD", library()).env("BYOKV_SHIFT", seconds.to_string());
    command
}

pub(crate) fn output(shell: &Shell, seconds: i64, line: &str) -> Output {
    run(&mut command(shell, seconds, line), b"")
}

/// Its stdout.
pub(crate) fn fine(shell: &Shell, seconds: i64, line: &str) -> String {
    let output = output(shell, seconds, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
