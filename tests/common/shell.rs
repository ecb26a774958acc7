//! The tool in a folder of its own.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use byokv::{Options, RootKey, Store};
use serde_json::Value;

pub(crate) const BYOKV: &str = env!("CARGO_BIN_EXE_byokv");

/// A folder with a store, its root key in a file.
pub(crate) struct Shell {
    pub(crate) dir: tempfile::TempDir,
}

impl Shell {
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn new() -> Self {
        let shell = Self::empty();
        shell.fine("init --new-root-key-file root.key");
        shell
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn open(&self) -> Store {
        let root = RootKey::from_file(self.path("root.key")).unwrap();
        Options::new().open(self.path("data"), root).unwrap()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(BYOKV);
        command.args(line.split_whitespace()).current_dir(self.dir.path()).env_clear();
        command.env("BYOKV_DATA", "data").env("BYOKV_ROOT_KEY_FILE", "root.key");
        command
    }

    pub(crate) fn run(&self, line: &str, stdin: &[u8]) -> Output {
        run(&mut self.command(line), stdin)
    }

    /// Its stdout.
    pub(crate) fn fine(&self, line: &str) -> String {
        let output = self.run(line, b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its stdout, one JSON value for each line.
    pub(crate) fn json(&self, line: &str) -> Vec<Value> {
        let lines = self.fine(&format!("--json {line}"));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Its exit code and stderr.
    pub(crate) fn refused(&self, line: &str, stdin: &[u8]) -> (i32, String) {
        let output = self.run(line, stdin);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

pub(crate) fn run(command: &mut Command, stdin: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}
