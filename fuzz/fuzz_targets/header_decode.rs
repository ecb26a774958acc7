//! See `byokv::fuzzing::header_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| byokv::fuzzing::header_decode(bytes));
