//! x
#![cfg(feature = "cli")]
#[test]
fn there() {
    assert!(std::path::Path::new(env!("CARGO_BIN_EXE_byokv")).exists());
}
