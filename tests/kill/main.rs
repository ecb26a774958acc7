//! Kill torture: a process works as an agent and an operator do, and is killed at random moments.
//! A fresh process looks at what is left, and the next one goes on in the same store.
//!
//! 20 kills; with `BYOKV_TORTURE=n`, n × 100.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod model;
mod worker;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Place;
use model::Model;
use worker::Random;

/// Runs this binary's `child` as `role`.
fn spawn(place: &Place, role: &str, seed: u64, said: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("BYOKV_KILL_ROLE", role)
        .env("BYOKV_KILL_DATA", place.data())
        .env("BYOKV_KILL_ROOT", &place.root)
        .env("BYOKV_KILL_SEED", seed.to_string())
        .env("BYOKV_KILL_SAID", said)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test of its own: one of the processes.
#[test]
fn child() {
    let Ok(role) = std::env::var("BYOKV_KILL_ROLE") else { return };
    worker::run(&role);
}

/// The lines that the child said, until it is killed `after` its first one.
fn lines_until_killed(mut child: Child, after: Duration) -> Vec<String> {
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = Vec::new();
    for line in out.by_ref() {
        if line == "ready" {
            break;
        }
        lines.push(line);
    }
    let reader = std::thread::spawn(move || out.collect::<Vec<_>>());
    let start = Instant::now();
    while start.elapsed() < after {
        std::thread::park_timeout(after.saturating_sub(start.elapsed()));
    }
    assert!(child.try_wait().unwrap().is_none(), "ended by itself: {}", stderr(child));
    child.kill().unwrap();
    child.wait().unwrap();
    lines.extend(reader.join().unwrap());
    lines
}

fn stderr(child: Child) -> String {
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned()
}

#[test]
fn what_was_acknowledged_survives_every_kill() {
    let kills = match std::env::var("BYOKV_TORTURE") {
        Ok(n) => 100 * n.parse::<u64>().unwrap_or(1),
        Err(_) => 20,
    };
    let seed = match std::env::var("BYOKV_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) ^ 0x5eed,
    };
    println!("BYOKV_SEED={seed}");
    let mut random = Random(seed);
    let (mut place, mut model) = (Place::new(), Model::default());
    let mut totals = model::Totals::default();
    for kill in 1..=kills {
        // A fresh store now and then: the first minutes of one are a case of their own.
        if kill % 50 == 0 {
            (place, model) = (Place::new(), Model::default());
        }
        let child = spawn(&place, "work", random.next(), &model.tell());
        let life = Duration::from_millis(5 + random.below(400));
        let said = lines_until_killed(child, life);
        model.hear(&said);
        // Killed again while it recovers, at times twice.
        for _ in 0..random.below(3) {
            let mut child = spawn(&place, "open", 0, "");
            let start = Instant::now();
            let life = Duration::from_millis(1 + random.below(60));
            while start.elapsed() < life {
                std::thread::park_timeout(life.saturating_sub(start.elapsed()));
            }
            let _ = child.kill();
            child.wait().unwrap();
        }
        let checker = spawn(&place, "check", 0, &model.tell());
        let output = checker.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kill {kill}: {text}\n{complaint}");
        let lost = model.compare(&text, &mut totals);
        if !lost.is_empty() {
            let (kept, root) = (place.dir.path().to_owned(), place.root.clone());
            std::mem::forget(place);
            std::fs::write(kept.join("said"), said.join("\n")).unwrap();
            std::fs::write(kept.join("found"), &*text).unwrap();
            std::fs::write(kept.join("root"), root).unwrap();
            panic!("kill {kill} of seed {seed}, see {}:\n{}", kept.display(), lost.join("\n"));
        }
    }
    assert!(totals.durable > kills && totals.buffered > kills && totals.keys > 0, "{totals:?}");
    println!(
        "torture: kill: {kills} kills, 0 lost ({} durable writes and {} synced later checked, {} \
         buffered ones lost as they may be, {} changes of keys)",
        totals.durable, totals.buffered, totals.dropped, totals.keys
    );
}
