//! The programs that read dotenv files, run on one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

/// The programs that read dotenv files.
pub(crate) const READERS: [&str; 4] = ["bash", "node", "python-dotenv", "dotenvy"];

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/home/me");
    command
}

fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dotenv/bin/python")
}

pub(crate) fn is_there(reader: &str) -> bool {
    let there = match reader {
        "bash" => works(command("bash").args(["-c", "exec env -0"])),
        "node" => {
            let multiline = "process.exit(parseFloat(process.versions.node) >= 20.12 ? 0 : 1)";
            works(command("node").args(["-e", multiline]))
        }
        "python-dotenv" => works(command(python()).args(["-c", "import dotenv"])),
        "docker" => {
            works(command("docker").arg("--version")) && works(command("python3").arg("-V"))
        }
        _ => true,
    };
    if !there {
        // Not by `eprintln`, which a test that passes does not show.
        let text = format!("NOT SHOWN: {reader} is missing, and not compared (tests/dotenv.rs)\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    there
}

fn variables(zero_ended: &[u8]) -> Variables {
    let pairs = zero_ended.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].to_vec(), pair[at + 1..].to_vec()))
    });
    pairs.collect()
}

/// What `reader` makes of a dotenv file.
pub(crate) fn read(reader: &str, file: &Path) -> Variables {
    let output = match reader {
        "bash" => command("bash")
            .args(["--norc", "-c", "set -a; . \"$1\"; exec env -0", "bash"])
            .arg(file)
            .output(),
        "node" => {
            let print = "for (const [name, value] of Object.entries(process.env)) \
                         process.stdout.write(name + '=' + value + '\\0')";
            command("node")
                .arg(format!("--env-file={}", file.display()))
                .args(["-e", print])
                .output()
        }
        "python-dotenv" => {
            let print = "import dotenv, os, sys; dotenv.load_dotenv(sys.argv[1])\n\
                         for pair in os.environb.items(): sys.stdout.buffer.write(b'='.join(pair) + b'\\0')";
            command(python()).args(["-c", print]).arg(file).output()
        }
        _ => {
            let read = dotenvy::from_path_iter(file).unwrap().flatten();
            return read.map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
        }
    };
    variables(&output.unwrap().stdout)
}

/// Docker's own command, before a daemon that only writes down what it is asked for.
pub(crate) struct Docker {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Docker {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dotenv/docker.py");
        let mut daemon = command("python3");
        daemon.arg(stub).arg(dir.path().join("socket")).arg(dir.path().join("env"));
        let mut daemon = daemon.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Self { dir, daemon }
    }

    pub(crate) fn read(&self, file: &Path) -> Variables {
        let env = self.dir.path().join("env");
        let _ = fs::remove_file(&env);
        let output = command("docker")
            .env("DOCKER_CONFIG", self.dir.path())
            .env("DOCKER_HOST", format!("unix://{}", self.dir.path().join("socket").display()))
            .args(["create", "--env-file"])
            .arg(file)
            .arg("image")
            .output()
            .unwrap();
        // A file that it refuses gives no variables.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || !env.exists(), "{said}");
        variables(&fs::read(env).unwrap_or_default())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Compares what `reader` reads with what is stored.
pub(crate) fn assert_same(reader: &str, read: &Variables, expected: &Variables) {
    for (name, value) in expected {
        let (value, read) = (Bytes(value), read.get(name).map(|read| Bytes(read)));
        assert_eq!(read, Some(value), "{reader}, {}", String::from_utf8_lossy(name));
    }
}

/// Bytes that a failed test shows as text.
#[derive(PartialEq)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl std::fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
