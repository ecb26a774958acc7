//! A backup as bytes: sealed chunks outside, entries inside, the contents at the end. Given a
//! key and somewhere to read or write; knows no store. Layout: `docs/design.md`.

mod contents;
mod entry;
#[cfg(feature = "fuzzing")]
mod fuzz;
mod manifest;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use contents::check;
pub use contents::{BackedUpOrg, BackupContents, LeftOut, LeftOutOrg, UnreadableRecord};
pub(crate) use entry::Entry;
#[cfg(feature = "fuzzing")]
pub use fuzz::HostileBackup;
#[cfg(feature = "fuzzing")]
pub(crate) use fuzz::{fuzz_seal, hostile};
pub(crate) use manifest::{EarlierKeys, MOST_KEYS, MOST_UNREADABLE, Manifest, OrgPart};
pub(crate) use stream::{Head, Opener, Sealer};
