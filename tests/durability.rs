//! What survives a kill, and what the mark says of the rest.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use byokv::{AuditEvent, Error, Options, OrgPolicy, RootKey, Store};
use common::{Ended, Place, check_filled, copy_dir, filled, material};

/// A child that runs `job` and says each line of its own, killed when dropped.
struct Killed(Child);

impl Killed {
    fn run(job: &str, place: &Place) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("BYOKV_CHILD", job)
            .env("BYOKV_CHILD_DATA", place.data())
            .env("BYOKV_CHILD_ROOT", &place.root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for `lines` acknowledgements, then kills. What was acknowledged by then.
    fn after(mut self, lines: usize) -> Vec<String> {
        let mut out = BufReader::new(self.0.stdout.take().unwrap());
        let mut said = Vec::new();
        let mut line = String::new();
        while said.len() < lines && out.read_line(&mut line).unwrap() > 0 {
            said.extend(line.strip_prefix("ack ").map(|name| name.trim().to_owned()));
            line.clear();
        }
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        said.extend(
            out.lines()
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("ack ").map(str::to_owned)),
        );
        assert!(said.len() >= lines, "the child ended early: {said:?}");
        said
    }
}

fn ack(name: &str) {
    // In one write of a whole line: nothing torn is counted.
    std::io::stdout().write_all(format!("\nack {name}\n").as_bytes()).unwrap();
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Ok(job) = std::env::var("BYOKV_CHILD") else { return };
    let data = std::env::var_os("BYOKV_CHILD_DATA").unwrap();
    let root = RootKey::from_material(material(&std::env::var("BYOKV_CHILD_ROOT").unwrap()));
    // No background sync: what survives, survives by the call under test.
    let options = Options::new().sync_interval(Duration::from_secs(3600));
    let store = options.open(Path::new(&data), root).unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    let durable = org.durable();
    for i in 0.. {
        let name = format!("n{i:05}");
        match job.as_str() {
            "put" => durable.put(&name, &name).unwrap(),
            "batch" => {
                durable.batch().put(&name, &name).put(format!("{name}+"), "b").commit().unwrap();
            }
            "swap" => assert!(
                durable.compare_and_swap(&name, None, Some(name.as_bytes())).unwrap().is_swapped()
            ),
            "sync" => {
                org.put(&name, &name).unwrap();
                store.sync().unwrap();
            }
            "delete" => {
                org.put(&name, &name).unwrap();
                org.put(format!("{name}-"), "x").unwrap();
                durable.delete(format!("{name}-")).unwrap();
            }
            "big" => durable
                .put(&name, [&name.clone().into_bytes()[..], &[7; 300_000]].concat())
                .unwrap(),
            other => panic!("{other}"),
        }
        ack(&name);
    }
}

#[test]
fn what_was_acknowledged_as_durable_survives_a_kill() {
    for job in ["put", "batch", "swap", "sync", "delete", "big"] {
        let place = Place::new();
        let acknowledged = Killed::run(job, &place).after(if job == "big" { 20 } else { 100 });
        let store = place.open();
        let org = store.org("acme").unwrap();
        for name in &acknowledged {
            let value = org.get(name).unwrap();
            assert!(value.is_some_and(|v| v.starts_with(name.as_bytes())), "{job}: {name} is lost");
            match job {
                "batch" => {
                    assert!(org.get(format!("{name}+")).unwrap().is_some(), "{name} is torn");
                }
                "delete" => {
                    assert!(org.get(format!("{name}-")).unwrap().is_none(), "{name} is back");
                }
                _ => {}
            }
        }
    }
}

/// Buffered writes become durable by themselves.
#[test]
fn a_buffered_write_is_synced_in_the_background() {
    let place = Place::new();
    let options = Options::new().sync_interval(Duration::from_millis(50));
    let store = options.open(place.data(), place.root_key()).unwrap();
    let org = filled(&store, "acme", 1);
    let before = store.metrics().unwrap().syncs;
    org.put("buffered", "x").unwrap();
    let start = Instant::now();
    while store.metrics().unwrap().syncs <= before + 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "no sync came");
        org.put("buffered", "x").unwrap();
        std::thread::yield_now();
    }
    let copy = place.dir.path().join("copy");
    copy_dir(&place.data(), &copy);
    let copied = Store::open(&copy, place.root_key()).unwrap();
    assert!(copied.org("acme").unwrap().get("buffered").unwrap().is_some());
}

/// Threads that wait for durability at the same time share syncs.
#[test]
fn durable_writers_share_syncs() {
    const EACH: u64 = 50;
    let place = Place::new();
    let store = Options::new()
        .sync_interval(Duration::from_secs(3600))
        .open(place.data(), place.root_key())
        .unwrap();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap().durable();
    let before = store.metrics().unwrap().syncs;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (org, done) = (org.clone(), &done);
            scope.spawn(move || {
                for i in 0..EACH {
                    org.put(format!("{thread}/{i}"), "x").unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let syncs = store.metrics().unwrap().syncs - before;
    assert_eq!(done.into_inner(), 8 * EACH);
    assert!((EACH..=4 * EACH).contains(&syncs), "{syncs} syncs for {} writes", 8 * EACH);
}

/// An operator may accept that the store went back in time; that is audited, and the store is
/// whole from then on.
#[test]
fn an_accepted_rollback_is_audited() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 10));
    store.close().unwrap();
    let old = place.dir.path().join("old");
    copy_dir(&place.data(), &old);
    let store = place.open();
    store.org("acme").unwrap().durable().put("lost", "x").unwrap();
    store.close().unwrap();
    copy_dir(&old.join("db"), &place.data().join("db"));
    match place.try_open() {
        Err(Error::RolledBack { syncs: Some(behind), .. }) => assert!(behind > 0),
        other => panic!("{other:?}"),
    }
    let accept = Options::new().danger_accept_rollback(true);
    let store = accept.open(place.data(), place.root_key()).unwrap();
    check_filled(&store.org("acme").unwrap(), 10);
    let last = store.keys().audit().map(Result::unwrap).last().unwrap();
    assert!(matches!(last.event, AuditEvent::RollbackAccepted { .. }), "{last}");
    store.close().unwrap();
    let store = place.open();
    store.keys().rotate_platform_key("acme").unwrap().ended();
}
