//! The example `agent` as a service manager runs it.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use byokv::{OrgPolicy, RootKey, Store, Throttle};
use rustix::process::{Pid, Signal, kill_process};

const LONGEST: Duration = Duration::from_secs(60);

/// Has the example built, which `cargo test --test agent` alone does not do.
fn agent() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo).args(["build", "-q", "--example", "agent"]).status().unwrap();
    assert!(built.success());
    // `target/debug/deps/agent-…`, beside `target/debug/examples/agent`.
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().parent().unwrap().join("examples/agent")
}

fn start(data: &Path, root_key: &Path) -> Child {
    let mut command = Command::new(agent());
    command.arg("--data").arg(data).arg("--root-key-file").arg(root_key);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for the end of the process, and kills it if that does not come.
fn ended(mut child: Child) -> Option<ExitStatus> {
    let pid = Pid::from_child(&child);
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || say.send(child.wait().unwrap()));
    let status = said.recv_timeout(LONGEST).ok();
    if status.is_none() {
        kill_process(pid, Signal::KILL).unwrap();
    }
    status
}

/// A rotation that takes long must not keep a service from stopping. This one takes 500 seconds.
#[test]
fn the_agent_ends_on_sigterm_in_the_middle_of_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (data, root_key) = (dir.path().join("data"), dir.path().join("root-key"));
    let text = "8mXk2pQ0cVb7sLz1TnR4uYw9eHj3gAf5dBi6oKqMx+E=";
    std::fs::write(&root_key, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&root_key, mode).unwrap();
    let open = || Store::open(&data, RootKey::from_file(&root_key).unwrap()).unwrap();
    let store = open();
    let acme = store.create_org("acme", OrgPolicy::byok()).unwrap();
    (0..500).for_each(|i| acme.put(format!("clusters/{i:03}/token"), "t").unwrap());
    store.keys().set_throttle(Throttle::unlimited().with_records_per_second(1).unwrap()).unwrap();
    drop(acme);
    store.close().unwrap();

    let mut child = start(&data, &root_key);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("agent "));
    signal(&child, Signal::HUP);
    // Its first word of the rotation: from now on it waits for its end.
    assert!(lines.any(|line| line.contains("acme") && !line.starts_with('{')));
    signal(&child, Signal::TERM);
    assert!(ended(child).unwrap().success());
    assert!(lines.any(|line| line.ends_with("everything is durable")));
    let rotates = open().orgs()[0].rotating;
    assert!(rotates, "the rotation was begun, and goes on later");
}

/// P14: an agent whose directory is missing, or another store's, must not begin anew with nothing.
#[test]
fn the_agent_makes_no_store_unless_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (data, root_key) = (dir.path().join("data"), dir.path().join("root-key"));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(agent());
        command.arg("--data").arg(&data).arg("--root-key-file").arg(&root_key).args(arguments);
        let output = command.args(["--seconds", "1"]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(!run(&[]).0 && !data.exists() && !root_key.exists());
    let (made, said) = run(&["--init"]);
    assert!(made, "{said}");
    let id = said.lines().last().unwrap().split(' ').next_back().unwrap().to_owned();
    assert!(run(&["--expect-store", &id]).0);
    assert!(!run(&["--expect-store", &"0".repeat(32)]).0);
    std::fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    assert!(!run(&[]).0 && !data.exists());
}
