//! See `byokv::fuzzing::keyring_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| byokv::fuzzing::keyring_decode(bytes));
