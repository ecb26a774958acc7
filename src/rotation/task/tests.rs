//! A task driven by hand, its chunks done on the test's own thread.

use super::*;
use crate::engine::tests::engine;
use crate::id::Origin;
use crate::keyring::OrgPolicy;
use crate::material::KeyMaterial;

/// Gives the task's next chunks to this thread until it is in another stage, looking at it
/// after each.
fn run(task: &mut Task, engine: &Engine, mut look: impl FnMut(&Task)) {
    let stage = std::mem::discriminant(&task.stage);
    while std::mem::discriminant(&task.stage) == stage {
        match task.step(engine, Instant::now(), Chunk { records: 8, at_once: 2 }) {
            Step::Job(job) => task.done(engine, Instant::now(), job.run(engine)),
            Step::Went => {}
            Step::Idle(_) | Step::Finished => panic!("nothing to do"),
        }
        look(task);
    }
}

#[test]
fn a_deadline_reckons_with_the_count() {
    const RECORDS: u64 = 640;
    const COUNT: u64 = RECORDS / LOOKS as u64;

    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let org = engine.create_org("acme", OrgPolicy::platform_only()).unwrap();
    for i in 0..RECORDS {
        engine.write(&org, &i.to_be_bytes(), Some(b"value")).unwrap();
    }
    engine.install(&org, KeyMaterial::generate().unwrap(), Origin::Platform).unwrap();
    let mut task = Task::new(Arc::clone(&org));
    assert_eq!(task.left(), None);
    while task.survey(&engine) {}
    assert_eq!(task.left(), Some(RECORDS + COUNT));

    let mut left = vec![RECORDS + COUNT];
    run(&mut task, &engine, |task| left.extend(task.left()));
    assert!(left.is_sorted_by(|a, b| a >= b) && left.contains(&(COUNT + 8)), "{left:?}");
    assert!(matches!(task.stage, Stage::Verifying { .. }));
    assert_eq!((task.left(), task.report().progress.scanned), (Some(COUNT), 0));

    let mut scanned = Vec::new();
    run(&mut task, &engine, |task| {
        if matches!(task.stage, Stage::Verifying { .. }) {
            let records = task.report().progress.scanned;
            assert_eq!(task.left(), Some((RECORDS - records) / u64::from(LOOKS)));
            scanned.push(records);
        }
    });
    assert!(scanned.len() > 4 && scanned.is_sorted(), "{scanned:?}");
    assert_eq!((scanned.last(), task.left()), (Some(&RECORDS), Some(0)));
}

#[test]
fn what_is_done_is_not_paused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let org = engine.create_org("acme", OrgPolicy::platform_only()).unwrap();
    let mut task = Task::new(org);
    task.paused = true;
    assert!(task.report().progress.paused);
    task.stage = Stage::Done { records: 0 };
    assert!(!task.report().progress.paused);
}
