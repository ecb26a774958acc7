//! Whatever text is accepted as key material is the canonical base64 of 32 bytes.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use byokv::KeyMaterial;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if KeyMaterial::from_base64(text).is_ok() {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let bytes = STANDARD.decode(line).expect("accepted, so it is base64");
        assert_eq!(bytes.len(), 32);
        assert_eq!(STANDARD.encode(bytes), line);
    }
});
