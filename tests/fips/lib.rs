//! Nothing of its own: see `../fips.rs`.
