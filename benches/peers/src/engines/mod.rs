//! The engines.

mod byokv;
mod fjall;
mod lmdb;
mod redb;
mod sled;
mod sqlcipher;

use crate::engine::Peer;

/// The first is what the others are measured by.
pub(crate) const ALL: &[Peer] =
    &[sled::BARE, byokv::PEER, sled::NAIVE, redb::PEER, fjall::PEER, sqlcipher::PEER, lmdb::PEER];
