//! A backup as bytes: sealed chunks outside, entries inside, the contents at the end. Given a
//! key and somewhere to read or write; knows no store. Layout: `docs/design.md`.

mod contents;
mod entry;
#[cfg(feature = "fuzzing")]
mod fuzz;
mod stream;
#[cfg(test)]
mod tests;

pub use contents::{BackedUpOrg, BackupContents, LeftOutOrg, UnreadableRecord};
pub(crate) use contents::{Manifest, OrgPart, check};
pub(crate) use entry::Entry;
#[cfg(feature = "fuzzing")]
pub(crate) use fuzz::fuzz_seal;
pub(crate) use stream::{Head, Opener, Sealer};
