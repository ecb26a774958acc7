//! The tool by a wall clock that somebody has set.

use super::{KeyState, jumps, states};
use crate::common::shell::Shell;
use crate::shifted::{command, fine, output};
use byokv::failpoint;

const DAY: i64 = 24 * 3600;
/// And some seconds, which the test itself takes.
const MONTH: i64 = 30 * DAY + 30;
const TEN_YEARS: i64 = 3652 * DAY;
/// To 1969, whenever the test is run.
const BEFORE_1970: i64 = -200 * 365 * DAY;

fn with_held_key() -> Shell {
    let shell = Shell::new();
    shell.fine("org create acme --byok");
    shell.fine("org policy acme --retire 7d");
    shell.fine("put acme name");
    shell.fine("key rotate acme");
    shell
}

/// The exit code 7 says that something waits for somebody.
fn still_held(shell: &Shell, seconds: i64) {
    let output = output(shell, seconds, "rotation wait acme");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

/// Reproduced before, by these commands: the second retired the key.
#[test]
fn eight_days_ahead_for_one_command_retire_nothing() {
    let shell = with_held_key();
    assert!(shell.fine("key list acme").contains("decrypt-only, held"));
    still_held(&shell, 8 * DAY);
    assert!(fine(&shell, 8 * DAY, "key list acme").contains("decrypt-only, held"));
    still_held(&shell, TEN_YEARS);
    fine(&shell, 0, "audit --verify");
    let store = shell.open();
    assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active]);
    assert_eq!(jumps(&store).len(), 3, "to eight days, to ten years, and back");
}

/// Reproduced before: sled's settings panicked.
#[test]
fn a_clock_before_1970_is_said_and_nothing_is_done() {
    let shell = Shell::empty();
    for line in ["init --new-root-key-file root.key", "org list"] {
        let output = output(&shell, BEFORE_1970, line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        if line == "org list" {
            assert!(stderr.contains("there is no store"), "{stderr}");
        } else {
            assert_eq!(output.status.code(), Some(1));
            assert!(
                stderr.contains("error: this machine's clock shows a time before 1970"),
                "{stderr}"
            );
            assert!(!stderr.contains("panicked"), "{stderr}");
        }
    }
    let shell = with_held_key();
    let output = output(&shell, BEFORE_1970, "get acme name");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("before 1970"));
    shell.fine("get acme name");
}

/// Killed at any point while it notes a jump, the next command notes it, once.
#[test]
fn a_jump_is_noted_once_wherever_a_kill_comes() {
    let keyring = failpoint::ALL.iter().filter(|point| point.starts_with("keyring."));
    let points = keyring.filter(|point| **point != "keyring.published");
    for point in points.chain(&["outbox.written", "sync.counted", "sync.flushed", "mark.written"]) {
        let shell = Shell::new();
        shell.fine("org create acme");
        let mut killed = command(&shell, 8 * DAY, "org list");
        let output = crate::common::shell::run(killed.env("BYOKV_FAILPOINT", point), b"");
        assert_eq!(output.status.code(), None, "{point} is reached");
        fine(&shell, 8 * DAY, "org list");
        fine(&shell, 8 * DAY, "audit --verify");
        let noted = fine(&shell, 8 * DAY, "audit");
        assert_eq!(noted.matches("clock jumped").count(), 1, "{point}: {noted}");
    }
}

/// The clock that is shifted by a month stands in for a machine that was off for so long.
#[test]
fn an_operator_sees_what_is_not_counted_and_confirms_it() {
    let shell = with_held_key();
    let output = output(&shell, MONTH, "clock status");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("not counted  30days"), "{said}");
    assert!(fine(&shell, MONTH, "doctor").contains("notice  clock"));
    let (code, error) = {
        let output = crate::shifted::output(&shell, MONTH, "clock confirm");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("add --yes"), "{error}");
    assert!(fine(&shell, MONTH, "clock confirm --yes").contains("30days counted"));
    fine(&shell, MONTH, "rotation wait acme");
    let keys = fine(&shell, MONTH, "key list acme");
    assert!(keys.contains("retired") && !keys.contains("held"), "{keys}");
    let again = fine(&shell, MONTH, "clock confirm --yes");
    assert!(again.contains("nothing to confirm"), "{again}");
    // Set back, the audit log is ahead.
    let said = shell.fine("clock status");
    let ahead =
        ["29days 23h", "30days"].map(|ahead| said.contains(&format!("audit log    {ahead}")));
    assert!(ahead.contains(&true), "{said}");
    shell.fine("org create other");
    assert!(shell.fine("audit").lines().last().unwrap().contains("(the clock showed "));
    shell.fine("audit --verify");
    assert_eq!(shell.json("clock status")[0]["uncounted_ms"], 0);
}
