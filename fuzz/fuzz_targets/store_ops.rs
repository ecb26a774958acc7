//! A program of operations on a store, against the model of `tests/model`.
#![no_main]

#[path = "../../tests/model/known.rs"]
mod known;
#[path = "../../tests/model/ops.rs"]
mod ops;
#[path = "../../tests/model/world.rs"]
mod world;

use ops::Op;
use world::World;

libfuzzer_sys::fuzz_target!(|program: Vec<Op>| {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let world = World::new(&place.path().join("data"));
    program.iter().take(60).fold(world, World::step).finish();
});
