//! `src/gate.rs` as it ships, over loom's locks.

#![cfg(loom)]

#[path = "../../src/gate.rs"]
#[allow(dead_code)]
mod gate;
