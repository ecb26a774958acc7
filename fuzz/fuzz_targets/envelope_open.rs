//! See `byokv::fuzzing::envelope_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| byokv::fuzzing::envelope_open(bytes));
