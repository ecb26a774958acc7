//! See `byokv::fuzzing::sealed_import`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| byokv::fuzzing::sealed_import(bytes));
