//! Random programs against a model: the whole API, over several orgs, with rotations, reopens and
//! crashes. What fails is shrunk and printed as a program. `BYOKV_TORTURE` multiplies the cases.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod crash;
mod known;
mod ops;
mod world;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use byokv::failpoint;
use known::Known;
use ops::{Bytes, Op, Retire, Who};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use world::World;

#[derive(Clone)]
enum Step {
    Do(Op),
    /// A child process does these and is killed at the point, or at its end.
    Crash(&'static str, Vec<Op>),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Do(op) => op.fmt(f),
            Self::Crash(point, ops) => {
                writeln!(f, "crash_at({point:?}, {{")?;
                ops.iter().try_for_each(|op| writeln!(f, "        {op:?}"))?;
                f.write_str("    });")
            }
        }
    }
}

fn who() -> impl Strategy<Value = Who> {
    (0..3u8).prop_map(Who)
}

/// Few, so that they meet again; with the bytes that sled's iterators cannot walk over.
fn name() -> impl Strategy<Value = Bytes> {
    let names: [&[u8]; 9] =
        [b"a", b"a/b", b"a/c", b"b", b"\xff", b"\xff\xff", b"\xfe\x01", b"\0", b"b\xff\xff\xff"];
    prop_oneof![
        30 => select(names.map(<[u8]>::to_vec).to_vec()).prop_map(Bytes),
        1 => Just(Bytes(Vec::new())),
        1 => Just(Bytes(vec![b'n'; 4096])),
        1 => Just(Bytes(vec![b'n'; 4097])),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => vec(b'a'..=b'z', 0..4),
        1 => (any::<u8>(), 900..1200usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), 40_000..70_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
    .prop_map(Bytes)
}

fn write() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (who(), name(), value()).prop_map(|(w, n, v)| Op::PutDurably(w, n, v)),
        2 => (who(), name()).prop_map(|(w, n)| Op::Delete(w, n)),
        2 => (who(), name(), option::of(value())).prop_map(|(w, n, v)| Op::Swap(w, n, v)),
        2 => (who(), vec((name(), option::of(value())), 0..5)).prop_map(|(w, b)| Op::Batch(w, b)),
    ]
}

fn of_keys() -> impl Strategy<Value = Op> {
    let retire = select(vec![Retire::Immediate, Retire::Manual, Retire::AfterAnHour]);
    prop_oneof![
        4 => who().prop_map(Op::Provision),
        2 => who().prop_map(Op::RotatePlatformKey),
        1 => who().prop_map(Op::ReturnToPlatformKey),
        2 => who().prop_map(Op::ChangeSuite),
        2 => who().prop_map(Op::Suspend),
        3 => who().prop_map(Op::Resume),
        2 => (who(), any::<bool>(), retire).prop_map(|(w, b, r)| Op::SetPolicy(w, b, r)),
        1 => who().prop_map(Op::Retire),
        1 => who().prop_map(Op::EraseOrg),
        1 => Just(Op::EraseResidue),
        1 => any::<bool>().prop_map(Op::ChangeRootKey),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (who(), name(), value()).prop_map(|(w, n, v)| Op::Put(w, n, v)),
        8 => write(),
        3 => (who(), name()).prop_map(|(w, n)| Op::Get(w, n)),
        1 => (who(), name(), option::of(value())).prop_map(|(w, n, v)| Op::SwapWrongly(w, n, v)),
        2 => (who(), name()).prop_map(|(w, n)| Op::Scan(w, n)),
        2 => (who(), name(), name()).prop_map(|(w, a, b)| Op::Range(w, a, b)),
        2 => who().prop_map(Op::Watched),
        10 => of_keys(),
        1 => (who(), who()).prop_map(|(w, o)| Op::ProvisionUsed(w, o)),
        1 => who().prop_map(Op::ResumeWrongly),
        1 => who().prop_map(Op::Pause),
        2 => who().prop_map(Op::Unpause),
        3 => who().prop_map(Op::Wait),
        1 => Just(Op::Sync),
        2 => Just(Op::Reopen),
        1 => Just(Op::Verify),
        1 => (who(), name()).prop_map(|(w, n)| Op::ScanInParallel(w, n)),
        1 => Just(Op::BackUp),
    ]
}

fn crash() -> impl Strategy<Value = Step> {
    let points = failpoint::LISTS.concat();
    let ops = vec(prop_oneof![write(), of_keys()], 1..6);
    (select(points), ops).prop_map(|(point, ops)| Step::Crash(point, ops))
}

fn program() -> impl Strategy<Value = Vec<Step>> {
    vec(prop_oneof![25 => op().prop_map(Step::Do), 1 => crash()], 1..50)
}

/// Not a test of its own: does nothing unless [`after_crash`] runs it.
#[test]
fn child() {
    let Ok(data) = std::env::var("BYOKV_CHILD") else { return };
    let text = fs::read(std::env::var("BYOKV_CHILD_PROGRAM").unwrap()).unwrap();
    let (known, ops): (Known, Vec<Op>) = serde_json::from_slice(&text).unwrap();
    let mut world = World::go_on(data.as_ref(), known).unwrap();
    world.durable = true;
    let mut acknowledge = std::io::stderr();
    for op in &ops {
        world = world.step(op);
        let line = serde_json::to_string(&world.known).unwrap();
        acknowledge.write_all(format!("done {line}\n").as_bytes()).unwrap();
    }
    std::process::abort();
}

/// Whatever is acknowledged stays, and what was under way happened or did not.
fn after_crash(world: World, point: &str, ops: &[Op]) -> World {
    let dir = world.dir.clone();
    let known = world.close();
    let program = dir.with_file_name("program");
    fs::write(&program, serde_json::to_string(&(&known, ops)).unwrap()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("BYOKV_CHILD", &dir)
        .env("BYOKV_CHILD_PROGRAM", program)
        .env("BYOKV_FAILPOINT", point)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(child.stderr).unwrap();
    // A line that was cut off acknowledges nothing.
    let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let done: Vec<_> = lines.filter_map(|line| line.strip_prefix("done ")).collect();
    assert!(!said.contains("panicked"), "{said}");
    let known = done.last().map_or(known, |line| serde_json::from_str(line).unwrap());
    let op = ops.get(done.len());
    let world = World::go_on(&dir, known.clone());
    let mut world = world
        .or_else(|error| {
            assert!(matches!(op, Some(Op::ChangeRootKey(_))), "{error}");
            World::go_on(&dir, Known { root: known.made + 1, ..known })
        })
        .unwrap();
    world.find_out(op);
    world.check_all();
    world
}

fn run(program: &[Step]) {
    let place = tempfile::tempdir().unwrap();
    let mut world = World::new(&place.path().join("data"));
    for step in program {
        world = match step {
            Step::Do(op) => world.step(op),
            Step::Crash(point, ops) => after_crash(world, point, ops),
        };
    }
    world.finish();
}

#[test]
fn every_program_does_what_the_model_says() {
    let torture: u32 = std::env::var("BYOKV_TORTURE").map_or(1, |text| text.parse().unwrap());
    let config = ProptestConfig {
        cases: 12 * torture,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let cases = config.cases;
    proptest!(config, |(program in program())| run(&program));
    println!("torture: programs against the model: {cases}, 0 disagree");
}
